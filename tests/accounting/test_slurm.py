"""Slurm's accounting, as it was recorded.

`sacct.txt` is the output of a real Slurm 22.05 for jobs that were pre-empted, cancelled, requeued, failed, ran out of
time, lost their node, still ran and still waited.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from octavo.accounting import ledger, slurm
from octavo.accounting.reconcile import reconcile
from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.cluster import Slurm
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders
from octavo.records import AttemptRecord, SlurmRow
from tests.synthetic import write_experiment

SEPARATOR = "|3f|"


def separated(text: str) -> str:
    """sacct's output with a separator of its own: the first eleven bars of each row; a submit line may hold more."""
    rows = (line.replace("|", SEPARATOR, len(slurm.FIELDS) - 1) for line in text.split("\n"))
    return "\n".join(rows)


RECORDED = separated((Path(__file__).parent / "sacct.txt").read_text(encoding="utf-8"))
RUNS = {
    f"rule_train_wildcards_books_{cell}_{seed}": (cell, seed)
    for cell in ("dense-bf16", "moe-bf16")
    for seed in range(9)
}
WORK_DIR = "/tmp/rec"


Runs = dict[str, tuple[str, int]]


def parsed(text: str, runs: Runs = RUNS, jobs: Runs | None = None, work_dir: str = WORK_DIR) -> list[SlurmRow]:
    return slurm.parse(text, runs, jobs or {}, work_dir, gpus=True, separator=SEPARATOR)


def gpu_seconds(rows: list[SlurmRow]) -> int:
    return sum((row.devices or 0) * row.elapsed_seconds for row in rows)


@pytest.fixture
def rows() -> list[SlurmRow]:
    return parsed(RECORDED)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment on a cluster with Slurm, no run begun: one dollar per device-hour."""
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path, name="books", cells=[], seeds=range(9), precisions=("bf16",), ablations={}, price=1.0)
    loaded = load_experiment("books", ConfigFolders(tmp_path / "configs"))
    return replace(loaded, cluster=loaded.cluster.model_copy(update={"slurm": Slurm()}))


def of_run(rows: list[SlurmRow], cell: str, seed: int) -> list[SlurmRow]:
    return [row for row in rows if (row.cell, row.seed) == (cell, seed)]


def test_a_preempted_job_has_a_row_for_each_time_it_held_devices(rows: list[SlurmRow]) -> None:
    first, second = of_run(rows, "moe-bf16", 1)
    assert (first.job, second.job) == ("14", "14")
    assert (first.state, second.state) == ("PREEMPTED", "COMPLETED")
    assert first.submit < second.submit
    assert (first.elapsed_seconds, second.elapsed_seconds) == (5, 15)
    assert first.nodes == "node[1-2]"


def test_devices_are_the_gpus_allocated_over_all_nodes(rows: list[SlurmRow]) -> None:
    """Two nodes with gres/gpu:h100=2 each; three of them in the second."""
    assert of_run(rows, "moe-bf16", 1)[0].devices == 4
    assert of_run(rows, "dense-bf16", 1)[0].devices == 6


@pytest.mark.parametrize(
    ("tres", "gpus", "cores"),
    [
        ("billing=2,cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=1000M,node=2", 4, 2),
        ("cpu=2,gres/gpu:a100=1,gres/gpu:h100=4,mem=1000M", 5, 2),  # a site that tracks types alone
        ("billing=96,cpu=96,mem=100G,node=1", None, 96),  # one that tracks no GPUs: cores are none
        ("", None, None),
    ],
)
def test_devices_are_gpus_or_cores_and_never_one_for_the_other(tres: str, gpus: int | None, cores: int | None) -> None:
    assert slurm.devices_in(tres, gpus=True) == gpus
    assert slurm.devices_in(tres, gpus=False) == cores


UNTRACKED = re.sub(r"gres/gpu[^,|]*,", "", RECORDED)
"""What sacct says where AccountingStorageTRES does not list gres/gpu."""


def test_where_slurm_counts_no_gpus_they_are_those_that_the_trainer_found(experiment: Experiment) -> None:
    """Job 14 held 2 cores on two nodes for 15 s; the trainer found 4 GPUs."""
    row = of_run(parsed(UNTRACKED), "moe-bf16", 1)[1]
    assert row.devices is None
    (joined,) = slurm.join(experiment, [attempt(row.start, 14, "14") | {"devices": 4}], [row])
    assert (joined["device_hours"], joined["devices"]) == (4 * 15 / 3600, 4)
    assert joined["source"] == "sacct (GPUs as the trainer found them)"


def test_or_those_that_were_asked_for_where_training_never_began(experiment: Experiment) -> None:
    """Job 15: `-N3 --gres=gpu:h100:2`, 4 s."""
    (lost,) = slurm.join(experiment, [], of_run(parsed(UNTRACKED), "dense-bf16", 1))
    assert (lost["device_hours"], lost["source"]) == (6 * 4 / 3600, "sacct (GPUs as they were asked for)")


def test_hours_of_nobody_knows_how_many_devices_are_refused(experiment: Experiment) -> None:
    (row,) = of_run(parsed(UNTRACKED.replace("--gres=gpu:h100:2", "")), "dense-bf16", 1)
    with pytest.raises(OctavoError, match="how many devices job 15 of dense-bf16/seed-1 held is nowhere to be read"):
        slurm.join(experiment, [], [row])


FORGED = (
    "\n14|1795529275|COMPLETED|99999|gres/gpu=64|1795529275|1795629274|node1||/tmp/rec|"
    "rule_train_wildcards_books_moe-bf16_1|sbatch\n"
)
"""Whole rows, as sacct prints them by default, of a run of ours."""


@pytest.mark.parametrize("inside", ["\n", "\u2028", "\x0b", "\n\n7|x\n", FORGED, "\n14\n"])
@pytest.mark.parametrize("field", ["Comment", "SubmitLine"])
def test_no_comment_and_no_submit_line_forges_a_row(rows: list[SlurmRow], inside: str, field: str) -> None:
    """Whatever another job of the user's says, in several lines or none."""
    fields = [
        "13",
        "1795529270",
        "COMPLETED",
        "5",
        "cpu=1",
        "1795529270",
        "1795529275",
        "node1",
        "",
        "/tmp/rec",
        "",
        "sbatch",
    ]
    fields[slurm.FIELDS.index(field)] += f"a{inside}b"
    other = SEPARATOR.join(fields) + "\n"
    assert parsed(other + RECORDED + other) == rows
    assert parsed(RECORDED + other) == rows


def test_what_is_no_row_of_sacct_is_said(rows: list[SlurmRow]) -> None:
    for text in ("slurm_load: something else\n" + RECORDED, RECORDED[: len(RECORDED) // 2]):
        with pytest.raises(OctavoError, match="not a row of sacct: '"):
            parsed(text)
    assert parsed("") == []


def test_instants_are_utc(rows: list[SlurmRow]) -> None:
    """1795529275 seconds since 1970."""
    assert of_run(rows, "moe-bf16", 1)[0].start == datetime(2026, 11, 24, 14, 7, 55, tzinfo=UTC)


def test_a_job_that_never_held_devices_is_no_attempt(rows: list[SlurmRow]) -> None:
    assert RECORDED.count(f"{SEPARATOR}PENDING{SEPARATOR}") == 1
    assert not of_run(rows, "moe-bf16", 6)


def test_a_running_job_is_joined_by_its_submit_line(rows: list[SlurmRow]) -> None:
    """Slurm stores the comment when a job ends."""
    running = of_run(rows, "dense-bf16", 6)[-1]
    assert running.state == "RUNNING"
    assert running.end - running.start == timedelta(seconds=running.elapsed_seconds)


def test_jobs_of_another_checkout_or_experiment_are_not_ours() -> None:
    assert not parsed(RECORDED, work_dir="/home/user/elsewhere")
    assert not parsed(RECORDED, {"rule_train_wildcards_other_dense-bf16_1": ("dense-bf16", 1)})


def test_a_job_without_a_comment_is_joined_by_the_number_that_the_trainer_wrote() -> None:
    (row,) = parsed(RECORDED, {}, {"17": ("moe-bf16", 2)})
    assert (row.cell, row.seed, row.state) == ("moe-bf16", 2, "FAILED")


@pytest.mark.parametrize(
    ("state", "said", "reason"),
    [
        ("PREEMPTED", "signalled", "preempted"),
        ("TIMEOUT", "killed", "time_limit"),
        ("NODE_FAIL", "killed", "node_failure"),
        ("CANCELLED", None, "cancelled"),
        ("OUT_OF_MEMORY", "killed", "out_of_memory"),
        ("REQUEUED", "signalled", "signalled"),
        ("REQUEUED", "stalled", "stalled"),
        ("NODE_FAIL", "stalled", "node_failure"),
        ("FAILED", "signalled", "signalled"),
        ("FAILED", None, "failed"),
        ("COMPLETED", "diverged", "diverged"),
        ("RUNNING", "running", "running"),
    ],
)
def test_an_attempt_ended_as_slurm_says_but_for_what_only_the_trainer_knows(
    state: str, said: str | None, reason: str
) -> None:
    assert slurm.exit_reason(state, said) == reason


def attempt(start: datetime, seconds: float, job: str, number: int = 1) -> dict[str, Any]:
    """A row of the ledger by the trainer's word, one device."""
    return {
        "experiment": "books", "cell": "moe-bf16", "seed": 1, "attempt": number, "job": job, "submit": None,
        "state": "signalled", "nodes": "node1", "devices": 1, "device_kind": "cpu", "start": start,
        "end": start + timedelta(seconds=seconds), "first_step": 0, "last_step": 7, "superseded": False,
        "device_hours": seconds / 3600, "energy_kwh": 0.0, "energy_source": "power x utilisation", "cost": 0.0,
        "currency": "USD", "source": "attempts.jsonl",
    }  # fmt: skip


def test_slurms_hours_replace_the_trainers(experiment: Experiment, rows: list[SlurmRow]) -> None:
    """4 GPUs for 5 s and for 15 s, at one dollar an hour; the trainer saw 3 s of the first."""
    own = of_run(rows, "moe-bf16", 1)
    trained = [attempt(own[0].start + timedelta(seconds=1.5), 3, "14", 1), attempt(own[1].start, 14, "14", 2)]
    first, second = slurm.join(experiment, trained, own)
    assert (first["device_hours"], second["device_hours"]) == (4 * 5 / 3600, 4 * 15 / 3600)
    assert (first["cost"], second["cost"]) == pytest.approx((20 / 3600, 60 / 3600))
    assert (first["state"], second["state"]) == ("preempted", "signalled")
    assert (first["attempt"], first["last_step"], first["source"]) == (1, 7, "sacct")


def test_a_job_in_which_training_never_began_is_paid_for(experiment: Experiment, rows: list[SlurmRow]) -> None:
    (lost,) = slurm.join(experiment, [], of_run(rows, "moe-bf16", 2))
    assert (lost["attempt"], lost["state"]) == (slurm.ORPHAN, "failed")
    assert lost["device_hours"] == 2 / 3600


def test_an_attempt_that_slurm_does_not_know_keeps_the_trainers_hours(experiment: Experiment) -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    (kept,) = slurm.join(experiment, [attempt(begun, 60, "999")], [])
    assert (kept["source"], kept["device_hours"]) == ("attempts.jsonl", 60 / 3600)


def test_two_attempts_in_one_allocation_share_its_time(experiment: Experiment, rows: list[SlurmRow]) -> None:
    """15 s on 4 GPUs, the second attempt from the tenth second on."""
    row = of_run(rows, "moe-bf16", 1)[1]
    trained = [attempt(row.start, 9, "14", 1), attempt(row.start + timedelta(seconds=10), 5, "14", 2)]
    first, second = slurm.join(experiment, trained, [row])
    assert (first["device_hours"], second["device_hours"]) == pytest.approx((40 / 3600, 20 / 3600))


@pytest.mark.parametrize("lag", [40, 20, -20, -40, -80])
def test_a_nodes_clock_may_be_off(experiment: Experiment, rows: list[SlurmRow], lag: int) -> None:
    """Of job 14's two rows, 5 s and 15 s on 4 GPUs and 35 s apart, each is in the ledger once, whatever it is off."""
    own, off = of_run(rows, "moe-bf16", 1), timedelta(seconds=lag)
    trained = [attempt(row.start + off, row.elapsed_seconds, "14", n) for n, row in enumerate(own, 1)]
    joined = slurm.join(experiment, trained, own)
    assert sum(one["device_hours"] for one in joined) == pytest.approx(4 * 20 / 3600)
    assert {one["source"] for one in joined} == {"sacct"}
    assert all(one["end"] >= one["start"] for one in joined)
    if abs(lag) <= 20:  # less than half of the pause: each attempt is in the row that it was made in
        assert [(one["attempt"], one["start"]) for one in joined] == [(1, own[0].start), (2, own[1].start)]


def test_an_attempt_whose_row_slurm_has_lost_is_in_no_other(experiment: Experiment, rows: list[SlurmRow]) -> None:
    """An hour before the job's only row that is left."""
    row = of_run(rows, "moe-bf16", 1)[1]
    early = attempt(row.start - timedelta(hours=1), 60, "14")
    kept, _ = slurm.join(experiment, [early, attempt(row.start, 14, "14", 2)], [row])
    assert (kept["source"], kept["device_hours"]) == ("attempts.jsonl", 60 / 3600)


def test_slurms_energy_counts_before_an_estimate(experiment: Experiment, rows: list[SlurmRow]) -> None:
    """7.2 MJ are 2 kWh."""
    row = of_run(rows, "moe-bf16", 2)[0].model_copy(update={"energy_joules": 7.2e6})
    (joined,) = slurm.join(experiment, [], [row])
    assert (joined["energy_kwh"], joined["energy_source"]) == (2.0, "slurm")


def test_what_was_read_is_kept_for_where_there_is_no_slurm(
    experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows)
    there = ledger.attempts_frame(experiment)
    monkeypatch.setattr(slurm, "available", lambda: False)
    elsewhere = ledger.attempts_frame(experiment)
    assert json.loads(experiment.folder.sacct.read_text())["schema_version"] == 1
    assert len(there) == len(rows)
    assert there.equals(elsewhere)


def test_rows_that_slurm_has_forgotten_stay(
    experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows)
    slurm.read_accounting(experiment, [])
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows[3:])
    assert slurm.read_accounting(experiment, []).rows == sorted(rows, key=lambda row: (row.start, int(row.job)))


def test_our_books_reconcile(experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows)
    found = reconcile(ledger.attempts_frame(experiment), rows, [], {"14": 4})
    assert found.differences == []
    ended = [row for row in rows if row.state != "RUNNING"]
    assert found.compared == len(ended) == 13
    assert found.device_hours == pytest.approx(gpu_seconds(ended) / 3600)


def test_reconcile_names_what_differs(
    experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds more, a GPU fewer, a row that only sacct has, one that only we have: four differences."""
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows[:-1])
    frame = ledger.attempts_frame(experiment)
    ended = [row for row in rows if row.state != "RUNNING"]
    ended[0] = ended[0].model_copy(update={"elapsed_seconds": ended[0].elapsed_seconds + 2})
    ended[1] = ended[1].model_copy(update={"devices": 1})
    del ended[2]
    ended.append(ended[0].model_copy(update={"job": "77"}))
    found = reconcile(frame, ended, [], {})
    assert len(found.differences) == 4
    assert "in sacct alone" in " ".join(one.what for one in found.differences if one.job == "77")


def test_attempts_of_jobs_that_sacct_does_not_know_do_not_reconcile(experiment: Experiment) -> None:
    """The trainer wrote a job number, Slurm has no such job: the hours are unproven, and it is said."""
    folder = experiment.folder.run("dense-bf16", 1)
    folder.path.mkdir(parents=True)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    record = AttemptRecord(
        attempt=1, start=start, end=start + timedelta(seconds=9), host="n", nodes=["n"], device_kind="cpu",
        device_count=1, exit_reason="completed", first_step=0, last_step=9, slurm_job_id="5", run_fingerprint="x",
    )  # fmt: skip
    folder.attempts.write_text(record.model_dump_json() + "\n")
    (difference,) = reconcile(ledger.attempts_frame(experiment), [], [], {}).differences
    assert difference.job == "5"


def test_our_own_copy_of_what_sacct_has_purged_is_no_witness(
    experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows are gone: they are neither compared nor different, but counted."""
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows)
    found = reconcile(ledger.attempts_frame(experiment), rows[3:], rows, {})
    assert (found.compared, found.purged, found.differences) == (10, 3, [])


def test_gpus_fewer_than_were_trained_on_do_not_reconcile(
    experiment: Experiment, rows: list[SlurmRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides would read the same number out of sacct: the trainer's is another witness."""
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: rows)
    (difference,) = reconcile(ledger.attempts_frame(experiment), rows, [], {"15": 8}).differences
    assert difference.what == "6 devices in sacct, but 8 trained"


def test_where_slurm_counts_no_gpus_the_seconds_alone_are_compared(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    untracked = parsed(UNTRACKED)
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "query", lambda *_, **__: untracked)
    found = reconcile(ledger.attempts_frame(experiment), untracked, [], {})
    assert (found.compared, found.seconds_only, found.differences) == (13, 13, [])
    assert found.slurm_device_hours == pytest.approx(found.device_hours)


# --- a sacct that does not answer -----------------------------------------------------------------------------------


def write_sacct(folder: Path, body: str) -> Path:
    """A program `sacct` that notes each call in `calls`; the folder to put on the path."""
    program = folder / "bin" / "sacct"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{body}\n')
    program.chmod(0o755)
    return program.parent


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


REFUSED = 'echo "sacct: error: Problem talking to the database: Connection refused" >&2; exit 1'
"""What the real one does where slurmdbd is not there."""

ANSWERS = """
for one in "$@"; do case "$one" in --delimiter=*) d="${one#--delimiter=}";; esac; done
sed "s/@/$d/g" rows
"""
"""Prints the file `rows`, its fields separated as it was asked to."""


@pytest.fixture
def on_slurm(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """One attempt of 60 s in job 5, by the trainer's word, on 1 core; sacct is asked without waiting."""
    monkeypatch.setattr(slurm, "WAITS", (0.0, 0.0))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    start = datetime(2026, 11, 24, tzinfo=UTC)
    record = AttemptRecord(
        attempt=1, start=start, end=start + timedelta(seconds=60), host="n", nodes=["n"], device_kind="cpu",
        device_count=1, exit_reason="completed", first_step=0, last_step=9, slurm_job_id="5", run_fingerprint="x",
    )  # fmt: skip
    folder = experiment.folder.run("dense-bf16", 1)
    folder.path.mkdir(parents=True)
    folder.attempts.write_text(record.model_dump_json() + "\n")
    begun = int(start.timestamp()) - 10
    row = [
        5, begun - 5, "COMPLETED", 90, "cpu=4,node=1", begun, begun + 90, "node1", "", tmp_path,
        "rule_train_wildcards_books_dense-bf16_1", "sbatch",
    ]  # fmt: skip
    (tmp_path / "rows").write_text("@".join(map(str, row)) + "\n")
    return experiment


def test_a_sacct_that_fails_is_asked_again_and_then_the_ledger_is_provisional(
    on_slurm: Experiment, tmp_path: Path
) -> None:
    """The trainer's 60 s on 1 core stand in for 90 s on 4: said, not silent; the next time is Slurm's again."""
    write_sacct(tmp_path, REFUSED)
    frame = ledger.attempts_frame(on_slurm)
    assert len(calls(tmp_path)) == 3
    assert frame["device_hours"].tolist() == [60 / 3600]
    assert frame["source"].tolist() == ["attempts.jsonl; provisional: sacct was not read"]
    (reason,) = ledger.provisional(frame)
    assert reason.startswith("Slurm's accounting was not read for 1 of 1 attempts")
    assert not on_slurm.folder.sacct.exists()

    write_sacct(tmp_path, ANSWERS)
    frame = ledger.attempts_frame(on_slurm)
    assert frame["device_hours"].tolist() == [4 * 90 / 3600]
    assert frame["source"].tolist() == ["sacct"]
    assert ledger.provisional(frame) == []

    write_sacct(tmp_path, REFUSED)  # what was read is kept, but there may be more by now
    frame = ledger.attempts_frame(on_slurm)
    assert frame["device_hours"].tolist() == [4 * 90 / 3600]
    assert frame["source"].tolist() == ["sacct; provisional: sacct was not read"]


BY_NUMBER_ALONE = f'case "$*" in *--starttime*) ;; *) {ANSWERS} ;; esac'
"""What the real one does for some seconds after slurmdbd was started."""


def test_a_sacct_that_knows_a_job_by_its_number_alone_is_asked_again_and_then_the_ledger_is_provisional(
    on_slurm: Experiment, tmp_path: Path
) -> None:
    write_sacct(tmp_path, BY_NUMBER_ALONE)
    frame = ledger.attempts_frame(on_slurm)
    assert ["--starttime" in one for one in calls(tmp_path)] == [True, False] * 3
    assert frame["source"].tolist() == ["attempts.jsonl; provisional: sacct was not read"]
    assert not on_slurm.folder.sacct.exists()  # it is not known to be unknown

    (tmp_path / "calls").unlink()
    write_sacct(tmp_path, f"if [ $(wc -l < {tmp_path}/calls) = 1 ]; then exit 0; fi\n{ANSWERS}")
    assert ledger.attempts_frame(on_slurm)["source"].tolist() == ["sacct"]


def test_a_job_that_sacct_has_under_no_question_is_unknown_and_not_asked_for_again(
    on_slurm: Experiment, tmp_path: Path
) -> None:
    write_sacct(tmp_path, "true")
    for asked in (6, 7):
        assert ledger.attempts_frame(on_slurm)["source"].tolist() == ["attempts.jsonl"]
        assert len(calls(tmp_path)) == asked


def test_one_answer_after_a_failure_is_enough(on_slurm: Experiment, tmp_path: Path) -> None:
    write_sacct(tmp_path, f"if [ $(wc -l < {tmp_path}/calls) = 1 ]; then {REFUSED}; fi\n{ANSWERS}")
    assert ledger.attempts_frame(on_slurm)["source"].tolist() == ["sacct"]
    assert len(calls(tmp_path)) == 2


def test_a_slurm_without_accounting_leaves_the_trainers_hours_final(
    on_slurm: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm says so in so many words (accounting_storage/none); elsewhere it is known to have been asked."""
    write_sacct(tmp_path, 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    frame = ledger.attempts_frame(on_slurm)
    assert frame["source"].tolist() == ["attempts.jsonl"]
    assert ledger.provisional(frame) == []
    monkeypatch.setattr(slurm, "available", lambda: False)
    assert ledger.attempts_frame(on_slurm)["source"].tolist() == ["attempts.jsonl"]


def test_hours_of_slurm_jobs_that_were_never_asked_for_are_provisional(
    on_slurm: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no sacct, and it was never read where there was one."""
    monkeypatch.setattr(slurm, "available", lambda: False)
    frame = ledger.attempts_frame(on_slurm)
    assert frame["source"].tolist() == ["attempts.jsonl; provisional: sacct was not read"]


def test_rows_that_still_run_are_provisional(experiment: Experiment, rows: list[SlurmRow]) -> None:
    running = pd.DataFrame(slurm.join(experiment, [], rows))
    assert (running["state"] == "running").sum() == 1
    assert ledger.provisional(running) == ["1 of 14 attempts had not ended: their hours go on"]


def test_reconcile_with_nothing_to_compare_says_so_and_fails(on_slurm: Experiment, tmp_path: Path) -> None:
    """Tables were made, and sacct has no row of any of their jobs."""
    write_cluster_with_slurm(tmp_path)
    write_sacct(tmp_path, "true")
    run = CliRunner().invoke
    assert run(app, ["aggregate", "results/books"]).exit_code == 0
    done = run(app, ["reconcile", "results/books"])
    assert done.exit_code == 1
    assert "nothing was compared: sacct has no ended job of the 1 attempts in the ledger" in done.stdout


WIDE = {"description": "twice as wide", "cells": ["dense-bf16"], "change": {"model.feed_forward_size": 512}}


def test_an_ablation_alone_reconciles(on_slurm: Experiment, tmp_path: Path) -> None:
    """Its table holds its cell and its baseline; a job of another cell is no difference."""
    write_cluster_with_slurm(tmp_path, ablations={"wide": WIDE})
    write_sacct(tmp_path, ANSWERS)
    row = (tmp_path / "rows").read_text()
    (tmp_path / "rows").write_text(row + row.replace("5@", "6@", 1).replace("dense-bf16", "moe-bf16"))
    run = CliRunner().invoke
    done = run(app, ["aggregate", "results/books", "--ablation", "wide"])
    assert done.exit_code == 0, done.exception
    assert not on_slurm.folder.attempts_table.exists()
    done = run(app, ["reconcile", "results/books"])
    assert done.exit_code == 0, done.stdout
    assert done.stdout.startswith("1 attempts compared: 0.1000 device-hours in our ledger, 0.1000 in sacct")  # 4 x 90 s


def test_aggregate_and_status_say_that_the_ledger_is_provisional(on_slurm: Experiment, tmp_path: Path) -> None:
    """And count it: the pipeline makes the tables again when the count has changed."""
    write_cluster_with_slurm(tmp_path)
    write_sacct(tmp_path, REFUSED)
    run = CliRunner().invoke
    for count in (1, 2):
        done = run(app, ["aggregate", "results/books"])
        assert done.exit_code == 0
        assert "the ledger is provisional: Slurm's accounting was not read for 1 of 1 attempts" in done.stderr
        assert ledger.times_provisional(on_slurm.folder) == count
    assert "the ledger is provisional: Slurm's" in run(app, ["status", "results/books"]).stdout
    write_sacct(tmp_path, ANSWERS)
    assert run(app, ["aggregate", "results/books"]).stderr == ""
    assert ledger.times_provisional(on_slurm.folder) == 2
    assert "provisional" not in run(app, ["status", "results/books"]).stdout


def write_cluster_with_slurm(root: Path, **changes: Any) -> None:
    """The experiment's files, with a section slurm in the cluster file."""
    experiment, cluster = (root / "configs" / f"{name}.yaml" for name in ("experiments/books", "clusters/synthetic"))
    for path, new in ((experiment, changes), (cluster, {"slurm": {}})):
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | new))
