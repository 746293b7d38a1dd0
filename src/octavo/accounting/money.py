"""What a device-hour costs, rented or owned, and the energy it takes.

Owning (the cluster file's `ownership`): the device with its share of host and network, written off evenly over the
hours that it works in its years of use, and electricity at the meter, cooling included. Renting: a price per
device-hour, electricity included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device, Ownership

HOURS_PER_YEAR = 8760.0

Basis = Literal["rental", "ownership"]


@dataclass(frozen=True)
class HourPrice:
    """The price of one device-hour, in the cluster file's currency."""

    basis: Basis
    capital: float
    """Rent, or the share of what was bought that an hour of work uses up."""
    electricity: float
    """Zero when rented: it is in the rent."""

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
        if cluster.rental is None:
            raise OctavoError("the cluster file has no section rental", where=f"cluster {cluster.description!r}")
        return HourPrice("rental", cluster.rental.per_device_hour, 0.0)
    if cluster.ownership is None:
        raise OctavoError("the cluster file has no section ownership", where=f"cluster {cluster.description!r}")
    owned = cluster.ownership
    capital = owned.price_per_device * owned.server_and_network_factor
    return HourPrice(
        "ownership",
        capital / (owned.years * HOURS_PER_YEAR * owned.utilisation),
        watts_at_the_meter(cluster, device) / 1000 * owned.electricity_per_kwh,
    )


def device_energy_kwh(cluster: Cluster, device: Device, device_hours: float) -> float:
    """Energy of the devices alone, kWh, where nothing measured it: board power x average fraction x hours."""
    return device.power_watts * cluster.average_power_fraction * device_hours / 1000


def watts_at_the_meter(cluster: Cluster, device: Device) -> float:
    """Average power of one working device with its share of the host, times PUE."""
    owned: Ownership | None = cluster.ownership
    host, pue = (owned.host_watts_per_device, owned.pue) if owned else (0.0, 1.0)
    return (device.power_watts * cluster.average_power_fraction + host) * pue


def cost(cluster: Cluster, device: Device, device_hours: float, basis: Basis | None = None) -> float:
    """What device-hours cost, in the cluster file's currency."""
    return hour_price(cluster, device, basis).total * device_hours


def hours_name(device_kinds: Iterable[object]) -> str:
    """What device-hours are called: GPU-hours only where every device is a GPU."""
    kinds = {str(kind) for kind in device_kinds if kind is not None}
    return "GPU-hours" if kinds and "cpu" not in kinds else "device-hours"


def price_source(cluster: Cluster, basis: str) -> str:
    """Where the price of a device-hour is from, rented (`rental`) or owned."""
    if basis == "rental":
        return cluster.rental.source if cluster.rental else ""
    sources = cluster.ownership.sources if cluster.ownership else {}
    return "; ".join(f"{key}: {source}" for key, source in sources.items())
