"""A thread in every rank that notices when a rank is gone or stands still, says which, and ends the run so that it can
go on.

A rank whose neighbour is killed or stopped waits in a collective: for ever, or until its connection breaks, and Python
handles no signal meanwhile. So each rank beats in the run's folder (`octavo.training.ranks`), and this thread judges.
While its own rank goes on, all do: steps are collective. When it does not, the leading rank looks at every other, and
these at the leading one:

- a rank that said how it ended, or whose process is gone, ended the run;
- where this rank has begun nothing new for longer than it may, the run stands still. What a thing may take follows from
  what it took before in this attempt. To blame are the ranks that do not beat, else those that are behind, else all.

Then the leading rank ends the attempt with that word, and every rank leaves: with RESTART where the run stood still.
Time that this thread itself did not run (a job that Slurm suspends, a laptop that sleeps) counts for nothing.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from octavo.errors import OctavoError
from octavo.experiment.config import Checkpoints
from octavo.layout import RunFolder
from octavo.training.launch import RESTART, STOPS, Process, leave
from octavo.training.ranks import Doing, Ending, RankState, own_state, read_state, write_state

SLOWER = 20
"""How many times as long as the longest of its kind lately a step, a validation or a checkpoint may take."""

LATELY = 50

WORKED = 1000
"""Steps whose median says how fast a rank is: all of a short attempt, what is the case now of a long one."""

FIRST = 6
"""How many times `standstill_seconds` the first of a kind may take: kernels are chosen, caches are cold."""

BEATS_A_SECOND = 100.0
"""Of all ranks together, so that many ranks do not burden the file system; a rank beats once a second at most."""

SILENT = 5
"""Beats without which a rank is silent, or has had its time to end by an error of its own."""

LEAST = 12
"""Beats that a standstill takes at least: whether others are silent must be seen."""


@dataclass
class _Seen:
    """Another rank, as this one saw it; the time counts while this one looks."""

    state: RankState | None = None
    silent: float = 0.0
    """Seconds since its last beat."""

    def look(self, state: RankState | None, passed: float) -> None:
        if state is not None and (self.state is None or state.beats != self.state.beats):
            self.silent = 0.0
        else:
            self.silent += passed
        self.state = state or self.state


class Watch:
    """This rank's beat, and its eye on the others."""

    def __init__(
        self, folder: RunFolder, process: Process, stage: int, checkpoints: Checkpoints, close: Callable[[Ending], None]
    ) -> None:
        """`stage` is this rank's in the pipeline; `close` ends the attempt, on the leading rank."""
        self._folder, self._process, self._close = folder, process, close
        self._period = max(1.0, process.world_size / BEATS_A_SECOND)
        self._least = max(checkpoints.standstill_seconds, LEAST * self._period)
        self._grace = max(checkpoints.grace_seconds, LEAST * self._period)
        self._own = own_state().model_copy(update={"stage": stage})
        """What this rank does; the main thread's, as the next two."""
        self._began = time.monotonic()
        self._took: dict[Doing, tuple[float, ...]] = {}
        """How long what this rank did took, by kind."""
        self._worked: deque[float] = deque(maxlen=WORKED)
        self._beats = 0
        self._watched_event = 0
        self._waits = 0.0
        """Seconds since this rank began what it is doing."""
        self._told: float | None = None
        """Seconds since it was told to stop."""
        self._others: dict[int, _Seen] = {}
        self._met = self._settling = self._stopped = False
        self._ending = threading.Lock()
        """Held while this rank is judged, or ends by itself."""

    def start(self) -> None:
        """Begin, in the main thread: signals are written to a pipe also while that waits for other ranks."""
        self._wakes, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True, name="watch").start()

    def met(self) -> None:
        """All ranks have met: what the others' files say is of this attempt from now on."""
        self._met = True

    def doing(self, doing: Doing, step: int) -> None:
        """Tell what this rank begins."""
        now, last = time.monotonic(), self._own
        self._took[last.doing] = (*self._took.get(last.doing, ())[1 - LATELY :], now - self._began)
        begun = {"doing": doing, "step": step, "since": time.time(), "events": last.events + 1}
        self._began, self._own = now, last.model_copy(update=begun)

    def worked(self, seconds: float) -> None:
        """Tell how long this rank worked at a step before it waited for the others."""
        self._worked.append(seconds)

    def beat(self) -> None:
        """Say how this rank is now."""
        with self._ending:
            self._beat(None)

    def settle(self) -> None:
        """Wait, after an error that may be a broken connection: where another rank's end broke it, this process is
        ended with the word of that, and the call does not return."""
        if self._process.world_size > 1 and self._met:
            self._settling = True
            os.write(self._woken, b"\0")
            time.sleep((2 * SILENT + 1) * self._period)

    def stop(self, ending: Ending | None) -> None:
        """This rank ends by itself: as it should (None), or with an error that others are to know of."""
        with self._ending:
            self._stopped = True
            signal.set_wakeup_fd(-1)
            self._beat(ending, left=ending is None)
        os.write(self._woken, b"\0")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped:
            self._rest()
            now = time.monotonic()
            # of a long pause this thread was not there either: the machine slept, or the job was suspended
            passed, last = min(now - last, 2 * self._period), now
            with self._ending:
                if self._stopped:
                    return
                self._beat(None)
                self._count(passed)
                if ending := self._judge(passed):
                    self._leave(ending)

    def _rest(self) -> None:
        """Until the next beat, a signal, or an error of this rank."""
        readable, _, _ = select.select([self._wakes], [], [], self._period)
        received = os.read(self._wakes, 64) if readable else b""
        if self._told is None and set(STOPS) & set(received):
            self._told = 0.0

    def _beat(self, ending: Ending | None, *, left: bool = False) -> None:
        self._beats += 1
        if self._process.world_size > 1:
            worked = list(self._worked)  # at once: the main thread goes on
            state = self._own.model_copy(
                update={
                    "beats": self._beats,
                    "ending": ending,
                    "left": left,
                    "work_seconds": median(worked) if worked else None,
                }
            )
            write_state(self._folder, self._process.rank, state)

    def _count(self, passed: float) -> None:
        if (event := self._own.events) != self._watched_event:
            self._watched_event, self._waits = event, 0.0
        self._waits += passed
        if self._told is not None:
            self._told += passed

    def _judge(self, passed: float) -> Ending | None:
        """What ended the run, if it has ended."""
        if self._met and (self._settling or self._waits > SILENT * self._period):
            for rank in self._watched():
                self._others.setdefault(rank, _Seen()).look(read_state(self._folder, rank), passed)
            if ending := self._ended():
                return ending
        return self._standstill() if self._overdue() else None

    def _watched(self) -> Iterable[int]:
        """The leading rank watches all, the others watch it; one whose connection broke looks at all."""
        if self._process.leads or self._settling:
            return (rank for rank in range(self._process.world_size) if rank != self._process.rank)
        return (0,)

    def _ended(self) -> Ending | None:
        """The end of another rank that ends this one, in its own words or its launcher's where there are any."""
        going = [(rank, one.state, one.silent) for rank, one in self._others.items() if one.state]
        going = [(rank, state, silent / self._period) for rank, state, silent in going if not state.left]
        for _, state, silent in going:
            if state.ending and (self._settling or silent > SILENT):
                return state.ending
        for rank, state, silent in going:
            if not state.ending and silent > SILENT / 2 and _gone(state):
                said = f"rank {rank} was killed: it is gone and left no word"
                return Ending(reason="killed", rank=rank, said=said, process=state.where)
            if not state.ending and silent > SILENT and self._settling:
                said = f"rank {rank} broke its connections and gives no sign of life"
                return Ending(reason="killed", rank=rank, said=said, process=state.where)
        return None

    def _overdue(self) -> bool:
        """Whether this rank has begun nothing new for longer than it may."""
        if self._stands():
            return True
        # a step of its usual length is still ended, and saved
        told = max(self._grace, 3 * (self._longest() or 0.0))
        return self._told is not None and self._own.doing != "checkpoint" and min(self._waits, self._told) > told

    def _stands(self) -> bool:
        """Whether it took longer already than what it is doing may take, told to stop or not."""
        took = self._longest()
        # parts of a start differ: one says nothing of another
        first = took is None or self._own.doing == "start"
        return self._waits > (FIRST * self._least if first else max(self._least, SLOWER * (took or 0.0)))

    def _longest(self) -> float | None:
        """How long the longest of what this rank is doing took lately; None where it is the first of its kind."""
        return max(self._took.get(self._own.doing, ()), default=None)

    def _standstill(self) -> Ending | None:
        """Which ranks stand still, as far as this one sees; None where another one sees more."""
        states = {rank: one.state for rank, one in self._others.items() if one.state and not one.state.left}
        silent = [rank for rank in states if self._others[rank].silent > SILENT * self._period]
        if self._met and not silent and not self._process.leads:
            return None
        states[self._process.rank] = self._own
        behind = min(state.events for state in states.values())
        late = [rank for rank, state in states.items() if state.events == behind]
        told = ", also after it was told to stop" if self._told is not None else ""
        if not silent and (not self._met or len(late) == self._process.world_size):
            if self._told is not None and not self._stands():
                passed = f"{min(self._waits, self._told):.0f} s"
                said = f"told to stop, the run did not come to the end of what it was doing in {passed}: "
                return Ending(reason="stalled", rank=None, said=said + self._own.place)
            who = "every rank" if len(states) > 1 else "the run"
            return Ending(reason="stalled", rank=None, said=f"{who} has stood still {_since(self._own)}{told}")
        rank, more = min(silent or late), len(silent or late) - 1
        who = f"rank {rank} and {more} more have" if more else f"rank {rank} has"
        # a silent rank's file may be older than what it did last: said is since when, and in what, this rank waits
        since = f"{_since(self._own)}{told}, and gives no sign of life" if silent else f"{_since(states[rank])}{told}"
        return Ending(reason="stalled", rank=rank, said=f"{who} stood still {since}", process=states[rank].where)

    def _leave(self, ending: Ending) -> None:
        """End this process, whose main thread may wait for ever."""
        self._beat(ending)
        self._close(ending)
        told_by = 1 if ending.rank == 0 else 0  # an error of its own is told by the rank that had it
        if ending.reason in ("killed", "stalled") and self._process.rank == told_by:
            again = "give the same command again: the run goes on from its newest whole checkpoint"
            error = OctavoError(ending.said, where=ending.process or self._folder.path, fix=again)
            with suppress(OSError):
                print(f"error: {error}", file=sys.stderr)
        leave(RESTART if ending.reason == "stalled" else 1)


def _gone(state: RankState) -> bool:
    """Whether a rank's process is not there any more, as far as can be seen from here."""
    if state.host != socket.gethostname():
        return False
    try:
        os.kill(state.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _since(state: RankState) -> str:
    return f"since {datetime.fromtimestamp(state.since, UTC):%Y-%m-%d %H:%M:%S} UTC, {state.place}"
