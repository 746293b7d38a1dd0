"""Slurm's own books: what `sacct` says of an experiment's jobs, joined to its runs.

Slurm keeps one row for every time that a job held devices: a job that was pre-empted or requeued has earlier rows under
the same number, shown only with `--duplicates`, so a row's key is (JobID, Submit). Device-hours are the row's allocated
GPUs (AllocTRES gres/gpu; cores where a cluster of CPUs gives none) x ElapsedRaw, whole seconds. What has been read is
kept in `results/<experiment>/sacct.json`, so that a report can be made again where there is no Slurm, and after the
site has purged its accounting.

A row belongs to the run that its job's comment names, among jobs submitted from this checkout. Some sites do not store
comments, and Slurm stores none before a job ends: the submit line holds it too. Failing that, the trainer wrote the
number of its job into `attempts.jsonl`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, get_args

from octavo.accounting.money import cost, device_energy_kwh
from octavo.cluster.job import comment
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import repository
from octavo.records import ExitReason, SlurmBooks, SlurmRow, read_record

FIELDS = (
    "JobIDRaw", "Submit", "State", "ElapsedRaw", "AllocTRES", "Start", "End", "NodeList", "ConsumedEnergyRaw",
    "WorkDir", "Comment", "SubmitLine",
)  # fmt: skip
"""SubmitLine is last: it may hold the separator."""

EXIT_REASONS: dict[str, ExitReason] = {
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
    "COMPLETED": "completed",
    "DEADLINE": "time_limit",
    "FAILED": "failed",
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "REQUEUED": "signalled",
    "REVOKED": "cancelled",
    "TIMEOUT": "time_limit",
}
"""Slurm's states (`man sacct`, JOB STATE CODES) of a row that has ended, in Octavo's words."""

BEFORE = timedelta(days=7)
"""How long before the first attempt jobs are looked for: those that failed before training began."""

ORPHAN = 0
"""The attempt number of a row in which training never began."""


def available() -> bool:
    """Whether this machine can read Slurm's accounting."""
    if shutil.which("sacct") is None:
        return False
    return subprocess.run(["sacct", "--noheader", "--jobs=1"], check=False, capture_output=True).returncode == 0


def slurm_books(experiment: Experiment, attempts: list[dict[str, Any]]) -> list[SlurmRow]:
    """Every row of the experiment's jobs, the earliest first: those kept and, where there is Slurm, those of today.

    `attempts` are the books' rows by the trainer's word. What is read is kept in `sacct.json`. Empty where there is
    neither.
    """
    path = experiment.folder.sacct
    made_by = f"octavo aggregate {experiment.folder.path}, on the cluster"
    kept = read_record(path, SlurmBooks, made_by=made_by).rows if path.exists() else []
    if not available():
        return kept
    begun = [*(attempt["start"] for attempt in attempts), *(row.start for row in kept)]
    jobs = {attempt["job"]: (attempt["cell"], attempt["seed"]) for attempt in attempts if attempt["job"]}
    asked = query(experiment, jobs, since=min(begun, default=datetime.now(UTC)))
    rows = _ordered({row.key: row for row in [*kept, *asked]})
    if rows != kept:
        write_json(path, SlurmBooks(rows=rows).model_dump(mode="json"))
    return rows


def query(experiment: Experiment, jobs: dict[str, tuple[str, int]], since: datetime) -> list[SlurmRow]:
    """Ask sacct for the rows of the experiment's jobs, and of `jobs`. Raises OctavoError where it fails."""
    command = ["sacct", "--duplicates", "--allocations", "--parsable2", "--noheader", "--noconvert"]
    begin = (since - BEFORE).strftime("%Y-%m-%dT%H:%M:%S")
    asked = subprocess.run(
        [*command, f"--starttime={begin}", f"--format={','.join(FIELDS)}"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SLURM_TIME_FORMAT": "%s", "TZ": "UTC"},  # seconds since 1970
    )
    if asked.returncode:
        raise OctavoError(f"sacct failed: {asked.stderr.strip()}", where=" ".join(command))
    return parse(asked.stdout, runs_by_comment(experiment), jobs, str(repository()))


def runs_by_comment(experiment: Experiment) -> dict[str, tuple[str, int]]:
    """Job comment -> (cell, seed), of the experiment's runs and of those that it had once."""
    runs = {(cell.cell, seed) for cell, seed in experiment.runs()}
    runs |= {(folder.cell, folder.seed) for folder in experiment.folder.run_folders()}
    return {comment(experiment.name, cell, seed): (cell, seed) for cell, seed in runs}


def parse(
    text: str, runs: dict[str, tuple[str, int]], jobs: dict[str, tuple[str, int]], work_dir: str
) -> list[SlurmRow]:
    """The rows of sacct's output (FIELDS, times in seconds since 1970) that held devices for a run.

    `runs`: job comment -> (cell, seed); `jobs`: the same by job number; `work_dir`: where jobs were submitted.
    """
    rows = []
    for line in text.splitlines():
        values = dict(zip(FIELDS, line.split("|", len(FIELDS) - 1), strict=True))
        named = values["Comment"] or _submitted_comment(values["SubmitLine"])
        run = runs.get(named) or jobs.get(values["JobIDRaw"])
        if values["WorkDir"] != work_dir or run is None or not values["Start"].isdigit():
            continue
        cell, seed = run
        elapsed, start = int(values["ElapsedRaw"]), int(values["Start"])
        rows.append(
            SlurmRow(
                job=values["JobIDRaw"],
                submit=_instant(int(values["Submit"])),
                cell=cell,
                seed=seed,
                state=values["State"].split()[0],  # CANCELLED by 1000
                start=_instant(start),
                end=_instant(int(values["End"]) if values["End"].isdigit() else start + elapsed),
                elapsed_seconds=elapsed,
                devices=devices_in(values["AllocTRES"]),
                nodes=values["NodeList"],
                energy_joules=float(values["ConsumedEnergyRaw"] or 0) or None,
            )
        )
    return rows


def devices_in(tres: str) -> int:
    """GPUs in an AllocTRES such as `cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=1000M`, or its cores where it has none."""
    counts = dict(part.split("=") for part in tres.split(",") if "=" in part)
    typed = sum(int(count) for name, count in counts.items() if name.startswith("gres/gpu:"))
    return int(counts.get("gres/gpu", 0)) or typed or int(counts.get("cpu", 0))


def exit_reason(state: str, said: str | None) -> str:
    """How an attempt ended, or `running`: Slurm's word, but for what only the trainer knows (`said`)."""
    reason = EXIT_REASONS.get(state, "running")
    if reason in ("completed", "failed") and said in get_args(ExitReason):
        return str(said)
    return reason


def join(experiment: Experiment, attempts: list[dict[str, Any]], rows: list[SlurmRow]) -> list[dict[str, Any]]:
    """The books' rows with Slurm's hours in place of the trainer's.

    `attempts` are rows of `octavo.accounting.books` by the trainer's word. One whose job Slurm knows takes the job's
    hours from the time it was allocated to its release, start of the container included; a row of Slurm's in which
    training never began is added as attempt ORPHAN.
    """
    by_job: dict[str, list[SlurmRow]] = {}
    for row in _ordered({row.key: row for row in rows}):
        by_job.setdefault(row.job, []).append(row)
    held: dict[tuple[str, datetime], list[dict[str, Any]]] = {}
    joined = []
    for attempt in attempts:
        row = _row_of(attempt, by_job.get(attempt["job"] or "", []))
        if row is None:
            joined.append(attempt)
        else:
            held.setdefault(row.key, []).append(attempt)
    for row in rows:
        joined += _of_row(experiment, row, held.get(row.key, []))
    return sorted(joined, key=lambda one: (one["cell"], one["seed"], one["start"]))


def _row_of(attempt: dict[str, Any], rows: list[SlurmRow]) -> SlurmRow | None:
    """The last of a job's rows that began before the attempt did; sacct's times are whole seconds."""
    begun = [row for row in rows if row.start <= attempt["start"] + timedelta(seconds=1)]
    return begun[-1] if begun else None


def _of_row(experiment: Experiment, row: SlurmRow, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The books' rows of one row of Slurm's: its time, divided where more than one attempt was made in it."""
    if not attempts:
        attempts = [_orphan(experiment, row)]
    attempts = sorted(attempts, key=lambda one: one["start"])
    borders = [row.start, *(one["start"] for one in attempts[1:]), row.end]
    whole = max((row.end - row.start).total_seconds(), 1e-9)
    books = []
    for attempt, (start, end) in zip(attempts, pairwise(borders), strict=True):
        share = (end - start).total_seconds() / whole if len(attempts) > 1 else 1.0
        hours = row.devices * row.elapsed_seconds * share / 3600  # suspended time is not in elapsed
        books.append(
            attempt
            | {
                "job": row.job,
                "submit": row.submit,
                "state": exit_reason(row.state, attempt["state"]),
                "nodes": row.nodes,
                "devices": row.devices,
                "start": start,
                "end": end,
                "device_hours": hours,
                **_energy(experiment, row, attempt, hours, share),
                "cost": cost(experiment.cluster, experiment.device, hours),
                "source": "sacct",
            }
        )
    return books


def _energy(
    experiment: Experiment, row: SlurmRow, attempt: dict[str, Any], hours: float, share: float
) -> dict[str, Any]:
    if row.energy_joules is not None:
        return {"energy_kwh": row.energy_joules * share / 3.6e6, "energy_source": "slurm"}
    if attempt["energy_source"] == "nvml":
        return {"energy_kwh": attempt["energy_kwh"], "energy_source": "nvml"}
    energy = device_energy_kwh(experiment.cluster, experiment.device, hours)
    return {"energy_kwh": energy, "energy_source": "power x utilisation"}


def _orphan(experiment: Experiment, row: SlurmRow) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "cell": row.cell,
        "seed": row.seed,
        "attempt": ORPHAN,
        "state": None,
        "device_kind": "cpu" if experiment.device.kind == "cpu" else experiment.device.name,
        "start": row.start,
        "first_step": None,
        "last_step": None,
        "superseded": row.cell not in experiment.cells or row.seed not in experiment.file.seeds,
        "energy_kwh": None,
        "energy_source": None,
        "currency": experiment.cluster.currency,
    }


def _submitted_comment(submit_line: str) -> str:
    found = re.search(r"--comment[ =]'?([^\s']+)", submit_line)
    return found.group(1) if found else ""


def _ordered(rows: dict[tuple[str, datetime], SlurmRow]) -> list[SlurmRow]:
    return sorted(rows.values(), key=lambda row: (row.start, int(row.job)))


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
