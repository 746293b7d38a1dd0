"""Each kind of tampering and rot is caught, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from verbs import octavo

from octavo.experiment.run import load_experiment
from octavo.files import sha256
from octavo.layout import ExperimentFolder
from octavo.training.seal import seal
from octavo.verification.integrity import check_files

CELL, OTHER = "moe-bf16", "dense-bf16"


def damaged(folder: ExperimentFolder) -> list[str]:
    """What is damaged: `run: note`."""
    checks = check_files(load_experiment(folder.name), folder)
    return [f"{one.run}: {one.note}" for one in checks if one.status == "damaged"]


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def test_what_nobody_touched_is_intact(folder: ExperimentFolder) -> None:
    assert damaged(folder) == []


def test_a_changed_metrics_line(folder: ExperimentFolder) -> None:
    path = folder.run(CELL, 1).metrics
    lines = path.read_text().splitlines()
    line = json.loads(lines[4])
    line["step_seconds"] = line["step_seconds"] / 2
    lines[4] = json.dumps(line)
    path.write_text("\n".join(lines) + "\n")
    assert any(one.startswith("moe-bf16/seed-1: metrics.jsonl was changed: SHA-256") for one in damaged(folder))


def test_a_changed_loss_with_its_hash_made_to_fit(folder: ExperimentFolder) -> None:
    """Whoever writes a better loss into result.json, and the metrics' hash anew, must have changed the metrics too."""
    run = folder.run(CELL, 1)
    edit_json(run.result, validation_loss=1.0, metrics_sha256=sha256(run.metrics))
    found = damaged(folder)
    assert any(
        "result.json does not follow from metrics.jsonl: validation_loss is 1.0 instead of" in one for one in found
    )


def test_results_of_two_runs_swapped(folder: ExperimentFolder) -> None:
    one, two = folder.run(CELL, 1), folder.run(CELL, 2)
    content = one.result.read_bytes()
    one.result.write_bytes(two.result.read_bytes())
    two.result.write_bytes(content)
    found = damaged(folder)
    assert any(one.startswith("moe-bf16/seed-1: result.json is of another configuration") for one in found)
    assert any("seed is 2 instead of 1" in one for one in found)


def test_a_changed_configuration(folder: ExperimentFolder) -> None:
    path = folder.run(CELL, 1).config
    path.write_text(path.read_text().replace("learning_rate: ", "learning_rate: 1"))
    assert "moe-bf16/seed-1: config.yaml is not the configuration that result.json was made under" in damaged(folder)


def test_an_attempt_taken_out_of_the_books(folder: ExperimentFolder) -> None:
    path = folder.run(CELL, 1).attempts
    edited = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**edited, "attempt": 2}) + "\n")
    assert "moe-bf16/seed-1: attempts.jsonl lacks an attempt" in damaged(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda one: one.write_bytes(one.read_bytes()[:-7] + b"changed"), "step-20/shard is not what was saved"),
        (lambda one: one.unlink(), "step-20/shard is missing"),
        (lambda one: one.with_name("more").write_bytes(b"x"), "step-20/more is not what was saved"),
        (lambda one: one.with_name("hashes.json").unlink(), "step-20 has no whole hashes.json"),
    ],
)
def test_a_changed_checkpoint(folder: ExperimentFolder, change: Callable[[Path], None], named: str) -> None:
    checkpoint = make_checkpoint(folder, CELL)
    assert damaged(folder) == []
    change(checkpoint / "shard")
    assert any(named in one for one in damaged(folder))


def test_a_swapped_checkpoint(folder: ExperimentFolder) -> None:
    """Another run's, whole and sealed."""
    other, own = make_checkpoint(folder, OTHER), make_checkpoint(folder, CELL)
    shutil.rmtree(own)
    shutil.copytree(other, own)
    assert any("checkpoints/step-20 is another run's" in one for one in damaged(folder))


@pytest.mark.parametrize("table", ["runs", "steps", "attempts"])
def test_an_edited_table(folder: ExperimentFolder, table: str) -> None:
    path = folder.path / f"{table}.parquet"
    column = {"runs": "validation_loss", "steps": "loss", "attempts": "device_hours"}[table]
    found = pq.read_table(path)
    values = found[column].to_pylist()
    values[3] = 0.5
    import pyarrow as pa

    place = found.schema.get_field_index(column)
    pq.write_table(found.set_column(place, found.schema.field(place), pa.array(values, pa.float64())), path)
    assert any(
        one.startswith(f"tables: {table}.parquet was changed: {column} in row 3 is 0.5 instead of")
        for one in damaged(folder)
    )


@pytest.mark.parametrize("table", ["runs", "steps", "attempts"])
def test_a_truncated_table(folder: ExperimentFolder, table: str) -> None:
    path = folder.path / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    assert any(one.startswith(f"tables: {table}.parquet: the table cannot be read") for one in damaged(folder))


def test_an_edited_verdict(folder: ExperimentFolder) -> None:
    text = folder.claims.read_text()
    folder.claims.write_text(text.replace('"inconclusive"', '"supported"', 1))
    assert folder.claims.read_text() != text
    assert any(
        one.startswith("tables: claims.json is not what the tables and configs/claims say") for one in damaged(folder)
    )


def test_the_verdict_is_recorded_and_can_be_asked_for(folder: ExperimentFolder, root: Path) -> None:
    asked = ("verify", "results/synthetic")
    assert octavo(root, *asked, "--sample", "0").returncode == 0
    assert octavo(root, *asked, "--check").returncode == 0
    edit_json(folder.run(CELL, 1).result, validation_loss=1.0)
    assert octavo(root, *asked, "--check").returncode == 0  # it looks at the record alone
    assert octavo(root, *asked, "--sample", "0", "--record").returncode == 0
    assert not json.loads(folder.verification.read_text())["passed"]
    assert octavo(root, *asked, "--check").returncode == 1
    folder.verification.unlink()
    missing = octavo(root, *asked, "--check")
    assert missing.returncode == 1
    assert "octavo verify results/synthetic" in missing.stderr  # what makes it


def test_a_data_set_that_differs(folder: ExperimentFolder, root: Path) -> None:
    (data,) = (root / "results/data").iterdir()
    (data / "train.bin").write_bytes(bytes(200))
    assert any("data: train.bin: the data set does not match its manifest" in one for one in damaged(folder))


def test_a_data_set_made_anew_of_other_text(folder: ExperimentFolder, root: Path) -> None:
    (data,) = (root / "results/data").iterdir()
    edit_json(data / "manifest.json", sources=[])
    assert any("data: moe-bf16/seed-1 was trained on another data set" in one for one in damaged(folder))


def make_checkpoint(folder: ExperimentFolder, cell: str) -> Path:
    run = folder.run(cell, 1)
    checkpoint = run.checkpoints / "step-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "shard").write_bytes(b"tensors of " + cell.encode())
    result = json.loads(run.result.read_text())
    seal(checkpoint, 20, result["run_fingerprint"], result["data_manifest_sha256"])
    return checkpoint
