"""The pipeline for real: what one command makes, what runs again and what does not, and that a kill loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from tests.tiny import LIMIT, REPOSITORY, SNAKEMAKE, TINY, Checkout, changed, environment, octavo

REPORT = "results/tiny/report.pdf"


class Pipeline(Checkout):
    """A checkout, and what its pipeline made or would make."""

    def would_run(self, target: str = REPORT, *options: str) -> set[str]:
        """The outputs of the runs, and the names of the other rules, that a dry run lists."""
        output = self.snakemake(target, *options, "--dry-run")
        jobs = re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE)
        trained = re.findall(r"output: results/tiny/runs/(\S+)/result\.json", output)
        return {*(job for job in jobs if job not in ("train", "all")), *trained}

    def results(self) -> dict[str, dict[str, Any]]:
        found = sorted((self.root / "results" / "tiny" / "runs").glob("*/seed-*/result.json"))
        return {f"{path.parent.parent.name}/{path.parent.name}": json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    checkout = Pipeline(tmp_path_factory.mktemp("undisturbed"))
    checkout.snakemake(REPORT)
    yield checkout
    checkout.write(TINY)


RUNS = {f"{model}-{precision}/seed-1" for model in ("dense", "moe") for precision in ("bf16", "fp8_blockwise")}


def test_one_command_makes_everything(undisturbed: Pipeline) -> None:
    folder = undisturbed.root / "results" / "tiny"
    assert set(undisturbed.results()) == RUNS
    assert all(result["status"] == "completed" for result in undisturbed.results().values())
    for name in ("plan.csv", "plan.pdf", "runs.parquet", "steps.parquet", "attempts.parquet", "claims.json",
                 "figures/loss.svg", "figures/loss.csv", "report.html"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    text = " ".join(page.extract_text() for page in PdfReader(folder / "report.pdf").pages)
    assert "MoE FP8 blockwise (emulated)" in text


def test_nothing_runs_twice(undisturbed: Pipeline) -> None:
    assert undisturbed.would_run() == set()


def test_a_provisional_ledger_is_made_again_and_then_no_more(undisturbed: Pipeline, tmp_path: Path) -> None:
    """`octavo aggregate` counts how often it left the ledger provisional, as where sacct did not answer."""
    tables, root = "results/tiny/runs.parquet", tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root)
    checkout = Pipeline(root)
    assert checkout.would_run(tables) == set()
    (root / "results" / "tiny" / "ledger.json").write_text('{"schema_version": 1, "times_provisional": 1}')
    assert checkout.would_run(tables) == {"aggregate"}
    checkout.snakemake(tables)
    assert checkout.would_run(tables) == set()


def test_figures_made_again_train_nothing(undisturbed: Pipeline) -> None:
    assert undisturbed.would_run(REPORT, "--forcerun", "figures") == {"figures", "report"}


def test_a_cell_that_changed_is_trained_again_and_no_other(undisturbed: Pipeline) -> None:
    undisturbed.write({**TINY, "overrides": {"moe": {"training.optimizer.learning_rate": 1e-3}}})
    changed = undisturbed.would_run()
    undisturbed.write(TINY)
    assert {one for one in changed if "/" in one} == {"moe-bf16/seed-1", "moe-fp8_blockwise/seed-1"}
    assert "data" not in changed


def test_text_that_changed_stops_the_pipeline(undisturbed: Pipeline) -> None:
    path = undisturbed.root / "text" / "document-3.txt"
    text = path.read_text()
    path.write_text(text + "more")
    output = undisturbed.snakemake(REPORT, "--dry-run", status=1)
    path.write_text(text)
    assert "the text is not what the data set was made of: document-3.txt has SHA-256" in output
    assert undisturbed.would_run() == set()  # newer, and the same bytes


def test_data_made_anew_of_other_text_train_every_run_again(undisturbed: Pipeline, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root)
    checkout = Pipeline(root)
    (root / "text" / "document-3.txt").write_text("entirely other words " * 200)
    (folder,) = (root / "results" / "data").glob("*")
    shutil.rmtree(folder)
    checkout.octavo("data", "tiny")
    assert {one for one in checkout.would_run() if "/" in one} == RUNS


def test_what_verdicts_and_reports_rest_on_makes_them_again_and_trains_nothing(undisturbed: Pipeline) -> None:
    """A claim, and a price; on one device-hour rest the plan and the tables too."""
    evidence = {"claims", "figures", "report"}
    for name, again in (
        ("claims/02-fp8-loss-error.yaml", evidence),
        ("clusters/laptop.yaml", {"plan", "aggregate", *evidence}),
    ):
        path = undisturbed.root / "configs" / name
        text = path.read_text()
        path.write_text(text + "# a remark\n")
        changed = undisturbed.would_run()
        path.write_text(text)
        assert changed == again, name


def test_a_plan_that_is_gone_is_made_again_and_starts_no_finished_run(undisturbed: Pipeline) -> None:
    """Also where something else runs again, and where a run is missing: that one alone is trained."""
    plan, result = (
        undisturbed.root / "results/tiny" / name for name in ("plan.csv", "runs/dense-bf16/seed-1/result.json")
    )
    kept = plan.read_bytes(), result.read_bytes()
    plan.unlink()
    without_plan = undisturbed.would_run(REPORT, "--forcerun", "aggregate")
    result.unlink()
    without_run = undisturbed.would_run(REPORT, "--forcerun", "aggregate")
    for path, content in zip((plan, result), kept, strict=True):
        path.write_bytes(content)
    assert without_plan == {"plan", "aggregate", "claims", "figures", "report"}
    assert without_run == {*without_plan, "dense-bf16/seed-1"}


def test_an_experiment_on_the_same_text_does_not_prepare_it_again(undisturbed: Pipeline) -> None:
    undisturbed.write({**TINY, "seeds": [2]}, "before_tiny")  # the first by name that has this text
    listed = undisturbed.snakemake("results/before_tiny/report.pdf", "--dry-run")
    (undisturbed.root / "configs/experiments/before_tiny.yaml").unlink()
    assert "rule train:" in listed
    assert "rule data:" not in listed


def test_snakemakes_own_report_shows_figures_reports_and_the_plan(undisturbed: Pipeline, tmp_path: Path) -> None:
    undisturbed.snakemake(REPORT, "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        shown = "\n".join(archive.namelist())
    for name in ("plan.pdf", "report.pdf", "report.html", "loss.svg"):
        assert name in shown, shown


def test_snakemakes_lint_finds_no_more_than_what_common_smk_says_is_meant() -> None:
    """`snakefmt` is run by `make lint`."""
    done = subprocess.run(
        [str(SNAKEMAKE), "--lint"], cwd=REPOSITORY, env=environment(REPOSITORY), text=True, capture_output=True,
        check=False, timeout=LIMIT,
    )  # fmt: skip
    found = re.findall(r"^ +\* (.*?):?$", done.stdout + done.stderr, re.MULTILINE)
    assert set(found) == {"Specify a conda environment or container for each rule."}


def test_what_a_run_took_is_measured(undisturbed: Pipeline) -> None:
    table = undisturbed.root / "results/tiny/benchmarks/dense-bf16-seed-1.tsv"
    header, row = (line.split("\t") for line in table.read_text().splitlines())
    assert float(dict(zip(header, row, strict=True))["s"]) > 0


def test_more_frequent_checkpoints_train_nothing(undisturbed: Pipeline) -> None:
    training = {**TINY["training"], "checkpoints": {"interval": 4}}
    undisturbed.write({**TINY, "training": training})
    changed = undisturbed.would_run()
    undisturbed.write(TINY)
    assert not {one for one in changed if "/" in one}


def test_an_ablation_trains_its_own_runs_alone(undisturbed: Pipeline) -> None:
    ablation = {"description": "a generalist", "cells": ["moe-bf16"], "change": {"model.experts.shared_size": 32}}
    undisturbed.write({**TINY, "ablations": {"generalist": ablation}})
    listed = undisturbed.would_run("results/tiny/ablations/generalist/report.pdf")
    undisturbed.write(TINY)
    assert {one for one in listed if "/" in one} == {"moe-bf16+generalist/seed-1"}


def test_a_pipeline_killed_while_it_trains_ends_with_the_same_numbers(undisturbed: Pipeline, tmp_path: Path) -> None:
    checkout = Pipeline(tmp_path)
    process = checkout.start(REPORT)
    runs = checkout.root / "results" / "tiny" / "runs"
    deadline = time.monotonic() + LIMIT
    while not any(runs.glob("*/seed-1/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in _descendants(process.pid):  # everything at once, as a power cut does
        os.kill(child, signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    assert any(runs.glob("*/seed-1/checkpoints/step-*")), "there was something to go on from"
    checkout.snakemake(REPORT, "--unlock")  # the lock is what a power cut leaves
    checkout.snakemake(REPORT)
    attempts = [json.loads(line) for path in runs.glob("*/seed-1/attempts.jsonl") for line in path.open()]
    assert any(attempt["first_step"] > 0 for attempt in attempts), "a run went on from its checkpoint"
    for name, result in undisturbed.results().items():
        again = checkout.results()[name]
        for key in ("validation_loss", "training_loss", "parameters_sha256", "run_fingerprint"):
            assert again[key] == result[key], (name, key)


def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(tmp_path: Path) -> None:
    """The terminal sends SIGINT to the pipeline and to what trains, which saves first."""
    checkout = Pipeline(tmp_path, changed(TINY, {"training.steps": 300, "precisions": ["bf16"]}))
    target = "results/tiny/runs/dense-bf16/seed-1/result.json"
    run = (checkout.root / target).parent
    process = checkout.start(target)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_bytes():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert said.count("what trains saves and leaves; the same command goes on from there") == 1
    assert "Traceback" not in said
    assert not (checkout.root / target).exists()
    checkout.snakemake(target)
    first, second = (json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines())
    assert (first["exit_reason"], second["exit_reason"]) == ("signalled", "completed")
    assert 0 < first["last_step"] == second["first_step"] < 300


def test_what_a_failed_verification_found_can_be_read(undisturbed: Pipeline, tmp_path: Path) -> None:
    """Snakemake deletes what a failed job wrote: the rule records, and the check gives the exit status."""
    root = tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root)
    checkout = Pipeline(root)
    (text,) = (root / "results" / "data").glob("*/train.bin")
    text.write_bytes(bytes(text.stat().st_size))
    checkout.snakemake("results/tiny/verification.json")
    found = json.loads((root / "results" / "tiny" / "verification.json").read_text())
    assert not found["passed"]
    assert [one["run"] for one in found["checks"] if one["status"] == "damaged"] == ["data"]
    done = octavo(root, "verification", "results/tiny")
    assert done.returncode == 1, done.stderr
    assert "train.bin: the data set does not match its manifest" in done.stdout
    assert "FAILED" in done.stdout


def _descendants(parent: int) -> list[int]:
    """A process and all below it, the parent first."""
    found = [parent]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def test_a_second_pipeline_on_the_same_folder_says_so_and_leaves(undisturbed: Pipeline) -> None:
    lock = undisturbed.root / ".snakemake" / "locks"
    lock.mkdir(parents=True, exist_ok=True)
    target = undisturbed.root / REPORT
    content = target.read_bytes()
    (lock / "0.input.lock").write_text("")
    (lock / "0.output.lock").write_text(f"{REPORT}\n")
    try:
        target.unlink()
        output = undisturbed.snakemake(REPORT, status=1)
        assert "lock" in output.lower()
    finally:
        for path in lock.iterdir():
            path.unlink()
        target.write_bytes(content)


def test_an_experiment_that_is_wrong_stops_before_anything_runs(undisturbed: Pipeline) -> None:
    undisturbed.write({**TINY, "trainning": {}})
    output = undisturbed.snakemake(REPORT, status=1)
    undisturbed.write(TINY)
    assert "unknown key 'trainning'" in output
    assert "tiny.yaml" in output
