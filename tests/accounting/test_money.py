"""Prices: expected values are worked out in the tests."""

from __future__ import annotations

from datetime import date

import pytest
from pydantic import ValidationError

from octavo.accounting.money import (
    age_words,
    carbon_kg,
    cost,
    energy_at_the_meter,
    hour_price,
    old_from,
    price_range,
)
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device, Rental

DEVICE = Device.model_validate(
    {
        "name": "H100", "kind": "gpu", "compute_capability": "9.0", "peak_tflops": {"bf16": 989.0},
        "memory_gib": 80, "memory_gb_per_second": 3350, "link_gb_per_second": 450, "link_domain": 8,
        "network_gb_per_second": 50, "power_watts": 700, "sources": {"all": "test"},
    }
)  # fmt: skip
OWNED = {
    "price_per_device": 40_000, "server_and_network_factor": 1.5, "years": 4, "utilisation": 0.8,
    "electricity_per_kwh": 0.1, "sources": {"all": "test"},
}  # fmt: skip


def cluster(**keys: object) -> Cluster:
    value = {"description": "test", "device": "h100", "devices_per_node": 8, "nodes": 1, **keys}
    return Cluster.model_validate(value)


def test_renting_is_a_price_per_hour() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    assert cost(rented, DEVICE, 2_788_000) == pytest.approx(5_576_000)  # DeepSeek-V3: 2.788 M hours at $2


def test_a_plain_price_is_exact_and_a_range_is_not() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    assert price_range(rented, DEVICE) == (2.0, 2.0)
    ranged = cluster(rental={"per_device_hour": {"low": 1.99, "middle": 3.0, "high": 5.0}, "source": "test"})
    assert hour_price(ranged, DEVICE).total == 3.0
    assert price_range(ranged, DEVICE) == (1.99, 5.0)


def test_ends_of_a_range_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="low 3, middle 2, high 5 are not in this order"):
        cluster(rental={"per_device_hour": {"low": 3, "middle": 2, "high": 5}, "source": "test"})


EVEN = {
    "cost_of_capital": 0, "residual_share": 0, "hosting_per_kw_month": 0, "maintenance_share": 0,
    "staff_per_engineer": 0, "idle_power_share": 0,
}  # fmt: skip
"""What makes an annuity an even write-off."""
POWER = {"host_watts_per_device": 300, "pue": 1.2}


def test_owning_spreads_the_device_over_the_hours_that_it_works() -> None:
    """$40,000 x 1.5 over 4 years x 8,760 h x 0.8 = 28,032 h is $2.1404 an hour; at the meter (700 W x 0.8 + 300 W)
    x 1.2 = 1.032 kW at $0.10 is $0.1032."""
    price = hour_price(cluster(ownership={**OWNED, **EVEN}, price="ownership", energy=POWER), DEVICE)
    assert price.capital == pytest.approx(60_000 / 28_032)
    assert price.electricity == pytest.approx(0.1032)
    assert price.total == pytest.approx(2.1404 + 0.1032, abs=1e-4)


def test_energy_is_that_at_the_meter_whatever_was_measured() -> None:
    """10 device-hours. Nothing measured: (700 x 0.5 + 300) W x 10 h x 1.2. GPUs measured: their 4 kWh, and the
    host's 3. Nodes measured: 7 kWh as they are."""
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"}, energy={"average_power_fraction": 0.5, **POWER})
    assert energy_at_the_meter(rented, DEVICE, 10) == pytest.approx(6.5 * 1.2)
    assert energy_at_the_meter(rented, DEVICE, 10, devices_kwh=4.0) == pytest.approx(7 * 1.2)
    assert energy_at_the_meter(rented, DEVICE, 10, nodes_kwh=7.0) == pytest.approx(7 * 1.2)


def test_measured_energy_is_what_an_owner_pays() -> None:
    """$2.1404 for what was bought, and 20 kWh at $0.10 in place of the estimate."""
    owned = cluster(ownership={**OWNED, **EVEN}, price="ownership", energy=POWER)
    assert cost(owned, DEVICE, 10, 20.0) == pytest.approx(10 * 60_000 / 28_032 + 2.0)
    assert cost(owned, DEVICE, 10) == pytest.approx(10 * (60_000 / 28_032 + 0.1032))
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    assert cost(rented, DEVICE, 10, 20.0) == 20.0  # electricity is in the rent


def test_carbon_is_reported_where_the_place_is_known() -> None:
    said = {"carbon_kg_per_kwh": 0.4, "location": "here", "sources": {"carbon_kg_per_kwh": "test"}}
    assert carbon_kg(cluster(rental={"per_device_hour": 2.0, "source": "test"}, energy=said), 10) == pytest.approx(4.0)
    assert carbon_kg(cluster(rental={"per_device_hour": 2.0, "source": "test"}), 10) is None
    with pytest.raises(ValidationError, match="carbon_kg_per_kwh needs location, and its source"):
        cluster(rental={"per_device_hour": 2.0, "source": "test"}, energy={"carbon_kg_per_kwh": 0.4})


@pytest.mark.parametrize(
    ("asked", "old"),
    [
        ("2026-05-20", date(2026, 11, 20)),
        ("2026-08-31", date(2027, 2, 28)),
        ("2025-07", date(2026, 1, 1)),
        (None, None),
    ],
)
def test_a_price_is_old_after_six_months(asked: str | None, old: date | None) -> None:
    rental = Rental.model_validate({"per_device_hour": 2.0, "date": asked, "source": "test"})
    assert old_from(rental) == old


def test_an_old_price_is_said_to_be() -> None:
    rental = Rental.model_validate({"per_device_hour": 2.0, "date": "2026-05-20", "source": "test"})
    assert age_words(rental, date(2026, 11, 19)) is None
    assert age_words(rental, date(2026, 11, 30)) == "the rent is of 2026-05-20, more than 6 months before 2026-11-30"
    undated = Rental.model_validate({"per_device_hour": 2.0, "source": "test"})
    assert "no date" in str(age_words(undated, date(2026, 11, 30)))


def test_a_basis_that_the_cluster_file_lacks_is_an_error() -> None:
    rented = cluster(rental={"per_device_hour": 2.0, "source": "test"})
    with pytest.raises(OctavoError, match="no section ownership"):
        hour_price(rented, DEVICE, "ownership")
