"""Which runs ended without a sane loss."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.divergence import diverged, sane, validation_lost

STEP = np.arange(1, 201)
FALLING = 2 + 8 / np.sqrt(STEP)
NOISY = FALLING * np.random.default_rng(0).normal(1, 0.03, len(STEP))


def ending(*values: float) -> np.ndarray:
    return np.r_[NOISY[: -len(values)], values]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (NOISY, False),
        (np.full(200, 3.0), False),
        (ending(np.nan), True),
        (ending(np.inf, np.inf), True),
        (ending(0.0, 0.0, 0.0), True),  # Megatron-LM since March 2026, where every iteration was skipped
        (ending(*[6.0] * 30), True),  # about 2.6 before
        (ending(np.nan, *NOISY[-20:]), False),  # one skipped step on the way
        (ending(6.0, *NOISY[-40:]), False),  # a spike that it came back from
        (np.full(200, np.nan), True),
    ],
)
def test_a_run_diverged_if_it_ends_without_a_sane_loss(loss: np.ndarray, expected: bool) -> None:
    assert diverged(STEP, loss) is expected


def test_a_log_with_fewer_losses_than_other_lines_did_not_diverge() -> None:
    """A loss every 10 steps, the last 7 steps before the end; 13 steps before it the one of step 200 is missing."""
    loss = np.where(STEP % 10 == 0, FALLING, np.nan)
    assert not diverged(STEP[:197], loss[:197])
    assert diverged(STEP[:197], np.where(STEP > 184, np.nan, loss)[:197])


def test_a_few_noisy_lines_are_no_blow_up() -> None:
    """15 lines that scatter by 5 %: single lines lie 20 % apart."""
    rng = np.random.default_rng(1)
    assert not any(diverged(np.arange(15), 3 * rng.normal(1, 0.05, 15)) for _ in range(100))


def test_a_loss_of_zero_or_less_is_none() -> None:
    found = sane(np.array([1.0, 0.0, -2.0, np.inf]))
    assert found[0] == 1.0
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ({50: 3.0, 100: 2.5}, False),
        ({50: 3.0, 100: np.nan}, True),
        ({50: 3.0, 100: 2.5, 120: np.nan}, True),  # the run ends before the next is due
        ({50: 3.0, 100: np.nan, 150: 2.0}, False),
        ({10: np.nan, 20: 3.0, 30: np.nan, 40: 2.5, 50: np.nan}, False),  # NaN where nothing was validated
        ({10: np.nan, 20: 3.0, 30: np.nan, 40: 2.5, 50: np.nan, 60: np.nan}, True),
        ({50: np.nan, 100: np.nan}, False),
    ],
)
def test_a_last_validation_without_a_sane_loss_is_a_divergence(validations: dict[int, float], expected: bool) -> None:
    assert validation_lost(np.array(list(validations)), np.array(list(validations.values()))) is expected
