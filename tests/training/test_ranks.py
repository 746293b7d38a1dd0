"""Ranks that die or stand still: they are named, and the run is ended so that it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import OctavoError
from octavo.training.launch import find_process
from tests.tiny import LIMIT, environment

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)

ENDLESS = {
    "parallelism.data": 2,
    "precisions": ["bf16"],
    "training.steps": 1_000_000,
    "training.checkpoints": {"interval": 10, "grace_seconds": 12, "standstill_seconds": 20},
}
"""Two ranks, which only a fault ends."""


def states(run: Run) -> dict[int, dict[str, Any]]:
    """What the ranks say of themselves."""
    return {int(path.stem): json.loads(path.read_text()) for path in run.path.glob(".ranks/*.json")}


def with_torchrun(run: Run, *program: str) -> subprocess.Popen[str]:
    """The run, its two ranks started by torchrun, of Octavo or of another program that trains it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return start(run, *torchrun, *(program or ("-m", "octavo")))


def changed_octavo(run: Run, change: str) -> str:
    """A program that is Octavo after a change."""
    script = run.root / f"{run.path.parents[2].name}.py"
    script.write_text(f"{change}\nfrom octavo.cli import main\nmain()\n")
    return str(script)


def start(run: Run, *program: str) -> subprocess.Popen[str]:
    """A program that trains a run, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *program, "train", str(run.path)],
        cwd=run.root, env=environment(run.root), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def started() -> Iterator[list[tuple[Run, subprocess.Popen[str]]]]:
    """Runs and their launchers; what a test that fails left running is ended."""
    every: list[tuple[Run, subprocess.Popen[str]]] = []
    yield every
    for run, launcher in every:
        if launcher.poll() is None:
            for state in states(run).values():
                with suppress(ProcessLookupError):
                    os.kill(state["process"], signal.SIGKILL)
            launcher.kill()


Strike = Callable[..., "tuple[Run, subprocess.Popen[str]]"]


@pytest.fixture
def strike(workshop: Workshop, started: list[tuple[Run, subprocess.Popen[str]]]) -> Strike:
    """Start a run of an experiment and send a signal to one of its ranks once steps are saved."""

    def struck(
        name: str,
        number: signal.Signals,
        rank: int,
        *,
        by_torchrun: bool = False,
        experiment: dict[str, Any] = ENDLESS,
    ) -> tuple[Run, subprocess.Popen[str]]:
        workshop.experiment(name, experiment)
        run = workshop.run("dense-bf16", name)
        process = with_torchrun(run) if by_torchrun else run.start()
        started.append((run, process))
        while len(states(run)) < 2 or not list(run.path.glob("checkpoints/step-*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.kill(states(run)[rank]["process"], number)
        return run, process

    return struck


def ended(process: subprocess.Popen[str]) -> str:
    """What a run said that has to end by itself; nothing in it is called a bug."""
    output, _ = process.communicate(timeout=LIMIT)
    assert "this is a bug" not in output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_told_as_that(strike: Strike, rank: int) -> None:
    run, process = strike(f"rank_{rank}_killed", signal.SIGKILL, rank)
    said = ended(process)
    assert process.returncode == 128 + signal.SIGKILL, said
    assert f"error: rank {rank} was killed by signal 9" in said
    _, goes_on = run.interrupt(signal.SIGTERM, after_step=run.metrics()[-1]["step"] + 1)
    assert "going on from the checkpoint after step" in goes_on
    first, second = run.attempts()
    assert (first["exit_reason"], first["error"]) == ("killed", f"rank {rank} was killed by signal 9")
    assert second["exit_reason"] == "signalled"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named_and_the_run_goes_on(strike: Strike, rank: int) -> None:
    run, process = strike(f"rank_{rank}_stopped", signal.SIGSTOP, rank)
    said = ended(process)
    assert process.returncode == 75, said
    assert re.search(rf"error: rank {rank} has stood still since .* UTC, .* step \d+, and gives no sign of life", said)
    assert f"process {states(run)[rank]['process']} of" in said
    assert run.interrupt(signal.SIGTERM, after_step=run.metrics()[-1]["step"] + 1)[0] == 75
    first, _ = run.attempts()
    assert first["exit_reason"] == "stalled"
    assert first["error"].startswith(f"rank {rank} has stood still since")
    assert first["last_step"] > first["first_step"]


def test_a_run_that_stands_still_can_be_told_to_stop(strike: Strike) -> None:
    """It would stand still for an hour; 12 seconds after SIGTERM it leaves."""
    changes = {**ENDLESS, "training.checkpoints": {"interval": 10, "grace_seconds": 12, "standstill_seconds": 3600}}
    _, process = strike("stopped_and_told", signal.SIGSTOP, 1, experiment=changes)
    process.terminate()
    said = ended(process)
    assert process.returncode == 75, said
    assert re.search(r"rank 1 has stood still since .*, also after it was told to stop", said)


def test_a_healthy_run_that_is_long_in_what_it_does_is_not_said_to_stand_still(workshop: Workshop) -> None:
    """Its first validation takes minutes; 12 seconds after SIGTERM it leaves."""
    workshop.experiment("long_validation", {"training.checkpoints": {"interval": 10, "grace_seconds": 12}})
    run = workshop.run("dense-bf16", "long_validation")
    process = start(run, changed_octavo(run, """
import time
from octavo.training.validation import Validator
Validator.validate = lambda *_: time.sleep(600)
"""))  # fmt: skip
    while not any(one["step"] == 40 for one in run.metrics()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.terminate()
    said = ended(process)
    assert process.returncode == 75, said
    (attempt,) = run.attempts()
    assert attempt["exit_reason"] == "stalled"
    told = "told to stop, the run did not come to the end of what it was doing in"
    assert re.fullmatch(rf"{told} 1\d s: in the validation after step 40", attempt["error"])
    assert f"error: {attempt['error']}" in said


def test_an_attempt_ends_when_it_was_killed_not_when_the_next_start_fails(workshop: Workshop, strike: Strike) -> None:
    """Power fails; then the data set is not there. The days between are not billed."""
    run, process = strike("power_failed", signal.SIGCONT, 1)  # which does nothing to it
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    data = workshop.root / "results/data"
    data.rename(data.with_name("kept"))
    try:
        assert "octavo data" in ended(run.start())
        (first,) = run.attempts()
    finally:
        data.with_name("kept").rename(data)
    assert (first["exit_reason"], first["error"]) == ("killed", None)
    assert abs(datetime.fromisoformat(first["end"]).timestamp() - run.metrics()[-1]["time"]) < 1e-3
    assert run.interrupt(signal.SIGTERM, after_step=run.metrics()[-1]["step"] + 1)[0] == 75
    assert run.attempts()[0] == first


def test_under_torchrun_a_killed_rank_is_told_by_its_neighbour(strike: Strike) -> None:
    run, process = strike("torchrun_killed", signal.SIGKILL, 1, by_torchrun=True)
    said = process.communicate(timeout=LIMIT)[0]
    assert "error: rank 1 was killed: it is gone and left no word" in said
    assert "this is a bug" not in said
    assert [one["exit_reason"] for one in run.attempts()] == ["killed"]


def test_under_torchrun_a_rank_that_stands_still_is_named(strike: Strike) -> None:
    run, process = strike("torchrun_stopped", signal.SIGSTOP, 1, by_torchrun=True)
    said = process.communicate(timeout=LIMIT)[0]
    assert "error: rank 1 has stood still since" in said
    assert [one["exit_reason"] for one in run.attempts()] == ["stalled"]


def test_a_suspended_run_is_not_one_that_stands_still(strike: Strike) -> None:
    """All of its processes are stopped for longer than a standstill takes, as when Slurm suspends a job."""
    run, process = strike("suspended", signal.SIGCONT, 1)  # which does nothing to it
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(20)
    step = run.metrics()[-1]["step"]
    os.killpg(process.pid, signal.SIGCONT)
    while run.metrics()[-1]["step"] < step + 20:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    assert "stood still" not in ended(process)
    assert process.returncode == 75


def test_an_error_of_one_rank_is_the_run_s(workshop: Workshop) -> None:
    """Rank 1 cannot go on: rank 0 says what it said, and not that a connection broke."""
    workshop.experiment("one_fails", ENDLESS)
    run = workshop.run("dense-bf16", "one_fails")
    program = changed_octavo(run, """
import os, sys
from octavo.errors import OctavoError
import octavo.training.step as step
train = step.Stepper.step
def broken(self, number, *rest, **more):
    if number == 7 and os.environ["RANK"] == "1":
        raise OctavoError("this rank has no more tokens")
    return train(self, number, *rest, **more)
step.Stepper.step = broken
""")  # fmt: skip
    said = with_torchrun(run, program).communicate(timeout=LIMIT)[0]
    assert "error: this rank has no more tokens" in said
    assert "this is a bug" not in said
    (attempt,) = run.attempts()
    assert (attempt["exit_reason"], attempt["error"]) == ("failed", "rank 1: this rank has no more tokens")


def test_the_rank_that_all_wait_for_is_told_by_what_each_works(workshop: Workshop) -> None:
    """Rank 1 takes 0.3 s longer to read a step's tokens: every step takes both ranks as long, their work does not."""
    changes = {"parallelism.data": 2, "precisions": ["bf16"], "training.steps": 9, "training.evaluation.interval": 9}
    workshop.experiment("one_slow", changes)
    run = workshop.run("dense-bf16", "one_slow")
    program = changed_octavo(run, """
import os, time
from octavo.training.step import Stepper
read = Stepper._micro_batches
def slow(*arguments):
    time.sleep(0.3 * int(os.environ["RANK"]))
    return read(*arguments)
Stepper._micro_batches = slow
""")  # fmt: skip
    process = with_torchrun(run, program)
    said = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0, said
    (attempt,) = run.attempts()
    quick, slow = attempt["ranks"]
    assert (quick["rank"], slow["rank"], quick["stage"], slow["stage"]) == (0, 1, 0, 0)
    assert quick["node"] == slow["node"] == attempt["host"]
    step = median(one["step_seconds"] for one in run.metrics() if "loss" in one)  # by the clock of rank 0
    assert step > slow["seconds"] > 0.3
    assert slow["seconds"] - quick["seconds"] == pytest.approx(0.3, abs=0.15)


def test_ranks_that_cannot_meet_do_not_train_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OctavoError, match="no port to meet at"):
        find_process(2)
