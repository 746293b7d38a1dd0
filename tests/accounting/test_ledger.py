"""Every attempt is in the ledger, for as long as it held its devices, whatever became of it."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from octavo.accounting import status
from octavo.accounting.ledger import attempts_frame, running
from octavo.accounting.status import run_statuses
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import AttemptRecord, RankTime, read_lines, read_table, write_table
from octavo.training.ranks import own_state, write_state
from tests.synthetic import Failure, Truth, write_experiment

CELLS = ["dense-bf16", "moe-bf16"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def synthetic(root: Path, **arguments: object) -> tuple[Experiment, ExperimentFolder]:
    folder = write_experiment(root, cells=CELLS, seeds=(1, 2), steps=100, ablations={}, **arguments)  # type: ignore[arg-type]
    return load_experiment(folder.name, ConfigFolders(root / "configs")), ExperimentFolder(Path("results/synthetic"))


def test_hours_are_devices_times_wall_clock(root: Path) -> None:
    """Dense: 10 s of start-up and 100 steps of 1 s; MoE: steps of 1.35 s. One device, 2 dollars an hour."""
    experiment, _ = synthetic(root)
    frame = attempts_frame(experiment).set_index(["cell", "seed"])
    assert frame.loc[("dense-bf16", 1), "device_hours"] == pytest.approx(110 / 3600)
    assert frame.loc[("moe-bf16", 2), "device_hours"] == pytest.approx(145 / 3600)
    assert frame.loc[("moe-bf16", 2), "cost"] == pytest.approx(2 * 145 / 3600)
    assert set(frame["source"]) == {"attempts.jsonl"}


def test_a_lost_attempt_is_counted_beside_the_one_that_finished(root: Path) -> None:
    """Killed at step 60, gone on from the checkpoint at step 50: 10 + 60 s, and 10 + 50 s."""
    experiment, _ = synthetic(root, failures={("dense-bf16", 1): Failure(60)})
    own = attempts_frame(experiment).query("cell == 'dense-bf16' and seed == 1")
    assert own["state"].tolist() == ["node_failure", "completed"]
    assert own["first_step"].tolist() == [0, 50]
    assert (own["device_hours"] * 3600).tolist() == pytest.approx([70, 60])


def test_work_under_another_configuration_stays_paid_for(root: Path) -> None:
    experiment, _ = synthetic(root, superseded=[("moe-bf16", 1)])
    own = attempts_frame(experiment).query("cell == 'moe-bf16' and seed == 1")
    assert own["superseded"].tolist() == [True, False]
    assert own["device_hours"].iloc[0] == pytest.approx(1.0)  # the synthetic one took an hour


def test_a_cell_that_the_experiment_dropped_stays_paid_for(root: Path) -> None:
    experiment, _ = synthetic(root)
    fewer = load_experiment("synthetic", _without_moe(root))
    frame = attempts_frame(fewer).set_index("cell")
    assert set(frame.index) == set(CELLS)
    assert frame.loc["moe-bf16", "superseded"].all()
    assert not frame.loc["dense-bf16", "superseded"].any()
    del experiment


def _without_moe(root: Path) -> ConfigFolders:
    import yaml

    path = root / "configs" / "experiments" / "synthetic.yaml"
    value = yaml.safe_load(path.read_text())
    del value["models"]["moe"]
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return ConfigFolders(root / "configs")


def test_an_attempt_that_left_no_word_ends_at_its_last_line(root: Path) -> None:
    experiment, folder = synthetic(root, unfinished={("dense-bf16", 2): 40})
    run = folder.run("dense-bf16", 2)
    row = attempts_frame(experiment).query("cell == 'dense-bf16' and seed == 2").iloc[0]
    assert row["state"] == "killed"
    assert row["device_hours"] * 3600 == pytest.approx(50)  # 10 s of start-up, 40 steps of 1 s
    assert not running(run)


def test_an_attempt_that_runs_is_counted_until_now(root: Path) -> None:
    experiment, folder = synthetic(root, unfinished={("dense-bf16", 2): 40})
    run = folder.run("dense-bf16", 2)
    with (run.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert running(run)
        row = attempts_frame(experiment).query("cell == 'dense-bf16' and seed == 2").iloc[0]
        assert row["state"] == "running"
        assert abs(row["end"] - datetime.now(UTC)) < timedelta(minutes=1)
        states = {(one.cell, one.seed): one for one in run_statuses(experiment)}
        assert states[("dense-bf16", 2)].state == "running"


def test_status_tells_what_is_done_how_far_the_rest_is_and_how_long_it_takes(root: Path) -> None:
    experiment, _ = synthetic(root, unfinished={("dense-bf16", 2): 40}, diverged=[("moe-bf16", 1)])
    states = {(one.cell, one.seed): one for one in run_statuses(experiment)}
    assert states[("dense-bf16", 1)].state == "done"
    assert states[("moe-bf16", 1)].state == "diverged"
    stopped = states[("dense-bf16", 2)]
    assert (stopped.state, stopped.step, stopped.steps) == ("stopped", 40, 100)
    assert stopped.seconds_left == pytest.approx(60.0)  # 60 steps of 1 s
    waiting = states[("dense-fp8_blockwise", 1)]
    assert (waiting.state, waiting.seconds_left) == ("waiting", None)
    plan = experiment.folder.plan_csv
    plan.write_text("cell,hours_per_run\ndense-fp8_blockwise,0.5\ndense-bf16,9.0\nmoe-bf16,9.0\n")
    left = {(one.cell, one.seed): one.seconds_left for one in run_statuses(experiment)}
    assert left[("dense-fp8_blockwise", 1)] == pytest.approx(1800)  # by the plan, where no step was trained
    assert left[("dense-bf16", 2)] == pytest.approx(60.0)
    assert left[("dense-bf16", 1)] is left[("moe-bf16", 1)] is None  # they are done
    plan.write_text("cell\ndense-fp8_blockwise\n")  # of an earlier version
    assert run_statuses(experiment)[0].seconds_left is None


def test_status_names_a_result_that_cannot_be_read(root: Path) -> None:
    experiment, folder = synthetic(root)
    result = folder.run("dense-bf16", 1).result
    result.write_text(result.read_text()[:-20])
    (found,) = (one for one in run_statuses(experiment) if (one.cell, one.seed) == ("dense-bf16", 1))
    assert found.state == "damaged"
    assert found.error is not None
    assert found.error.startswith("results/synthetic/runs/dense-bf16/seed-1/result.json: the file is not whole JSON")


def test_status_tells_a_run_on_other_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, _ = synthetic(root)
    monkeypatch.setattr(status, "current_manifest", lambda *_: "another")
    assert {one.state for one in run_statuses(experiment) if one.cell in CELLS} == {"changed"}


def test_the_table_survives_its_file(root: Path) -> None:
    experiment, folder = synthetic(root, failures={("dense-bf16", 1): Failure(60)})
    frame = attempts_frame(experiment)
    write_table(folder.attempts_table, frame, "attempts")
    again = read_table(folder.attempts_table, "attempts", made_by="test")
    assert again["device_hours"].sum() == pytest.approx(frame["device_hours"].sum())
    assert len(again) == len(frame) == 5
    assert Truth().startup_seconds == 10.0  # what the sums above take it to be


def test_how_long_ranks_worked_is_in_the_table_and_a_slow_node_in_status(root: Path) -> None:
    """Two ranks of 1.0 and 1.2 s: the median is 1.1, and 1.2 is 9 % more. While it runs the ranks' own files say it."""
    experiment, folder = synthetic(root, unfinished={("dense-bf16", 2): 40})
    run = folder.run("dense-bf16", 2)
    ranks = [RankTime(rank=0, node="gpu1", stage=0, seconds=1.0), RankTime(rank=1, node="gpu2", stage=0, seconds=1.2)]
    attempt = read_lines(run.attempts, AttemptRecord)[-1].model_copy(update={"device_count": 2})
    ended = attempt.model_copy(update={"ranks": ranks, "end": attempt.start, "exit_reason": "signalled"})
    for rank in ranks:
        state = {"node": rank.node, "work_seconds": rank.seconds}
        write_state(run, rank.rank, own_state().model_copy(update=state))
    for one in (attempt, ended):
        run.attempts.write_text(one.model_dump_json() + "\n")
        (status,) = (one for one in run_statuses(experiment) if (one.cell, one.seed) == ("dense-bf16", 2))
        assert list(map(str, status.stragglers)) == ["gpu2 works 9% longer at a step than the median rank"]

    write_table(folder.attempts_table, attempts_frame(experiment), "attempts")
    table = read_table(folder.attempts_table, "attempts", made_by="test").set_index(["cell", "seed"])["ranks"]
    assert list(table["dense-bf16", 2]) == [one.model_dump() for one in ranks]
    assert table["dense-bf16", 1] is None
