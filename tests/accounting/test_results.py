"""A run whose files are not those of its result reaches no table, and `octavo status` names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.accounting.ledger import attempts_frame
from octavo.accounting.results import layouts_by_attempts
from octavo.accounting.status import run_statuses
from octavo.cli import app
from octavo.errors import OctavoError
from octavo.evidence.aggregate import aggregate
from octavo.experiment.load import load_experiment
from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import AttemptRecord
from tests.synthetic import write_experiment

CELL = "dense-bf16"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentFolder:
    """One cell, two seeds, 20 steps, with tables."""
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    only = {"seeds": (1, 2), "precisions": ("bf16",), "ablations": {}, "steps": 20}
    write_experiment(tmp_path, **only)  # type: ignore[arg-type]
    found = ExperimentFolder(Path("results/synthetic"))
    experiment = load_experiment("synthetic")
    aggregate(experiment, found, attempts_frame(experiment))
    return found


def attempt(number: int, first_step: int, layout: str | None, devices: int = 2) -> AttemptRecord:
    return AttemptRecord(
        attempt=number, start=datetime(2026, 12, 1, tzinfo=UTC), host="n", nodes=["n"], device_kind="cpu",
        device_count=devices, first_step=first_step, run_fingerprint="x", layout=layout,
    )  # fmt: skip


def test_of_a_runs_layouts_those_count_whose_steps_do() -> None:
    """Tensor 2 went on after step 20 and saved nothing; data 4 went on from there; data 2 again after step 10."""
    tries = [attempt(1, 0, "data 2"), attempt(2, 20, "tensor 2"), attempt(3, 20, "data 4", 4), attempt(4, 40, "data 4")]
    found = [(one.after_step, one.layout, one.devices) for one in layouts_by_attempts(tries)]
    assert found == [(0, "data 2", 2), (20, "data 4", 4)]
    found = [(one.after_step, one.layout) for one in layouts_by_attempts([*tries, attempt(5, 10, "data 2")])]
    assert found == [(0, "data 2")]
    assert layouts_by_attempts([attempt(1, 0, None), attempt(2, 10, "data 2")]) == []  # not recorded


def empty_metrics(run: RunFolder, _: RunFolder) -> str:
    run.metrics.write_text("")
    return "metrics.jsonl was changed: SHA-256 e3b0c44298fc instead of "  # SHA-256 of nothing


def another_seeds_metrics(run: RunFolder, other: RunFolder) -> str:
    """By a rename, which keeps the times that a program can set."""
    copy = run.path / "copy"
    shutil.copy2(other.metrics, copy)
    os.utime(copy, ns=(0, 0))
    copy.rename(run.metrics)
    return "metrics.jsonl was changed: SHA-256 "


def another_loss(run: RunFolder, _: RunFolder) -> str:
    value = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**value, "validation_loss": 1.25}))
    return (
        f"result.json does not follow from metrics.jsonl: validation_loss is 1.25 instead of {value['validation_loss']}"
    )


def another_mean_loss(run: RunFolder, _: RunFolder) -> str:
    value = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**value, "training_loss": 1.25}))
    return f"result.json does not follow from metrics.jsonl: training_loss is 1.25 instead of {value['training_loss']}"


def another_time(run: RunFolder, _: RunFolder) -> str:
    """Hours are made of it."""
    value = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**value, "training_seconds": 0.5}))
    return (
        "result.json does not follow from metrics.jsonl: training_seconds is 0.5 instead of "
        f"{value['training_seconds']}"
    )


def no_attempts(run: RunFolder, _: RunFolder) -> str:
    run.attempts.write_text("")
    return "attempts.jsonl was changed: SHA-256 e3b0c44298fc instead of "


def no_provenance(run: RunFolder, _: RunFolder) -> str:
    run.provenance.unlink()
    return "provenance.json was changed: SHA-256 none instead of "


@pytest.mark.parametrize("damage", [another_mean_loss, another_time])
def test_a_result_says_what_its_steps_say(
    folder: ExperimentFolder, damage: Callable[[RunFolder, RunFolder], str]
) -> None:
    expected = damage(folder.run(CELL, 2), folder.run(CELL, 1))
    done = CliRunner().invoke(app, ["aggregate", str(folder.path)])
    assert isinstance(done.exception, OctavoError)
    assert done.exception.found == f"1 run cannot be trusted: dense-bf16/seed-2: {expected}"


@pytest.mark.parametrize("damage", [empty_metrics, another_seeds_metrics, another_loss, no_attempts, no_provenance])
def test_a_run_whose_files_are_not_its_results_is_named_before_tables(
    folder: ExperimentFolder, damage: Callable[[RunFolder, RunFolder], str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.path.glob("*.parquet")}
    expected = damage(folder.run(CELL, 2), folder.run(CELL, 1))
    done = CliRunner().invoke(app, ["aggregate", str(folder.path)])
    assert isinstance(done.exception, OctavoError)
    assert done.exception.found.startswith("1 run cannot be trusted: dense-bf16/seed-2: ")
    assert expected in done.exception.found
    assert {path.name: path.read_bytes() for path in folder.path.glob("*.parquet")} == before

    states = {(one.cell, one.seed): one for one in run_statuses(load_experiment("synthetic"))}
    assert states[(CELL, 1)].state == "done"
    assert states[(CELL, 2)].state == "damaged"
    assert expected in str(states[(CELL, 2)].error)


def test_every_such_run_is_named(folder: ExperimentFolder) -> None:
    for run in folder.run_folders():
        run.attempts.write_text("")
    experiment = load_experiment("synthetic")
    with pytest.raises(OctavoError, match=r"4 runs cannot be trusted: dense-bf16/seed-1: .*; moe-bf16/seed-2: "):
        aggregate(experiment, folder, attempts_frame(experiment))


def test_a_result_says_what_its_configuration_says(folder: ExperimentFolder) -> None:
    """Active parameters decide which cells are compared."""
    result = folder.run(CELL, 1).result
    value = json.loads(result.read_text())
    result.write_text(json.dumps({**value, "active_parameters": 7}))
    experiment = load_experiment("synthetic")
    with pytest.raises(OctavoError, match=f"active_parameters is 7 instead of {value['active_parameters']}"):
        aggregate(experiment, folder, attempts_frame(experiment))
