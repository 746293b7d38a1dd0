"""Each kind of tampering and rot is caught, and named."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from synthetic import hashes

from octavo.experiment.load import load_experiment
from octavo.experiment.run import RunIdentity
from octavo.files import sha256
from octavo.layout import ExperimentFolder
from octavo.records import read_table, write_table
from octavo.training.seal import seal
from octavo.verification.bundle import write_bundle
from octavo.verification.integrity import check_files
from tests.tiny import octavo

CELL, OTHER, FP8 = "moe-bf16", "dense-bf16", "moe-fp8_blockwise"


def damaged(folder: ExperimentFolder) -> list[str]:
    """What is damaged: `run: note`."""
    checks = check_files(load_experiment(folder.name), folder)
    return [f"{one.run}: {one.note}" for one in checks if one.status == "damaged"]


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def edit_attempt(folder: ExperimentFolder, cell: str, **changes: Any) -> None:
    """Change the first run's only attempt: its times by so many seconds."""
    path = folder.run(cell, 1).attempts
    value = json.loads(path.read_text())
    for name, change in changes.items():
        moved = name in ("start", "end")
        value[name] = (datetime.fromisoformat(value[name]) + timedelta(seconds=change)).isoformat() if moved else change
    path.write_text(json.dumps(value) + "\n")


def test_what_nobody_touched_is_intact(folder: ExperimentFolder) -> None:
    assert damaged(folder) == []


def test_an_ablation_that_was_only_looked_at_has_nothing_to_verify(folder: ExperimentFolder) -> None:
    """Looks at the evidence, a log and a first report are there before its tables are."""
    begun = folder.ablation("few_experts")
    shutil.rmtree(begun.path)
    begun.look(3).parent.mkdir(parents=True)
    begun.look(3).write_text('{"after": 3, "cells": []}')
    assert damaged(folder) == []
    for path in (begun.first_report, begun.report_pdf, begun.report_html):
        path.write_text("{}")
    assert damaged(folder) == []
    begun.first_report.unlink()  # a whole report without its tables is none
    assert "ablations/few_experts/tables: runs.parquet is missing" in damaged(folder)


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


@pytest.mark.parametrize(
    ("name", "value", "source"),
    [
        ("emulated", False, "config.yaml"),  # on CPUs FP8 is; not said so, its hours would count
        ("flops_per_token", 1.0, "config.yaml"),
        ("total_parameters", 1, "config.yaml"),
        ("active_parameters", 1, "config.yaml"),
        ("device_count", 8, "config.yaml"),
        ("device_kind", "NVIDIA H100 80GB HBM3", "provenance.json"),
        ("validation_loss_by_domain", {"code": 0.1}, "metrics.jsonl"),
    ],
)
def test_a_changed_value_of_a_result(folder: ExperimentFolder, name: str, value: Any, source: str) -> None:
    edit_json(folder.run(FP8, 1).result, **{name: value})
    found = damaged(folder)
    assert any(
        one.startswith(f"{FP8}/seed-1: result.json does not follow from {source}: {name} is {value!r}") for one in found
    )


def test_hours_changed_in_the_books(folder: ExperimentFolder) -> None:
    """Ten seconds more or less: the result holds the hash of the attempts that it rests on."""
    path = folder.run(CELL, 1).attempts
    edit_attempt(folder, CELL, end=10)
    digest = sha256(path)[:12]
    assert [
        one for one in damaged(folder) if one.startswith(f"{CELL}/seed-1: attempts.jsonl was changed: SHA-256 {digest}")
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"start": 3600}, "attempt 1 began after the first step that it logged"),
        ({"end": -3600}, "attempt 1 ended before"),
        ({"device_count": 2}, "attempt 1 held 2 devices instead of 1"),
        ({"device_kind": "NVIDIA B200"}, "attempts.jsonl names 'NVIDIA B200' for the run, result.json 'cpu'"),
    ],
)
def test_hours_changed_with_the_hash_made_to_fit(folder: ExperimentFolder, change: dict[str, Any], named: str) -> None:
    """An attempt holds its devices for no less than its metrics took."""
    run = folder.run(CELL, 1)
    edit_attempt(folder, CELL, **change)
    edit_json(run.result, files_sha256=hashes(run))
    assert any(named in one for one in damaged(folder))


def test_hours_of_a_run_without_a_result(folder: ExperimentFolder) -> None:
    """They are part of the all-in cost, too."""
    folder.run(CELL, 1).result.unlink()
    edit_attempt(folder, CELL, end=-3600)
    assert any(f"{CELL}/seed-1: attempts.jsonl says that attempt 1 ended before" in one for one in damaged(folder))


def test_changed_provenance_and_routing(folder: ExperimentFolder) -> None:
    run = folder.run(CELL, 1)
    edit_json(run.provenance, git_commit="1" * 40)
    run.routing.write_bytes(folder.run(CELL, 2).routing.read_bytes())
    found = "\n".join(damaged(folder))
    assert f"{CELL}/seed-1: provenance.json was changed" in found
    assert f"{CELL}/seed-1: routing.parquet was changed" in found


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
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
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


@pytest.mark.parametrize("scope", ["", "ablations/few_experts/"])
@pytest.mark.parametrize("table", ["runs", "steps", "attempts"])
def test_an_edited_table(folder: ExperimentFolder, table: str, scope: str) -> None:
    path = folder.path / f"{scope}{table}.parquet"
    column = {"runs": "validation_loss", "steps": "loss", "attempts": "device_hours"}[table]
    found = pq.read_table(path)
    values = found[column].to_pylist()
    values[3] = 0.5
    import pyarrow as pa

    place = found.schema.get_field_index(column)
    pq.write_table(found.set_column(place, found.schema.field(place), pa.array(values, pa.float64())), path)
    assert any(
        one.startswith(f"{scope}tables: {table}.parquet was changed: {column} in row 3 is 0.5 instead of")
        for one in damaged(folder)
    )


def test_an_edited_verdict(folder: ExperimentFolder) -> None:
    text = folder.claims.read_text()
    folder.claims.write_text(text.replace('"inconclusive"', '"supported"', 1))
    assert folder.claims.read_text() != text
    assert any(
        one.startswith("tables: claims.json is not what the tables and configs/claims say") for one in damaged(folder)
    )


def test_edited_tables_figures_reports_and_plans(folder: ExperimentFolder) -> None:
    """Of the experiment and of an ablation alike; one byte each."""
    ablation = folder.ablation("few_experts")
    edited = {
        folder.plan_csv: "plan: plan.csv is not what the configuration say",
        folder.plan_pdf: "plan: plan.pdf is not what the configuration say",
        folder.figures / "loss.csv": "report: figures/loss.csv is not what was made",
        folder.report_pdf: "report: report.pdf is not what was made",
        ablation.claims: "ablations/few_experts/tables: claims.json is not what the tables",
        ablation.comparisons: "ablations/few_experts/tables: comparisons.json is not what the tables",
        ablation.figures / "loss.svg": "ablations/few_experts/report: figures/loss.svg is not what was made",
        ablation.report_html: "ablations/few_experts/report: report.html is not what was made",
    }
    for path in edited:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    (folder.figures / "loss.png").unlink()
    found = damaged(folder)
    for named in (*edited.values(), "report: figures/loss.png is not what was made: it was changed, or is missing"):
        assert any(one.startswith(named) for one in found), named


ROT: dict[str, bytes | None] = {
    "no UTF-8": b"\xff\xfe\x00",
    "a character that YAML does not have": b"a: \x07\n",
    "null": b"null\n",
    "an empty object": b"{}\n",
    "nothing": b"",
    "a folder": None,
}


def rot(path: Path, content: bytes | None) -> None:
    """Put other bytes, or a folder, in place of a file."""
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ROT)
def test_rot_of_a_runs_file_is_named(folder: ExperimentFolder, kind: str) -> None:
    """Each file of another run: each is named, whatever it has become."""
    cells = [CELL, OTHER, FP8]
    runs = [folder.run(cell, seed) for seed in (1, 2) for cell in cells]
    checkpoint = make_checkpoint(folder, CELL)
    rotten = [runs[0].metrics, runs[1].attempts, runs[2].provenance, runs[3].config, runs[4].result, runs[5].routing]
    for path in (*rotten, checkpoint / "hashes.json"):
        rot(path, ROT[kind])
    found = damaged(folder)
    assert any("step-20 has no whole hashes.json" in one for one in found)
    for path in rotten:
        run = path.parent.relative_to(folder.runs).as_posix()
        assert any(one.startswith(f"{run}: ") and path.name in one for one in found), path
    assert not any("cannot be made sense of" in one for one in found)


@pytest.mark.parametrize("kind", ROT)
def test_rot_of_what_was_made_is_named(folder: ExperimentFolder, kind: str) -> None:
    ablation = folder.ablation("few_experts")
    rotten = [
        folder.runs_table, folder.claims, folder.plan_csv, folder.report_pdf, folder.figure_hashes,
        ablation.steps_table, ablation.comparisons, ablation.figures / "loss.csv", ablation.report_hashes,
    ]  # fmt: skip
    for path in rotten:
        rot(path, ROT[kind])
    found = damaged(folder)
    for path in rotten:
        scope = "ablations/few_experts/" if path.is_relative_to(ablation.path) else ""
        assert any(one.startswith((f"{scope}tables: ", f"{scope}report: ", "plan: ")) and path.name in one
                   for one in found), path  # fmt: skip
    assert not any("cannot be made sense of" in one for one in found)


def test_a_table_without_a_column(folder: ExperimentFolder) -> None:
    table = pq.read_table(folder.steps_table)
    pq.write_table(table.drop_columns(["grad_norm"]), folder.steps_table)
    assert "tables: steps.parquet: the table has no column grad_norm" in damaged(folder)


def test_the_verdict_is_written_whatever_the_files_have_become(folder: ExperimentFolder, root: Path) -> None:
    run = folder.run(CELL, 1)
    for path in (run.metrics, run.config, run.result, folder.claims, folder.runs_table):
        rot(path, b"\xff\xfe\x00")
    done = octavo(root, "verify", "results/synthetic", "--sample", "0")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert not json.loads(folder.verification.read_text())["passed"]


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
    seal(checkpoint, 20, RunIdentity(result["run_fingerprint"], "", reshards=True), result["data_manifest_sha256"], [])
    return checkpoint


# --- outdated is not damaged ----------------------------------------------------------------------------------------


def found(folder: ExperimentFolder, status: str) -> list[str]:
    """The checks of a status: `run: note`."""
    checks = check_files(load_experiment(folder.name), folder)
    return [f"{one.run}: {one.note}" for one in checks if one.status == status]


def test_another_claim_makes_verdicts_outdated(folder: ExperimentFolder) -> None:
    """A thirteenth is added; the tables and the plan do not rest on claims."""
    claims = Path("configs/claims")
    (claims / "13-new.yaml").write_text(
        (claims / "02-fp8-loss-error.yaml").read_text().replace("number: 2", "number: 13")
    )
    assert damaged(folder) == []
    assert {one.split()[1] for one in found(folder, "outdated")} == {"claims.json"}
    done = octavo(Path.cwd(), "verify", "results/synthetic", "--sample", "0")
    assert done.returncode == 0, done.stderr
    assert "2 outdated: the pipeline makes them again" in done.stdout  # the experiment's and the ablation's
    octavo(Path.cwd(), "claims", "results/synthetic")
    octavo(Path.cwd(), "claims", "results/synthetic", "--ablation", "few_experts")
    assert found(folder, "outdated") == []


def test_another_price_makes_money_outdated(folder: ExperimentFolder) -> None:
    cluster = Path("configs/clusters/synthetic.yaml")
    assert "per_device_hour: 2.0" in cluster.read_text()
    cluster.write_text(cluster.read_text().replace("per_device_hour: 2.0", "per_device_hour: 3.0"))
    assert damaged(folder) == []
    names = {one.split()[1] for one in found(folder, "outdated") if not one.startswith("ablations/")}
    assert {"attempts.parquet", "runs.parquet", "claims.json", "plan.csv", "plan.pdf"} <= names
    assert "steps.parquet" not in names


def test_what_no_price_explains_is_damaged_all_the_same(folder: ExperimentFolder) -> None:
    """The price was changed, and an hour too."""
    cluster = Path("configs/clusters/synthetic.yaml")
    cluster.write_text(cluster.read_text().replace("per_device_hour: 2.0", "per_device_hour: 3.0"))
    frame = read_table(folder.runs_table, "runs", made_by="test")
    frame.loc[0, "device_hours_all_in"] *= 2
    write_table(folder.runs_table, frame, "runs")
    assert any(one.startswith("tables: runs.parquet was changed: device_hours_all_in") for one in damaged(folder))


def test_an_unzipped_bundle_is_verified_as_what_it_is(
    folder: ExperimentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no text, no tokens and no checkpoints, and misses none; what was changed in it is damaged."""
    place = tmp_path / "unzipped"
    with zipfile.ZipFile(write_bundle(folder, tmp_path / "bundle.zip")) as archive:
        archive.extractall(place)
    monkeypatch.setenv("OCTAVO_ROOT", str(place))
    monkeypatch.chdir(place)
    unzipped = ExperimentFolder(Path("results/synthetic"))
    assert damaged(unzipped) == []
    assert "bundle: every file is what ro-crate-metadata.json describes" in found(unzipped, "intact")
    done = octavo(place, "verify", "results/synthetic")
    assert done.returncode == 0, done.stdout
    assert "an unpacked bundle has no text to train on" in done.stdout
    lock = place / "requirements.lock"
    lock.write_text(lock.read_text() + "# more\n")
    assert damaged(unzipped) == ["bundle: requirements.lock is not what ro-crate-metadata.json describes"]
