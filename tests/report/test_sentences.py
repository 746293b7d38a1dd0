"""Words follow numbers: a sentence that its number contradicts cannot come about."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from octavo.accounting.money import hours_name
from octavo.records import Comparison, Estimate
from octavo.report.sentences import decided, interval, loss_sentence, rate_sentence, ratio_sentence
from octavo.report.style import count, duration, energy, money, number, percent, time_unit

finite = st.floats(-50, 50)


def test_energy_and_hours_are_given_in_units_that_leave_few_digits() -> None:
    """0.000106 kWh is 0.106 Wh; 0.0035 hours are 12.6 seconds, 0.05 hours 3 minutes."""
    assert [energy(kwh) for kwh in (0.000106, 1.25, 3400.0, None)] == ["0.106 Wh", "1.25 kWh", "3.40 MWh", "–"]
    assert [time_unit(hours)[0] for hours in (0.0035, 0.05, 2.0)] == ["seconds", "minutes", "hours"]


def compared(loss: Estimate | None, ratio: Estimate | None = None, **more: Any) -> Comparison:
    return Comparison(
        axis="tokens", cell="a", against="b", kind="architecture", loss_difference=loss, resource_ratio=ratio, **more
    )


@given(finite, st.floats(0, 20), st.integers(2, 9))
def test_below_and_above_are_said_only_where_the_interval_says_so(value: float, half: float, n: int) -> None:
    estimate = Estimate(value=value, low=value - half, high=value + half, n=n, unit="%")
    said = loss_sentence("A", "B", "equal tokens", compared(estimate))
    assert (" below " in said) == (value + half < 0)
    assert (" above " in said) == (value - half > 0)
    assert ("no difference" in said) == (value - half <= 0 <= value + half)


@given(st.floats(0.1, 10), st.floats(0, 3))
def test_fewer_and_more_are_said_only_where_the_interval_says_so(value: float, half: float) -> None:
    ratio = Estimate(value=value, low=value - half, high=value + half, n=3, unit="ratio")
    said = ratio_sentence("A", "B", "tokens", compared(None, ratio))
    assert ("needs fewer tokens" in said and "not decided" not in said) == (value + half < 1)
    assert ("needs more tokens" in said) == (value - half > 1)


@given(st.floats(0.1, 10), st.floats(0, 3))
def test_faster_and_slower_are_said_only_where_the_interval_says_so(value: float, half: float) -> None:
    ratio = Estimate(value=value, low=value - half, high=value + half, n=3, unit="ratio")
    said = rate_sentence("A", "B", ratio)
    assert said.startswith("A trains faster than B") == (value - half > 1)
    assert said.startswith("A trains slower than B") == (value + half < 1)
    assert said.startswith("Whether") == (value - half <= 1 <= value + half)


def test_what_was_read_between_planned_ends_says_so() -> None:
    below = Estimate(value=-2.0, low=-2.5, high=-1.5, n=3, unit="%")
    fewer = Estimate(value=0.8, low=0.7, high=0.9, n=3, unit="ratio")
    one = compared(below, fewer, planned_ends=True)
    assert "ends below that of B (both planned for that length):" in loss_sentence("A", "B", "equal money", one)
    assert "needs fewer tokens than B, both planned for the length that it takes:" in ratio_sentence(
        "A", "B", "tokens", one
    )
    on_the_way = compared(below, fewer, ends=False)
    assert "(read before the end)" in loss_sentence("A", "B", "equal money", on_the_way)
    assert "planned" not in ratio_sentence("A", "B", "tokens", on_the_way)


def test_one_seed_decides_nothing() -> None:
    estimate = Estimate(value=-3.0, n=1, unit="%")
    assert not decided(estimate)
    assert "1 seed: no interval" in interval(estimate)
    assert "no difference" in loss_sentence("A", "B", "equal tokens", compared(estimate))


def test_what_agrees_with_the_bias_of_an_early_reading_is_inconclusive_in_the_sentence() -> None:
    """A is read with its rate still high, so that it looks worse: above is not said, below is."""
    early = "A is read at 69 % of its run, with its learning rate at 31 % of its peak"
    above, below = (Estimate(value=v, low=v - 0.5, high=v + 0.5, n=3, unit="%") for v in (2.0, -2.0))
    said = [
        loss_sentence("A", "B", "equal device-hours", compared(one, ends=False, loss_bias=1, early=early))
        for one in (above, below)
    ]
    assert "inconclusive: needs a run planned for this length" in said[0]
    assert early in said[0]
    assert "lies below" in said[1]
    assert not any("ends" in one for one in said)
    ratio = Estimate(value=1.02, low=1.01, high=1.03, n=3, unit="ratio")
    told = ratio_sentence("A", "B", "device-hours", compared(None, ratio, ratio_bias=1, early=early))
    assert "needs a run planned for this length" in told


def test_numbers_read_as_people_write_them() -> None:
    assert number(0.0123456) == "0.0123"
    assert number(1234.6, 4) == "1,235"
    assert number(16_384) == number(16_384, 4) == "16,384"  # whole digits are never rounded away
    assert number(-1.5) == "\N{MINUS SIGN}1.50"
    assert number(None) == number(float("nan")) == "–"
    assert count(556_704) == "557 k"
    assert count(14.8e12) == "14.8 T"
    assert percent(-0.254) == "\N{MINUS SIGN}0.25 %"
    assert percent(0.0) == "±0.00 %"
    assert money(5_576_000, "USD") == "$5,576,000"
    assert money(0.00123, "USD") == "0.12 cents"
    assert money(0.5, "CHF") == "CHF 0.500"
    assert duration(65) == "65.0 s"
    assert duration(3 * 3600) == "3.00 h"


@given(st.floats(1e-6, 1e15))
def test_a_number_keeps_its_significant_digits(value: float) -> None:
    shown = float(number(value).replace(",", ""))
    assert abs(shown / value - 1) <= 0.005 + 1e-12


def test_hours_on_processors_are_never_called_gpu_hours() -> None:
    assert hours_name(["NVIDIA H100"]) == "GPU-hours"
    assert hours_name(["cpu"]) == "device-hours"
    assert hours_name(["cpu", "NVIDIA H100"]) == "device-hours"
    assert hours_name([]) == "device-hours"
