"""Planned lengths: the ends of runs that were planned for their lengths, and what each of them took.

Where an experiment has horizons, a cell's runs of one seed share their beginning (warm-up, stable, decay: arXiv
2404.06395, 2405.18392): the trunk is the run of the whole length, and each shorter run begins from its checkpoint. In
the tables a shorter run is a row of its own, its cell named after the trunk's (`moe-bf16@270`), with what it took
itself. What a run of that length would have taken is its part of the trunk and its own steps: that is what comparisons
use. What was spent in all is the trunk and every decay, and is what the ledger holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.evidence.steps import floats, steps_by_run
from octavo.layout import ExperimentFolder, split_horizon
from octavo.records import read_table

if TYPE_CHECKING:
    import pandas as pd

ALL_IN = ("attempts", "device_hours_all_in", "energy_kwh_all_in", "cost_all_in")
"""Columns of `runs.parquet` in which a run of the whole length takes in those of shorter horizons."""

PLANNED_ENDS = (
    "cell", "seed", "architecture", "precision", "ablation", "active_parameters", "total_parameters", "steps", "tokens",
    "flops", "validation_loss", "device_hours", "cost", "currency",
)  # fmt: skip
"""Columns of `planned_ends`."""


def whole_lengths(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs.parquet` with the runs of the whole length alone; what those of shorter horizons took in all is in theirs.

    Null where one of the amounts is not known.
    """
    named = [split_horizon(cell) for cell in runs["cell"]]
    shorter = np.array([steps is not None for _, steps in named], dtype=bool)
    if not shorter.any():
        return runs
    trunks = runs.assign(cell=[trunk for trunk, _ in named])[
        ~shorter | (runs["attempts"] > 0)
    ]  # what never began cost 0
    sums = trunks.groupby(["cell", "seed"], sort=False)[list(ALL_IN)].agg(lambda values: values.sum(skipna=False))
    whole = runs[~shorter].set_index(["cell", "seed"])
    found = whole.assign(**{name: sums[name].reindex(whole.index) for name in ALL_IN})
    return found.reset_index()[list(runs.columns)]


def planned_ends(tables: ExperimentFolder) -> pd.DataFrame:
    """The ends of all complete runs, each of a run planned for its length: a row per cell, seed and length.

    Columns are PLANNED_ENDS; `cell` is the trunk's, whatever the length; rows are by cell and seed in the order of the
    runs, and by length. `flops`: model FLOPs. `device_hours`: training steps alone x devices, the trunk's up to where
    the run leaves it and its own; `cost`: those hours at what an hour of the trunk's steps cost in its final attempts.
    Both are NaN where they are not known, and for a run whose trunk is not complete.
    """
    import pandas as pd

    runs = read_table(tables.runs_table, "runs", made_by=f"octavo aggregate {tables.path}")
    complete = runs[runs["status"] == "completed"]
    hours = _planned_hours(
        tables, {(cell, seed) for cell, seed in zip(complete["cell"], complete["seed"], strict=True)}
    )
    paid = complete["cost_final"] / complete["training_device_hours"]
    prices = dict(zip(zip(complete["cell"], complete["seed"], strict=True), paid, strict=True))
    trunks = [split_horizon(cell)[0] for cell in complete["cell"]]
    seeds = complete["seed"].tolist()
    of_run = list(zip(complete["cell"], seeds, strict=True))
    price = np.array([prices.get(key, np.nan) for key in zip(trunks, seeds, strict=True)], dtype=float)
    took = np.array([hours.get(key, np.nan) for key in of_run], dtype=float)
    found = complete.assign(
        cell=trunks, flops=complete["tokens"] * complete["flops_per_token"], device_hours=took, cost=took * price
    )
    order = pd.Categorical(found["cell"], categories=list(dict.fromkeys(found["cell"])))
    ordered = found.assign(_order=order.codes).sort_values(["_order", "seed", "steps"], kind="stable")
    return ordered[list(PLANNED_ENDS)].reset_index(drop=True)


def _planned_hours(tables: ExperimentFolder, complete: set[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """(cell, seed) of a run -> device-hours of training steps of a run planned for that length; NaN: not known."""
    shared = {(trunk, seed) for cell, seed in complete for trunk, steps in [split_horizon(cell)] if steps is not None}
    own: dict[tuple[str, int], tuple[float, float]] = {}
    courses: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    for run, table in steps_by_run(tables, ["step", "device_hours"]):
        if run not in complete or not table.num_rows:
            continue
        step, hours = floats(table, "step"), floats(table, "device_hours")
        own[run] = step[0] - 1, hours[-1]
        if run in shared:
            courses[run] = step, hours
    found = {}
    for (cell, seed), (begins_after, hours) in own.items():
        trunk, steps = split_horizon(cell)
        before = 0.0
        if steps is not None:
            step, of_trunk = courses.get((trunk, seed), (np.empty(0), np.empty(0)))
            at = np.flatnonzero(step == begins_after)
            before = float(of_trunk[at[0]]) if len(at) else np.nan
        found[cell, seed] = before + hours
    return found
