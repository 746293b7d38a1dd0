"""The fit of the step-time model to published throughput, and the error that it makes on models it has not seen.

The rows are those of `octavo.forecast.rows`. The constants are fitted in their logarithms by least squares with a prior
each (a bound from physics or from the literature with a spread): few models alone would not hold them. A model weighs
at most as much as ROWS_PER_MODEL rows, and a soft loss keeps single rows from deciding. A row's release of the software
is known: each has a factor on a step's time, shrunk to 1.

The error is measured by leaving out one model at a time, all its rows on all GPUs, and told apart by kind, dense models
and mixtures of experts. Medians and coverages are those of the performance summary's rows; the intervals are conformal
over the left-out errors of all models, pooled with the same weight for each model (arXiv 1809.07441, "pooling CDFs"; it
has no guarantee for few models). What is not left out: the form of the model and the priors were chosen with all
rows in view. NVFP4's rows are of two models, and count in no error. `sensitivity` says what the errors would be with
other priors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
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
    Pair,
    Sensitivity,
    Width,
)
from octavo.forecast.gpu import step_parts, width
from octavo.forecast.rows import FILES, Row, of_release, rows
from octavo.forecast.setting import EARLY, RELEASES, Setting
from octavo.layout import configs

FIXED = {
    "half_dimension": 128.0,  # a tile of tensor-core kernels
    # FlashAttention-3, arXiv 2407.08608, figures 5 and 6: 0.5 to 0.7 of the peak forward, less backward
    "attention": 0.45,
    "exposed_sums": 0.5,
    "exposed_gradients": 0.2,
    "host_dense_layer": 0.5e-3,
    # an expert has six products, and with FP8 four operands to quantise
    "host_quantising": 10 / 6,
    "host_overlap": 1.3,
    # a graph's kernels follow each other in one or two microseconds, launches from the host in ten
    "graphs_host": 0.1,
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
    # cuBLAS and Transformer Engine lose a few per cent to quantised operands' scales, clocks fall with power
    "fp8_products": Prior(0.8, 0.15),
    # one after another with few rows each, they reach less of the peak, and less of FP8's than of BF16's
    "fp8_experts": Prior(0.85, 0.1),
    "fp4_products": Prior(0.5, 0.3),
    "memory_passes": Prior(1.0, 0.4),
    "dispatch_passes": Prior(1.0, 0.4),
    "exposed_all_to_all": Prior(0.5, 0.5),
    "host_mixed_layer": Prior(4e-3, 0.3),
    # a dozen launches an expert (six products and what prepares their operands) of 10 us each; the rows decide
    "host_expert": Prior(0.12e-3, 1.0),
    "graphs_experts": Prior(0.7, 0.3),
    "unfused_experts": Prior(1.0, 0.4),
    "early_experts": Prior(1.1, 0.2),
    **{f"releases.{release}": Prior(1.0, 0.05) for release in RELEASES},
}
CHOSEN = ("unfused_experts", "fp8_experts", "host_mixed_layer", "host_expert")
"""Priors that no source holds: `sensitivity` moves them."""

ERROR = 0.15
"""What a row is trusted to, in ln(tokens/s)."""
ROWS_PER_MODEL = 8
"""A model's rows weigh as much as this many independent ones."""


def residual(row: Row, constants: Constants) -> float:
    """ln(published / forecast) of tokens/s."""
    return math.log(row.tokens_per_second_per_device / _forecast(row.setting, constants))


def _forecast(setting: Setting, constants: Constants) -> float:
    """Tokens per second and device."""
    seconds = sum(step_parts(setting, constants).values())
    return setting.training.tokens_per_step / seconds / setting.layout.world_size


def fit(chosen: list[Row], priors: dict[str, Prior] = PRIORS) -> Constants:
    """The constants that fit some rows best."""
    number = Counter(row.model for row in chosen)
    weights = np.array([math.sqrt(min(1.0, ROWS_PER_MODEL / number[row.model])) for row in chosen])
    published = np.log([row.tokens_per_second_per_device for row in chosen])
    # a release is a factor on a step's time, so that a setting is forecast once for all its releases
    alike = [of_release(row.setting, EARLY if row.setting.software.early else RELEASES[-1]) for row in chosen]
    settings = {repr(setting): setting for setting in alike}
    place = {key: index for index, key in enumerate(settings)}
    of_row = [place[repr(setting)] for setting in alike]
    release = [row.setting.software.release for row in chosen]
    spreads = np.array([prior.spread for prior in priors.values()])

    def mismatch(logs: np.ndarray) -> np.ndarray:
        constants = _constants(logs, priors)
        plain = constants.model_copy(update={"releases": {}})
        forecasts = np.log([_forecast(setting, plain) for setting in settings.values()])[of_row]
        forecasts -= np.log([constants.releases[name] for name in release])
        return np.concatenate([(published - forecasts) * weights / ERROR, logs / spreads])

    found = least_squares(mismatch, np.zeros(len(priors)), loss="soft_l1", diff_step=1e-3, xtol=1e-5, ftol=1e-6)
    return _constants(found.x, priors)


def _constants(logs: np.ndarray, priors: dict[str, Prior]) -> Constants:
    """Logarithms of the constants over their priors -> constants."""
    fitted = {name: prior.value * math.exp(float(log)) for log, (name, prior) in zip(logs, priors.items(), strict=True)}
    nested = {
        section: {name.removeprefix(f"{section}."): fitted.pop(name) for name in list(fitted) if section in name}
        for section in ("sustained", "releases")
    }
    return Constants.model_construct(None, **nested, **FIXED, **fitted)


def calibrate(priors: dict[str, Prior] = PRIORS) -> GpuCalibration:
    """Fit all rows; measure the error on each model by a fit without it; make the intervals from those errors."""
    every = rows()
    kinds: dict[str, Kind] = {row.model: row.setting.kind for row in every}
    unseen = {name: _left_out(name, priors) for name in sorted(kinds)}
    counted = {name: one for name, one in unseen.items() if len(one.errors)}

    def inside(name: str, errors: np.ndarray) -> np.ndarray:
        """Which of a model's errors are within the interval that the other models' make."""
        others = [one.scores for other, one in unseen.items() if other != name and kinds[other] == kinds[name]]
        return np.abs(errors) <= half_width(others)

    def of_kind(kind: Kind) -> KindError:
        names = [name for name in counted if kinds[name] == kind]
        return KindError(
            models=[name for name in unseen if kinds[name] == kind],
            rows=sum(len(counted[name].errors) for name in names),
            settings=_settings([row for row in every if row.model in names and row.counted]),
            median_absolute_error=_median([counted[name].errors for name in names]),
            coverage=float(np.mean(np.concatenate([inside(name, counted[name].errors) for name in names]))),
            held={
                name: float(np.mean(inside(name, one.scores))) for name, one in unseen.items() if kinds[name] == kind
            },
            half_width=half_width([one.scores for name, one in unseen.items() if kinds[name] == kind]),
        )

    seen: dict[str, list[Width]] = {}
    for row in sorted(every, key=lambda row: (row.setting.device.name, row.setting.precision.recipe)):
        widths = seen.setdefault(row.setting.device.name, [])
        if (own := width(row.setting.precision.recipe)) not in widths:
            widths.append(own)
    files = " and ".join(f"configs/published/{name}" for name in FILES)
    return GpuCalibration(
        source=f"octavo.forecast.fitting on {files}; write it anew with `python benchmarks/forecast.py --write`",
        rows=len(every),
        settings=_settings(every),
        constants=fit(every, priors),
        interval=INTERVAL,
        kinds={kind: of_kind(kind) for kind in get_args(Kind)},
        left_out={
            name: LeftOut(
                rows=len(one.errors),
                settings=_settings([row for row in every if row.model == name and row.counted]),
                median_absolute_error=_median([one.errors]),
                bias=float(np.expm1(-np.median(one.errors))),
                coverage=float(np.mean(inside(name, one.errors))),
            )
            for name, one in counted.items()
        },
        pairs=[pair for one in unseen.values() for pair in one.pairs],
        seen=seen,
        sensitivity=[],
    )


def sensitivity() -> list[Sensitivity]:
    """The left-out errors with each of the CHOSEN priors halved and doubled, one at a time."""
    return [moved(name, factor) for name in CHOSEN for factor in (0.5, 2.0)]


def moved(name: str, factor: float) -> Sensitivity:
    """The left-out errors with one prior at `factor` times its value."""
    found = calibrate({**PRIORS, name: Prior(PRIORS[name].value * factor, PRIORS[name].spread)})
    mixtures, dense = found.kinds["experts"], found.kinds["dense"]
    return Sensitivity(
        prior=name, factor=factor, dense=dense.median_absolute_error, experts=mixtures.median_absolute_error
    )


@dataclass(frozen=True)
class _Errors:
    """Of one model, by a fit without it."""

    errors: np.ndarray
    """ln(published / forecast) of the rows that count."""
    scores: np.ndarray
    """The same of those that the intervals are made of."""
    pairs: list[Pair]


def _left_out(name: str, priors: dict[str, Prior]) -> _Errors:
    constants = fit([row for row in rows() if row.model != name], priors)
    mine = [row for row in rows() if row.model == name]
    errors, scores = (
        np.array([residual(row, constants) for row in mine if chosen(row)])
        for chosen in (lambda row: row.counted, lambda row: row.in_intervals)
    )
    return _Errors(errors, scores, list(_pairs(mine, constants)))


def _pairs(mine: list[Row], constants: Constants) -> Iterator[Pair]:
    """FP8 over BF16, published and forecast, of rows that differ in nothing else."""
    for one, other in product(mine, mine):
        alike = replace(one.setting, precision=other.setting.precision) == other.setting
        if alike and width(one.setting.precision.recipe) == "fp8" and width(other.setting.precision.recipe) == "bf16":
            ratio = one.tokens_per_second_per_device / other.tokens_per_second_per_device
            yield Pair(
                model=one.model,
                device=one.setting.device.name,
                devices=one.setting.layout.world_size,
                published=ratio,
                forecast=ratio * math.exp(residual(other, constants) - residual(one, constants)),
            )


def _median(errors: list[np.ndarray]) -> float:
    """The median of |forecast / published - 1| over several models' rows."""
    return float(np.median(np.abs(np.expm1(-np.concatenate(errors)))))


def half_width(errors: list[np.ndarray]) -> float:
    """Conformal over models: what INTERVAL of the left-out errors are within, each model with the same weight."""
    sizes = np.concatenate([np.abs(one) for one in errors])
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in errors])
    order = np.argsort(sizes)
    reached = np.cumsum(weights[order]) >= INTERVAL * weights.sum() * (1 - 1e-9)
    return float(sizes[order][np.argmax(reached)])


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
