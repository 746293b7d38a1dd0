"""The metric of all that was spent, and money in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo.evidence.grid import Cell, Grid
from octavo.evidence.metrics.arithmetic import holds
from octavo.evidence.metrics.base import Expectation, Measurement, NoParameters
from octavo.layout import split_horizon
from octavo.records import Estimate, Part


def all_in_cost(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """All that was taken over what the final runs took: research, failed and repeated runs besides and before them.

    The claim is about the research that led to a final run, which no single experiment holds: it is answered by what
    others published of theirs (`configs/published/research.yaml`). What this experiment took besides its final runs is
    told beside it, and decides nothing. Planned ablations are no such excess: they are a line of their own.
    """
    from octavo.forecast.published import published_research

    del parameters
    arithmetic = []
    for name, one in published_research().items():
        ratio = one.all_in_over_final
        part = Part(
            label=name, effect=Estimate(value=ratio, n=0, unit="ratio"),
            verdict=holds(ratio, expectation.relation, expectation.margin),
            note=f"{one.text} ({one.measured}; {one.source})",
        )  # fmt: skip
        arithmetic.append((part, f"{name}: all of it took {ratio:.2f} times the final runs ({one.measured})"))
    if not arithmetic:
        return Measurement(missing="what others published of research before their final runs (configs/published)")
    parts, unit = _here(grid)
    remark = ""
    if parts and parts["final runs"]:
        excess = parts["failed, repeated and superseded attempts"] + parts[ABANDONED]
        remark = (
            f"In this experiment the final runs took {amount(parts['final runs'])} {unit}; what failed, was repeated "
            f"or was abandoned took {amount(excess)} {unit} more ({1 + excess / parts['final runs']:.2f} times as much "
            f"in all), and planned ablations {amount(parts['planned ablations'])} {unit}. Searches in other "
            "experiments are not counted."
        )
    data = {"part": list(parts), "amount": list(parts.values()), "unit": [unit] * len(parts)} if parts else {}
    return Measurement(arithmetic=arithmetic, data=data, remark=remark)


ABANDONED = "cells and seeds that the experiment no longer has"


def _here(grid: Grid) -> tuple[dict[str, float], str]:
    """What an experiment's attempts took, by what they were for, and its unit; nothing where they are not known."""
    runs, whole = grid.runs, [split_horizon(cell) for cell in grid.attempts["cell"]]
    if not whole:
        return {}, ""
    attempts = grid.attempts.assign(cell=[trunk for trunk, _ in whole])
    shorter = np.array([steps is not None for _, steps in whole], dtype=bool)
    column = "cost" if runs["cost_all_in"].notna().all() and runs["cost_all_in"].sum() > 0 else "device_hours"
    ended = runs["status"].isin(("completed", "diverged"))
    final, planned = (
        float(runs.loc[ended & of, f"{column}_final"].sum())
        for of in (runs["ablation"].isna(), runs["ablation"].notna())
    )
    known = set(zip(runs["cell"], runs["seed"], strict=True))
    listed = np.array([one in known for one in zip(attempts["cell"], attempts["seed"], strict=True)])
    elsewhere = float(attempts.loc[~listed, column].sum())
    lengths = float(attempts.loc[shorter & listed, column].sum())
    lost = float(attempts[column].sum()) - final - planned - elsewhere - lengths
    parts = {
        "final runs": final,
        "failed, repeated and superseded attempts": lost if lost > 1e-9 * final else 0.0,  # what rounding leaves
        ABANDONED: elsewhere,
        **({"runs of shorter horizons": lengths} if shorter.any() else {}),
        "planned ablations": planned,
    }
    return parts, grid.currency or "" if column == "cost" else "device-hours"


def amount(value: float) -> str:
    """Money or hours: two decimals, or two significant digits of less than one."""
    digits = 2 if value >= 1 or value == 0 else 1 - int(np.floor(np.log10(abs(value))))
    return f"{value:,.{digits}f}"


def cost_of_a_seed(cells: Mapping[str, Cell]) -> float | None:
    """What one more seed of some cells would cost, as theirs did so far; None where that is not known."""
    costs = [cell.runs["cost_all_in"].mean() for cell in cells.values()]
    return float(sum(costs)) if costs and np.isfinite(costs).all() else None
