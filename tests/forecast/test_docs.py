"""docs/forecast.md prints the numbers that the code makes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from octavo.experiment.config import Precision
from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.fitting import FIXED, PRIORS, SPREAD, rows
from octavo.forecast.layouts import Layout, forecast_layout
from octavo.forecast.memory import GIB, memory

TITLES = {
    "llama-3.1-8b": "Llama 3 8B",
    "llama-3.1-70b": "Llama 3 70B",
    "deepseek-v3": "DeepSeek-V3",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
}


@pytest.fixture
def text(repository: Path) -> str:
    return " ".join((repository / "docs" / "forecast.md").read_text().split())


def test_the_errors(text: str) -> None:
    calibration = gpu_calibration()
    rows = [
        (TITLES[name], one.rows, one.median_absolute_error, one.coverage) for name, one in calibration.left_out.items()
    ]
    total = sum(one.rows for one in calibration.left_out.values())
    for title, count, error, coverage in [
        *rows,
        ("all", total, calibration.median_absolute_error, calibration.coverage),
    ]:
        assert f"| {title} | {count} | {100 * error:.1f} % | {100 * coverage:.0f} % |" in text


def test_the_interval(text: str) -> None:
    for half_width in gpu_calibration().half_width.values():
        low, high = 100 * (1 - math.exp(-half_width)), 100 * (math.exp(half_width) - 1)
        assert f"−{low:.0f} % to +{high:.0f} %" in text
    assert f"times {SPREAD:g}, since two models" in text


def test_the_constants(text: str) -> None:
    constants = gpu_calibration().constants
    for capability, share in constants.sustained.items():
        prior = PRIORS[f"sustained.{capability}"]
        assert f"{capability} | {share:.3f} | {prior.value:g} ({prior.spread:g}) |" in text
    assert f"| host, layer with experts | {1000 * constants.host_mixed_layer:.1f} ms |" in text
    assert f"| factor on passes for experts | {constants.dispatch_passes:.2f} |" in text
    assert f"| factor on memory passes | {constants.memory_passes:.2f} |" in text
    assert f"| factor on FP4 products | {constants.fp4_products:.3f} |" in text
    assert f"| share of the all-to-all not hidden | {constants.exposed_all_to_all:.3f} |" in text
    assert f"d / (d + {FIXED['half_dimension']:g})" in text


def test_the_outside_check(text: str) -> None:
    layout = Layout("deepseek-v3", "H800", 2048, "fp8_blockwise", 4096, gbs=15360, mbs=1, pp=16, ep=64)
    hours = forecast_layout(layout)["device_hours_per_trillion_tokens"]
    assert f"{hours / 1000:.0f} K GPU-hours per trillion tokens" in text


def test_published_layouts_just_fit(text: str) -> None:
    """Memory of the rows' layouts over the GPU's: tuned layouts fill their GPUs, none fills it many times over unless
    it shards parameters (Llama 3 70B without any model parallelism)."""
    filled = {}
    for row in rows():
        one = row.setting
        held = memory(one.model, one.training, one.layout, Precision(recipe=one.recipe), one.device)  # type: ignore[arg-type]
        sizes = (one.training.micro_batch_size, one.layout.model_dump_json())
        filled[row.model, one.device.name, one.recipe, *sizes] = held.total / (one.device.memory_gib * GIB)
    fitting = [share for share in filled.values() if share <= 1.15]
    assert f"Of the {len(filled)} different ones in the rows" in text
    assert f"at most 1.15 times the GPU's memory for {len(fitting)}" in text
