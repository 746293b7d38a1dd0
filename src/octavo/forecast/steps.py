"""Forecast of a training step's time, with the interval that the forecast has earned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.run import CellConfig
from octavo.forecast.calibration import INTERVAL, cpu_calibration, gpu_calibration
from octavo.forecast.gpu import Setting, step_parts
from octavo.models.flops import flops_per_token
from octavo.precision.recipes import RECIPES

UNSEEN_GPU = 1.5
"""Factor on the interval's half-width for GPUs of a kind that no published row is of: a judgement."""
EMULATED_AT_WORST = 0.1
"""Share of BF16's speed that emulated FP8 is taken to reach at worst on a GPU: a judgement."""


@dataclass(frozen=True)
class StepForecast:
    """One training step of a cell on a cluster; validation, checkpoints and start-up are not in it."""

    seconds: float
    tokens: int
    devices: int
    flops_per_token: float
    low_factor: float
    """Lower end of the interval over the forecast, in tokens/s."""
    high_factor: float
    breakdown: dict[str, float]
    """Part -> seconds; the parts add up to `seconds`."""
    basis: str
    """What the forecast rests on, for the reader of the plan."""
    interval: float = INTERVAL

    @property
    def tokens_per_second_per_device(self) -> float:
        """Trained tokens per second and device."""
        return self.tokens / self.seconds / self.devices

    @property
    def low(self) -> float:
        """Lower end of the interval, tokens per second and device."""
        return self.tokens_per_second_per_device * self.low_factor

    @property
    def high(self) -> float:
        """Upper end of the interval, tokens per second and device."""
        return self.tokens_per_second_per_device * self.high_factor

    @property
    def model_tflops_per_device(self) -> float:
        """Model TFLOP/s per device."""
        return self.tokens_per_second_per_device * self.flops_per_token / 1e12


def forecast_step(cell: CellConfig, cluster: Cluster, device: Device) -> StepForecast:
    """The forecast of one step of a cell."""
    if device.kind == "cpu":
        return _cpu_step(cell, device)
    setting = Setting(
        model=cell.model,
        training=cell.training,
        layout=cell.parallelism,
        recipe="bf16" if cell.precision.emulate else cell.precision.recipe,
        device=device,
        link_domain=cluster.link_domain or device.link_domain,
    )
    return gpu_step(setting, emulated=cell.precision.emulate)


def gpu_step(setting: Setting, *, emulated: bool = False) -> StepForecast:
    """The forecast of one step on GPUs."""
    calibration = gpu_calibration()
    parts = step_parts(setting, calibration.constants)
    kind = "experts" if setting.model.experts else "dense"
    half = calibration.half_width[kind]
    basis = (
        f"fitted to published throughput of {len(calibration.left_out)} models; on models left out of the fit the "
        f"median absolute error is {calibration.median_absolute_error:.0%}, and "
        f"{calibration.interval:.0%} intervals made without them hold {calibration.coverage:.0%} of their rows"
    )
    if setting.device.compute_capability not in calibration.constants.sustained:
        half *= UNSEEN_GPU
        basis += f"; no row is of {setting.device.name}, so that the interval is {UNSEEN_GPU:g} times as wide"
    low = math.exp(-half)
    if emulated:
        low *= EMULATED_AT_WORST
        basis += "; FP8 emulated on a GPU was never measured: BF16's time, and down to a tenth of its speed"
    return StepForecast(
        seconds=sum(parts.values()),
        tokens=setting.training.tokens_per_step,
        devices=setting.layout.world_size,
        flops_per_token=flops_per_token(setting.model, setting.training.sequence_length),
        low_factor=low,
        high_factor=math.exp(half),
        breakdown=parts,
        basis=basis,
        interval=calibration.interval,
    )


def _cpu_step(cell: CellConfig, device: Device) -> StepForecast:
    """Model FLOPs over what a core was measured to achieve; more experts' overhead and emulation as factors."""
    calibration = cpu_calibration()
    devices = cell.parallelism.world_size
    tokens = cell.training.tokens_per_step
    flops = flops_per_token(cell.model, cell.training.sequence_length)
    dense = flops * tokens / devices / (calibration.achieved_gflops * 1e9)
    experts = dense * (calibration.experts_factor - 1) if cell.model.experts else 0.0
    quantised = RECIPES[cell.precision.recipe].quantised
    emulation = (dense + experts) * (calibration.fp8_factor - 1) if quantised else 0.0
    return StepForecast(
        seconds=dense + experts + emulation,
        tokens=tokens,
        devices=devices,
        flops_per_token=flops,
        low_factor=calibration.low,
        high_factor=calibration.high,
        breakdown={"dense work": dense, "experts on CPUs": experts, "FP8 emulation": emulation},
        basis=f"{device.name}: {calibration.achieved_gflops:g} GFLOP/s achieved per core, measured on one machine; "
        "the interval is a judgement of how far other machines differ",
    )
