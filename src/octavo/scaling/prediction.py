"""Predictions of runs that have not begun, sealed so that a later change of them, or of their date, shows.

The seal is the SHA-256 over all that the file says: what is expected, the rows it was fitted to, commit, data set and
time. It shows a change by accident or by one who does not make the seal again; that a whole file was made later shows
where its time is held against the first attempt of the runs that it is about (`prediction_problems`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import OctavoError
from octavo.files import fingerprint, read_json, write_json
from octavo.scaling.fit import Fit, fit
from octavo.scaling.ladder import Row
from octavo.scaling.leverage import AXES, choose, estimate, leverage_at, loss_at, spent

SCHEMA_VERSION = 1
PREDICTED = 0.9
"""Coverage of a prediction's intervals."""
MADE_BY = "octavo predict"


@dataclass(frozen=True)
class Planned:
    """A rung that is yet to be trained: the runs of one architecture that differ in their seed alone."""

    architecture: str
    flops: float
    """Model FLOPs of one run."""
    runs: Sequence[str]
    """Names of the runs, as `moe-bf16/seed-1`."""


def prediction(
    rows: Sequence[Row],
    planned: Sequence[Planned],
    *,
    begun: Sequence[str],
    commit: str | None,
    data_sha256: str | None,
    now: datetime,
    dense: str | None = None,
    mixture: str | None = None,
) -> dict[str, Any]:
    """The sealed prediction of planned rungs: mean loss and hours of each, and leverage where both are planned.

    `begun` are the names of runs that have an attempt; `now` is in UTC. Raises OctavoError where one of the planned
    runs is among them, or where the rows cannot be fitted.
    """
    about = sorted(run for one in planned for run in one.runs)
    if late := sorted(set(about) & set(begun)):
        raise OctavoError(
            f"{late[0]} has begun: what is said of it now is no prediction",
            expected="runs without any attempt",
            fix="predict before training; of runs that have begun, octavo leverage tells what the fit says",
        )
    if not about:
        raise OctavoError("no run is yet to be trained, so there is nothing to predict")
    dense, mixture = choose(rows, dense, mixture)
    rows = [row for row in rows if row.architecture in (dense, mixture)]
    found = fit(rows)
    expected = []
    for one in planned:
        if one.architecture not in found.curves:
            raise OctavoError(
                f"no trained run is of the architecture {one.architecture}", expected=", ".join(found.curves)
            )
        loss = loss_at(found, one.architecture, one.flops, runs=len(one.runs), confidence=PREDICTED)
        log_hours = spent(
            found.curves[one.architecture], "device_hours", np.full(len(found.noise), math.log(one.flops))
        )
        hours = None if loss is None or log_hours is None else estimate(np.exp(log_hours), PREDICTED)
        expected.append({
            "architecture": one.architecture, "flops": one.flops, "runs": sorted(one.runs),
            "determined": loss is not None,
            "loss": None if loss is None else asdict(loss),
            "device_hours": None if hours is None else asdict(hours),
        })  # fmt: skip
    contents = {
        "schema_version": SCHEMA_VERSION,
        "interval": PREDICTED,
        "expected": expected,
        "leverage": [] if mixture is None else _leverage(found, expected, dense, mixture),
        "rows": [asdict(row) for row in rows],
        "commit": commit,
        "data_sha256": data_sha256,
        "sealed": now.isoformat(timespec="seconds"),
    }
    return {**contents, "seal": fingerprint(contents)}


def write_prediction(path: Path, sealed: Mapping[str, Any]) -> None:
    """Write a sealed prediction. Raises OctavoError where there is one: it is not made again."""
    if path.exists():
        raise OctavoError(
            "there is a prediction", where=path, expected="none: a prediction is made once",
            fix="keep it; remove it only where the runs that it is about are configured otherwise",
        )  # fmt: skip
    write_json(path, dict(sealed))


def read_prediction(path: Path) -> dict[str, Any]:
    """A prediction whose seal is whole. Raises OctavoError for one that was changed."""
    found = read_json(path, made_by=MADE_BY)
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
        raise OctavoError("the file is no prediction of this version", where=path, fix=f"make it again: {MADE_BY}")
    if found.get("seal") != fingerprint({key: value for key, value in found.items() if key != "seal"}):
        raise OctavoError(
            "the seal does not fit what the file says: it was changed after it was sealed", where=path,
            expected="the SHA-256 of its contents", fix="take the file as it was sealed, or do without a prediction",
        )  # fmt: skip
    return found


def prediction_problems(
    sealed: Mapping[str, Any], started: Mapping[str, datetime], data_sha256: str | None = None
) -> list[str]:
    """Why a prediction may not be called one, a sentence each; nothing where it may.

    `started` says when the first attempt at each run began, for those that have; `data_sha256` of the data that they
    were trained on.
    """
    when = datetime.fromisoformat(sealed["sealed"])
    said = [
        f"{run} began at {started[run].isoformat(timespec='seconds')}, and this was sealed at {sealed['sealed']}"
        for one in sealed["expected"]
        for run in one["runs"]
        if run in started and started[run] <= when
    ]
    if data_sha256 is not None and sealed["data_sha256"] not in (None, data_sha256):
        said.append(f"it is about other data ({sealed['data_sha256'][:12]})")
    return said


def against_measured(sealed: Mapping[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each expected rung beside the mean loss of the rows of its architecture and FLOPs; those that have none left out.

    `rows` are those of the runs that it is about. `inside` says whether the mean lies in the interval.
    """
    beside = []
    for one in sealed["expected"]:
        losses = [
            row.validation_loss
            for row in rows
            if row.architecture == one["architecture"] and abs(row.flops / one["flops"] - 1) < 0.01
        ]
        if not losses:
            continue
        measured, said = math.exp(float(np.mean(np.log(losses)))), one["loss"]
        beside.append({
            **one, "measured": measured, "measured_runs": len(losses),
            "inside": None if said is None else _within(measured, said),
        })  # fmt: skip
    return beside


def _within(value: float, said: Mapping[str, float | None]) -> bool:
    low, high = said["low"], said["high"]
    return (low is None or low <= value) and (high is None or value <= high)


def _leverage(found: Fit, expected: Sequence[Mapping[str, Any]], dense: str, mixture: str) -> list[dict[str, Any]]:
    """Leverage at the loss that the mixture's planned rungs are expected to end with."""
    said = []
    for one in expected:
        if one["architecture"] != mixture or one["loss"] is None:
            continue
        loss = one["loss"]["value"]
        for axis in AXES:
            if (at := leverage_at(found, axis, loss, dense, mixture, confidence=PREDICTED)) is not None:
                said.append({"axis": axis, "loss": loss, **asdict(at), "interval": PREDICTED})
    return said
