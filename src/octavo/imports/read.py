"""The logs of one run -> its steps, in order, and what the logs say of the run as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.imports.formats import READERS, Format, tables
from octavo.imports.formats.recognise import unreadable
from octavo.imports.points import MEASURED, TRAINED, Ordered, Point, Stated, in_order
from octavo.imports.times import check_clock, stands_for

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Log:
    """What the logs of one run hold."""

    steps: pd.DataFrame
    """A row for each step that was written: `step`, those of MEASURED that there are, `validation_loss`, `trained`
    (whether a line of training was written, not a validation alone), `validated` (whether a validation loss was, be it
    NaN), and `stands_for`, the steps that its time is a
    mean of (NaN where it has none)."""
    stated: Stated
    skipped: int
    """Steps whose update was skipped."""
    notes: tuple[str, ...]
    """What was left out, and why."""

    @property
    def finished(self) -> bool:
        """Whether they reach the run's end, as far as they say where that is."""
        if self.stated.ended is not None:
            return self.stated.ended
        return self.stated.planned is None or int(self.steps["step"].iloc[-1]) >= self.stated.planned


def read_log(files: list[Path], kind: Format, columns: Mapping[str, str], validation_set: str | None = None) -> Log:
    """One run's logs, in the order they were written; `columns` renames those of a table.

    Raises OctavoError where a file is missing, damaged, or holds no step, where it holds several validation sets and
    `validation_set` names none of them, and where its times contradict its clock.
    """
    stated = Stated()
    points = list(_points(files, kind, columns, stated))
    if not any("loss" in point.values for point in points):
        raise unreadable(files, kind)
    ordered = in_order(points)
    chosen = _validation_set(ordered.points, validation_set, files)
    frame = _frame(ordered.points, chosen)
    frame["stands_for"] = stands_for(frame)
    check_clock(frame, ", ".join(map(str, files)))
    return Log(
        frame.drop(columns="clock"), stated, sum(point.skipped for point in ordered.points), tuple(_notes(ordered))
    )


def _points(files: list[Path], kind: Format, columns: Mapping[str, str], stated: Stated) -> Iterator[Point]:
    for path in files:
        try:
            if not (path.is_file() or (path.is_dir() and kind == "tensorboard")):
                if path.exists():
                    raise OctavoError("the log is no file", where=path, expected=f"a file of {kind}")
                raise FileNotFoundError
            yield from tables.read(path, columns) if kind == "csv" else READERS[kind](path, stated)
        except FileNotFoundError:
            raise OctavoError(
                "a log is missing", where=path, fix="check the path: it is relative to the file"
            ) from None
        except OSError as error:
            raise OctavoError(
                f"the log cannot be read: {error.strerror}", where=path, expected=f"a file of {kind}"
            ) from error


def _validation_set(points: list[Point], asked: str | None, files: list[Path]) -> str | None:
    """The validation set to read; None where there is none."""
    sets = sorted({name for point in points for name in point.validation})
    if asked is not None and asked not in sets:
        raise OctavoError(
            f"the log has no validation set {asked!r}", where=", ".join(map(str, files)),
            expected=f"one of {', '.join(map(repr, sets))}" if sets else "a log with validation losses",
        )  # fmt: skip
    if asked is None and len(sets) > 1:
        raise OctavoError(
            f"the log has {len(sets)} validation sets: {', '.join(name or '(no name)' for name in sets[:12])}",
            where=", ".join(map(str, files)), expected="one, for losses of different text are not to be mixed",
            fix="say which: validation_set: NAME, in the import file or in the cell",
        )  # fmt: skip
    return asked if asked is not None else next(iter(sets), None)


def _frame(points: list[Point], validation_set: str | None) -> pd.DataFrame:
    """A row a step, with those of MEASURED that occur."""
    import pandas as pd

    present = [name for name in MEASURED if any(name in point.values for point in points)]
    columns = {name: [point.values.get(name) for point in points] for name in present}
    if validation_set is not None:
        columns["validation_loss"] = [point.validation.get(validation_set) for point in points]
    columns["clock"] = [point.clock for point in points]
    return pd.DataFrame({name: pd.Series(values, dtype=float) for name, values in columns.items()}).assign(
        step=[point.step for point in points],
        trained=[not point.values.keys().isdisjoint(TRAINED) for point in points],
        validated=[validation_set in point.validation for point in points],
    )[["step", "trained", "validated", *columns]]


def _notes(ordered: Ordered) -> Iterator[str]:
    if ordered.redone:
        yield (
            f"{_lines(ordered.redone)} dropped: the run went on from a checkpoint and did those steps again "
            f"(first at {ordered.first_redone})"
        )
    if ordered.repeated:
        yield f"{_lines(ordered.repeated)} dropped: they say again what another line said (several ranks, say)"
    if ordered.sorted:
        yield "the lines did not stand in the order of their steps: sorted"


def _lines(count: int) -> str:
    return f"{count:,} line{'s' * (count != 1)}"
