"""Words and tables that several sections make alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from octavo.accounting.ledger import provisional
from octavo.accounting.money import hour_price, price_range
from octavo.accounting.stragglers import slowness, stragglers
from octavo.evidence.metrics.base import decimals_like
from octavo.evidence.names import ends, listed
from octavo.layout import horizon_cell, split_horizon
from octavo.records import Comparison, Estimate, RankTime
from octavo.report.document import Table, Text
from octavo.report.figures import axis_name, families, pair_name
from octavo.report.inputs import Inputs
from octavo.report.sentences import decided, loss_sentence, ratio_sentence
from octavo.report.style import MISSING, money, number, percent

NODES_SHOWN = 6
"""Sets of nodes, or of slow nodes, that a note names."""


def loss_words(inputs: Inputs, one: Comparison) -> str:
    """How the loss of a pair compares at equal tokens, or whatever else is equal, as a sentence."""
    names = inputs.label(one.cell).replace(" (emulated)", ""), inputs.label(one.against).replace(" (emulated)", "")
    return loss_sentence(*names, axis_name(inputs, one), one)


def ratio_words(inputs: Inputs, one: Comparison) -> str:
    """How much more or less of something a pair needs for the same loss, as a sentence."""
    resources = {"tokens": "tokens", "model_flops": "model FLOPs", "device_hours": inputs.hours, "cost": "dollars"}
    return ratio_sentence(inputs.label(one.cell), inputs.label(one.against), resources[one.axis], one)


def losses_of_many(inputs: Inputs, compared: Sequence[Comparison]) -> Iterator[str]:
    """How the losses of so many pairs compare: by what differs and what is equal, how many show which, and the range.

    Each pair's numbers stand under Comparisons at equal resources.
    """
    for family, own in families(inputs, compared).items():
        for axis in dict.fromkeys(one.axis for one in own):
            found = {pair_name(inputs, one): one for one in own if one.axis == axis}
            known = {name: one.loss_difference for name, one in found.items() if one.loss_difference}
            shown = {
                name: one for name, one in known.items() if decided(one) and one.value * found[name].loss_bias <= 0
            }
            lower = sum(one.value < 0 for one in shown.values())
            counts = (
                (lower, "with a lower loss"),
                (len(shown) - lower, "with a higher one"),
                (len(known) - len(shown), "without a difference that can be relied on"),
                (len(found) - len(known), "that cannot be compared"),
            )
            told = listed([f"{count} {what}" for count, what in counts if count])
            values = {name: one.value for name, one in known.items()}
            span = f": {range_of(values, percent)}" if values else ""
            equal = axis_name(inputs, next(iter(found.values())))
            yield f"{family} at {equal.removesuffix(' (emulated)')}: of {len(found)} pairs {told}{span}."


def range_of(values: Mapping[str, float], show: Callable[[float], str]) -> str:
    """`−1.2 % (MoE against dense, BF16) to +0.3 % (...)`: the least and the most, with their names."""
    return " to ".join(dict.fromkeys(f"{show(values[name])} ({name})" for name in ends(values)))


def comparison_key(one: Comparison, part: str) -> str:
    """The key of a comparison's number."""
    return f"comparisons.{one.cell}/{one.against}.{one.axis}.{part}"


def mean_words(found: Estimate | None) -> str:
    """A mean over seeds, ± half of its 95 % interval."""
    if found is None:
        return MISSING
    if found.high is None:
        return f"{found.value:.3f}"
    half = found.high - found.value
    return f"{found.value:.3f} ± {f'{half:.3f}' if half >= 0.0005 else number(half, 1)}"


def effect_words(effect: Estimate | None) -> str:
    """A value in its unit and its interval, with digits enough to see its width: `+0.02 % [+0.01, +0.04]`."""
    if effect is None:
        return MISSING
    known = effect.low is not None and effect.high is not None
    decimals = decimals_like(effect) if known else 2

    def show(value: float) -> str:
        if effect.unit == "%":
            return percent(value, decimals).removesuffix(" %")
        if effect.unit == "ratio" and known:
            return number(value, max(3, (1 if value < 1 else 1 + math.floor(math.log10(value))) + decimals))
        if effect.unit == "ratio" or abs(value) >= 100:
            return number(value)
        return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")

    value = f"× {show(effect.value)}" if effect.unit == "ratio" else f"{show(effect.value)} {effect.unit}"
    return value if effect.low is None or effect.high is None else f"{value} [{show(effect.low)}, {show(effect.high)}]"


def provisional_ledger(inputs: Inputs) -> list[Text]:
    """A note where hours and money are not final; nothing where they are."""
    reasons = provisional(inputs.attempts)
    if not reasons:
        return []
    again = f"snakemake {inputs.scope.report_pdf}"
    said = f"The ledger is provisional: {'; '.join(reasons)}. {again} asks again and makes the report anew."
    return [Text(said, "note")]


def cost_words(inputs: Inputs, cost: float) -> str:
    """A cost at the middle of its price, and its range where the price has one: `$2.80 ($1.86 to $4.67)`."""
    said = money(cost, inputs.currency)
    if inputs.experiment is None or inputs.currency is None:
        return said
    cluster, device = inputs.experiment.cluster, inputs.experiment.device
    middle, (low, high) = hour_price(cluster, device).total, price_range(cluster, device)
    if not middle or low == high or not math.isfinite(cost):
        return said
    least, most = (money(cost * end / middle, inputs.currency) for end in (low, high))
    if most.endswith(" cents"):
        least = least.removesuffix(" cents")
    return f"{said} ({least} to {most})"


def nodes_apart(inputs: Inputs) -> list[Text]:
    """A note where Slurm gave the final runs of cells that are compared different nodes; nothing elsewhere."""
    final = inputs.attempts[(inputs.attempts["state"] == "completed") & ~inputs.attempts["superseded"]]
    on = final[final["job"].notna()].groupby("cell")["nodes"].agg(lambda nodes: " and ".join(sorted(set(nodes))))
    if on.nunique() < 2:
        return []
    places = [
        f"{listed([inputs.label(cell) for cell in sorted(cells.index)])} on {nodes}" for nodes, cells in on.groupby(on)
    ]
    shown = "; ".join(places[:NODES_SHOWN]) + (
        f"; and {len(places) - NODES_SHOWN} more" if places[NODES_SHOWN:] else ""
    )
    return [
        Text(
            f"The cells were trained on different nodes: {shown}. How fast those nodes are is part of every comparison "
            "of speed, hours and money between them.",
            "note",
        )
    ]


def ranks_apart(inputs: Inputs) -> list[Text]:
    """How far apart the ranks of final runs are in time, and the nodes that slow a run down; nothing of one rank."""
    final = inputs.attempts[
        (inputs.attempts["state"] == "completed") & ~inputs.attempts["superseded"] & inputs.attempts["ranks"].notna()
    ]
    runs = {
        f"{inputs.label(cell)}, seed {seed}": [RankTime.model_validate(one) for one in ranks]
        for cell, seed, ranks in zip(final["cell"], final["seed"], final["ranks"], strict=True)
    }
    if not runs:
        return []
    apart = [share for ranks in runs.values() for share in slowness(ranks).values()]
    of = "The final run" if len(runs) == 1 else f"The {len(runs)} final runs"
    said = (
        f"{of} of several ranks: what a rank works at a step, before all wait for the slowest in the reduction of "
        f"gradients, lies between {1 + min(apart):.2f} and {1 + max(apart):.2f} times the median of the ranks."
    )
    slow = [f"{run}: {one}" for run, ranks in runs.items() for one in stragglers(ranks)]
    if not slow:
        return [Text(said)]
    more = f"; and {len(slow) - NODES_SHOWN} more" if slow[NODES_SHOWN:] else ""
    return [Text(f"{said} Runs that were slowed down: {'; '.join(slow[:NODES_SHOWN])}{more}.", "note")]


def at_length(names: Iterable[str]) -> str:
    """What the `@` in names of runs means; nothing where no name has one."""
    named = (split_horizon(name.partition("/")[0]) for name in names)
    first = next((one for one in named if one[1] is not None), None)
    if first is None:
        return ""
    trunk, steps = first
    return f" {horizon_cell(trunk, steps or 0)}: runs of {trunk} planned for {steps} steps, a shorter length."


def capitalised(text: str) -> str:
    """With a capital first letter."""
    return text[0].upper() + text[1:]


def filled(table: Table) -> Table:
    """Without the columns in which no row says anything."""
    kept = [place for place in range(len(table.header)) if any(row[place] not in ("", MISSING) for row in table.rows)]
    return replace(
        table,
        header=[table.header[place] for place in kept],
        rows=[[row[place] for place in kept] for row in table.rows],
        align="".join(table.align[place] for place in kept),
        widths=table.widths and [table.widths[place] for place in kept],
        keys=table.keys and [[row[place] for place in kept] for row in table.keys],
    )
