"""A run is a function of its configuration and seed, to the last bit, however often it is killed on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
Trained = Callable[[str], "Run"]


def assert_same(run: Run, other: Run) -> None:
    """The same losses and parameters, bit for bit."""
    assert run.losses() == other.losses()
    assert run.validation_losses() == other.validation_losses()
    assert run.result()["parameters_sha256"] == other.result()["parameters_sha256"]


@pytest.mark.parametrize("cell", ["dense-bf16", "moe-fp8_tensorwise"])
def test_the_same_seed_twice_gives_the_same_bits(workshop: Workshop, uninterrupted: Trained, cell: str) -> None:
    workshop.experiment("again")
    again = workshop.run(cell, "again")
    again.train()
    assert_same(again, uninterrupted(cell))


def test_a_run_learns_and_its_result_says_what_its_metrics_say(uninterrupted: Trained) -> None:
    run = uninterrupted("moe-fp8_tensorwise")
    losses, result = run.losses(), run.result()
    assert len(losses) == 80
    assert losses[-1] < losses[0] - 1.0  # from ln 320 = 5.8 towards the text's three or so
    assert result["status"] == "completed"
    assert result["training_loss"] == pytest.approx(sum(losses[-8:]) / 8)  # over the last tenth of the run
    assert list(run.validation_losses()) == [40, 80]
    assert run.metrics()[-1]["final_validation_loss"] == result["validation_loss"]
    # 8 sequences, 4 of which are among these 80th step's
    assert result["validation_loss"] == pytest.approx(run.validation_losses()[80], rel=0.2)
    assert [one["exit_reason"] for one in run.attempts()] == ["completed"]
    loads = [one["expert_load"] for one in run.metrics() if "expert_load" in one]
    assert len(loads) == 80 / 20
    assert all(sum(layer) == pytest.approx(1.0) for load in loads for layer in load)


@pytest.mark.parametrize("cell", ["dense-bf16", "moe-fp8_tensorwise", "moe-fp8_blockwise", "moe-fp8_delayed"])
def test_killed_and_started_again_equals_uninterrupted(workshop: Workshop, uninterrupted: Trained, cell: str) -> None:
    workshop.experiment("killed")
    run = workshop.run(cell, "killed")
    status, _ = run.interrupt(signal.SIGKILL, after_step=25)
    assert status == -signal.SIGKILL
    assert not run.complete
    # what else a kill may leave: half of a checkpoint, newer than all whole ones, and half of a line
    (run.path / "checkpoints/.step-70").mkdir()
    (run.path / "checkpoints/.step-70/__0_0.distcp").write_bytes(b"half")
    with (run.path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 99, "loss": 3.')
    run.train()
    assert_same(run, uninterrupted(cell))
    killed, completed = run.attempts()
    assert (killed["exit_reason"], completed["exit_reason"]) == ("killed", "completed")
    assert killed["first_step"] == 0
    assert 25 <= killed["last_step"] < 80
    assert completed["first_step"] in (20, 30, 40, 50, 60, 70)  # the newest whole checkpoint's
    assert not (run.path / "checkpoints/.step-70").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_a_run_saves_and_goes_on_where_it_was(
    workshop: Workshop, uninterrupted: Trained, number: signal.Signals
) -> None:
    name = f"told_{number.name}"
    workshop.experiment(name, {"training.checkpoints.interval": 1000})
    run = workshop.run("dense-bf16", name)
    status, output = run.interrupt(number, after_step=5)
    assert status == 75, output
    (attempt,) = run.attempts()
    assert attempt["exit_reason"] == "signalled"
    assert (run.path / f"checkpoints/step-{attempt['last_step']}").is_dir()
    assert f"going on from the checkpoint after step {attempt['last_step']}" in run.train()
    assert [one["step"] for one in run.metrics() if "loss" in one] == list(range(1, 81))  # no step twice
    assert_same(run, uninterrupted("dense-bf16"))


def test_a_finished_run_is_left_alone(uninterrupted: Trained) -> None:
    run = uninterrupted("dense-bf16")
    before = (run.path / "result.json").stat().st_mtime_ns
    assert "complete" in run.train()
    assert (run.path / "result.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_folder_begins_anew_and_keeps_what_was_paid(workshop: Workshop) -> None:
    workshop.experiment("moved", {"training.steps": 2})
    run = workshop.run("dense-bf16", "moved")
    run.train()
    workshop.experiment("moved", {"training.steps": 3})
    run.train()
    assert len(run.losses()) == 3
    assert len(list(run.path.glob("superseded/*/attempts.jsonl"))) == 1
