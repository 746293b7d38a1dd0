"""The metric of all that was spent, and money in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo.evidence.grid import Cell, Grid
from octavo.evidence.metrics.base import Expectation, Measurement, NoParameters, Sample, times
from octavo.records import Estimate


def all_in_cost(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """Cost of all that was run (failed and repeated attempts, ablations, dropped configurations) over the cost of the
    grid's final runs, by seed; what belongs to no seed of the grid is spread evenly."""
    del parameters
    column = "cost" if grid.runs["cost_all_in"].notna().all() and grid.runs["cost_all_in"].sum() > 0 else "device_hours"
    runs, attempts = grid.runs, grid.attempts
    in_grid = runs["ablation"].isna()
    final = runs[in_grid & runs["status"].isin(("completed", "diverged"))].groupby("seed")[f"{column}_final"]
    complete = final.count() == in_grid.groupby(runs["seed"]).sum().reindex(final.count().index)
    seeds = sorted(complete.index[complete])
    if not seeds or attempts.empty:
        return Measurement(missing="the attempts of complete runs, with their hours")
    known = set(zip(runs["cell"], runs["seed"], strict=True))
    listed = [(cell, seed) in known for cell, seed in zip(attempts["cell"], attempts["seed"], strict=True)]
    spent = attempts.loc[listed].groupby("seed")[column].sum()
    elsewhere = float(attempts.loc[~np.array(listed), column].sum())
    base = final.sum().loc[seeds]
    all_in = spent.reindex(seeds).fillna(0.0) + elsewhere / len(seeds)
    ratios = np.log((all_in / base).to_numpy(dtype=float))
    if not np.isfinite(ratios).all():
        return Measurement(missing="the attempts of complete runs, with their hours")
    if np.all(np.abs(ratios) < 1e-9):
        return Measurement(missing="something besides the final runs: here nothing failed, was repeated or was ablated")
    total, alone = float(attempts[column].sum()), float(runs.loc[in_grid, f"{column}_final"].sum())
    unit = grid.currency if column == "cost" else "device-hours"

    def phrase(effect: Estimate) -> str:
        return (
            f"all that was run cost {times(effect)} times the final runs of the grid, "
            f"{amount(total)} against {amount(alone)} {unit}"
        )

    ablations = float(attempts.loc[listed].merge(runs[["cell", "seed", "ablation"]], on=["cell", "seed"])
                      .loc[lambda frame: frame["ablation"].notna(), column].sum())  # fmt: skip
    parts = {
        "final runs": alone,
        "failed, repeated and superseded attempts": total - ablations - elsewhere - alone,
        "ablations": ablations,
        "cells and seeds that the experiment no longer has": elsewhere,
    }
    sample = Sample(
        label="this experiment", values=ratios, unit="ratio", relation=expectation.relation,
        margin=float(np.log(expectation.margin)), phrase=phrase, cells=tuple(grid.cells.values()),
        runs=[f"{cell}/seed-{seed}" for cell, seed in sorted(known)], least=0.0, of_losses=False, seeds_tell=False,
    )  # fmt: skip
    return Measurement(
        [sample], data={"part": list(parts), "amount": list(parts.values()), "unit": [unit] * len(parts)}
    )


def amount(value: float) -> str:
    """Money or hours: two decimals, or two significant digits of less than one."""
    digits = 2 if value >= 1 or value == 0 else 1 - int(np.floor(np.log10(abs(value))))
    return f"{value:,.{digits}f}"


def cost_of_a_seed(cells: Mapping[str, Cell]) -> float | None:
    """What one more seed of some cells would cost, as theirs did so far; None where that is not known."""
    costs = [cell.runs["cost_all_in"].mean() for cell in cells.values()]
    return float(sum(costs)) if costs and np.isfinite(costs).all() else None
