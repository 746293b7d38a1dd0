"""What a run says of itself while it goes, on a clock that the test sets."""

from __future__ import annotations

import sys

import pytest

from octavo.training import progress
from octavo.training.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only entry."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def steps(shown: Progress, clock: list[float], first: int, last: int, seconds: float = 1.0) -> None:
    for step in range(first, last + 1):
        clock[0] += seconds
        shown.step(step, loss=2.0, tokens_per_second=1024.4)


def test_a_log_gets_a_line_every_twentieth_of_the_run(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    steps(Progress("dense-bf16/seed-1", 100), clock, 1, 100)
    lines = capsys.readouterr().out.splitlines()
    # the first step tells nothing of the pace; five seconds for five steps leave 94 for 94
    assert lines[0] == "dense-bf16/seed-1  step 6/100  loss 2.0000  1,024 tokens/s  left 0:01:34"
    assert len(lines) == 20  # after steps 6, 11, ... 96, and the last
    assert lines[-1].endswith("step 100/100  loss 2.0000  1,024 tokens/s  left 0:00:00")


def test_a_log_of_a_slow_run_gets_a_line_every_half_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    steps(Progress("run", 1000), clock, 1, 4, seconds=15.0)
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == ["step 2/1000", "step 4/1000"]


def test_time_left_is_judged_by_this_attempt_alone(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Going on after step 50: five steps of two seconds leave 88 for 44."""
    steps(Progress("run", 100), clock, 51, 56, seconds=2.0)
    assert capsys.readouterr().out.endswith("step 56/100  loss 2.0000  1,024 tokens/s  left 0:01:28\n")


def test_a_terminal_gets_one_line_that_moves(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = Progress("run", 3)
    steps(shown, clock, 1, 2)
    shown.say("a word between")
    steps(shown, clock, 3, 3)
    output = capsys.readouterr().out
    assert output.count("\r\x1b[K") == 4
    assert output.count("\n") == 2  # after the word, and at the end
    assert output.endswith("step 3/3  loss 2.0000  1,024 tokens/s  left 0:00:00\n")
