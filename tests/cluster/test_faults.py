"""What a cluster does to runs: a warning before the time limit, slurmctld restarted, the pipeline itself killed.

The warning is sent as Slurm sends it (to the ranks alone), without the wait for a limit of minutes.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.cluster.conftest import Checkout, make_checkout
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.test_slurm_pipeline import running, steps_logged

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(600)]

TARGETS = [f"results/tiny/runs/{cell}/seed-1/result.json" for cell in ("dense-bf16", "moe-bf16")]


@pytest.fixture(scope="module")
def checkout(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make_checkout(tmp_path_factory.mktemp("faults") / "octavo")
    pipeline = made.snakemake(*TARGETS)
    try:
        wait_for(lambda: steps_logged(made.run("tiny", "dense-bf16")) >= 50, pipeline)
        warned, _ = running("tiny_dense-bf16_1")
        subprocess.run(["scancel", "--signal=USR1", warned], check=True)
        wait_for(lambda: steps_logged(made.run("tiny", "moe-bf16")) >= 50, pipeline)
        slurm.stop_daemon("slurmctld", signal.SIGKILL)
        pipeline.kill()
        pipeline.wait()
        slurm.start_daemon("slurmctld")
        wait_for(lambda: subprocess.run(["squeue"], check=False, capture_output=True).returncode == 0)
        # as a node does that lost the pipeline's host: the lock is all that is left of it
        made.finish(made.start("snakemake", "--profile", "workflow/profiles/slurm", "--unlock", "--", *TARGETS))
        made.finish(made.snakemake(*TARGETS), seconds=400)
    finally:
        pipeline.kill()
    return made


def wait_for(ready: Callable[[], bool], pipeline: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 200
    while not ready():
        if pipeline is not None and pipeline.poll() is not None:
            pytest.fail(f"the pipeline ended: {pipeline.communicate()[0]}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def attempts(checkout: Checkout, cell: str) -> list[dict]:
    return [json.loads(line) for line in (checkout.run("tiny", cell) / "attempts.jsonl").read_text().splitlines()]


def test_a_warned_run_saves_and_goes_on_from_there(checkout: Checkout) -> None:
    first, second = attempts(checkout, "dense-bf16")[:2]
    assert first["exit_reason"] == "signalled"
    assert second["first_step"] == first["last_step"] >= 50


def test_its_job_went_back_into_the_queue(checkout: Checkout) -> None:
    job = attempts(checkout, "dense-bf16")[0]["slurm_job_id"]
    asked = ["sacct", "-D", "-X", "-n", "-P", "-S", "now-1day", "--format=State", f"--jobs={job}"]
    states = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split("\n")
    assert states[0] == "REQUEUED"


@pytest.mark.parametrize("cell", ["dense-bf16", "moe-bf16"])
def test_a_pipeline_started_again_finishes_what_the_killed_one_left(checkout: Checkout, cell: str) -> None:
    assert attempts(checkout, cell)[-1]["exit_reason"] == "completed"
    assert json.loads((checkout.run("tiny", cell) / "result.json").read_text())["steps"] == 200


def test_no_two_jobs_train_a_run_at_once(checkout: Checkout) -> None:
    for cell in ("dense-bf16", "moe-bf16"):
        tried = attempts(checkout, cell)
        assert all(one["end"] <= other["start"] for one, other in pairwise(tried))


def test_nothing_is_left_in_the_queue(checkout: Checkout) -> None:
    left = subprocess.run(["squeue", "-h"], check=True, capture_output=True, text=True)
    assert left.stdout == ""
    shutil.rmtree(checkout.root)
