"""Run folders into tables: what counts, what it cost, and what a damaged file gets."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from octavo.accounting.ledger import attempts_frame
from octavo.errors import OctavoError
from octavo.evidence.aggregate import BATCH, aggregate
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.metrics import read_metrics_table
from octavo.records import read_table
from tests.synthetic import Failure, Truth, write_experiment

EXACT = Truth(seed_sd=0.0, run_sd=0.0, step_sd=0.0)
SMALL: dict[str, Any] = {
    "precisions": ("bf16",), "ablations": {}, "seeds": (1, 2), "steps": 40, "validation_interval": 10, "truth": EXACT,
}  # fmt: skip


def experiment_of(root: Path) -> tuple[Experiment, ExperimentFolder, pd.DataFrame]:
    experiment = load_experiment("synthetic", ConfigFolders(root / "configs"))
    with contextlib.chdir(root):
        attempts = attempts_frame(experiment)
    return experiment, ExperimentFolder(root / "results" / "synthetic"), attempts


def tables(root: Path, ablation: str | None = None, **arguments: Any) -> dict[str, pd.DataFrame]:
    write_experiment(root, **{**SMALL, **arguments})
    return again(root, ablation)


def again(root: Path, ablation: str | None = None) -> dict[str, pd.DataFrame]:
    folder = aggregate(*experiment_of(root), ablation)
    return {
        "runs": read_table(folder.runs_table, "runs", made_by="octavo aggregate"),
        "steps": read_table(folder.steps_table, "steps", made_by="octavo aggregate"),
        "attempts": read_table(folder.attempts_table, "attempts", made_by="octavo aggregate"),
    }


def row(frame: pd.DataFrame, cell: str, seed: int) -> pd.Series:
    found = frame[(frame["cell"] == cell) & (frame["seed"] == seed)]
    assert len(found) == 1
    return found.iloc[0]


def test_runs_on_different_text_are_not_put_together(tmp_path: Path) -> None:
    tables(tmp_path)
    path = tmp_path / "results/synthetic/runs/moe-bf16/seed-2/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_manifest_sha256": "f" * 64}))
    with pytest.raises(OctavoError, match="moe-bf16/seed-2 was trained on another data set"):
        again(tmp_path)


def test_a_row_per_run_and_a_row_per_step(tmp_path: Path) -> None:
    found = tables(tmp_path)
    assert len(found["runs"]) == 4
    assert found["steps"].groupby(["cell", "seed"]).size().tolist() == [40] * 4
    one = found["steps"].query("cell == 'dense-bf16' and seed == 1")
    assert one["step"].tolist() == list(range(1, 41))
    assert one["tokens"].tolist() == [1024 * step for step in range(1, 41)]
    assert one["validation_loss"].notna().sum() == 4
    assert one["device_hours"].iloc[-1] == pytest.approx(40 * 1.0 / 3600)


def test_an_undisturbed_run_cost_what_its_only_attempt_held(tmp_path: Path) -> None:
    """40 steps of 1.35 s and 10 s of start-up on one device at 2 USD an hour."""
    run = row(tables(tmp_path)["runs"], "moe-bf16", 1)
    hours = (40 * 1.35 + 10) / 3600
    assert run["device_hours_final"] == pytest.approx(hours)
    assert run["device_hours_all_in"] == pytest.approx(hours)
    assert run["cost_all_in"] == pytest.approx(2 * hours)
    assert run["attempts"] == 1


def test_steps_that_were_lost_are_all_in_and_not_final(tmp_path: Path) -> None:
    """Killed after step 25, gone on from the checkpoint at 20: of the first attempt's 25 steps 20 count."""
    found = tables(tmp_path, failures={("dense-bf16", 1): Failure(25)})
    run = row(found["runs"], "dense-bf16", 1)
    first, second = (10 + 25) / 3600, (10 + 20) / 3600
    assert run["attempts"] == 2
    assert run["device_hours_final"] == pytest.approx(first * 20 / 25 + second)
    assert run["device_hours_all_in"] == pytest.approx(first + second)
    steps = found["steps"].query("cell == 'dense-bf16' and seed == 1")
    assert steps["step"].tolist() == list(range(1, 41))


def test_a_superseded_run_is_all_in_and_not_final(tmp_path: Path) -> None:
    run = row(tables(tmp_path, superseded=[("dense-bf16", 2)])["runs"], "dense-bf16", 2)
    assert run["device_hours_all_in"] - run["device_hours_final"] == pytest.approx(1.0)


def test_unfinished_and_diverged_runs_say_so(tmp_path: Path) -> None:
    found = tables(tmp_path, unfinished={("dense-bf16", 1): 12}, diverged=[("moe-bf16", 2)])
    unfinished, diverged = row(found["runs"], "dense-bf16", 1), row(found["runs"], "moe-bf16", 2)
    assert (unfinished["status"], unfinished["steps"]) == ("unfinished", 12)
    assert pd.isna(unfinished["validation_loss"])
    assert diverged["status"] == "diverged"
    assert pd.isna(diverged["validation_loss"])


def test_a_run_that_has_not_begun_is_a_row_without_steps(tmp_path: Path) -> None:
    found = tables(tmp_path, cells=["dense-bf16"])
    run = row(found["runs"], "moe-bf16", 1)
    assert (run["status"], run["steps"], run["attempts"]) == ("unfinished", 0, 0)
    assert set(found["steps"]["cell"]) == {"dense-bf16"}


def test_what_a_dropped_cell_cost_stays_in_the_books(tmp_path: Path) -> None:
    tables(tmp_path)
    path = tmp_path / "configs" / "experiments" / "synthetic.yaml"
    import yaml

    value = yaml.safe_load(path.read_text())
    del value["models"]["moe"]
    path.write_text(yaml.safe_dump(value))
    found = again(tmp_path)
    assert set(found["runs"]["cell"]) == {"dense-bf16"}
    assert set(found["attempts"]["cell"]) == {"dense-bf16", "moe-bf16"}
    assert found["attempts"].groupby("cell")["superseded"].all()["moe-bf16"]


def test_an_ablation_has_its_cells_and_their_baselines_alone(tmp_path: Path) -> None:
    found = tables(tmp_path, ablation="no_shared_expert", **{"ablations": None})
    assert set(found["runs"]["cell"]) == {"moe-bf16", "moe-bf16+no_shared_expert"}
    assert set(found["attempts"]["cell"]) == {"moe-bf16", "moe-bf16+no_shared_expert"}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    tables(tmp_path)
    path = tmp_path / "results/synthetic/runs/dense-bf16/seed-1/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"\n", 0, -1) - 20])
    lines = whole.count(b"\n")
    assert read_metrics_table(path).num_rows == lines - 2


def test_runs_that_are_read_together_are_what_each_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one attempt, of two, of none, and cut short, beside each other in one batch."""
    failures = {("dense-bf16", 1): Failure(25), ("dense-bf16", 3): Failure(31), ("moe-bf16", 4): Failure(12)}
    changed = {"failures": failures, "unfinished": {("dense-bf16", 2): 12}, "diverged": [("moe-bf16", 2)]}
    tables(tmp_path, seeds=(1, 2, 3, 4), validation_interval=7, **changed)
    shutil.rmtree(tmp_path / "results/synthetic/runs/moe-bf16/seed-3")
    assert BATCH >= 4
    together = again(tmp_path)
    monkeypatch.setattr("octavo.evidence.aggregate.BATCH", 1)
    for name, table in again(tmp_path).items():
        pd.testing.assert_frame_equal(table, together[name], check_exact=True)
    assert set(together["runs"]["steps"]) == {40, 12, 0}


# --- damaged files --------------------------------------------------------------------------------------------------


def damage(root: Path, name: str) -> Path:
    tables(root)
    return root / "results/synthetic/runs/dense-bf16/seed-1" / name


def test_a_changed_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = damage(tmp_path, "metrics.jsonl")
    lines = path.read_text().splitlines()
    lines[6] = lines[6].replace('"step":', '"step":x')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OctavoError, match="line 7") as caught:
        again(tmp_path)
    assert str(caught.value.where).endswith("metrics.jsonl:7")


def test_a_line_without_its_step_is_an_error(tmp_path: Path) -> None:
    path = damage(tmp_path, "metrics.jsonl")
    with path.open("a") as file:
        file.write('{"tokens": 1, "time": 0.0, "attempt": 1}\n')
    with pytest.raises(OctavoError, match="step"):
        again(tmp_path)


@pytest.mark.parametrize("name", ["step", "attempt"])
def test_a_number_below_zero_is_an_error(tmp_path: Path, name: str) -> None:
    path = damage(tmp_path, "metrics.jsonl")
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), name: -1})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(OctavoError, match=name) as caught:
        again(tmp_path)
    assert str(caught.value.where).endswith("metrics.jsonl:5")


def test_a_result_cut_short_is_an_error(tmp_path: Path) -> None:
    path = damage(tmp_path, "result.json")
    path.write_text(path.read_text()[:80])
    with pytest.raises(OctavoError, match="not whole JSON") as caught:
        again(tmp_path)
    assert "result.json" in str(caught.value.where)


def test_a_result_of_another_configuration_is_an_error(tmp_path: Path) -> None:
    path = damage(tmp_path, "result.json")
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "run_fingerprint": "0" * 64}))
    with pytest.raises(OctavoError, match="another configuration"):
        again(tmp_path)


def test_a_failure_leaves_the_tables_of_before(tmp_path: Path) -> None:
    path = damage(tmp_path, "result.json")
    folder = ExperimentFolder(tmp_path / "results" / "synthetic")
    before = {p: p.read_bytes() for p in (folder.runs_table, folder.steps_table, folder.attempts_table)}
    path.write_text("{")
    with pytest.raises(OctavoError):
        again(tmp_path)
    assert {p: p.read_bytes() for p in before} == before
    assert not list(folder.path.glob(".*"))


def test_attempts_of_a_damaged_file_are_an_error(tmp_path: Path) -> None:
    path = damage(tmp_path, "attempts.jsonl")
    path.write_text('{"attempt": "first"}\n')
    with pytest.raises(OctavoError, match="line 1"):
        again(tmp_path)
