"""What a model FLOP of a mixture costs over one of a dense model on a named cluster: the time side of published scale.

A ladder says how many times the FLOPs the dense model needs for the mixture's loss. What that is in money at another
scale follows from how fast both train there, in their own layouts, which the forecast says (`octavo.forecast.steps`).
The two forecasts' errors are taken as independent: where they have a cause in common they cancel in part, so that the
interval is rather too wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment
from octavo.forecast.steps import forecast_step
from octavo.models.parameters import count_parameters


@dataclass(frozen=True)
class TimeSide:
    """A dense model and a mixture at published scale."""

    experiment: str
    cluster: str
    precision: str
    dense: str
    """The dense model's name."""
    moe: str
    flops: float
    """Model FLOPs of the mixture's run."""
    ratio: float
    """Device-seconds, and so money, of a model FLOP of the mixture over one of the dense model."""
    low: float
    high: float
    interval: float
    """Coverage of low to high."""


def time_sides(published: Experiment) -> list[TimeSide]:
    """One for each precision of the published experiment's grid that both models are trained in.

    Raises OctavoError where it has no dense model and mixture in the same precision.
    """
    cells: dict[tuple[bool, str], CellConfig] = {}
    for cell in published.grid:
        cells.setdefault((cell.model.experts is not None, cell.precision.recipe), cell)
    found = [
        _time_side(published, cells[False, recipe], moe)
        for (mixture, recipe), moe in cells.items()
        if mixture and (False, recipe) in cells
    ]
    if not found:
        raise OctavoError(
            "the experiment has no dense model and mixture in the same precision",
            where=published.path,
            fix="name another one under ladder.published, or give it both",
        )
    return found


def _time_side(published: Experiment, dense: CellConfig, moe: CellConfig) -> TimeSide:
    steps = {cell.cell: forecast_step(cell, published.cluster, published.device) for cell in (dense, moe)}
    ours, theirs = steps[moe.cell], steps[dense.cell]
    ratio = theirs.model_tflops_per_device / ours.model_tflops_per_device
    # a mixture that is faster than forecast, and a dense model that is slower, make the ratio lower
    lower = math.hypot(math.log(ours.high_factor), math.log(theirs.low_factor))
    higher = math.hypot(math.log(ours.low_factor), math.log(theirs.high_factor))
    tokens = moe.training.total_steps * moe.training.tokens_per_step
    return TimeSide(
        experiment=published.name,
        cluster=published.file.cluster,
        precision=moe.precision.recipe,
        dense=_named(dense),
        moe=_named(moe),
        flops=tokens * ours.flops_per_token,
        ratio=ratio,
        low=ratio * math.exp(-lower),
        high=ratio * math.exp(higher),
        interval=ours.interval,
    )


def _named(cell: CellConfig) -> str:
    return f"{cell.model.name} ({count_parameters(cell.model).active_in_products / 1e9:.3g} B active)"


def ratio_draws(side: TimeSide, draws: int) -> np.ndarray:
    """Logarithms of the ratio: a normal distribution on either side of the forecast, as wide as its interval there."""
    normal = np.random.default_rng(0).standard_normal(draws)
    reach = float(special.ndtri((1 + side.interval) / 2))
    below, above = math.log(side.ratio / side.low) / reach, math.log(side.high / side.ratio) / reach
    return math.log(side.ratio) + normal * np.where(normal < 0, below, above)
