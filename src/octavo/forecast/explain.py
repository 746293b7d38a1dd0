"""Which part of a step is slower, or faster, than forecast, and where the rest of a run's time went.

What a run's files say of its steps is how long each took, and what was done between them. A step's parts are told apart
by cells that differ in one thing: what FP8 adds is a cell's step less that of the same model in BF16, forecast and
measured alike; what experts add is a mixture's step less its dense partner's. What all ranks wait for a slow node is
told by how long each rank worked (`octavo.accounting.stragglers`). Finer parts are forecast (products, attention,
messages), and only a profile could say how long each took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.measured import kept_steps
from octavo.forecast.plan import STEP_GROUPS
from octavo.forecast.rows import published_beside
from octavo.forecast.run_time import FIRST, SLOW, RunTime, StepTimes, run_time, slow_nodes
from octavo.forecast.steps import StepForecast, forecast_step
from octavo.layout import RunFolder, accept_file, repository
from octavo.metrics import read_metrics_table
from octavo.records import Acceptance, Result, read_record

SCHEMA_VERSION = 1
AS_FORECAST = 0.01
"""A step that is off by less than this share ran as forecast."""
ROUNDING = 1e-6
"""Share of a step below which a part of it is that of rounded sums."""
NAMED = 0.25
"""Share of a step's difference from its forecast that a part makes which is named."""


@dataclass(frozen=True)
class _Cell:
    """A cell with what its finished runs took, the mean over seeds."""

    config: CellConfig
    forecast: StepForecast
    planned: bool
    """Whether the forecast is the plan's; else it was made now, since the plan rested on runs of the cell itself, or
    there is none."""
    seeds: list[int]
    steps: StepTimes
    time: RunTime
    fullest: float | None
    """Tokens of the expert-parallel rank that got most of them over those of the mean one; None: there is one rank."""


def explain(experiment: Experiment) -> dict[str, Any]:
    """What `octavo explain --json` prints: of each cell with finished runs its step in parts, and its runs' time.

    Cells of shorter lengths are left out: their steps are those of the cell that they begin from.
    """
    whole = [cell for cell in experiment.cells.values() if not cell.trunk]
    found = {cell.cell: one for cell in whole if (one := _cell(experiment, cell))}
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "device_kind": experiment.device.kind,
        "cells": [_record(experiment, one, found) for one in found.values()],
        "without_runs": [cell.cell for cell in whole if cell.cell not in found],
        "fell_short": _fell_short(experiment),
        "not_known": list(_not_known(experiment, [*found.values()])),
    }


def _cell(experiment: Experiment, cell: CellConfig) -> _Cell | None:
    """None where none of its runs is finished that was trained under its present configuration from end to end."""
    runs = {}
    for seed in experiment.seeds_of(cell.cell, experiment.folder):
        folder = experiment.folder.run(cell.cell, seed)
        if folder.result.exists():
            result = read_record(folder.result, Result, made_by="octavo train")
            run = experiment.run(cell.cell, seed)
            if result.made_under(run.run_fingerprint) and result.steps > cell.begins_after:
                runs[seed] = run_time(run, folder)
    if not runs:
        return None
    kept = kept_steps(experiment.folder.plan_steps, f"octavo plan {experiment.folder.path}").get(cell.cell)
    planned = kept is not None and not kept.measured_runs
    return _Cell(
        config=cell,
        forecast=kept if kept is not None and planned else forecast_step(cell, experiment.cluster, experiment.device),
        planned=planned,
        seeds=list(runs),
        steps=_mean(StepTimes, [steps for _, steps in runs.values()]),
        time=_mean(RunTime, [time for time, _ in runs.values()]),
        fullest=_fullest(cell, [experiment.folder.run(cell.cell, seed) for seed in runs]),
    )


def _fullest(cell: CellConfig, folders: list[RunFolder]) -> float | None:
    """The mean over layers and over the steps whose loads were logged. A rank holds neighbouring experts."""
    ranks = cell.parallelism.expert
    if ranks == 1 or cell.model.experts is None:
        return None
    loads = [
        np.array(load).reshape(len(load), ranks, -1).sum(-1).max(-1).mean() * ranks
        for folder in folders
        for load in read_metrics_table(folder.metrics, ("expert_load",))["expert_load"].drop_null().to_pylist()
    ]
    return float(np.mean(loads)) if loads else None


def _mean(kind: Any, several: list[Any]) -> Any:
    """Field by field."""
    values = [asdict(one) for one in several]
    return kind(**{name: fmean(one[name] for one in values) for name in values[0]})


def _record(experiment: Experiment, cell: _Cell, found: dict[str, _Cell]) -> dict[str, Any]:
    forecast, steps = cell.forecast, cell.steps
    low, high = (forecast.seconds / factor for factor in (forecast.high_factor, forecast.low_factor))
    parts = [*_parts(experiment, cell, found)]
    return {
        "cell": cell.config.cell,
        "seeds": cell.seeds,
        "forecast_is_the_plans": cell.planned,
        "step_seconds": {"forecast": forecast.seconds, "low": low, "high": high, "measured": steps.mean},
        "interval": forecast.interval,
        "inside": low <= steps.mean <= high,
        "times_as_fast": forecast.seconds / steps.mean,
        "parts": parts,
        "stragglers": [*_stragglers(experiment, cell)],
        "difference_made_by": _made_by(parts, steps.mean - forecast.seconds, forecast.seconds),
        "forecast_parts": {
            group: seconds
            for group, members in STEP_GROUPS.items()
            if (seconds := sum(forecast.breakdown.get(part, 0.0) for part in members))
        },
        "fullest_expert_rank": cell.fullest,
        "run_seconds": {"forecast_steps": forecast.seconds * cell.config.own_steps, **asdict(cell.time)},
        "published": published_beside(cell.config.model, experiment.device, cell.config.precision.recipe),
    }


def _parts(experiment: Experiment, cell: _Cell, found: dict[str, _Cell]) -> Iterator[dict[str, Any]]:
    """Parts of the mean step that were measured, each with its forecast; both columns add up to the whole."""
    of, simpler = cell, _simpler(experiment, cell.config)
    chain = []
    while simpler is not None and simpler[1] in found:
        chain.append((f"{simpler[0]} ({of.config.cell} less {simpler[1]})", of, found[simpler[1]]))
        of = found[simpler[1]]
        simpler = _simpler(experiment, of.config)
    yield _part(f"a step of {of.config.cell}", of.forecast.seconds, of.steps.plain)
    for name, more, less in reversed(chain):
        yield _part(name, more.forecast.seconds - less.forecast.seconds, more.steps.plain - less.steps.plain)
    steps = cell.steps
    for name, seconds in (
        ("waiting for the slowest rank", steps.waited),
        (f"the first {FIRST} steps of an attempt", steps.first),
        ("steps that look at experts' loads or FP8's numbers", steps.examined),
        (f"steps of {SLOW:g} times the median and more", steps.slow),
    ):
        if abs(seconds) > ROUNDING * steps.mean:
            yield _part(name, 0.0, seconds)


def _stragglers(experiment: Experiment, cell: _Cell) -> Iterator[dict[str, Any]]:
    """The nodes that slowed a cell's runs down, with what each cost of a step of its attempt."""
    for seed in cell.seeds:
        for attempt, nodes in slow_nodes(experiment.folder.run(cell.config.cell, seed)).items():
            for one in nodes:
                yield {"seed": seed, "attempt": attempt, **asdict(one), "in_words": str(one)}


def _part(name: str, forecast: float, measured: float) -> dict[str, Any]:
    return {"part": name, "forecast": forecast, "measured": measured}


def _simpler(experiment: Experiment, cell: CellConfig) -> tuple[str, str] | None:
    """What a cell has more than another one, and that one's name; None where there is none simpler."""
    if cell.ablation:
        return cell.ablation, cell.cell.removesuffix(f"+{cell.ablation}")
    if cell.precision.recipe != "bf16":
        alike = (one for one in experiment.grid if one.architecture == cell.architecture)
        other = next((one for one in alike if one.precision.recipe == "bf16"), None)
        return (cell.precision.recipe, other.cell) if other else None
    if cell.model.experts is None:
        return None
    matched = next((names for names in experiment.matched if cell.architecture in names), [])
    partners = (one for one in experiment.grid if one.architecture in matched and one.model.experts is None)
    other = next((one for one in partners if one.precision == cell.precision), None)
    return ("experts", other.cell) if other else None


def _made_by(parts: list[dict[str, Any]], difference: float, forecast: float) -> list[str]:
    """The parts that each make NAMED of a step's difference from its forecast or more, the largest first; none where
    the step is as forecast."""
    if abs(difference) < AS_FORECAST * forecast:
        return []
    sign = 1 if difference > 0 else -1
    off = {one["part"]: sign * (one["measured"] - one["forecast"]) for one in parts}
    return [part for part in sorted(off, key=lambda part: -off[part]) if off[part] >= NAMED * abs(difference)]


def _fell_short(experiment: Experiment) -> list[dict[str, Any]]:
    """What `octavo accept` found of the cluster's parts that did not reach what was expected."""
    path: Path = repository() / accept_file(experiment.file.cluster)
    if experiment.device.kind == "cpu" or not path.exists():
        return []
    found = read_record(path, Acceptance, made_by="octavo accept")
    return [one.model_dump(mode="json", exclude={"verdict", "source"}) for one in found.fell_short]


def _not_known(experiment: Experiment, cells: list[_Cell]) -> Iterator[str]:
    """What no file says."""
    yield "Loading data is inside a step and is not timed by itself."
    if experiment.device.kind == "cpu":
        yield (
            "Steps are wall time: how long they waited for a core or for memory that other programs used is not known."
        )
    else:
        yield (
            "How much of a step each part of the forecast took (products, attention, messages, waiting for the host) "
            "is not known: of kernels the shares of one step are kept (the report's small print). Forecast shares are "
            "above."
        )
        if not (repository() / accept_file(experiment.file.cluster)).exists():
            verb = f"octavo accept {experiment.file.cluster}"
            yield f"How fast the cluster's parts are by themselves is not known: {verb} measures it."
    if any(len(one.seeds) == 1 for one in cells):
        yield "Of a cell with one run it is not known how far its times move from run to run."
