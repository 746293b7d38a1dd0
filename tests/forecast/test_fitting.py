"""The fit is what the file says, and its error is measured on models that it has not seen, for each kind of model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from octavo.forecast.calibration import AIM, GpuCalibration, Kind, gpu_calibration
from octavo.forecast.fitting import MODELS, PRIORS, calibrate, fit, moved, residual, rows


@pytest.fixture(scope="module")
def fresh() -> GpuCalibration:
    """The fit made anew: the test of the test is that changing a row changes it."""
    return calibrate()


def test_the_file_is_the_fit(fresh: GpuCalibration) -> None:
    stored = gpu_calibration()
    assert stored.constants.sustained == pytest.approx(fresh.constants.sustained, rel=1e-2)
    others = [one.constants.model_dump(exclude={"sustained"}) for one in (stored, fresh)]
    assert others[0] == pytest.approx(others[1], rel=1e-2)
    assert stored.kinds.keys() == fresh.kinds.keys()
    for kind, one in fresh.kinds.items():
        assert stored.kinds[kind].model_dump() == pytest.approx(one.model_dump(), rel=0.02)
    assert stored.seen == fresh.seen


def test_every_row_is_read() -> None:
    """96 rows of 36 settings, which releases repeat; the 8 in NVFP4 count in no error."""
    assert len(rows()) == 96 == sum(one.rows for one in gpu_calibration().kinds.values()) + 8
    assert len({row.key for row in rows()}) == 36 == gpu_calibration().settings
    assert {row.model for row in rows()} == set(MODELS.values())


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_each_kinds_left_out_error_is_within_the_aim(fresh: GpuCalibration, kind: Kind) -> None:
    """15 % in the median of a kind's rows, each forecast by a fit that has not seen its model. The form and the priors
    had: `test_what_a_prior_is_worth`."""
    assert fresh.kinds[kind].median_absolute_error <= AIM == 0.15


def test_the_interval_holds_what_it_says(fresh: GpuCalibration) -> None:
    """At least 80 % of the left-out rows of each kind and of each model, fit and interval both made without it."""
    for one in (*fresh.kinds.values(), *fresh.left_out.values()):
        assert one.coverage >= 0.8


def test_what_a_prior_is_worth() -> None:
    """The stored sensitivity is that of a fit with the prior moved."""
    (stored,) = [one for one in gpu_calibration().sensitivity if (one.prior, one.factor) == ("host_mixed_layer", 0.5)]
    fresh = moved("host_mixed_layer", 0.5)
    errors = [(one.dense, one.experts, one.nvfp4) for one in (stored, fresh)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_nvfp4_is_its_prior_where_its_one_model_is_left_out() -> None:
    left = fit([row for row in rows() if row.model != "llama-3.1-70b"])
    assert left.fp4_products == pytest.approx(PRIORS["fp4_products"].value)


def test_leaving_a_model_out_leaves_it_out() -> None:
    """The errors are those of a fit without the model's rows, recomputed here without `calibrate`."""
    every = rows()
    constants = fit([row for row in every if row.model != "llama-3.1-70b"])
    mine = [row for row in every if row.model == "llama-3.1-70b" and row.setting.precision.recipe != "nvfp4"]
    off = [abs(math.exp(-residual(row, constants)) - 1) for row in mine]
    assert gpu_calibration().left_out["llama-3.1-70b"].median_absolute_error == pytest.approx(np.median(off), rel=0.02)


def test_errors_are_not_of_one_sign(fresh: GpuCalibration) -> None:
    """A fit to all rows is as often too fast as too slow, as far as chance goes (rows of one model are not
    independent: a wide bound)."""
    signs = [residual(row, fresh.constants) > 0 for row in rows()]
    assert binomtest(sum(signs), len(signs)).pvalue > 1e-4


def test_few_constants_for_many_settings() -> None:
    assert len(PRIORS) <= 9 < gpu_calibration().settings / 3
