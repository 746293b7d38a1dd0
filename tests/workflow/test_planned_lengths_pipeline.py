"""Runs of several lengths through the whole pipeline: trained after their trunk, reported, verified and bundled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from octavo.layout import ExperimentFolder, parse_run
from tests.tiny import TINY, Checkout, changed, octavo

pytest.importorskip("torch")

LENGTHS: dict[str, Any] = {
    "precisions": ["bf16"],
    "training.steps": 120,  # 100 are the fewest that decide anything
    "training.schedule": {"warmup_fraction": 0.1, "decay": "wsd", "decay_fraction": 0.2, "horizons": [0.5, 1.0]},
    "training.checkpoints.interval": 50,
    "training.evaluation.interval": 20,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("lengths"), changed(TINY, LENGTHS))
    printed = checkout.snakemake("results/tiny/report.pdf")
    assert "4 runs to train" in printed  # two models, two lengths
    return checkout


def test_each_decay_is_a_run_of_its_own_that_waits_for_its_trunk(made: Checkout) -> None:
    folder = ExperimentFolder(made.root / "results" / "tiny")
    names = [(run.cell, run.path.relative_to(folder.runs).as_posix()) for run in folder.run_folders()]
    assert names == [
        ("dense-bf16", "dense-bf16/seed-1"),
        ("dense-bf16@60", "dense-bf16/seed-1/horizon-60"),
        ("moe-bf16", "moe-bf16/seed-1"),
        ("moe-bf16@60", "moe-bf16/seed-1/horizon-60"),
    ]
    assert [parse_run(path) for _, path in names] == [(cell, 1) for cell, _ in names]
    attempts = pd.read_parquet(folder.attempts_table).set_index("cell")
    for cell in ("dense-bf16", "moe-bf16"):
        assert attempts.loc[f"{cell}@60", "start"] >= attempts.loc[cell, "end"]
        assert (attempts.loc[f"{cell}@60", "first_step"], attempts.loc[f"{cell}@60", "last_step"]) == (48, 60)


def test_status_plan_and_report_know_the_lengths(made: Checkout) -> None:
    status = json.loads(made.octavo("status", "results/tiny", "--json"))
    found = {run["cell"]: (run["state"], run["step"], run["steps"]) for run in status["runs"]}
    assert found["moe-bf16"] == ("done", 120, 120)
    assert found["moe-bf16@60"] == ("done", 60, 60)
    plan = pd.read_csv(made.root / "results/tiny/plan.csv").set_index("cell")
    # 12 of the 60 steps are trained again: a tenth of the trunk's 120
    assert plan.loc["moe-bf16@60", "device_hours"] == pytest.approx(plan.loc["moe-bf16", "device_hours"] / 10)
    comparisons = json.loads((made.root / "results/tiny/comparisons.json").read_text())["comparisons"]
    assert comparisons
    assert all(one["planned_ends"] for one in comparisons)
    page = (made.root / "results/tiny/report.html").read_text()
    assert "Besides the whole length, runs are planned for 60 steps" in page
    assert "runs planned for 60 steps, which begin from checkpoints of the others" in page


def test_numbers_are_traced_to_the_runs_of_all_lengths(made: Checkout) -> None:
    traced = made.octavo("trace", "--results", "results/tiny", "cells.moe-bf16.device_hours_all_in")
    assert "run moe-bf16/seed-1" in traced
    assert "run moe-bf16@60/seed-1" in traced
    assert "steps 49 to 60 count" in traced
    compared = made.octavo("trace", "--results", "results/tiny", "comparisons.moe-bf16/dense-bf16.device_hours.ends")
    assert [line.split()[-1] for line in compared.splitlines() if line.startswith("  run ")] == [
        "dense-bf16/seed-1", "moe-bf16/seed-1", "dense-bf16@60/seed-1", "moe-bf16@60/seed-1",
    ]  # fmt: skip
    alone = made.octavo("trace", "--results", "results/tiny", "cells.moe-bf16.validation_loss")
    assert "moe-bf16@60" not in alone


def test_a_bundle_holds_the_runs_of_all_lengths_and_its_report_is_made_again(made: Checkout, tmp_path: Path) -> None:
    made.octavo("bundle", "results/tiny", "--output", str(tmp_path / "tiny.zip"))
    done = octavo(made.root, "verify-bundle", str(tmp_path / "tiny.zip"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_decay_is_verified_by_training_the_whole_run_again(made: Checkout) -> None:
    made.octavo("verify", "results/tiny", "--sample", "4", "--gates", "repeatability")
    checks = json.loads((made.root / "results/tiny/verification.json").read_text())["checks"]
    again = {one["run"]: one["status"] for one in checks if one["gate"] == "repeatability"}
    assert again == dict.fromkeys(
        ("dense-bf16/seed-1", "dense-bf16@60/seed-1", "moe-bf16/seed-1", "moe-bf16@60/seed-1"), "identical"
    )
    assert {one["status"] for one in checks if one["gate"] == "integrity"} == {"intact"}
