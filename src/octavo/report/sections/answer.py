"""Page one: who is ahead, the loss curves, the grid and the verdicts."""

from __future__ import annotations

from octavo.evidence.cells import SIZES, summary
from octavo.evidence.names import listed
from octavo.evidence.verdicts import p_words
from octavo.records import ClaimResult, Comparison
from octavo.report.charts import Chart, Curves
from octavo.report.document import Block, Picture, Section, Table, Text
from octavo.report.inputs import Inputs
from octavo.report.sections.phrases import (
    capitalised,
    comparison_key,
    effect_words,
    filled,
    loss_words,
    mean_words,
    provisional_ledger,
)
from octavo.report.style import count, money, number

EMULATED = (
    "FP8 is emulated here: its numbers are real (values are rounded to FP8 with the recipe's scales in every product), "
    "its speed is not. Whatever rests on the time of an FP8 run is marked emulated and says nothing of FP8's speed."
)


def answer(inputs: Inputs, charts: dict[str, Chart]) -> Section:
    """Page one: who is ahead, the loss curves, the grid's table and the verdicts."""
    compared = headline(inputs)
    said = [loss_words(inputs, one) for one in compared]
    said += diverged_runs(inputs) + unknown_text(compared)
    if inputs.seeds == 1 and not inputs.ablation:
        said.append("One seed decides nothing: every verdict that rests on runs is inconclusive.")
    nothing = "There are no two cells here that differ in one thing: nothing is compared."
    keys = [comparison_key(one, "loss_difference") for one in compared if one.loss_difference]
    blocks: list[Block] = [Text(" ".join(said) or nothing, "lead", keys)]
    if inputs.emulated:
        blocks.append(Text(EMULATED, "note"))
    blocks += provisional_ledger(inputs)
    curves = charts.get("loss")
    if isinstance(curves, Curves):
        over = listed([axis.label for axis in curves.panels.values()])
        windows = "" if inputs.losses == "validation" else " Training losses are averaged over windows of steps."
        blocks.append(
            Picture(
                "loss",
                f"{capitalised(inputs.losses)} loss against {over}. Lines are means over seeds; bands reach from the "
                f"lowest to the highest seed, in the loss and in what was spent for it.{windows}",
                f"Line chart of {inputs.losses} loss against {over} for every cell.",
            )
        )
    blocks.append(grid_table(inputs))
    blocks.append(verdict_table(inputs.claims.claims))
    return Section("The answer", blocks)


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


def headline(inputs: Inputs) -> list[Comparison]:
    """What is compared first: the mixture against the dense model at equal tokens and at equal device-hours; FP8."""
    at_equal_tokens = [one for one in inputs.comparisons.comparisons if one.axis == "tokens"]
    if inputs.ablation:
        return [one for one in at_equal_tokens if one.kind == "ablation"]
    architectures = inputs.compared("architecture")
    first = [next((one for one in architectures if one.axis == axis), None) for axis in ("tokens", "device_hours")]
    return [*(one for one in first if one), *(one for one in at_equal_tokens if one.kind == "precision")]


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
            **{name: number(numbers[name]) for name in ("device_hours_final", "device_hours_all_in")},
            cost: money(numbers[cost], inputs.currency),
            "runs_completed": f"{numbers['runs_completed']}/{numbers['runs']}",
        }
        rows.append([inputs.label(cell), *columns.values()])
        keys.append(["", *(f"cells.{cell}.{name}" for name in columns)])
    hours, scope = inputs.hours, "final" if inputs.imported else "all-in"
    header = ["cell", "total parameters", "active parameters", "FLOPs per token", "loss (nats per token)",
              "bits per byte", f"{hours}, final", f"{hours}, all-in", f"cost, {scope}",
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
        f"is more than one seed. {counted} {capitalised(hours)} and cost: all seeds together."
    )
    widths = [2.9, 1.15, 1.15, 1.05, 1.5, 1.5, 1.05, 1.05, 1.1, 0.9]
    return filled(Table(header, rows, "l" + "r" * 9, caption, widths, small=True, keys=keys))


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
    return Table(
            ["", "claim", "verdict", "effect", "p"], rows, "rlllr",
            "The verdicts; the sentences behind them, sources, and what would decide the open ones: see Claims. "
            "Intervals are those of the comparison alone; p is adjusted for the other comparisons and claims.",
            [0.3, 3.6, 2.3, 3.2, 0.8], small=True, keys=keys,
    )  # fmt: skip


def _effect(claim: ClaimResult) -> str:
    """The effect that decides, after the comparison that it is of."""
    words = effect_words(claim.effect)
    return f"{claim.effect_of}: {words}" if claim.effect_of and claim.effect else words
