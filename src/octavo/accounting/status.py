"""Where an experiment stands: which runs are done, running or failed, how far each is, and how long it still takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from octavo.accounting.ledger import running
from octavo.data.manifest import current_manifest
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment, run_fingerprint
from octavo.layout import RunFolder
from octavo.records import AttemptRecord, Result, read_lines, read_record, trained_steps

State = Literal["done", "diverged", "running", "stopped", "failed", "waiting", "changed", "damaged"]
"""stopped: told to, or killed; goes on from its checkpoint. changed: trained under another configuration or on other
text. damaged: it has a result that cannot be read."""


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
    }


def _status(folder: RunFolder, fingerprint: str, data: str | None, steps: int) -> RunStatus:
    attempts = read_lines(folder.attempts, AttemptRecord)
    last = attempts[-1] if attempts else None
    lines = list(trained_steps(folder.metrics).values())
    done = lines[-1].step if lines else 0
    loss = lines[-1].loss if lines else None
    state: State
    error = last.error if last else None
    result, damage = _result(folder)
    if damage and not running(folder):
        state, error = "damaged", damage
    elif result:
        done, loss = result.steps, result.validation_loss
        state = "diverged" if result.status == "diverged" else "done"
        if result.run_fingerprint != fingerprint or data not in (None, result.data_manifest_sha256):
            state = "changed"
    elif last is None:
        state = "waiting"
    elif running(folder):
        state = "running"
    elif last.run_fingerprint != fingerprint:
        state = "changed"
    else:
        state = "failed" if last.exit_reason in ("failed", "out_of_memory") else "stopped"
    recent = [line.step_seconds for line in lines[-50:] if line.step_seconds]
    left = median(recent) * (steps - done) if recent and state in ("running", "stopped", "failed") else None
    return RunStatus(folder.cell, folder.seed, state, done, steps, loss, left, len(attempts), error)


def _result(folder: RunFolder) -> tuple[Result | None, str | None]:
    """A run's result if it has one, and what is wrong with it: cut short, changed or another version's."""
    try:
        found = read_record(folder.result, Result, made_by="octavo train") if folder.result.exists() else None
    except OctavoError as error:
        return None, f"{folder.result}: {error.found}; remove it and train again"
    return found, None
