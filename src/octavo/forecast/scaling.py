"""`octavo scale`: a cell, measured or forecast, carried to more tokens and more GPUs.

The rate of the cell (tokens per second and GPU) is that of its runs where there are any on GPUs, else the forecast's.
To another number of GPUs it is carried by the ratio of two forecasts: the cell with as many more data-parallel ranks
and as much more batch, over the cell as it is. What that leaves out is listed with the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.accounting.money import hour_price
from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.published import PublishedRun, published_runs
from octavo.forecast.steps import forecast_step
from octavo.layout import ExperimentFolder, configs

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class _Rate:
    """Tokens per second and GPU, and between what."""

    value: float
    low: float
    high: float
    basis: str


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
    forecast = _Rate(own.tokens_per_second_per_device, own.low, own.high, "forecast")
    rate = _measured(folder, cell, own_gpus=gpus == own.devices, forecast=forecast) or forecast
    price = hour_price(experiment.cluster, experiment.device).total
    hours = {key: tokens / (getattr(rate, end) * ratio) / 3600 for key, end in _ENDS}
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
        "days": {key: value / gpus / 24 for key, value in hours.items()},
        "cost": {key: value * price for key, value in hours.items()},
        "currency": experiment.cluster.currency,
        "price_per_gpu_hour": price,
        "published": _comparison(run, tokens),
        "assumptions": _assumptions(cell, larger, rate, ratio, run),
    }


_ENDS = (("value", "value"), ("low", "high"), ("high", "low"))
"""A high rate makes few hours."""


def _cell(experiment: Experiment, name: str) -> CellConfig:
    if name not in experiment.cells:
        raise OctavoError(
            f"the experiment has no cell {name!r}",
            where=experiment.path,
            expected=f"one of {', '.join(experiment.cells)}",
        )
    return experiment.cells[name]


def _published(name: str) -> PublishedRun:
    runs = published_runs()
    if name not in runs:
        raise OctavoError(
            f"there is no published run {name!r}",
            where=configs().published / "runs",
            expected=f"one of {', '.join(runs)}",
        )
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


def _measured(folder: ExperimentFolder, cell: CellConfig, *, own_gpus: bool, forecast: _Rate) -> _Rate | None:
    """The rate of the cell's runs; None where there are none on GPUs."""
    if not folder.runs_table.exists():
        return None
    from octavo.records import read_table

    columns = ["cell", "tokens", "training_seconds", "device_count", "device_kind", "emulated", "status"]
    frame = read_table(folder.runs_table, "runs", made_by=f"octavo aggregate {folder.path}", columns=columns)
    done = frame[(frame["cell"] == cell.cell) & (frame["status"] == "completed") & ~frame["emulated"]]
    done = done[done["device_kind"].notna() & (done["device_kind"] != "cpu")].dropna(subset=["training_seconds"])
    if done.empty:
        return None
    rates = [
        row["tokens"] / row["training_seconds"] / row["device_count"]
        for row in done.to_dict("records")
        if row["training_seconds"] > 0
    ]
    middle = sum(rates) / len(rates)
    if own_gpus:
        return _Rate(middle, min(rates), max(rates), "measured")
    # the way to other GPU counts is forecast: its interval is the forecast's
    return _Rate(middle, middle * forecast.low / forecast.value, middle * forecast.high / forecast.value, "measured")


def _comparison(run: PublishedRun | None, tokens: float) -> dict[str, Any] | None:
    if run is None or run.hours_per_trillion_tokens is None:
        return None
    return {
        "model": run.model,
        "gpu_hours": run.hours_per_trillion_tokens * tokens / 1e12,
        "source": run.sources.get("device_hours") or run.sources["device_hours_per_trillion_tokens"],
    }


def _assumptions(
    cell: CellConfig, larger: CellConfig, rate: _Rate, ratio: float, run: PublishedRun | None
) -> list[str]:
    own, there = cell.parallelism.world_size, larger.parallelism.world_size
    found = [
        f"the rate is {rate.basis}"
        + (f" on {own:,} GPUs; the interval is that of the runs" if rate.basis == "measured" and own == there else ""),
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
