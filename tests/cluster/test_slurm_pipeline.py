"""`quickstart` on a real Slurm, inside the CPU image: pre-empted, killed, capped, locked, and with Slurm's own hours.

Every run is on two nodes, whose ranks meet over gloo. One story in order, on one cluster: every test looks at another
side of it, the later ones go on from the earlier.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from octavo.layout import image_file
from tests.cluster.conftest import CLUSTER, REPOSITORY, Checkout, checkout_with_image
from tests.cluster.slurm_cluster import SlurmCluster

# the image is built where none is kept
pytestmark = [pytest.mark.cluster, pytest.mark.container, pytest.mark.timeout(3600)]

CELLS = ("dense-bf16", "dense-fp8_tensorwise", "moe-bf16", "moe-fp8_tensorwise")
PREEMPTED, KILLED = "dense-bf16", "moe-fp8_tensorwise"
ABLATION = {
    "description": "one of the four experts per token is shared by all tokens",
    "cells": ["moe-bf16"],
    "change": {"model.experts.shared_size": 72, "model.experts.top_k": 3},
}


@dataclass
class Story:
    """What happened: the checkout, and what the pipelines printed."""

    checkout: Checkout
    printed: str
    second: subprocess.CompletedProcess[str]
    """A second snakemake on the same experiment."""


def test_all_runs_finish_although_one_was_preempted_and_another_killed(story: Story) -> None:
    """The pre-empted one was told through Apptainer, and saved."""
    undisturbed = {cell: ["completed"] for cell in CELLS}
    reasons = {cell: [one["exit_reason"] for one in story.checkout.attempts("quickstart", cell)] for cell in CELLS}
    assert reasons == undisturbed | {PREEMPTED: ["signalled", "completed"], KILLED: ["killed", "completed"]}
    states = {cell: [row.state for row in books(story).query(f"cell == '{cell}'").itertuples()] for cell in CELLS}
    assert states == undisturbed | {PREEMPTED: ["preempted", "completed"], KILLED: ["killed", "completed"]}


def test_they_went_on_from_their_newest_checkpoint(story: Story) -> None:
    first, second = story.checkout.attempts("quickstart", PREEMPTED)
    assert second["first_step"] == first["last_step"] >= 60  # saved when it was told
    first, second = story.checkout.attempts("quickstart", KILLED)
    assert 50 <= second["first_step"] <= first["last_step"]


@pytest.mark.parametrize("cell", [PREEMPTED, KILLED])
def test_losses_are_those_of_the_undisturbed_run_to_the_last_bit(story: Story, cell: str) -> None:
    disturbed, undisturbed = (story.checkout.losses(name, cell) for name in ("quickstart", "undisturbed"))
    assert len(disturbed) == 150 + 3 + 1  # steps, validations after 50, 100 and 150, and the final one
    assert disturbed == undisturbed
    assert len(story.checkout.attempts("undisturbed", cell)) == 1
    parameters = {result(story, name, cell)["parameters_sha256"] for name in ("quickstart", "undisturbed")}
    assert len(parameters) == 1


def test_a_run_has_a_rank_on_each_of_two_nodes(story: Story) -> None:
    (attempt,) = story.checkout.attempts("undisturbed", PREEMPTED)
    assert attempt["device_count"] == 2
    (row,) = sacct(story, f"rule_train_wildcards_undisturbed_{PREEMPTED}_1")
    assert (row["node"], row["gpu"]) == (2, 2)


@pytest.mark.parametrize("cell", CELLS)
def test_it_ran_inside_the_image(story: Story, cell: str) -> None:
    record = json.loads((story.checkout.root / image_file("cpu")).with_suffix(".json").read_text())
    provenance = json.loads((story.checkout.run("quickstart", cell) / "provenance.json").read_text())
    assert provenance["image_digest"] == record["digest"]


def test_device_hours_are_slurms(story: Story) -> None:
    """GPUs allocated x elapsed, over every row of sacct, earlier rows of a requeued job included."""
    assert set(books(story)["source"]) == {"sacct"}
    for cell in CELLS:
        seconds = sum(row["gpu"] * row["elapsed"] for row in sacct(story, f"rule_train_wildcards_quickstart_{cell}_1"))
        ours = books(story).query(f"cell == '{cell}'")["device_hours"].sum() * 3600
        assert ours == pytest.approx(seconds, abs=1e-6)
    assert "0 differences" in story.checkout.octavo("reconcile", "results/quickstart")


def test_lost_attempts_are_in_the_all_in_cost_alone(story: Story) -> None:
    runs = pd.read_parquet(story.checkout.root / "results/quickstart/runs.parquet").set_index("cell")
    lost = runs["device_hours_all_in"] - runs["device_hours_final"]
    killed = books(story).query(f"cell == '{KILLED}' and state == 'killed'")["device_hours"].iloc[0]
    assert 0 < lost[KILLED] <= killed  # its steps up to the checkpoint count, those after it do not
    assert dict(runs["attempts"]) == dict.fromkeys(CELLS, 1) | {PREEMPTED: 2, KILLED: 2}
    assert (lost[[cell for cell in CELLS if cell not in (PREEMPTED, KILLED)]] == 0).all()


def test_runs_never_held_more_devices_than_the_cap(story: Story) -> None:
    rows = sacct(story, "rule_train", part=True)
    held = [sum(row["gpu"] for row in rows if row["start"] <= at["start"] < row["end"]) for at in rows]
    assert max(held) <= CLUSTER["slurm"]["max_concurrent_devices"]


def test_a_second_pipeline_says_so_and_leaves(story: Story) -> None:
    assert story.second.returncode != 0
    assert "locked" in story.second.stdout.lower()


def test_the_reports_books_can_be_made_again_without_slurm(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    before = books(story)
    nowhere = Checkout(story.checkout.root, (without_sacct(story.checkout),))
    monkeypatch.setenv("PATH", "")
    nowhere.octavo("aggregate", "results/quickstart")
    assert books(story).equals(before)


def test_an_ablation_added_afterwards_trains_its_own_run_alone(story: Story) -> None:
    """Its baseline is there already."""
    story.checkout.write("experiments/quickstart", quickstart() | {"ablations": {"shared": ABLATION}})
    target = "results/quickstart/ablations/shared/report.pdf"
    planned = story.checkout.finish(story.checkout.snakemake(target, options=("--dry-run",)))
    assert planned.count("rule train:") == 1
    assert "cell=moe-bf16+shared," in planned
    last = max(row["job"] for row in sacct(story, "rule_train", part=True))
    story.checkout.finish(story.checkout.snakemake(target))
    new = [row["comment"] for row in sacct(story, "rule_train", part=True) if row["job"] > last]
    assert new == ["rule_train_wildcards_quickstart_moe-bf16+shared_1"]
    assert (story.checkout.root / target).read_bytes().startswith(b"%PDF")


def test_overhead_per_job(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """Between submission and the first step, but for the wait in the queue: of the ablation's run, which was alone."""
    cell = "moe-bf16+shared"
    (row,) = sacct(story, f"rule_train_wildcards_quickstart_{cell}_1")
    (attempt,) = story.checkout.attempts("quickstart", cell)
    trainer = datetime.fromisoformat(attempt["start"]).timestamp()
    first = json.loads((story.checkout.run("quickstart", cell) / "metrics.jsonl").open().readline())
    first_step = first["time"] - first["step_seconds"]
    whole, until_python, queued = first_step - row["start"], trainer - row["start"], row["start"] - row["submit"]
    with capsys.disabled():
        print(
            f"\npipeline overhead per job: {whole:.0f} s from its start to its first step, {until_python:.0f} s "
            "of them until the trainer's Python runs in its container, the rest imports and set-up. "
            f"Not counted: {queued:.0f} s in the queue. "
            f"Two ranks on {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
        )
    assert row["start"] - 1 < trainer < first_step  # Slurm's times are whole seconds


def test_show_prints_what_was_submitted(story: Story) -> None:
    shown = story.checkout.octavo("show", "quickstart", f"{PREEMPTED}/seed-1")
    (submitted,) = {row["line"] for row in sacct(story, f"rule_train_wildcards_quickstart_{PREEMPTED}_1")}
    for option in (
        "-A lab",
        "-p spot",
        "-t 30",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gres=gpu:h100:1",
        "--cpus-per-task=1",
    ):
        assert option in shown
        assert option in submitted
    assert "exec srun --nodes=2 --ntasks=2" in shown


def test_the_doctor_finds_what_the_cluster_file_asks_for(story: Story) -> None:
    found = story.checkout.octavo("doctor", "--cluster", "fake")
    for what in ("fake: partition", "fake: gpu:h100", "fake: account"):
        assert what in found


def test_nothing_of_it_is_left(story: Story) -> None:
    """Neither a job nor a process in a container, whose environment names the checkout and nothing of Slurm's."""
    assert not subprocess.run(["squeue", "-h"], check=True, capture_output=True, text=True).stdout
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"OCTAVO_ROOT={story.checkout.root}\0".encode() in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_text())
    assert left == []
    shutil.rmtree(story.checkout.root)


# --- the story ------------------------------------------------------------------------------------------------------


def quickstart() -> dict[str, Any]:
    """The experiment file, on another cluster and two nodes."""
    file = yaml.safe_load((REPOSITORY / "configs/experiments/quickstart.yaml").read_text(encoding="utf-8"))
    training = file["training"] | {"micro_batch_size": 4}
    return file | {"cluster": "fake", "parallelism": {"data": 2}, "training": training}


@pytest.fixture(scope="module")
def story(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    checkout = checkout_with_image(tmp_path_factory.mktemp("cluster") / "octavo", "cpu")
    checkout.configure(image="cpu", time_limit_minutes=30)
    for name in ("quickstart", "undisturbed"):
        checkout.write(f"experiments/{name}", quickstart())
    report = "results/quickstart/report.pdf"
    pipeline = checkout.snakemake(
        report, *(f"results/undisturbed/runs/{cell}/seed-1/result.json" for cell in (PREEMPTED, KILLED))
    )
    try:
        disturb(checkout, pipeline, {PREEMPTED: preempt, KILLED: kill})
        second = checkout.snakemake(report)
        said, _ = second.communicate(timeout=1800)
        printed = checkout.finish(pipeline, seconds=1200)
    except BaseException:
        pipeline.kill()
        raise
    return Story(checkout, printed, subprocess.CompletedProcess([], second.returncode, said))


def disturb(checkout: Checkout, pipeline: subprocess.Popen[str], how: dict[str, Callable[[str], None]]) -> None:
    """Do to the runs what is to be done, each ten steps after its first checkpoint."""
    left, end = dict(how), time.monotonic() + 1200
    while left:
        for cell in [cell for cell in left if steps_logged(checkout.run("quickstart", cell)) >= 60]:
            left.pop(cell)(f"quickstart_{cell}_1")
        if pipeline.poll() is not None:
            pytest.fail(f"the pipeline ended: {pipeline.communicate()[0]}{checkout.logs()}")
        assert time.monotonic() < end, f"no steps of {', '.join(left)}{checkout.logs()}"
        time.sleep(0.05)


def steps_logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"loss":') if metrics.exists() else 0


def preempt(comment: str) -> None:
    """A job of the partition that comes first wants one of the run's nodes."""
    _, nodes = running(comment)
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True)
    urgent = ["sbatch", "--account=lab", "--partition=gpu", f"--nodelist={listed.stdout.split()[-1]}"]
    subprocess.run([*urgent, "--gres=gpu:h100:1", "--output=/dev/null", "--wrap=sleep 1"], check=True)


def kill(comment: str) -> None:
    """SIGKILL to the run's ranks."""
    job, _ = running(comment)
    subprocess.run(["scancel", "--signal=KILL", f"{job}.0"], check=True)


def running(comment: str) -> tuple[str, str]:
    """Number and nodes of the running job of a run."""
    shown = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%A|%k|%N"], check=True, capture_output=True, text=True)
    rows = [line.split("|") for line in shown.stdout.splitlines()]
    return next((job, nodes) for job, named, nodes in rows if named.endswith(comment))


# --- what there is to see -------------------------------------------------------------------------------------------


def result(story: Story, experiment: str, cell: str) -> dict[str, Any]:
    return json.loads((story.checkout.run(experiment, cell) / "result.json").read_text())


def books(story: Story) -> pd.DataFrame:
    frame = pd.read_parquet(story.checkout.root / "results/quickstart/attempts.parquet")
    return frame.sort_values(["cell", "start"]).reset_index(drop=True)


def sacct(story: Story, comment: str, *, part: bool = False) -> list[dict]:
    """Slurm's rows of the jobs with a comment (or with it in their comment), read here without Octavo's help."""
    fields = "JobIDRaw,WorkDir,Comment,State,ElapsedRaw,AllocTRES,Submit,Start,End,SubmitLine"
    asked = subprocess.run(
        ["sacct", "-D", "-X", "-n", "-P", "-S", "now-1day", f"--format={fields}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = []
    for line in asked.stdout.splitlines():
        parts = line.split("|", 9)  # other tests' jobs have comments of several lines
        if len(parts) < 10 or parts[1] != str(story.checkout.root) or parts[7] == "Unknown":
            continue
        job, _, named, state, elapsed, tres, submit, start, end, submitted = parts
        if not (comment in named if part else named == comment):
            continue
        counts = dict(item.split("=") for item in tres.split(","))
        rows.append(
            {"job": int(job), "comment": named, "state": state, "elapsed": int(elapsed), "line": submitted,
             "gpu": int(counts["gres/gpu"]), "node": int(counts["node"]),
             **{name: datetime.fromisoformat(value).timestamp()
                for name, value in (("submit", submit), ("start", start), ("end", end))}}
        )  # fmt: skip
    return rows


def without_sacct(checkout: Checkout) -> Path:
    """A folder for PATH that holds what `octavo` is started by and nothing of Slurm's."""
    folder = checkout.root / "elsewhere"
    folder.mkdir(exist_ok=True)
    (folder / "octavo").symlink_to(checkout.programs[0] / "octavo")
    return folder
