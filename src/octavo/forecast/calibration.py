"""Measured or fitted constants of the step-time models: `configs/clusters/calibration/*.yaml`, each with its source."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from octavo.configuration import Section, read_section
from octavo.layout import configs
from octavo.precision.config import RecipeName

INTERVAL = 0.8
"""Coverage of every interval of the forecast."""

Kind = Literal["dense", "experts"]
AIMS: dict[Kind, float] = {"dense": 0.08, "experts": 0.15}
"""Median absolute error on models left out of the fit that is aimed at."""
Width = Literal["bf16", "fp8", "fp4"]
"""Of a product's operands, as in a device's `peak_tflops`."""


class CpuStep(Section):
    """What one core takes for a model that was measured."""

    kind: Kind
    recipe: RecipeName
    work: dict[str, NonNegativeFloat]
    """Counts per token (`octavo.forecast.work`); those that are not there are 0."""
    seconds_per_token: PositiveFloat


class CpuCalibration(Section):
    """What cores with BF16 instructions take, measured, and how far other machines may be off."""

    steps: list[CpuStep]
    """Of each kind and recipe as many models at least as there are costs (`octavo.forecast.cpu`)."""
    without_bf16: PositiveFloat
    """Step time on a processor without such instructions over that with them."""
    spread: Annotated[float, Field(gt=1)]
    """The interval goes from the forecast tokens/s over this to as many times them."""
    source: str


class Constants(Section):
    """The constants of `octavo.forecast.gpu`; shares are of the data sheet's figure."""

    sustained: dict[str, Annotated[float, Field(gt=0, lt=1.5)]]
    """Compute capability -> share of the peak that large products reach over a whole step (power, clocks)."""
    fp8_products: PositiveFloat
    """Further factor on FP8 products."""
    fp8_experts: PositiveFloat
    """And on those of experts, one after another with few rows each."""
    fp4_products: PositiveFloat
    """Further factor on FP4 products."""
    half_dimension: PositiveFloat
    """A product with a dimension this small runs at half of the rate."""
    attention: PositiveFloat
    """Share of the BF16 peak that attention reaches."""
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
    """And for each expert on the device in BF16: its products are launched one by one."""
    host_quantising: PositiveFloat
    """How much more an expert takes in FP8, whose operands are quantised one by one."""
    host_overlap: PositiveFloat
    """Exponent n of a layer with experts, (device^n + host^n)^(1/n): 1, host and device wait for each other; 2, they
    overlap."""
    graphs_host: PositiveFloat
    """Share of the host's time that is left where whole steps are CUDA graphs."""
    graphs_experts: PositiveFloat
    """Share of the memory passes for experts that is left there: products, activation and quantising are fused."""
    unfused_experts: PositiveFloat
    """Factor on the bytes that experts with biases move, which no kernel fuses."""
    early_experts: PositiveFloat
    """Factor on host and memory passes for experts in the releases up to `octavo.forecast.setting.EARLY`."""
    releases: dict[str, Annotated[float, Field(gt=0)]]
    """Release -> factor on a step's time."""

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
    bias: float
    """Median of forecast / published - 1."""
    coverage: Annotated[float, Field(ge=0, le=1)]
    """Share of its rows within an interval that is made without them."""


class KindError(Section):
    """The same over all models of a kind, each left out in its turn, and the interval that follows."""

    models: list[str]
    """Those of the kind in the fit."""
    rows: int
    settings: int
    median_absolute_error: NonNegativeFloat
    coverage: Annotated[float, Field(ge=0, le=1)]
    held: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """Model -> the same share of all its rows that intervals are made of, the pairs' too: their mean is what intervals
    that give each model the same weight promise."""
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


class Pair(Section):
    """FP8 over BF16 of one model and layout, tokens/s, by a fit without the model."""

    model: str
    device: str
    devices: PositiveInt
    published: PositiveFloat
    forecast: PositiveFloat


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
    pairs: list[Pair]
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
