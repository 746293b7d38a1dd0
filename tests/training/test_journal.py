"""Tries that ended before their trainer could say so."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from octavo.layout import RunFolder
from octavo.records import AttemptRecord, RankTime
from octavo.training.journal import Journal, close_dangling, enter_unbegun, only_trainer, read_attempts
from octavo.training.ranks import Ending, clear, own_state, write_killed, write_state

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


def test_a_leading_rank_that_left_no_word_ended_as_the_others_said_and_when(folder: RunFolder) -> None:
    """Its devices were held until they noticed; what ranks of an earlier attempt said counts for nothing."""
    Journal(folder, attempt(BEGAN).model_copy(update={"end": None, "exit_reason": None}))
    noticed = Ending(reason="stalled", rank=0, said="rank 0 has stood still", time=BEGAN.timestamp() + 600)
    write_state(folder, 1, own_state().model_copy(update={"ending": noticed}))
    write_state(folder, 2, own_state().model_copy(update={"node": "gpu2", "stage": 1, "work_seconds": 0.25}))
    (one,) = close_dangling(folder)
    assert (one.exit_reason, one.error, one.end) == ("stalled", "rank 0 has stood still", BEGAN.replace(minute=10))
    assert one.ranks == [RankTime(rank=2, node="gpu2", stage=1, seconds=0.25)]
    clear(folder)
    Journal(folder, attempt(BEGAN).model_copy(update={"attempt": 2, "end": None, "exit_reason": None}))
    assert [one.exit_reason for one in close_dangling(folder)] == ["stalled", "killed"]


@pytest.mark.parametrize("written", [True, False])
def test_a_rank_that_is_killed_before_it_says_a_word_is_not_one_of_the_last_attempt(
    folder: RunFolder, written: bool
) -> None:
    """That one lost its power, maybe before its rank's word was whole on disk; it ended then."""
    Journal(folder, attempt(BEGAN).model_copy(update={"end": None, "exit_reason": None}))
    write_state(folder, 0, own_state())
    if not written:
        (folder.path / ".ranks/0.json").write_text("")
    write_killed(folder, 0, own_state().process + 1, "rank 0 was killed by signal 15")
    (one,) = close_dangling(folder)
    assert (one.exit_reason, one.error, one.end) == ("killed", None, BEGAN)


@pytest.mark.parametrize("said_a_word", [True, False])
def test_a_rank_of_this_attempt_that_is_killed_is_named(folder: RunFolder, said_a_word: bool) -> None:
    Journal(folder, attempt(BEGAN).model_copy(update={"end": None, "exit_reason": None}))
    if said_a_word:
        write_state(folder, 0, own_state())
    write_killed(folder, 0, own_state().process, "rank 0 was killed by signal 9")
    (one,) = close_dangling(folder)
    assert (one.exit_reason, one.error) == ("killed", "rank 0 was killed by signal 9")


def test_nor_where_another_process_trains_the_run(folder: RunFolder) -> None:
    with only_trainer(folder):
        enter_unbegun(folder, attempt(BEGAN))
    assert not read_attempts(folder)
