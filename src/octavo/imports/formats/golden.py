"""`megatron_golden`: the golden values of Megatron-LM's functional tests (JSON).

Source: tests/functional_tests/python_test_utils of Megatron-LM. Two forms:

    {"lm loss": {"start_step": 1, "end_step": 50, "step_interval": 5, "values": {"1": 10.8, "5": 10.7, ...}}, ...}
    {"lm loss": {"start_step": 0, "end_step": 50, "step_interval": 5, "values": [10.8, 10.7, ...]}, ...}

In the second, written until November 2024, the values are every fifth of those logged, from the first on. The tests log
every step, so the value at index i is that of step `start_step + i * step_interval + 1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from octavo.errors import OctavoError
from octavo.files import read_json
from octavo.imports.points import Point, Stated

TAGS = {
    "lm loss": "loss",
    "lm loss validation": "validation_loss",
    "load_balancing_loss": "aux_loss",
    "seq_load_balancing_loss": "aux_loss",
    "global_load_balancing_loss": "aux_loss",
    "grad-norm": "grad_norm",
    "learning-rate": "learning_rate",
    "iteration-time": "step_seconds",
    "mem-max-allocated-bytes": "memory_bytes",
}
"""Megatron-LM's TensorBoard tag -> column."""

EXPECTED = '{"lm loss": {"start_step": 1, "step_interval": 5, "values": {"1": 10.8, "5": 10.7}}, ...}'


def read(path: Path, stated: Stated) -> Iterator[Point]:
    """The points of a file of golden values."""
    del stated
    value = read_json(path, made_by="Megatron-LM's functional tests")
    if not isinstance(value, dict):
        raise _wrong(path, "", f"the file holds a {_kind(value)}")
    if "lm loss" not in value:
        raise OctavoError(
            f"the file has no 'lm loss', but {_shown(value)}", where=path, expected=EXPECTED,
            fix="golden values of inference and of reinforcement learning hold no training run",
        )  # fmt: skip
    by_step: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
    for tag, column in TAGS.items():
        if tag not in value:
            continue
        for step, number in _values(path, tag, value[tag]):
            values, validation = by_step.setdefault(step, ({}, {}))
            if column == "validation_loss":
                validation[""] = number
            else:
                values.setdefault(column, number)
    for step, (values, validation) in by_step.items():
        try:
            yield Point(step, f"{path} step {step}", values, validation)
        except ValueError as error:
            raise _wrong(path, f"step {step}", str(error)) from None


def _values(path: Path, tag: str, entry: Any) -> Iterator[tuple[int, float]]:
    """(step, value) of one tag, without those that were not logged ("nan")."""
    held = entry if isinstance(entry, dict) else {}
    values = held.get("values")
    if isinstance(values, list):
        start, interval = held.get("start_step"), held.get("step_interval")
        if not (_whole(start) and _whole(interval) and interval > 0):
            raise _wrong(path, tag, "a list of values needs start_step and step_interval, whole numbers")
        pairs: list[tuple[Any, Any]] = [(start + index * interval + 1, one) for index, one in enumerate(values)]
    elif isinstance(values, dict):
        pairs = list(values.items())
    else:
        raise _wrong(path, tag, f"there is a {_kind(entry if values is None else values)} in place of the values")
    for step, value in pairs:
        if value == "nan":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(path, tag, f"the value at step {str(step)[:20]} is {str(value)[:40]!r}, which is no number")
        try:
            yield int(step), float(value)
        except (ValueError, OverflowError):
            raise _wrong(path, tag, f"{str(step)[:20]!r} with {str(value)[:20]} is no step with its value") from None


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _wrong(path: Path, key: str, found: str) -> OctavoError:
    return OctavoError(
        f"the file is not a list of golden values: {found}", where=f"{path} {key}".rstrip(), expected=EXPECTED
    )


def _kind(value: Any) -> str:
    return {"dict": "mapping", "list": "list", "str": "text", "NoneType": "null"}.get(type(value).__name__, "number")


def _shown(value: dict[str, Any]) -> str:
    names = [str(name)[:30] for name in list(value)[:6]]
    return ", ".join(names) + (" and more" if len(value) > 6 else "") if names else "nothing"
