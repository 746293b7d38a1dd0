"""The ledger: every attempt at every run, with what it held, for how long, and what that cost.

Nothing is free: attempts that failed, were pre-empted, ran under a configuration that the experiment no longer has, or
belong to a cell that it no longer names are all in here (they are marked `superseded`); which hours the final results
rest on is settled when runs are aggregated.

Where the cluster file has a `slurm` section the hours are Slurm's own (`octavo.accounting.slurm`); elsewhere they are
what the trainer wrote into `attempts.jsonl`: devices x wall-clock from the start of the process to its end. The column
`source` says which.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.accounting.money import ESTIMATED, cost, energy_at_the_meter
from octavo.accounting.slurm import ATTEMPTS_FILE, PROVISIONAL, with_slurms_hours
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import TABLE_FIELDS, AttemptRecord, LedgerState, last_line, read_lines, read_record

if TYPE_CHECKING:
    import pandas as pd


def attempts_frame(experiment: Experiment, *, ask: bool = True) -> pd.DataFrame:
    """Every attempt of an experiment, with the columns of `octavo.records.TABLE_FIELDS["attempts"]`.

    Without `ask`, Slurm's hours are those that were read before and kept, and Slurm is asked for none.
    Raises OctavoError where an `attempts.jsonl` is damaged.
    """
    import pandas as pd

    rows = trainers_rows(experiment)
    if experiment.cluster.slurm:
        rows = with_slurms_hours(experiment, rows, ask=ask)
    frame = pd.DataFrame(rows, columns=[name for name, _, _ in TABLE_FIELDS["attempts"]])
    for column in ("submit", "start", "end"):
        frame[column] = pd.to_datetime(frame[column], utc=True)
    return frame


def provisional(attempts: pd.DataFrame) -> list[str]:
    """Why the ledger is not final, one sentence each; empty where it is. `attempts` has its rows."""
    unread = int(attempts["source"].str.endswith(PROVISIONAL).sum())
    moving = int((attempts["state"] == "running").sum())
    reasons = []
    if unread:
        reasons.append(
            f"Slurm's accounting was not read for {unread} of {len(attempts)} attempts: their hours are what was known "
            "before, and attempts that only Slurm knows are missing"
        )
    if moving:
        reasons.append(f"{moving} of {len(attempts)} attempts had not ended: their hours go on")
    return reasons


def note_provisional(folder: ExperimentFolder, attempts: pd.DataFrame) -> None:
    """Count that the ledger of an experiment or an ablation was left provisional, if it was.

    The pipeline makes the tables again when the count (`times_provisional`) has changed since it made them.
    """
    if provisional(attempts):
        write_json(folder.ledger, LedgerState(times_provisional=times_provisional(folder) + 1).model_dump())


def times_provisional(folder: ExperimentFolder) -> int:
    """How often the ledger was left provisional."""
    if not folder.ledger.exists():
        return 0
    return read_record(folder.ledger, LedgerState, made_by=f"octavo aggregate {folder.path}").times_provisional


def trainers_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """The ledger by the trainer's word alone: every line of every `attempts.jsonl`."""
    seeds = set(experiment.file.all_seeds)
    return [row for folder in experiment.folder.run_folders() for row in _rows(experiment, folder, seeds)]


def running(folder: RunFolder) -> bool:
    """Whether a process trains this run now (it holds the folder's lock)."""
    lock = folder.path / ".lock"
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def last_sign_of_life(folder: RunFolder, attempt: AttemptRecord) -> datetime:
    """When an attempt that never wrote its end was last seen: its last metrics line, or its start."""
    line = last_line(folder.metrics, attempt.attempt)
    return datetime.fromtimestamp(line.time, UTC) if line else attempt.start


def _rows(experiment: Experiment, folder: RunFolder, seeds: set[int]) -> Iterator[dict[str, Any]]:
    """`seeds`: all that the experiment has."""
    cell = experiment.cells.get(folder.cell)
    current = cell.identity(folder.seed) if cell and folder.seed in seeds else None
    for place in [*sorted(folder.superseded.glob("*")), folder.path]:
        for attempt in read_lines(place / ATTEMPTS_FILE, AttemptRecord):
            superseded = place != folder.path or current is None or not current.holds(attempt)
            yield _row(experiment, RunFolder(folder.path), place, attempt, superseded)


def _row(
    experiment: Experiment, folder: RunFolder, place: Path, attempt: AttemptRecord, superseded: bool
) -> dict[str, Any]:
    end, state = attempt.end, attempt.exit_reason
    if end is None:
        alive = place == folder.path and running(folder)
        end = datetime.now(UTC) if alive else last_sign_of_life(RunFolder(place), attempt)
        state = None if alive else "killed"
    hours = max(0.0, (end - attempt.start).total_seconds()) * attempt.device_count / 3600
    energy, energy_source = _energy(experiment, attempt, hours)
    measured = energy if energy_source != ESTIMATED else None
    return {
        "experiment": experiment.name,
        "cell": folder.cell,
        "seed": folder.seed,
        "attempt": attempt.attempt,
        "job": attempt.slurm_job_id,
        "submit": None,
        "state": state or "running",
        "nodes": ",".join(attempt.nodes),
        "ranks": [one.model_dump() for one in attempt.ranks] or None,
        "devices": attempt.device_count,
        "device_kind": attempt.device_kind,
        "layout": attempt.layout,
        "start": attempt.start,
        "end": end,
        "first_step": attempt.first_step,
        "last_step": attempt.last_step,
        "superseded": superseded,
        "device_hours": hours,
        "energy_kwh": energy,
        "energy_source": energy_source,
        "cost": cost(experiment.cluster, experiment.device, hours, measured),
        "currency": experiment.cluster.currency,
        "source": ATTEMPTS_FILE,
    }


def _energy(experiment: Experiment, attempt: AttemptRecord, hours: float) -> tuple[float, str]:
    """Kilowatt-hours at the meter, and what of them was measured. RAPL is not used: it counts the whole processor,
    other processes included."""
    cluster, device = experiment.cluster, experiment.device
    if attempt.energy_joules is not None and attempt.energy_source == "nvml":
        return energy_at_the_meter(cluster, device, hours, devices_kwh=attempt.energy_joules / 3.6e6), "nvml"
    return energy_at_the_meter(cluster, device, hours), ESTIMATED
