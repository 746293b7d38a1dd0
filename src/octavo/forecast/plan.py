"""The plan of an experiment: what every cell will need and cost, before anything is spent; and the gate.

One row per cell, over all seeds (of seeds until decided, the most that there can be). An experiment whose plan exceeds
its `budget` is stopped here, before its first job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.accounting.money import Basis, cost, device_energy_kwh, hour_price, hours_name, price_source
from octavo.configuration import place
from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.memory import RESERVE, fits, memory
from octavo.forecast.steps import StepForecast, forecast_step
from octavo.models.flops import flops_per_token
from octavo.models.parameters import count_parameters

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

COLUMNS = {
    "cell": "string",
    "architecture": "string",
    "precision": "string",
    "ablation": "string",  # null: of the grid
    "seeds": "int64",
    "total_parameters": "int64",
    "active_parameters": "int64",  # per token: output head counted, input embedding not
    "flops_per_token": "float64",  # model FLOPs, forward and backward
    "tokens": "int64",  # of one run
    "devices": "int64",
    "memory_bytes_per_device": "int64",
    "memory_fits": "bool",
    "tokens_per_second_per_device": "float64",
    "tokens_per_second_low": "float64",
    "tokens_per_second_high": "float64",
    "interval": "float64",  # coverage of low to high
    "median_absolute_error": "float64",  # of the speed, on models left out of the fit; null where not measured
    "hours_per_run": "float64",
    "device_hours": "float64",  # of all seeds
    "cost": "float64",
    "currency": "string",
    "energy_kwh": "float64",
    "basis": "string",  # what the forecast rests on
}
"""Columns of plan.csv and their types."""


STEP_GROUPS = {
    "a dense model's work": ("dense work",),  # on CPUs, where no more is told apart
    "more for experts": ("experts on CPUs",),
    "matrix products": ("linear layers", "feed-forward", "experts", "output head"),
    "attention": ("attention",),
    "memory-bound work": ("memory", "activation", "optimizer"),
    "sorting tokens for experts": ("expert dispatch",),
    "messages": ("all-to-all", "tensor parallel", "context parallel", "point-to-point", "data parallel"),
    "waiting": ("host", "pipeline bubble"),
    "FP8 emulation": ("FP8 emulation",),
}
"""What the plan draws of a step -> parts of its forecast."""


def plan_frame(experiment: Experiment) -> pd.DataFrame:
    """One row per cell, the grid first and then the ablations; the columns are COLUMNS."""
    import pandas as pd

    rows = [_row(experiment, cell) for cell in experiment.cells.values()]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)  # type: ignore[arg-type]


def _row(experiment: Experiment, cell: CellConfig) -> dict[str, Any]:
    device, cluster, training = experiment.device, experiment.cluster, cell.training
    count = count_parameters(cell.model)
    step: StepForecast = forecast_step(cell, cluster, device)
    held = memory(cell.model, training, cell.parallelism, cell.precision, device).total
    tokens = training.total_steps * training.tokens_per_step
    hours = training.total_steps * step.seconds / 3600
    seeds = len(experiment.file.all_seeds)
    device_hours = hours * step.devices * seeds
    return {
        "cell": cell.cell,
        "architecture": cell.architecture,
        "precision": cell.precision.recipe,
        "ablation": cell.ablation,
        "seeds": seeds,
        "total_parameters": count.total,
        "active_parameters": count.active_in_products,
        "flops_per_token": flops_per_token(cell.model, training.sequence_length),
        "tokens": tokens,
        "devices": step.devices,
        "memory_bytes_per_device": held,
        "memory_fits": fits(held, device),
        "tokens_per_second_per_device": step.tokens_per_second_per_device,
        "tokens_per_second_low": step.low,
        "tokens_per_second_high": step.high,
        "interval": step.interval,
        "median_absolute_error": step.median_absolute_error,
        "hours_per_run": hours,
        "device_hours": device_hours,
        "cost": cost(cluster, device, device_hours),
        "currency": cluster.currency,
        "energy_kwh": device_energy_kwh(cluster, device, device_hours),
        "basis": step.basis,
    }


def check_budget(experiment: Experiment, frame: pd.DataFrame) -> None:
    """Raise an OctavoError, with the cells by cost, if the plan exceeds the experiment's budget."""
    budget, currency = experiment.file.budget, experiment.cluster.currency
    if budget.gpu_hours is not None and experiment.device.kind != "gpu":
        raise OctavoError(
            f"a budget of GPU-hours, and cluster {experiment.file.cluster} has no GPUs",
            where=place(experiment.path, ("budget", "gpu_hours")),
            fix="set budget.device_hours instead",
        )
    hours, money = _sum(frame, "device_hours"), _sum(frame, "cost")
    for key, limit, planned, unit in (
        ("device_hours", budget.device_hours, hours, "device-hours"),
        ("gpu_hours", budget.gpu_hours, hours, "GPU-hours"),
        ("cost", budget.cost, money, currency),
    ):
        if limit is not None and planned > limit:
            raise OctavoError(
                f"the plan needs {planned:,.4g} {unit}, the budget is {limit:,.4g}\n{cells_by_cost(experiment, frame)}",
                where=place(experiment.path, ("budget", key)),
                fix="leave out cells, seeds or ablations, train on fewer tokens, or raise the budget",
            )


def cells_by_cost(experiment: Experiment, frame: pd.DataFrame) -> str:
    """A line per cell, the dearest first."""
    rows = frame.sort_values(["cost", "device_hours"], ascending=False, kind="stable").to_dict("records")
    width = max(len(row["cell"]) for row in rows)
    unit = hours_name([experiment.device.kind])
    return "\n".join(
        f"  {row['cell']:<{width}}  {row['cost']:>12,.4g} {row['currency']}  {row['device_hours']:>12,.4g} {unit}"
        for row in rows
    )


def plan_record(experiment: Experiment, frame: pd.DataFrame) -> dict[str, Any]:
    """The plan as one JSON value: cells, totals, prices, and what the forecast rests on."""
    import json

    steps = {
        cell.cell: forecast_step(cell, experiment.cluster, experiment.device) for cell in experiment.cells.values()
    }
    totals = {name: _sum(frame, name) for name in ("device_hours", "cost", "energy_kwh")}
    share = _sum(frame.dropna(subset=["ablation"]), "device_hours") / totals["device_hours"]
    price = hour_price(experiment.cluster, experiment.device)
    totals["device_hours_low"] = _hours_at(frame, "tokens_per_second_high")
    totals["device_hours_high"] = _hours_at(frame, "tokens_per_second_low")
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "description": experiment.file.description,
        "cluster": experiment.file.cluster,
        "cluster_description": experiment.cluster.description,
        "device": experiment.device.name,
        "device_kind": experiment.device.kind,
        "device_memory_bytes": int(experiment.device.memory_gib * 2**30),
        "device_memory_reserve_bytes": RESERVE[experiment.device.kind],
        "hours_are": hours_name([experiment.device.kind]),
        "currency": experiment.cluster.currency,
        "price_per_device_hour": price.total,
        "price_basis": price.basis,
        "price_source": price_source(experiment.cluster, experiment.cluster.price),
        "other_price": _other_price(experiment),
        "basis": "; ".join(dict.fromkeys(note for step in steps.values() for note in step.notes)),
        "runs": len(experiment.cells) * len(experiment.file.all_seeds),
        "least_runs": len(experiment.cells) * len(experiment.file.first_seeds),
        "cells": json.loads(frame.to_json(orient="records", double_precision=15) or "[]"),
        "steps": {name: _grouped(step) for name, step in steps.items()},
        "totals": totals,
        "ablations_share": share,
        "budget": experiment.file.budget.model_dump(mode="json"),
    }


def _other_price(experiment: Experiment) -> dict[str, Any] | None:
    """Owning where the plan rents, or the other way round, if the cluster file has both."""
    cluster = experiment.cluster
    other: Basis = "ownership" if cluster.price == "rental" else "rental"
    if getattr(cluster, other) is None:
        return None
    return {"basis": other, "per_device_hour": hour_price(cluster, experiment.device, other).total}


def _grouped(step: StepForecast) -> dict[str, float]:
    """Seconds of a step by group of parts."""
    return {group: sum(step.breakdown.get(part, 0.0) for part in members) for group, members in STEP_GROUPS.items()}


def _hours_at(frame: pd.DataFrame, rate: str) -> float:
    """Device-hours of all cells if each ran at one end of its interval: their errors are alike, they do not cancel."""
    return float((frame["device_hours"] * frame["tokens_per_second_per_device"] / frame[rate]).to_numpy().sum())


def _sum(frame: pd.DataFrame, column: str) -> float:
    return float(frame[column].to_numpy().sum())
