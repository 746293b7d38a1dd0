"""Tries that ended before their trainer could say so."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from octavo.layout import RunFolder
from octavo.records import AttemptRecord
from octavo.training.journal import Journal, enter_unbegun, only_trainer, read_attempts

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with checkpoints after 20 and 40 steps."""
    for step in (20, 40):
        (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
    return RunFolder(tmp_path)


def attempt(start: datetime) -> AttemptRecord:
    return AttemptRecord(
        attempt=1, start=start, end=start, host="n", nodes=["n"], device_kind="cpu", device_count=1,
        exit_reason="failed", error="srun failed", first_step=0, run_fingerprint="x",
    )  # fmt: skip


def test_it_is_entered_with_the_steps_of_the_newest_checkpoint(folder: RunFolder) -> None:
    enter_unbegun(folder, attempt(BEGAN))
    enter_unbegun(folder, attempt(BEGAN.replace(hour=13)))
    entered = [(one.attempt, one.exit_reason, one.first_step, one.last_step) for one in read_attempts(folder)]
    assert entered == [(1, "failed", 40, 40), (2, "failed", 40, 40)]


def test_not_where_the_trainer_said_so_itself(folder: RunFolder) -> None:
    """The trainer began after its launcher did; it left no word of its end, and is closed as killed."""
    own = attempt(BEGAN.replace(minute=1)).model_copy(update={"end": None, "exit_reason": None})
    Journal(folder, own)
    enter_unbegun(folder, attempt(BEGAN))
    assert [one.exit_reason for one in read_attempts(folder)] == ["killed"]


def test_nor_where_another_process_trains_the_run(folder: RunFolder) -> None:
    with only_trainer(folder):
        enter_unbegun(folder, attempt(BEGAN))
    assert not read_attempts(folder)
