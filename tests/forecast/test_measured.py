"""What was measured replaces what it can of a forecast."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.cpu.processor import processor
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.forecast.measured import EIGHTY, REPEATED, forecast_cells, planned_steps, write_steps
from octavo.forecast.plan import plan_frame
from octavo.forecast.steps import StepForecast, forecast_step
from octavo.layout import accept_file
from tests.test_records import result_value

Train = Callable[..., None]


@pytest.fixture
def laptop(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment, in a checkout where nothing was trained."""
    (tmp_path / "configs").symlink_to(repository / "configs")
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    found = load_experiment("laptop")
    return dataclasses.replace(found, cells={cell.cell: cell for cell in found.grid})


@pytest.fixture
def train(tmp_path: Path, laptop: Experiment) -> Train:
    """Leave what a run leaves that took `slower` times the time that is forecast."""

    def leave(
        cell: str,
        slower: float,
        seed: int = 1,
        *,
        of: Experiment = laptop,
        finished: bool = True,
        hardware: dict[str, Any] | None = None,
    ) -> None:
        run = of.run(cell, seed)
        seconds = slower * forecast_step(of.cells[cell], of.cluster, of.device).seconds
        folder = tmp_path / of.folder.run(cell, seed).path
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(run.to_yaml())
        provenance = {
            "schema_version": 1, "octavo_version": "0", "git_commit": None, "git_dirty": None, "image_digest": None,
            "python": "3", "packages": {}, "lock_sha256": None, "threads": 1, "environment": {},
            "hardware": {**processor(), "gpu": None, **(hardware or {})}, "data_manifest_sha256": "0",
            "precision_built": {}, "emulated": False, "deterministic": True,
        }  # fmt: skip
        (folder / "provenance.json").write_text(json.dumps(provenance))
        if finished:
            steps = run.training.total_steps
            value = {**result_value(), "steps": steps, "training_seconds": steps * seconds}
            (folder / "result.json").write_text(json.dumps({**value, "run_fingerprint": run.run_fingerprint}))
            return
        attempt = {"attempt": 1, "start": "2026-05-01T00:00:00Z", "host": "h", "nodes": ["h"], "device_kind": "cpu",
                   "device_count": 1, "first_step": 0, "run_fingerprint": run.run_fingerprint}  # fmt: skip
        (folder / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
        lines = [
            {"step": step, "tokens": step, "time": 0.0, "attempt": 1, "loss": 5.0, "step_seconds": seconds}
            for step in range(1, 41)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return leave


def ratios(experiment: Experiment) -> dict[str, float]:
    """Speed with what was measured over the forecast alone."""
    return {name: plain(experiment, name).seconds / step.seconds for name, step in forecast_cells(experiment).items()}


def plain(experiment: Experiment, name: str) -> StepForecast:
    return forecast_step(experiment.cells[name], experiment.cluster, experiment.device)


def half_width(step: StepForecast) -> float:
    return math.log(step.high_factor / step.low_factor) / 2


def test_nothing_measured_changes_nothing(laptop: Experiment) -> None:
    assert forecast_cells(laptop) == {name: plain(laptop, name) for name in laptop.cells}


def test_a_run_is_its_cells_rate_and_moves_the_others_part_of_the_way(laptop: Experiment, train: Train) -> None:
    train("dense-bf16", 2.0)
    found, ratio = forecast_cells(laptop), ratios(laptop)
    assert ratio["dense-bf16"] == pytest.approx(0.5)
    assert ratio["moe-fp8_blockwise"] == pytest.approx(0.5**0.5)  # half of an error's variance is the cluster's
    own, other, alone = found["dense-bf16"], found["moe-bf16"], plain(laptop, "moe-bf16")
    assert half_width(own) == pytest.approx(REPEATED)
    assert half_width(other) == pytest.approx(half_width(alone) * math.sqrt(0.75))
    assert sum(own.breakdown.values()) == pytest.approx(own.seconds)
    assert (own.measured_runs, other.measured_runs) == (1, 0)
    assert "its rate is theirs" in own.basis
    assert "runs of 1 cells on the cluster make the forecast of other cells 0.71 times as fast" in other.basis


def test_more_cells_move_the_others_further_and_their_spread_widens(laptop: Experiment, train: Train) -> None:
    for cell, slower in (("dense-bf16", 1.0), ("dense-fp8_blockwise", 2.0), ("moe-bf16", 4.0)):
        train(cell, slower)
    off = [math.log(1 / slower) for slower in (1, 2, 4)]
    spread = sum((one - off[1]) ** 2 for one in off) / 2
    common = (half_width(plain(laptop, "moe-fp8_blockwise")) / EIGHTY) ** 2 / 2
    known = 3 * common / (3 * common + spread)
    found = forecast_cells(laptop)["moe-fp8_blockwise"]
    assert ratios(laptop)["moe-fp8_blockwise"] == pytest.approx(math.exp(known * off[1]))
    assert half_width(found) == pytest.approx(EIGHTY * math.sqrt(common * (1 - known) + spread))


def test_runs_that_differ_make_their_cells_interval_wider(laptop: Experiment, train: Train) -> None:
    train("dense-bf16", 1.0, seed=1)
    train("dense-bf16", 2.0, seed=2)
    found = forecast_cells(laptop)["dense-bf16"]
    assert found.measured_runs == 2
    assert ratios(laptop)["dense-bf16"] == pytest.approx(0.5**0.5)
    assert half_width(found) == pytest.approx(EIGHTY * math.log(2) / math.sqrt(2))


def test_a_run_under_way_counts_while_none_is_finished(laptop: Experiment, train: Train) -> None:
    train("dense-bf16", 3.0, seed=1, finished=False)
    assert ratios(laptop)["dense-bf16"] == pytest.approx(1 / 3)
    train("dense-bf16", 2.0, seed=2)
    assert ratios(laptop)["dense-bf16"] == pytest.approx(1 / 2)


def test_another_experiment_on_the_cluster_counts(laptop: Experiment, train: Train) -> None:
    """Where its cell takes the same steps, as this cell's rate, whatever its length; else as another cell's."""
    longer = dataclasses.replace(laptop, name="longer", cells=dict(laptop.cells))
    training = laptop.cells["dense-bf16"].training.model_copy(update={"steps": 1000})
    longer.cells["dense-bf16"] = laptop.cells["dense-bf16"].model_copy(update={"training": training})
    train("dense-bf16", 2.0, of=longer)
    assert ratios(laptop)["dense-bf16"] == pytest.approx(0.5)
    assert ratios(laptop)["moe-bf16"] == pytest.approx(0.5**0.5)


def test_a_cell_of_other_steps_is_another(laptop: Experiment, train: Train) -> None:
    train("dense-bf16", 2.0, of=load_experiment("quickstart"))  # a larger model
    assert ratios(laptop)["dense-bf16"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("hardware", [{"cpu_model": "another"}, {"gpu": "NVIDIA H100 80GB HBM3"}])
def test_runs_on_another_processor_say_nothing(laptop: Experiment, train: Train, hardware: dict[str, Any]) -> None:
    train("dense-bf16", 2.0, hardware=hardware)
    assert set(ratios(laptop).values()) == {1.0}


def test_a_run_that_cannot_be_read_says_nothing(laptop: Experiment, train: Train, tmp_path: Path) -> None:
    train("dense-bf16", 2.0)
    result = tmp_path / laptop.folder.run("dense-bf16", 1).result
    result.write_text(result.read_text()[:50])
    assert set(ratios(laptop).values()) == {1.0}


def test_the_plan_says_which_cells_were_measured(laptop: Experiment, train: Train) -> None:
    train("moe-bf16", 2.0)
    frame = plan_frame(laptop, forecast_cells(laptop)).set_index("cell")
    assert frame.measured_runs.to_dict() == {name: int(name.startswith("moe-bf16")) for name in laptop.cells}
    expected = plain(laptop, "moe-bf16").tokens_per_second_per_device / 2
    assert frame.loc["moe-bf16"].tokens_per_second_per_device == pytest.approx(expected)


def test_what_octavo_accept_measured_moves_the_recipes_it_measured(laptop: Experiment, tmp_path: Path) -> None:
    path = tmp_path / accept_file("h100-node")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema_version": 1, "cluster": "h100-node", "factors": {"bf16": 0.81}}))
    node = load_experiment("h100-node")
    ratio = ratios(node)
    assert ratio["dense-bf16"] == pytest.approx(0.9)  # the root of 0.81
    assert ratio["dense-fp8_tensorwise"] == 1.0
    assert "what octavo accept measured of it make" in forecast_cells(node)["dense-bf16"].basis
    assert set(ratios(laptop).values()) == {1.0}  # another cluster


@pytest.mark.parametrize(
    "value", [[], {"schema_version": 2, "factors": {}}, {"schema_version": 1, "factors": {"bf16": "fast"}}]
)
def test_a_page_of_octavo_accept_without_factors_is_refused(laptop: Experiment, tmp_path: Path, value: object) -> None:
    path = tmp_path / accept_file("laptop")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
    with pytest.raises(OctavoError, match="octavo accept"):
        forecast_cells(laptop)


def test_a_plan_is_made_again_from_what_was_measured_when_it_was_made(
    laptop: Experiment, train: Train, tmp_path: Path
) -> None:
    """Runs that came later, and another machine, do not change it; an edited file is named."""
    steps = forecast_cells(laptop)
    path = tmp_path / laptop.folder.plan_steps
    write_steps(path, steps)
    train("moe-bf16", 2.0)
    assert forecast_cells(laptop) != steps
    assert planned_steps(laptop, path) == steps
    assert plan_frame(laptop, planned_steps(laptop, path)).equals(plan_frame(laptop, steps))
    value = json.loads(path.read_text())
    del value["cells"]["moe-bf16"]["seconds"]
    path.write_text(json.dumps(value))
    with pytest.raises(OctavoError, match="octavo plan results/laptop"):
        planned_steps(laptop, path)


def test_what_a_configuration_says_is_forecast_again(laptop: Experiment, tmp_path: Path) -> None:
    """A GPU's step rests on no measurement: a number that was changed in the file is not taken from there."""
    node, path = load_experiment("h100-node"), tmp_path / "plan.json"
    steps = forecast_cells(node)
    write_steps(path, {name: dataclasses.replace(step, seconds=2 * step.seconds) for name, step in steps.items()})
    assert planned_steps(node, path) == steps
