"""How far a run is: one moving line in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

PLAIN_SECONDS = 30.0
PLAIN_SHARE = 0.05
MOVING_SECONDS = 0.2


class Progress:
    """Prints step, loss, tokens per second and the time left."""

    def __init__(self, name: str, total_steps: int) -> None:
        self.name, self.total = name, total_steps
        self._moving = sys.stdout.isatty()
        self._began = self._printed = time.monotonic()
        self._first: int | None = None
        self._printed_step = 0

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(f"\r\x1b[K{text}" if self._moving else text, flush=True)

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Tell of a step, if it is time to."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began, self._printed_step = step, now, step
        due = now - self._printed >= MOVING_SECONDS if self._moving else self._due(step, now)
        if not due and step != self.total:
            return
        done = step - self._first
        left = timedelta(seconds=round((now - self._began) / done * (self.total - step))) if done else "?"
        line = f"{self.name}  step {step}/{self.total}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  left {left}"
        print(f"\r\x1b[K{line}" if self._moving else line, end="" if self._moving else "\n", flush=True)
        self._printed, self._printed_step = now, step
        if self._moving and step == self.total:
            print(flush=True)

    def _due(self, step: int, now: float) -> bool:
        return now - self._printed >= PLAIN_SECONDS or step - self._printed_step >= PLAIN_SHARE * self.total
