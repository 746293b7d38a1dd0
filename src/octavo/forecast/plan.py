"""The plan of an experiment: what every cell will need and cost, before anything is spent; and the gate.

One row per cell, over all seeds (of seeds until decided, the most that there can be); a shorter horizon is a row of its
own, with what its decays take. An experiment whose plan exceeds its `budget` is stopped here, before its first job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from octavo.accounting.money import (
    Basis,
    carbon_kg,
    cost,
    energy_at_the_meter,
    hour_price,
    hours_name,
    price_range,
    price_source,
    rent_rows,
)
from octavo.configuration import place
from octavo.errors import OctavoError
from octavo.experiment.attention import unfused_cells
from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.memory import RESERVE, fits, memory
from octavo.forecast.published import published_runs, runs_beside
from octavo.forecast.rows import published_beside
from octavo.forecast.steps import StepForecast
from octavo.layout import split_horizon
from octavo.models.flops import flops_per_token
from octavo.models.parameters import EQUAL_SIZES, TRAINED, count_parameters

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
    "tokens": "int64",  # that one run trains on: of a shorter horizon, those of its decay
    "tokens_seen": "int64",  # by the run's end: of a shorter horizon, its trunk's too
    "devices": "int64",
    "memory_bytes_per_device": "int64",
    "memory_fits": "bool",
    "tokens_per_second_per_device": "float64",
    "tokens_per_second_low": "float64",
    "tokens_per_second_high": "float64",
    "interval": "float64",  # coverage of low to high
    "measured_runs": "int64",  # of the cell, whose rate it is; 0: it is forecast
    "median_absolute_error": "float64",  # of the speed, on models left out of the fit; null where not measured
    "hours_per_run": "float64",
    "device_hours": "float64",  # of all seeds
    "cost": "float64",
    "cost_low": "float64",  # at the high end of speed and the low end of the price
    "cost_high": "float64",
    "currency": "string",
    "energy_kwh": "float64",  # at the building's meter
    "basis": "string",  # what the forecast rests on
}
"""Columns of plan.csv and their types."""


STEP_GROUPS = {
    "a dense model's work": ("dense work",),  # on CPUs, where no more is told apart
    "more for experts": ("experts on CPUs",),
    "matrix products": ("linear layers", "feed-forward", "experts", "output head"),
    "attention": ("attention",),
    "memory-bound work": ("memory", "activation", "optimizer"),
    "sorting tokens for experts": ("expert dispatch", "biases of experts"),
    "messages": ("all-to-all", "tensor parallel", "context parallel", "point-to-point", "data parallel"),
    "waiting": ("host", "pipeline bubble"),
    "sums in a fixed order": ("determinism",),
    "FP8 emulation": ("FP8 emulation",),
}
"""What the plan draws of a step -> parts of its forecast."""


def plan_frame(experiment: Experiment, steps: dict[str, StepForecast]) -> pd.DataFrame:
    """One row per cell, the grid first and then the ablations; the columns are COLUMNS.

    `steps`: forecast steps by cell, as in `plan_record`.
    """
    import pandas as pd

    prices = price_range(experiment.cluster, experiment.device)
    rows = [_row(experiment, cell, steps[name], prices) for name, cell in experiment.cells.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)  # type: ignore[arg-type]


def _row(experiment: Experiment, cell: CellConfig, step: StepForecast, prices: tuple[float, float]) -> dict[str, Any]:
    device, cluster, training = experiment.device, experiment.cluster, cell.training
    count = count_parameters(cell.model)
    held = memory(cell.model, training, cell.parallelism, cell.precision, device).total
    tokens = cell.own_steps * training.tokens_per_step
    hours = cell.own_steps * step.seconds / 3600
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
        "tokens_seen": training.total_steps * training.tokens_per_step,
        "devices": step.devices,
        "memory_bytes_per_device": held,
        "memory_fits": fits(held, device),
        "tokens_per_second_per_device": step.tokens_per_second_per_device,
        "tokens_per_second_low": step.low,
        "tokens_per_second_high": step.high,
        "interval": step.interval,
        "measured_runs": step.measured_runs,
        "median_absolute_error": step.median_absolute_error,
        "hours_per_run": hours,
        "device_hours": device_hours,
        "cost": cost(cluster, device, device_hours),
        "cost_low": prices[0] * device_hours * step.tokens_per_second_per_device / step.high,
        "cost_high": prices[1] * device_hours * step.tokens_per_second_per_device / step.low,
        "currency": cluster.currency,
        "energy_kwh": energy_at_the_meter(cluster, device, device_hours),
        "basis": step.basis,
    }


def check_budget(experiment: Experiment, frame: pd.DataFrame) -> None:
    """Raise an OctavoError, with the cells by cost, if the plan may exceed the experiment's budget.

    What is held against the budget is the upper end: hours at the low end of speed, money at the high end of the price,
    too.
    """
    budget, currency = experiment.file.budget, experiment.cluster.currency
    if budget.gpu_hours is not None and experiment.device.kind != "gpu":
        raise OctavoError(
            f"a budget of GPU-hours, and cluster {experiment.file.cluster} has no GPUs",
            where=place(experiment.path, ("budget", "gpu_hours")),
            fix="set budget.device_hours instead",
        )
    hours = _sum(frame, "device_hours"), _hours_at(frame, "tokens_per_second_low")
    money = _sum(frame, "cost"), _sum(frame, "cost_high")
    for key, limit, (planned, most), unit in (
        ("device_hours", budget.device_hours, hours, "device-hours"),
        ("gpu_hours", budget.gpu_hours, hours, "GPU-hours"),
        ("cost", budget.cost, money, currency),
    ):
        if limit is not None and most > limit:
            raise OctavoError(
                f"the plan needs up to {most:,.4g} {unit} ({planned:,.4g} in the middle of its range), the budget is "
                f"{limit:,.4g}\n{cells_by_cost(experiment, frame)}",
                where=place(experiment.path, ("budget", key)),
                fix="leave out cells, seeds or ablations, train on fewer tokens, or raise the budget",
            )


def cells_by_cost(experiment: Experiment, frame: pd.DataFrame) -> str:
    """A line per cell, the dearest first."""
    rows = frame.sort_values(["cost", "device_hours"], ascending=False, kind="stable").to_dict("records")
    width = max(len(row["cell"]) for row in rows)
    unit = hours_name([experiment.device.kind])
    return "\n".join(
        f"  {row['cell']:<{width}}  {row['cost']:>12,.4g} {row['currency']} ({row['cost_low']:,.4g} to "
        f"{row['cost_high']:,.4g})  {row['device_hours']:>12,.4g} {unit}"
        for row in rows
    )


def plan_record(experiment: Experiment, frame: pd.DataFrame, steps: dict[str, StepForecast]) -> dict[str, Any]:
    """The plan as one JSON value: cells, totals, prices, and what the forecast rests on."""
    import json

    totals = {name: _sum(frame, name) for name in ("device_hours", "cost", "cost_low", "cost_high", "energy_kwh")}
    share = _sum(frame.dropna(subset=["ablation"]), "device_hours") / totals["device_hours"]
    price = hour_price(experiment.cluster, experiment.device)
    prices = price_range(experiment.cluster, experiment.device)
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
        "price_low": prices[0],
        "price_high": prices[1],
        "other_price": _other_price(experiment),
        "rents": rent_rows(experiment.cluster, experiment.device),
        "owned": _owned(experiment),
        "basis": "; ".join(dict.fromkeys(note for step in steps.values() for note in step.notes)),
        "runs": len(experiment.cells) * len(experiment.file.all_seeds),
        "least_runs": len(experiment.cells) * len(experiment.file.first_seeds),
        "cells": json.loads(frame.to_json(orient="records", double_precision=15) or "[]"),
        "steps": {name: _grouped(step) for name, step in steps.items()},
        "totals": totals,
        "ablations_share": share,
        "carbon_kg": carbon_kg(experiment.cluster, totals["energy_kwh"]),
        "carbon_location": experiment.cluster.energy.location,
        "remarks": [
            *_published(experiment),
            *(f"Not planned for: {said}." for said in unfused_cells(experiment)),
            *_remarks(frame),
        ],
        "budget": experiment.file.budget.model_dump(mode="json"),
    }


def _other_price(experiment: Experiment) -> dict[str, Any] | None:
    """Owning where the plan rents, or the other way round, if the cluster file has both."""
    cluster = experiment.cluster
    other: Basis = "ownership" if cluster.price == "rental" else "rental"
    if getattr(cluster, other) is None:
        return None
    low, high = price_range(cluster, experiment.device, other)
    return {
        "basis": other,
        "per_device_hour": hour_price(cluster, experiment.device, other).total,
        "low": low,
        "high": high,
    }


def _owned(experiment: Experiment) -> dict[str, Any] | None:
    """What an hour owned costs at the use that the cluster file says; None where it does not."""
    cluster, device = experiment.cluster, experiment.device
    if cluster.ownership is None:
        return None
    low, high = price_range(cluster, device, "ownership")
    value = hour_price(cluster, device, "ownership").total
    return {"value": value, "low": low, "high": high, "use": cluster.ownership.utilisation.middle}


def _published(experiment: Experiment) -> Iterator[str]:
    """What was published for a cell's model, device and recipe, beside its forecast: throughput, and whole runs."""
    if experiment.device.kind != "gpu":
        return
    runs = published_runs()
    for cell in experiment.cells.values():
        if cell.ablation or cell.trunk:
            continue
        asked = experiment.device, cell.precision.recipe
        throughput = published_beside(cell.model, *asked)
        for found in filter(None, [throughput, *runs_beside(runs, cell.model.name, *asked)]):
            yield f"Published for the model of {cell.cell}: {found}."


def _remarks(frame: pd.DataFrame) -> Iterator[str]:
    """What the planned runs cannot tell, whatever they show."""
    of_grid = frame[frame["ablation"].isna()].to_dict("records")
    rows = [row for row in of_grid if split_horizon(row["cell"])[1] is None]
    ratios = {row["cell"]: row["tokens_seen"] / row["active_parameters"] for row in rows}
    if short := {cell: ratio for cell, ratio in ratios.items() if round(ratio) < TRAINED}:
        least, most = min(short.values()), max(short.values())
        span = f"{least:.3g}" if f"{least:.3g}" == f"{most:.3g}" else f"{least:.3g} to {most:.3g}"
        yield (
            f"Under-trained: {len(short)} of {len(ratios)} cells of the grid see {span} tokens per active parameter, "
            f"and compute-optimal training takes about {TRAINED} (arXiv 2203.15556). What is cheaper there need not be "
            "where models are trained longer."
        )
    sizes: dict[str, set[int]] = {}
    for row in rows:
        sizes.setdefault(row["architecture"], set()).add(row["active_parameters"])
    dense, moe = (sizes.get(role, set()) for role in ("dense", "moe"))
    if dense and moe and not any(max(a, b) / min(a, b) - 1 <= EQUAL_SIZES for a in moe for b in dense):
        named = [" and ".join(f"{size / 1e9:.3g} B" for size in sorted(one)) for one in (dense, moe)]
        yield (
            f"The dense model has {named[0]} active parameters, the mixture {named[1]}: claims at equal active "
            "parameters (claim 1 is one) cannot be tested with this pair. "
            "octavo match MODEL --by active_parameters finds one that can."
        )


def _grouped(step: StepForecast) -> dict[str, float]:
    """Seconds of a step by group of parts."""
    return {group: sum(step.breakdown.get(part, 0.0) for part in members) for group, members in STEP_GROUPS.items()}


def _hours_at(frame: pd.DataFrame, rate: str) -> float:
    """Device-hours of all cells if each ran at one end of its interval: their errors are alike, they do not cancel."""
    return float((frame["device_hours"] * frame["tokens_per_second_per_device"] / frame[rate]).to_numpy().sum())


def _sum(frame: pd.DataFrame, column: str) -> float:
    return float(frame[column].to_numpy().sum())
