"""docs/forecast.md prints the numbers that the code makes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest

from octavo.experiment.load import load_experiment
from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.fitting import FIXED, PRIORS, fit
from octavo.forecast.gpu import step_parts
from octavo.forecast.layouts import LayoutRequest, forecast_layout
from octavo.forecast.memory import GIB, memory
from octavo.forecast.rows import rows
from octavo.forecast.setting import Setting, Software, plain_layout, plain_training, read_device
from octavo.forecast.steps import UNSEEN, forecast_step
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision

TITLES = {
    "llama-3.1-8b": "Llama 3 8B",
    "llama-3.1-70b": "Llama 3 70B",
    "deepseek-v3": "DeepSeek-V3",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
    "gpt-oss-120b": "gpt-oss-120b",
    "llama-3.1-405b": "Llama 3.1 405B",
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


def test_the_interval(text: str) -> None:
    for one in gpu_calibration().kinds.values():
        low, high = 100 * (1 - math.exp(-one.half_width)), 100 * (math.exp(one.half_width) - 1)
        assert f"−{low:.0f} % to +{high:.0f} %" in text
    assert f"{UNSEEN:g} times as wide" in text


def test_what_intervals_hold_of_models_drawn_at_random(text: str) -> None:
    kinds = gpu_calibration().kinds
    dense, experts = (100 * fmean(kinds[kind].held.values()) for kind in ("dense", "experts"))
    assert f"they hold {dense:.0f} % (dense) and {experts:.0f} % (mixtures)" in text
    assert kinds["experts"].held["grok-1"] == 0
    assert f"{100 * kinds['dense'].held['nemotron-4-340b']:.0f} % of Nemotron-4 340B's six" in text


def test_the_pairs(text: str) -> None:
    for pair in gpu_calibration().pairs:
        ratios = f"{pair.published:.2f} | {pair.forecast:.2f}"
        assert f"| {pair.model} | {pair.devices} {pair.device} | {ratios} |" in text


def test_the_constants(text: str) -> None:
    constants = gpu_calibration().constants
    for capability, share in constants.sustained.items():
        prior = PRIORS[f"sustained.{capability}"]
        assert f"{capability} | {share:.3g} | {prior.value:g} ({prior.spread:g}) |" in text
    for name in ("fp8_products", "fp8_experts", "unfused_experts", "host_mixed_layer"):
        prior = PRIORS[name]
        assert f"| {getattr(constants, name):.3g} | {prior.value:g} ({prior.spread:g}) |" in text
    assert f"d / (d + {FIXED['half_dimension']:g})" in text


def test_deepseek_v3_on_h800(text: str) -> None:
    """With its own rows in the fit, and left out of it."""
    layout = LayoutRequest("deepseek-v3", "H800", 2048, "fp8_blockwise", 4096, gbs=15360, mbs=1, pp=16, ep=64)
    hours = forecast_layout(layout)["device_hours_per_trillion_tokens"]
    assert f"{hours / 1000:.0f} K GPU-hours per trillion tokens" in text
    model, device = read_architecture("deepseek-v3"), read_device("h800")
    training, split = plain_training(15360, 1, 4096), plain_layout(2048, 1, 16, 1, 1, 64)
    setting = Setting(
        model,
        training,
        split,
        Precision(recipe="fp8_blockwise"),
        device,
        device.link_domain,
        Software(gradient_bytes=2),
    )
    seconds = sum(step_parts(setting, fit([row for row in rows() if row.model != "deepseek-v3"])).values())
    unseen = 1e12 / training.tokens_per_step * seconds * 2048 / 3600
    assert f"{unseen / 1000:.0f} K by a fit without DeepSeek-V3's rows" in text


def test_the_end_of_deepseek_v3s_step(text: str) -> None:
    """As planned, and with all messages waited for."""
    experiment = load_experiment("deepseek-v3")
    cell, cluster, device = experiment.cells["moe-fp8_blockwise"], experiment.cluster, experiment.device
    setting = Setting(
        cell.model, cell.training, cell.parallelism, cell.precision, device, device.link_domain,
        Software.of(cell.training),
    )  # fmt: skip
    planned = forecast_step(cell, cluster, device).breakdown
    shown = step_parts(setting, gpu_calibration().constants.model_copy(update={"exposed_gradients": 1.0}))
    assert f"the end of a step is {planned['data parallel'] + planned['optimizer']:.2f} s" in text
    assert f"parameters take {shown['data parallel']:.2f} s over the network" in text
    assert f"hides {shown['data parallel'] - planned['data parallel']:.2f} s of them" in text
    assert f"With nothing hidden it would be {shown['data parallel'] + shown['optimizer']:.2f} s" in text


def test_published_layouts_fit(text: str) -> None:
    """Of the layouts that ran, with what their recipes recompute and shard, 31 of 33 need at most 1.15 of the GPU."""
    filled: dict[str, float] = {}
    for row in (row for row in rows() if row.counted):
        one = row.setting
        held = memory(one.model, one.training, one.layout, one.precision, one.device, one.software)
        key = f"{row.model} {one.device.name} {one.layout}"
        filled[key] = max(filled.get(key, 0.0), held.total / (one.device.memory_gib * GIB))
    fitting = sum(share <= 1.15 for share in filled.values())
    assert fitting / len(filled) >= 31 / 33
    assert f"Of the {len(filled)} different layouts in the rows" in text
    assert f"times the GPU's memory for {fitting}." in text
