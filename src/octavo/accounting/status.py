"""Where an experiment stands: which runs are done, running or failed, how far each is, and how long it still takes."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, replace
from shutil import which
from statistics import median
from typing import Any, Literal

from octavo.accounting.ledger import provisional, running
from octavo.accounting.results import contradictions
from octavo.accounting.stragglers import Straggler, stragglers
from octavo.cluster.job import comment
from octavo.cluster.queue import Job, queue
from octavo.data.manifest import current_manifest
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment, RunIdentity
from octavo.files import read_bytes
from octavo.layout import ExperimentFolder, RunFolder, repository
from octavo.records import AttemptRecord, MetricsRecord, Result, read_last_lines, read_lines, read_record, read_table
from octavo.training.ranks import rank_times

State = Literal[
    "done", "diverged", "running", "starting", "queued", "held", "stopped", "failed", "waiting", "changed", "damaged"
]
"""queued, held: in Slurm's queue. starting: its job runs, no rank trains yet. waiting: nobody has submitted it.
stopped: told to, or killed; goes on from its checkpoint. changed: trained under another configuration or on other text.
damaged: it has a result that cannot be read, or files that are not those of its result."""

RECENT = 50
"""Lines of `metrics.jsonl` from whose median step time the time that is left is worked out."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    cell: str
    seed: int
    state: State
    step: int
    steps: int
    loss: float | None
    """Validation loss of a finished run, the last training loss of another."""
    seconds_left: float | None
    """Of training, from the median of the last steps; of a run without any, from the plan, where there is one."""
    attempts: int
    error: str | None
    """Of the last attempt, or of reading a damaged result."""
    job: Job | None = None
    """In Slurm's queue; None where it has none there, or Slurm cannot be asked."""
    stragglers: tuple[Straggler, ...] = ()
    """Nodes on which it is slowed down now, or was in its last attempt; not looked for in a finished run."""


def jobs_in_queue(experiment: Experiment) -> tuple[dict[str, list[Job]], str | None]:
    """Slurm's jobs of this checkout by comment; and why they are not known, where Slurm does not answer."""
    if not (experiment.cluster.slurm and which("squeue")):
        return {}, None
    try:
        return queue(repository()), None
    except OctavoError as error:
        return {}, error.found


def run_statuses(experiment: Experiment, jobs: dict[str, list[Job]] | None = None) -> list[RunStatus]:
    """Every run of the experiment, in its order. `jobs`: those in Slurm's queue, by comment."""
    data = current_manifest(experiment.file.data, experiment.file.tokenizer)
    planned = planned_seconds(experiment.folder)
    found = [
        _with_job(
            _status(
                experiment.folder.run(cell.cell, seed),
                cell.identity(seed),
                data,
                cell.training.total_steps,
            ),
            (jobs or {}).get(comment(experiment.name, cell.cell, seed), []),
        )
        for cell, seed in experiment.runs()
    ]
    return [_as_planned(status, planned.get(status.cell)) for status in found]


def planned_seconds(folder: ExperimentFolder) -> dict[str, float]:
    """Cell -> seconds that a run of it takes by the plan; empty where there is no plan that says so."""
    try:
        with folder.plan_csv.open(encoding="utf-8", newline="") as file:
            return {row["cell"]: 3600 * float(row["hours_per_run"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError):  # it is made again by those who need it; time left does without
        return {}


def _as_planned(status: RunStatus, seconds: float | None) -> RunStatus:
    """A run that has trained no step yet takes what the plan says; one that was changed begins anew."""
    begins = status.state in ("waiting", "queued", "held", "starting", "changed") or (
        status.state in ("running", "stopped", "failed") and status.step == 0
    )
    return replace(status, seconds_left=seconds) if begins and status.seconds_left is None else status


def _with_job(status: RunStatus, jobs: list[Job]) -> RunStatus:
    """What the queue adds: a finished run's job is on its way out, and a training process knows best that it trains."""
    if not jobs or status.state in ("done", "diverged"):
        return status
    states: dict[str, State] = {"waiting": "queued", "held": "held", "running": "starting"}
    state = status.state if status.state in ("running", "damaged") else states.get(jobs[-1].state, status.state)
    return replace(status, state=state, job=jobs[-1])


def as_json(experiment: Experiment) -> dict[str, Any]:
    """What `octavo status --json` prints."""
    jobs, silent = jobs_in_queue(experiment)
    return {
        "schema_version": 1,
        "experiment": experiment.name,
        "runs": [_plain(status) for status in run_statuses(experiment, jobs)],
        "queue_unknown": silent,
        "provisional": ledger_status(experiment.folder),
    }


def _plain(status: RunStatus) -> dict[str, Any]:
    plain = asdict(status)
    if status.job is not None and status.job.start is not None:
        plain["job"]["start"] = status.job.start.isoformat()
    return plain


def ledger_status(folder: ExperimentFolder) -> list[str]:
    """Why the ledger in the tables is not final; empty where it is, or where there are no tables yet."""
    if not folder.attempts_table.exists():
        return []
    columns = ["source", "state"]
    made_by = f"octavo aggregate {folder.path}"
    return provisional(read_table(folder.attempts_table, "attempts", made_by=made_by, columns=columns))


def _status(folder: RunFolder, identity: RunIdentity, data: str | None, steps: int) -> RunStatus:
    try:
        return _look(folder, identity, data, steps)
    except OctavoError as error:
        state: State = "running" if running(folder) else "damaged"
        problem = f"{error.where}: {error.found}; move {folder.path} away and train it again"
        return RunStatus(folder.cell, folder.seed, state, 0, steps, None, None, 0, problem)


def _look(folder: RunFolder, identity: RunIdentity, data: str | None, steps: int) -> RunStatus:
    """A run by its result or, where it has none, by the end of its metrics: as quick for a million steps as for ten."""
    if folder.result.exists():
        result = read_record(folder.result, Result, made_by="octavo train")
        state, error = _finished(folder, result, identity, data)
        count = read_bytes(folder.attempts).count(b"\n") if folder.attempts.exists() else 0
        return RunStatus(
            folder.cell, folder.seed, state, result.steps, steps, result.validation_loss, None, count, error
        )
    attempts = read_lines(folder.attempts, AttemptRecord)
    last = attempts[-1] if attempts else None
    state = _unfinished(folder, last, identity)
    lines = [line for line in read_last_lines(folder.metrics, MetricsRecord, RECENT) if line.trained]
    done, loss = (lines[-1].step, lines[-1].loss) if lines else (0, None)
    recent = [line.step_seconds for line in lines if line.step_seconds]
    left = median(recent) * (steps - done) if recent and state in ("running", "stopped", "failed") else None
    error, slow = last and last.error, _stragglers(folder, last)
    return RunStatus(folder.cell, folder.seed, state, done, steps, loss, left, len(attempts), error, stragglers=slow)


def _stragglers(folder: RunFolder, last: AttemptRecord | None) -> tuple[Straggler, ...]:
    """By what the ranks of an attempt that goes on say, or said at its end."""
    if last is None or last.device_count == 1:
        return ()
    return tuple(stragglers(last.ranks if last.end else rank_times(folder)))


def _finished(folder: RunFolder, result: Result, identity: RunIdentity, data: str | None) -> tuple[State, str | None]:
    """The state of a run that has a result, and what is wrong with it."""
    if found := contradictions(folder, result, trust_times=True):
        return "damaged", f"{'; '.join(found)}: put it back as it was, or move {folder.path} away and train it again"
    if not identity.holds(result) or data not in (None, result.data_manifest_sha256):
        return "changed", None
    return ("diverged" if result.status == "diverged" else "done"), None


def _unfinished(folder: RunFolder, last: AttemptRecord | None, identity: RunIdentity) -> State:
    if last is None:
        return "waiting"
    if running(folder):
        return "running"
    if not identity.holds(last):
        return "changed"
    return "failed" if last.exit_reason in ("failed", "out_of_memory") else "stopped"
