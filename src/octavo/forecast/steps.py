"""Forecast of a training step's time, with the interval that the forecast has earned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.run import CellConfig
from octavo.forecast.calibration import (
    AIMS,
    INTERVAL,
    GpuCalibration,
    Kind,
    KindError,
    gpu_calibration,
)
from octavo.forecast.cpu import CpuSpeed, cpu_speed
from octavo.forecast.gpu import DETERMINISM, step_parts, width
from octavo.forecast.setting import Setting, Software
from octavo.forecast.work import Work, work_of
from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture
from octavo.models.flops import flops_per_token
from octavo.precision.config import Precision, RecipeName

UNSEEN = 1.5
"""Factor on the interval's half-width where no published row is of the GPU in that width of products or the products
are NVFP4's, and again where the model is far from those of the fit: a judgement."""
FAR = 2.0
"""A model is far from those of the fit where none of its kind is within this factor in hidden size and in the width of
the feed-forward that a token meets: a judgement."""
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
    measured: bool = False
    """Whether it rests on what was measured of a machine or cluster, which no configuration says."""
    measured_runs: int = 0
    """Runs of the cell whose rate it is; 0: it is forecast."""

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
        return _cpu_step(cell, device, cpu_speed(cluster, device))
    setting = Setting(
        model=cell.model,
        training=cell.training,
        layout=cell.parallelism,
        precision=Precision() if cell.precision.emulate else cell.precision,
        device=device,
        link_domain=cluster.link_domain or device.link_domain,
        software=Software.of(cell.training),
    )
    return gpu_step(setting, emulated=cell.precision.emulate)


def gpu_step(setting: Setting, *, emulated: bool = False) -> StepForecast:
    """The forecast of one step on GPUs."""
    calibration = gpu_calibration()
    parts = step_parts(setting, calibration.constants)
    of_kind = calibration.kinds[setting.kind]
    measured = _is_seen(setting, calibration) and width(setting.precision.recipe) != "fp4"
    far = _is_far(setting.model, of_kind)
    half = of_kind.half_width * (1 if measured else UNSEEN) * (UNSEEN if far else 1)
    notes = [*_fit_notes(setting, calibration), *_setting_notes(setting, calibration)]
    if far:
        notes.append(
            f"no model of its kind in the fit is within a factor of {FAR:g} of it in size, so that the interval is "
            f"{UNSEEN:g} times as wide"
        )
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
        median_absolute_error=of_kind.median_absolute_error if measured and not far and not emulated else None,
        interval=calibration.interval,
    )


def _is_far(model: Architecture, of_kind: KindError) -> bool:
    """Whether no model of its kind in the fit is near (FAR)."""
    own = _sizes(model)
    others = [_sizes(read_architecture(name)) for name in of_kind.models]
    return all(max(max(a / b, b / a) for a, b in zip(own, other, strict=True)) > FAR for other in others)


def _sizes(model: Architecture) -> tuple[float, float]:
    """Hidden size, and the width of the feed-forward that a token meets in the last layer."""
    experts = model.experts
    wide = experts.top_k * experts.size + experts.shared_size if experts else model.feed_forward_size or 0
    return model.hidden_size, wide


def _is_seen(setting: Setting, calibration: GpuCalibration) -> bool:
    """Whether a published row is of the GPU in that width of products."""
    return width(setting.precision.recipe) in calibration.seen.get(setting.device.name, ())


def _fit_notes(setting: Setting, calibration: GpuCalibration) -> list[str]:
    """What was fitted, and how far off it is on models that it has not seen."""
    one, aim, software = calibration.kinds[setting.kind], AIMS[setting.kind], setting.software
    verdict = "within the aim of" if one.median_absolute_error <= aim else "which misses the aim of"
    models = sum(len(kind.models) for kind in calibration.kinds.values())
    launched = "whole steps as CUDA graphs" if software.graphs else "without whole steps as CUDA graphs"
    return [
        f"for software like NVIDIA's release {software.release}, {launched}",
        f"fitted to {calibration.rows} published rows ({calibration.settings} distinct settings) of {models} models, "
        "form and priors chosen with the rows in view",
        f"on {KINDS[setting.kind]} left out of the fit the median absolute error is {one.median_absolute_error:.0%}, "
        f"{verdict} {aim:.0%}, and {calibration.interval:.0%} intervals made without them hold {one.coverage:.0%} of "
        "their rows",
    ]


def _setting_notes(setting: Setting, calibration: GpuCalibration) -> list[str]:
    """What the setting's own device and precision add to that."""
    device, low = setting.device.name, width(setting.precision.recipe)
    notes = []
    if not _is_seen(setting, calibration):
        notes.append(f"no row is of {device} in {low.upper()}, so that the interval is {UNSEEN:g} times as wide")
    if low == "fp8":
        notes.append("recipes of FP8 are forecast to be equally fast")
    if low == "fp4":
        notes.append(
            "NVFP4's rows are of two models, so that its error on another is not known and the interval is "
            f"{UNSEEN:g} times as wide"
        )
    if setting.software.deterministic:
        notes.append(f"sums in a fixed order are reckoned to add {DETERMINISM[setting.kind]:.0%} to a step")
    return notes


def _cpu_step(cell: CellConfig, device: Device, speed: CpuSpeed) -> StepForecast:
    """What a core takes for as much work; what experts and emulation add as parts of it, where they add anything."""
    devices = cell.parallelism.world_size
    tokens = cell.training.tokens_per_step
    work = work_of(cell)
    kind: Kind = "experts" if cell.model.experts else "dense"

    def seconds(of: Kind, recipe: RecipeName, does: Work) -> float:
        return speed.seconds_per_token(of, recipe, does) * tokens / devices

    whole = seconds(kind, cell.precision.recipe, work)
    in_bf16 = min(seconds(kind, "bf16", work._replace(short_sums=0.0)), whole)
    dense = min(seconds("dense", "bf16", Work(work.flops)), in_bf16)
    half = speed.half_width_at(kind, work)
    return StepForecast(
        seconds=whole,
        tokens=tokens,
        devices=devices,
        flops_per_token=work.flops,
        low_factor=math.exp(-half),
        high_factor=math.exp(half),
        breakdown={"dense work": dense, "experts on CPUs": in_bf16 - dense, "FP8 emulation": whole - in_bf16},
        measured=speed.measured,
        notes=(f"{device.name}: {speed.notes[0]}", *speed.notes[1:]),
        median_absolute_error=None,
    )
