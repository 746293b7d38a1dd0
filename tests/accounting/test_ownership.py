"""Owning as a total cost of ownership: the arithmetic of an operator's example, and what ranges make of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from octavo.accounting.ownership import (
    MOST_USE,
    against_rent,
    break_even_use,
    draws,
    hour,
    hour_parts,
    inputs,
    middle,
    parts_per_year,
    spread,
    tornado,
)
from octavo.experiment.cluster import Range
from octavo.experiment.load import load_cluster
from octavo.layout import configs

OPERATOR = {
    "price_per_device": 40_000.0, "server_and_network_factor": 1.0, "years": 5.0, "utilisation": 0.9,
    "cost_of_capital": 0.10, "residual_share": 0.10, "hosting_per_kw_month": 150.0, "maintenance_share": 0.05,
    "staff_per_engineer": 96_800 / 0.7, "devices_per_engineer": 128.0, "idle_power_share": 1.0,
    "electricity_per_kwh": 0.087, "average_power_fraction": 1.0, "host_watts_per_device": 210.0, "pue": 1.3,
    "power_watts": 700.0,
}  # fmt: skip
"""One H100 for 40,000 with its share of host and network, five years, 10 % capital, 10 % residual, hosting for 150 a
kW-month, 5 % maintenance, an engineer (a wage of 96,800 is 70 % of the cost) for 128 GPUs, 8.7 ct/kWh, 0.91 kW drawn
around the clock under a PUE of 1.3."""


def exact(values: Mapping[str, float]) -> dict[str, Range]:
    return {name: Range(low=value, middle=value, high=value) for name, value in values.items()}


def test_what_a_device_costs_a_year() -> None:
    parts = parts_per_year(OPERATOR)
    # 1.1^5 = 1.61051: (40,000 - 4,000 / 1.61051) x 0.1 / (1 - 1 / 1.61051)
    assert (
        parts["capital"]
        == pytest.approx((40_000 - 4_000 / 1.61051) * 0.1 / (1 - 1 / 1.61051))
        == pytest.approx(9896.7, abs=0.1)
    )
    assert parts["hosting"] == pytest.approx(0.91 * 150 * 12) == pytest.approx(1638)
    assert parts["maintenance"] == pytest.approx(2000)
    assert parts["staff"] == pytest.approx(138_286 / 128, rel=1e-5)


@pytest.mark.parametrize(("use", "cost"), [(0.9, 1.97), (0.7, 2.53), (0.6, 2.95)])
def test_an_hour_by_use(use: float, cost: float) -> None:
    """9,896.7 + 1,638 + 2,000 + 1,080.4 + 0.91 kW x 1.3 x 8,760 h x 0.087 = 15,516.6 a year, over 8,760 h x use."""
    assert hour(OPERATOR, use) == pytest.approx(15_516.6 / 8760 / use, rel=1e-4)
    assert round(float(hour(OPERATOR, use)), 2) == cost


@pytest.mark.parametrize(("rent", "use"), [(2.95, 60), (2.35, 75), (2.00, 89)])
def test_the_use_from_which_on_owning_is_cheaper(rent: float, use: float) -> None:
    found = break_even_use(OPERATOR, rent)
    assert round(100 * float(found)) == use
    assert hour(OPERATOR, found) == pytest.approx(rent)


def test_idle_hours_that_draw_less_are_cheaper() -> None:
    """Without idle power: (15,516.6 - 901.6) / 8,760 over the rent less 0.91 x 1.3 x 0.087 = 0.1029 at work."""
    thrifty = {**OPERATOR, "idle_power_share": 0.0}
    assert hour_parts(thrifty)["power of idle hours"] == 0
    assert break_even_use(thrifty, 2.95) == pytest.approx((15_516.6 - 901.6) / 8760 / (2.95 - 0.10292), rel=1e-4)


def test_a_rent_below_the_power_is_never_beaten() -> None:
    assert break_even_use({**OPERATOR, "idle_power_share": 0.0}, 0.10) == MOST_USE


def test_capital_that_costs_nothing_is_written_off_evenly() -> None:
    free = {**OPERATOR, "cost_of_capital": 0.0}
    assert parts_per_year(free)["capital"] == pytest.approx((40_000 - 4_000) / 5)


def test_a_rent_for_all_hours_is_held_against_the_cost_of_all_hours() -> None:
    """15,516.6 / 8,760 = 1.7713 an hour, worked or not, over 2.35."""
    held = against_rent(exact(OPERATOR), Range(low=2.35, middle=2.35, high=2.35), committed=True)
    assert held.ratio.value == pytest.approx(1.7713 / 2.35, rel=1e-4)
    assert held.break_even is None


def test_exact_inputs_have_an_exact_result() -> None:
    held = against_rent(exact(OPERATOR), Range(low=2.95, middle=2.95, high=2.95))
    assert held.owned.low == pytest.approx(held.owned.value) == pytest.approx(held.owned.high)
    assert tornado(exact(OPERATOR)) == []


def test_draws_are_triangular() -> None:
    """Of the triangle 0, 1, 4: mean 5/3, variance (0 + 1 + 16 - 0 - 0 - 4) / 18, 1/4 below the middle."""
    (drawn,) = draws({"x": Range(low=0, middle=1, high=4)}).values()
    assert drawn.min() >= 0
    assert drawn.max() <= 4
    assert drawn.mean() == pytest.approx(5 / 3, abs=0.03)
    assert drawn.var() == pytest.approx(13 / 18, rel=0.05)
    assert (drawn < 1).mean() == pytest.approx(0.25, abs=0.02)


def test_the_range_of_a_result_is_that_of_its_input() -> None:
    """The price alone is uncertain: the hour is linear in it, so its 5 % quantile is that of the triangle,
    low + sqrt(0.05 x width x (middle - low))."""
    ranges = {**exact(OPERATOR), "price_per_device": Range(low=30_000, middle=40_000, high=50_000)}
    low, high = spread(hour(draws(ranges)))
    at_5 = 30_000 + np.sqrt(0.05 * 20_000 * 10_000)
    assert low == pytest.approx(hour({**OPERATOR, "price_per_device": at_5}), rel=5e-3)
    assert high == pytest.approx(hour({**OPERATOR, "price_per_device": 80_000 - at_5}), rel=5e-3)


def test_the_tornado_has_the_widest_swing_first() -> None:
    """From 90 to 60 % use the hour goes from 1.97 to 2.95; electricity of 5 to 15 ct adds 0.91 x 1.3 x 0.1 / 0.9."""
    ranges = {
        **exact(OPERATOR),
        "electricity_per_kwh": Range(low=0.05, middle=0.087, high=0.15),
        "utilisation": Range(low=0.6, middle=0.9, high=0.9),
    }
    first, second = tornado(ranges)
    assert (first.name, second.name) == ("utilisation", "electricity_per_kwh")
    assert (round(first.at_low, 2), round(first.at_high, 2)) == (2.95, 1.97)
    assert second.at_high - second.at_low == pytest.approx(0.91 * 1.3 * 0.1 / 0.9)


def test_every_input_of_owning_an_h100_is_in_one_file() -> None:
    """A cluster file says each of them, with a source; its results are between the ends that it prints."""
    cluster, device = load_cluster("h100-node", configs())
    assert cluster.ownership is not None
    ranges = inputs(cluster, cluster.ownership, device)
    said = {**cluster.ownership.sources, **cluster.energy.sources, "power_watts": "device file"}
    assert set(ranges) <= set(said)
    held = against_rent(ranges, Range(low=2.95, middle=2.95, high=2.95))
    assert held.owned.low < held.owned.value < held.owned.high
    assert held.break_even is not None
    assert held.break_even.value == pytest.approx(float(break_even_use(middle(ranges), 2.95)))
