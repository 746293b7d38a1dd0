"""Predictions: sealed before the runs begin, and refused the name where they were not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.scaling.ladder import Row
from octavo.scaling.prediction import (
    Planned,
    against_measured,
    prediction,
    prediction_problems,
    read_prediction,
    write_prediction,
)
from tests.scaling.test_leverage import simulated

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = [row for row in simulated(5) if row.flops < 6e19]
LARGEST = [row for row in simulated(5) if row.flops > 6e19]
PLANNED = [Planned(name, 6.4e19, [f"{name}-bf16/seed-{seed}" for seed in range(3)]) for name in ("dense", "moe")]


def sealed(**changed: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"begun": ["dense-small/seed-0"], "commit": "abc", "data_sha256": "d" * 64, "now": NOW}
    return prediction(ROWS, PLANNED, **(said | changed))


def test_the_largest_rung_is_inside_its_sealed_interval() -> None:
    beside = against_measured(sealed(), LARGEST)
    assert [(one["architecture"], one["measured_runs"], one["inside"]) for one in beside] == [
        ("dense", 3, True), ("moe", 3, True)
    ]  # fmt: skip
    assert beside[0]["device_hours"]["value"] == pytest.approx(64)  # 6.4e19 FLOPs at 1e18 an hour


def test_leverage_is_foretold_at_the_mixtures_expected_loss() -> None:
    flops = next(one for one in sealed()["leverage"] if one["axis"] == "flops")
    assert flops["low"] < 4 < flops["high"]


def test_a_changed_prediction_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    write_prediction(path, sealed())
    assert read_prediction(path)["sealed"] == "2026-03-01T12:00:00+00:00"
    found = json.loads(path.read_text())
    found["expected"][0]["loss"]["high"] += 0.1
    path.write_text(json.dumps(found))
    with pytest.raises(OctavoError, match="changed after it was sealed"):
        read_prediction(path)
    with pytest.raises(OctavoError, match="there is a prediction"):
        write_prediction(path, sealed())


def test_a_run_that_has_begun_is_not_predicted() -> None:
    with pytest.raises(OctavoError, match="moe-bf16/seed-1 has begun"):
        sealed(begun=["moe-bf16/seed-1"])


def test_a_prediction_sealed_after_a_run_began_or_of_other_data_is_none() -> None:
    early, late = {"moe-bf16/seed-1": NOW - timedelta(seconds=1)}, {"moe-bf16/seed-1": NOW + timedelta(seconds=1)}
    assert prediction_problems(sealed(), late, "d" * 64) == []
    assert "moe-bf16/seed-1 began at 2026-03-01T11:59:59" in prediction_problems(sealed(), early)[0]
    assert "other data" in prediction_problems(sealed(), {}, "e" * 64)[0]


def test_a_rung_too_far_away_is_not_determined() -> None:
    far = prediction(
        ROWS, [Planned("dense", 1.6e19 * 301, ["dense/seed-1"])], begun=[], commit=None, data_sha256=None, now=NOW
    )
    assert far["expected"][0]["determined"] is False
    assert far["expected"][0]["loss"] is None


def test_an_architecture_without_trained_runs_is_not_predicted() -> None:
    with pytest.raises(OctavoError, match="of the architecture other"):
        prediction(ROWS, [Planned("other", 6.4e19, ["x/seed-1"])], begun=[], commit=None, data_sha256=None, now=NOW)


def test_rows_are_part_of_what_is_sealed() -> None:
    assert [Row(**row) for row in sealed()["rows"]] == list(ROWS)
