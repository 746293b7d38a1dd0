"""A run whose layout is changed goes on from its checkpoint, says so everywhere, and passes for no other.

How near the losses of every layout stay is in `test_every_layout.py` and, of the GPU branch, in `test_gpu_branch.py`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from octavo.layout import ExperimentFolder
from octavo.records import read_table

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)

ROUNDED = 2.0**-9
"""BF16 has 8 significant bits: a partial sum that is rounded is off by this at most, relatively. Layouts differ in
nothing else, and a loss is a mean over the tokens of a batch."""


def lay(workshop: Workshop, name: str, cell: str, ranks: dict[str, int], **changes: Any) -> None:
    """Write an experiment of one cell on these ranks: what a user does in the file who lost nodes."""
    model, _, recipe = cell.partition("-")
    overrides = {model: {f"parallelism.{axis}": degree for axis, degree in ranks.items()}}
    workshop.experiment(name, {"precisions": [recipe], "overrides": overrides, **changes})


def layouts(run: Run) -> list[tuple[int, str, int]]:
    found = json.loads((run.path / "provenance.json").read_text())["layouts"]
    assert found == run.result()["layouts"]
    return [(one["after_step"], one["layout"], one["devices"]) for one in found]


def seconds(attempt: dict[str, Any]) -> float:
    return (datetime.fromisoformat(attempt["end"]) - datetime.fromisoformat(attempt["start"])).total_seconds()


@pytest.fixture(scope="module")
def resharded(workshop: Workshop) -> tuple[Run, list[str]]:
    """Data 2, killed; tensor 2, told to stop; one rank to the end; and what the last two said."""
    lay(workshop, "lost", "dense-bf16", {"data": 2})
    run = workshop.run("dense-bf16", "lost")
    run.interrupt(signal.SIGKILL, after_step=13, group=True)
    lay(workshop, "lost", "dense-bf16", {"tensor": 2})
    status, said = run.interrupt(signal.SIGTERM, after_step=31)
    assert status == 75, said
    lay(workshop, "lost", "dense-bf16", {})
    return run, [said, run.train()]


def test_it_goes_on_and_its_losses_stay(resharded: tuple[Run, list[str]], uninterrupted: Callable[[str], Run]) -> None:
    run, said = resharded
    first, second = (one["first_step"] for one in run.attempts()[1:])
    assert 0 < first < second
    for text, step, old, new in ((said[0], first, "data 2", "tensor 2"), (said[1], second, "tensor 2", "data 1")):
        assert f"goes on after step {step} from a checkpoint of {old}, micro-batch 2 under {new}, micro-batch" in text
    assert layouts(run) == [
        (0, "data 2, micro-batch 2", 2),
        (first, "tensor 2, micro-batch 2", 2),
        (second, "data 1, micro-batch 2", 1),
    ]
    assert not (run.path / "superseded").exists()
    losses, unbroken = run.losses(), uninterrupted("dense-bf16").losses()
    assert len(losses) == 80
    for step in (first, second):
        assert losses[step : step + 3] == pytest.approx(unbroken[step : step + 3], rel=ROUNDED)
    assert losses != unbroken


def test_hours_are_those_of_each_attempts_own_devices(workshop: Workshop, resharded: tuple[Run, list[str]]) -> None:
    run, _ = resharded
    workshop.octavo("aggregate", "results/lost")
    folder = ExperimentFolder(workshop.root / "results/lost")
    attempts = run.attempts()
    devices = [one["device_count"] for one in attempts]
    assert devices == [2, 2, 1]
    table = read_table(folder.attempts_table, "attempts", made_by="")
    held = [seconds(one) * count / 3600 for one, count in zip(attempts, devices, strict=True)]
    assert table["device_hours"].tolist() == pytest.approx(held)
    assert table["layout"].tolist() == [f"{one}, micro-batch 2" for one in ("data 2", "tensor 2", "data 1")]
    assert not table["superseded"].any()
    runs = read_table(folder.runs_table, "runs", made_by="")
    (row,) = runs[runs["cell"] == "dense-bf16"].to_dict("records")
    assert row["device_hours_all_in"] == pytest.approx(sum(held))
    # of a step that was trained twice the last line counts, on the devices of its own attempt
    counted = {one["step"]: (one["step_seconds"], one["attempt"]) for one in run.metrics() if "loss" in one}
    trained = sum(time * devices[attempt - 1] for time, attempt in counted.values()) / 3600
    assert row["training_device_hours"] == pytest.approx(trained)
    assert row["training_seconds"] == pytest.approx(sum(time for time, _ in counted.values()))
    first, second = (one["first_step"] for one in attempts[1:])
    assert row["layouts"] == (
        f"data 2, micro-batch 2; from step {first + 1} on tensor 2, micro-batch 2; "
        f"from step {second + 1} on data 1, micro-batch 2"
    )
    steps = read_table(folder.steps_table, "steps", made_by="")
    steps = steps[steps["cell"] == "dense-bf16"]
    assert steps["devices"].tolist() == [2] * second + [1] * (80 - second)
    assert steps["device_hours"].iloc[-1] == pytest.approx(trained)


def test_it_is_not_called_equal_to_the_bit(workshop: Workshop, resharded: tuple[Run, list[str]]) -> None:
    found = workshop.root / "results/lost/verification.json"
    workshop.octavo("verify", "results/lost", "--sample", "1", "--gates", "repeatability")
    checks = json.loads(found.read_text())["checks"]
    assert not [one for one in checks if one["status"] in ("damaged", "identical", "different")]
    (check,) = [one for one in checks if one["gate"] == "repeatability"]
    assert "the original was resharded (data 2, micro-batch 2; from step" in check["note"]
    assert "is not compared to the bit" in check["note"]
    assert check["status"] == "not testable here"  # one seed: no spread to hold it against
    assert check["difference"] < 0.01


def test_a_finished_run_stays_when_its_layout_is_changed(workshop: Workshop, resharded: tuple[Run, list[str]]) -> None:
    run, _ = resharded
    before = run.result()
    lay(workshop, "lost", "dense-bf16", {"data": 2})
    assert "it is now configured for data 2, micro-batch 2)" in run.train()
    assert run.result() == before
    states = json.loads(workshop.octavo("status", "results/lost", "--json"))["runs"]
    assert [one["state"] for one in states if one["cell"] == "dense-bf16"] == ["done"]
    lay(workshop, "lost", "dense-bf16", {}, **{"training.checkpoints.resharding": "forbid"})
    states = json.loads(workshop.octavo("status", "results/lost", "--json"))["runs"]
    assert [one["state"] for one in states if one["cell"] == "dense-bf16"] == ["changed"]


def test_experts_of_two_ranks_go_on_in_one(workshop: Workshop, uninterrupted: Callable[[str], Run]) -> None:
    """With delayed scaling, of which each expert has a history."""
    cell, steps = "moe-fp8_delayed", {"training.steps": 30}
    lay(workshop, "experts_lost", cell, {"data": 2, "expert": 2}, **steps)
    run = workshop.run(cell, "experts_lost")
    status, said = run.interrupt(signal.SIGTERM, after_step=12)
    assert status == 75, said
    lay(workshop, "experts_lost", cell, {}, **steps)
    said = run.train()
    begin = run.attempts()[1]["first_step"]
    assert f"goes on after step {begin} from a checkpoint of expert 2, data 2, micro-batch 2 under data 1" in said
    unbroken = uninterrupted(cell).losses()
    assert run.losses()[begin : begin + 3] == pytest.approx(unbroken[begin : begin + 3], rel=ROUNDED)


def test_where_it_is_forbidden_the_run_begins_anew(workshop: Workshop, uninterrupted: Callable[[str], Run]) -> None:
    """And goes on under its own layout to the last bit, in the form of checkpoints that no other layout reads."""
    strict = {"training.steps": 12, "training.checkpoints.resharding": "forbid"}
    lay(workshop, "strict", "dense-bf16", {}, **strict)
    run = workshop.run("dense-bf16", "strict")
    status, said = run.interrupt(signal.SIGTERM, after_step=2)
    assert status == 75, said
    run.train()
    assert run.attempts()[1]["first_step"] >= 2
    assert run.losses() == uninterrupted("dense-bf16").losses()[:12]
    lay(workshop, "strict", "dense-bf16", {"data": 2}, **strict)
    said = " ".join(run.train().split())
    assert (
        "resharding is forbid, and the run begins anew: what it left under data 1, micro-batch 2 was moved to" in said
    )
    assert layouts(run) == [(0, "data 2, micro-batch 2", 2)]
    assert [one["first_step"] for one in run.attempts()] == [0]
    assert len(list(run.path.glob("superseded/*/attempts.jsonl"))) == 1
