"""`octavo forecast`: the shape that other tools read, what is refused, and checks against runs that no fit has seen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.forecast.layouts import Layout, forecast_layout
from octavo.forecast.published import published_runs

QWEN = Layout("qwen3-30b-a3b", "H100", 16, "fp8_tensorwise", 4096, gbs=1024, mbs=1, ep=16)


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
        ({"ep": 1, "gbs": 1000}, ["does not divide gbs", "1000"]),
        ({"n_gpus": 96, "ep": 96, "gbs": 960}, ["96 does not divide the experts: 128"]),
        ({"precision": "fp8_mxfp8"}, ["H100", "fp8_mxfp8", "B200"]),
        ({"model": "qwen"}, ["no model 'qwen'", "qwen3-30b-a3b"]),
        ({"gpu": "H1000"}, ["no device 'h1000'", "h100"]),
        ({"gpu": "cpu"}, ["is no GPU"]),
        ({"pp": 16, "vp": 4, "ep": 1}, ["16 x 4 pipeline stages", "48 layers"]),
        ({"tp": 3, "n_gpus": 48, "ep": 16}, ["3 does not divide the attention heads"]),
    ],
)
def test_what_is_refused(changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OctavoError) as caught:
        forecast_layout(replace(QWEN, **changed))
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_precision_is_refused_with_those_there() -> None:
    arguments = "forecast --model qwen3-30b-a3b --gpu H100 --n-gpus 8 --precision fp8 --seq-length 4096 --gbs 8"
    done = CliRunner().invoke(app, arguments.split())
    assert isinstance(done.exception, OctavoError)
    assert "fp8_blockwise" in str(done.exception)


def test_deepseek_v3_as_deepseek_trained_it() -> None:
    """2,048 H800, 16 pipeline stages, 64 expert-parallel ranks (arXiv 2412.19437, section 3.2): 180 K hours per
    trillion tokens as published, by another framework on GPUs that no row of the fit is of."""
    record = forecast_layout(Layout("deepseek-v3", "H800", 2048, "fp8_blockwise", 4096, gbs=15360, mbs=1, pp=16, ep=64))
    published = published_runs()["deepseek-v3"].hours_per_trillion_tokens
    assert published is not None
    rate = 1e12 / published / 3600
    assert record["low"] < rate < record["high"]
    assert record["device_hours_per_trillion_tokens"] == pytest.approx(published, rel=0.15)


def test_a_gpu_without_rows_has_a_wider_interval() -> None:
    layout = replace(QWEN, precision="bf16")
    seen, unseen = forecast_layout(layout), forecast_layout(replace(layout, gpu="A100"))
    assert unseen["high"] / unseen["low"] > seen["high"] / seen["low"]
    assert "no row is of A100" in unseen["basis"]
