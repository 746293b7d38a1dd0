"""The fit is what the file says, and its error is measured on models that it has not seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from octavo.forecast.calibration import GpuCalibration, gpu_calibration
from octavo.forecast.fitting import MODELS, PRIORS, calibrate, fit, residual, rows


@pytest.fixture(scope="module")
def fresh() -> GpuCalibration:
    """The fit made anew: the test of the test is that changing a row changes it."""
    return calibrate()


def test_the_file_is_the_fit(fresh: GpuCalibration) -> None:
    stored = gpu_calibration()
    assert stored.constants.sustained == pytest.approx(fresh.constants.sustained, rel=1e-2)
    others = [one.constants.model_dump(exclude={"sustained"}) for one in (stored, fresh)]
    assert others[0] == pytest.approx(others[1], rel=1e-2)
    assert stored.half_width == pytest.approx(fresh.half_width, rel=0.02)
    assert stored.median_absolute_error == pytest.approx(fresh.median_absolute_error, rel=0.02)
    assert stored.coverage == pytest.approx(fresh.coverage, abs=0.01)


def test_every_row_is_read() -> None:
    assert len(rows()) == 96
    assert {row.model for row in rows()} == set(MODELS.values())


def test_left_out_errors_are_within_the_aim(fresh: GpuCalibration) -> None:
    """15 % in the median over all rows, each forecast by a fit that has not seen its model."""
    assert fresh.median_absolute_error <= 0.15


def test_the_interval_holds_what_it_says(fresh: GpuCalibration) -> None:
    """At least 80 % of the left-out rows, fit and interval both made without their model."""
    assert fresh.coverage >= 0.8
    for one in fresh.left_out.values():
        assert one.coverage >= 0.75  # of one model: some 30 rows of which releases repeat most


def test_leaving_a_model_out_leaves_it_out() -> None:
    """The errors are those of a fit without the model's rows, recomputed here without `calibrate`."""
    every = rows()
    constants = fit([row for row in every if row.model != "llama-3.1-70b"])
    off = [abs(math.exp(-residual(row, constants)) - 1) for row in every if row.model == "llama-3.1-70b"]
    assert gpu_calibration().left_out["llama-3.1-70b"].median_absolute_error == pytest.approx(np.median(off), rel=0.02)


def test_errors_are_not_of_one_sign(fresh: GpuCalibration) -> None:
    """A fit to all rows is as often too fast as too slow, as far as chance goes (rows of one model are not
    independent: a wide bound)."""
    signs = [residual(row, fresh.constants) > 0 for row in rows()]
    assert binomtest(sum(signs), len(signs)).pvalue > 1e-4


def test_few_constants_for_many_rows() -> None:
    assert len(PRIORS) <= 8 < len(rows()) / 10
