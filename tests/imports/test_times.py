"""The steps that a logged time stands for, and times that the clock or the tokens contradict."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from octavo.errors import OctavoError
from octavo.imports.times import check_clock, check_rates, stands_for


def log(timed: list[int], logged: list[int] | None = None) -> pd.DataFrame:
    """A log with times at some of its steps."""
    steps = sorted({*timed, *(logged or [])})
    seconds = [0.5 if step in timed else np.nan for step in steps]
    return pd.DataFrame({"step": steps, "trained": True, "step_seconds": seconds})


@pytest.mark.parametrize(
    ("timed", "logged", "expected"),
    [
        ([10, 20, 30], [], [10, 10, 10]),  # a log interval of 10 from the start
        ([1, 10, 20], [], [1, 9, 10]),  # torchtitan writes step 1, too
        ([122, 123, 124], [], [1, 1, 1]),  # every step, from the middle: nothing is known of the first 121
        ([301, 310, 320], [], [1, 9, 10]),  # gone on from a checkpoint at 300: its first line is of one step
        ([310, 320, 330], [], [10, 10, 10]),
        ([100, 200, 300], list(range(1, 301)), [100, 100, 100]),  # losses every step
        ([310, 320, 330], list(range(306, 331)), [5, 10, 10]),  # gone on from 305
        ([50], list(range(1, 51)), [50]),
        ([50], [], [1]),  # one line alone: of one step at least
        ([10, 20, 40, 50], [], [10, 10, 20, 10]),  # a line is missing: its steps took the time of the next
    ],
)
def test_a_time_stands_for_the_steps_since_the_time_before(
    timed: list[int], logged: list[int], expected: list[int]
) -> None:
    found = stands_for(log(timed, logged))
    assert found[np.isfinite(found)].tolist() == expected


def clocked(step_seconds: float, clock: list[float]) -> pd.DataFrame:
    steps = np.arange(10, 10 * len(clock) + 1, 10)
    return pd.DataFrame({"step": steps, "step_seconds": step_seconds, "stands_for": 10.0, "clock": clock})


@pytest.mark.parametrize(
    ("step_seconds", "between"),
    [(0.5, 5.0), (0.5, 30.0), (0.5, 0.0)],  # as the clock; with a pause after each line; a clock that stands still
)
def test_times_that_the_clock_allows(step_seconds: float, between: float) -> None:
    check_clock(clocked(step_seconds, [between * line for line in range(20)]), "log")


@pytest.mark.parametrize("step_seconds", [500.0, 0.0005])  # milliseconds for seconds, seconds for milliseconds
def test_times_that_are_off_by_a_factor_of_1000_contradict_the_clock(step_seconds: float) -> None:
    with pytest.raises(OctavoError, match="by their times"):
        check_clock(clocked(step_seconds, [5.0 * line for line in range(20)]), "log")


def test_a_night_in_the_queue_is_no_contradiction() -> None:
    clock = [5.0 * line + (36_000 if line > 10 else 0) for line in range(20)]
    check_clock(clocked(0.5, clock), "log")


def test_times_that_tokens_per_second_contradict() -> None:
    times = np.array([0.5, 0.5, np.nan])
    check_rates(times, np.array([0.6, 0.4, 0.5]), "log")
    with pytest.raises(OctavoError, match=r"0\.5 s by its time and 0\.001 s"):
        check_rates(times, np.array([0.001, 0.001, 0.001]), "log")
