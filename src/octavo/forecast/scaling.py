"""`octavo scale`: a cell, measured or forecast, carried to more tokens and more GPUs.

The rate of the cell (tokens per second and GPU) is that of its runs where there are any on GPUs, else the forecast's.
To another number of GPUs it is carried by the ratio of two forecasts: the cell with as many more data-parallel ranks
and as much more batch, over the cell as it is. What that leaves out is listed with the result.

The interval of a measured rate is Student's t of the seeds, in the rate's logarithm (a rate has no other side of zero);
of one run there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.accounting.money import hour_price, price_range
from octavo.errors import OctavoError, no_such
from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.calibration import INTERVAL
from octavo.forecast.memory import fits, memory
from octavo.forecast.published import PublishedRun, published_runs
from octavo.forecast.steps import StepForecast, forecast_step
from octavo.layout import ExperimentFolder, configs

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class _Rate:
    """Tokens per second and GPU, and between what; no ends where one run alone says nothing of the spread."""

    value: float
    low: float | None
    high: float | None
    basis: str
    runs: int = 0


def carry(
    experiment: Experiment,
    folder: ExperimentFolder,
    cell_name: str,
    *,
    published: str | None = None,
    tokens: float | None = None,
    gpus: int | None = None,
) -> dict[str, Any]:
    """GPU-hours, days and cost at a scale, as one JSON value; keys are only ever added to.

    `published` names a run whose tokens and GPUs are taken where `tokens` and `gpus` are not given. Raises OctavoError
    for a cell of CPUs, a scale that is not said, and a number of GPUs that the cell's layout does not divide.
    """
    cell = _cell(experiment, cell_name)
    if experiment.device.kind != "gpu":
        raise OctavoError(
            f"the cell runs on {experiment.device.name}: its time says nothing of GPUs",
            where=f"cluster {experiment.file.cluster}",
            fix="scale a cell of an experiment on GPUs (its forecast will do)",
        )
    run = _published(published) if published else None
    tokens = tokens or (run.tokens if run else None)
    gpus = gpus or (run.devices if run else None) or cell.parallelism.world_size
    if tokens is None:
        raise OctavoError("the tokens to carry it to are not known", where="--tokens", fix="give --tokens")
    larger = _with_gpus(cell, gpus)
    own, there = (forecast_step(one, experiment.cluster, experiment.device) for one in (cell, larger))
    ratio = there.tokens_per_second_per_device / own.tokens_per_second_per_device
    rate = _measured(folder, cell, own_gpus=gpus == own.devices, forecast=own)
    rate = rate or _Rate(own.tokens_per_second_per_device, own.low, own.high, "forecast")
    price = hour_price(experiment.cluster, experiment.device).total
    low, high = price_range(experiment.cluster, experiment.device)
    held = memory(larger.model, larger.training, larger.parallelism, larger.precision, experiment.device)
    ends = {"value": rate.value, "low": rate.high, "high": rate.low}  # a high rate makes few hours
    hours = {key: tokens / (end * ratio) / 3600 if end else None for key, end in ends.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "cell": cell.cell,
        "basis": rate.basis,
        "gpu": experiment.device.name,
        "gpus": gpus,
        "tokens": tokens,
        "tokens_per_second_per_gpu": rate.value * ratio,
        "rate_ratio": ratio,
        "interval": own.interval,
        "gpu_hours": hours,
        "days": {key: value and value / gpus / 24 for key, value in hours.items()},
        "cost": {key: value and value * price for key, value in hours.items()},
        "price_low": low,
        "price_high": high,
        "memory_fits": fits(held.total, experiment.device),
        "currency": experiment.cluster.currency,
        "price_per_gpu_hour": price,
        "published": _comparison(run, tokens, price),
        "assumptions": _assumptions(cell, larger, rate, ratio, run),
    }


def _cell(experiment: Experiment, name: str) -> CellConfig:
    whole = [one.cell for one in experiment.cells.values() if one.trunk is None]
    if name not in whole:
        raise OctavoError(
            f"the experiment has no cell {name!r}",
            where=experiment.path,
            expected=f"one of {', '.join(whole)}",
        )
    return experiment.cells[name]


def _published(name: str) -> PublishedRun:
    runs = published_runs()
    if name not in runs:
        raise no_such("published run", name, runs, where=configs().published / "runs")
    return runs[name]


def _with_gpus(cell: CellConfig, gpus: int) -> CellConfig:
    """The cell with as many data-parallel ranks as the GPUs allow and the batch in proportion."""
    layout = cell.parallelism
    inner = layout.tensor * layout.pipeline * layout.context
    data = gpus // inner
    if gpus % inner or (data * layout.context * layout.tensor) % layout.expert:
        raise OctavoError(
            f"{gpus:,} GPUs cannot hold the layout of {cell.cell}",
            where="--gpus",
            expected=f"a multiple of tensor x pipeline x context = {inner} that expert {layout.expert} divides too",
        )
    batch = cell.training.global_batch_size * data // layout.data
    return cell.model_copy(
        update={
            "parallelism": layout.model_copy(update={"data": data}),
            "training": cell.training.model_copy(update={"global_batch_size": max(batch, data)}),
        }
    )


def _measured(folder: ExperimentFolder, cell: CellConfig, *, own_gpus: bool, forecast: StepForecast) -> _Rate | None:
    """The rate of the cell's runs; None where there are none on GPUs."""
    if not folder.runs_table.exists():
        return None
    from octavo.records import read_table

    columns = ["cell", "tokens", "training_device_hours", "device_kind", "layouts", "emulated", "status"]
    frame = read_table(folder.runs_table, "runs", made_by=f"octavo aggregate {folder.path}", columns=columns)
    done = frame[(frame["cell"] == cell.cell) & (frame["status"] == "completed") & ~frame["emulated"]]
    done = done[done["layouts"] == cell.layout]
    done = done[done["device_kind"].notna() & (done["device_kind"] != "cpu")].query("training_device_hours > 0")
    if done.empty:
        return None
    from octavo.statistics import t_interval

    of_runs = done["tokens"] / done["training_device_hours"] / 3600
    own = t_interval(np.log(of_runs.to_numpy(dtype=float)), INTERVAL)
    middle = math.exp(own.estimate)
    if own_gpus:
        low, high = (None if end is None else math.exp(end) for end in (own.low, own.high))
    else:  # the way to other GPU counts is forecast: its interval is the forecast's
        low, high = middle * forecast.low_factor, middle * forecast.high_factor
    return _Rate(middle, low, high, "measured", len(of_runs))


def _comparison(run: PublishedRun | None, tokens: float, price: float) -> dict[str, Any] | None:
    if run is None or run.hours_per_trillion_tokens is None:
        return None
    return {
        "model": run.model,
        "gpu_hours": run.hours_per_trillion_tokens * tokens / 1e12,
        "stages": "pre-training alone, which is what the tokens took",
        "cost": run.hours_per_trillion_tokens * tokens / 1e12 * price,
        "source": run.sources.get("device_hours") or run.sources["device_hours_per_trillion_tokens"],
    }


def _of_rate(rate: _Rate, own: int, there: int) -> str:
    """Where the rate comes from, and its interval."""
    if rate.basis == "forecast":
        return "the rate is forecast"
    runs = f"{rate.runs} run{'s' if rate.runs > 1 else ''}"
    if own != there:
        return f"the rate is measured in {runs} on {own:,} GPUs; the interval is the forecast's, which the way there is"
    interval = "one run: no interval" if rate.low is None else "the interval is Student's t of the runs"
    return f"the rate is measured in {runs} on {own:,} GPUs; {interval}"


def _assumptions(
    cell: CellConfig, larger: CellConfig, rate: _Rate, ratio: float, run: PublishedRun | None
) -> list[str]:
    own, there = cell.parallelism.world_size, larger.parallelism.world_size
    found = [
        _of_rate(rate, own, there),
        "all GPUs work all the time: no failures, restarts, validation or checkpoints",
        "sequences stay as long as in the experiment; stages such as long context come on top",
    ]
    if own != there:
        found.append(
            f"from {own:,} to {there:,} GPUs by data parallelism, a batch of {larger.training.global_batch_size:,} "
            f"sequences, tokens/s/GPU {ratio:.1%} of what they were (forecast); that the loss bears such a batch"
        )
    if run is not None and run.model != cell.model.name:
        found.append(f"the cell is {cell.model.name}, the published run {run.model}: equal tokens, not equal models")
    return found
