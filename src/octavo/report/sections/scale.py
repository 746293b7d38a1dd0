"""What happens at scale: a ladder's losses against compute, the mixture's leverage, and what was foretold.

There where the experiment has a ladder. Every sentence is made from the numbers of `leverage.json` and
`prediction.json`: which of the two is cheaper is said only where an interval leaves 1 out, and nothing is said beyond
the compute that back-tests support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.evidence.names import ARCHITECTURES, PRECISIONS, listed
from octavo.report.charts import Chart
from octavo.report.document import Block, Picture, ReportSection, Table, Text
from octavo.report.figures import leverage_axes
from octavo.report.inputs import Inputs
from octavo.report.sections.phrases import effect_words
from octavo.report.style import MISSING, count, number
from octavo.scaling.fit import LIMIT
from octavo.scaling.prediction import against_measured, prediction_problems

TITLE = "What happens at scale"
TENTH = (
    "The article's tenth is a comparison of two companies' spending: other data, other engineers, other years, and the "
    "final run alone. Here the same text, the same seeds and the same code train both."
)


def scale(inputs: Inputs) -> ReportSection:
    """The page, beside the figure on page one; without blocks where there is no ladder."""
    found = inputs.leverage
    if found is None:
        return ReportSection(TITLE, [])
    ratios = found["leverage"]
    blocks: list[Block] = [
        Text(f"{takeaway(ratios, inputs.hours)} {growth(ratios)}".strip(), "lead"),
        Text(" ".join(farther(found["carried_on"]))),
    ]
    blocks += foretold(inputs)
    blocks += published(found["published"])
    blocks += fp8_over_scale(inputs)
    blocks.append(Text(cannot_know(inputs), "note"))
    return ReportSection(TITLE, blocks)


def picture(charts: dict[str, Chart]) -> list[Block]:
    """A ladder's main figure, on page one."""
    if "scale" not in charts:
        return []
    return [
        Picture(
            "scale",
            "Left: validation loss against the model FLOPs of a run, both on logarithmic scales. Points: planned "
            "ends, with the range of the seeds; lines and bands: the fit and its 95 % interval, up to what is "
            "determined. Open: what was foretold of the largest rung before it began, with its interval. Right: "
            "how many times as much the dense model needs for the mixture's loss (above 1: the mixture needs "
            "less).",
            "Line charts of loss against compute for both architectures, and of leverage against compute.",
        )
    ]


def lead(ratios: Sequence[Mapping[str, Any]]) -> str | None:
    """Page one's words: the dense model's need in a mixture's FLOPs, and whether it grows; None if not decided."""
    along = _in_flops(ratios)
    if not along or along[-1]["low"] <= 1 <= along[-1]["high"]:
        return None
    needs = f"the dense model needs {number(along[-1]['value'])} times a mixture's model FLOPs for the same loss"
    change = {1: "more the larger both are", -1: "less the larger both are", 0: ""}[_change(along)]
    return ", ".join(filter(None, (needs, change)))


def takeaway(ratios: Sequence[Mapping[str, Any]], hours: str) -> str:
    """What the dense model needs for the lowest loss that both reached, and what that decides about money.

    `ratios` are leverages: axis, loss, value, low, high, interval; those of one loss together.
    """
    ratios = _known(ratios)
    if not ratios:
        return "The two architectures reached no loss in common, so nothing is said of what one needs for the other's."
    loss = min(one["loss"] for one in ratios)
    here = [one for axis in leverage_axes(hours) for one in ratios if one["axis"] == axis and one["loss"] == loss]
    needs = listed([f"{_times(one)} the {leverage_axes(hours)[one['axis']]}" for one in here])
    return (
        f"For a loss of {loss:.3f} nats per token, the lowest that both reached, the dense model needs {needs} of the "
        f"mixture: {_judged(here[-1], hours)}."
    )


def _known(ratios: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those with both ends of their interval."""
    return [one for one in ratios if one["low"] is not None and one["high"] is not None]


def _times(one: Mapping[str, Any]) -> str:
    return (
        f"{number(one['value'])} times ({100 * one['interval']:.0f} % interval {number(one['low'])} to "
        f"{number(one['high'])})"
    )


def _judged(one: Mapping[str, Any], hours: str) -> str:
    of = leverage_axes(hours)[one["axis"]]
    if one["low"] > 1:
        return f"the mixture is cheaper in {of}"
    if one["high"] < 1:
        return f"the mixture is dearer in {of}"
    return f"whether the mixture is cheaper in {of} is not decided"


def _in_flops(ratios: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The leverages in FLOPs, from the highest loss to the lowest."""
    return sorted((one for one in _known(ratios) if one["axis"] == "flops"), key=lambda one: -one["loss"])


def _change(along: Sequence[Mapping[str, Any]]) -> int:
    """1 where the last interval lies above the first, -1 where below, 0 where they overlap or there is one alone."""
    first, last = along[0], along[-1]
    return int(last["low"] > first["high"]) - int(last["high"] < first["low"])


def growth(ratios: Sequence[Mapping[str, Any]]) -> str:
    """Whether the leverage in FLOPs changes along the ladder; nothing where it was read at one loss alone."""
    along = _in_flops(ratios)
    if len(along) < 2:
        return ""
    first, last = along[0], along[-1]
    from_to = (
        f"From a loss of {first['loss']:.3f} to one of {last['loss']:.3f} the leverage in FLOPs goes from "
        f"{number(first['value'])} to {number(last['value'])}"
    )
    undecided = "; their intervals overlap, so whether it changes with scale is not decided."
    return from_to + {1: ": it grows with scale.", -1: ": it falls with scale.", 0: undecided}[_change(along)]


def farther(carried: Sequence[Mapping[str, Any]]) -> list[str]:
    """Leverage carried on beyond the ladder, and where that ends."""
    said = [
        f"Carried on to a mixture of {one['flops']:.2g} FLOPs the leverage in FLOPs is {_times(one)}."
        if one["determined"]
        else f"At a mixture of {one['flops']:.2g} FLOPs the leverage is not determined."
        for one in carried
    ]
    return [
        *said,
        f"Beyond {LIMIT:g} times the compute of the largest rung, as far as back-tests reach, nothing is said.",
    ]


def published(joined: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The same loss for x to y of the money at published scale, beside the article's tenth."""
    blocks: list[Block] = []
    for one in joined:
        models = f"{one['moe']} and {one['dense']} on {one['cluster']} ({PRECISIONS[one['precision']]})"
        time = (
            f"By the forecast a FLOP of the mixture takes {number(one['time_ratio'])} times the device-hours of one of "
            f"the dense model there ({100 * one['time_interval']:.0f} % interval {number(one['time_low'])} to "
            f"{number(one['time_high'])})."
        )
        if one["determined"]:
            said = (
                f"At the scale of {models} the mixture reaches the same loss for {number(one['low'])} to "
                f"{number(one['high'])} of the money (median {number(one['value'])}), the uncertainty of the ladder "
                "and that of the forecast together."
            )
        else:
            said = (
                f"At the scale of {models}, {one['times_largest']:.2g} times the compute of the largest rung, "
                "what the mixture needs for the same loss is not determined."
            )
        blocks.append(Text(f"{said} {time}"))
    return [*blocks, Text(TENTH)] if blocks else []


def foretold(inputs: Inputs) -> list[Block]:
    """What was foretold of the largest rung beside what was measured; or that nothing was, or not before it began."""
    sealed = inputs.prediction
    if sealed is None:
        return [Text("Nothing was foretold of the largest rung before it began: its runs test no prediction.", "note")]
    attempts = inputs.attempts
    begun = attempts.groupby(["cell", "seed"])["start"].min()
    started = {f"{cell}/seed-{seed}": start.to_pydatetime() for (cell, seed), start in begun.items()}
    about = {run for one in sealed["expected"] for run in one["runs"]}
    names = inputs.runs["cell"] + "/seed-" + inputs.runs["seed"].astype(str)
    data = inputs.runs.loc[names.isin(about), "data_manifest_sha256"].dropna().unique()
    if problems := prediction_problems(sealed, started, data[0] if len(data) == 1 else None):
        return [Text(f"What prediction.json says of the largest rung is no prediction: {problems[0]}.", "note")]
    found = {one["architecture"]: one for one in against_measured(sealed, inputs.ends)}
    rows = []
    for one in sealed["expected"]:
        said, measured = one["loss"], found.get(one["architecture"])
        rows.append(
            [ARCHITECTURES[one["architecture"]], f"{one['flops']:.3g}",
             "not determined" if said is None else f"{said['value']:.3f}",
             MISSING if said is None else f"{_end(said['low'])} to {_end(said['high'])}",
             MISSING if measured is None else f"{measured['measured']:.3f}",
             MISSING if measured is None or measured["inside"] is None else "yes" if measured["inside"] else "no"]
        )  # fmt: skip
    header = ["", "FLOPs", "foretold loss", f"{100 * sealed['interval']:.0f} % interval", "measured", "inside"]
    caption = f"The largest rung: foretold from the others, sealed at {sealed['sealed']} before it began, and measured."
    return [Table(header, rows, "lrrrrl", caption)]


def _end(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3f}"


def fp8_over_scale(inputs: Inputs) -> list[Block]:
    """FP8's loss minus BF16's, by rung: a table of the pairs that were trained in both."""
    if inputs.experiment is None:
        return []
    rows: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    compared = {(one.cell, one.against): one for one in inputs.compared("precision") if one.axis == "tokens"}
    for rung in inputs.experiment.rungs:
        for (cell, against), one in compared.items():
            architecture = cell.rpartition("-")[0]
            if architecture in map(rung.role, rung.models):
                label = f"{inputs.label(cell)} against {inputs.label(against)}"
                rows[label] = [count(rung.active["dense"]), label, effect_words(one.loss_difference)]
                keys[label] = ["", "", f"comparisons.{cell}/{against}.tokens.loss_difference"]
    if len({row[0] for row in rows.values()}) < 2:
        return []
    caption = (
        "FP8 over scale: how far its final loss is from BF16's at equal tokens, paired by seed, with the 95 % interval."
    )
    header = ["active parameters", "pair", "loss difference"]
    return [Table(header, list(rows.values()), "rlr", caption, [1.2, 3, 2], small=True, keys=list(keys.values()))]


def cannot_know(inputs: Inputs) -> str:
    """What the fit cannot know, as the experiment was set up."""
    experiment = inputs.experiment
    if experiment is None or experiment.file.ladder is None:
        return ""
    ladder, training = experiment.file.ladder, experiment.file.training
    alone = (
        ""
        if training.schedule.horizons
        else " Size and tokens grow together, so their parts in the loss cannot be told apart."
    )
    return (
        "What the fit cannot know: the loss that no compute removes, which decides every extrapolation and which a "
        "ladder hardly tells (the intervals take it as open); other policies than "
        f"{ladder.tokens_per_parameter:g} tokens per active parameter; other families than "
        f"{ladder.family.experts.count} experts of which {ladder.family.experts.top_k} serve a token; other text; and "
        f"how fast either trains on other devices.{alone} Learning rates: {ladder.learning_rate.source.strip()}."
    )
