"""What was measured replaces what it can of a forecast: rates of runs, and what `octavo accept` found of a cluster.

A run's rate is its cell's: the forecast of the cell is that rate. It says something of the cluster's other cells, too.
Half of a forecast's error (COMMON, a judgement) is taken to be the cluster's, alike in all of its cells, and the rest
each cell's own, both normal in the logarithm of tokens/s: the cluster's factor is then the mean of what was measured,
drawn to 1 where few cells were, and the interval is what is left of both parts.

Rates are those of runs on the cluster, of this experiment or another: of the first finished runs of each cell, else of
those under way. On CPUs they count where the run was on a processor like this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, median, variance

from pydantic import TypeAdapter, ValidationError

from octavo.cpu.processor import processor
from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment, RunConfig, read_run_config
from octavo.files import read_json, write_json
from octavo.forecast.calibration import INTERVAL
from octavo.forecast.gpu import width
from octavo.forecast.steps import StepForecast, forecast_step
from octavo.layout import NOT_EXPERIMENTS, RunFolder, accept_file, repository
from octavo.records import (
    SCHEMA_VERSION,
    AttemptRecord,
    MetricsRecord,
    Provenance,
    Result,
    check_version,
    read_last_lines,
    read_lines,
    read_record,
)

COMMON = 0.5
"""Share of a forecast's variance that is the cluster's: a judgement."""
REPEATED = math.log(1.15)
"""Half of the interval's width in ln(tokens/s) of a cell that one run was measured of: a judgement."""
MOST_RUNS = 3
"""Of a cell's folder that are looked at, so that a plan takes seconds however many runs there are."""
RECENT = 50
"""The last steps of a run under way, whose median its rate is."""
EIGHTY = NormalDist().inv_cdf((1 + INTERVAL) / 2)
"""Half of the interval's width in standard deviations."""
Step = tuple[object, ...]
"""What decides how long a step takes."""


@dataclass(frozen=True)
class Measured:
    """A cell that was trained on the cluster."""

    step: Step
    off: tuple[float, ...]
    """How far its forecast is off: ln(measured / forecast) of tokens/s, of each run."""


def forecast_cells(experiment: Experiment) -> dict[str, StepForecast]:
    """The forecast of every cell, by its name, with what was measured in it."""
    cluster, device = experiment.cluster, experiment.device
    plain = {name: forecast_step(cell, cluster, device) for name, cell in experiment.cells.items()}
    measured = list(measured_cells(experiment))
    accepted = accepted_factors(experiment.file.cluster)
    if not measured and not accepted:
        return plain
    return {name: _updated(plain[name], cell, measured, accepted) for name, cell in experiment.cells.items()}


def write_steps(path: Path, steps: dict[str, StepForecast]) -> None:
    """Keep what a plan was made from: what was measured then is not to be had again."""
    cells = {name: asdict(step) for name, step in steps.items()}
    write_json(path, {"schema_version": SCHEMA_VERSION, "cells": cells})


def kept_steps(path: Path, made_by: str) -> dict[str, StepForecast]:
    """The steps that a plan was made from, by cell, as `write_steps` kept them; empty where there is no plan.

    Raises OctavoError for a file that does not hold them.
    """
    if not path.exists():
        return {}
    value = read_json(path, made_by=made_by)
    check_version(value, path, made_by=made_by)
    try:
        return TypeAdapter(dict[str, StepForecast]).validate_python(value.get("cells"))
    except ValidationError:
        raise OctavoError(
            "the file does not hold a plan's steps", where=path, fix=f"make it again: {made_by}"
        ) from None


def planned_steps(experiment: Experiment, path: Path) -> dict[str, StepForecast]:
    """The steps that a plan is made from again: forecast anew, but for those that rested on measurements.

    These are kept in `path`. Raises OctavoError for a file that does not hold them.
    """
    kept = kept_steps(path, f"octavo plan {experiment.folder.path}")
    cluster, device = experiment.cluster, experiment.device
    return {
        name: kept[name] if name in kept and kept[name].measured else forecast_step(cell, cluster, device)
        for name, cell in experiment.cells.items()
    }


def _updated(
    plain: StepForecast, cell: CellConfig, measured: list[Measured], accepted: dict[str, float]
) -> StepForecast:
    step = _step(cell)
    if own := [one for found in measured if found.step == step for one in found.off]:
        factor = math.exp(fmean(own))
        note = "where runs of a cell were measured, its rate is theirs"
        return _scaled(plain, factor, max(REPEATED, EIGHTY * math.sqrt(_variance(own))), note, len(own))
    recipe = cell.precision.recipe
    named = [math.log(factor) for key, factor in accepted.items() if key in (recipe, width(recipe))]
    seen = [*(fmean(found.off) for found in measured), *named]
    if not seen:
        return plain
    error = (math.log(plain.high_factor / plain.low_factor) / 2 / EIGHTY) ** 2
    common, rest = COMMON * error, max((1 - COMMON) * error, _variance(seen))
    known = len(seen) * common / (len(seen) * common + rest)
    factor = math.exp(known * fmean(seen))
    sources = [f"runs of {len(measured)} cells on the cluster"] * bool(measured)
    sources += ["what octavo accept measured of it"] * bool(named)
    note = f"{' and '.join(sources)} make the forecast of other cells {factor:.2f} times as fast"
    return _scaled(plain, factor, EIGHTY * math.sqrt(common * (1 - known) + rest), note, 0)


def _variance(values: list[float]) -> float:
    return variance(values) if len(values) > 1 else 0.0


def _scaled(plain: StepForecast, factor: float, half: float, note: str, runs: int) -> StepForecast:
    """The forecast with `factor` times the speed and an interval that is so wide."""
    return replace(
        plain,
        seconds=plain.seconds / factor,
        breakdown={part: seconds / factor for part, seconds in plain.breakdown.items()},
        low_factor=math.exp(-half),
        high_factor=math.exp(half),
        notes=(*plain.notes, note),
        measured=True,
        measured_runs=runs,
    )


def measured_cells(experiment: Experiment) -> Iterator[Measured]:
    """Each cell that was trained on the experiment's cluster, of this experiment or another."""
    for path in sorted((repository() / "results").glob("*/runs/*")):
        if path.parents[1].name not in NOT_EXPERIMENTS and path.is_dir():
            yield from _cell(path, experiment)


def _cell(folder: Path, experiment: Experiment) -> Iterator[Measured]:
    """Of a cell's folder of runs; nothing where none of them says anything."""
    runs = [RunFolder(path) for path in sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))]
    finished = [run for run in runs if run.result.exists()][:MOST_RUNS]
    found = [one for run in finished or runs[:MOST_RUNS] if (one := _run_rate(run, experiment))]
    if found:
        cell = found[0][0]
        forecast = forecast_step(cell, experiment.cluster, experiment.device).tokens_per_second_per_device
        yield Measured(_step(cell), tuple(math.log(rate / forecast) for _, rate in found))


def _run_rate(folder: RunFolder, experiment: Experiment) -> tuple[RunConfig, float] | None:
    """A run and its tokens per second and device.

    None where it is of another cluster or processor, trained too little, or cannot be read.
    """
    try:
        run = read_run_config(folder.config)
        if run.cluster != experiment.file.cluster or not _same_device(folder, experiment):
            return None
        seconds = _step_seconds(folder, run)
    except OctavoError:  # status and the tables say what is wrong with it; a plan goes without
        return None
    return (run, run.training.tokens_per_step / seconds / run.parallelism.world_size) if seconds else None


def _same_device(folder: RunFolder, experiment: Experiment) -> bool:
    """Whether the run was on such a device as the forecast is for; of GPUs the cluster's name is trusted."""
    hardware = read_record(folder.provenance, Provenance, made_by="octavo train").hardware
    if experiment.device.kind == "gpu":
        return hardware.get("gpu") is not None
    return hardware.get("gpu") is None and all(hardware.get(key) == value for key, value in processor().items())


def _step_seconds(folder: RunFolder, run: RunConfig) -> float | None:
    """The mean step of a finished run, the median of the last ones of another; None before RECENT of them."""
    if folder.result.exists():
        result = read_record(folder.result, Result, made_by="octavo train")
        trained = result.steps - run.begins_after
        return result.training_seconds / trained if result.made_under(run.run_fingerprint) else None
    attempts = read_lines(folder.attempts, AttemptRecord)
    if not attempts or attempts[-1].run_fingerprint != run.run_fingerprint:
        return None
    own = {one.attempt for one in attempts if one.run_fingerprint == run.run_fingerprint}
    lines = [line for line in read_last_lines(folder.metrics, MetricsRecord, RECENT) if line.attempt in own]
    seconds = [line.step_seconds for line in lines if line.trained and line.step_seconds]
    return median(seconds) if 2 * len(seconds) >= RECENT else None


def _step(cell: CellConfig) -> Step:
    """Of a cell. Lengths, rates and text decide nothing."""
    training = cell.training
    batch = (training.global_batch_size, training.micro_batch_size, training.sequence_length, training.threads)
    shape = cell.model.model_dump(exclude={"name", "source", "published"})
    return shape, cell.precision, cell.parallelism, batch, training.recompute, training.deterministic


def accepted_factors(cluster: str) -> dict[str, float]:
    """What `octavo accept` measured: recipe, or width of operands -> measured over forecast tokens/s; empty where it
    has not been run, or measured no speed.

    Raises OctavoError for a file that does not say it.
    """
    path = repository() / accept_file(cluster)
    if not path.exists():
        return {}
    value = read_json(path, made_by="octavo accept")
    factors = value.get("factors") if isinstance(value, dict) and value.get("schema_version") == 1 else None
    if not isinstance(factors, dict) or not all(isinstance(one, int | float) and one > 0 for one in factors.values()):
        raise OctavoError(
            "the file does not say how fast the cluster is",
            where=path,
            expected='{"schema_version": 1, "factors": {"bf16": 0.95, ...}}: measured over forecast tokens/s',
            fix="make it again: octavo accept",
        )
    return {str(key): float(one) for key, one in factors.items()}
