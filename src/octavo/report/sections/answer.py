"""Page one: who is ahead, the loss curves, the grid and the verdicts."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.records import ClaimResult
from octavo.report.charts import Chart, Curves
from octavo.report.document import Block, Picture, Section, Table, Text
from octavo.report.inputs import Inputs
from octavo.report.sections.phrases import capitalised, effect_words, filled, loss_words, mean_words
from octavo.report.sentences import listed
from octavo.report.style import count, money, number

EMULATED = (
    "FP8 is emulated here: its numbers are real (values are rounded to FP8 with the recipe's scales in every product), "
    "its speed is not. Whatever rests on the time of an FP8 run is marked emulated and says nothing of FP8's speed."
)


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
                f"{capitalised(inputs.losses)} loss against {over}. Lines are means over seeds; bands reach from the "
                f"lowest to the highest seed, in the loss and in what was spent for it.{windows}",
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
            yield loss_words(inputs, one)
        return
    for axis in ("tokens", "device_hours"):
        first = next((one for one in compared if one.kind == "architecture" and one.axis == axis), None)
        if first is not None:
            yield loss_words(inputs, first)
    for one in (one for one in compared if one.kind == "precision" and one.axis == "tokens"):
        yield loss_words(inputs, one)
    if inputs.seeds == 1:
        yield "One seed decides nothing: every verdict that rests on runs is inconclusive."


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
                mean_words(done[f"{inputs.losses}_loss"]),
                mean_words(done["validation_bits_per_byte"]),
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
        f"is more than one seed. {counted} {capitalised(hours)} and cost: all seeds together."
    )
    widths = [2.9, 1.15, 1.15, 1.05, 1.5, 1.5, 1.05, 1.05, 1.1, 0.9]
    return filled(Table(header, rows, "l" + "r" * 9, caption, widths, small=True))


def verdict_table(results: list[ClaimResult]) -> Table:
    """One line per claim."""
    rows = [[str(claim.number), claim.title, claim.verdict, effect_words(claim.effect)] for claim in results]
    return Table(
        ["", "claim", "verdict", "effect"], rows, "rlll",
        "The verdicts; the sentences behind them, sources, and what would decide the open ones: see Claims.",
        [0.3, 4.4, 1.7, 3.2], small=True,
    )  # fmt: skip
