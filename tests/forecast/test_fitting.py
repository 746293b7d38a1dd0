"""The fit is what the file says, and its error is measured on models that it has not seen, for each kind of model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from octavo.forecast.calibration import AIMS, GpuCalibration, Kind, gpu_calibration
from octavo.forecast.fitting import PRIORS, calibrate, fit, residual
from octavo.forecast.rows import MODELS, rows


@pytest.fixture(scope="module")
def fresh() -> GpuCalibration:
    """The fit made anew: the test of the test is that changing a row changes it."""
    return calibrate()


def test_the_file_is_the_fit(fresh: GpuCalibration) -> None:
    stored = gpu_calibration()
    assert stored.constants.sustained == pytest.approx(fresh.constants.sustained, rel=1e-2)
    assert stored.constants.releases == pytest.approx(fresh.constants.releases, rel=1e-2)
    others = [one.constants.model_dump(exclude={"sustained", "releases"}) for one in (stored, fresh)]
    assert others[0] == pytest.approx(others[1], rel=1e-2)
    assert stored.kinds.keys() == fresh.kinds.keys()
    for kind, one in fresh.kinds.items():
        assert stored.kinds[kind].models == one.models
        assert stored.kinds[kind].held == pytest.approx(one.held, rel=0.02)
        errors = [known.model_dump(exclude={"models", "held"}) for known in (stored.kinds[kind], one)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert stored.seen == fresh.seen


def test_every_row_is_read() -> None:
    """164 rows of the performance summary, of which the 18 in NVFP4 count in no error, and eight pairs."""
    assert len(rows()) == 164 + 16
    assert sum(row.counted for row in rows()) == 146 == sum(one.rows for one in gpu_calibration().kinds.values())
    assert len({row.key for row in rows()}) == gpu_calibration().settings
    assert {row.model for row in rows()} == set(MODELS.values())


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_left_out_errors_are_within_the_aim(fresh: GpuCalibration, kind: Kind) -> None:
    """8 % and 15 % in the median of a kind's rows and of each of its models, forecast by a fit without the model."""
    assert AIMS == {"dense": 0.08, "experts": 0.15}
    of_kind = fresh.kinds[kind]
    medians = [one.median_absolute_error for name, one in fresh.left_out.items() if name in of_kind.models]
    assert len(medians) == 3
    assert max(of_kind.median_absolute_error, *medians) <= AIMS[kind]


def test_the_interval_holds_about_what_it_says(fresh: GpuCalibration) -> None:
    """80 % of the left-out rows, fit and interval both made without the model, give or take a tenth."""
    for one in fresh.kinds.values():
        assert 0.72 <= one.coverage <= 0.9
        assert one.held.keys() == set(one.models)
        assert 0.72 <= np.mean([*one.held.values()]) <= 0.88


def test_fp8_over_bf16_is_within_8_percent(fresh: GpuCalibration) -> None:
    """Pairs that differ in the precision alone, each by a fit without its model."""
    assert {pair.model for pair in fresh.pairs} >= {"grok-1", "llama-3.1-405b", "nemotron-4-15b", "nemotron-4-340b"}
    for pair in fresh.pairs:
        assert pair.forecast == pytest.approx(pair.published, rel=0.08)


def test_leaving_a_model_out_leaves_it_out() -> None:
    """The errors are those of a fit without the model's rows, recomputed here without `calibrate`."""
    every = rows()
    constants = fit([row for row in every if row.model != "llama-3.1-70b"])
    mine = [row for row in every if row.model == "llama-3.1-70b" and row.counted]
    off = [abs(math.exp(-residual(row, constants)) - 1) for row in mine]
    assert gpu_calibration().left_out["llama-3.1-70b"].median_absolute_error == pytest.approx(np.median(off), rel=0.02)


def test_errors_are_not_of_one_sign(fresh: GpuCalibration) -> None:
    """A fit to all rows is as often too fast as too slow, as far as chance goes (rows of one model are not
    independent: a wide bound)."""
    signs = [residual(row, fresh.constants) > 0 for row in rows()]
    assert binomtest(sum(signs), len(signs)).pvalue > 1e-4


def test_few_constants_for_many_settings() -> None:
    """Nine of them are the releases', held to within 5 % of 1."""
    own = [name for name in PRIORS if not name.startswith("releases.")]
    assert len(own) <= 14 < gpu_calibration().settings / 3
