"""Prices: expected values are worked out in the tests."""

from __future__ import annotations

import pytest

from octavo.accounting.money import cost, device_energy_kwh, hour_price
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device

DEVICE = Device.model_validate(
    {
        "name": "H100", "kind": "gpu", "compute_capability": "9.0", "peak_tflops": {"bf16": 989.0},
        "memory_gib": 80, "memory_gb_per_second": 3350, "link_gb_per_second": 450, "link_domain": 8,
        "network_gb_per_second": 50, "power_watts": 700, "sources": {"all": "test"},
    }
)  # fmt: skip
OWNED = {
    "price_per_device": 40_000, "server_and_network_factor": 1.5, "years": 4, "utilisation": 0.8,
    "electricity_per_kwh": 0.1, "pue": 1.2, "host_watts_per_device": 300, "sources": {"all": "test"},
}  # fmt: skip


def cluster(**keys: object) -> Cluster:
    value = {"description": "test", "device": "h100", "devices_per_node": 8, "nodes": 1, **keys}
    return Cluster.model_validate(value)


def test_renting_is_a_price_per_hour() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    assert cost(rented, DEVICE, 2_788_000) == pytest.approx(5_576_000)  # DeepSeek-V3: 2.788 M hours at $2


def test_owning_writes_the_device_off_over_the_hours_that_it_works() -> None:
    """$40,000 x 1.5 over 4 years x 8,760 h x 0.8 = 28,032 h is $2.1404 an hour; at the meter (700 W x 0.8 + 300 W)
    x 1.2 = 1.032 kW at $0.10 is $0.1032."""
    price = hour_price(cluster(ownership=OWNED, price="ownership"), DEVICE)
    assert price.capital == pytest.approx(60_000 / 28_032)
    assert price.electricity == pytest.approx(0.1032)
    assert price.total == pytest.approx(2.1404 + 0.1032, abs=1e-4)


def test_energy_without_a_meter_is_board_power_times_its_average_share() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"}, average_power_fraction=0.5)
    assert device_energy_kwh(rented, DEVICE, 10) == pytest.approx(3.5)  # 700 W x 0.5 x 10 h


def test_a_basis_that_the_cluster_file_lacks_is_an_error() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    with pytest.raises(OctavoError, match="no section ownership"):
        hour_price(rented, DEVICE, "ownership")
