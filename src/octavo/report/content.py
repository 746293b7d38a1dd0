"""What the report says: sections of paragraphs, tables and figures made from the numbers.

No result is written by hand: each paragraph is built by `octavo.report.sentences` from the same numbers as the table
or the figure beside it, so text and number cannot contradict one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from octavo.accounting.money import hour_price
from octavo.evidence.comparisons import estimate
from octavo.evidence.names import PRECISIONS, words
from octavo.evidence.statistics import t_interval
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.run import Experiment
from octavo.precision.recipes import RECIPES
from octavo.records import ClaimResult, Comparison, Estimate
from octavo.report.charts import Chart, Curves
from octavo.report.document import Block, Document, Picture, Section, Table, Text
from octavo.report.figures import MARGIN, axis_name, losses_of, pair_name, rates
from octavo.report.inputs import Inputs, shared
from octavo.report.sentences import listed, loss_sentence, rate_sentence, ratio_sentence
from octavo.report.style import MISSING, count, duration, money, number, percent

EMULATED = (
    "FP8 is emulated here: its numbers are real (values are rounded to FP8 with the recipe's scales in every product), "
    "its speed is not. Whatever rests on the time of an FP8 run is marked emulated and says nothing of FP8's speed."
)

SCATTER = 10
"""%, by which seeds may differ in step time before the limits of an experiment say so."""


def document(inputs: Inputs, charts: dict[str, Chart]) -> Document:
    """The whole report."""
    sections = whole(inputs, charts) if inputs.ablation is None else against_baseline(inputs, charts)
    sections = [section for section in sections if section.blocks]
    return Document(inputs.title, inputs.description, _date(inputs), sections=sections)


def whole(inputs: Inputs, charts: dict[str, Chart]) -> list[Section]:
    """The sections of an experiment's report."""
    return [
        answer(inputs, charts),
        claims(inputs),
        losses(inputs, charts),
        fairness(inputs, charts),
        precision(inputs, charts),
        experts(inputs, charts),
        ablations(inputs, charts),
        speed(inputs, charts),
        traffic(inputs),
        ledger(inputs, charts),
        published(inputs),
        forecast(inputs),
        methods(inputs),
        limits(inputs),
        verification(inputs),
        imported_runs(inputs),
        provenance(inputs),
    ]


def against_baseline(inputs: Inputs, charts: dict[str, Chart]) -> list[Section]:
    """The sections of one ablation's report: two pages."""
    tested = [claim for claim in inputs.claims.claims if claim.runs and claim.verdict != "not testable here"]
    first = answer(inputs, charts)
    first = replace(first, blocks=[*first.blocks[:-1], *([verdict_table(tested)] if tested else [])])
    contribution, costs = ablations(inputs, charts), ledger(inputs, charts)
    return [first, contribution, replace(costs, page=False), replace(limits(inputs), page=False), run_list(inputs)]


def _date(inputs: Inputs) -> tuple[int, int, int, int, int, int]:
    """When the last attempt ended; the epoch's beginning for imports without books."""
    last = inputs.attempts["end"].max()
    last = pd.Timestamp(0, tz="UTC") if pd.isna(last) else last
    return last.year, last.month, last.day, last.hour, last.minute, last.second


# --- page one -------------------------------------------------------------------------------------------------------


def answer(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Page one: who is ahead, the loss curves, the grid's table and the verdicts."""
    said = " ".join(headline(inputs)) or "There are no two cells here that differ in one thing: nothing is compared."
    blocks: list[Block] = [Text(said, "lead")]
    if inputs.emulated:
        blocks.append(Text(EMULATED, "note"))
    curves = charts.get("loss")
    if isinstance(curves, Curves):
        over = listed([axis.label for axis in curves.panels.values()])
        windows = "" if inputs.losses == "validation" else " Training losses are averaged over windows of steps."
        blocks.append(
            Picture(
                "loss",
                f"{_start(inputs.losses)} loss against {over}. Lines are means over seeds; bands reach from the lowest "
                f"to the highest seed, in the loss and in what was spent for it.{windows}",
                f"Line chart of {inputs.losses} loss against {over} for every cell.",
            )
        )
    blocks.append(grid_table(inputs))
    blocks.append(verdict_table(inputs.claims.claims))
    return Section("The answer", blocks)


def headline(inputs: Inputs) -> Iterator[str]:
    """One sentence each: the mixture against the dense model at equal tokens and at equal device-hours; FP8."""
    compared = inputs.comparisons.comparisons
    if inputs.ablation:
        for one in (one for one in compared if one.kind == "ablation" and one.axis == "tokens"):
            yield _loss(inputs, one)
        return
    for axis in ("tokens", "device_hours"):
        first = next((one for one in compared if one.kind == "architecture" and one.axis == axis), None)
        if first is not None:
            yield _loss(inputs, first)
    for one in (one for one in compared if one.kind == "precision" and one.axis == "tokens"):
        yield _loss(inputs, one)
    if inputs.seeds == 1:
        yield "One seed decides nothing: every verdict that rests on runs is inconclusive."


def _loss(inputs: Inputs, one: Comparison) -> str:
    names = inputs.label(one.cell).replace(" (emulated)", ""), inputs.label(one.against).replace(" (emulated)", "")
    return loss_sentence(*names, axis_name(inputs, one), one.loss_difference, one.note, one.losses)


def grid_table(inputs: Inputs) -> Table:
    """Parameters, FLOPs, loss, hours and cost by cell."""
    runs = inputs.runs if inputs.ablation else inputs.runs[inputs.runs["ablation"].isna()]
    of_cost = "final" if inputs.imported else "all_in"  # an import does not say what else was run
    rows = []
    for cell, own in runs.groupby("cell", sort=False):
        first, done = own.iloc[0], own[own["status"] == "completed"]
        rows.append(
            [
                inputs.label(str(cell)),
                count(first["total_parameters"]),
                count(first["active_parameters"]),
                count(first["flops_per_token"]),
                _mean(done[f"{inputs.losses}_loss"]),
                _mean(done["validation_bits_per_byte"]),
                number(own["device_hours_final"].sum(min_count=1)),
                number(own["device_hours_all_in"].sum(min_count=1)),
                money(own[f"cost_{of_cost}"].sum(min_count=1), inputs.currency),
                f"{len(done)}/{len(own)}",
            ]
        )
    hours = inputs.hours
    header = ["cell", "total parameters", "active parameters", "FLOPs per token", "loss (nats per token)",
              "bits per byte", f"{hours}, final", f"{hours}, all-in", f"cost, {of_cost.replace('_', '-')}",
              "runs done"]  # fmt: skip
    counted = (
        "Parameters and FLOPs: as the import gives them, or counted from the model that it names."
        if inputs.imported
        else "Active parameters: per token, the output head counted, the input embedding not. FLOPs: model FLOPs per "
        "trained token, forward and backward, without recomputation."
    )
    of_text = {"validation": "on held-out text", "training": "of the last tenth of the training steps"}
    caption = (
        f"The grid. Losses: mean over seeds {of_text.get(inputs.losses, '')}, ± half of the 95 % interval where there "
        f"is more than one seed. {counted} {_start(hours)} and cost: all seeds together."
    )
    return filled(Table(header, rows, "l" + "r" * 9, caption, [3.0, *[1.15] * 9], small=True))


def filled(table: Table) -> Table:
    """Without the columns in which no row says anything."""
    kept = [place for place in range(len(table.header)) if any(row[place] not in ("", MISSING) for row in table.rows)]
    return replace(
        table,
        header=[table.header[place] for place in kept],
        rows=[[row[place] for place in kept] for row in table.rows],
        align="".join(table.align[place] for place in kept),
        widths=table.widths and [table.widths[place] for place in kept],
    )


def _mean(values: pd.Series) -> str:
    values = values.dropna()
    if values.empty:
        return MISSING
    found = t_interval(values.to_numpy())
    half = "" if found.high is None else f" ± {number(found.high - found.estimate, 1)}"
    return f"{found.estimate:.3f}{half}"


def verdict_table(results: list[ClaimResult]) -> Table:
    """One line per claim."""
    rows = [[str(claim.number), claim.title, claim.verdict, _effect(claim.effect)] for claim in results]
    return Table(
        ["", "claim", "verdict", "effect"], rows, "rlll",
        "The verdicts; the sentences behind them, sources, and what would decide the open ones: see Claims.",
        [0.3, 4.4, 1.7, 3.2], small=True,
    )  # fmt: skip


def _effect(effect: Estimate | None) -> str:
    if effect is None:
        return MISSING
    value = f"{_quantity(effect.value, effect.unit)}"
    if effect.low is not None and effect.high is not None:
        value += f" [{_quantity(effect.low, effect.unit)}, {_quantity(effect.high, effect.unit)}]"
    return value


def _quantity(value: float, unit: str) -> str:
    if unit == "%":
        return percent(value)
    if unit == "ratio":
        return f"× {number(value)}"
    return f"{number(value)} {unit}"


# --- the questions --------------------------------------------------------------------------------------------------


def claims(inputs: Inputs) -> Section:
    """Every claim with its sentence, its source, its numbers and what would decide it."""
    rows = []
    for claim in inputs.claims.claims:
        rows.append([str(claim.number), _asked(claim), claim.verdict, claim.sentence])
    caption = (
        "Claims as their sources make them, held against the runs. Verdicts by t tests on paired seeds "
        "(equivalence by two one-sided tests), p values adjusted by Holm over the claims tested."
    )
    header = ["", "claim and source", "verdict", "what the runs say"]
    table = Table(header, rows, "rlll", caption, [0.3, 3.6, 1.3, 4.8], small=True)
    return Section("Claims", [table] if rows else [], page=True)


def _asked(claim: ClaimResult) -> str:
    needs = f". Needs {claim.needs}" if claim.needs else ""
    return f"{claim.text} ({claim.source}){needs}."


def losses(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Loss against what was spent."""
    blocks: list[Block] = []
    for one in inputs.compared("architecture"):
        if one.axis in ("tokens", "model_flops", "device_hours"):
            blocks.append(Text(f"{_loss(inputs, one)} {_ratio(inputs, one)}"))
    if "final_loss" in charts:
        blocks.append(
            Picture(
                "final_loss",
                f"Final {inputs.losses} loss: single seeds (pale), their mean and its 95 % interval. Seeds are paired: "
                "what they have in common widens these intervals but not those of the differences.",
                f"Dot plot of the final {inputs.losses} loss of every cell with seeds and intervals.",
            )
        )
    by_domain = domain_table(inputs)
    if by_domain:
        blocks.append(by_domain)
    return Section("Who reaches the lower loss?", blocks, page=True)


def domain_table(inputs: Inputs) -> Table | None:
    """Final validation loss by domain of the text."""
    from octavo.records import Result, read_record

    folder = inputs.whole
    rows = []
    complete = inputs.complete
    grid = complete if inputs.ablation else complete[complete["ablation"].isna()]
    for cell, own in grid.groupby("cell", sort=False):
        results = [folder.run(str(cell), int(seed)).result for seed in own["seed"]]
        found = [
            read_record(path, Result, made_by="octavo train").validation_loss_by_domain
            for path in results
            if path.exists()
        ]
        if found and found[0]:
            frame = pd.DataFrame(found)
            rows.append((inputs.label(str(cell)), frame))
    if not rows:
        return None
    domains = sorted(rows[0][1].columns)
    return Table(
        ["cell", *domains],
        [
            [label, *(_mean(frame[domain]) if domain in frame else MISSING for domain in domains)]
            for label, frame in rows
        ],
        "l" + "r" * len(domains),
        "Final validation loss by domain of the text (nats per token; mean over seeds ± half of the 95 % interval).",
        [2.4, *[1.2] * len(domains)],
        small=True,
    )


def fairness(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """All axes at once."""
    rows = [
        [
            pair_name(inputs, one),
            axis_name(inputs, one),
            _effect(one.loss_difference),
            _effect(one.resource_ratio),
            one.note or "",
        ]
        for one in inputs.comparisons.comparisons
        if one.kind != "ablation"
    ]
    blocks: list[Block] = []
    if "fair_axes" in charts:
        blocks.append(
            Picture(
                "fair_axes",
                "Every pair on every axis. Left: loss difference at the end of the common range (below zero, the first "
                "named is better). Right: what the first named needs over what the other needs to reach the higher of "
                "their two losses there, which both reach (below one, it is cheaper; logarithmic scale). Single seeds "
                "(pale), their mean and its 95 % interval over paired seeds. What rests on time is drawn on a scale "
                "of its own.",
                "Dot plot of loss differences and resource ratios for every pair of cells on every axis.",
            )
        )
    if rows:
        header = ["pair", "held equal", "loss difference", "resource ratio", "note"]
        caption = "The same numbers. No axis is left out because of what it shows."
        blocks.append(Table(header, rows, "llrrl", caption, [2.2, 1.8, 2.1, 2.1, 2.2], True))
    return Section("Does the answer depend on what is held equal?", blocks, page=True)


def precision(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """FP8 against BF16: the error of the loss and what happens to the numbers."""
    blocks: list[Block] = []
    if "loss_error" in charts:
        blocks.append(
            Picture(
                "loss_error",
                f"Relative difference of the final {losses_of(inputs.compared('precision'))} loss, FP8 against BF16 "
                "with the same seed: single seeds (pale), mean and 95 % interval. Grey: the margin of DeepSeek-V3's "
                f"authors ({MARGIN:g} %).",
                f"Dot plot of FP8's relative loss error against BF16 with the margin of {MARGIN:g} per cent.",
            )
        )
    blocks += [Text(_loss(inputs, one)) for one in inputs.compared("precision") if one.axis == "tokens"]
    if "fp8_underflow" in charts:
        blocks.append(
            Picture(
                "fp8_underflow",
                "What FP8 loses: the share of non-zero values that quantising turns to zero, by kind of tensor.",
                "Line charts of the share of values turned to zero over training steps.",
            )
        )
        overflow = inputs.steps[[f"fp8_overflow_{kind}" for kind in ("input", "weight", "gradient")]].max().max()
        saturated = f"at most {percent(100 * overflow, 4).lstrip('+±')} of" if overflow > 0 else "none of"
        blocks.append(Text(f"Saturation: {saturated} the values that were looked at saturated at any logged step."))
    if "fp8_overflow" in charts:
        blocks.append(
            Picture(
                "fp8_overflow",
                "The share of values beyond the format's range, which saturate, by kind of tensor.",
                "Line charts of the share of saturated values over training steps.",
            )
        )
    if "fp8_errors" in charts:
        blocks.append(
            Picture(
                "fp8_errors",
                "The error of each FP8 product: its difference from the product of the BF16 operands, relative to that "
                "product (Frobenius norms), mean over layers.",
                "Line charts of the three products' errors over training steps.",
            )
        )
    if "fp8_amax" in charts:
        blocks.append(
            Picture(
                "fp8_amax",
                "The largest magnitude over all layers before scaling, by kind of tensor: what the scales bring into "
                "FP8's range.",
                "Line charts of the largest magnitudes over training steps.",
            )
        )
    return Section("Does eight bits cost accuracy?", blocks, page=True)


def experts(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Load balance and specialisation."""
    blocks: list[Block] = []
    if "expert_load" in charts:
        frame = charts["expert_load"].frame
        for panel, own in frame.groupby("panel", sort=False):
            blocks.append(
                Text(
                    f"{panel}: at the end of training the busiest expert of a layer serves "
                    f"{number(own['value'].max())} times an even share of the tokens, the idlest "
                    f"{number(own['value'].min(), 2)} times."
                )
            )
        blocks.insert(
            0,
            Picture(
                "expert_load",
                "Load of the experts at the end of training, over an even share (1), mean over seeds; experts sorted "
                "by load in every layer.",
                "Heat map of expert load by layer and rank.",
            ),
        )
    if "specialisation" in charts:
        blocks.append(
            Picture(
                "specialisation",
                f"Which experts serve which domain, by layer, in the run {_heat_run(inputs)}: binary logarithm of the "
                "expert's share of a domain's tokens over its mean share (0: no preference; 1: twice as often).",
                "Heat maps of domain by expert, one per MoE layer.",
            )
        )
    blocks += [Text(claim.sentence) for claim in inputs.claims.claims if claim.data.get("heat") and claim.sentence]
    return Section("Do the experts share the work, and do they specialise?", blocks, page=True)


def _heat_run(inputs: Inputs) -> str:
    return next(str(claim.data["heat_run"]) for claim in inputs.claims.claims if claim.data.get("heat"))


def ablations(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Each ablation against its baseline."""
    if "ablations" not in charts:
        return Section("What does each means contribute?", [])
    blocks: list[Block] = [
        Picture(
            "ablations",
            f"Each ablation against its baseline: relative difference of the final "
            f"{losses_of(inputs.compared('ablation'))} loss at equal tokens, paired by seed (above zero: the ablation "
            "is worse).",
            "Dot plot of the loss difference of each ablation from its baseline.",
        )
    ]
    rows = []
    runs = inputs.runs.drop_duplicates("cell").set_index("cell")
    for one in (one for one in inputs.compared("ablation") if one.axis == "tokens"):
        new, old = runs.loc[one.cell], runs.loc[one.against]
        rows.append(
            [
                pair_name(inputs, one),
                inputs.ablations.get(str(new["ablation"]), ""),
                _change(old["active_parameters"], new["active_parameters"]),
                _effect(one.loss_difference),
            ]
        )
    header = ["ablation", "what it changes", "active parameters", "loss difference"]
    blocks.append(filled(Table(header, rows, "llrr", "The ablations.", [2.6, 3.4, 1.8, 2.4], small=True)))
    return Section("What does each means contribute?", blocks, page=True)


def _change(before: float, after: float) -> str:
    return MISSING if pd.isna(before) or pd.isna(after) else f"{count(before)} → {count(after)}"


def speed(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Throughput."""
    if "throughput" not in charts:
        return Section("How fast is each cell?", [])
    blocks: list[Block] = [
        Picture(
            "throughput",
            "Training throughput: tokens per second and device of the median step, which a pause of the machine does "
            "not move; device-hours and the forecast's table count all steps. Single seeds (pale), their mean and its "
            "95 % interval.",
            "Dot plot of training throughput by cell.",
        )
    ]
    rate = rates(inputs).set_index(["cell", "seed"])["rate"]
    pairs = [*inputs.compared("architecture"), *inputs.compared("precision")]
    said = [_rate_sentence(inputs, one, rate) for one in pairs if one.axis == "tokens"]
    return Section("How fast is each cell?", [*blocks, *(Text(text) for text in said if text)])


def _rate_sentence(inputs: Inputs, one: Comparison, rate: pd.Series) -> str | None:
    """Which of a pair trains faster, by the seeds that both have; None without any."""
    known = set(rate.index.get_level_values("cell"))
    if not {one.cell, one.against} <= known:
        return None
    ratios = (rate[one.cell] / rate[one.against]).dropna()
    if ratios.empty:
        return None
    labels = inputs.label(one.cell), inputs.label(one.against)
    said = rate_sentence(*labels, estimate(np.log(ratios.to_numpy()), "ratio"))
    return f"{said} The emulation's speed says nothing of FP8's." if "(emulated)" in " ".join(labels) else said


def traffic(inputs: Inputs) -> Section:
    """Bytes between devices, from the claim about them."""
    claim = next((claim for claim in inputs.claims.claims if "all_to_all_bytes_per_token" in claim.data), None)
    if claim is None:
        return Section("How much do devices say to one another?", [])
    frame = pd.DataFrame(claim.data)
    columns = [name for name in frame.columns if name != "cell"]
    rows = [[inputs.label(row["cell"]), *(number(row[name]) for name in columns)] for row in frame.to_dict("records")]
    caption = "Bytes that a device sends per token in training, computed from model and parallel layout."
    header = ["cell", *(words(name.removesuffix("_bytes_per_token")) for name in columns)]
    table = Table(header, rows, "l" + "r" * len(columns), caption, small=True)
    return Section("How much do devices say to one another?", [Text(claim.sentence), table])


# --- the books ------------------------------------------------------------------------------------------------------


def ledger(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Final against all-in, and what the difference is made of."""
    if inputs.imported:
        return _imported_ledger(inputs, charts)
    runs, attempts = inputs.runs, inputs.attempts
    if runs["device_hours_all_in"].isna().all():
        return Section("What did it cost?", [])
    final, everything = runs["device_hours_final"].sum(), runs["device_hours_all_in"].sum()
    sources = ", ".join(sorted(set(attempts["source"])))
    blocks: list[Block] = []
    if "ledger" in charts:
        blocks.append(
            Picture(
                "ledger",
                f"{_start(inputs.hours)} and cost by cell. Filled: the attempts that the final results rest on, "
                "start-up and validation included. Hatched: work that was lost, repeated or superseded.",
                "Stacked bars of device-hours and cost by cell, final and everything else.",
            )
        )
    all_in = money(runs["cost_all_in"].sum(min_count=1), inputs.currency)
    blocks.append(
        Text(
            f"The final runs took {number(final)} {inputs.hours}; with every attempt they took {number(everything)}, "
            f"{number(everything / final) if final else MISSING} times as many, and cost {all_in}. "
            f"The books are from {sources}. Runs that octavo verify makes again are in none."
        )
    )
    by_state = attempts.assign(state=attempts["state"].where(~attempts["superseded"], "superseded")).groupby("state")
    rows = [
        [state, str(len(own)), number(own["device_hours"].sum()), number(own["energy_kwh"].sum(min_count=1)),
         money(own["cost"].sum(min_count=1), inputs.currency)]
        for state, own in by_state
    ]  # fmt: skip
    rows.append(
        ["all", str(len(attempts)), number(attempts["device_hours"].sum()),
         number(attempts["energy_kwh"].sum(min_count=1)), money(attempts["cost"].sum(min_count=1), inputs.currency)]
    )  # fmt: skip
    energy = ", ".join(sorted(set(attempts["energy_source"].dropna())))
    blocks.append(
        Table(
            ["attempts that ended", "number", inputs.hours, "kWh", "cost"], rows,
            "lrrrr", f"Every attempt. Energy: {energy or 'not known'}.",
        )
    )  # fmt: skip
    if inputs.experiment:
        blocks.append(_price_table(inputs, inputs.experiment.cluster, inputs.experiment.device))
    return Section("What did it cost?", blocks, page=True)


def _imported_ledger(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """What the steps of imported runs took; of other attempts nothing is known."""
    hours, cost = (inputs.runs[name].sum(min_count=1) for name in ("device_hours_final", "cost_final"))
    if pd.isna(hours):
        return Section("What did it cost?", [])
    counted, whole = int(inputs.runs["device_hours_final"].notna().sum()), len(inputs.runs)
    known = "runs" if counted == whole else f"{counted} of {whole} runs, those whose hours are known,"
    price = "" if pd.isna(cost) else f" and cost {money(cost, inputs.currency)}"
    blocks: list[Block] = [
        Text(
            f"The training steps of the {known} took {number(hours)} {inputs.hours}{price}. Start-up, validation, and "
            "what failed or was repeated are not in an import: all-in figures are not known."
        )
    ]
    if "ledger" in charts:
        caption = f"{_start(inputs.hours)} of training steps{' and their cost' if price else ''}, by cell, all seeds."
        blocks.insert(0, Picture("ledger", caption, "Bars of device-hours and cost by cell."))
    return Section("What did it cost?", blocks, page=True)


def _start(text: str) -> str:
    return text[0].upper() + text[1:]


def _price_table(inputs: Inputs, cluster: Cluster, device: Device) -> Table:
    rows = []
    for basis in ("rental", "ownership"):
        if getattr(cluster, basis) is None:
            continue
        price = hour_price(cluster, device, basis)
        total = inputs.attempts["device_hours"].sum() * price.total
        used = "reported" if basis == cluster.price else "for comparison"
        rows.append(
            [basis, money(price.total, cluster.currency), money(price.electricity, cluster.currency),
             money(total, cluster.currency), used, _price_source(cluster, basis)]
        )  # fmt: skip
    return Table(
        ["basis", "per device-hour", "of it electricity", "this experiment", "", "source"], rows,
        "lrrrll", "Prices.", [1, 1.2, 1.2, 1.3, 1.2, 4], small=True,
    )  # fmt: skip


def _price_source(cluster: Cluster, basis: str) -> str:
    if basis == "rental" and cluster.rental:
        return cluster.rental.source
    return "; ".join(dict.fromkeys(cluster.ownership.sources.values())) if cluster.ownership else ""


def published(inputs: Inputs) -> Section:
    """The figures that were printed, with their arithmetic."""
    claim = next((claim for claim in inputs.claims.claims if "published_value" in claim.data), None)
    if claim is None:
        return Section("Do the published figures add up?", [])
    rows = [
        [
            one["text"],
            f"{number(one['value'], 4)} {one['unit']}",
            number(one["published_value"], 4),
            "holds" if one["holds"] else "does not hold",
            one["assumption"],
            one["source"],
        ]
        for one in pd.DataFrame(claim.data).to_dict("records")
    ]
    header = ["as printed", "recomputed", "printed", "", "assumption", "source"]
    table = Table(header, rows, "lrrlll", "Recomputed from what else was published.", [2, 1.7, 1, 1.2, 3, 2.6], True)
    return Section("Do the published figures add up?", [Text(claim.sentence), table], page=True)


def forecast(inputs: Inputs) -> Section:
    """Plan against actual."""
    plan = inputs.plan
    if plan.empty or "tokens_per_second_per_device" not in plan:
        return Section("Was the forecast right?", [])
    rows, inside, compared = [], 0, 0
    for planned in plan.to_dict("records"):
        own = inputs.complete[inputs.complete["cell"] == planned["cell"]]
        if own.empty:
            continue
        actual = float((own["tokens"] / own["training_seconds"] / own["device_count"]).mean())
        compared += 1
        inside += planned["tokens_per_second_low"] <= actual <= planned["tokens_per_second_high"]
        hours = own["device_hours_all_in"].sum(min_count=1)
        span = f"{number(planned['tokens_per_second_low'])} to {number(planned['tokens_per_second_high'])}"
        rows.append(
            [inputs.label(planned["cell"]), number(planned["tokens_per_second_per_device"]), span, number(actual),
             percent(100 * (actual / planned["tokens_per_second_per_device"] - 1), 0), number(planned["device_hours"]),
             number(hours)]
        )  # fmt: skip
    level = f"{100 * plan['interval'].iloc[0]:.0f} % interval"  # one for all cells
    header = ["cell", "forecast tokens/s", level, "measured", "difference", f"{inputs.hours}, forecast",
              f"{inputs.hours}, all-in"]  # fmt: skip
    caption = "Throughput per device (mean over all steps) and hours: forecast and measured."
    table = Table(header, rows, "l" + "r" * 6, caption, [2.4, *[1.2] * 6], small=True)
    said = f"Of {compared} cells, {inside} ran within the forecast's {level}."
    return Section("Was the forecast right?", [Text(said), table] if rows else [])


# --- the small print ------------------------------------------------------------------------------------------------


def methods(inputs: Inputs) -> Section:
    """How the runs were made and compared."""
    blocks: list[Block] = [
        *(_training(inputs.experiment) if inputs.experiment else _training_elsewhere()),
        _recipes(inputs),
        Text(
            "Equal resources. Each run's validation losses are smoothed by isotonic regression and interpolated by a "
            "monotone cubic in the logarithm of the resource. The loss difference is read where the shorter of two "
            "curves ends; the resource ratio is what either needs for the higher of the two losses there, which both "
            "reach. A seed in which a run diverged, or whose curve begins below that loss, has no ratio: it is "
            "censored, and the notes say so."
        ),
        Text(
            "Statistics. Student's t on paired differences; equivalence by two one-sided tests; p values adjusted over "
            "claims by Holm. With one seed every verdict is inconclusive."
        ),
        Text(
            "Cost. Device-hours are devices times the time of the logged training steps."
            if inputs.imported
            else "Cost. Device-hours are devices times the wall-clock that an attempt held them. Final: the share of "
            "each attempt's steps that the results rest on. All-in: every attempt, failed, stopped, repeated or "
            "superseded."
        ),
    ]
    return Section("Methods", blocks, page=True)


def _recipes(inputs: Inputs) -> Table:
    """What the precisions of the runs are, and where that is written."""
    used = set(inputs.runs["precision"])
    rows = [[PRECISIONS[name], recipe.summary, recipe.source] for name, recipe in RECIPES.items() if name in used]
    return Table(["precision", "what it is", "source"], rows, "lll", "The precisions.", [1.3, 3, 3], small=True)


def _training(experiment: Experiment) -> list[Text]:
    file, training = experiment.file, experiment.file.training
    optimizer = training.optimizer
    seeds = ", ".join(map(str, file.seeds))
    overrides = "; ".join(
        f"{role}: {', '.join(f'{key} = {value}' for key, value in change.items())}"
        for role, change in file.overrides.items()
        if change
    )
    return [
        Text(
            f"Training. {training.total_steps:,} steps of {training.global_batch_size} sequences of "
            f"{training.sequence_length} tokens ({count(training.total_steps * training.tokens_per_step)} a run), "
            f"AdamW with learning rate {optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}, "
            f"{training.schedule.decay} decay after {training.schedule.warmup_fraction:.0%} warm-up. Seeds {seeds}. "
            f"Differences between architectures: {overrides or 'none but the model itself'}."
        ),
        Text(
            "Pairing. Cells of a seed see the same sequences in the same order and begin from the same values where "
            "the shapes of their parameters agree. Differences are taken seed by seed."
        ),
    ]


def _training_elsewhere() -> list[Text]:
    return [
        Text(
            "Training. The runs were trained outside Octavo and imported from their logs, which do not say on what "
            "data and with which settings: that cells differ in what they are named after and in nothing else rests on "
            "the word of those who ran them."
        ),
        Text(
            "Pairing. Differences are taken seed by seed. Whether runs of a seed saw the same data in the same order "
            "is not recorded; where they did not, pairing gains nothing, and the intervals are still right."
        ),
        Text(
            "Losses. A cell with fewer validations than a curve needs is compared on other axes than tokens by its "
            "training losses, averaged over windows of steps; the notes say where."
        ),
    ]


def limits(inputs: Inputs) -> Section:
    """What these runs cannot show."""
    largest = count(inputs.runs["active_parameters"].max())
    tokens = count(inputs.runs["tokens"].max())
    said = [
        f"The largest model has {_or_unknown(largest)} active parameters and the longest run {_or_unknown(tokens)} "
        "tokens: what holds here need not hold at the scale that the claims were made for.",
        f"{inputs.seeds} seed{'s' if inputs.seeds != 1 else ''}: differences smaller than their intervals are not "
        "shown to be zero.",
    ]
    said += scattered_times(inputs)
    if inputs.emulated:
        said.append("Nothing here measures the speed, energy or cost of FP8: it was emulated.")
    if set(inputs.runs["device_kind"].dropna()) == {"cpu"}:
        said.append(
            "All runs were on CPU cores; how a mixture's step time compares with a dense model's differs on GPUs, "
            "where experts are spread over devices."
        )
    if inputs.experiment:
        domains = sorted({source.domain for source in inputs.experiment.file.data.sources})
        said.append(f"The text is of {len(domains)} kind{'s' if len(domains) > 1 else ''} ({', '.join(domains)}).")
    return Section("Limits of this experiment", [Text(text) for text in said])


def scattered_times(inputs: Inputs) -> Iterator[str]:
    """That times are unsteady, where a cell's seeds, which do the same work, differ by more than SCATTER in them."""
    runs = inputs.complete.assign(step=inputs.complete["training_seconds"] / inputs.complete["steps"])
    spread = runs.groupby("cell")["step"].agg(["min", "max"])
    more = (100 * (spread["max"] / spread["min"] - 1)).dropna()
    if len(more) and more.max() > SCATTER:
        cells = listed([inputs.label(str(cell)) for cell in more[more > SCATTER].index])
        yield (
            f"Seeds of a cell do the same work, yet their mean step times differ by up to {number(more.max())} % "
            f"(more than {SCATTER} %: {cells}). Speeds, hours and money here rest on an unsteady machine."
        )


def _or_unknown(text: str) -> str:
    return "an unknown number of" if text == MISSING else text


def verification(inputs: Inputs) -> Section:
    """Whether the results were reproduced."""
    found = inputs.verification
    if found is None or inputs.ablation:
        return Section("Are the results reproducible?", [])
    rows = [
        [str(one.get("gate", "")), str(one.get("run", "")), str(one.get("status", "")), str(one.get("note", ""))]
        for one in found.get("checks", [])
    ]
    header = ["gate", "run", "result", "note"]
    return Section(
        "Are the results reproducible?",
        [Table(header, rows, "llll", "Runs made again beside the originals.", [1.5, 2, 1.3, 4], small=True)],
    )


def imported_runs(inputs: Inputs) -> Section:
    """Where imported runs came from, and what their import left blank."""
    imported = inputs.imported
    if imported is None:
        return Section("Imported runs", [])
    price = f"priced as on the cluster {imported.cluster}" if imported.cluster else "not priced"
    blocks: list[Block] = [
        Text(
            f"These runs were not made by Octavo. They were imported from {len(imported.files)} "
            f"file{'s' * (len(imported.files) != 1)} in the format {words(imported.format)}, and are {price}."
        )
    ]
    if imported.blank:
        rows = [[what, missing] for what, _, missing in (blank.partition(": ") for blank in imported.blank)]
        caption = "What was not given and is therefore left out; nothing was guessed."
        blocks.append(Table(["left blank", "what would fill it"], rows, "ll", caption, [3, 3], small=True))
    rows = [[name, digest] for name, digest in imported.files.items()]
    caption = "The files as they were when they were imported."
    blocks.append(Table(["file", "SHA-256"], rows, "ll", caption, [2.4, 4], small=True))
    return Section("Imported runs", blocks, page=True)


def provenance(inputs: Inputs) -> Section:
    """Versions, hardware, commit, data."""
    found = list(inputs.provenance.values())
    blocks: list[Block] = []
    if found:
        packages = sorted({name for one in found for name in one.packages})
        rows = [
            ["Octavo", shared([one.octavo_version for one in found])],
            [
                "commit",
                shared([f"{one.git_commit or 'unknown'}{' (changed)' if one.git_dirty else ''}" for one in found]),
            ],
            ["image", shared([one.image_digest or "none" for one in found])],
            ["Python", shared([one.python for one in found])],
            *([name, shared([one.packages.get(name, "absent") for one in found])] for name in packages),
            ["lock (SHA-256)", shared([one.lock_sha256 or "unknown" for one in found])],
            *(
                [words(key), shared([one.hardware.get(key) for one in found])]
                for key in dict.fromkeys(key for one in found for key in one.hardware)
                if any(one.hardware.get(key) is not None for one in found)
            ),
            ["threads a process", shared([one.threads for one in found])],
            ["data manifest (SHA-256)", shared([one.data_manifest_sha256 for one in found])],
        ]
        blocks.append(Table(["", "all runs"], rows, "ll", "What made the runs.", [1.4, 5], small=True))
        built = {
            name: shared([", ".join(f"{count} {kind}" for kind, count in one.precision_built.items())])
            for name, one in inputs.provenance.items()
            if name.endswith(f"seed-{min(inputs.runs['seed'])}")
        }
        rows = [[name, value] for name, value in built.items()]
        blocks.append(
            Table(["run", "linear layers by implementation"], rows, "ll",
                  "The precision asked for is the precision built: layers counted before the first step.",
                  [1.6, 4], small=True)
        )  # fmt: skip
    if inputs.manifest:
        rows = [
            [source["name"], source["license"] or "", str(source["documents"]), ", ".join(source["sha256"].values())]
            for source in inputs.manifest["sources"]
        ]
        blocks.append(
            Table(["source", "licence", "documents", "SHA-256"], rows, "llrl",
                  "The text.", [1.4, 1.8, 0.9, 4.4], small=True)
        )  # fmt: skip
    blocks += run_list(inputs).blocks
    return Section("Provenance", blocks, page=True)


def run_list(inputs: Inputs) -> Section:
    """Every run with what it was and what came of it."""
    rows = [
        [
            f"{row.cell}/seed-{row.seed}",
            row.status,
            str(row.steps),
            duration(row.training_seconds),
            MISSING if inputs.imported else str(row.attempts),
            *(one[:16] if isinstance(one, str) else MISSING for one in (row.run_fingerprint, row.parameters_sha256)),
        ]
        for row in inputs.runs.itertuples()
    ]
    hashes = ", with the beginning of the SHA-256 of its configuration and of its final parameters"
    table = Table(
        ["run", "status", "steps", "training", "attempts", "configuration", "final parameters"], rows, "llrrrll",
        f"Every run{'' if inputs.imported else hashes}.", [2.6, 1.2, 0.8, 1, 0.9, 1.9, 1.9], small=True,
    )  # fmt: skip
    return Section("The runs", [filled(table)])


def _ratio(inputs: Inputs, one: Comparison) -> str:
    resources = {"tokens": "tokens", "model_flops": "model FLOPs", "device_hours": inputs.hours, "cost": "dollars"}
    return ratio_sentence(inputs.label(one.cell), inputs.label(one.against), resources[one.axis], one)
