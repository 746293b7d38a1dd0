"""Numbers into sentences. Every word that judges (lower, faster, apart) is chosen by the numbers beside it."""

from __future__ import annotations

from octavo.records import Comparison, Estimate
from octavo.report.style import number, percent


def decided(estimate: Estimate, neutral: float = 0.0) -> bool:
    """Whether the interval leaves `neutral` out."""
    return estimate.low is not None and estimate.high is not None and not estimate.low <= neutral <= estimate.high


def interval(estimate: Estimate, show=percent) -> str:
    """`−0.8 % (95 % interval −1.1 to −0.5 %, 3 seeds)`; one seed has no interval and says so."""
    seeds = f"{estimate.n} seed{'s' if estimate.n != 1 else ''}"
    if estimate.low is None or estimate.high is None:
        return f"{show(estimate.value)} ({seeds}: no interval)"
    low, high = show(estimate.low), show(estimate.high)
    for unit in (" %", " times"):  # said once
        low = low.removesuffix(unit)
    return f"{show(estimate.value)} ({100 * estimate.confidence:.0f} % interval {low} to {high}, {seeds})"


PLANNED = "inconclusive: needs a run planned for this length"


def loss_sentence(subject: str, other: str, condition: str, one: Comparison) -> str:
    """`At equal tokens the validation loss of MoE BF16 ends below that of dense BF16: ...`; or that no difference is
    shown, or that the runs were not made to show it."""
    estimate = one.loss_difference
    if estimate is None:
        return f"At {condition} {subject} and {other} cannot be compared{f': {one.note}' if one.note else ''}."
    where = interval(estimate)
    of = "bits per byte" if one.losses == "bits per byte" else f"{one.losses} loss"
    if decided(estimate) and estimate.value * one.loss_bias > 0:
        return f"At {condition} the comparison of {subject} and {other} is {PLANNED} ({one.early}): {where} as read."
    early = "" if one.ends else f" (read before the end{f': {one.early}' if one.early else ''})"
    early = " (both planned for that length)" if one.planned_ends and one.ends else early
    if decided(estimate):
        direction = "below" if estimate.value < 0 else "above"
        verb = "ends" if one.ends else "lies"
        return f"At {condition} the {of} of {subject} {verb} {direction} that of {other}{early}: {where}."
    return f"At {condition} no difference between the {of} of {subject} and of {other} is shown{early}: {where}."


def ratio_sentence(subject: str, other: str, resource: str, one: Comparison) -> str:
    """How much of a resource the subject needs, against the other, for the loss that both reach."""
    if one.resource_ratio is None:
        return f"Whether {subject} needs fewer {resource} than {other} for the same loss is not known{_note(one)}."
    ratio = one.resource_ratio
    where = interval(ratio, lambda value: f"{number(value)} times")
    if decided(ratio, 1.0) and (ratio.value - 1) * one.ratio_bias > 0:
        early = f" ({one.early})" if one.early else ""
        return f"Whether {subject} needs fewer {resource} than {other} is {PLANNED}{early}: {where} as read."
    if decided(ratio, 1.0):
        fewer = "fewer" if ratio.value < 1 else "more"
        planned = ", both planned for the length that it takes" if one.planned_ends else ""
        return f"For the same loss {subject} needs {fewer} {resource} than {other}{planned}: {where}."
    return f"Whether {subject} needs fewer {resource} than {other} for the same loss is not decided: {where}."


def rate_sentence(subject: str, other: str, ratio: Estimate) -> str:
    """Which of two trains faster, by the ratio of their tokens per second and device, or that this is not decided."""
    where = f"the ratio of their rates is {interval(ratio, number)}"
    if decided(ratio, 1.0):
        return f"{subject} trains {'faster' if ratio.value > 1 else 'slower'} than {other}: {where}."
    return f"Whether {subject} trains faster than {other} is not decided: {where}."


def _note(one: Comparison) -> str:
    return f" ({one.note})" if one.note else ""
