"""Where the time of a run went, by the times in `attempts.jsonl` and `metrics.jsonl`.

A line of the metrics is written when a step or a validation has ended, and a step's line says how long it took: what
lies between is told apart by what the configuration says was done there. How long steps waited for a slow node the
attempts say, by how long each rank worked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.accounting.stragglers import Straggler, stragglers
from octavo.experiment.run import RunConfig
from octavo.layout import RunFolder
from octavo.metrics import metrics_columns
from octavo.records import AttemptRecord, lines_that_count, read_lines

FIRST = 3
"""Steps of an attempt that count as its first: memory is taken, kernels are chosen or compiled, caches are filled."""
SLOW = 1.5
"""A step that takes this many times the median is a slow one: a judgement."""


@dataclass(frozen=True)
class RunTime:
    """Seconds of all attempts at a run, by what was done; they add up to the time from start to end of each.

    An attempt without an end, one that was killed, counts up to its last line.
    """

    start_up: float
    """Before an attempt's first step."""
    steps: float
    """Training steps that count."""
    trained_again: float
    """Steps that a later attempt trained again."""
    validation: float
    checkpoints: float
    between: float
    """Between steps, where nothing was validated or saved: writing the metrics' line."""
    end: float
    """After the last line: the result's hashes and files, or what a signal made it save."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a run's mean step; the parts add up to it."""

    steps: int
    mean: float
    plain: float
    """The mean of the steps that are in none of the other parts, without what they waited for slow ranks."""
    waited: float
    """What these steps waited for a rank that is a straggler: what it worked beyond the median of its stage's ranks."""
    first: float
    """What the FIRST steps of each attempt take beyond a plain one that waited, per step of the run."""
    examined: float
    """The same of steps that look at experts' loads or at the numbers of FP8."""
    slow: float
    """The same of others that take SLOW times the median or more."""


def run_time(run: RunConfig, folder: RunFolder) -> tuple[RunTime, StepTimes]:
    """Of a finished run. Raises OctavoError for files that cannot be read."""
    lines = metrics_columns(folder.metrics, ("time", "step_seconds"))
    step, attempt, seconds = lines["step"], lines["attempt"], lines["step_seconds"]
    for_slowest = np.zeros(len(step))
    trained = ~np.isnan(seconds)
    counts = lines_that_count(step, attempt, trained) & trained
    spent = dict.fromkeys(("start_up", "validation", "checkpoints", "between", "end"), 0.0)
    first = np.zeros(len(step), dtype=bool)
    for one in read_lines(folder.attempts, AttemptRecord):
        mine = np.flatnonzero(attempt == one.attempt)
        own = lines["time"][mine]
        if not len(mine):
            spent["start_up"] += one.end.timestamp() - one.start.timestamp() if one.end else 0.0
            continue
        # a validation's line says when it ended, and it began when the step's line was written
        began = np.where(trained[mine], own - seconds[mine], np.append(own[:1], own[:-1]))
        waited = began[1:] - own[:-1]
        saved = _saves(run, step[mine][:-1])
        spent["start_up"] += began[0] - one.start.timestamp()
        spent["validation"] += float((own - began)[~trained[mine]].sum())
        spent["checkpoints"] += float(waited[saved].sum())
        spent["between"] += float(waited[~saved].sum())
        spent["end"] += max(0.0, one.end.timestamp() - own[-1]) if one.end else 0.0
        first[mine[trained[mine]][:FIRST]] = True
        for_slowest[mine] = max((slow.seconds for slow in stragglers(one.ranks)), default=0.0)
    of_steps = float(seconds[counts].sum())
    time = RunTime(**spent, steps=of_steps, trained_again=float(seconds[trained].sum()) - of_steps)
    return time, _step_times(run, step[counts], seconds[counts], first[counts], for_slowest[counts])


def slow_nodes(folder: RunFolder) -> dict[int, list[Straggler]]:
    """Attempt at a run -> the nodes that slowed it down, the worst first, of attempts that there are any of."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    return {one.attempt: found for one in attempts if (found := stragglers(one.ranks))}


def _saves(run: RunConfig, step: np.ndarray) -> np.ndarray:
    """After which steps a checkpoint is saved."""
    interval = step % run.training.checkpoints.interval == 0
    return (interval | np.isin(step, list(run.training.branch_steps))) & (step < run.training.total_steps)


def _step_times(
    run: RunConfig, step: np.ndarray, seconds: np.ndarray, first: np.ndarray, waited: np.ndarray
) -> StepTimes:
    logging = run.training.logging
    examined = np.zeros(len(step), dtype=bool)
    if run.model.experts:
        examined |= step % logging.expert_load_interval == 0
    if logging.precision_interval and run.precision.recipe != "bf16":
        examined |= step % logging.precision_interval == 0
    examined &= ~first
    rest = ~first & ~examined
    if not rest.any():  # a run of a few steps
        rest, first, examined = np.ones_like(rest), np.zeros_like(first), np.zeros_like(examined)
    slow = rest & (seconds >= SLOW * np.median(seconds[rest]))
    usual = rest & ~slow
    plain, wait = float(seconds[usual].mean()), float(waited[usual].mean())

    def beyond(which: np.ndarray) -> float:
        return float((seconds[which] - plain).sum()) / len(seconds)

    return StepTimes(
        steps=len(seconds),
        mean=float(seconds.mean()),
        plain=plain - wait,
        waited=wait,
        first=beyond(first),
        examined=beyond(examined),
        slow=beyond(slow),
    )
