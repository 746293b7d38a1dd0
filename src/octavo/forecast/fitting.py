"""The fit of the step-time model to published throughput, and the error that it makes on models it has not seen.

Rows: NVIDIA's Megatron-Bridge performance summary (`configs/published/megatron_bridge_throughput.csv`). Nine constants
are fitted in their logarithms by least squares with a prior each (a bound from physics or from the literature with a
spread): with four models, data alone would not hold them. Each model weighs the same, whatever its number of rows, and
a soft loss keeps single rows from deciding. The error is measured by leaving out one model at a time, all its rows on
all GPUs, and told apart by kind, dense models and mixtures of experts. The interval's half-width is the quantile of
those errors, the larger of the models of a kind, times SPREAD.

What is not left out: the form of the model and the priors were chosen with all rows in view. NVFP4's rows are all of
one model, so that without it their factor is its prior: they are fitted, but count in no error. `sensitivity` says what
the errors would be with other priors.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import numpy as np
from scipy.optimize import least_squares

from octavo.files import write_text
from octavo.forecast.calibration import (
    INTERVAL,
    Constants,
    GpuCalibration,
    Kind,
    KindError,
    LeftOut,
    Sensitivity,
    Width,
)
from octavo.forecast.gpu import step_parts, width
from octavo.forecast.setting import Setting, plain_layout, plain_training, read_device
from octavo.layout import configs
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision

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
    # some twenty launches an expert (six products, their operands' quantising) of 10 us each; the rows decide
    "host_expert": Prior(0.2e-3, 1.0),
}
CHOSEN = ("host_mixed_layer", "host_expert", "fp4_products")
"""Priors that no source holds: `sensitivity` moves them."""

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

    @property
    def counted(self) -> bool:
        """Whether it counts in the errors: all but NVFP4's."""
        return width(self.setting.precision.recipe) != "fp4"

    @property
    def key(self) -> str:
        """Equal for rows of different releases that are of one setting."""
        return repr(self.setting)


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
        precision=Precision.model_validate({"recipe": record["precision"]}),
        device=device,
        link_domain=device.link_domain,
    )
    return Row(MODELS[label], setting, float(record["tokens_per_s_per_gpu"]))


def residual(row: Row, constants: Constants) -> float:
    """ln(published / forecast) of tokens/s."""
    setting = row.setting
    seconds = sum(step_parts(setting, constants).values())
    forecast = setting.training.tokens_per_step / seconds / setting.layout.world_size
    return math.log(row.tokens_per_second_per_device / forecast)


def fit(chosen: list[Row], priors: dict[str, Prior] = PRIORS) -> Constants:
    """The constants that fit some rows best."""
    weight = {
        model: math.sqrt(ROWS_PER_MODEL / sum(row.model == model for row in chosen))
        for model in {row.model for row in chosen}
    }

    def mismatch(logs: np.ndarray) -> np.ndarray:
        constants = _constants(logs, priors)
        misfit = [residual(row, constants) / ERROR * weight[row.model] for row in chosen]
        pulled = [value / prior.spread for value, prior in zip(logs, priors.values(), strict=True)]
        return np.array([*misfit, *pulled])

    return _constants(least_squares(mismatch, np.zeros(len(priors)), loss="soft_l1").x, priors)


def _constants(logs: np.ndarray, priors: dict[str, Prior]) -> Constants:
    """Logarithms of the constants over their priors -> constants."""
    fitted = {name: prior.value * math.exp(float(log)) for log, (name, prior) in zip(logs, priors.items(), strict=True)}
    sustained = {name.removeprefix("sustained."): fitted.pop(name) for name in list(fitted) if "sustained" in name}
    return Constants(sustained=sustained, **FIXED, **fitted)


def calibrate() -> GpuCalibration:
    """Fit all rows; measure the error on each model by a fit without it; make the intervals from those errors."""
    every = rows()
    kinds = {row.model: row.setting.kind for row in every}
    errors = {name: _errors(name, without={name}) for name in sorted(kinds)}
    inside = {}
    for name, kind in kinds.items():
        others = [other for other in kinds if other != name and kinds[other] == kind]
        unseen = _half_width([_errors(other, without={name, other}) for other in others])
        inside[name] = np.abs(errors[name]) <= unseen
    of_kind: dict[Kind, list[str]] = {kind: [name for name in errors if kinds[name] == kind] for kind in get_args(Kind)}
    seen: dict[str, list[Width]] = {}
    for row in sorted(every, key=lambda row: (row.setting.device.name, row.setting.precision.recipe)):
        widths = seen.setdefault(row.setting.device.name, [])
        if (own := width(row.setting.precision.recipe)) not in widths:
            widths.append(own)
    return GpuCalibration(
        source="octavo.forecast.fitting on configs/published/megatron_bridge_throughput.csv; write it anew with "
        "`python benchmarks/forecast.py --write`",
        rows=len(every),
        settings=_settings(every),
        constants=fit(every),
        interval=INTERVAL,
        kinds={
            kind: KindError(
                rows=sum(len(errors[name]) for name in names),
                settings=_settings([row for row in every if row.model in names and row.counted]),
                median_absolute_error=_median([errors[name] for name in names]),
                coverage=float(np.mean(np.concatenate([inside[name] for name in names]))),
                half_width=_half_width([errors[name] for name in names]),
            )
            for kind, names in of_kind.items()
        },
        left_out={
            name: LeftOut(
                rows=len(error),
                settings=_settings([row for row in every if row.model == name and row.counted]),
                median_absolute_error=_median([error]),
                error_quantile=_quantile(error),
                coverage=float(np.mean(inside[name])),
            )
            for name, error in errors.items()
        },
        seen=seen,
        sensitivity=[],
    )


def sensitivity() -> list[Sensitivity]:
    """The left-out errors with each of the CHOSEN priors halved and doubled, one at a time."""
    return [moved(name, factor) for name in CHOSEN for factor in (0.5, 2.0)]


def moved(name: str, factor: float) -> Sensitivity:
    """The left-out errors with one prior at `factor` times its value."""
    priors = {**PRIORS, name: Prior(PRIORS[name].value * factor, PRIORS[name].spread)}
    kinds = {row.model: row.setting.kind for row in rows()}
    errors = {kind: [_errors(one, {one}, priors) for one in kinds if kinds[one] == kind] for kind in kinds.values()}
    fp4 = {row.model for row in rows() if not row.counted}
    return Sensitivity(
        prior=name,
        factor=factor,
        dense=_median(errors["dense"]),
        experts=_median(errors["experts"]),
        nvfp4=_median([_errors(one, {one}, priors, counted=False) for one in fp4]),
    )


def _errors(name: str, without: set[str], priors: dict[str, Prior] = PRIORS, *, counted: bool = True) -> np.ndarray:
    """ln(published / forecast) of a model's rows that count (or do not), by a fit without the models named."""
    constants = fit([row for row in rows() if row.model not in without], priors)
    return np.array([residual(row, constants) for row in rows() if row.model == name and row.counted == counted])


def _median(errors: list[np.ndarray]) -> float:
    """The median of |forecast / published - 1| over several models' rows."""
    return float(np.median(np.abs(np.expm1(-np.concatenate(errors)))))


def _half_width(errors: list[np.ndarray]) -> float:
    """The larger quantile of several models of a kind, and more for the next model."""
    return SPREAD * max(_quantile(error) for error in errors)


def _quantile(errors: np.ndarray) -> float:
    return float(np.quantile(np.abs(errors), INTERVAL))


def _settings(chosen: list[Row]) -> int:
    return len({row.key for row in chosen})


def write_calibration(calibration: GpuCalibration) -> None:
    """Write configs/clusters/calibration/gpu.yaml, numbers to four digits."""
    import yaml

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    text = yaml.safe_dump(rounded(calibration.model_dump(mode="json")), sort_keys=False, width=118)
    write_text(configs().clusters / "calibration" / "gpu.yaml", text)
