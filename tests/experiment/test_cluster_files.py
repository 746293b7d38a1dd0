"""The figures in configs/clusters: each has a source with a date, and what is derived comes out of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from octavo.experiment.cluster import Energy, Ownership, Range
from octavo.experiment.load import load_cluster
from octavo.layout import configs
from tests.tiny import REPOSITORY

FOLDER = REPOSITORY / "configs" / "clusters"
CLUSTERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DEVICES = sorted((FOLDER / "devices").glob("*.yaml"))
DATED = re.compile(r"\b20[12]\d\b|arXiv \d{4}\.\d{5}")
ELSEWHERE = re.compile(r"^(the same|as H100|as in h100-node)", re.IGNORECASE)
"""A source that says where it is written."""


def rent(name: str, index: int = 0) -> Range:
    cluster, _ = load_cluster(name, configs())
    assert cluster.rental is not None
    return [cluster.rental, *cluster.other_rentals][index].per_device_hour


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.stem)
def test_every_figure_of_a_device_has_a_source_with_a_date(path: Path) -> None:
    value = yaml.safe_load(path.read_text())
    for key in value.keys() - {"name", "kind", "sources"}:
        said = value["sources"][key]
        assert DATED.search(said) or ELSEWHERE.match(said), f"{key}: {said}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_price_and_input_of_a_cluster_has_a_source_with_a_date(name: str) -> None:
    value = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for one in (value["rental"], *value.get("other_rentals", [])):
        assert one["source"]
        assert one["date"]
        assert one["commitment"]
    for section, form in (("ownership", Ownership), ("energy", Energy)):
        given = value.get(section, {})
        for key in given.keys() & form.model_fields.keys() - {"sources", "location"}:
            said = given["sources"][key]
            assert DATED.search(said) or ELSEWHERE.match(said), f"{section}.{key}: {said}"


def test_sixteen_nodes_cost_what_one_does() -> None:
    (one, _), (sixteen, _) = (load_cluster(name, configs()) for name in ("h100-node", "h100-16node"))
    for section in ("rental", "other_rentals", "ownership", "energy"):
        assert getattr(one, section) == getattr(sixteen, section)


def test_prices_that_are_worked_out_of_others() -> None:
    assert rent("laptop").middle == pytest.approx(0.11592 / 2, abs=5e-5)  # m7a.large, two cores
    assert rent("l40s-node").high == pytest.approx(30.131 / 8, abs=5e-3)  # g6e.48xlarge
    assert rent("l40s-node").low == pytest.approx(18.00 / 8)
    assert rent("gb200-nvl72").low == pytest.approx(9.08 / 2)  # a superchip
    assert rent("gb200-nvl72").high == pytest.approx(42.00 / 4)
    assert rent("gb200-nvl72").middle == pytest.approx((4.54 + 10.50) / 2)
    assert rent("gb300-nvl72").middle == pytest.approx(7.52 * ((5.00 + 7.25) / 2) / 5.25, abs=5e-3)
    assert rent("gb300-nvl72").high == pytest.approx(10.50 * 7.25 / 6.00, abs=5e-3)
    # the middles of what specialised providers ask
    assert rent("a100-node").middle == pytest.approx((1.10 + 1.50) / 2)
    assert rent("h100-node").middle == pytest.approx((2.50 + 3.50) / 2)
    assert rent("h200-node").middle == pytest.approx((3.50 + 4.50) / 2)
    assert rent("b200-node").middle == pytest.approx((4.50 + 6.00) / 2)
    assert rent("h100-node", 1).high == pytest.approx(0.7 * 3.50)  # 30 % off for a year


def test_newer_gpus_are_not_cheaper() -> None:
    a100, h100, h200, b200, gb200, gb300 = (
        rent(name).middle for name in ("a100-node", "h100-node", "h200-node", "b200-node", "gb200-nvl72", "gb300-nvl72")
    )
    assert a100 < h100 < h200 < b200 < gb200 < gb300


def test_inputs_of_owning_that_are_worked_out_of_others() -> None:
    cluster, device = load_cluster("h100-node", configs())
    owned, energy = cluster.ownership, cluster.energy
    assert owned is not None
    # a node of eight for 300,000 and a network of 10 % make 41,250 a GPU; 30,000 x 1.33 is 3 % less
    factor = owned.server_and_network_factor.middle
    assert owned.price_per_device.middle * factor == pytest.approx(300_000 * 1.1 / 8, rel=0.04)
    assert owned.staff_per_engineer.middle == pytest.approx(96_800 / 0.7, rel=5e-3)
    assert owned.staff_per_engineer.low == pytest.approx(96_800 * 1.25)
    twelve = [8.24, 8.26, 8.21, 8.29, 8.90, 9.33, 9.08, 9.02, 8.65, 8.44, 8.53, 9.29]  # cents, February 2025 to January
    assert owned.electricity_per_kwh.middle == pytest.approx(sum(twelve) / 12 / 100, abs=2e-4)
    assert owned.electricity_per_kwh.low == pytest.approx(min(twelve) / 100, abs=2e-4)
    assert owned.electricity_per_kwh.high == pytest.approx(twelve[-1] / 100, abs=2e-4)
    # 76 % of 10.2 kW and 8.4 kW for eight GPUs at 0.9 x 700 W
    gpu = energy.average_power_fraction.middle * device.power_watts
    assert energy.host_watts_per_device.middle == pytest.approx(0.76 * 10_200 / 8 - gpu, abs=2)
    assert energy.host_watts_per_device.high == pytest.approx(8_400 / 8 - gpu, abs=1)
    assert energy.carbon_kg_per_kwh == pytest.approx(0.81 * 0.45359, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "mib"), [("gb200", 189_471), ("b300", 275_040), ("gb300", 284_208), ("h200", 143_771)]
)
def test_memory_is_what_the_device_reports(name: str, mib: int) -> None:
    value = yaml.safe_load((FOLDER / "devices" / f"{name}.yaml").read_text())
    assert value["memory_gib"] == pytest.approx(mib / 1024, abs=0.5 if name == "h200" else 0.06)
