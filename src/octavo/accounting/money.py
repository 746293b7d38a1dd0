"""What a device-hour costs, rented or owned, between what, and the energy it takes at the meter.

Renting: a price per device-hour, electricity included. Owning: a total cost of ownership
(`octavo.accounting.ownership`). A cost is reckoned at the middle of its price; its range is that of the price. Energy
is that at the building's meter: (device + its share of the host) x PUE, whatever was measured of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Literal

from octavo.accounting import ownership
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device, Ownership, Rental

Basis = Literal["rental", "ownership"]

ESTIMATED = "power x utilisation"
"""An attempt's `energy_source` where nothing was measured."""

OLD_MONTHS = 6
"""A price that is older is said to be."""

COMMITMENTS = {"on_demand": "on demand", "one_year": "for a year", "spot": "spot"}
"""Words for `Rental.commitment`."""


@dataclass(frozen=True)
class HourPrice:
    """The price of one device-hour, in the cluster file's currency."""

    basis: Basis
    capital: float
    """Rent, or all that owning costs besides the electricity of the hour."""
    electricity: float
    """Of a working hour, at the meter. Zero when rented: it is in the rent."""

    @property
    def total(self) -> float:
        """Capital and electricity."""
        return self.capital + self.electricity


def hour_price(cluster: Cluster, device: Device, basis: Basis | None = None) -> HourPrice:
    """The price of a device-hour on the basis asked for, or the one that the cluster file reports with.

    Raises OctavoError where the cluster file has no such section.
    """
    basis = basis or cluster.price
    if basis == "rental":
        return HourPrice("rental", rental_of(cluster).per_device_hour.middle, 0.0)
    values = ownership.middle(ownership.inputs(cluster, ownership_of(cluster), device))
    power = float(ownership.power_per_hour(values))
    return HourPrice("ownership", float(ownership.hour(values)) - power, power)


def price_range(cluster: Cluster, device: Device, basis: Basis | None = None) -> tuple[float, float]:
    """Between what the price of a device-hour lies: a rent's own range, or that of ownership's inputs together."""
    if (basis or cluster.price) == "rental":
        rent = rental_of(cluster).per_device_hour
        return rent.low, rent.high
    return ownership.spread(ownership.hour(ownership.draws(ownership.inputs(cluster, ownership_of(cluster), device))))


def rental_of(cluster: Cluster) -> Rental:
    """The rent that costs are reckoned with. Raises OctavoError where the cluster file has none."""
    if cluster.rental is None:
        raise OctavoError("the cluster file has no section rental", where=f"cluster {cluster.description!r}")
    return cluster.rental


def ownership_of(cluster: Cluster) -> Ownership:
    """What owning costs. Raises OctavoError where the cluster file does not say."""
    if cluster.ownership is None:
        raise OctavoError("the cluster file has no section ownership", where=f"cluster {cluster.description!r}")
    return cluster.ownership


def cost(cluster: Cluster, device: Device, device_hours: float, energy_kwh: float | None = None) -> float:
    """What device-hours cost, in the cluster file's currency, at the middle of the price that it reports with.

    `energy_kwh`: what they took at the meter, if that was measured; where devices are owned it is paid instead of the
    estimate.
    """
    price = hour_price(cluster, device)
    if price.basis == "rental" or energy_kwh is None:
        return price.total * device_hours
    return price.capital * device_hours + ownership_of(cluster).electricity_per_kwh.middle * energy_kwh


def energy_at_the_meter(
    cluster: Cluster, device: Device, device_hours: float, *, devices_kwh: float | None = None,
    nodes_kwh: float | None = None,
) -> float:  # fmt: skip
    """Energy in kWh that device-hours took at the building's meter.

    From what was measured: `nodes_kwh` of whole nodes (Slurm's), or `devices_kwh` of the devices alone (NVML's), to
    which the host's share is added. Where nothing was, board power x average fraction stands for the devices.
    """
    energy = cluster.energy
    if nodes_kwh is None:
        own = device.power_watts * energy.average_power_fraction.middle * device_hours / 1000
        own = own if devices_kwh is None else devices_kwh
        nodes_kwh = own + energy.host_watts_per_device.middle * device_hours / 1000
    return nodes_kwh * energy.pue.middle


def carbon_kg(cluster: Cluster, energy_kwh: float) -> float | None:
    """Carbon dioxide of energy at the meter, kg; None where the cluster file does not say what a kWh emits."""
    return None if cluster.energy.carbon_kg_per_kwh is None else cluster.energy.carbon_kg_per_kwh * energy_kwh


def hours_name(device_kinds: Iterable[object]) -> str:
    """What device-hours are called: GPU-hours only where every device is a GPU."""
    kinds = {str(kind) for kind in device_kinds if kind is not None}
    return "GPU-hours" if kinds and "cpu" not in kinds else "device-hours"


def rentals(cluster: Cluster) -> Iterator[Rental]:
    """The rent that costs are reckoned with, and those on other bases."""
    if cluster.rental is not None:
        yield cluster.rental
    yield from cluster.other_rentals


def rent_rows(cluster: Cluster, device: Device) -> list[dict[str, Any]]:
    """Every rent of a cluster file, and owning held against it, where the file says what that costs: plain values."""
    owned = cluster.ownership
    ranges = ownership.inputs(cluster, owned, device) if owned else None
    rows = []
    for rental in rentals(cluster):
        rent, old = rental.per_device_hour, old_from(rental)
        committed = rental.commitment == "one_year"
        held = ownership.against_rent(ranges, rent, committed=committed) if ranges else None
        rows.append(
            {
                "commitment": COMMITMENTS[rental.commitment],
                **rent.model_dump(),
                **rental.model_dump(include={"date", "region", "includes", "source"}),
                "old_from": None if old is None else str(old),
                "owned_over_rented": held and asdict(held.ratio),
                "break_even_use": held and held.break_even and asdict(held.break_even),
            }
        )
    return rows


def old_from(rental: Rental) -> date | None:
    """The day from which on a rent is old; None where its date is not known."""
    if rental.date is None:
        return None
    year, month, *day = (int(part) for part in rental.date.split("-"))
    months = year * 12 + month - 1 + OLD_MONTHS
    return date(months // 12, months % 12 + 1, min(day[0] if day else 1, 28))


def age_words(rental: Rental, on: date) -> str | None:
    """That a rent is older than OLD_MONTHS on a day, or has no date; None where it is recent."""
    old = old_from(rental)
    if old is None:
        return "the rent has no date: whether it still holds is not known"
    return f"the rent is of {rental.date}, more than {OLD_MONTHS} months before {on}" if on >= old else None


def price_source(cluster: Cluster, basis: str) -> str:
    """Where the price of a device-hour is from, rented (`rental`) or owned."""
    if basis == "rental":
        return cluster.rental.source if cluster.rental else ""
    sources = cluster.ownership.sources if cluster.ownership else {}
    return "; ".join(f"{key}: {source}" for key, source in sources.items())
