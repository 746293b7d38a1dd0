"""The pipeline for real: what one command makes, what runs again and what does not, and that a kill loses nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pypdf import PdfReader

from tests.conftest import REPOSITORY

SNAKEMAKE = Path(sys.executable).parent / "snakemake"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "under", "some", "old", "tree"]
MODEL = {"layers": 2, "hidden_size": 32, "attention": {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_size": 16}}
EXPERIMENT: dict[str, Any] = {
    "description": "tiny models for the pipeline's sake",
    "models": {
        "dense": {**MODEL, "feed_forward_size": 64},
        "moe": {**MODEL, "experts": {"count": 4, "top_k": 2, "size": 32, "router": {"aux_loss_weight": 0.01}}},
    },
    "precisions": ["bf16", "fp8_blockwise"],
    "seeds": [1],
    "data": {"sources": [{"kind": "files", "path": "text", "held_out": ["0.txt"]}]},
    "tokenizer": {"kind": "bytes"},
    "training": {
        "steps": 40,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "sequence_length": 32,
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"interval": 10, "sequences": 4, "final_sequences": 8},
        "checkpoints": {"interval": 5},
    },
    "cluster": "laptop",
}
REPORT = "results/tiny/report.pdf"


class Checkout:
    """A checkout with one tiny experiment, and the commands that a user types in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("clusters", "claims", "data", "published", "models"):
            shutil.copytree(REPOSITORY / "configs" / name, root / "configs" / name)
        shutil.copytree(REPOSITORY / "workflow", root / "workflow")
        shutil.copy(REPOSITORY / "Snakefile", root)
        generator = random.Random(0)
        (root / "text").mkdir()
        for number in range(6):
            (root / "text" / f"{number}.txt").write_text(" ".join(generator.choice(WORDS) for _ in range(3000)))
        self.write(EXPERIMENT)

    def write(self, experiment: dict[str, Any]) -> None:
        path = self.root / "configs" / "experiments" / "tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(experiment, sort_keys=False))

    def start(self, target: str, *options: str) -> subprocess.Popen[str]:
        command = [str(SNAKEMAKE), "--profile", "workflow/profiles/local", "--cores", "2", *options, target]
        environment = {**os.environ, "OCTAVO_ROOT": str(self.root), "PATH": "/usr/bin:/bin"}  # .venv/bin is not on it
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def run(self, target: str, *options: str, status: int = 0) -> str:
        process = self.start(target, *options)
        output, _ = process.communicate(timeout=1800)
        assert process.returncode == status, output
        return output

    def would_run(self, target: str = REPORT, *options: str) -> set[str]:
        """The outputs of the runs, and the names of the other rules, that a dry run lists."""
        output = self.run(target, *options, "--dry-run")
        jobs = re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE)
        trained = re.findall(r"output: results/tiny/runs/(\S+)/result\.json", output)
        return {*(job for job in jobs if job not in ("train", "all")), *trained}

    def results(self) -> dict[str, dict[str, Any]]:
        found = sorted((self.root / "results" / "tiny" / "runs").glob("*/seed-*/result.json"))
        return {f"{path.parent.parent.name}/{path.parent.name}": json.loads(path.read_text()) for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path_factory.mktemp("undisturbed"))
    checkout.run(REPORT)
    yield checkout
    checkout.write(EXPERIMENT)


RUNS = {f"{model}-{precision}/seed-1" for model in ("dense", "moe") for precision in ("bf16", "fp8_blockwise")}


def test_one_command_makes_everything(undisturbed: Checkout) -> None:
    folder = undisturbed.root / "results" / "tiny"
    assert set(undisturbed.results()) == RUNS
    assert all(result["status"] == "completed" for result in undisturbed.results().values())
    for name in ("plan.csv", "plan.pdf", "runs.parquet", "steps.parquet", "attempts.parquet", "claims.json",
                 "figures/loss.svg", "figures/loss.csv", "report.html"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    text = " ".join(page.extract_text() for page in PdfReader(folder / "report.pdf").pages)
    assert "MoE FP8 blockwise (emulated)" in text


def test_nothing_runs_twice(undisturbed: Checkout) -> None:
    assert undisturbed.would_run() == set()


def test_figures_made_again_train_nothing(undisturbed: Checkout) -> None:
    assert undisturbed.would_run(REPORT, "--forcerun", "figures") == {"figures", "report"}


def test_a_cell_that_changed_is_trained_again_and_no_other(undisturbed: Checkout) -> None:
    undisturbed.write({**EXPERIMENT, "overrides": {"moe": {"training.optimizer.learning_rate": 1e-3}}})
    changed = undisturbed.would_run()
    undisturbed.write(EXPERIMENT)
    assert {one for one in changed if "/" in one} == {"moe-bf16/seed-1", "moe-fp8_blockwise/seed-1"}
    assert "data" not in changed


def test_text_that_changed_stops_the_pipeline(undisturbed: Checkout) -> None:
    path = undisturbed.root / "text" / "3.txt"
    text = path.read_text()
    path.write_text(text + "more")
    output = undisturbed.run(REPORT, "--dry-run", status=1)
    path.write_text(text)
    assert "the text is not what the data set was made of: 3.txt has SHA-256" in output
    assert undisturbed.would_run() == set()  # newer, and the same bytes


def test_data_made_anew_of_other_text_train_every_run_again(undisturbed: Checkout, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root)
    checkout = object.__new__(Checkout)
    checkout.root = root
    (root / "text" / "3.txt").write_text("entirely other words " * 200)
    (folder,) = (root / "results" / "data").glob("*")
    shutil.rmtree(folder)
    subprocess.run(
        [sys.executable, "-m", "octavo", "data", "tiny"],
        cwd=root, env={**os.environ, "OCTAVO_ROOT": str(root)}, check=True, capture_output=True,
    )  # fmt: skip
    assert {one for one in checkout.would_run() if "/" in one} == RUNS


def test_more_frequent_checkpoints_train_nothing(undisturbed: Checkout) -> None:
    training = {**EXPERIMENT["training"], "checkpoints": {"interval": 4}}
    undisturbed.write({**EXPERIMENT, "training": training})
    changed = undisturbed.would_run()
    undisturbed.write(EXPERIMENT)
    assert not {one for one in changed if "/" in one}


def test_an_ablation_trains_its_own_runs_alone(undisturbed: Checkout) -> None:
    ablation = {"description": "a generalist", "cells": ["moe-bf16"], "change": {"model.experts.shared_size": 32}}
    undisturbed.write({**EXPERIMENT, "ablations": {"generalist": ablation}})
    listed = undisturbed.would_run("results/tiny/ablations/generalist/report.pdf")
    undisturbed.write(EXPERIMENT)
    assert {one for one in listed if "/" in one} == {"moe-bf16+generalist/seed-1"}


def test_a_pipeline_killed_while_it_trains_ends_with_the_same_numbers(undisturbed: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    process = checkout.start(REPORT)
    runs = checkout.root / "results" / "tiny" / "runs"
    deadline = time.monotonic() + 240
    while not any(runs.glob("*/seed-1/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in _descendants(process.pid):  # everything at once, as a power cut does
        os.kill(child, signal.SIGKILL)
    process.communicate(timeout=300)
    assert any(runs.glob("*/seed-1/checkpoints/step-*")), "there was something to go on from"
    subprocess.run([str(SNAKEMAKE), "--unlock", REPORT], cwd=checkout.root, check=True, capture_output=True)
    checkout.run(REPORT)
    attempts = [json.loads(line) for path in runs.glob("*/seed-1/attempts.jsonl") for line in path.open()]
    assert any(attempt["first_step"] > 0 for attempt in attempts), "a run went on from its checkpoint"
    for name, result in undisturbed.results().items():
        again = checkout.results()[name]
        for key in ("validation_loss", "training_loss", "parameters_sha256", "run_fingerprint"):
            assert again[key] == result[key], (name, key)


def test_what_a_failed_verification_found_can_be_read(undisturbed: Checkout, tmp_path: Path) -> None:
    """Snakemake deletes what a failed job wrote: the rule records, and the check gives the exit status."""
    root = tmp_path / "checkout"
    shutil.copytree(undisturbed.root, root)
    checkout = object.__new__(Checkout)
    checkout.root = root
    (text,) = (root / "results" / "data").glob("*/train.bin")
    text.write_bytes(bytes(text.stat().st_size))
    checkout.run("results/tiny/verification.json")
    found = json.loads((root / "results" / "tiny" / "verification.json").read_text())
    assert not found["passed"]
    assert [one["run"] for one in found["checks"] if one["status"] == "damaged"] == ["data"]
    check = [sys.executable, "-m", "octavo", "verify", "results/tiny", "--check"]
    environment = {**os.environ, "OCTAVO_ROOT": str(root)}
    done = subprocess.run(check, cwd=root, env=environment, capture_output=True, text=True, check=False)
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


def test_a_second_pipeline_on_the_same_folder_says_so_and_leaves(undisturbed: Checkout) -> None:
    lock = undisturbed.root / ".snakemake" / "locks"
    lock.mkdir(parents=True, exist_ok=True)
    target = undisturbed.root / REPORT
    content = target.read_bytes()
    (lock / "0.input.lock").write_text("")
    (lock / "0.output.lock").write_text(f"{REPORT}\n")
    try:
        target.unlink()
        output = undisturbed.run(REPORT, status=1)
        assert "lock" in output.lower()
    finally:
        for path in lock.iterdir():
            path.unlink()
        target.write_bytes(content)


def test_an_experiment_that_is_wrong_stops_before_anything_runs(undisturbed: Checkout) -> None:
    undisturbed.write({**EXPERIMENT, "trainning": {}})
    output = undisturbed.run(REPORT, status=1)
    undisturbed.write(EXPERIMENT)
    assert "unknown key 'trainning'" in output
    assert "tiny.yaml" in output
