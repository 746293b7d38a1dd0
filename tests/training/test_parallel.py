"""`octavo train` spread over ranks (`test_every_layout.py`: in every layout), and architectures that are options."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)
STEPS = 8


@pytest.mark.parametrize(
    ("name", "cell", "layout"),
    [
        ("pp2", "dense-bf16", {"pipeline": 2}),
        ("ep2_fp8", "moe-fp8_tensorwise", {"data": 2, "expert": 2}),
    ],
)
def test_spread_over_two_ranks_the_losses_stay(
    workshop: Workshop, uninterrupted: Callable[[str], Run], name: str, cell: str, layout: dict[str, int]
) -> None:
    """Sums in another order, and partial sums rounded to BF16: close, not equal."""
    changes = {"parallelism": layout} if cell.startswith("dense") else {"overrides": {"moe": _paths(layout)}}
    workshop.experiment(name, {"training.steps": STEPS, **changes})
    run = workshop.run(cell, name)
    run.train()
    alone = uninterrupted(cell).losses()[:STEPS]
    assert run.losses() == pytest.approx(alone, rel=2e-3)
    assert run.losses()[0] == pytest.approx(alone[0], rel=2e-4)  # initial values do not know of ranks
    assert run.result()["device_count"] == 2
    assert run.precision_built() == uninterrupted(cell).precision_built()  # of all pipeline stages


def _paths(layout: dict[str, int]) -> dict[str, int]:
    return {f"parallelism.{key}": value for key, value in layout.items()}


def test_a_pipeline_stage_may_have_no_layer_in_fp8(workshop: Workshop) -> None:
    """3 layers in stages of 2 and 1, the first and the last in BF16: 4 linear layers each, and the output head."""
    changes = {
        "models.dense.layers": 3,
        "precisions": ["bf16"],
        "ablations": {
            "ends": {
                "description": "first and last layers in BF16",
                "cells": ["dense-bf16"],
                "change": {"precision.recipe": "fp8_tensorwise", "precision.first_last_layers_bf16": True},
            }
        },
    }
    workshop.experiment("ends", {"training.steps": 2, "parallelism": {"pipeline": 2}, **changes})
    run = workshop.run("dense-bf16+ends", "ends")
    run.train()
    assert run.precision_built() == {
        "bf16 (FP32 sums of BF16 products)": 2 * 4 + 1,
        "fp8_tensorwise (emulated)": 4,
    }


def test_two_ranks_killed_and_started_again_equal_uninterrupted(workshop: Workshop) -> None:
    changes = {"overrides": {"moe": {"parallelism.data": 2, "parallelism.expert": 2}}}
    runs = []
    for name in ("ranks", "ranks_killed"):
        workshop.experiment(name, {"training.steps": 60, **changes})
        runs.append(workshop.run("moe-fp8_delayed", name))
    runs[0].train()
    status, _ = runs[1].interrupt(signal.SIGKILL, after_step=22, group=True)
    assert status == -signal.SIGKILL
    runs[1].train()
    assert runs[1].losses() == runs[0].losses()
    assert runs[1].result()["parameters_sha256"] == runs[0].result()["parameters_sha256"]


def test_two_ranks_told_to_stop_save_and_leave(workshop: Workshop) -> None:
    workshop.experiment("ranks_told", {"parallelism.data": 2})
    run = workshop.run("dense-bf16", "ranks_told")
    status, output = run.interrupt(signal.SIGTERM, after_step=3)
    assert status == 75, output
    assert run.attempts()[-1]["exit_reason"] == "signalled"


def test_latent_attention_multi_token_prediction_and_balance_without_auxiliary_loss(workshop: Workshop) -> None:
    """DeepSeek-V3's means (arXiv 2412.19437) together: MLA, MTP, a leading dense layer, sigmoid router with a bias."""
    model: dict[str, Any] = {
        "layers": 2,
        "hidden_size": 32,
        "feed_forward_size": 64,
        "attention": {
            "kind": "mla",
            "heads": 2,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_head_size": 16,
            "qk_rope_head_size": 8,
            "v_head_size": 16,
        },
        "experts": {
            "count": 8,
            "top_k": 2,
            "size": 16,
            "shared_size": 16,
            "leading_dense_layers": 1,
            "router": {"score": "sigmoid", "normalise": True, "balance": "expert_bias"},
        },
        "vocabulary_size": 320,
        "multi_token_prediction_layers": 1,
    }
    workshop.experiment("deepseek", {"models": {"moe": model}, "training.steps": 30})
    run = workshop.run("moe-fp8_blockwise", "deepseek")
    run.train()
    lines = [one for one in run.metrics() if "loss" in one]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    predictions = [one["multi_token_prediction_loss"] for one in lines]
    assert predictions[0] == pytest.approx(math.log(320), abs=0.2)  # before it learned: every token equally likely
    assert predictions[-1] < predictions[0] - 0.5
    assert all("aux_loss" not in one for one in lines)


def test_the_bias_without_auxiliary_loss_survives_a_kill(workshop: Workshop) -> None:
    """The routers' biases are state outside the optimizer."""
    experts = {"count": 4, "top_k": 2, "size": 32, "router": {"score": "sigmoid", "normalise": True}}
    experts["router"] |= {"balance": "expert_bias", "bias_update_rate": 0.05}  # type: ignore[operator]
    runs = []
    for name in ("bias", "bias_killed"):
        workshop.experiment(name, {"models.moe.experts": experts})
        runs.append(workshop.run("moe-bf16", name))
    runs[0].train()
    runs[1].interrupt(signal.SIGKILL, after_step=25)
    runs[1].train()
    assert runs[1].losses() == runs[0].losses()
    assert runs[1].result()["parameters_sha256"] == runs[0].result()["parameters_sha256"]
