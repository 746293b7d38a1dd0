"""Forecast of a training step's time, with the interval that the forecast has earned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.run import CellConfig
from octavo.forecast.calibration import AIM, INTERVAL, GpuCalibration, Kind, cpu_calibration, gpu_calibration
from octavo.forecast.gpu import step_parts, width
from octavo.forecast.setting import Setting
from octavo.models.flops import flops_per_token
from octavo.precision.config import Precision
from octavo.precision.recipes import RECIPES

UNSEEN = 1.5
"""Factor on the interval's half-width where no published row is of the GPU in that width of products: a judgement."""
EMULATED_AT_WORST = 0.1
"""Share of BF16's speed that emulated FP8 is taken to reach at worst on a GPU: a judgement."""


KINDS: dict[Kind, str] = {"dense": "dense models", "experts": "mixtures of experts"}


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
    notes: tuple[str, ...]
    """What the forecast rests on, for the reader of the plan."""
    median_absolute_error: float | None
    """On models of its kind that were left out of the fit; None where that was not measured."""
    interval: float = INTERVAL

    @property
    def basis(self) -> str:
        """The notes as one text."""
        return "; ".join(self.notes)

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
        precision=Precision() if cell.precision.emulate else cell.precision,
        device=device,
        link_domain=cluster.link_domain or device.link_domain,
    )
    return gpu_step(setting, emulated=cell.precision.emulate)


def gpu_step(setting: Setting, *, emulated: bool = False) -> StepForecast:
    """The forecast of one step on GPUs."""
    calibration = gpu_calibration()
    parts = step_parts(setting, calibration.constants)
    of_kind = calibration.kinds[setting.kind]
    measured = _is_seen(setting, calibration) and width(setting.precision.recipe) != "fp4"
    half = of_kind.half_width * (1 if measured else UNSEEN)
    notes = [*_fit_notes(setting.kind, calibration), *_setting_notes(setting, calibration)]
    low = math.exp(-half)
    if emulated:
        low *= EMULATED_AT_WORST
        notes.append("FP8 emulated on a GPU was never measured: BF16's time, and down to a tenth of its speed")
    return StepForecast(
        seconds=sum(parts.values()),
        tokens=setting.training.tokens_per_step,
        devices=setting.layout.world_size,
        flops_per_token=flops_per_token(setting.model, setting.training.sequence_length),
        low_factor=low,
        high_factor=math.exp(half),
        breakdown=parts,
        notes=tuple(notes),
        median_absolute_error=of_kind.median_absolute_error if measured and not emulated else None,
        interval=calibration.interval,
    )


def _is_seen(setting: Setting, calibration: GpuCalibration) -> bool:
    """Whether a published row is of the GPU in that width of products."""
    return width(setting.precision.recipe) in calibration.seen.get(setting.device.name, ())


def _fit_notes(kind: Kind, calibration: GpuCalibration) -> list[str]:
    """What was fitted, and how far off it is on models that it has not seen."""
    one = calibration.kinds[kind]
    aim = "within the aim of" if one.median_absolute_error <= AIM else "which misses the aim of"
    return [
        f"fitted to {calibration.rows} published rows ({calibration.settings} distinct settings) of "
        f"{len(calibration.left_out)} models, form and priors chosen with the rows in view",
        f"on {KINDS[kind]} left out of the fit the median absolute error is {one.median_absolute_error:.0%}, {aim} "
        f"{AIM:.0%}, and {calibration.interval:.0%} intervals made without them hold {one.coverage:.0%} of their rows",
    ]


def _setting_notes(setting: Setting, calibration: GpuCalibration) -> list[str]:
    """What the setting's own device and precision add to that."""
    device, low = setting.device.name, width(setting.precision.recipe)
    notes = []
    if not _is_seen(setting, calibration):
        notes.append(f"no row is of {device} in {low.upper()}, so that the interval is {UNSEEN:g} times as wide")
    if {"bf16", "fp8"} - set(calibration.seen.get(device, ())) and "fp8" in setting.device.peak_tflops:
        notes.append(
            f"BF16 against FP8 on {device} rests on no row: on peaks of data sheets and an assumed factor of "
            f"{calibration.constants.fp8_products:g} on FP8 products"
        )
    if low == "fp8":
        notes.append("recipes of FP8 are forecast to be equally fast")
    if low == "fp4":
        notes.append(
            "NVFP4's rows are of one model, so that its error on another is not known and the interval is "
            f"{UNSEEN:g} times as wide"
        )
    return notes


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
        notes=(
            f"{device.name}: {calibration.achieved_gflops:g} GFLOP/s achieved per core, measured on one machine",
            "the interval is a judgement of how far other machines differ",
        ),
        median_absolute_error=None,
    )
