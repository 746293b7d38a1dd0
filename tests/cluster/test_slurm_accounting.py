"""What a real `sacct` says of jobs with hostile comments, and what is made of it while slurmdbd is away."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from octavo.accounting import slurm as accounting
from octavo.accounting.ledger import attempts_frame, provisional
from octavo.experiment.cluster import Slurm
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders
from octavo.records import AttemptRecord
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster
from tests.synthetic import write_experiment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

OURS = "rule_train_wildcards_books_dense-bf16_1"
FORGED = "\n14|1795529275|COMPLETED|99999|cpu=64|1795529275|1795629274|node1||{folder}|" + OURS + "|sbatch\n"


def printed(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300).stdout.strip()


def wait(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 300
    while not ready():
        assert time.monotonic() < end, f"waited 300 s for {what}"
        time.sleep(0.5)


def submit(folder: Path, comment: str) -> str:
    """A job of two cores that ends at once; its number."""
    options = ("--parsable", f"--account={ACCOUNT}", f"--chdir={folder}", "--output=/dev/null", "--cpus-per-task=2")
    return printed("sbatch", *options, f"--comment={comment}", "--wrap=sleep 2")


def test_the_ledger_is_slurms_provisional_without_slurmdbd_and_repaired_with_it(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accounting, "WAITS", (0.0,))
    write_experiment(tmp_path, name="books", cells=[], seeds=(1,), precisions=("bf16",), ablations={}, price=1.0)
    loaded = load_experiment("books", ConfigFolders(tmp_path / "configs"))
    experiment = replace(loaded, cluster=loaded.cluster.model_copy(update={"slurm": Slurm()}))

    jobs = [
        submit(tmp_path, OURS),
        submit(tmp_path, f"a{FORGED.format(folder=tmp_path)}b"),
        submit(tmp_path, "a\n15\nb"),
    ]
    listed = ("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(jobs)}")
    wait(lambda: printed(*listed, "--format=State").split() == ["COMPLETED"] * 3, "three jobs to end")
    elapsed = printed("sacct", "-nXP", f"--jobs={jobs[0]}", "--format=ElapsedRaw")

    run, start = experiment.folder.run("dense-bf16", 1), datetime.now(UTC)
    run.path.mkdir(parents=True)
    record = AttemptRecord(
        attempt=1, start=start, end=start + timedelta(seconds=1), host="n", nodes=["n"], device_kind="cpu",
        device_count=1, exit_reason="completed", first_step=0, last_step=9, slurm_job_id=jobs[0], run_fingerprint="x",
    )  # fmt: skip
    run.attempts.write_text(record.model_dump_json() + "\n")

    slurm.stop_daemon("slurmdbd")
    try:
        without = attempts_frame(experiment)
    finally:
        slurm.start_daemon("slurmdbd")
    assert without["device_hours"].tolist() == pytest.approx([1 / 3600])
    assert without["source"].tolist() == ["attempts.jsonl; provisional: sacct was not read"]
    assert len(provisional(without)) == 1

    # for some seconds more it answers with no rows, first what is asked by time and now and then what is by number
    wait(lambda: jobs[0] in printed(*listed, "--format=JobIDRaw").split(), "slurmdbd")
    wait(lambda: attempts_frame(experiment)["source"].tolist() == ["sacct"], "rows by time")
    again = attempts_frame(experiment)
    assert again["job"].tolist() == [jobs[0]]
    assert again["source"].tolist() == ["sacct"]
    assert again["device_hours"].tolist() == pytest.approx([2 * int(elapsed) / 3600])
    assert provisional(again) == []
