"""Slurm's queue as `octavo status` and the pipeline's lines show it, on a real Slurm."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from octavo.cluster.queue import queue
from tests.cluster.conftest import make_checkout
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster
from tests.cluster.test_faults import run, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

RESULT = "results/tiny/runs/moe-bf16/seed-1/result.json"
OURS = "rule_train_wildcards_tiny_{cell}_1"


def submit(folder: Path, *options: str) -> int:
    """A job that would sleep for ten minutes; its number."""
    command = ("sbatch", "--parsable", f"--account={ACCOUNT}", f"--chdir={folder}", "--output=/dev/null", "--time=20")
    return int(run(*command, *options, "--wrap=sleep 600"))


def until(pipeline: subprocess.Popen[str], pattern: str) -> str:
    """What a pipeline prints up to a line that has the pattern."""
    printed = ""
    assert pipeline.stdout
    for line in pipeline.stdout:
        printed += line
        if re.search(pattern, line):
            return printed
    pytest.fail(f"the pipeline ended without the line: {printed}")


def test_status_and_the_pipelines_lines_tell_held_from_waiting_from_running(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    checkout = make_checkout(tmp_path / "octavo")
    blocks = submit(tmp_path, "--partition=gpu", f"--nodes={len(slurm.nodes)}", "--gres=gpu:h100:1")
    forged = f"a|1|PENDING|{checkout.root}|{OURS.format(cell='moe-bf16')}\n7|RUNNING|{checkout.root}"
    other = submit(checkout.root, "--hold", f"--comment={forged}")
    held = submit(checkout.root, "--hold", f"--comment={OURS.format(cell='dense-bf16')}")
    try:
        pipeline = checkout.snakemake(RESULT)
        wait_for(lambda: OURS.format(cell="moe-bf16") in queue(checkout.root), pipeline)
        found = queue(checkout.root)
        (waiting,) = found.pop(OURS.format(cell="moe-bf16"))
        assert {comment: [job.number for job in jobs] for comment, jobs in found.items()} == {
            forged: [other],
            OURS.format(cell="dense-bf16"): [held],
        }
        wait_for(lambda: "Resources" in run("squeue", "-h", "-o", "%r", f"--jobs={waiting.number}"), pipeline)
        said = {one["cell"]: one for one in json.loads(checkout.octavo("status", "tiny", "--json"))["runs"]}
        assert (said["dense-bf16"]["state"], said["dense-bf16"]["job"]["number"]) == ("held", held)
        assert (said["moe-bf16"]["state"], said["moe-bf16"]["job"]["reason"]) == ("queued", "Resources")
        printed = checkout.octavo("status", "tiny")
        assert "JobHeldUser" in printed
        lines = until(pipeline, rf"wait   train moe-bf16 seed 1 \(job {waiting.number} waiting: (Resources|Priority)")
    finally:
        subprocess.run(["scancel", str(blocks), str(other), str(held)], check=True)
    assert pipeline.stdout
    lines += pipeline.stdout.read()
    assert pipeline.wait() == 0, lines + checkout.logs()
    job = f"job {waiting.number}"
    patterns = (
        rf"submit train moe-bf16 seed 1 \({job}\)",
        rf"wait   train moe-bf16 seed 1 \({job} waiting: (Resources|Priority)",
        rf"start  train moe-bf16 seed 1 \({job} running on node\d\)",
        r"done   train moe-bf16 seed 1 \(\d+ s since it was submitted\)",
    )
    places = [match.start() if (match := re.search(pattern, lines)) else None for pattern in patterns]
    assert None not in places, lines
    assert places == sorted(places, key=lambda place: place or 0)
    assert len(re.findall(r"start +train", lines)) == 1
