"""`octavo forecast`: the shape that other tools read, what is refused, and checks against runs that no fit has seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.forecast.calibration import Kind, gpu_calibration
from octavo.forecast.layouts import LayoutRequest, forecast_layout
from octavo.forecast.published import published_runs
from octavo.forecast.rows import rows
from octavo.precision.config import RecipeName

QWEN = LayoutRequest("qwen3-30b-a3b", "H100", 16, "fp8_tensorwise", 4096, gbs=1024, mbs=1, ep=16)


def test_the_shape() -> None:
    arguments = "forecast --model qwen3-30b-a3b --gpu H100 --n-gpus 16 --precision fp8_tensorwise --seq-length 4096 "
    arguments += "--gbs 1024 --mbs 1 --tp 1 --pp 1 --cp 1 --vp 1 --ep 16"
    done = CliRunner().invoke(app, [*arguments.split(), "--json"])
    assert done.exit_code == 0
    record = json.loads(done.stdout)
    assert record == forecast_layout(QWEN)
    assert record["schema_version"] == 1
    assert record["interval"] == 0.8
    assert record["low"] < record["tokens_per_second_per_gpu"] < record["high"]
    rate = record["tokens_per_second_per_gpu"]
    assert record["device_hours_per_trillion_tokens"] == pytest.approx(1e12 / rate / 3600)
    assert record["model_tflops_per_gpu"] == pytest.approx(rate * record["flops_per_token"] / 1e12)
    assert sum(record["memory"].values()) == pytest.approx(record["memory_bytes_per_gpu"])
    assert sum(record["breakdown"].values()) == pytest.approx(1024 * 4096 / 16 / rate)
    assert "tokens/s/GPU" in CliRunner().invoke(app, arguments.split()).stdout


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_gpus": 12, "tp": 8}, ["12 devices", "tensor 8"]),
        ({"ep": 32}, ["expert parallelism 32", "16"]),
        ({"ep": 1, "gbs": 1000}, ["16 does not divide gbs", "1000"]),
        ({"n_gpus": 96, "ep": 96, "gbs": 960}, ["96 does not divide the experts: 128"]),
        ({"precision": "fp8_mxfp8"}, ["H100", "fp8_mxfp8", "B200"]),
        ({"model": "qwen"}, ["no model 'qwen'", "qwen3-30b-a3b"]),
        ({"gpu": "H1000"}, ["no device 'h1000'", "h100"]),
        ({"gpu": "cpu"}, ["is no GPU"]),
        ({"pp": 16, "vp": 4, "ep": 1}, ["--pp", "pipeline parallelism 16 (x 4 virtual stages)", "the layers: 48"]),
        ({"tp": 3, "n_gpus": 48, "ep": 16}, ["--tp", "3 does not divide the attention heads"]),
        ({"tp": 8}, ["8 does not divide the key and value heads: 4"]),
        ({"cp": 4, "seq_length": 4100}, ["--cp", "8", "does not divide the sequence: 4100"]),
        ({"vp": 2}, ["--vp", "2 virtual stages without pipeline parallelism"]),
        ({"model": "llama-3.1-8b", "ep": 2}, ["--ep", "a model without experts"]),
    ],
)
def test_what_is_refused(changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OctavoError) as caught:
        forecast_layout(replace(QWEN, **changed))
    for word in words:
        assert word in str(caught.value)


def test_every_published_layout_can_be_asked_for() -> None:
    """Stages made by hand included: DeepSeek-V3's 61 layers on 2 stages of 8 chunks."""
    for row in {row.key: row for row in rows()}.values():
        one, layout, training = row.setting, row.setting.layout, row.setting.training
        asked = LayoutRequest(
            row.model, one.device.name, layout.world_size, one.precision.recipe, training.sequence_length,
            training.global_batch_size, training.micro_batch_size, layout.tensor, layout.pipeline, layout.context,
            layout.virtual_pipeline, layout.expert,
        )  # fmt: skip
        assert forecast_layout(asked)["tokens_per_second_per_gpu"] > 0


def test_an_unknown_precision_is_refused_with_those_there() -> None:
    arguments = "forecast --model qwen3-30b-a3b --gpu H100 --n-gpus 8 --precision fp8 --seq-length 4096 --gbs 8"
    done = CliRunner().invoke(app, arguments.split())
    assert isinstance(done.exception, OctavoError)
    assert "fp8_blockwise" in str(done.exception)


def test_deepseek_v3_as_deepseek_trained_it() -> None:
    """2,048 H800, 16 pipeline stages, 64 expert-parallel ranks (arXiv 2412.19437, section 3.2): 180 K hours per
    trillion tokens as published, by another framework on GPUs that no row of the fit is of (rows of the model are)."""
    record = forecast_layout(
        LayoutRequest("deepseek-v3", "H800", 2048, "fp8_blockwise", 4096, gbs=15360, mbs=1, pp=16, ep=64)
    )
    published = published_runs()["deepseek-v3"].hours_per_trillion_tokens
    assert published is not None
    rate = 1e12 / published / 3600
    assert record["low"] < rate < record["high"]
    assert record["device_hours_per_trillion_tokens"] == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize(
    ("gpu", "precision", "words"),
    [
        ("H200", "fp8_tensorwise", "no row is of H200 in FP8"),
        ("A100", "bf16", "no row is of A100 in BF16"),
        ("GB200", "nvfp4", "NVFP4's rows are of two models"),
    ],
)
def test_what_no_row_is_of_has_a_wider_interval(gpu: str, precision: RecipeName, words: str) -> None:
    """1.5 times as wide in its logarithm."""
    seen, unseen = forecast_layout(QWEN), forecast_layout(replace(QWEN, gpu=gpu, precision=precision))
    spread = [math.log(one["high"] / one["low"]) for one in (seen, unseen)]
    assert spread[1] == pytest.approx(1.5 * spread[0])
    assert words in unseen["basis"]
    assert unseen["median_absolute_error"] is None


@pytest.mark.parametrize(
    ("model", "ep", "kind", "words"),
    [("qwen3-30b-a3b", 16, "experts", "mixtures of experts"), ("llama-3.1-8b", 1, "dense", "dense models")],
)
def test_the_error_is_that_of_the_models_kind(model: str, ep: int, kind: Kind, words: str) -> None:
    error = gpu_calibration().kinds[kind].median_absolute_error
    record = forecast_layout(replace(QWEN, model=model, ep=ep))
    assert record["median_absolute_error"] == error
    assert f"on {words} left out of the fit the median absolute error is {error:.0%}" in record["basis"]


def test_a_forecast_names_its_release() -> None:
    """The release that none is named for, and one whose recipes launch whole steps of mixtures in MXFP8."""
    one = replace(QWEN, gpu="GB200", precision="fp8_mxfp8", n_gpus=8, ep=8, mbs=4, gbs=512)
    plain, late = forecast_layout(one), forecast_layout(replace(one, release="26.08"))
    assert "NVIDIA's release 26.04.01, without whole steps as CUDA graphs" in plain["basis"]
    assert "NVIDIA's release 26.08, whole steps as CUDA graphs" in late["basis"]
    assert (plain["whole_step_graphs"], late["whole_step_graphs"]) == (False, True)
    assert late["tokens_per_second_per_gpu"] > 1.3 * plain["tokens_per_second_per_gpu"]
    with pytest.raises(OctavoError, match="no published row is of release"):
        forecast_layout(replace(one, release="27.01"))


def test_fp8_may_be_slower_than_bf16() -> None:
    """A mixture of 16 B with few tokens a GPU: its experts' operands are quantised one by one."""
    small = LayoutRequest("deepseek-v2-lite", "B200", 8, "bf16", 1024, gbs=64, mbs=1, ep=8)
    rates = [
        forecast_layout(replace(small, precision=one))["tokens_per_second_per_gpu"] for one in ("bf16", "fp8_mxfp8")
    ]
    assert rates[1] < rates[0]


def test_a_model_unlike_those_of_the_fit_has_a_wider_interval() -> None:
    """The laptop's mixture, hidden size 128, on H100: 1.5 times as wide."""
    far = forecast_layout(replace(QWEN, model="laptop-moe", ep=4, n_gpus=4, gbs=64))
    near = forecast_layout(QWEN)
    widths = [math.log(one["high"] / one["low"]) for one in (near, far)]
    assert widths[1] == pytest.approx(1.5 * widths[0])
    assert "no model of its kind in the fit is within a factor of 2" in far["basis"]


def test_what_no_row_tells_apart_is_said() -> None:
    """Recipes of one width differ in nothing."""
    basis = forecast_layout(QWEN)["basis"]
    assert "recipes of FP8 are forecast to be equally fast" in basis
    rates = {forecast_layout(replace(QWEN, precision=one))["low"] for one in ("fp8_tensorwise", "fp8_delayed")}
    assert len(rates) == 1


def test_beside_a_forecast_stands_what_was_published_for_its_model_gpu_and_recipe() -> None:
    """configs/published/megatron_bridge_throughput.csv: 26.08, DeepSeekV3 on 256 GB200 in MXFP8: 4,912 and 1,276."""
    asked = LayoutRequest("deepseek-v3", "gb200", 256, "fp8_mxfp8", 4096, 4096, 1, 1, 4, 1, 4, 64)
    said = forecast_layout(asked)["published"]
    assert said.startswith("4,912 tokens/s per GPU, 1,276 model TFLOP/s (256 GPUs, 4,096 tokens a sequence, ")
    assert "load forced to be equal; NVIDIA 26.08" in said


def test_where_nothing_was_published_nothing_is_said() -> None:
    asked = LayoutRequest("deepseek-v3", "h200", 256, "bf16", 4096, 4096, 1, 1, 4, 1, 4, 64)
    assert forecast_layout(asked)["published"] is None
