"""What an hour of a bought device costs, and at which use it is as cheap as renting: a total cost of ownership.

What was paid (the device with its share of host and network) is spread over its years as an annuity, less what a sale
at the end brings; hosting, maintenance, staff and the power of idle hours are paid all the year. All of it falls on the
hours that the device works, each of which takes power besides:

    hour(use) = (annuity + hosting + maintenance + staff + idle power) / (8,760 x use) + power at work
    annuity   = (P - R / (1 + r)^n) x r / (1 - (1 + r)^-n),  P paid, R residual, r cost of capital, n years

(the annuity of a present value, as in Brealey, Myers and Allen, Principles of Corporate Finance, "equivalent annual
cost"). Inputs are ranges. What comes out of them has a range, too: the 5 % and 95 % quantiles over draws of all inputs
at once, each from the triangle of its low, middle and high, independently. The inputs alone, one at a time from low to
high, are the tornado.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.experiment.cluster import Cluster, Device, Ownership, Range

HOURS_PER_YEAR = 8760.0
DRAWS = 10_000
QUANTILES = (0.05, 0.95)
"""Ends of the range that is reported."""

MOST_USE = 10.0
"""No break-even use is given above it: where a rent is less than the power of the hour there is none at all."""

Values = Mapping[str, Any]
"""Input -> its value, or an array of draws."""

ENERGY_INPUTS = ("average_power_fraction", "host_watts_per_device", "pue")
RENT = "rent"
"""Name of the rent among the inputs, where owning is held against it."""


@dataclass(frozen=True)
class Span:
    """A result at the middle of its inputs, and between what it lies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OwnOrRent:
    """Owning held against one rent."""

    owned: Span
    """What an hour of work costs owned, at the inputs' own use."""
    ratio: Span
    """That over what an hour of work costs rented."""
    break_even: Span | None
    """The share of all hours from which on owning is cheaper; above 1: never. None for a rent that is paid for all
    hours, as owning is: use does not tell them apart."""


@dataclass(frozen=True)
class Swing:
    """What one input does to a result, all others at their middle."""

    name: str
    input: Range
    at_low: float
    at_high: float


def inputs(cluster: Cluster, owned: Ownership, device: Device) -> dict[str, Range]:
    """Every input of the model by its key in the cluster file, and the device's power."""
    own = {name: getattr(owned, name) for name in Ownership.model_fields if name != "sources"}
    energy = {name: getattr(cluster.energy, name) for name in ENERGY_INPUTS}
    watts = device.power_watts
    return {**own, **energy, "power_watts": Range(low=watts, middle=watts, high=watts)}


def middle(ranges: Mapping[str, Range]) -> dict[str, float]:
    """Every input at its middle."""
    return {name: one.middle for name, one in ranges.items()}


def draws(ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """DRAWS values of every input, from triangular distributions; the same for the same ranges."""
    generator = np.random.default_rng(0)
    return {name: _triangular(one, generator.random(DRAWS)) for name, one in ranges.items()}


def _triangular(one: Range, uniform: np.ndarray) -> np.ndarray:
    """The inverse of the triangular distribution function."""
    width = one.high - one.low
    if not width:
        return np.full_like(uniform, one.middle)
    rising, falling = one.middle - one.low, one.high - one.middle
    below = one.low + np.sqrt(uniform * width * rising)
    above = one.high - np.sqrt((1 - uniform) * width * falling)
    return np.where(uniform * width < rising, below, above)


def spread(results: np.ndarray) -> tuple[float, float]:
    """The ends of the range of results over draws."""
    low, high = np.quantile(results, QUANTILES)
    return float(low), float(high)


def parts_per_year(values: Values) -> dict[str, Any]:
    """What a device costs a year, worked or not."""
    paid = values["price_per_device"] * values["server_and_network_factor"]
    rate = np.maximum(values["cost_of_capital"], 1e-12)
    discounted = np.exp(-values["years"] * np.log1p(rate))  # what 1 at the end is worth at the beginning
    annuity = -rate / np.expm1(-values["years"] * np.log1p(rate))
    return {
        "capital": paid * (1 - values["residual_share"] * discounted) * annuity,
        "hosting": 12 * values["hosting_per_kw_month"] * _kilowatts(values),
        "maintenance": values["maintenance_share"] * paid,
        "staff": values["staff_per_engineer"] / values["devices_per_engineer"],
    }


def power_per_hour(values: Values) -> Any:
    """Electricity of a working hour, at the meter."""
    return _kilowatts(values) * values["pue"] * values["electricity_per_kwh"]


def hour_parts(values: Values, use: Any = None) -> dict[str, Any]:
    """What an hour of work costs, by what it is paid for; `use` is a share of all hours (None: the inputs' own)."""
    use = values["utilisation"] if use is None else use
    parts = {name: cost / (HOURS_PER_YEAR * use) for name, cost in parts_per_year(values).items()}
    power = power_per_hour(values)
    return {
        **parts,
        "power of idle hours": power * values["idle_power_share"] * (1 - use) / use,
        "power at work": power,
    }


def hour(values: Values, use: Any = None) -> Any:
    """What an hour of work costs, all in all."""
    return sum(hour_parts(values, use).values())


def break_even_use(values: Values, rent: Any = None) -> Any:
    """The share of all hours from which on owning is cheaper than a rent per hour; above 1: never; MOST_USE at most.

    Solves hour(use) = rent: (fixed + idle power of a year) / 8,760 over (rent - power at work + idle power of an hour).
    """
    rent = values[RENT] if rent is None else rent
    fixed = sum(parts_per_year(values).values()) / HOURS_PER_YEAR
    power = power_per_hour(values)
    idle = power * values["idle_power_share"]
    left = rent - power + idle
    return np.minimum(np.where(left > 0, (fixed + idle) / np.where(left > 0, left, 1.0), MOST_USE), MOST_USE)


def against_rent(ranges: Mapping[str, Range], rent: Range, *, committed: bool = False) -> OwnOrRent:
    """Owning held against a rent that has a range of its own; `committed`: it is paid for all hours, used or not."""
    ranges = {**ranges, RENT: rent}
    base, drawn = middle(ranges), draws(ranges)

    def span(result: Callable[[Values], Any]) -> Span:
        return Span(float(result(base)), *spread(result(drawn)))

    return OwnOrRent(
        span(hour), span(partial(over_rent, committed=committed)), None if committed else span(break_even_use)
    )


def over_rent(values: Values, *, committed: bool) -> Any:
    """An hour owned over one rented at the price RENT; `committed`: the rent is paid for all hours, used or not."""
    return hour(values) * (values["utilisation"] if committed else 1) / values[RENT]


def tornado(ranges: Mapping[str, Range], result: Callable[[Values], Any] = hour) -> list[Swing]:
    """What each input that has a width does to a result, the greatest first."""
    base = middle(ranges)
    found = [
        Swing(name, one, float(result({**base, name: one.low})), float(result({**base, name: one.high})))
        for name, one in ranges.items()
        if not one.exact
    ]
    return sorted(found, key=lambda one: -abs(one.at_high - one.at_low))


def _kilowatts(values: Values) -> Any:
    """Power of a working device with its share of the host, at the machine."""
    return (values["power_watts"] * values["average_power_fraction"] + values["host_watts_per_device"]) / 1000
