"""What a reader finds in a log, and the order of its steps.

A log is a list of points: one for each line (or row, or step of an event file) that says something of a step. Where no
step says two different things, the points are sorted by step, however they stand in the file. Where one does, the run
went on from a checkpoint and did steps again: the points are taken in the order they were written, and a point drops
all that was written before of its step and of later ones. What says the same again (every rank of a job writes the
line, some late) is dropped. How many points were dropped and why is kept, to be told.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from octavo.errors import OctavoError

MEASURED = (
    "loss", "tokens", "samples", "aux_loss", "grad_norm", "learning_rate", "step_seconds",
    "tokens_per_second_per_device", "memory_bytes",
)  # fmt: skip
"""What a training line may say. A step time is a mean over the steps that it stands for (`octavo.imports.times`)."""
TRAINED = tuple(name for name in MEASURED if name not in ("tokens", "samples"))
"""What only a line of training says: a validation may say how far training was."""
LARGEST = 2.0**53
"""Steps, tokens and bytes are whole numbers below it."""
DISORDER = 0.4
"""Points that go back to an earlier step, as a share of all, above which a log is not one that was written in order."""


@dataclass(slots=True)
class Point:
    """What one line says of one step. An infinite number is kept as NaN, which is a number that was not finite."""

    step: int
    place: str
    """`file:line`, or the file and the step."""
    values: dict[str, float] = field(default_factory=dict)
    """Some of MEASURED."""
    validation: dict[str, float] = field(default_factory=dict)
    """Validation set -> loss; "" where the program has one set, which has no name."""
    skipped: int = 0
    """Steps since the line before whose update was skipped (a loss scale that overflowed, a NaN)."""
    clock: float | None = None
    """When the line was written, in seconds since any one instant."""

    def __post_init__(self) -> None:
        if not 0 <= self.step < LARGEST:
            raise ValueError(f"{self.step} is no number of steps")
        for name in ("tokens", "samples", "memory_bytes"):
            if name in self.values and not abs(self.values[name]) < LARGEST:
                del self.values[name]
        for name in ("tokens", "samples", "memory_bytes", "tokens_per_second_per_device"):
            if self.values.get(name, 0) < 0:
                raise ValueError(f"{name} {self.values[name]:g} is below zero")
        if (seconds := self.values.get("step_seconds")) is not None and seconds <= 0:
            raise ValueError(f"a step takes {seconds:g} s; a time is above zero")
        if self.values.get("tokens_per_second_per_device") == 0:  # a rate rounded to zero says nothing of the time
            del self.values["tokens_per_second_per_device"]
        for held in (self.values, self.validation):
            for name, value in held.items():
                held[name] = value if math.isfinite(value) else math.nan


@dataclass
class Stated:
    """What a log says of its run as a whole; None where it does not."""

    planned: int | None = None
    """Steps that the run was to make."""
    ended: bool | None = None
    """Whether the run came to its end, for programs that write so."""
    seed: int | None = None
    sequence_length: int | None = None
    batch_size: int | None = None
    """Sequences per step."""
    benchmark: str | None = None
    """MLPerf's name of what was trained."""
    closed: bool = False
    """The benchmark's rules fixed the tokenizer and the data (MLPerf's closed division)."""


@dataclass
class Ordered:
    """Points by step, and what became of the others."""

    points: list[Point]
    repeated: int = 0
    """Lines that said again what was said before."""
    redone: int = 0
    """Lines of steps that were done again."""
    first_redone: str | None = None
    """Where the first of the lines stands that do a step again."""
    sorted: bool = False
    """They did not stand in the order of their steps."""


def in_order(points: Iterable[Point]) -> Ordered:
    """Points by step, one of a step. Raises OctavoError for a log that has neither an order nor one point of a step."""
    found = Ordered([])
    kept: list[Point] = []
    latest: dict[int, Point] = {}
    conflict: Point | None = None
    for point in points:
        before = latest.get(point.step)
        if before is None:
            kept.append(point)
        elif _agree(before, point):
            found.repeated += _merge(before, point)
            continue
        else:
            conflict = conflict or point
            kept.append(point)
        latest[point.step] = point
    back = sum(later.step < earlier.step for earlier, later in pairwise(kept))
    if conflict is None:
        found.sorted = back > 0
        found.points = sorted(kept, key=lambda point: point.step)
        return found
    if back > DISORDER * len(kept):
        raise OctavoError(
            f"the steps are in no order, and step {conflict.step} is there twice with different values",
            where=conflict.place, expected="steps in the order they were done, or each step once",
            fix="sort the rows by step and remove what was done again, or give each attempt a file of its own",
        )  # fmt: skip
    return _as_written(kept, found)


def _as_written(points: list[Point], found: Ordered) -> Ordered:
    """A training point that is not ahead of all others drops those: the run went on from a checkpoint before it."""
    for point in points:
        if not point.values:  # a validation alone does no step again
            insort(found.points, point, key=lambda one: one.step)
            continue
        while found.points and found.points[-1].step >= point.step:
            found.points.pop()
            found.redone += 1
            found.first_redone = found.first_redone or point.place
        found.points.append(point)
    return found


def _agree(one: Point, other: Point) -> bool:
    """Whether two points of a step can both be true: the same loss, or numbers that the other does not have.

    Ranks that write the same line differ in rates and times, so it is losses that decide where there are some.
    """
    shared = one.values.keys() & other.values.keys()
    names = {"loss"} if "loss" in shared else shared
    return all(_same(one.values[name], other.values[name]) for name in names)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _merge(one: Point, other: Point) -> int:
    """Take what the other has more; 1 where it has nothing more. Of two validations of one set the first counts."""
    new = (other.values.keys() - one.values.keys()) | (other.validation.keys() - one.validation.keys())
    one.values = other.values | one.values
    one.validation = other.validation | one.validation
    if other.values.keys() & new:
        one.skipped, one.clock = one.skipped or other.skipped, other.clock or one.clock
    return 0 if new else 1
