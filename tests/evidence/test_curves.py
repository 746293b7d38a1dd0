"""Smoothed loss curves: monotone, through what was measured, and honest about what they never reach."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.evidence.curves import WINDOWS, averaged, smooth


def test_a_curve_goes_through_what_was_measured() -> None:
    tokens = np.array([1e3, 2e3, 4e3, 8e3])
    curve = smooth(tokens, np.array([5.0, 4.0, 3.5, 3.2]))
    assert curve is not None
    assert curve.at(2e3) == pytest.approx(4.0)
    assert (curve.start, curve.end) == (1e3, 8e3)


def test_between_points_it_follows_a_power_law_closely() -> None:
    tokens = np.geomspace(1e3, 1e6, 12)
    curve = smooth(tokens, 1.5 + 40 * tokens**-0.4)
    assert curve is not None
    assert curve.at(3.3e4) == pytest.approx(1.5 + 40 * 3.3e4**-0.4, rel=1e-3)


def test_neighbours_that_rise_are_pooled() -> None:
    """4, 3, 3.4, 2: the pair that rises becomes its mean, 3.2."""
    curve = smooth(np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 3.0, 3.4, 2.0]))
    assert curve is not None
    assert curve.loss.tolist() == pytest.approx([4.0, 3.2, 3.2, 2.0])


def test_a_loss_is_reached_where_the_curve_first_comes_down_to_it() -> None:
    tokens = np.geomspace(1e3, 1e6, 40)
    curve = smooth(tokens, 1.5 + 40 * tokens**-0.4)
    assert curve is not None
    assert curve.reaches(2.0) == pytest.approx((40 / 0.5) ** 2.5, rel=2e-3)


@pytest.mark.parametrize("loss", [0.5, 6.0])
def test_a_loss_that_is_never_reached_or_was_passed_before_the_first_point_is_none(loss: float) -> None:
    curve = smooth(np.array([1.0, 2.0, 3.0]), np.array([5.0, 3.0, 1.0]))
    assert curve is not None
    assert curve.reaches(loss) is None


def test_what_is_not_known_is_left_out() -> None:
    resource = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
    loss = np.array([5.0, np.nan, 4.5, 4.0, 3.0])
    curve = smooth(resource, loss)
    assert curve is not None
    assert curve.resource.tolist() == [1.0, 3.0, 4.0]
    assert smooth(resource[:3], loss[:3]) is None


def test_training_losses_are_averaged_over_windows_of_equally_many_steps() -> None:
    steps = np.arange(1.0, 401.0)
    resource, loss = averaged(steps, 10 - steps / 100)
    assert len(resource) == WINDOWS
    assert resource[0] == pytest.approx(5.5)  # mean of 1 to 10
    assert loss[0] == pytest.approx(10 - 0.055)
