"""The fit of the step-time model to published throughput, and the error that it makes on models it has not seen.

Rows: NVIDIA's Megatron-Bridge performance summary (`configs/published/megatron_bridge_throughput.csv`). Eight constants
are fitted in their logarithms by least squares with a prior each (a bound from physics or from the literature with a
spread): with four models, data alone would not hold them. Each model weighs the same, whatever its number of rows, and
a soft loss keeps single rows from deciding. The error is measured by leaving out one model at a time, all its rows on
all GPUs. The interval's half-width is the quantile of those errors, the larger of the models of a kind, times SPREAD.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from octavo.configuration import read_section
from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.config import Checkpoints, Evaluation, Optimizer, Parallelism, Training
from octavo.files import write_text
from octavo.forecast.calibration import INTERVAL, Constants, GpuCalibration, LeftOut
from octavo.forecast.gpu import Setting, step_parts
from octavo.layout import configs
from octavo.models.catalogue import read_architecture

MODELS = {
    "DeepSeekV3": "deepseek-v3",
    "LLAMA3_70B": "llama-3.1-70b",
    "LLAMA3_8B": "llama-3.1-8b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
}
"""Names in the rows -> files in configs/models. Llama 3 has the sizes of Llama 3.1."""

FIXED = {
    # cuBLAS and Transformer Engine lose a few per cent to quantised operands' scales
    "fp8_products": 0.8,
    "half_dimension": 128.0,  # a tile of tensor-core kernels
    # FlashAttention-3, arXiv 2407.08608, figures 5 and 6: 0.5 to 0.7 of the peak forward, less backward
    "attention": 0.45,
    "attention_blackwell_ultra": 1.5,  # exponentials at twice the rate, half of attention's time
    "exposed_sums": 0.5,
    "exposed_gradients": 0.2,
    "host_dense_layer": 0.5e-3,
}
"""Constants that the rows say little about, at values from physics or the literature."""


@dataclass(frozen=True)
class Prior:
    """What a fitted constant is held to: a value, and a spread in its logarithm."""

    value: float
    spread: float


PRIORS = {
    "sustained.9.0": Prior(0.65, 0.25),
    "sustained.10.0": Prior(0.65, 0.25),
    "sustained.10.3": Prior(0.75, 0.25),
    "fp4_products": Prior(0.5, 0.3),
    "memory_passes": Prior(1.0, 0.4),
    "dispatch_passes": Prior(1.0, 0.4),
    "exposed_all_to_all": Prior(0.5, 0.5),
    "host_mixed_layer": Prior(4e-3, 0.3),
}

ERROR = 0.15
"""What a row is trusted to, in ln(tokens/s)."""
ROWS_PER_MODEL = 8
"""A model's rows weigh as much as this many independent ones."""
SPREAD = 1.25
"""On the left-out error quantile: two models of a kind say little of a third."""


@dataclass(frozen=True)
class Row:
    """One published figure."""

    model: str
    setting: Setting
    tokens_per_second_per_device: float


@cache
def rows() -> list[Row]:
    """The published rows."""
    path = configs().published / "megatron_bridge_throughput.csv"
    with path.open(encoding="utf-8") as file:
        return [_row(record) for record in csv.DictReader(file)]


def _row(record: dict[str, str]) -> Row:
    label = record["model"].split(" ")[0]
    model = read_architecture(MODELS[label])
    if "w/o MTP" in record["model"]:
        model = model.model_copy(update={"multi_token_prediction_layers": 0})
    sizes = {key: int(record[key] or 1) for key in ("n_gpus", "gbs", "mbs", "seq_length", "tp", "pp", "cp", "vp", "ep")}
    device = read_device(record["gpu"].lower())
    setting = Setting(
        model=model,
        training=plain_training(sizes["gbs"], sizes["mbs"], sizes["seq_length"]),
        layout=plain_layout(sizes["n_gpus"], sizes["tp"], sizes["pp"], sizes["cp"], sizes["vp"], sizes["ep"]),
        recipe=record["precision"],
        device=device,
        link_domain=device.link_domain,
    )
    return Row(MODELS[label], setting, float(record["tokens_per_s_per_gpu"]))


@cache
def read_device(name: str) -> Device:
    """A device of configs/clusters/devices by file name."""
    folder = configs().clusters / "devices"
    path = folder / f"{name}.yaml"
    if not path.exists():
        there = sorted(other.stem for other in folder.glob("*.yaml"))
        raise OctavoError(f"there is no device {name!r}", where=folder, expected=f"one of {', '.join(there)}")
    return read_section(path, Device)


def plain_training(global_batch: int, micro_batch: int, sequence_length: int) -> Training:
    """A training section of which only the batch matters, with the distributed optimizer."""
    return Training(
        steps=1,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        sequence_length=sequence_length,
        optimizer=Optimizer(learning_rate=1e-4, distributed=True),
        evaluation=Evaluation(interval=1, sequences=1, final_sequences=1),
        checkpoints=Checkpoints(interval=1),
    )


def plain_layout(devices: int, tensor: int, pipeline: int, context: int, virtual: int, expert: int) -> Parallelism:
    """A layout of so many devices as the published rows have it: sequence parallelism goes with tensor parallelism,
    and tokens to other nodes are sent once (the flex dispatcher)."""
    inner = tensor * pipeline * context
    if devices % inner:
        raise OctavoError(
            f"the layout does not divide the devices: {devices} devices, tensor {tensor} x pipeline {pipeline} x "
            f"context {context} = {inner}",
            where="--n-gpus",
            expected=f"a multiple of {inner}",
        )
    data = devices // inner
    if data * context * tensor % expert:
        raise OctavoError(
            f"expert parallelism {expert} does not divide data {data} x context {context} x tensor {tensor} = "
            f"{data * context * tensor}",
            where="--ep",
            expected=f"a divisor of {data * context * tensor}",
        )
    return Parallelism(
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual,
        context=context,
        expert=expert,
        data=data,
        sequence=tensor > 1,
        dispatcher="flex",
    )


def residual(row: Row, constants: Constants) -> float:
    """ln(published / forecast) of tokens/s."""
    setting = row.setting
    seconds = sum(step_parts(setting, constants).values())
    forecast = setting.training.tokens_per_step / seconds / setting.layout.world_size
    return math.log(row.tokens_per_second_per_device / forecast)


def fit(chosen: list[Row]) -> Constants:
    """The constants that fit some rows best."""
    weight = {
        model: math.sqrt(ROWS_PER_MODEL / sum(row.model == model for row in chosen))
        for model in {row.model for row in chosen}
    }

    def mismatch(logs: np.ndarray) -> np.ndarray:
        constants = _constants(logs)
        misfit = [residual(row, constants) / ERROR * weight[row.model] for row in chosen]
        pulled = [value / prior.spread for value, prior in zip(logs, PRIORS.values(), strict=True)]
        return np.array([*misfit, *pulled])

    return _constants(least_squares(mismatch, np.zeros(len(PRIORS)), loss="soft_l1").x)


def _constants(logs: np.ndarray) -> Constants:
    """Logarithms of the constants over their priors -> constants."""
    fitted = {name: prior.value * math.exp(float(log)) for log, (name, prior) in zip(logs, PRIORS.items(), strict=True)}
    sustained = {name.removeprefix("sustained."): fitted.pop(name) for name in list(fitted) if "sustained" in name}
    return Constants(sustained=sustained, **FIXED, **fitted)


def calibrate() -> GpuCalibration:
    """Fit all rows; measure the error on each model by a fit without it; make the interval from those errors."""
    every = rows()
    names = sorted({row.model for row in every})
    kinds = {name: kind_of(read_architecture(name).experts is not None) for name in names}
    errors = {name: _errors(name, without=(name,)) for name in names}
    quantiles = {name: _quantile(errors[name]) for name in names}
    widths: dict[Any, float] = {
        kind: SPREAD * max(quantiles[name] for name in names if kinds[name] == kind) for kind in set(kinds.values())
    }
    inside = {}
    for name in names:
        others = [other for other in names if other != name and kinds[other] == kinds[name]]
        unseen = SPREAD * max(_quantile(_errors(other, without=(name, other))) for other in others)
        inside[name] = np.abs(errors[name]) <= unseen
    off = {name: np.abs(np.expm1(-error)) for name, error in errors.items()}  # forecast over published, less one
    return GpuCalibration(
        source="octavo.forecast.fitting on configs/published/megatron_bridge_throughput.csv; write it anew with "
        "`python benchmarks/forecast.py --write`",
        constants=fit(every),
        interval=INTERVAL,
        half_width=dict(sorted(widths.items())),
        median_absolute_error=float(np.median(np.concatenate(list(off.values())))),
        coverage=float(np.mean(np.concatenate(list(inside.values())))),
        left_out={
            name: LeftOut(
                rows=len(errors[name]),
                median_absolute_error=float(np.median(off[name])),
                error_quantile=quantiles[name],
                coverage=float(np.mean(inside[name])),
            )
            for name in names
        },
    )


def _errors(name: str, *, without: tuple[str, ...]) -> np.ndarray:
    """ln(published / forecast) of a model's rows, forecast by a fit without the models named."""
    constants = fit([row for row in rows() if row.model not in without])
    return np.array([residual(row, constants) for row in rows() if row.model == name])


def _quantile(errors: np.ndarray) -> float:
    return float(np.quantile(np.abs(errors), INTERVAL))


def kind_of(has_experts: bool) -> Any:
    """The key of `half_width`."""
    return "experts" if has_experts else "dense"


def write_calibration(calibration: GpuCalibration) -> None:
    """Write configs/clusters/calibration/gpu.yaml, numbers to four digits."""
    import yaml

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    text = yaml.safe_dump(rounded(calibration.model_dump(mode="json")), sort_keys=False, width=118)
    write_text(configs().clusters / "calibration" / "gpu.yaml", text)
