"""A ladder's planned ends as rows of a scaling fit, and what the fit says of its dense models and mixtures.

Only runs in the precision that every rung has are rows: BF16 where that is one of several. `octavo.scaling` fits them;
nothing here knows how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.accounting.money import cost
from octavo.errors import OctavoError
from octavo.evidence.lengths import planned_ends
from octavo.evidence.time_side import TimeSide, ratio_draws, time_sides
from octavo.experiment.ladder import KINDS, Kind
from octavo.experiment.load import load_experiment
from octavo.files import write_json
from octavo.layout import ExperimentFolder, split_horizon
from octavo.models.flops import flops_per_token
from octavo.records import AttemptRecord, Result, read_lines, read_record
from octavo.scaling import fit as scaling
from octavo.scaling.fit import Fit
from octavo.scaling.ladder import Row, write_rows
from octavo.scaling.leverage import (
    SCHEMA_VERSION,
    Axis,
    estimate,
    leverage_document,
    leverage_draws,
    loss_at,
    measured_losses,
    supported,
)
from octavo.scaling.prediction import Planned, prediction, write_prediction

if TYPE_CHECKING:
    import pandas as pd

    from octavo.experiment.run import Experiment

FARTHER = (10.0, 100.0)
"""Times the compute of the largest rung to which leverage is carried on."""
COVERAGE = 0.95
POINTS = 40
"""Of a fitted curve."""


def ladder_precision(experiment: Experiment) -> str:
    """The precision that every rung is trained in: BF16, or the first such."""
    of_rung = {
        precision: {cell.architecture for cell in experiment.grid if cell.precision.recipe == precision}
        for precision in dict.fromkeys(cell.precision.recipe for cell in experiment.grid)
    }
    whole = [precision for precision, roles in of_rung.items() if len(roles) == len(KINDS) * len(experiment.rungs)]
    return "bf16" if "bf16" in whole or not whole else whole[0]


def ladder_ends(ends: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Of planned ends (`octavo.evidence.lengths`) those that are a ladder's, in the precision of all its rungs."""
    roles = [rung.role(kind) for rung in experiment.rungs for kind in rung.models]
    return ends[
        ends["architecture"].isin(roles)
        & (ends["precision"] == ladder_precision(experiment))
        & ends["ablation"].isna()
        & ends["validation_loss"].notna()
    ]


def rows_of(ends: pd.DataFrame, experiment: Experiment) -> list[Row]:
    """Rows of `planned_ends` that are a ladder's; architectures are `dense` and `moe`."""
    kinds: dict[str, Kind] = {rung.role(kind): kind for rung in experiment.rungs for kind in rung.models}

    def known(value: float) -> float | None:
        return float(value) if value is not None and np.isfinite(value) and value > 0 else None

    return [
        Row(
            architecture=kinds[row["architecture"]],
            flops=float(row["flops"]),
            validation_loss=float(row["validation_loss"]),
            active_parameters=known(row["active_parameters"]),
            total_parameters=known(row["total_parameters"]),
            tokens=known(row["tokens"]),
            device_hours=known(row["device_hours"]),
            cost=known(row["cost"]),
            seed=int(row["seed"]),
        )
        for row in ends.to_dict("records")
    ]


@dataclass(frozen=True)
class LadderFit:
    """What an experiment's ladder shows, or why it cannot be fitted."""

    rows: list[Row]
    cells: frozenset[str]
    """Of the rows."""
    fit: Fit | None
    refused: str | None
    """Why there is no fit."""

    @property
    def seeds(self) -> int:
        """Seeds of the rows."""
        return len({row.seed for row in self.rows})

    @cached_property
    def losses(self) -> list[float]:
        """The mean losses of planned ends that both architectures reached, the lowest first."""
        return [] if self.fit is None else measured_losses(self.fit)

    def draws(self, axis: Axis) -> np.ndarray | str:
        """Draws of the logarithm of the leverage at the lowest common loss; why not, where there is none."""
        if self.fit is None:
            return self.refused or ""
        if not self.losses:
            return "the two architectures reached no loss in common"
        found = leverage_draws(self.fit, axis, self.losses[0])
        return f"the runs do not say their {axis.replace('_', '-')}" if found is None else found


def fitted_ladder(ends: pd.DataFrame, experiment: Experiment) -> LadderFit:
    """Fit a ladder's planned ends."""
    ends = ladder_ends(ends, experiment)
    rows, cells = rows_of(ends, experiment), frozenset(ends["cell"])
    if missing := [kind for kind in KINDS if kind not in {row.architecture for row in rows}]:
        return LadderFit(rows, cells, None, f"there are no complete runs of {' or '.join(missing)}")
    try:
        return LadderFit(rows, cells, scaling.fit(rows), None)
    except OctavoError as error:
        return LadderFit(rows, cells, None, error.found)


def seal_prediction(folder: ExperimentFolder, experiment: Experiment, commit: str | None) -> None:
    """Write prediction.json: what the largest rung is expected to show, from the results of all others.

    Raises OctavoError where the experiment has no ladder, where a run of the largest rung has begun, and where there is
    a prediction already.
    """
    _need_ladder(experiment)
    last, precision = experiment.rungs[-1], ladder_precision(experiment)
    planned = [
        Planned(
            kind,
            cell.training.total_steps * cell.training.tokens_per_step
            * flops_per_token(cell.model, cell.training.sequence_length),
            [f"{cell.cell}/seed-{seed}" for seed in experiment.file.all_seeds],
        )
        for kind in KINDS
        for cell in experiment.cells.values()
        if cell.architecture == last.role(kind) and cell.precision.recipe == precision and cell.ablation is None
    ]  # fmt: skip
    runs = [(cell, seed, folder.run(cell.cell, seed)) for cell, seed in experiment.runs()]
    begun = [f"{cell.cell}/seed-{seed}" for cell, seed, run in runs if read_lines(run.attempts, AttemptRecord)]
    results = [
        read_record(run.result, Result, made_by=f"snakemake {folder.report_pdf}")
        for cell, _, run in runs
        if not experiment.on_last_rung(cell) and cell.precision.recipe == precision and cell.ablation is None
        and run.result.exists()
    ]  # fmt: skip
    complete = [result for result in results if result.status == "completed" and result.validation_loss is not None]
    data = {result.data_manifest_sha256 for result in complete}
    write_prediction(
        folder.prediction,
        prediction(
            [_row_of_result(result, experiment) for result in complete],
            planned,
            begun=begun,
            commit=commit,
            data_sha256=data.pop() if len(data) == 1 else None,
            now=datetime.now(UTC),
            dense="dense",
            mixture="moe",
        ),
    )


def _row_of_result(result: Result, experiment: Experiment) -> Row:
    """A run's row before there are tables; without hours and money where it shares a trunk, or was resharded."""
    rung = experiment.rung(result.architecture)
    assert rung is not None, "every model of a ladder is on a rung"
    assert result.validation_loss is not None, "chosen so"
    whole = split_horizon(result.cell)[1] is None and not result.resharded
    hours = result.training_seconds * result.device_count / 3600 if whole else None
    return Row(
        architecture=next(kind for kind in KINDS if rung.role(kind) == result.architecture),
        flops=result.tokens * result.flops_per_token,
        validation_loss=result.validation_loss,
        active_parameters=result.active_parameters,
        total_parameters=result.total_parameters,
        tokens=result.tokens,
        device_hours=hours,
        cost=None if hours is None else cost(experiment.cluster, experiment.device, hours),
        seed=result.seed,
    )


def _need_ladder(experiment: Experiment) -> None:
    if not experiment.rungs:
        raise OctavoError(
            "the experiment has no ladder",
            where=experiment.path,
            expected="a section `ladder`, which makes the same pair of models at several sizes",
        )


def write_ladder(folder: ExperimentFolder, experiment: Experiment) -> None:
    """Write ladder.csv and leverage.json. Raises OctavoError where the experiment has no ladder."""
    _need_ladder(experiment)
    name = experiment.file.ladder.published if experiment.file.ladder else None
    published = load_experiment(name, experiment.configs) if name else None
    ladder = fitted_ladder(planned_ends(folder), experiment)
    write_rows(folder.ladder, ladder.rows)
    write_json(folder.leverage, findings(ladder, published))


def findings(ladder: LadderFit, published: Experiment | None) -> dict[str, Any]:
    """`leverage.json`: what `octavo leverage` says of the planned ends, the fitted losses as far as FARTHER, leverage
    carried on, and the money at published scale."""
    fit, sides = ladder.fit, time_sides(published) if published else []
    if fit is None:
        nothing = {name: [] for name in ("leverage", "extrapolation", "carried_on", "published")}
        return {
            "schema_version": SCHEMA_VERSION, "fit": None, **nothing,
            "warnings": [f"the ladder is not fitted: {ladder.refused}"],
        }  # fmt: skip
    value = leverage_document(ladder.rows, dense="dense", mixture="moe", found=fit)
    for kind, curve in fit.curves.items():
        for at in np.linspace(curve.first, curve.last + math.log(FARTHER[-1]), POINTS):
            said = loss_at(fit, kind, math.exp(at))
            if said is not None:
                value["extrapolation"].append(
                    {"flops": math.exp(at), "architecture": kind, "loss": said.value, "low": said.low,
                     "high": said.high, "determined": True}
                )  # fmt: skip
    largest = math.exp(fit.curves["moe"].last)
    value["carried_on"] = [carried_on(fit, largest * times) for times in FARTHER]
    value["published"] = [same_loss_for(fit, side) for side in sides]
    return value


def carried_on(fit: Fit, flops: float) -> dict[str, Any]:
    """Leverage in FLOPs at the loss of a mixture of so many FLOPs, with its interval; whether that is determined."""
    draws, determined = _leverage_at(fit, flops)
    return {"flops": flops, **_bounded(draws, determined=determined)}


def _bounded(logarithms: np.ndarray, *, determined: bool) -> dict[str, Any]:
    """Median and interval of a ratio's draws; all null where that is not determined, as where an end has no bound."""
    said = estimate(logarithms, COVERAGE)
    if said is None or said.low is None or said.high is None or not determined:
        return {"value": None, "low": None, "high": None, "interval": COVERAGE, "determined": False}
    value, low, high = (math.exp(one) for one in (said.value, said.low, said.high))
    return {"value": value, "low": low, "high": high, "interval": COVERAGE, "determined": True}


def _leverage_at(fit: Fit, flops: float) -> tuple[np.ndarray, bool]:
    """Draws of the logarithm of the FLOPs leverage at the loss of a mixture of so many FLOPs; whether back-tests
    support both models' compute there."""
    dense, moe = fit.curves["dense"], fit.curves["moe"]
    at = math.log(flops)
    needed = dense.log_flops(moe.loss(at))  # type: ignore[arg-type]  # a loss for each draw
    return needed - at, supported(moe, at) and supported(dense, float(np.median(needed)))


def same_loss_for(fit: Fit, side: TimeSide) -> dict[str, Any]:
    """The money that a mixture of published size needs for its loss, over the dense model's: FLOPs leverage and the
    forecast's time of a FLOP together, both with their uncertainty."""
    draws, determined = _leverage_at(fit, side.flops)
    together = _bounded(ratio_draws(side, len(draws)) - draws, determined=determined)
    return {
        "experiment": side.experiment, "cluster": side.cluster, "precision": side.precision, "dense": side.dense,
        "moe": side.moe, "flops": side.flops, "time_ratio": side.ratio, "time_low": side.low, "time_high": side.high,
        "time_interval": side.interval, "times_largest": side.flops / math.exp(fit.curves["moe"].last), **together,
    }  # fmt: skip
