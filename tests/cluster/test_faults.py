"""What a cluster does to runs, and that each goes on to the same losses to the last bit.

Every fault has a run of its own, an ablation that changes no number, so that one undisturbed run is what all are held
against. As steps take milliseconds, ranks are held (SIGSTOP) while they are struck. Slurm's own kill for memory needs
its cgroup plugin: here one rank of two is killed as the kernel's OOM killer does it, by SIGKILL.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import EXPERIMENT, Checkout, make_checkout
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.test_slurm_pipeline import running, steps_logged

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(3600)]

TWO_NODES, ONE_NODE = "dense-bf16", "moe-bf16"
CELLS = {
    "orphaned": ONE_NODE,
    "time_limit": ONE_NODE,
    "cancelled": ONE_NODE,
    "failed_srun": ONE_NODE,
    "out_of_memory": TWO_NODES,
    "node_failure": TWO_NODES,
}
HOPELESS = f"{ONE_NODE}+hopeless"
FAILING_SRUN = """#!/bin/sh
# Slurm's, but that it fails once for one run and always for another
case "$*" in
  *+hopeless/*) echo "srun: error: Unable to create step for job: never" >&2; exit 1 ;;
  *+failed_srun/*) if mkdir "$0.failed" 2>/dev/null; then echo "srun: error: Socket timed out" >&2; exit 1; fi ;;
esac
exec {srun} "$@"
"""


@dataclass
class Outcome:
    """What was done, and what the pipeline said of it."""

    checkout: Checkout
    jobs: dict[str, str] = field(default_factory=dict)
    """Fault -> the job that it struck."""
    left_as: str = ""
    """The name of the orphaned job, which is its pipeline's."""
    printed: str = ""

    def attempts(self, fault: str) -> list[dict[str, Any]]:
        return self.checkout.attempts("tiny", f"{CELLS[fault]}+{fault}")

    def reasons(self, fault: str) -> list[str]:
        return [one["exit_reason"] for one in self.attempts(fault)]

    def states(self, fault: str) -> list[str]:
        """Slurm's, of the job that was struck, the earliest first."""
        return slurm_states("--jobs", self.jobs[fault])


@pytest.mark.parametrize("fault", CELLS)
def test_losses_are_those_of_the_undisturbed_run_to_the_last_bit(outcome: Outcome, fault: str) -> None:
    checkout, cell = outcome.checkout, CELLS[fault]
    assert len(checkout.attempts("tiny", cell)) == 1
    undisturbed, disturbed = checkout.losses("tiny", cell), checkout.losses("tiny", f"{cell}+{fault}")
    assert len(undisturbed) == 200 + 2 + 1  # steps, validations on the way and at the end, the final one
    assert disturbed == undisturbed
    assert outcome.reasons(fault)[-1] == "completed"


@pytest.mark.parametrize("fault", CELLS)
def test_no_two_jobs_train_a_run_at_once(outcome: Outcome, fault: str) -> None:
    assert all(one["end"] <= other["start"] for one, other in pairwise(outcome.attempts(fault)))


def test_before_its_time_limit_a_run_saves_and_its_job_goes_back_into_the_queue(outcome: Outcome) -> None:
    assert outcome.reasons("time_limit") == ["signalled", "completed"]
    first, second = outcome.attempts("time_limit")
    assert second["first_step"] == first["last_step"] > first["first_step"]
    assert second["slurm_job_id"] == first["slurm_job_id"]
    assert outcome.states("time_limit")[0] == "REQUEUED"


def test_a_cancelled_run_saves_and_the_pipeline_submits_it_anew(outcome: Outcome) -> None:
    """The job itself stays cancelled: whoever cancels all jobs and the pipeline must not see them come back."""
    first, second = outcome.attempts("cancelled")
    assert (first["exit_reason"], second["first_step"]) == ("signalled", first["last_step"])
    assert outcome.states("cancelled") == ["CANCELLED"]
    assert second["slurm_job_id"] != first["slurm_job_id"]


def test_slurm_requeues_the_job_of_a_node_that_died(outcome: Outcome) -> None:
    assert outcome.reasons("node_failure") == ["killed", "completed"]
    assert outcome.states("node_failure") == ["NODE_FAIL", "COMPLETED"]


def test_when_one_rank_is_killed_the_run_goes_on_from_its_newest_checkpoint(outcome: Outcome) -> None:
    """Rank 1 was killed; rank 0 says that it lost it, or is ended before it can."""
    first, second = outcome.attempts("out_of_memory")
    assert first["exit_reason"] in ("failed", "killed")
    assert 40 <= second["first_step"] <= first["last_step"]
    assert outcome.states("out_of_memory") == ["FAILED"]


def test_a_failed_srun_is_an_attempt_and_tried_again(outcome: Outcome) -> None:
    first, second = outcome.attempts("failed_srun")
    assert (first["exit_reason"], first["first_step"], first["last_step"]) == ("failed", 0, 0)
    assert first["error"] == "the job's commands ended with status 1 before training began"
    assert second["exit_reason"] == "completed"


def test_a_job_that_a_killed_pipeline_left_is_gone_on_with(outcome: Outcome) -> None:
    (only,) = outcome.attempts("orphaned")
    assert (only["slurm_job_id"], only["exit_reason"]) == (outcome.jobs["orphaned"], "completed")
    assert outcome.states("orphaned") == ["COMPLETED"]
    assert slurm_states("--comment", f"rule_train_wildcards_tiny_{CELLS['orphaned']}+orphaned_1") == ["COMPLETED"]
    assert re.search(rf"job {only['slurm_job_id']} running on \S+: an earlier pipeline submitted it", outcome.printed)


def test_what_fails_the_same_way_twice_without_a_step_is_not_submitted_again(outcome: Outcome) -> None:
    """Three tries more would be allowed; two jobs are all that were allocated."""
    tried = outcome.checkout.attempts("tiny", HOPELESS)
    assert [(one["exit_reason"], one["last_step"]) for one in tried] == [("failed", 0)] * 2
    assert slurm_states("--comment", f"rule_train_wildcards_tiny_{HOPELESS}_1") == ["FAILED"] * 2
    assert "not tried again: the run failed the same way twice without a step made" in outcome.printed


def test_a_plan_over_budget_is_not_tried_again(outcome: Outcome) -> None:
    outcome.checkout.write("experiments/dear", {**EXPERIMENT, "budget": {"cost": 1e-9}})
    printed, _ = (pipeline := outcome.checkout.snakemake("results/dear/plan.csv")).communicate(timeout=1800)
    assert pipeline.returncode != 0
    assert "budget" in printed
    assert len(re.findall(r"start +\S+ dear", printed)) == 1, printed


def test_nothing_is_left_in_the_queue(outcome: Outcome) -> None:
    left = subprocess.run(["squeue", "-h"], check=True, capture_output=True, text=True)
    assert left.stdout == ""
    shutil.rmtree(outcome.checkout.root)


# --- the faults -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "bin").mkdir()
    (folder / "bin/srun").write_text(FAILING_SRUN.format(srun=shutil.which("srun")))
    (folder / "bin/srun").chmod(0o755)
    found = Outcome(make_checkout(folder / "octavo", folder / "bin"))
    found.checkout.configure(time_limit_minutes=30)  # only the run whose fault it is comes near it
    changed = {**CELLS, "hopeless": ONE_NODE}
    ablations = {  # runs of their own, of the same losses: a BF16 run has no diagnostics of precision
        name: {"description": name, "cells": [cell], "change": {"training.logging.precision_interval": 99}}
        for name, cell in changed.items()
    }
    found.checkout.write("experiments/tiny", {**EXPERIMENT, "ablations": ablations})
    _kill_pipeline(found, slurm)
    cells = [*dict.fromkeys(CELLS.values()), *(f"{cell}+{name}" for name, cell in changed.items())]
    pipeline = found.checkout.snakemake(*(result(cell) for cell in cells))
    try:
        _strike(found, slurm, pipeline)
        found.printed, _ = pipeline.communicate(timeout=1800)
    finally:
        pipeline.kill()
    slurm.repair()
    missing = [cell for cell in cells if not (found.checkout.root / result(cell)).exists()]
    assert missing == [HOPELESS], found.printed + found.checkout.logs()
    return found


def _kill_pipeline(found: Outcome, slurm: SlurmCluster) -> None:
    """Kill slurmctld and the pipeline while a run is held, and start slurmctld again."""
    checkout, cell = found.checkout, f"{CELLS['orphaned']}+orphaned"
    pipeline = checkout.snakemake(result(cell))
    try:
        wait_for(lambda: steps_logged(checkout.run("tiny", cell)) >= 50, pipeline)
        hold(cell)
        found.jobs["orphaned"], _ = running(f"tiny_{cell}_1")
        found.left_as = run("squeue", "-h", "-o", "%j", f"--jobs={found.jobs['orphaned']}")
        slurm.stop_daemon("slurmctld", signal.SIGKILL)
    finally:
        pipeline.kill()
        pipeline.wait()
    slurm.start_daemon("slurmctld")
    wait_for(lambda: subprocess.run(["squeue"], check=False, capture_output=True).returncode == 0)
    # as a node does that lost the pipeline's host: the lock is all that is left of it
    unlock = ("snakemake", "--profile", "workflow/profiles/slurm", "--unlock", "--", result(cell))
    checkout.finish(checkout.start(*unlock))


def _strike(found: Outcome, slurm: SlurmCluster, pipeline: subprocess.Popen[str]) -> None:
    """Strike each run ten steps after its first checkpoint.

    The orphan goes on when the pipeline has it, and the run whose time was short has time again once it is requeued: a
    start on a busy machine may take longer than what was left to it.
    """
    strikes: dict[str, Callable[[str, str, str], object]] = {
        "time_limit": limit_time,
        "cancelled": lambda _, job, __: run("scancel", job),  # sends SIGCONT, too
        "out_of_memory": kill_one,
        "node_failure": lambda _, __, nodes: slurm.fail_node(run("scontrol", "show", "hostnames", nodes).split()[0]),
    }
    orphan: int | None = ranks(f"{CELLS['orphaned']}+orphaned")[0]
    short_of_time = True
    end = time.monotonic() + 1800
    while strikes or orphan or short_of_time:
        if orphan and run("squeue", "-h", "-o", "%j", f"--jobs={found.jobs['orphaned']}") != found.left_as:
            os.kill(orphan, signal.SIGCONT)
            orphan = None
        if (job := found.jobs.get("time_limit")) and short_of_time and "REQUEUED" in slurm_states("--jobs", job):
            run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
            short_of_time = False
        for fault in list(strikes):
            cell = f"{CELLS[fault]}+{fault}"
            if steps_logged(found.checkout.run("tiny", cell)) >= 50:
                hold(cell)
                found.jobs[fault], nodes = running(f"tiny_{cell}_1")
                strikes.pop(fault)(cell, found.jobs[fault], nodes)
        if pipeline.poll() is not None:
            pytest.fail(f"the pipeline ended: {pipeline.communicate()[0]}{found.checkout.logs()}")
        assert time.monotonic() < end, f"waited too long for {list(strikes)}{found.checkout.logs()}"
        time.sleep(0.05)


def limit_time(_: str, job: str, __: str) -> None:
    """Leave the job the shortest time in whole minutes whose warning is still to come; Slurm sends SIGCONT with it."""
    minutes, seconds = map(int, run("squeue", "-h", "-o", "%M", f"--jobs={job}").split(":"))
    run("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil(minutes + (seconds + 35) / 60)}")


def kill_one(cell: str, _: str, __: str) -> None:
    os.kill(ranks(cell)[1], signal.SIGKILL)
    os.kill(ranks(cell)[0], signal.SIGCONT)


def hold(cell: str) -> None:
    for process in ranks(cell).values():
        os.kill(process, signal.SIGSTOP)


def ranks(cell: str) -> dict[int, int]:
    """Rank -> its process."""
    found = {}
    for process in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if f"/{cell}/seed-1".encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                environment = Path(f"/proc/{process}/environ").read_text().split("\0")
                values = dict(item.split("=", 1) for item in environment if "=" in item)
                if values.get("SLURM_STEP_ID") == "0":  # not srun, nor what runs it
                    found.setdefault(int(values["SLURM_PROCID"]), process)
    return found


def result(cell: str) -> str:
    return f"results/tiny/runs/{cell}/seed-1/result.json"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_for(ready: Callable[[], bool], pipeline: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 1800
    while not ready():
        if pipeline is not None and pipeline.poll() is not None:
            pytest.fail(f"the pipeline ended: {pipeline.communicate()[0]}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def slurm_states(option: str, value: str) -> list[str]:
    """Slurm's states of a job, or of the jobs with a comment, the earliest first."""
    lines = run("sacct", "-D", "-X", "-n", "-P", "-S", "now-1day", "--format=JobIDRaw,Comment,Start,State").splitlines()
    rows = [line.split("|") for line in lines]
    asked = [row for row in rows if value == row[0 if option == "--jobs" else 1]]
    return [state.split()[0] for _, _, _, state in sorted(asked, key=lambda row: row[2])]
