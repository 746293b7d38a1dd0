"""Which part of a step is off its forecast, and where a run's time went, by files as runs write them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.forecast.explain import explain
from octavo.forecast.measured import forecast_cells, write_steps
from octavo.forecast.run_time import run_time
from octavo.layout import accept_file
from tests.test_records import result_value

Train = Callable[..., None]
START = 1_790_000_000.0
"""When a run begins, in Unix time."""


@pytest.fixture
def checkout(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configurations, and nothing trained."""
    (tmp_path / "configs").symlink_to(repository / "configs")
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quickstart(checkout: Path) -> Experiment:
    return load_experiment("quickstart")


def leave(
    experiment: Experiment,
    cell: str,
    seconds: dict[int, float],
    load: list[list[float]] | None = None,
    attempts: tuple[tuple[int, int], ...] = ((1, 150),),
    ranks: tuple[tuple[str, float], ...] = (),
) -> None:
    """What a finished run leaves: 4 s of start, steps of so many seconds, 0.01 s between them, validations of 2 s after
    every 50th and the last step, checkpoints of 0.5 s after every 50th but the last, 1 s at the end.

    `seconds`: of the steps that differ from key 0's. `attempts`: their first and last steps. `ranks`: node and seconds
    of work at a step, of the last attempt.
    """
    run = experiment.run(cell, 1)
    folder, clock = experiment.folder.run(cell, 1), START
    folder.path.mkdir(parents=True)
    kept, lines = [], []
    for attempt, (first, last) in enumerate(attempts, 1):
        began, clock = clock, clock + 4
        for step in range(first, last + 1):
            clock += seconds.get(step, seconds[0])
            line: dict[str, Any] = {"step": step, "tokens": 1024 * step, "time": clock, "attempt": attempt}
            lines.append({**line, "loss": 5.0, "step_seconds": seconds.get(step, seconds[0]), "expert_load": load})
            if step % 50 == 0:
                clock += 2
                lines.append({**line, "time": clock, "validation_loss": 5.0})
            if step % 50 == 0 and step < 150:
                clock += 0.5
            elif step < last:
                clock += 0.01
        clock += 1
        kept.append(
            {"attempt": attempt, "start": moment(began), "end": moment(clock), "host": "h", "nodes": ["h"],
             "device_kind": "cpu", "device_count": 1, "first_step": first - 1,
             "run_fingerprint": run.run_fingerprint}
        )  # fmt: skip
    kept[-1]["ranks"] = [
        {"rank": rank, "node": node, "stage": 0, "seconds": worked} for rank, (node, worked) in enumerate(ranks)
    ]
    for path, values in ((folder.metrics, lines), (folder.attempts, kept)):
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
    # the times are those of the metrics
    folder.result.write_text(json.dumps({**result_value(), "steps": 150, "run_fingerprint": run.run_fingerprint}))


def moment(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat()


def test_where_the_time_of_a_run_went(quickstart: Experiment) -> None:
    leave(quickstart, "dense-bf16", {0: 0.1})
    time, steps = run_time(quickstart.run("dense-bf16", 1), quickstart.folder.run("dense-bf16", 1))
    found = dataclasses.asdict(time)
    # 149 gaps between steps, two of which are checkpoints
    of_steps = {"steps": 15, "trained_again": 0, "between": 1.47}
    rest = {"start_up": 4, "validation": 6, "checkpoints": 1, "end": 1}
    assert found == pytest.approx({**of_steps, **rest}, abs=1e-3)
    assert (steps.mean, steps.plain) == pytest.approx((0.1, 0.1))


def test_steps_that_were_trained_again_are_told_apart(quickstart: Experiment) -> None:
    """The second attempt goes on from the checkpoint after step 50: twenty steps were for nothing."""
    leave(quickstart, "dense-bf16", {0: 0.1}, attempts=((1, 70), (51, 150)))
    time, steps = run_time(quickstart.run("dense-bf16", 1), quickstart.folder.run("dense-bf16", 1))
    assert (time.start_up, time.steps, time.trained_again) == pytest.approx((8, 15, 2), abs=1e-3)
    assert steps.steps == 150


def test_a_mean_step_is_a_plain_one_and_what_others_take_beyond(quickstart: Experiment) -> None:
    """Three first steps of 0.5 s, one that looks at loads and numbers (step 100) of 0.3 s, one of 0.2 s: beyond a plain
    step of 0.1 s that is 1.2, 0.2 and 0.1 s over 150 steps. Loads are looked at after step 50, too, and it is plain."""
    leave(quickstart, "moe-fp8_tensorwise", {0: 0.1, 1: 0.5, 2: 0.5, 3: 0.5, 100: 0.3, 77: 0.2})
    run = quickstart.run("moe-fp8_tensorwise", 1)
    _, steps = run_time(run, quickstart.folder.run("moe-fp8_tensorwise", 1))
    assert steps.plain == pytest.approx(0.1)
    assert (steps.first, steps.examined, steps.slow) == pytest.approx((1.2 / 150, 0.2 / 150, 0.1 / 150))
    assert steps.mean == pytest.approx(steps.plain + steps.first + steps.examined + steps.slow)


def test_the_part_that_differs_is_named(quickstart: Experiment) -> None:
    """All cells run as forecast, but experts take 30 ms more than they should."""
    plan = forecast_cells(quickstart)
    for name, step in plan.items():
        leave(quickstart, name, {0: step.seconds + (0.03 if name.startswith("moe") else 0.0)})
    cells = {one["cell"]: one for one in explain(quickstart)["cells"]}
    assert list(cells) == list(plan)
    for name in ("moe-bf16", "moe-fp8_tensorwise"):
        assert cells[name]["difference_made_by"] == ["experts (moe-bf16 less dense-bf16)"]
        off = {one["part"]: one["measured"] - one["forecast"] for one in cells[name]["parts"]}
        assert off.pop("experts (moe-bf16 less dense-bf16)") == pytest.approx(0.03)
        assert list(off.values()) == pytest.approx([0.0] * len(off), abs=1e-9)
    assert cells["dense-bf16"]["difference_made_by"] == []
    assert cells["dense-fp8_tensorwise"]["times_as_fast"] == pytest.approx(1)


def test_what_a_slow_node_costs_of_the_step_is_a_part_and_the_node_is_named(quickstart: Experiment) -> None:
    """Of the dense cell in BF16 one rank worked 100 ms at a step and the others 80: 25 % longer, and its step took
    20 ms more than forecast. That is no part of what FP8 or experts add."""
    for name, step in forecast_cells(quickstart).items():
        longer = 0.02 if name == "dense-bf16" else 0.0
        ranks = (("gpu1", 0.08), ("gpu1", 0.08), ("gpu2", 0.08), ("gpu2", 0.08 + longer))
        leave(quickstart, name, {0: step.seconds + longer}, ranks=ranks)
    cells = {one["cell"]: one for one in explain(quickstart)["cells"]}
    for name, cell in cells.items():
        off = {one["part"]: one["measured"] - one["forecast"] for one in cell["parts"]}
        if name == "dense-bf16":
            assert off.pop("waiting for the slowest rank") == pytest.approx(0.02)
            assert cell["difference_made_by"] == ["waiting for the slowest rank"]
        else:
            assert cell["stragglers"] == cell["difference_made_by"] == []
        assert list(off.values()) == pytest.approx([0.0] * len(off), abs=1e-9)
    shown = CliRunner().invoke(app, ["explain", "quickstart"]).stdout
    took = 1000 * cells["dense-bf16"]["step_seconds"]["measured"]
    assert (
        "  Seed 1, attempt 1: gpu2, rank 3, works 25% longer at a step than the median rank; all ranks wait for it, "
        f"20.0 ms of each step ({100 * 20 / took:.0f} %).\n"
    ) in shown


def test_a_slow_node_of_one_attempt_cost_its_own_steps_alone(quickstart: Experiment) -> None:
    """The second attempt trained 100 of the 150 steps, of each of which 30 ms were a wait for one node."""
    ranks = (("gpu1", 0.07), ("gpu2", 0.07), ("gpu3", 0.1))
    leave(quickstart, "dense-bf16", {0: 0.1}, attempts=((1, 50), (51, 150)), ranks=ranks)
    _, steps = run_time(quickstart.run("dense-bf16", 1), quickstart.folder.run("dense-bf16", 1))
    # three steps of each attempt are its first ones, which as they took as long as the others are no part
    assert steps.waited == pytest.approx(0.03 * 97 / (47 + 97))
    assert steps.plain + steps.waited == pytest.approx(steps.mean) == pytest.approx(0.1)


def test_parts_add_up_to_the_forecast_and_to_the_measured_step(quickstart: Experiment) -> None:
    for name in quickstart.cells:
        leave(quickstart, name, {0: 0.1 + 0.01 * len(name), 1: 0.9, 100: 0.4})
    for cell in explain(quickstart)["cells"]:
        for column in ("forecast", "measured"):
            total = sum(one[column] for one in cell["parts"])
            assert total == pytest.approx(cell["step_seconds"][column])


def test_a_cell_without_a_simpler_one_trained_is_one_part(quickstart: Experiment) -> None:
    leave(quickstart, "moe-fp8_tensorwise", {0: 0.1})
    found = explain(quickstart)
    (cell,) = found["cells"]
    assert [one["part"] for one in cell["parts"]] == ["a step of moe-fp8_tensorwise"]
    assert "moe-bf16" in found["without_runs"]


def test_it_is_the_plans_forecast_but_where_that_rested_on_the_cells_runs(quickstart: Experiment) -> None:
    leave(quickstart, "dense-bf16", {0: 0.1})
    now = forecast_cells(quickstart)["dense-bf16"]
    for planned, measured_runs in ((True, 0), (False, 1)):
        step = dataclasses.replace(now, seconds=0.2, measured_runs=measured_runs)
        write_steps(quickstart.folder.plan_steps, {"dense-bf16": step})
        (cell,) = explain(quickstart)["cells"]
        assert cell["forecast_is_the_plans"] == planned
        assert cell["times_as_fast"] == pytest.approx(2 if planned else now.seconds / 0.1)


def test_runs_on_gpus(checkout: Path) -> None:
    """The fullest of 8 ranks got its 8 experts' half of all tokens: four times the mean. What accept found is said."""
    experiment = load_experiment("h100-node")
    cell = experiment.cells["moe-bf16"]
    assert cell.parallelism.expert == 8, "the loads below are made for that"
    count = cell.model.experts.count if cell.model.experts else 0
    each = count // 8
    load = [[0.5 / each] * each + [0.5 / (count - each)] * (count - each)]
    leave(experiment, "moe-bf16", {0: 1.0}, load=load)
    checks = [
        {"part": "messages", "name": "all-reduce over 8 GPUs", "expected": "315 GB/s", "source": "s",
         "found": "200 GB/s", "verdict": "fell short", "short_by": 0.365},
        {"part": "speed", "name": "dense", "expected": "", "source": "s", "found": "", "verdict": "passed"},
    ]  # fmt: skip
    path = checkout / accept_file("h100-node")
    path.parent.mkdir(parents=True)
    accepted = {
        "schema_version": 1, "cluster": "h100-node", "time": "2026-05-01T00:00:00Z", "octavo_version": "0",
        "git_commit": None, "device": "H100", "devices": 8, "nodes": ["n"], "stand_in": False, "seconds": 1.0,
        "factors": {}, "checks": checks,
    }  # fmt: skip
    path.write_text(json.dumps(accepted))
    found = explain(experiment)
    (told,) = found["cells"]
    assert told["fullest_expert_rank"] == pytest.approx(4)
    assert sum(told["forecast_parts"].values()) == pytest.approx(told["step_seconds"]["forecast"])
    assert told["forecast_parts"]["matrix products"] > 0
    assert [one["name"] for one in found["fell_short"]] == ["all-reduce over 8 GPUs"]
    shown = CliRunner().invoke(app, ["explain", "h100-node"])
    assert shown.exit_code == 0, shown.output
    assert "all-reduce over 8 GPUs was 200 GB/s, expected 315 GB/s, 36 % short" in shown.stdout
    assert "of kernels the shares of one step are kept" in shown.stdout


def test_the_verb_prints_tables_or_json(quickstart: Experiment) -> None:
    none = CliRunner().invoke(app, ["explain", "quickstart"])
    assert isinstance(none.exception, OctavoError)
    assert "no run is finished" in str(none.exception)
    leave(quickstart, "dense-bf16", {0: 0.1})
    shown = CliRunner().invoke(app, ["explain", "quickstart"])
    assert shown.exit_code == 0, shown.output
    assert "dense-bf16 (1 run): a step took 100.0 ms" in shown.stdout
    assert "No finished run: dense-fp8_tensorwise, moe-bf16, moe-fp8_tensorwise" in shown.stdout
    value = json.loads(CliRunner().invoke(app, ["explain", "quickstart", "--json"]).stdout)
    assert value["schema_version"] == 1
    assert value["cells"][0]["run_seconds"]["validation"] == pytest.approx(6)
