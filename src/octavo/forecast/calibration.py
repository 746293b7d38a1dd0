"""Measured or fitted constants of the step-time models: `configs/clusters/calibration/*.yaml`, each with its source."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from octavo.configuration import Section, read_section
from octavo.layout import configs

INTERVAL = 0.8
"""Coverage of every interval of the forecast."""
AIM = 0.15
"""Median absolute error on models left out of the fit that is aimed at, for each kind."""

Kind = Literal["dense", "experts"]
Width = Literal["bf16", "fp8", "fp4"]
"""Of a product's operands, as in a device's `peak_tflops`."""


class CpuCalibration(Section):
    """What one core achieves on small models, measured, and how far other machines may be off."""

    achieved_gflops: PositiveFloat
    """Model GFLOP/s of one core on a dense BF16 step."""
    experts_factor: PositiveFloat
    """Step time of a mixture of experts over that of a dense model of equal model FLOPs."""
    fp8_factor: PositiveFloat
    """Step time with emulated FP8 over BF16's."""
    low: Annotated[float, Field(gt=0, lt=1)]
    """Lower end of the interval, as a share of the forecast tokens/s."""
    high: Annotated[float, Field(gt=1)]
    source: str


class Constants(Section):
    """The constants of `octavo.forecast.gpu`; shares are of the data sheet's figure."""

    sustained: dict[str, Annotated[float, Field(gt=0, lt=1.5)]]
    """Compute capability -> share of the peak that large products reach over a whole step (power, clocks)."""
    fp8_products: PositiveFloat
    """Further factor on FP8 products."""
    fp4_products: PositiveFloat
    """Further factor on FP4 products."""
    half_dimension: PositiveFloat
    """A product with a dimension this small runs at half of the rate."""
    attention: PositiveFloat
    """Share of the BF16 peak that attention reaches."""
    attention_blackwell_ultra: PositiveFloat
    """How much faster it is on compute capability 10.3 (exponentials at twice the rate)."""
    memory_passes: PositiveFloat
    """Factor on the bytes that norms, residuals, activations and quantising move."""
    dispatch_passes: PositiveFloat
    """The same for sorting and copying tokens for experts."""
    exposed_all_to_all: PositiveFloat
    """Share of the all-to-all that no work hides."""
    exposed_sums: PositiveFloat
    """The same for tensor, context and pipeline parallelism."""
    exposed_gradients: PositiveFloat
    """The same for data parallelism."""
    host_dense_layer: PositiveFloat
    """Seconds that the host takes to launch a dense layer, both passes, one micro-batch."""
    host_mixed_layer: PositiveFloat
    """The same for a layer with experts, whatever their number."""
    host_expert: PositiveFloat
    """And for each expert on the device: its products and their quantising are launched one by one."""

    def sustained_of(self, compute_capability: str | None) -> float:
        """The share for a GPU; of compute capability 9.0 where no row was published for one of its kind."""
        return self.sustained.get(compute_capability or "", self.sustained["9.0"])


class LeftOut(Section):
    """How far a fit without one model's rows is off on them; NVFP4's are not counted (see `fitting`)."""

    rows: int
    settings: int
    """Distinct ones: releases repeat most of them."""
    median_absolute_error: NonNegativeFloat
    """Of tokens/s, as a share."""
    error_quantile: NonNegativeFloat
    """Quantile (at the interval's coverage) of |ln(published / forecast)|."""
    coverage: Annotated[float, Field(ge=0, le=1)]
    """Share of its rows within an interval that is made without them."""


class KindError(Section):
    """The same over all models of a kind, each left out in its turn, and the interval that follows."""

    rows: int
    settings: int
    median_absolute_error: NonNegativeFloat
    coverage: Annotated[float, Field(ge=0, le=1)]
    half_width: PositiveFloat
    """Half of the interval's width in ln(tokens/s)."""


class Sensitivity(Section):
    """Left-out errors with one prior moved: how far the errors depend on what was chosen with the rows in view."""

    prior: str
    factor: PositiveFloat
    dense: NonNegativeFloat
    """Median absolute error of dense models."""
    experts: NonNegativeFloat
    """Of mixtures of experts."""
    nvfp4: NonNegativeFloat
    """Of the NVFP4 rows."""


class GpuCalibration(Section):
    """`configs/clusters/calibration/gpu.yaml`, written by `octavo.forecast.fitting`."""

    source: str
    rows: int
    settings: int
    """Distinct ones among the rows."""
    constants: Constants
    interval: Annotated[float, Field(gt=0, lt=1)]
    kinds: dict[Kind, KindError]
    left_out: dict[str, LeftOut]
    seen: dict[str, list[Width]]
    """Name of a device -> widths of products that rows are of."""
    sensitivity: list[Sensitivity]


@cache
def gpu_calibration() -> GpuCalibration:
    """`configs/clusters/calibration/gpu.yaml`."""
    return read_section(configs().clusters / "calibration" / "gpu.yaml", GpuCalibration)


def cpu_calibration() -> CpuCalibration:
    """`configs/clusters/calibration/cpu.yaml`."""
    return read_section(configs().clusters / "calibration" / "cpu.yaml", CpuCalibration)
