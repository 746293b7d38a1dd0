"""Page one: what was found, three questions with their verdicts, the main figure, the grid and the claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from octavo.evidence.cells import SIZES, CellSummary, summary
from octavo.evidence.grid import looks_of
from octavo.evidence.names import listed
from octavo.evidence.verdicts import p_words
from octavo.records import ClaimResult, Comparison, Estimate, FirstReport, Verdict
from octavo.report.charts import MOST_SERIES, Chart, Curves
from octavo.report.document import Block, Picture, ReportSection, Strip, Table, Text, Tile, Tiles
from octavo.report.figures import MARGIN, MOST_PAIRS, many
from octavo.report.inputs import Inputs, shared
from octavo.report.sections import scale
from octavo.report.sections.phrases import (
    capitalised,
    comparison_key,
    cost_words,
    effect_words,
    filled,
    loss_words,
    mean_words,
    provisional_ledger,
)
from octavo.report.style import MISSING, count, duration, money, number, percent
from octavo.statistics import ALPHA, once, test

HOURS, FP8_LOSS, TENTH = "01-moe-saves-device-hours", "02-fp8-loss-error", "12-a-tenth-of-the-money"
"""The claims that page one asks about, by their files in configs/claims."""
MOST_CELLS = 12
"""Rows that page one's table has."""
LOSS_HEADER = "loss (nats per token)"

EMULATED = (
    "FP8 is emulated here: its numbers are real (values are rounded to FP8 with the recipe's scales in every product), "
    "its speed is not. Whatever rests on the time of an FP8 run is marked emulated and says nothing of FP8's speed."
)


def answer(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Page one: questions with their verdicts, the main figure, the grid and the claims."""
    if inputs.ablation:
        return _of_ablation(inputs, charts)
    blocks: list[Block] = [Tiles(tiles)] if (tiles := [tile for tile in questions(inputs) if tile]) else []
    compared = [one for one in inputs.comparisons.comparisons if one.kind != "ablation"]
    blocks += [Text(said, "note") for said in diverged_runs(inputs) + unknown_text(compared)]
    blocks += [*provisional_ledger(inputs), *scale.picture(charts)]
    if "answer" in charts:
        early = any(one.ratio_bias > 0 for one in inputs.compared("architecture"))
        planned = any(one.planned_ends for one in inputs.compared("architecture"))
        dots = (
            f"Pale: single pairs, of more than {MOST_PAIRS}; full: their median."
            if many(compared)
            else "Pale: single seeds. Bars: 95 % intervals over paired seeds."
        )
        hollow = " Hollow: rests on the time of emulated FP8, not on FP8's own speed." if inputs.emulated else ""
        blocks.append(
            Picture(
                "answer",
                "Left: what a mixture of experts needs to reach the dense model's loss, as a multiple of what the "
                "dense model needs (logarithmic scale). Right: how far FP8's final loss is from BF16's; grey: "
                f"within {MARGIN:g} %. {dots}{hollow}"
                + " A run read before its decay needs more than one planned for that length." * early
                + " Read between the ends of runs planned for their lengths." * planned,
                "Dot plots of what a mixture needs for the dense model's loss and of FP8's change of the loss.",
            )
        )
    blocks += [] if many_cells(inputs) else differences(inputs, charts)
    own = f"results/{inputs.whole.name}/report.pdf"
    blocks += [short_table(inputs), strip(inputs.claims.claims, own), Text(_foot(inputs), "note")]
    return ReportSection("Summary", blocks)


def many_cells(inputs: Inputs) -> bool:
    """Whether a figure of a line for each cell takes several pages: it has no room on page one."""
    return inputs.runs.loc[inputs.runs["ablation"].isna(), "cell"].nunique() > MOST_SERIES


def differences(inputs: Inputs, charts: dict[str, Chart]) -> list[Block]:
    """Each cell's loss as a difference from the dense model's."""
    if "loss_differences" not in charts:
        return []
    return [
        Picture(
            "loss_differences",
            f"The loss {'of runs planned for their lengths' if inputs.horizons else 'on the way'}, as a difference "
            f"from the dense model's in BF16 at equal tokens and at equal {inputs.hours} of training (below zero: "
            "better). Lines: means over seeds; bands: lowest to highest seed. "
            + (
                "Every point is the end of a run of either, read against the other's between its runs' ends."
                if inputs.horizons
                else "On the way learning rates have not decayed: whole runs meet at the right end alone."
            ),
            "Line charts of each cell's loss difference from the dense model in BF16.",
        )
    ]


def diverged_runs(inputs: Inputs) -> list[str]:
    """A sentence that names the runs that diverged, if any."""
    told = []
    for cell, own in inputs.runs.groupby("cell", sort=False):
        lost = int((own["status"] == "diverged").sum())
        if lost:
            told.append(f"{lost} of {len(own)} runs of {inputs.label(str(cell))}")
    return [f"Diverged, without a loss at the end: {listed(told)}."] if told else []


def unknown_text(compared: list[Comparison]) -> list[str]:
    """A sentence about what is not known to be the same for the losses that are compared, if anything."""
    unknown = [one.unlike for one in compared if one.unlike]
    most = max(unknown, key=len, default=None)
    return (
        [f"The runs do not say whether they are of the same {most}: if not, their losses cannot be compared."]
        if most
        else []
    )


def _of_ablation(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Page one of an ablation's report: sentences, curves, the grid and the claims that it tests."""
    compared = [one for one in inputs.compared("ablation") if one.axis == "tokens"]
    keys = [comparison_key(one, "loss_difference") for one in compared if one.loss_difference]
    tested = [claim for claim in inputs.claims.claims if claim.runs and claim.verdict != "not testable here"]
    said = [*(loss_words(inputs, one) for one in compared), *diverged_runs(inputs), *unknown_text(compared)]
    blocks: list[Block] = [Text(" ".join(said), "lead", keys)]
    if inputs.emulated:
        blocks.append(Text(EMULATED, "note"))
    blocks += [*provisional_ledger(inputs), *curves(inputs, charts), grid_table(inputs)]
    return ReportSection("Summary", [*blocks, strip(tested)] if tested else blocks)


def curves(inputs: Inputs, charts: dict[str, Chart]) -> list[Block]:
    """The loss curves."""
    chart = charts.get("loss")
    if not isinstance(chart, Curves):
        return []
    over = listed([axis.label for axis in chart.panels.values()])
    windows = "" if inputs.losses == "validation" else " Training losses are averaged over windows of steps."
    caption = (
        f"{capitalised(inputs.losses)} loss against {over}. Lines are means over seeds; bands reach from the lowest to "
        f"the highest seed, in the loss and in what was spent for it.{windows}"
    )
    return [Picture("loss", caption, f"Line chart of {inputs.losses} loss against {over} for every cell.")]


# --- what was found ---------------------------------------------------------------------------------------------------


def questions(inputs: Inputs) -> tuple[Tile | None, Tile | None, Tile | None]:
    """Page one's tiles: loss at equal tokens, hours for the same loss, FP8's loss; None where nothing is compared.

    A ladder's sizes end at losses of their own: there the first is about the money for the same loss.
    """
    claims = {claim.name: claim for claim in inputs.claims.claims}
    first = _loss_at_equal_tokens(inputs) if inputs.leverage is None else _a_tenth(claims.get(TENTH))
    return first, _fewer_hours(inputs, claims.get(HOURS)), _fp8_loss(claims.get(FP8_LOSS))


def _loss_at_equal_tokens(inputs: Inputs) -> Tile | None:
    """The mixture's loss at equal tokens, judged at 5 % divided by the claims that are tested and itself.

    Where runs diverged, or a run was read before its decay and looks as it does for that, nothing is decided.
    """
    one = next((one for one in inputs.compared("architecture") if one.axis == "tokens"), None)
    if one is None or one.loss_difference is None:
        return None
    found = one.loss_difference
    tests = 1 + sum(claim.p_adjusted is not None for claim in inputs.claims.claims)
    looks = looks_of(inputs.experiment)
    tested = test(np.array(one.loss_differences), "below", 0.0, looked=looks or once)
    diverged = set(inputs.runs.loc[inputs.runs["status"] == "diverged", "cell"])
    fair = found.value * one.loss_bias <= 0 and not diverged & {one.cell, one.against} and one.unlike is None
    decided = fair and tested is not None and tests * min(tested.supports, tested.refutes) <= ALPHA
    verdict: Verdict = "inconclusive" if not decided else "supported" if found.value < 0 else "refuted"
    could_tell = fair and found.n > 1 and not before_first_look(inputs)
    words = {
        "supported": "yes",
        "refuted": "no: higher",
        "inconclusive": "too close to call" if could_tell else "not decided",
    }
    detail = _interval(found)
    apart = found.low is not None and found.high is not None and found.low * found.high > 0
    if verdict == "inconclusive" and could_tell and apart:  # the interval is that of this comparison alone
        detail += " · clear by itself, not as one of several tests" + (" and looks" if looks else "")
    key = comparison_key(one, "loss_difference")
    return Tile("Lower loss at equal tokens?", rounded(found.value), detail, verdict, words[verdict], key)


def _a_tenth(claim: ClaimResult | None) -> Tile | None:
    """The claim about a tenth of the money."""
    if claim is None:
        return None
    share = claim.effect and _share(claim.effect)
    value = f"{_whole(share.value)} of it" if share else MISSING
    claim = claim.model_copy(update={"effect": share})
    return _of_claim("A tenth of the money for the same loss?", claim, value, WORDS[claim.verdict], _whole)


def _share(leverage: Estimate) -> Estimate:
    """What a mixture spends of the dense model's money (%), where that spends so many times the mixture's."""
    low, high = (None if end is None else 100 / end for end in (leverage.high, leverage.low))
    return leverage.model_copy(update={"value": 100 / leverage.value, "low": low, "high": high, "unit": "%"})


def _whole(value: float) -> str:
    return f"{value:.0f} %"


def _fewer_hours(inputs: Inputs, claim: ClaimResult | None) -> Tile | None:
    """The claim about device-hours for the same loss."""
    if claim is None:
        return None
    value = more_or_fewer(claim.effect.value) if claim.effect else MISSING
    answer = WORDS[claim.verdict]
    if claim.verdict == "refuted" and claim.effect and claim.effect.value > 1:
        answer += ": more"
    return _of_claim(f"Fewer {inputs.hours} for the same loss?", claim, value, answer, more_or_fewer)


def _fp8_loss(claim: ClaimResult | None) -> Tile | None:
    """The claim about FP8's loss error."""
    if claim is None:
        return None
    value = rounded(claim.effect.value) if claim.effect else MISSING
    answer = WORDS[claim.verdict]
    if claim.verdict in ("supported", "refuted"):
        answer += f": {_error(claim).removeprefix('raises the loss by ')}"
    return _of_claim("FP8 as accurate as BF16?", claim, value, answer, percent)


WORDS: dict[Verdict, str] = {
    "supported": "yes",
    "refuted": "no",
    "inconclusive": "not decided",
    "not testable here": "not testable here",
}


def _error(claim: ClaimResult) -> str:
    """What FP8 does to the loss: `raises the loss by less than 0.25 %`."""
    relation, _, margin = (claim.expectation or "").partition(" ")
    held = claim.verdict == "supported"
    if relation == "within":
        return f"{'keeps' if held else 'does not keep'} the loss within {margin}"
    return f"raises the loss by {'less' if held else 'more'} than {margin}"


def _of_claim(question: str, claim: ClaimResult, value: str, answer: str, show: Callable[[float], str]) -> Tile:
    said = [
        _interval(claim.effect, show) if claim.effect else "",
        claim.effect_of or "",
        claim.reason or "",
        f"about {claim.seeds_needed} seeds would tell" if claim.seeds_needed else "",
    ]
    detail = " · ".join(filter(None, said)) or f"why: claim {claim.number} under Claims"
    return Tile(question, value, detail, claim.verdict, answer, f"claims.{claim.number}.effect")


def _interval(found: Estimate, show: Callable[[float], str] = percent) -> str:
    seeds = f"{found.n} seed{'s' * (found.n != 1)}"
    if found.low is None or found.high is None:
        return f"{seeds}, no interval"
    low, high = show(found.low), show(found.high)
    for unit in (" %", " % more", " % fewer"):
        if low.endswith(unit) and high.endswith(unit):
            low = low.removesuffix(unit)
    return f"{100 * found.confidence:.0f} %: {low} to {high} · {seeds}"


def rounded(value: float) -> str:
    """A percentage in as many digits as a heading has room for: `−4.4 %`, `+0.02 %`."""
    return percent(value, 1 if abs(value) >= 1 else 2)


def more_or_fewer(ratio: float) -> str:
    """A ratio as people say it: 0.94 -> `6.0 % fewer`, 1.37 -> `37 % more`, 12 -> `× 12.0`."""
    if ratio >= 10:
        return f"× {number(ratio)}"
    change = 100 * abs(ratio - 1)
    return f"{change:.{0 if change >= 10 else 1}f} % {'more' if ratio > 1 else 'fewer'}"


def finding(inputs: Inputs) -> str:
    """What was found, in one sentence that says as much as the verdicts allow."""
    text, hours, bits = questions(inputs)
    claims = {claim.name: claim for claim in inputs.claims.claims}
    if not (text or hours or bits) or not inputs.comparisons.comparisons:
        return "Nothing is compared: no two cells here differ in one thing"
    if inputs.seeds == 1:
        return "One seed decides nothing: every verdict that rests on runs is inconclusive"
    clauses: list[str] = []
    mixture: list[str] = []
    known, unknown = _about_the_loss(inputs, text)
    if known:
        (clauses if inputs.leverage is not None else mixture).append(known)
    open_questions = [unknown] if unknown else []
    if hours and hours.verdict in ("supported", "refuted"):
        saved = hours.value if hours.value != MISSING else "fewer" if hours.verdict == "supported" else "not fewer"
        saved = _range_saved(claims[HOURS]) or saved
        mixture.append(f"needs {saved} {inputs.hours} for the same loss{_refuted_by(claims[HOURS])}")
    elif hours and hours.verdict == "inconclusive":
        open_questions.append(f"a mixture needs fewer {inputs.hours} for the same loss")
    if mixture:
        against = text and hours and {text.verdict, hours.verdict} == {"supported", "refuted"}
        clauses.append("a mixture of experts " + (" but " if against else " and ").join(mixture))
    if bits and bits.verdict in ("supported", "refuted"):
        clauses.append(f"FP8 {_error(claims[FP8_LOSS])}{_refuted_by(claims[FP8_LOSS])}")
    elif bits and bits.verdict == "inconclusive":
        open_questions.append("FP8 is as accurate as BF16")
    if open_questions:
        undecided = " or ".join(filter(None, (", ".join(open_questions[:-1]), open_questions[-1])))
        clauses.append(f"it is not decided whether {undecided}")
    size = "At this size" if inputs.leverage is None else "At these sizes"
    return f"{size} {'; '.join(clauses)}" if clauses else "None of the three questions can be tested here"


def _about_the_loss(inputs: Inputs, text: Tile | None) -> tuple[str, str]:
    """What is known of a mixture's loss at equal tokens, or of a ladder's leverage; else what is open. One is empty."""
    if inputs.leverage is not None:
        known = scale.lead(inputs.leverage["leverage"])
        return known or "", "" if known else "a mixture needs fewer model FLOPs for the same loss"
    if text is None:
        return "", ""
    loss = {"supported": "lower", "refuted": "higher"}.get(text.verdict)
    if loss is None:
        return "", "a mixture of experts reaches a lower loss at equal tokens"
    return f"reaches a {text.value.lstrip('+−')} {loss} loss at equal tokens", ""


def _range_saved(claim: ClaimResult) -> str | None:
    """`14 to 22 % fewer`, of a supported claim about several pairs; None for others."""
    ratios = [part.effect.value for part in claim.parts if part.effect]
    if claim.verdict != "supported" or len(ratios) < 2 or max(ratios) >= 1:
        return None
    least, most = (more_or_fewer(ratio) for ratio in (max(ratios), min(ratios)))
    return least if least == most else f"{least.removesuffix(' % fewer')} to {most}"


def _refuted_by(claim: ClaimResult) -> str:
    """` (MoE FP8 blockwise)`: which pair refutes a claim about several; the others need not."""
    several = sum(part.verdict != "not testable here" for part in claim.parts) > 1
    if claim.verdict != "refuted" or not several or not claim.effect_of:
        return ""
    return f" ({claim.effect_of.replace(' (emulated)', '')})"


def still_running(first: FirstReport) -> str:
    """`First report, after 3 of up to 9 seeds; more are running`."""
    return f"First report, after {first.seeds} of up to {first.most} seeds; more are running"


def before_first_look(inputs: Inputs) -> bool:
    """Whether it is a first report from before the first look at the evidence, which could decide something."""
    return inputs.first is not None and inputs.first.seeds < inputs.first.first_look


def so_far(inputs: Inputs, first: FirstReport) -> list[str]:
    """What a first report has found, and what it is worth."""
    said = [f"{still_running(first)}."]
    if before_first_look(inputs):
        said.append(
            f"These are first estimates: no verdict on runs is reached before {first.first_look} seeds of every cell."
        )
    elif inputs.ablation is None:
        said.append(f"So far: {finding(inputs)}.")
    return [
        *said,
        "The whole report takes this one's place, in this file, when the last seed that is needed is trained.",
    ]


def facts(inputs: Inputs) -> str:
    """Runs, seeds, tokens, machine, cost, and what is emulated."""
    runs = inputs.complete
    devices = runs["device_count"].max()
    kinds = {str(kind) for kind in runs["device_kind"].dropna()}
    device = "CPU core" if kinds == {"cpu"} else "device" if len(kinds) != 1 else kinds.pop()
    hours, cost = (runs[f"{name}_{'final' if inputs.imported else 'all_in'}"].sum(min_count=1)
                   for name in ("device_hours", "cost"))  # fmt: skip
    said = [
        f"{len(runs)} runs",
        f"{inputs.seeds} seed{'s' * (inputs.seeds != 1)}",
        "" if pd.isna(runs["tokens"].max()) else f"up to {count(runs['tokens'].max())} tokens each",
        "" if pd.isna(devices) else f"{int(devices)} {device}{'s' * bool(devices != 1)} a run",
        "" if pd.isna(hours) else f"{duration(3600 * hours)} of {inputs.device_time}",
        "" if pd.isna(cost) else cost_words(inputs, cost),
        "FP8 is emulated: its numbers are real, its speed is not and is not judged" if inputs.emulated else "",
    ]
    return " · ".join(filter(None, said))


def _foot(inputs: Inputs) -> str:
    """Commit, text, verification, how to trace a number."""
    found = list(inputs.provenance.values())
    checked = inputs.verification
    verified = "not verified yet"
    if checked is not None:
        verified = f"verification {'passed' if checked.get('passed') else 'FAILED'} ({len(checked['checks'])} checks)"
    said = [
        f"Commit {shared([(one.git_commit or 'unknown')[:10] for one in found])}" if found else "",
        f"text {shared([one.data_manifest_sha256[:10] for one in found])}" if found else "",
        "" if inputs.imported or inputs.first else verified,
        "numbers of a first report cannot be traced: its tables are not kept" if inputs.first
        else f"trace a number: octavo trace --results results/{inputs.whole.name} KEY (report.html shows the keys)",
    ]  # fmt: skip
    text = " · ".join(filter(None, said))
    return text[0].upper() + text[1:]


def grid_table(inputs: Inputs) -> Table:
    """Parameters, FLOPs, loss, hours and cost by cell."""
    runs = inputs.runs if inputs.ablation else inputs.runs[inputs.runs["ablation"].isna()]
    cost = "cost_final" if inputs.imported else "cost_all_in"  # an import does not say what else was run
    rows, keys = [], []
    for cell, found in summary(runs).items():
        numbers = found.numbers
        columns = {
            **{name: count(numbers[name]) for name in SIZES},
            **{name: mean_words(found.means[name]) for name in (f"{inputs.losses}_loss", "validation_bits_per_byte")},
            **{name: _time(numbers[name]) for name in ("device_hours_final", "device_hours_all_in")},
            cost: money(numbers[cost], inputs.currency),
            "runs_completed": f"{numbers['runs_completed']}/{numbers['runs']}",
        }
        rows.append([inputs.label(cell), *columns.values()])
        keys.append(["", *(f"cells.{cell}.{name}" for name in columns)])
    time, scope = inputs.device_time, "final" if inputs.imported else "all-in"
    header = ["cell", "total parameters", "active parameters", "FLOPs per token", LOSS_HEADER,
              "bits per byte", f"{time}, final", f"{time}, all-in", f"cost, {scope}",
              "runs done"]  # fmt: skip
    counted = (
        "Parameters and FLOPs: as the import gives them, or counted from the model that it names."
        if inputs.imported
        else "Active parameters: per token, the output head counted, the input embedding not. FLOPs: model FLOPs per "
        "trained token, forward and backward, without recomputation."
    )
    of_text = {"validation": "on held-out text", "training": "of the last tenth of the training steps"}
    caption = (
        f"All cells. Losses: mean over seeds {of_text.get(inputs.losses, '')}, ± half of the 95 % interval where there "
        f"is more than one seed. {counted} Time and cost: all seeds together."
    )
    widths = [2.9, 1.15, 1.15, 1.05, 1.5, 1.5, 1.05, 1.05, 1.1, 0.9]
    return filled(Table(header, rows, "l" + "r" * 9, caption, widths, small=True, keys=keys))


def short_table(inputs: Inputs) -> Table:
    """What each cell is, how well it ended and what it took: page one's table."""
    whole = grid_table(inputs)
    loss = "bits per byte" if "bits per byte" in whole.header else LOSS_HEADER
    kept = [header for header in ("cell", "active parameters", "total parameters", loss) if header in whole.header]
    places = [whole.header.index(header) for header in kept]
    spent = {
        "device_hours_all_in": f"{inputs.device_time}, all seeds",
        "cost_all_in": "cost, all seeds",
    }
    if inputs.imported:
        spent = {name.replace("all_in", "final"): header for name, header in spent.items()}
    cells = summary(inputs.runs[inputs.runs["ablation"].isna()])
    best = _best_cells(cells, f"{inputs.losses}_loss")
    caption = f"The {len(best)} of {len(cells)} cells that end with the lowest loss; all stand under Loss."
    rows, keys = [], []
    for row, of_row, (cell, found) in zip(whole.rows, whole.keys or [], cells.items(), strict=True):
        if cell not in best:
            continue
        hours, cost = (found.numbers[name] for name in spent)
        shown = [_time(hours), money(cost, inputs.currency)]
        rows.append([*(row[place] for place in places), *shown])
        keys.append([*(of_row[place] for place in places), *(f"cells.{cell}.{name}" for name in spent)])
    header = [*kept, *spent.values()]
    widths, align = [2.4, *[1.2] * (len(header) - 1)], "l" + "r" * (len(header) - 1)
    return filled(Table(header, rows, align, caption if len(best) < len(cells) else "", widths, True, keys))


def _best_cells(cells: Mapping[str, CellSummary], loss: str) -> list[str]:
    """The cells that page one has room for: those with the lowest losses, and those without one last."""
    losses = {cell: found.means[loss] for cell, found in cells.items()}
    known = {cell: math.inf if one is None else one.value for cell, one in losses.items()}
    return sorted(cells, key=lambda cell: known[cell])[:MOST_CELLS]


def _time(hours: float | None) -> str:
    return MISSING if hours is None else duration(3600 * hours)


def _in_short(effect: Estimate | None) -> str:
    """An effect without its interval."""
    if effect is None:
        return MISSING
    if effect.unit.startswith("% of"):
        return f"an expert tells {effect.value:.1f} {effect.unit}"
    if effect.unit == "USD":
        return money(effect.value, effect.unit)
    return effect_words(effect.model_copy(update={"low": None, "high": None}))


def _of_what(claim: ClaimResult) -> str:
    """A claim's effect without its interval, and what it was computed for, where that is not the experiment."""
    effect = _in_short(claim.effect)
    return f"{effect} {claim.computed_for}" if claim.computed_for and claim.effect else effect


def strip(results: list[ClaimResult], own: str = "") -> Strip:
    """The claims' verdicts, those that were tested first, the others with the commands that test them: where that is
    the command of this report, `own`, it was given already."""
    order = ["supported", "refuted", "inconclusive"]
    tested = sorted((one for one in results if one.verdict in order), key=lambda one: order.index(one.verdict))
    others = [one for one in results if one.verdict not in order]
    commands: dict[str, list[str]] = {}
    for one in others:
        if one.tested_by:
            commands.setdefault(one.tested_by, []).append(str(one.number))
    said = [
        f"– not testable here: {' · '.join(f'{one.number} {one.title}' for one in others)}.",
        *(
            f"{listed(numbers)}: {command}."
            if not own or not command.endswith(own)
            else f"{listed(numbers)}: by an experiment like this one, but not by these runs."
            for command, numbers in commands.items()
        ),
        "Why, and what each needs, stands under Claims.",
    ]
    return Strip(
        [
            Tile(f"{one.number} {one.title}", _of_what(one), "", one.verdict, one.verdict,
                 f"claims.{one.number}.effect")
            for one in tested
        ],
        " ".join(said) if others else "",
    )  # fmt: skip


def verdict_table(results: list[ClaimResult]) -> Table:
    """One line per claim."""
    rows = [
        [
            str(claim.number),
            claim.title,
            claim.verdict + (f": {claim.reason}" if claim.reason else ""),
            _effect(claim),
            p_words(claim.p_adjusted) if claim.p_adjusted is not None else "",
        ]
        for claim in results
    ]
    keys = [
        ["", "", *(f"claims.{claim.number}.{part}" for part in ("verdict", "effect", "p_adjusted"))]
        for claim in results
    ]
    caption = (
        "The verdicts in numbers. Intervals are those of the comparison alone; p is adjusted for the other comparisons "
        "and claims."
    )
    widths = [0.3, 3.6, 2.3, 3.2, 0.8]
    return Table(["", "claim", "verdict", "effect", "p"], rows, "rlllr", caption, widths, small=True, keys=keys)


def _effect(claim: ClaimResult) -> str:
    """The effect that decides, after the comparison that it is of."""
    words = effect_words(claim.effect)
    return f"{claim.effect_of}: {words}" if claim.effect_of and claim.effect else words
