"""Which jobs of an earlier pipeline are gone on with, without a Slurm."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake_executor_plugin_slurm as executor

from octavo.cluster import adopt
from octavo.cluster.adopt import LeftJobs, adopt_jobs
from octavo.cluster.queue import Job
from octavo.errors import OctavoError

RUN: Any = SimpleNamespace(experiment="tiny", cell="dense-bf16", seed="1")


def waiting(number: int, user: str | None = None) -> Job:
    return Job(number, "waiting", "Priority", None, "", user or getpass.getuser())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every call of squeue; jobs 1 to 500 wait, each for the run with its comment."""
    calls: list[Path] = []

    def queue(root: Path) -> dict[str, list[Job]]:
        calls.append(root)
        return {f"run {number}": [waiting(number)] for number in range(1, 501)}

    monkeypatch.setattr(adopt, "queue", queue)
    return calls


def test_the_queue_is_read_once_for_all_submissions_and_a_job_given_once(asked: list[Path]) -> None:
    left = LeftJobs()
    found = [left.take(f"run {number}", RUN) for number in range(1, 1001)]
    assert [job and job.number for job in found] == [*range(1, 501), *[None] * 500]
    assert left.take("run 7", RUN) is None  # it failed, and is tried again
    assert len(asked) == 1


def test_another_users_job_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "queue", lambda _: {"run": [waiting(1, "somebody")]})
    assert LeftJobs().take("run", RUN) is None


def test_a_controller_that_did_not_answer_is_asked_again(asked: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = adopt.queue

    def silent(_: Path) -> None:
        raise OctavoError("Slurm's controller cannot be reached")

    left = LeftJobs()
    monkeypatch.setattr(adopt, "queue", silent)
    assert left.take("run 1", RUN) is None
    monkeypatch.setattr(adopt, "queue", answers)
    found = left.take("run 1", RUN)
    assert found is not None
    assert found.number == 1


@pytest.mark.parametrize(("there", "printed"), [(True, "7\n"), (False, "sbatch --comment a b --wrap=octavo train\n")])
def test_a_job_that_ended_meanwhile_is_submitted(
    asked: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool, printed: str
) -> None:
    """scontrol and sbatch are stand-ins; the executor adds --wrap to the command."""
    for name, script in (("scontrol", f"echo noise; exit {int(not there)}"), ("sbatch", 'echo sbatch "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(executor, "get_submit_command", lambda *_, **__: "sbatch --comment 'a b'")
    said: list[str] = []
    adopt_jobs(said.append)
    job: Any = SimpleNamespace(is_group=lambda: False, rule=SimpleNamespace(name="train"), wildcards=RUN)
    command = executor.get_submit_command(job, {"comment_str": "run 7", "run_uuid": "x"})
    done = subprocess.run(f'{command} --wrap="octavo train"', shell=True, check=True, capture_output=True, text=True)
    assert done.stdout == printed
    assert said == ["job 7 waiting: Priority: an earlier pipeline submitted it; this one goes on with it"]
    assert len(asked) == 1
