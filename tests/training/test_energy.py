"""Energy of an attempt: counters of packages and of a GPU, their units, and what happens when they begin anew."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.training import energy
from octavo.training.energy import EnergyMeter


def write_package(root: Path, name: str, microjoules: int, span: int = 262_143_328_850) -> Path:
    """A package as Linux shows it: documentation of powercap, energy_uj and max_energy_range_uj."""
    package = root / name
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text(f"{span}\n")
    return package


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    return tmp_path


def test_packages_are_added_up_in_joules_and_their_parts_are_not_counted_twice(rapl: Path) -> None:
    """3 J and 4 J of two packages; `intel-rapl:0:0` is the first one's cores."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        write_package(rapl, name, 1_000_000)
    meter = EnergyMeter(None)
    write_package(rapl, "intel-rapl:0", 4_000_000)
    write_package(rapl, "intel-rapl:1", 5_000_000)
    write_package(rapl, "intel-rapl:0:0", 3_000_000)
    assert meter.source == "rapl"
    assert meter.joules() == pytest.approx(7.0)


def test_a_counter_that_wrapped_around_goes_on_from_its_range(rapl: Path) -> None:
    """From 9 J up to the range of 10 J and on to 2 J: 3 J."""
    write_package(rapl, "intel-rapl:0", 9_000_000, span=10_000_000)
    meter = EnergyMeter(None)
    write_package(rapl, "intel-rapl:0", 2_000_000, span=10_000_000)
    assert meter.joules() == pytest.approx(3.0)


def test_without_counters_energy_is_not_known(rapl: Path) -> None:
    assert EnergyMeter(None).joules() is None


def test_a_counter_that_only_root_may_read_is_no_error(rapl: Path) -> None:
    package = write_package(rapl, "intel-rapl:0", 1)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()  # also root cannot read it now
    assert EnergyMeter(None).joules() is None


def test_a_counter_that_goes_away_leaves_the_energy_unknown(rapl: Path) -> None:
    package = write_package(rapl, "intel-rapl:0", 1_000_000)
    meter = EnergyMeter(None)
    (package / "energy_uj").unlink()
    assert meter.joules() is None


class Nvml:
    """NVIDIA's library at its boundary (nvml.h): millijoules since the driver was loaded, by a device's handle."""

    def __init__(self) -> None:
        self.millijoules = {"GPU-1111": 5_000, "GPU-2222": 90_000}
        self.initialised = False

    def nvmlInit(self) -> None:  # noqa: N802
        self.initialised = True

    def nvmlDeviceGetHandleByUUID(self, identity: str) -> str:  # noqa: N802
        assert self.initialised
        if identity not in self.millijoules:
            raise RuntimeError("NVMLError_NotFound")
        return identity

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    torch = pytest.importorskip("torch")
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    # CUDA's second device is NVML's first here: CUDA_VISIBLE_DEVICES and CUDA's own order renumber devices
    identities = ["2222", "1111", "3333"]
    properties = lambda device: SimpleNamespace(uuid=identities[device])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return library


def test_a_gpu_is_found_by_its_identity_and_counted_in_joules(nvml: Nvml) -> None:
    meter = EnergyMeter(1)
    nvml.millijoules["GPU-1111"] += 2_500
    nvml.millijoules["GPU-2222"] += 77_000  # another one's
    assert meter.source == "nvml"
    assert meter.joules() == pytest.approx(2.5)


def test_a_gpu_that_does_not_count_its_energy_is_no_error(nvml: Nvml) -> None:
    assert EnergyMeter(2).joules() is None
