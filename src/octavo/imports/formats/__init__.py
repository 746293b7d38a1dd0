"""The formats of logs, one module each: a file -> its points. Nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from octavo.imports.formats import golden, megatron, mlperf, tensorboard, torchtitan
from octavo.imports.points import Point, Stated

Format = Literal["megatron_log", "tensorboard", "megatron_golden", "torchtitan_log", "mlperf", "csv"]

READERS: dict[str, Callable[[Path, Stated], Iterator[Point]]] = {
    "megatron_log": megatron.read,
    "tensorboard": tensorboard.read,
    "megatron_golden": golden.read,
    "torchtitan_log": torchtitan.read,
    "mlperf": mlperf.read,
}
"""Format -> what reads its files; a table (`csv`) needs the names of its columns, too (`.tables`)."""
