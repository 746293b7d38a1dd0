"""`mlperf`: logs of MLPerf Training, the lines that begin with `:::MLLOG` (rounds v5 and v6).

Source: mlcommons/logging, `mlperf_logging/mllog` and the rules that its compliance checker holds language models to
(`compliance_checker/training_6.0.0/closed_deepseekv3_671b.yaml` and neighbours): `tracked_stats` with
`reduced_train_loss` (and `train_step_time`, seconds) and `eval_accuracy`, both with the samples so far in their
metadata; `global_batch_size`, `max_sequence_length`, `seed`, `submission_benchmark`; `run_start`, `eval_start`,
`eval_stop` and `run_stop` with its status. A step is `global_batch_size` samples.

`eval_accuracy` is a validation loss in some benchmarks and an accuracy in others: it is read for those named in LOSSES.
Where a log has no `train_step_time` but `time_ms` in its lines, a step takes the time since the line before, without
the evaluations in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError
from octavo.imports.formats.console import damaged, lines, one_record
from octavo.imports.points import LARGEST, Point, Stated

LOSSES = ("deepseekv3_671b", "gpt_oss_20b", "llama31_405b", "llama31_8b", "llama2_70b_lora")
"""Benchmarks whose `eval_accuracy` is the validation loss in nats per token (mlcommons/training_policies,
training_rules.adoc, section 3: "log perplexity", "Eval loss")."""

_TOKEN = ":::MLLOG "


def read(path: Path, stated: Stated) -> Iterator[Point]:
    """The points of a log; the samples of evaluations count in steps, too."""
    log = _Log(stated)
    for place, line in lines(path):
        _, token, text = line.partition(_TOKEN)
        if not token:
            continue
        if not line.endswith("\n"):
            return  # cut off
        try:
            one_record(1 + text.count(_TOKEN), ":::MLLOG")
            event = _event(text)
            point = log.take(event, place)
        except (ValueError, OverflowError, RecursionError) as error:
            raise damaged(place, error) from None
        if point is not None:
            yield point


@dataclass(frozen=True)
class _Event:
    key: str
    value: Any
    metadata: dict[str, Any]
    seconds: float | None
    """When it was written."""


def _event(text: str) -> _Event:
    event = json.loads(text)
    if not isinstance(event, dict) or not isinstance(event.get("key"), str):
        raise ValueError('it is no mapping with a "key"')
    metadata, clock = event.get("metadata"), event.get("time_ms")
    seconds = None if clock is None else _number(clock, "time_ms") / 1000
    return _Event(event["key"], event.get("value"), metadata if isinstance(metadata, dict) else {}, seconds)


class _Log:
    """What the lines so far have said."""

    def __init__(self, stated: Stated) -> None:
        self.stated = stated
        self._since: float | None = None
        """When the steps began that the next training line is of."""
        self._paused: float = 0.0
        """Seconds of evaluation since then."""
        self._eval_began: float | None = None
        self._reached = 0

    def take(self, event: _Event, place: str) -> Point | None:
        """Take one event; the point that it makes, if any."""
        match event.key:
            case "global_batch_size":
                self.stated.batch_size = _whole(event.value, event.key)
            case "max_sequence_length":
                self.stated.sequence_length = _whole(event.value, event.key)
            case "seed":
                self.stated.seed = _whole(event.value, event.key, least=0)
            case "submission_benchmark":
                self.stated.benchmark = _language_model(event.value, place)
            case "submission_division":
                self.stated.closed = event.value == "closed"
            case "run_start":
                self._since, self._paused, self.stated.ended = event.seconds, 0.0, False
            case "run_stop":
                self.stated.ended = event.metadata.get("status") == "success"
            case "eval_start":
                self._eval_began = event.seconds
            case "eval_stop" if self._eval_began is not None and event.seconds is not None:
                self._paused += max(0.0, event.seconds - self._eval_began)
                self._eval_began = None
            case "tracked_stats":
                return self._training(event, place)
            case "eval_accuracy":
                step, samples = self._step(event)
                loss = _number(event.value, event.key)
                return Point(step, place, {"samples": samples}, {"": loss}, clock=event.seconds)
        return None

    def _training(self, event: _Event, place: str) -> Point | None:
        stats = event.value if isinstance(event.value, dict) else {}
        if "reduced_train_loss" not in stats:
            return None  # throughput, or the time of a validation
        step, samples = self._step(event)
        values = {"loss": _number(stats["reduced_train_loss"], "reduced_train_loss"), "samples": samples}
        since, self._since = self._since, event.seconds
        paused, self._paused = self._paused, 0.0
        if "train_step_time" in stats:
            values["step_seconds"] = _number(stats["train_step_time"], "train_step_time")
        elif since is not None and event.seconds is not None and step > self._reached:
            values["step_seconds"] = (event.seconds - since - paused) / (step - self._reached)
        self._reached = step
        return Point(step, place, values, clock=event.seconds)

    def _step(self, event: _Event) -> tuple[int, float]:
        """The step and the samples of an event."""
        if self.stated.batch_size is None:
            raise ValueError("no global_batch_size stands before it")
        if "samples_count" not in event.metadata:
            raise ValueError(f"{event.key} has no samples_count in its metadata")
        samples = _whole(event.metadata["samples_count"], "samples_count", least=0)
        step, rest = divmod(samples, self.stated.batch_size)
        if rest:
            raise ValueError(f"samples_count {samples} is no multiple of global_batch_size {self.stated.batch_size}")
        return step, float(samples)


def _language_model(benchmark: Any, place: str) -> str:
    if benchmark not in LOSSES:
        raise OctavoError(
            f"the log is of MLPerf's benchmark {str(benchmark)[:60]!r}", where=place,
            expected=f"the training of a language model: {', '.join(LOSSES)}",
            fix="its eval_accuracy is not known to be a loss in nats per token; write a table (csv) instead",
        )  # fmt: skip
    return benchmark


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {str(value)[:40]!r}, which is no number")
    return float(value)


def _whole(value: Any, name: str, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LARGEST:
        raise ValueError(f"{name} is {str(value)[:40]!r}; expected a whole number from {least} on")
    return value
