"""docs/forecast.md prints the numbers that the code makes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.fitting import FIXED, PRIORS, SPREAD, fit, rows
from octavo.forecast.gpu import step_parts
from octavo.forecast.layouts import LayoutRequest, forecast_layout
from octavo.forecast.memory import GIB, memory
from octavo.forecast.setting import Setting, plain_layout, plain_training, read_device
from octavo.forecast.steps import UNSEEN
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision

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
    lines = [(TITLES[name], one) for name, one in calibration.left_out.items()]
    for title, one in [
        *lines,
        ("all dense", calibration.kinds["dense"]),
        ("all mixtures", calibration.kinds["experts"]),
    ]:
        error, coverage = f"{100 * one.median_absolute_error:.1f} %", f"{100 * one.coverage:.0f} %"
        assert f"| {title} | {one.rows} | {one.settings} | {error} | {coverage} |" in text


def test_the_sensitivity(text: str) -> None:
    names = {
        "host_mixed_layer": "host, layer with experts",
        "host_expert": "host, per expert",
        "fp4_products": "factor on FP4 products",
    }
    moves = {0.5: "halved", 2.0: "doubled"}
    assert len(gpu_calibration().sensitivity) == 6
    for one in gpu_calibration().sensitivity:
        errors = " | ".join(f"{100 * error:.1f} %" for error in (one.dense, one.experts, one.nvfp4))
        assert f"| {names[one.prior]}, {moves[one.factor]} | {errors} |" in text


def test_the_interval(text: str) -> None:
    for one in gpu_calibration().kinds.values():
        low, high = 100 * (1 - math.exp(-one.half_width)), 100 * (math.exp(one.half_width) - 1)
        assert f"−{low:.0f} % to +{high:.0f} %" in text
    assert f"times {SPREAD:g}, since two models" in text
    assert f"{UNSEEN:g} times as wide" in text


def test_the_constants(text: str) -> None:
    constants = gpu_calibration().constants
    for capability, share in constants.sustained.items():
        prior = PRIORS[f"sustained.{capability}"]
        assert f"{capability} | {share:.3f} | {prior.value:g} ({prior.spread:g}) |" in text
    assert f"| host, layer with experts | {1000 * constants.host_mixed_layer:.1f} ms |" in text
    assert f"| host, per expert on the device | {1000 * constants.host_expert:.2f} ms |" in text
    assert f"| factor on passes for experts | {constants.dispatch_passes:.2f} |" in text
    assert f"| factor on memory passes | {constants.memory_passes:.2f} |" in text
    assert f"| factor on FP4 products | {constants.fp4_products:.3f} |" in text
    assert f"| share of the all-to-all not hidden | {constants.exposed_all_to_all:.3f} |" in text
    assert f"d / (d + {FIXED['half_dimension']:g})" in text


def test_deepseek_v3_on_h800(text: str) -> None:
    """With its own rows in the fit, and left out of it."""
    layout = LayoutRequest("deepseek-v3", "H800", 2048, "fp8_blockwise", 4096, gbs=15360, mbs=1, pp=16, ep=64)
    hours = forecast_layout(layout)["device_hours_per_trillion_tokens"]
    assert f"{hours / 1000:.0f} K GPU-hours per trillion tokens" in text
    model, device = read_architecture("deepseek-v3"), read_device("h800")
    training, split = plain_training(15360, 1, 4096), plain_layout(2048, 1, 16, 1, 1, 64)
    setting = Setting(model, training, split, Precision(recipe="fp8_blockwise"), device, device.link_domain)
    seconds = sum(step_parts(setting, fit([row for row in rows() if row.model != "deepseek-v3"])).values())
    unseen = 1e12 / training.tokens_per_step * seconds * 2048 / 3600
    assert f"{unseen / 1000:.0f} K by a fit without DeepSeek-V3's rows" in text


def test_published_layouts_just_fit(text: str) -> None:
    """Memory of the rows' layouts over the GPU's: tuned layouts fill their GPUs, none fills it many times over unless
    it shards parameters (Llama 3 70B without any model parallelism)."""
    filled = {}
    for row in rows():
        one = row.setting
        held = memory(one.model, one.training, one.layout, one.precision, one.device)
        sizes = (one.training.micro_batch_size, one.layout.model_dump_json())
        filled[row.model, one.device.name, one.precision.recipe, *sizes] = held.total / (one.device.memory_gib * GIB)
    fitting = [share for share in filled.values() if share <= 1.15]
    assert f"Of the {len(filled)} different ones in the rows" in text
    assert f"at most 1.15 times the GPU's memory for {len(fitting)}" in text
