"""Where an experiment stands: which runs are done, running or failed, how far each is, and how long it still takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from octavo.accounting.ledger import provisional, running
from octavo.accounting.results import contradictions
from octavo.data.manifest import current_manifest
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment, run_fingerprint
from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import AttemptRecord, MetricsRecord, Result, read_last_lines, read_lines, read_record, read_table

State = Literal["done", "diverged", "running", "stopped", "failed", "waiting", "changed", "damaged"]
"""stopped: told to, or killed; goes on from its checkpoint. changed: trained under another configuration or on other
text. damaged: it has a result that cannot be read, or files that are not those of its result."""

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
    """Of training, from the median of the last steps; None where there is no step to judge by."""
    attempts: int
    error: str | None
    """Of the last attempt, or of reading a damaged result."""


def run_statuses(experiment: Experiment) -> list[RunStatus]:
    """Every run of the experiment, in its order."""
    data = current_manifest(experiment.file.data, experiment.file.tokenizer)
    return [
        _status(
            experiment.folder.run(cell.cell, seed),
            run_fingerprint(cell.fingerprint, seed),
            data,
            cell.training.total_steps,
        )
        for cell, seed in experiment.runs()
    ]


def as_json(experiment: Experiment) -> dict[str, Any]:
    """What `octavo status --json` prints."""
    return {
        "schema_version": 1,
        "experiment": experiment.name,
        "runs": [asdict(status) for status in run_statuses(experiment)],
        "provisional": ledger_status(experiment.folder),
    }


def ledger_status(folder: ExperimentFolder) -> list[str]:
    """Why the ledger in the tables is not final; empty where it is, or where there are no tables yet."""
    if not folder.attempts_table.exists():
        return []
    columns = ["source", "state"]
    made_by = f"octavo aggregate {folder.path}"
    return provisional(read_table(folder.attempts_table, "attempts", made_by=made_by, columns=columns))


def _status(folder: RunFolder, fingerprint: str, data: str | None, steps: int) -> RunStatus:
    try:
        return _look(folder, fingerprint, data, steps)
    except OctavoError as error:
        state: State = "running" if running(folder) else "damaged"
        problem = f"{error.where}: {error.found}; move {folder.path} away and train it again"
        return RunStatus(folder.cell, folder.seed, state, 0, steps, None, None, 0, problem)


def _look(folder: RunFolder, fingerprint: str, data: str | None, steps: int) -> RunStatus:
    """A run by its result or, where it has none, by the end of its metrics: as quick for a million steps as for ten."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    if folder.result.exists():
        result = read_record(folder.result, Result, made_by="octavo train")
        state, error = _finished(folder, result, fingerprint, data)
        return RunStatus(
            folder.cell, folder.seed, state, result.steps, steps, result.validation_loss, None, len(attempts), error
        )
    last = attempts[-1] if attempts else None
    state = _unfinished(folder, last, fingerprint)
    lines = [line for line in read_last_lines(folder.metrics, MetricsRecord, RECENT) if line.trained]
    done, loss = (lines[-1].step, lines[-1].loss) if lines else (0, None)
    recent = [line.step_seconds for line in lines if line.step_seconds]
    left = median(recent) * (steps - done) if recent and state in ("running", "stopped", "failed") else None
    return RunStatus(folder.cell, folder.seed, state, done, steps, loss, left, len(attempts), last and last.error)


def _finished(folder: RunFolder, result: Result, fingerprint: str, data: str | None) -> tuple[State, str | None]:
    """The state of a run that has a result, and what is wrong with it."""
    if found := contradictions(folder, result, trust_times=True):
        return "damaged", f"{'; '.join(found)}: put it back as it was, or move {folder.path} away and train it again"
    if result.run_fingerprint != fingerprint or data not in (None, result.data_manifest_sha256):
        return "changed", None
    return ("diverged" if result.status == "diverged" else "done"), None


def _unfinished(folder: RunFolder, last: AttemptRecord | None, fingerprint: str) -> State:
    if last is None:
        return "waiting"
    if running(folder):
        return "running"
    if last.run_fingerprint != fingerprint:
        return "changed"
    return "failed" if last.exit_reason in ("failed", "out_of_memory") else "stopped"
