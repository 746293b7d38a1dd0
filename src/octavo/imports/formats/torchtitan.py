"""`torchtitan_log`: torchtitan's console lines (torchtitan/components/metrics.py).

    [titan] 2026-01-05 10:00:10,000 - root - INFO - step: 10  loss: 9.50000  grad_norm: 2.0000  memory: 24.04GiB(25.31%)
      tps: 2,048  tflops: 20.10  mfu: 2.03%
    ... - validate step: 10  loss: 9.6000  memory: ...  tps: 4,000

`tps` (`wps` until 2024) is tokens per second and device since the line before. A line without a newline was cut off and
is left out. Every rank may write the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from octavo.imports.formats.console import NUMBER, clock, number, one_record, read_lines
from octavo.imports.points import Point, Stated

FIELDS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "tps": "tokens_per_second_per_device",
    "wps": "tokens_per_second_per_device",
}

_STEP = re.compile(r"\b(validate )?step:\s*(\d+)\s+(?=loss:)")
_FIELD = re.compile(rf"\b(\w+):\s*({NUMBER})", re.IGNORECASE)


def read(path: Path, stated: Stated) -> Iterator[Point]:
    """The points of a log; it does not say how long the run was to be."""
    del stated
    return read_lines(path, _line)


def _line(text: str, place: str) -> Point | None:
    records = list(_STEP.finditer(text))
    if not records or not text.endswith("\n"):
        return None
    one_record(len(records), ", ".join(f"step {found[2]}" for found in records))
    found = records[0]
    fields = {name: number(value) for name, value in _FIELD.findall(text[found.end() :]) if name in FIELDS}
    if found[1]:
        return Point(int(found[2]), place, validation={"": fields["loss"]}, clock=clock(text))
    return Point(int(found[2]), place, {FIELDS[name]: value for name, value in fields.items()}, clock=clock(text))
