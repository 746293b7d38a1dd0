"""How many steps a logged time stands for, and whether times fit the clock.

Programs log a time every so many steps (`--log-interval`, `log_freq`) and mean the steps since the time before, however
often they log losses. The first time of a log stands for an interval at most: a log that begins at step 1 or 301 has a
line for that step alone before it falls into the rhythm of its interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.errors import OctavoError

if TYPE_CHECKING:
    import pandas as pd

CONTRADICTION = 100.0
"""Times that are off by this factor are in another unit, or not of these steps."""
PAUSES = 0.1
"""Share of the intervals that may hold a pause (a validation, a checkpoint, a queue), for the clock."""


def stands_for(log: pd.DataFrame) -> np.ndarray:
    """The steps that each row's time (or rate) is a mean of; NaN where it has none.

    `log`: rows by `step`; `trained` where training wrote them; `step_seconds` or `tokens_per_second_per_device` where
    there are such.
    """
    timed = np.zeros(len(log), dtype=bool)
    for name in ("step_seconds", "tokens_per_second_per_device"):
        if name in log and not timed.any():
            timed = log[name].notna().to_numpy()
    steps = log["step"].to_numpy(dtype=float)
    result = np.full(len(log), np.nan)
    at = steps[timed]
    if len(at):
        result[timed] = np.concatenate([[_first(at, steps[log["trained"]][0])], np.diff(at)])
    return result


def _first(at: np.ndarray, logged_from: float) -> float:
    """The steps that the first of the times at steps `at` stands for, in a log whose first line is of `logged_from`."""
    first = at[0]
    if len(at) == 1:
        return max(first - logged_from + 1, 1) if logged_from < first or first == 0 else 1.0
    values, counts = np.unique(np.diff(at), return_counts=True)
    interval = values[counts == counts.max()][-1]  # of two as common the longer: a restart cuts one short
    if first <= interval:
        return max(first, 1.0)
    if logged_from < first:  # losses are logged more often than times
        return min(interval, first - logged_from + 1)
    return first % interval or interval


def check_clock(log: pd.DataFrame, where: str) -> None:
    """Raise OctavoError where the times of the steps are 100 times what the clock says, or a hundredth of it.

    `log`: rows by `step` with `clock` (seconds, NaN where a line has no time of day), `step_seconds`, `stands_for`.
    """
    if "step_seconds" not in log:
        return
    rows = log[log["step_seconds"].notna() & log["clock"].notna()]
    passed = np.diff(rows["clock"])
    logged = (rows["step_seconds"] * rows["stands_for"]).to_numpy()[1:]
    going = passed >= 0  # not from one attempt to the next, in another file
    passed, logged = passed[going], logged[going]
    if not passed.sum() > 0:
        return
    if logged.sum() > CONTRADICTION * passed.sum():
        raise _contradiction(logged.sum(), passed.sum(), where)
    calm = np.argsort(passed)[: len(passed) - int(np.ceil(PAUSES * len(passed)))]
    if passed[calm].sum() > CONTRADICTION * logged[calm].sum() > 0:
        raise _contradiction(logged[calm].sum(), passed[calm].sum(), where)


def check_rates(seconds: np.ndarray, by_rate: np.ndarray, where: str) -> None:
    """Raise OctavoError where step times and those that tokens and rates give are a factor of 100 apart (medians)."""
    both = np.isfinite(seconds) & np.isfinite(by_rate)
    if both.any():
        one, other = float(np.median(seconds[both])), float(np.median(by_rate[both]))
        if not 1 / CONTRADICTION < one / other < CONTRADICTION:
            raise OctavoError(
                f"a step takes {one:.4g} s by its time and {other:.4g} s by its tokens per second", where=where,
                expected="the same, but for a few per cent",
                fix="check the unit of step_seconds, tokens_per_step (all devices together) and devices",
            )  # fmt: skip


def _contradiction(logged: float, passed: float, where: str) -> OctavoError:
    return OctavoError(
        f"the steps take {logged:,.4g} s by their times, and the clock of the same lines went {passed:,.4g} s",
        where=where, expected="about the same", fix="check the unit of the step times, and that no lines are missing",
    )  # fmt: skip
