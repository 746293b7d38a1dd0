"""Training logs of other programs -> losses, tokens and times by step. Nothing in a file is executed.

Formats, as their sources write them:

- `megatron_log`: console lines of Megatron-LM and Megatron-Bridge (`training_log` and `evaluate_and_print_results` of
  megatron/training/training.py): `iteration 10/ 100 | consumed samples: 2560 | elapsed time per iteration (ms): 812.5 |
  ... | lm loss: 9.1E+00 |` and `validation loss at iteration 100 ... | lm loss value: 8.7E+00 | ...`.
- `tensorboard`: event files of the same programs (tags `lm loss`, `lm loss validation`, `iteration-time`, ...) and of
  torchtitan (torchtitan/components/metrics.py: `loss_metrics/global_avg_loss`, `ntokens_seen`, ...).
- `megatron_golden`: the golden values of Megatron-LM's functional tests, `{tag: {"values": {step: value}}}`.
- `torchtitan_log`: its console lines, `step: 10  loss: 7.1  grad_norm: 1.2  memory: ...  tps: 7,512 ...`.
- `csv`: a table with a header.

A Megatron-LM line says of how many steps its run is: a log that stops before is of a run that did not finish. What was
cut off is left out: each of Megatron-LM's fields ends with a bar, each of torchtitan's lines with a newline.

Of a step that was written twice, because a run went on from a checkpoint, the last counts, and what came after it the
first time does not. Of several validations at one step the first counts: Megatron-LM evaluates the test set under the
same tag when it ends.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from octavo.errors import OctavoError

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["megatron_log", "tensorboard", "megatron_golden", "torchtitan_log", "csv"]

COLUMNS = (
    "step", "tokens", "samples", "loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds",
    "tokens_per_second_per_device", "memory_bytes", "validation_loss",
)  # fmt: skip
"""What is read, where a log has it. A step time is the mean over the steps since the line before."""

MEGATRON_TAGS = {
    "lm loss": "loss",
    "lm loss validation": "validation_loss",
    "load_balancing_loss": "aux_loss",
    "grad-norm": "grad_norm",
    "learning-rate": "learning_rate",
    "iteration-time": "step_seconds",
    "mem-max-allocated-bytes": "memory_bytes",
}
TORCHTITAN_TAGS = {
    "loss_metrics/global_avg_loss": "loss",
    "validation_metrics/loss": "validation_loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
    "ntokens_seen": "tokens",
    "time_metrics/end_to_end(s)": "step_seconds",
}
MEGATRON_FIELDS = {
    "consumed samples": "samples",
    "lm loss": "loss",
    "load_balancing_loss": "aux_loss",
    "grad norm": "grad_norm",
    "learning rate": "learning_rate",
}
TORCHTITAN_FIELDS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "tps": "tokens_per_second_per_device",
}

_NUMBER = r"[-+]?(?:[\d,]+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_ITERATION = re.compile(r"\biteration\s+(\d+)\s*/\s*(\d+)\s*\|(.*)\|")
_VALIDATION = re.compile(
    rf"validation loss at iteration (\d+)\b(?! on test set)[^|]*\|.*?\blm loss value:\s*({_NUMBER})\s*\|", re.I
)
_ELAPSED = "elapsed time per iteration (ms)"
_TITAN = re.compile(r"(validate )?step:\s*(\d+)\s+(.*)")
_TITAN_FIELD = re.compile(rf"(\w+):\s*({_NUMBER})", re.I)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

PLANNED = "steps of the run"
"""Beside COLUMNS, what a log says of its run's length."""

Rows = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Log:
    """What the logs of one run hold."""

    steps: pd.DataFrame
    """A row per step that was written, with those of COLUMNS that there are."""
    planned: int | None
    """Steps that the run was to make; None where its logs do not say."""

    @property
    def finished(self) -> bool:
        """Whether they reach the run's last step, as far as they say which that is."""
        return self.planned is None or int(self.steps["step"].iloc[-1]) >= self.planned


class _Steps:
    """Values by step, in the order in which they were written."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.planned: int | None = None
        self._latest = 0

    def add(self, step: int, column: str, value: float) -> None:
        """Take one value."""
        if column == PLANNED:
            self.planned = int(value)  # the last word: a run may be made longer when it goes on
            return
        value = value if math.isfinite(value) else math.nan
        if column == "validation_loss":
            self.rows.setdefault(step, {}).setdefault(column, value)
            return
        if step < self._latest or column in self.rows.get(step, {}):  # gone on from a checkpoint: done again
            self.rows = {one: row for one, row in self.rows.items() if one < step}
        self._latest = step
        self.rows.setdefault(step, {})[column] = value


def read_log(files: list[Path], kind: Format, columns: Mapping[str, str]) -> Log:
    """One run's logs; `columns` renames those of a CSV.

    Raises OctavoError where a file is missing, damaged, or holds no step.
    """
    import pandas as pd

    steps = _Steps()
    for path in files:
        try:
            for step, column, value in READERS[kind](path, columns):
                steps.add(step, column, value)
        except FileNotFoundError:
            raise OctavoError(
                "a log is missing", where=path, fix="check the path: it is relative to the file"
            ) from None
        except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
            raise OctavoError(f"the log cannot be read: {error}", where=path, expected=f"a file of {kind}") from error
    if not any("loss" in row for row in steps.rows.values()):
        raise OctavoError(
            "no training loss was found", where=", ".join(map(str, files)), expected=f"what {kind} logs look like",
            fix="choose the format that wrote them: megatron_log, tensorboard, megatron_golden, torchtitan_log or csv",
        )  # fmt: skip
    frame = pd.DataFrame.from_dict(steps.rows, orient="index").sort_index().rename_axis("step").reset_index()
    return Log(frame[[name for name in COLUMNS if name in frame]], steps.planned)


Values = Iterator[tuple[int, str, float]]


def _lines(path: Path, read: Callable[[str], Values]) -> Values:
    """What `read` finds in each line of a console log. Raises OctavoError that names the line where it finds none."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield from list(read(line))
            except ValueError as error:
                raise _no_number(path, number, error) from None


def _no_number(path: Path, line: int, error: Exception) -> OctavoError:
    return OctavoError(
        f"line {line} is damaged: {error}", where=f"{path}:{line}", expected="numbers", fix="mend the line or remove it"
    )


def _megatron_log(path: Path, columns: Mapping[str, str]) -> Values:
    del columns
    return _lines(path, _megatron_line)


def _megatron_line(line: str) -> Values:
    if found := _VALIDATION.search(line):
        yield int(found[1]), "validation_loss", _number(found[2])
    elif found := _ITERATION.search(line):
        step = int(found[1])
        yield step, PLANNED, int(found[2])
        for field in found[3].split("|"):
            name, _, value = field.strip().partition(":")
            if name == _ELAPSED:
                yield step, "step_seconds", _number(value.split("/")[0]) / 1000
            elif name in MEGATRON_FIELDS and value.strip():
                yield step, MEGATRON_FIELDS[name], _number(value)


def _torchtitan_log(path: Path, columns: Mapping[str, str]) -> Values:
    del columns
    return _lines(path, _torchtitan_line)


def _torchtitan_line(line: str) -> Values:
    found = _TITAN.search(_COLOUR.sub("", line)) if line.endswith("\n") else None
    if found is None:
        return
    fields = {name: _number(value) for name, value in _TITAN_FIELD.findall(found[3])}
    if found[1]:
        if "loss" in fields:
            yield int(found[2]), "validation_loss", fields["loss"]
        return
    for name, column in TORCHTITAN_FIELDS.items():
        if name in fields:
            yield int(found[2]), column, fields[name]


def _golden(path: Path, columns: Mapping[str, str]) -> Values:
    del columns
    from octavo.files import read_json

    value = read_json(path, made_by="Megatron-LM's functional tests")
    found: list[tuple[int, str, float]] = []
    try:
        for tag, column in MEGATRON_TAGS.items():
            for step, number in value.get(tag, {}).get("values", {}).items():
                if number != "nan":  # golden values write so what was not logged
                    found.append((int(step), column, float(number)))
    except (AttributeError, TypeError, ValueError) as error:
        raise OctavoError(
            f"the file is not a list of golden values: {error}", where=path, expected='{tag: {"values": {step: value}}}'
        ) from None
    yield from sorted(found)


def _tensorboard(path: Path, columns: Mapping[str, str]) -> Values:
    del columns
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise OctavoError(
            "reading TensorBoard's event files needs the package tensorboard",
            where=path,
            fix="pip install 'octavo[import]'",
        ) from None
    tags = {**MEGATRON_TAGS, **TORCHTITAN_TAGS}
    files = sorted(path.rglob("events.out.tfevents.*")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(path)
    for file in files:
        events = list(LegacyEventFileLoader(str(file)).Load())  # it stops at a damaged record, and says nothing
        if len(events) != _records(file):
            raise OctavoError(
                f"the event file is damaged after record {len(events)}",
                where=file,
                expected="an events.out.tfevents file",
            )
        for event in events:
            for value in event.summary.value:
                if value.tag in tags:
                    yield int(event.step), tags[value.tag], _scalar(value)


def _records(path: Path) -> int:
    """Whole records of a TFRecord file (length, its checksum, data, their checksum); a last one cut short is none."""
    content, at, count = path.read_bytes(), 0, 0
    while at + 8 <= len(content):
        at += 8 + 4 + int.from_bytes(content[at : at + 8], "little") + 4
        count += at <= len(content)
    return count


def _scalar(value: Any) -> float:
    """A summary's scalar, of the old kind or as a tensor."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(value.tensor))


def _csv(path: Path, columns: Mapping[str, str]) -> Values:
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise OctavoError(f"there is no column {unknown[0]!r} to import", expected=f"of {', '.join(COLUMNS)}")
    with path.open(encoding="utf-8-sig", newline="") as file:  # Excel begins its CSV with a byte order mark
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        named = {ours: columns.get(ours, ours) for ours in COLUMNS}
        for ours, theirs in named.items():
            if theirs not in header and (ours in columns or ours == "step"):
                raise OctavoError(f"the table has no column {theirs!r}", where=path, expected=f"of {', '.join(header)}")
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"it has not as many fields as the header, {len(header)}")
                step = _number(row[named["step"]])
                if not step.is_integer():
                    raise ValueError(f"step {row[named['step']]!r} is no whole number")
                for ours, theirs in named.items():
                    if ours != "step" and row.get(theirs):
                        yield int(step), ours, _number(row[theirs])
        except (ValueError, csv.Error) as error:
            raise _no_number(path, reader.line_num, error) from None


def _number(text: str) -> float:
    return float(text.strip().replace(",", ""))


READERS: dict[Format, Callable[[Path, Mapping[str, str]], Values]] = {
    "megatron_log": _megatron_log,
    "tensorboard": _tensorboard,
    "megatron_golden": _golden,
    "torchtitan_log": _torchtitan_log,
    "csv": _csv,
}
