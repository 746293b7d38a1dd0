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
    return (
        f"{show(estimate.value)} ({100 * estimate.confidence:.0f} % interval {show(estimate.low)} to "
        f"{show(estimate.high)}, {seeds})"
    )


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def loss_sentence(
    subject: str, other: str, condition: str, estimate: Estimate | None, note: str | None, losses: str = "validation"
) -> str:
    """`At equal tokens MoE BF16 ends 0.8 % below dense BF16 (...)`, or that the two cannot be told apart."""
    if estimate is None:
        return f"At {condition} {subject} and {other} cannot be compared{f': {note}' if note else ''}."
    where = interval(estimate)
    if decided(estimate):
        direction = "below" if estimate.value < 0 else "above"
        return f"At {condition} the {losses} loss of {subject} ends {direction} that of {other}: {where}."
    return f"At {condition} the {losses} losses of {subject} and {other} cannot be told apart: {where}."


def ratio_sentence(subject: str, other: str, resource: str, one: Comparison) -> str:
    """How much of a resource the subject needs, against the other, for the loss that both reach."""
    if one.resource_ratio is None:
        return f"Whether {subject} needs fewer {resource} than {other} for the same loss is not known{_note(one)}."
    ratio = one.resource_ratio
    where = interval(ratio, lambda value: f"{number(value)} times")
    if decided(ratio, 1.0):
        fewer = "fewer" if ratio.value < 1 else "more"
        return f"For the same loss {subject} needs {fewer} {resource} than {other}: {where}."
    return f"Whether {subject} needs fewer {resource} than {other} for the same loss is not decided: {where}."


def rate_sentence(subject: str, other: str, ratio: Estimate) -> str:
    """Which of two trains faster, by the ratio of their tokens per second and device, or that this is not decided."""
    where = f"the ratio of their rates is {interval(ratio, number)}"
    if decided(ratio, 1.0):
        return f"{subject} trains {'faster' if ratio.value > 1 else 'slower'} than {other}: {where}."
    return f"Whether {subject} trains faster than {other} is not decided: {where}."


def _note(one: Comparison) -> str:
    return f" ({one.note})" if one.note else ""
