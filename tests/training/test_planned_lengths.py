"""Runs planned for several lengths: a decay from the trunk's checkpoint is the run of that length, bit for bit.

The trunk has 80 steps and the rate falls in the last quarter: the run of 40 steps leaves it after step 30, that of 24
after step 18. Its 80 x 8 x 64 = 40,960 tokens are more than the text's 22,000 or so: the order in which text repeats is
part of what is compared.
"""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")

SCHEDULE: dict[str, Any] = {"warmup_fraction": 0.1, "decay": "wsd", "decay_fraction": 0.25, "minimum": 0.1}
WHOLE: dict[str, Any] = {
    "training.global_batch_size": 8,
    "training.sequence_length": 64,
    "training.checkpoints": {"interval": 7, "keep": 1},
    "training.evaluation.interval": 10,
    "training.schedule": {**SCHEDULE, "horizons": [0.3, 0.5, 1.0]},
}
BY_ITSELF = WHOLE | {"training.steps": 40, "training.schedule": {**SCHEDULE, "trunk_steps": 80}}
"""A run of 40 steps, trained from the first step on."""


@pytest.fixture(scope="module")
def planned(workshop: Workshop) -> Workshop:
    workshop.experiment("lengths", WHOLE)
    workshop.experiment("by_itself", BY_ITSELF)
    workshop.run("dense-bf16", "lengths").train()
    return workshop


def assert_is_the_run_by_itself(decay: Run, whole: Run) -> None:
    """Every logged loss, the final loss, the final parameters, and what results are filed under."""
    whole.train()
    assert decay.losses() == whole.losses()[30:]
    assert decay.validation_losses() == {40: whole.validation_losses()[40]}
    for name in ("validation_loss", "training_loss", "parameters_sha256", "run_fingerprint", "steps", "tokens"):
        assert decay.result()[name] == whole.result()[name], name


def test_a_decay_from_the_trunk_is_the_run_of_that_length_bit_for_bit(planned: Workshop) -> None:
    decay = planned.run("dense-bf16", "lengths", horizon=40)
    decay.train()
    assert_is_the_run_by_itself(decay, planned.run("dense-bf16", "by_itself"))
    trained = [one["step"] for one in decay.metrics() if "loss" in one]
    assert trained == list(range(31, 41))  # it trains its decay alone
    (attempt,) = decay.attempts()
    assert (attempt["first_step"], attempt["last_step"]) == (30, 40)


def test_the_trunk_is_at_its_peak_until_its_own_decay_and_keeps_where_others_begin(planned: Workshop) -> None:
    run = planned.run("dense-bf16", "lengths")
    rates = {one["step"]: one["learning_rate"] for one in run.metrics() if "learning_rate" in one}
    assert rates[8] == pytest.approx(3e-3)  # after a tenth of 80 steps
    assert {rates[step] for step in range(8, 61)} == {rates[8]}
    # 1 - sqrt(share): step 80 is 20 of 21 steps to a tenth of the peak
    assert rates[80] == pytest.approx(3e-3 * (0.1 + 0.9 * (1 - (20 / 21) ** 0.5)))
    # the newest of interval 7, and those after which the runs of 24 and 40 steps leave
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"step-18", "step-30", "step-77"}


def test_killed_in_the_trunk_and_in_the_decay_it_is_still_the_same_run(planned: Workshop) -> None:
    planned.experiment("lengths_killed", WHOLE | {"training.checkpoints": {"interval": 3, "keep": 1}})
    trunk = planned.run("moe-fp8_delayed", "lengths_killed")
    trunk.interrupt(signal.SIGKILL, after_step=29)  # around the checkpoint that the decay begins from
    trunk.train()
    decay = planned.run("moe-fp8_delayed", "lengths_killed", horizon=40)
    decay.interrupt(signal.SIGKILL, after_step=34)
    decay.train()
    assert_is_the_run_by_itself(decay, planned.run("moe-fp8_delayed", "by_itself"))
    assert [one["exit_reason"] for one in decay.attempts()] == ["killed", "completed"]
    assert decay.attempts()[0]["first_step"] == 30


def test_a_horizon_that_is_added_later_leaves_finished_runs_as_they_are(planned: Workshop) -> None:
    planned.experiment("lengths", WHOLE | {"training.schedule": {**SCHEDULE, "horizons": [0.3, 0.5, 0.75, 1.0]}})
    assert "complete" in planned.run("dense-bf16", "lengths").train()
    said = planned.run("dense-bf16", "lengths", horizon=60).train(expected_status=1)
    assert "the trunk's checkpoint is not there" in said
    assert "dense-bf16/seed-1 after step 45" in said
    assert "train the trunk again" in said
    planned.experiment("lengths", WHOLE)


def test_from_a_damaged_checkpoint_a_run_does_not_start(planned: Workshop) -> None:
    planned.experiment("lengths_gone", WHOLE)
    decay = planned.run("dense-bf16", "lengths_gone", horizon=40)
    shutil.copytree(planned.run("dense-bf16", "lengths").path, decay.path.parent, dirs_exist_ok=True)
    shutil.rmtree(decay.path, ignore_errors=True)
    (damaged,) = (decay.path.parent / "checkpoints/step-30").glob("__0_0.distcp")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    said = decay.train(expected_status=1)
    assert "cannot begin from the trunk's checkpoint: step-30/__0_0.distcp is not what was saved" in said
    assert decay.attempts() == []


def test_where_the_trunk_diverged_before_the_decay_the_run_has_diverged_too(planned: Workshop) -> None:
    # AdamW moves every weight by about 10 a step: the loss is above its limit from the first steps on
    wild = WHOLE | {"training.steps": 160, "training.optimizer.learning_rate": 10.0}
    planned.experiment("lengths_wild", wild)
    trunk = planned.run("dense-bf16", "lengths_wild")
    trunk.train()
    assert trunk.result()["status"] == "diverged"
    assert trunk.result()["steps"] <= 60  # a run of 80 steps would leave it after step 60
    decay = planned.run("dense-bf16", "lengths_wild", horizon=80)
    decay.train()
    assert (decay.result()["status"], decay.result()["steps"], decay.losses()) == ("diverged", 0, [])
