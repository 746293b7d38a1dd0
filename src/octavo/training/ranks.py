"""What the ranks of a run say of themselves while they train: `.ranks/<rank>.json` in the run's folder.

A rank says there, at every beat, what it is doing, and last how it ended. A process that is killed or stopped cannot:
its launcher says it, or a rank that noticed (`octavo.training.watch`). The next attempt reads there why the last one
left no word of its own, and how long each rank worked at a step. Imports nothing heavy: the launcher has no torch.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from octavo.layout import RunFolder
from octavo.records import ExitReason, RankTime, Record

Doing = Literal["start", "step", "validation", "checkpoint", "end"]

PLACES: dict[Doing, str] = {
    "start": "while it starts",
    "step": "in step {}",
    "validation": "in the validation after step {}",
    "checkpoint": "in the checkpoint after step {}",
    "end": "while it ends, after step {}",
}


class Ending(Record):
    """How a rank ended or, where another rank's end was the cause, how that one did."""

    reason: ExitReason
    rank: int | None
    """Whose end it is; None: it is that of all."""
    said: str
    """One line, without names of computers: it goes into the ledger."""
    process: str | None = None
    """Where the rank was, for those who see to it."""
    time: float = Field(default_factory=time.time)
    """Unix time at which it was told: devices were held until then."""


class RankState(Record):
    """One rank at its last beat."""

    host: str
    process: int
    node: str
    """Slurm's name of the host, where there is one."""
    stage: int = 0
    """Of the pipeline."""
    work_seconds: float | None = None
    """Median over its last steps, up to the reduction of gradients."""
    beats: int = 0
    """Counts up while the process runs, whatever it waits for."""
    events: int = 0
    """Counts up whenever it begins something else: all ranks begin the same things in the same order."""
    doing: Doing = "start"
    step: int = 0
    """The step that it is in, or that it did last."""
    since: float
    """Unix time at which it began that."""
    left: bool = False
    """Whether it is about to end as it should."""
    ending: Ending | None = None

    @property
    def where(self) -> str:
        """Which process it is, for those who see to it."""
        return f"process {self.process} of {self.host}"

    @property
    def place(self) -> str:
        """What it is doing, in words."""
        return PLACES[self.doing].format(self.step)


def own_state() -> RankState:
    """The state of this process when it begins."""
    host = socket.gethostname()
    node = os.environ.get("SLURMD_NODENAME") or host
    return RankState(host=host, process=os.getpid(), node=node, since=time.time())


def write_state(folder: RunFolder, rank: int, state: RankState) -> None:
    """Write a rank's state. Not flushed: it is for those who run now. What cannot be written is left out."""
    path = _path(folder, rank)
    temporary = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary.write_text(state.model_dump_json(), encoding="utf-8")
        temporary.replace(path)


def read_state(folder: RunFolder, rank: int) -> RankState | None:
    """A rank's state; None where it has none (yet)."""
    return _read(_path(folder, rank))


def write_killed(folder: RunFolder, rank: int, process: int, said: str) -> None:
    """Say for a rank, which was this process of this machine, that it was killed.

    Not where another process's word is there still: that attempt may not be closed yet, and this is not its end.
    """
    state = read_state(folder, rank)
    if _path(folder, rank).exists() and (state is None or state.process != process):
        return
    state = state or own_state().model_copy(update={"process": process})
    ending = Ending(reason="killed", rank=rank, said=said, process=state.where)
    write_state(folder, rank, state.model_copy(update={"ending": ending}))


def read_ending(folder: RunFolder) -> Ending | None:
    """What ended the last attempt, as any of its ranks said; None where none did."""
    states = [_read(path) for path in sorted((folder.path / ".ranks").glob("*.json"))]
    return next((state.ending for state in states if state and state.ending), None)


def rank_times(folder: RunFolder) -> list[RankTime]:
    """How long each rank worked at a step of the last attempt, by rank; without those that said nothing of it."""
    states = {int(path.stem): _read(path) for path in (folder.path / ".ranks").glob("*.json")}
    return [
        RankTime(rank=rank, node=state.node, stage=state.stage, seconds=state.work_seconds)
        for rank, state in sorted(states.items())
        if state and state.work_seconds is not None
    ]


def clear(folder: RunFolder) -> None:
    """Forget what the ranks of an earlier attempt said."""
    shutil.rmtree(folder.path / ".ranks", ignore_errors=True)


def _path(folder: RunFolder, rank: int) -> Path:
    return folder.path / ".ranks" / f"{rank}.json"


def _read(path: Path) -> RankState | None:
    with suppress(OSError, ValidationError):
        return RankState.model_validate_json(path.read_bytes())
    return None
