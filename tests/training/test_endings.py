"""How runs end that cannot go on: one clear message, nothing lost, nothing half-written."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.tiny import LIMIT, environment, octavo

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)


def message(run: Run) -> str:
    """The one message of a run that must fail; no traceback."""
    output = run.train(expected_status=1)
    assert "Traceback" not in output
    assert "unexpected" not in output
    assert output.count("error:") == 1
    return output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallelism.tensor": 3}, ["tensor parallelism 3", "attention heads: 2", "a divisor of 2"]),
        ({"parallelism.pipeline": 3}, ["pipeline parallelism 3", "layers: 2"]),
        ({"parallelism.data": 4}, ["does not divide", "global_batch_size 4", "a multiple of 8"]),
        ({"overrides.moe": {"parallelism.expert": 3, "parallelism.data": 3}}, ["divide"]),
        ({"training.micro_batch_size": 3}, ["does not divide", "global_batch_size 4", "a multiple of 3"]),
    ],
)
def test_sizes_that_do_not_divide(workshop: Workshop, changes: dict[str, Any], words: list[str]) -> None:
    workshop.experiment("odd", changes)
    said = message(workshop.run("dense-bf16", "odd"))
    assert "odd.yaml" in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("cell", "changes", "words"),
    [
        ("dense-bf16", {"parallelism.context": 2}, "context parallelism"),
        ("moe-bf16", {"parallelism.tensor": 2, "parallelism.sequence": True}, "tensor parallelism with experts"),
        ("dense-bf16", {"parallelism.data": 2, "training.optimizer.distributed": True}, "the distributed optimizer"),
    ],
)
def test_layouts_that_do_not_work_without_cuda(
    workshop: Workshop, cell: str, changes: dict[str, Any], words: str
) -> None:
    workshop.experiment("refused", changes)
    run = workshop.run(cell, "refused")
    assert f"on CPUs a run cannot have {words}" in message(run)
    assert not run.attempts()


def test_a_run_without_its_device_is_an_attempt_that_says_why(workshop: Workshop) -> None:
    workshop.experiment("for_gpus", {"cluster": "h100-node", "precisions": ["bf16"]})
    run = workshop.run("dense-bf16", "for_gpus")
    reason = "the run is for H100, and this machine has no GPU that CUDA can use"
    assert reason in message(run)
    (attempt,) = run.attempts()
    assert (attempt["exit_reason"], attempt["error"], attempt["last_step"]) == ("failed", reason, 0)


def test_how_long_checkpoints_took_is_kept(workshop: Workshop, uninterrupted: Any) -> None:
    assert uninterrupted("dense-bf16").attempts()[0]["save_seconds"] > 0


@pytest.mark.parametrize(("seconds", "warned"), [(120.0, False), (121.0, True)])
def test_a_checkpoint_that_takes_longer_than_slurms_notice_is_warned_of(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, seconds: float, warned: bool
) -> None:
    """h100-node.yaml leaves signal_seconds at 120."""
    from octavo.experiment.load import load_experiment
    from octavo.training.requirements import late_to_save

    monkeypatch.setenv("OCTAVO_ROOT", str(workshop.root))
    workshop.experiment("noticed", {"cluster": "h100-node", "precisions": ["bf16"]})
    said = late_to_save(load_experiment("noticed").run("dense-bf16", 1), seconds)
    assert (said is not None and "raise slurm.signal_seconds in configs/clusters/h100-node.yaml" in said) == warned


def test_a_diverged_run_has_a_result_that_says_so(workshop: Workshop) -> None:
    # a step of 1e38 along every axis of the embedding overflows BF16 at once
    optimizer = {"learning_rate": 10.0, "embedding_multiplier": 1e37, "weight_decay": 0.0}
    workshop.experiment("diverged", {"training.optimizer": optimizer})
    run = workshop.run("dense-bf16", "diverged")
    run.train()
    result = run.result()
    assert result["status"] == "diverged"
    assert result["steps"] < 80
    assert result["validation_loss"] is None
    assert run.attempts()[-1]["exit_reason"] == "diverged"
    assert "complete" in run.train()  # it is the run's result: nothing trains it again


@pytest.mark.timeout(3600)  # three processes that import torch
def test_a_diverging_run_that_is_interrupted_ends_at_the_step_where_it_would_have(workshop: Workshop) -> None:
    """50 steps on end above 1.5 ln 320 = 8.65 nats: those before the interruption count."""
    ends = []
    for name in ("diverging", "diverging_killed"):
        # logits far from each other from the beginning, and steps too small to mend them
        changes = {"training.initialisation_std": 2.0, "training.optimizer": {"learning_rate": 1e-6}}
        workshop.experiment(name, changes)
        run = workshop.run("dense-bf16", name)
        if name == "diverging_killed":
            run.interrupt(signal.SIGKILL, after_step=25)
        run.train()
        assert run.result()["status"] == "diverged"
        ends.append((run.result()["steps"], run.losses()))
    assert run.attempts()[-1]["first_step"] > 0
    assert ends[0] == ends[1]
    steps, losses = ends[0]
    assert 50 <= steps < 80
    assert min(losses[-50:]) > 1.5 * math.log(320)


BREAK_STEP_13 = """
import octavo.training.step as step
train = step.Stepper.step

def broken(self, number, *rest, **more):
    if number == 13:
        next(self._chunks[0].parameters()).data.fill_(float("nan"))
    return train(self, number, *rest, **more)

step.Stepper.step = broken
from octavo.cli import main
main()
"""


def test_a_resumed_run_that_diverges_earlier_than_it_was_killed_is_sound(workshop: Workshop) -> None:
    """Saved at 10, killed at 18, resumed, diverged at 13: 13 steps with 13 steps' seconds, and verify finds no fault.

    The second attempt's step 13 has NaN parameters, as a broken device gives them.
    """
    workshop.experiment("diverged_earlier", {"precisions": ["bf16"], "training.steps": 5000})
    run = workshop.run("dense-bf16", "diverged_earlier")
    run.interrupt(signal.SIGKILL, after_step=18)
    for later in run.path.glob("checkpoints/step-*"):  # the kill came a little late: as if it had come at 18
        if later.name != "step-10":
            shutil.rmtree(later)
    killed = run.metrics()
    assert killed[-1]["step"] >= 18
    done = subprocess.run(
        [sys.executable, "-c", BREAK_STEP_13, "train", str(run.path)],
        cwd=workshop.root, env=environment(workshop.root), capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, second = run.result(), run.metrics()[len(killed) :]
    assert (result["status"], result["steps"], result["tokens"]) == ("diverged", 13, 13 * 4 * 32)
    assert [line["step"] for line in second] == [11, 12, 13]
    seconds = [line["step_seconds"] for line in (*killed[:10], *second)]
    assert result["training_seconds"] == pytest.approx(sum(seconds), rel=1e-12)
    octavo(workshop.root, "verify", "results/diverged_earlier", "--sample", "0")  # it fails: there are no tables yet
    checks = json.loads((workshop.root / "results/diverged_earlier/verification.json").read_text())["checks"]
    assert [one["status"] for one in checks if one["run"] == "runs"] == ["intact"]


def test_data_that_no_longer_match_their_manifest(workshop: Workshop) -> None:
    workshop.experiment("changed", {"data.split_seed": 1})
    workshop.octavo("data", "changed")
    folder = max((workshop.root / "results/data").iterdir(), key=lambda path: path.stat().st_mtime)
    tokens = bytearray((folder / "train.bin").read_bytes())
    tokens[0] ^= 1
    (folder / "train.bin").write_bytes(tokens)
    said = message(workshop.run("dense-bf16", "changed"))
    assert "train.bin" in said
    assert "does not match its manifest" in said


@pytest.mark.parametrize("key", ["sequences", "final_sequences"])
def test_more_held_out_sequences_than_there_are(workshop: Workshop, key: str) -> None:
    """One document of about 2,000 bytes is held out: some 60 sequences of 32 tokens."""
    workshop.experiment("too_many", {f"training.evaluation.{key}": 1000})
    run = workshop.run("dense-bf16", "too_many")
    said = message(run)
    assert f"training.evaluation.{key}: 1000" in said
    assert "at least 1000" in said
    assert not run.losses(), "it is told before the first step"


def test_data_that_were_never_made(workshop: Workshop) -> None:
    workshop.experiment("missing", {"data.split_seed": 2})
    assert "octavo data" in message(workshop.run("dense-bf16", "missing"))


@pytest.fixture
def small_disk(workshop: Workshop) -> Iterator[Path]:
    """An experiment's results on a disk of 1 MiB."""
    folder = workshop.root / "results/small_disk"
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk of one MiB")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(workshop: Workshop, small_disk: Path, uninterrupted: Any) -> None:
    workshop.experiment("small_disk")
    run = workshop.run("dense-bf16", "small_disk")
    (small_disk / "large").write_bytes(bytes(700 << 10))
    said = message(run)
    assert "No space left on device" in said
    assert not run.complete
    assert not list(run.path.glob("checkpoints/step-*"))
    (small_disk / "large").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    run.train()
    assert run.losses() == uninterrupted("dense-bf16").losses()
    full, completed = run.attempts()
    assert full["exit_reason"] in ("failed", "killed")  # there may have been no room left for the word
    assert completed["exit_reason"] == "completed"


def test_a_folder_that_cannot_be_written(workshop: Workshop, small_disk: Path) -> None:
    workshop.experiment("small_disk")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = message(workshop.run("dense-bf16", "small_disk"))
    assert "Read-only file system" in said
    assert f"where:    {small_disk.relative_to(workshop.root)}/" in said


def test_a_second_trainer_of_the_same_run(workshop: Workshop) -> None:
    workshop.experiment("twice", {"training.steps": 100_000})
    run = workshop.run("dense-bf16", "twice")
    first = run.start()
    try:
        while not run.losses():
            assert first.poll() is None
        assert "another process trains this run" in message(run)
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_a_checkpoint_that_is_damaged_is_named_and_not_gone_on_from(workshop: Workshop) -> None:
    workshop.experiment("torn", {"training.steps": 30})
    run = workshop.run("dense-bf16", "torn")
    run.train()
    whole = run.result()["parameters_sha256"]
    (run.path / "result.json").unlink()
    for shard in run.path.glob("checkpoints/step-20/*.distcp"):
        os.truncate(shard, 10)
    said = run.train()
    assert "not going on from a checkpoint: step-20/__0_0.distcp is not what was saved" in said
    assert "going on from the checkpoint after step 10" in said
    assert run.result()["parameters_sha256"] == whole
