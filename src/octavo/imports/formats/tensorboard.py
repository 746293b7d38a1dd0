"""`tensorboard`: event files of Megatron-LM, Megatron-Bridge and torchtitan, or folders of them.

Tags: Megatron-LM's megatron/training/training.py (`lm loss`, `lm loss validation`, with `-<set>` behind it where there
are several validation sets, `iteration-time`, ...) and torchtitan's components/metrics.py and trainer.py
(`loss_metrics/global_avg_loss`, `n_tokens_seen`, `lr/<optimizer>`, ...; `ntokens_seen` and `lr` until 2025).

Megatron's `iteration-time` is a mean over `--log-interval` steps. torchtitan's `time_metrics/end_to_end(s)` is the time
since the line before over `log_freq`, also at step 1, where that line stands for one step; here it is put right.

The time of day in an event is when it was written to the file, which a file that was converted or sampled anew does not
have from the training: it is not compared with the step times.

An event file is a row of records (TFRecord): length, its checksum, an Event of protobuf, its checksum. A last record
that was cut off is left out; any other damage is an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError
from octavo.imports.formats.golden import TAGS as MEGATRON_TAGS
from octavo.imports.points import Point, Stated

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

TORCHTITAN_TAGS = {
    "loss_metrics/global_avg_loss": "loss",
    "validation_metrics/loss": "validation_loss",
    "grad_norm": "grad_norm",
    "n_tokens_seen": "tokens",
    "ntokens_seen": "tokens",
    "throughput(tps)": "tokens_per_second_per_device",
}
_TITAN_TIME = "time_metrics/end_to_end(s)"
_TAGS = {**MEGATRON_TAGS, **TORCHTITAN_TAGS, _TITAN_TIME: _TITAN_TIME}
_LONGEST = 1 << 26
"""Bytes of a record: scalars take a hundred; images and graphs in between are passed over."""


def read(path: Path, stated: Stated) -> Iterator[Point]:
    """The points of an event file, or of all in a folder, in the order of their names."""
    del stated
    files = sorted(path.rglob("events.out.tfevents.*")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(path)
    for file in files:
        yield from _titan_times(list(_points(file)))


def _points(file: Path) -> Iterator[Point]:
    """A point per step and turn: neighbouring events of one step."""
    rate: str | None = None  # the first optimizer's tag; those of others are passed over
    step, values, validation = -1, {}, {}
    for event in _events(file):
        for value in event.summary.value:
            column, name = _column(value.tag)
            if column is None or (column == "learning_rate" and name != (rate := rate or name)):
                continue
            if event.step != step or column in values or (column == "validation_loss" and name in validation):
                if values or validation:
                    yield _point(file, step, values, validation)
                step, values, validation = int(event.step), {}, {}
            number = _scalar(value, file, step)
            if column == "validation_loss":
                validation[name] = number
            else:
                values[column] = number
    if values or validation:
        yield _point(file, step, values, validation)


def _column(tag: str) -> tuple[str | None, str]:
    """The column that a tag is, and the validation set or optimizer that it names."""
    if tag in _TAGS:
        return _TAGS[tag], ""
    if tag.startswith("lr/") or tag == "lr":
        return "learning_rate", tag
    if tag.startswith("lm loss validation") and not tag.endswith((" vs samples", " ppl")):
        return "validation_loss", tag.removeprefix("lm loss validation").lstrip("- ")
    return None, ""


def _point(file: Path, step: int, values: dict[str, float], validation: dict[str, float]) -> Point:
    try:
        return Point(step, f"{file} step {step}", values, validation)
    except ValueError as error:
        raise OctavoError(f"an event holds what cannot be: {error}", where=f"{file} step {step}") from None


def _titan_times(points: list[Point]) -> list[Point]:
    """torchtitan's time over log_freq -> the mean time of the steps since the line before."""
    timed = [point for point in points if _TITAN_TIME in point.values]
    interval = math.gcd(*(point.step for point in timed if point.step > 1)) or 1
    before = 0
    for point in timed:
        seconds = point.values.pop(_TITAN_TIME)
        since = point.step - before if 0 < point.step - before <= interval else interval
        if not seconds > 0:
            raise OctavoError(f"a step takes {seconds:g} s", where=point.place, expected="a time above zero")
        point.values["step_seconds"] = seconds * interval / since
        before = point.step
    return points


def _events(file: Path) -> Iterator[Event]:
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    except ImportError:
        raise OctavoError(
            "reading TensorBoard's event files needs the package tensorboard",
            where=file,
            fix="pip install 'octavo[import]'",
        ) from None
    size = file.stat().st_size
    with file.open("rb") as content:
        number = 0
        while len(head := content.read(12)) == 12:
            length = int.from_bytes(head[:8], "little")
            if int.from_bytes(head[8:], "little") != masked_crc32c(head[:8]):
                raise _damaged(file, number, "the checksum of its length does not fit")
            if content.tell() + length + 4 > size:
                return  # cut off
            if length > _LONGEST:
                content.seek(length + 4, os.SEEK_CUR)
                number += 1
                continue
            data, check = content.read(length), content.read(4)
            if int.from_bytes(check, "little") != masked_crc32c(data):
                raise _damaged(file, number, "its checksum does not fit")
            try:
                yield Event.FromString(data)
            except DecodeError:
                raise _damaged(file, number, "it is no event") from None
            number += 1
    if number == 0 and size >= 12:
        raise _damaged(file, 0, "it is no event")


def _damaged(file: Path, number: int, found: str) -> OctavoError:
    return OctavoError(
        f"the event file is damaged at record {number + 1}: {found}",
        where=file, expected="an events.out.tfevents file", fix="copy it again from where it was written",
    )  # fmt: skip


def _scalar(value: Any, file: Path, step: int) -> float:
    """A summary's scalar, of the old kind or as a tensor."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    from tensorboard.util.tensor_util import make_ndarray

    try:
        if any(side.size != 1 for side in value.tensor.tensor_shape.dim):
            raise ValueError  # before it is made: a shape costs its writer nothing
        return float(make_ndarray(value.tensor))
    except (TypeError, ValueError, OverflowError):
        raise OctavoError(
            f"the tag {value.tag[:60]!r} holds no single number", where=f"{file} step {step}", expected="a scalar"
        ) from None
