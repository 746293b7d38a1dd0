"""What a run writes while it goes: `metrics.jsonl` and `attempts.jsonl`, and the rules that make them survive a kill.

Metrics are appended line by line and flushed, so that a killed run loses at most its last line. A resumed run cuts a
torn line off and appends: the steps after its checkpoint appear a second time (`octavo.records.read_metrics` leaves out
the lines that they replace). Attempts are few: their file is written anew, atomically, whenever one begins or ends. The
next attempt closes one that was stopped without writing its end (SIGKILL, power) as `killed`, at the time of its last
line; or, where only its leading rank left no word, as the others said.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from octavo.errors import OctavoError
from octavo.experiment.run import RunIdentity
from octavo.files import atomic_path, read_json, unwritable, write_text
from octavo.layout import RunFolder
from octavo.privacy import redact
from octavo.records import (
    AttemptRecord,
    ExitReason,
    MetricsRecord,
    Result,
    last_line,
    read_lines,
    read_record,
    whole_lines,
)
from octavo.training.ranks import rank_times, read_ending
from octavo.training.seal import saved_steps

MADE_BY = "octavo train {folder}"


@contextmanager
def only_trainer(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder's lock, which dies with the process; OctavoError when another process has it."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = (folder.path / ".lock").open("w")
    except OSError as error:
        raise unwritable(folder.path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OctavoError(
                "another process trains this run", where=folder.path, fix="wait for it, or stop it first"
            ) from None
        yield


def finished(folder: RunFolder, identity: RunIdentity, data_manifest_sha256: str | None) -> Result | None:
    """The run's result, if it is complete and was made under this configuration (of another layout, where resharding is
    allowed) and on this data set.

    None for the data set: there is none now that it could differ from.
    """
    if not folder.result.exists():
        return None
    try:
        result = read_record(folder.result, Result, made_by=MADE_BY.format(folder=folder.path))
    except OctavoError:
        return None  # cut short, or another version's: it is made again, and what it cost stays in the attempts
    same_data = data_manifest_sha256 in (None, result.data_manifest_sha256)
    return result if same_data and identity.holds(result) else None


def supersede(folder: RunFolder, identity: RunIdentity, data_manifest_sha256: str) -> str | None:
    """Move what another configuration, or the same on other text, left in the folder to `superseded/`, where it is
    still paid for; say what and where to."""
    attempts = close_dangling(folder)
    earlier = [attempt for attempt in attempts if not identity.holds(attempt)]
    if not earlier and _trained_on(folder) in (None, data_manifest_sha256):
        return None
    name = min((attempt.run_fingerprint for attempt in earlier), default=identity.run_fingerprint)[:12]
    target = folder.superseded / name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{name}-{number}")
    target.mkdir(parents=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # nothing will go on from them, and they are large
    for path in (folder.config, folder.metrics, folder.attempts, folder.provenance, folder.routing, folder.result):
        if path.exists():
            path.replace(target / path.name)
    what = "what an earlier configuration, or earlier text, left"
    if earlier and all(one.computation_fingerprint == identity.computation_fingerprint for one in earlier):
        layouts = " and ".join(dict.fromkeys(one.layout or "another layout" for one in earlier))
        what = f"training.checkpoints.resharding is forbid, and the run begins anew: what it left under {layouts}"
    return f"{what} was moved to {target}"


def _trained_on(folder: RunFolder) -> str | None:
    """The manifest of the data set that the last attempt opened; None where none did, or where its word is damaged
    (its checkpoints' seals name the data set too)."""
    with suppress(OctavoError):
        return read_json(folder.provenance, made_by=MADE_BY.format(folder=folder.path)).get("data_manifest_sha256")
    return None


def read_attempts(folder: RunFolder) -> list[AttemptRecord]:
    """The attempts so far, the earliest first."""
    return read_lines(folder.attempts, AttemptRecord)


def write_attempts(folder: RunFolder, attempts: list[AttemptRecord]) -> None:
    """Write all attempts anew."""
    write_text(folder.attempts, "".join(attempt.model_dump_json() + "\n" for attempt in attempts))


def close_dangling(folder: RunFolder) -> list[AttemptRecord]:
    """The attempts so far, those that left no word closed as killed at the last sign of life."""
    attempts = read_attempts(folder)
    if all(attempt.end for attempt in attempts):
        return attempts
    cut_torn_line(folder.metrics)
    ending = read_ending(folder)
    for index, attempt in enumerate(attempts):
        if attempt.end is None:
            seen = last_line(folder.metrics, attempt.attempt)
            last = ending.time if ending else seen.time if seen else None
            attempts[index] = attempt.model_copy(
                update={
                    "end": datetime.fromtimestamp(last, UTC) if last else attempt.start,
                    "exit_reason": ending.reason if ending else "killed",
                    "error": ending and redact(ending.said),
                    "last_step": seen.step if seen else attempt.first_step,
                    "ranks": rank_times(folder),
                }
            )
    write_attempts(folder, attempts)
    return attempts


def enter_unbegun(folder: RunFolder, attempt: AttemptRecord) -> None:
    """Add an attempt that failed before its trainer could write to attempts.jsonl, so that its hours are counted.

    Does nothing where the trainer did write it, or where another process trains this run.
    """
    with suppress(OctavoError), only_trainer(folder):
        attempts = close_dangling(folder)
        if not attempts or attempts[-1].start < attempt.start:
            step = max(saved_steps(folder.checkpoints), default=0)
            entered = {"attempt": len(attempts) + 1, "first_step": step, "last_step": step}
            write_attempts(folder, [*attempts, attempt.model_copy(update=entered)])


def cut_torn_line(path: Path) -> None:
    """Remove a last line that a killed writer left without its newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(whole_lines(file))


class Journal:
    """The open files of one attempt. Only the leading rank has one."""

    def __init__(self, folder: RunFolder, attempt: AttemptRecord) -> None:
        self.folder = folder
        self.attempt = attempt
        self._earlier = close_dangling(folder)
        write_attempts(folder, [*self._earlier, attempt])
        cut_torn_line(folder.metrics)
        self._metrics: IO[str] = folder.metrics.open("a", encoding="utf-8")

    def record(self, metrics: MetricsRecord) -> None:
        """Append one line and flush it."""
        try:
            self._metrics.write(metrics.model_dump_json(exclude_none=True) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise unwritable(self.folder.metrics, error) from error

    def keep(self) -> None:
        """Force what was logged to disk: before a checkpoint is whole that goes on after these lines."""
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise unwritable(self.folder.metrics, error) from error

    def close(self, reason: ExitReason, last_step: int, error: str | None = None, **measured: Any) -> None:
        """End the attempt. Errors may name places and secrets of the machine, which the ledger does not hold."""
        self._metrics.close()
        ended = self.attempt.model_copy(
            update={
                "end": datetime.now(UTC),
                "exit_reason": reason,
                "error": error and redact(error),
                "last_step": last_step,
                **measured,
            }
        )
        write_attempts(self.folder, [*self._earlier, ended])


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
