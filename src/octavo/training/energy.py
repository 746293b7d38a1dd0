"""Energy that an attempt used, where the hardware counts it: NVML on NVIDIA GPUs, RAPL on CPUs.

Both are counters since boot, so two readings are enough: no sampling, no thread. NVML counts a device
(nvmlDeviceGetTotalEnergyConsumption, millijoules, Volta and later); RAPL a processor package
(/sys/class/powercap/intel-rapl:*, microjoules, AMD too; readable by root on most systems), other processes on it
included, and it wraps around.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads the counters when made and again when asked."""

    def __init__(self, device: int | None) -> None:
        """`device`: this rank's GPU; None: the processor packages."""
        self.source: Literal["nvml", "rapl"] = "rapl" if device is None else "nvml"
        self._device = device
        self._begin = self._read()

    def joules(self) -> float | None:
        """Energy since the meter was made; None where nothing counts it."""
        end = self._read()
        if self._begin is None or end is None:
            return None
        used = 0.0
        for name, (value, span) in end.items():
            first = self._begin.get(name, (value, span))[0]
            used += value - first if value >= first else value - first + span
        return used

    def _read(self) -> dict[str, tuple[float, float]] | None:
        """Counter -> (joules, joules at which it begins anew)."""
        try:
            return _read_rapl() if self._device is None else _read_nvml(self._device)
        except Exception:  # a missing counter is no reason not to train
            return None


def _read_rapl() -> dict[str, tuple[float, float]] | None:
    counters = {}
    for package in sorted(RAPL.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") == 1:  # sub-domains are counted in their package
            value = int((package / "energy_uj").read_text())
            span = int((package / "max_energy_range_uj").read_text())
            counters[package.name] = (value / 1e6, span / 1e6)
    return counters or None


def _read_nvml(device: int) -> dict[str, tuple[float, float]]:
    import pynvml  # type: ignore[import-not-found]
    import torch

    pynvml.nvmlInit()
    identity = torch.cuda.get_device_properties(device).uuid
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
    return {str(identity): (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 2**64 / 1e3)}
