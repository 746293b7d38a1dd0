"""Leverage on a ladder: how many times the FLOPs, hours or money the dense model needs for the mixture's loss.

Read at the lowest loss that both reached, from a fit to all planned ends (`octavo.scaling`), whose draws hold the noise
of seeds and the choice of the form. Efficiency leverage: arXiv 2507.17702.
"""

from __future__ import annotations

import numpy as np

from octavo.configuration import Section
from octavo.evidence.grid import Cell, Grid
from octavo.evidence.metrics.base import Expectation, Measurement, Phrase, Sample, times
from octavo.records import Axis, Estimate
from octavo.scaling import leverage as scaling

AXES: dict[Axis, scaling.Axis] = {"model_flops": "flops", "device_hours": "device_hours", "cost": "cost"}
"""Axes of comparisons that leverage is read on, in the fit's words."""


class OnAxis(Section):
    """Which leverage a claim is about."""

    axis: scaling.Axis
    """What the dense model needs more of: model FLOPs, device-hours or money."""


def leverage(grid: Grid, parameters: OnAxis, expectation: Expectation) -> Measurement:
    """What the dense model needs over what the mixture needs, at the lowest loss that both reached."""
    spent = scaling.WORDS[parameters.axis]

    def phrase(effect: Estimate) -> str:
        return f"on the ladder the dense model needs {times(effect)} times the {spent} of the mixture for the same loss"

    return _measured(grid, parameters.axis, expectation, 1.0, phrase)


def ladder_ratio(grid: Grid, axis: scaling.Axis, expectation: Expectation) -> Measurement:
    """The inverse: what the mixture needs over what the dense model needs."""

    def phrase(effect: Estimate) -> str:
        spent = f"{times(effect)} times the {scaling.WORDS[axis]} of the dense model"
        return f"on the ladder the mixture needs {spent} for the same loss"

    return _measured(grid, axis, expectation, -1.0, phrase)


def _measured(grid: Grid, axis: scaling.Axis, expectation: Expectation, sign: float, phrase: Phrase) -> Measurement:
    ladder = grid.ladder
    if ladder is None:
        return Measurement(missing="a ladder: the same pair of architectures at several sizes")
    found = ladder.draws(axis)
    if isinstance(found, np.ndarray) and not np.isfinite(np.median(found)):
        found = "one of the two architectures does not reach the lowest loss of the other's ladder"
    if isinstance(found, str):
        return Measurement(untested={"the ladder": found}, incomplete=True)
    cells: list[Cell] = [cell for cell in grid.cells.values() if cell.name in ladder.cells]
    sample = Sample(
        label="the ladder",
        values=sign * found,
        unit="ratio",
        relation=expectation.relation,
        margin=float(np.log(expectation.margin)),
        phrase=phrase,
        cells=tuple(cells),  # type: ignore[arg-type]
        runs=[f"{cell.name}/seed-{seed}" for cell in cells for seed in cell.runs.index],
        fitted_to=ladder.seeds,
    )
    return Measurement([sample], data={"margin": expectation.margin, "loss": ladder.losses[0]})
