"""The sections on results: claims, losses, axes of comparison, precision, experts, ablations, speed, traffic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from octavo.evidence.cells import LOSS_UNIT, mean
from octavo.evidence.comparisons import estimate
from octavo.evidence.names import words
from octavo.evidence.verdicts import MOST_TOLD
from octavo.forecast.rows import published_beside
from octavo.records import ClaimResult, Comparison
from octavo.report.charts import Chart
from octavo.report.document import Block, Picture, ReportSection, Table, Text
from octavo.report.figures import (
    AXIS_NAMES,
    MARGIN,
    MOST_PAIRS,
    TIMED,
    families,
    held_equal,
    losses_of,
    many,
    pair_name,
    rates,
)
from octavo.report.inputs import Inputs
from octavo.report.sections.answer import EMULATED, curves, differences, grid_table, many_cells, verdict_table
from octavo.report.sections.phrases import (
    effect_words,
    filled,
    loss_words,
    losses_of_many,
    mean_words,
    nodes_apart,
    range_of,
    ranks_apart,
    ratio_words,
)
from octavo.report.sentences import rate_sentence
from octavo.report.style import MISSING, count, number, percent


def claims(inputs: Inputs) -> ReportSection:
    """Every claim with its sentence, its source, its numbers and what would decide it."""
    rows = []
    for claim in inputs.claims.claims:
        rows.append([str(claim.number), _asked(claim), claim.verdict, claim.sentence])
    caption = (
        "Claims as their sources make them, held against the runs. Verdicts by t tests on paired seeds "
        "(equivalence by two one-sided tests), p values adjusted by Holm over the claims tested."
    )
    header = ["", "claim and source", "verdict", "what the runs say"]
    table = Table(header, rows, "rlll", caption, [0.3, 5.2, 1.1, 4.4], small=True)
    parts = [one for claim in inputs.claims.claims if (one := _parts_of(claim))]
    return ReportSection("Claims", [verdict_table(inputs.claims.claims), table, *parts] if rows else [])


def _parts_of(claim: ClaimResult) -> Table | None:
    """Every comparison of a claim that has more than its sentence names."""
    if len(claim.parts) <= MOST_TOLD:
        return None
    untested: dict[str, list[str]] = {}
    rows = []
    for part in claim.parts:
        if part.verdict == "not testable here":
            untested.setdefault(part.note or "", []).append(part.label)
        else:
            rows.append([part.label, effect_words(part.effect), part.verdict, part.note or ""])
    rows += [[", ".join(labels), MISSING, "not testable here", note] for note, labels in untested.items()]
    caption = f"Claim {claim.number}, comparison by comparison; each verdict is that of the comparison alone."
    return filled(Table(["comparison", "effect", "alone", "note"], rows, "lrll", caption, [2.4, 2.2, 1, 3], small=True))


def _asked(claim: ClaimResult) -> str:
    needs = f". Needs {claim.needs}" if claim.needs else ""
    return f"{claim.text} ({claim.source}){needs}."


def losses(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Loss against what was spent."""
    blocks: list[Block] = [*curves(inputs, charts), grid_table(inputs)]
    blocks += differences(inputs, charts) if many_cells(inputs) and not inputs.ablation else []
    compared = [one for one in inputs.compared("architecture") if one.axis in ("tokens", "model_flops", "device_hours")]
    if many(compared):
        blocks += [Text(said) for said in losses_of_many(inputs, compared)]
    else:
        for one in compared:
            unknown = one.loss_difference is None and one.resource_ratio is None  # said once, with the reason
            blocks.append(Text(loss_words(inputs, one) + ("" if unknown else f" {ratio_words(inputs, one)}")))
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
    return ReportSection("Loss", blocks)


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
            [label, *(mean_words(mean(frame[domain], LOSS_UNIT)) if domain in frame else MISSING for domain in domains)]
            for label, frame in rows
        ],
        "l" + "r" * len(domains),
        "Final validation loss by domain of the text (nats per token; mean over seeds ± half of the 95 % interval).",
        [2.4, *[1.2] * len(domains)],
        small=True,
    )


def fairness(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """All axes at once."""
    rows = [
        [
            pair_name(inputs, one),
            equal,
            effect_words(one.loss_difference),
            effect_words(one.resource_ratio),
            one.note or "",
        ]
        for equal, one in held_equal(inputs)
    ]
    blocks: list[Block] = [*nodes_apart(inputs)] if rows else []
    grouped = many(inputs.comparisons.comparisons)
    dots = (
        f"Single pairs (pale) and their median, of more than {MOST_PAIRS} pairs."
        if grouped
        else "Single seeds (pale), their mean and its 95 % interval over paired seeds."
    )
    if "fair_axes" in charts:
        blocks.append(
            Picture(
                "fair_axes",
                "Every pair on every axis. Left: loss difference at the end of the common range (below zero, the first "
                "named is better). Right: what the first named needs over what the other needs to reach the higher of "
                "their two losses there, which both reach (below one, it is cheaper; logarithmic scale). "
                f"{dots} What rests on time is drawn on a scale of its own.",
                "Dot plot of loss differences and resource ratios for every pair of cells on every axis.",
            )
        )
    if grouped:
        blocks.append(_table_of_many(inputs))
    elif rows:
        header = ["pair", "held equal", "loss difference", "resource ratio", "note"]
        caption = "Every pair on every axis in numbers. No axis is left out because of what it shows."
        blocks.append(Table(header, rows, "llrrl", caption, [2.4, 1.8, 1.9, 1.9, 3], True))
    return ReportSection("Comparisons at equal resources", blocks)


def _table_of_many(inputs: Inputs) -> Table:
    """A line for each pair: its loss difference and its ratio of resources on every axis."""
    pairs: dict[str, dict[str, Comparison]] = {}
    for one in inputs.comparisons.comparisons:
        if one.kind != "ablation":
            pairs.setdefault(pair_name(inputs, one), {})[one.axis] = one
    axes = [axis for axis in ("tokens", "model_flops", "device_hours", "cost")
            if any(axis in own for own in pairs.values())]  # fmt: skip
    header = ["pair", *(f"{AXIS_NAMES[axis]}".replace("device-hours", inputs.hours) for axis in axes)]
    rows = [[name, *(_in_short(own.get(axis)) for axis in axes)] for name, own in pairs.items()]
    caption = (
        "Every pair on every axis: loss difference, and what the first named needs of what the other needs for the "
        "same loss. No axis is left out because of what it shows. * rests on the time of emulated FP8. † has a note "
        "(a run that is read before its end, say). Notes, intervals and single seeds: comparisons.json."
    )
    return Table(header, rows, "l" + "r" * len(axes), caption, [2.4, *[1.6] * len(axes)], small=True)


def _in_short(one: Comparison | None) -> str:
    """`−0.31 %, × 0.94`, marked where it is emulated or has a note."""
    if one is None or one.loss_difference is None:
        return MISSING
    marks = "*" * (one.emulated and one.axis in TIMED) + "†" * bool(one.note)
    ratio = "" if one.resource_ratio is None else f", × {number(one.resource_ratio.value)}"
    return f"{percent(one.loss_difference.value)}{ratio} {marks}".rstrip()


def precision(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """FP8 against BF16: the error of the loss and what happens to the numbers."""
    blocks: list[Block] = [Text(EMULATED, "note")] if inputs.emulated else []
    compared = [one for one in inputs.compared("precision") if one.axis == "tokens"]
    of_pairs = " Of so many pairs each is pale, and the median of them full." if many(compared) else ""
    if "loss_error" in charts:
        blocks.append(
            Picture(
                "loss_error",
                f"Relative difference of the final {losses_of(inputs.compared('precision'))} loss, FP8 against BF16 "
                "with the same seed: single seeds (pale), mean and 95 % interval. Grey: the margin of DeepSeek-V3's "
                f"authors ({MARGIN:g} %).{of_pairs}",
                f"Dot plot of FP8's relative loss error against BF16 with the margin of {MARGIN:g} per cent.",
            )
        )
    if many(compared):
        blocks += [Text(said) for said in losses_of_many(inputs, compared)]
    else:
        blocks += [Text(loss_words(inputs, one)) for one in compared]
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
    return ReportSection("FP8 against BF16", blocks)


def experts(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Load balance and specialisation."""
    blocks: list[Block] = []
    if "expert_load" in charts:
        frame = charts["expert_load"].frame
        loads = frame.groupby("panel", sort=False)["value"].agg(["max", "min"])
        if len(loads) > MOST_PAIRS:
            blocks.append(
                Text(
                    f"At the end of training the busiest expert of a layer serves {number(loads['max'].min())} to "
                    f"{number(loads['max'].max())} times an even share of the tokens (most in "
                    f"{loads['max'].idxmax()}), the idlest {number(loads['min'].min(), 2)} to "
                    f"{number(loads['min'].max(), 2)} times (least in {loads['min'].idxmin()}), "
                    f"over {len(loads)} cells."
                )
            )
        else:
            blocks += [
                Text(
                    f"{panel}: at the end of training the busiest expert of a layer serves "
                    f"{number(own['max'])} times an even share of the tokens, the idlest "
                    f"{number(own['min'], 2)} times."
                )
                for panel, own in loads.iterrows()
            ]
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
    return ReportSection("Load balance and specialisation of experts", blocks)


def _heat_run(inputs: Inputs) -> str:
    return next(str(claim.data["heat_run"]) for claim in inputs.claims.claims if claim.data.get("heat"))


def ablations(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Each ablation against its baseline."""
    if "ablations" not in charts:
        return ReportSection("Ablations", [])
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
                effect_words(one.loss_difference),
            ]
        )
    header = ["ablation", "what it changes", "active parameters", "loss difference"]
    blocks.append(filled(Table(header, rows, "llrr", "The ablations.", [2.6, 3.4, 1.8, 2.4], small=True)))
    return ReportSection("Ablations", blocks)


def _change(before: float, after: float) -> str:
    return MISSING if pd.isna(before) or pd.isna(after) else f"{count(before)} → {count(after)}"


def speed(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Throughput."""
    if "throughput" not in charts:
        return ReportSection("Throughput", [])
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
    pairs = [one for one in pairs if one.axis == "tokens"]
    said = _rates_of_many(inputs, pairs, rate) if many(pairs) else [_rate_sentence(inputs, one, rate) for one in pairs]
    said += _published(inputs, rate)
    where = [*nodes_apart(inputs), *ranks_apart(inputs)]
    return ReportSection("Throughput", [*blocks, *where, *(Text(text) for text in said if text)])


def _published(inputs: Inputs, rate: pd.Series) -> Iterator[str]:
    """How fast cells of the grid ran, beside what was published for their model, device and recipe."""
    if inputs.experiment is None:
        return
    measured = rate.groupby("cell").mean()
    for name, cell in inputs.experiment.cells.items():
        if name not in measured.index or cell.ablation or cell.trunk:
            continue
        if found := published_beside(cell.model, inputs.experiment.device, cell.precision.recipe):
            own = number(measured[name])
            yield f"{inputs.label(name)}: {own} tokens/s per device here; published for its model: {found}."


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


def _rates_of_many(inputs: Inputs, pairs: list[Comparison], rate: pd.Series) -> list[str | None]:
    """The range of the ratios of rates of each family of pairs, and the pairs at its ends."""
    mean = rate.groupby("cell").mean()
    said: list[str | None] = []
    for family, own in families(inputs, pairs).items():
        ratios = {
            pair_name(inputs, one): float(mean[one.cell] / mean[one.against])
            for one in own
            if one.cell in mean.index and one.against in mean.index
        }
        if ratios:
            said.append(f"{family}: the ratio of their rates is {range_of(ratios, number)}, over {len(ratios)} pairs.")
    if inputs.emulated and said:
        said.append("The emulation's speed says nothing of FP8's.")
    return said


def traffic(inputs: Inputs) -> ReportSection:
    """Bytes between devices, from the claim about them."""
    claim = next((claim for claim in inputs.claims.claims if "all_to_all_bytes_per_token" in claim.data), None)
    if claim is None:
        return ReportSection("Traffic between devices", [])
    frame = pd.DataFrame(claim.data)
    columns = [name for name in frame.columns if name not in ("cell", "label")]
    rows = [[row["label"], *(_sent(name, row[name]) for name in columns)] for row in frame.to_dict("records")]
    where = f" {claim.computed_for}" if claim.computed_for else ""
    caption = f"Bytes that a device sends per token in training{where}, computed from model and parallel layout."
    header = ["cell", *(words(name.removesuffix("_bytes_per_token")) for name in columns)]
    table = filled(Table(header, rows, "l" + "r" * len(columns), caption, small=True))
    return ReportSection("Traffic between devices", [Text(claim.sentence), table])


def _sent(column: str, value: float) -> str:
    """Bytes as a number, a share of the step's time in per cent."""
    return percent(100 * value, 1).lstrip("+±") if column.startswith("share") and not pd.isna(value) else number(value)
