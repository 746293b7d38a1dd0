"""The step-time model: limits that can be worked out by hand, and directions that must be right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.forecast import gpu
from octavo.forecast.calibration import Constants, gpu_calibration
from octavo.forecast.gpu import step_parts
from octavo.forecast.setting import Setting, Software, plain_layout, plain_training, read_device
from octavo.models.architecture import Architecture
from octavo.models.catalogue import model_names, read_architecture, with_vocabulary
from octavo.models.flops import flops_per_token
from octavo.precision.config import Precision

IDEAL = Constants(
    sustained={"9.0": 1.0},
    fp8_products=1.0,
    fp8_experts=1.0,
    fp4_products=1.0,
    half_dimension=1e-9,
    attention=1.0,
    memory_passes=1e-12,
    dispatch_passes=1e-12,
    exposed_all_to_all=1e-12,
    exposed_sums=1e-12,
    exposed_gradients=1e-12,
    host_dense_layer=1e-12,
    host_mixed_layer=1e-12,
    host_expert=1e-12,
    host_quantising=1.0,
    host_overlap=2.0,
    graphs_host=0.1,
    graphs_experts=1.0,
    unfused_experts=1e-12,
    early_experts=1.0,
    releases={},
)
"""A device that computes at its peak and moves bytes for nothing."""


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, exponentials and the end of a step take no time either."""
    monkeypatch.setattr(gpu, "REACHED_BANDWIDTH", 1e9)
    monkeypatch.setattr(gpu, "EXPONENTIALS", {"9.0": 1e30})
    monkeypatch.setattr(gpu, "OPTIMIZER_SECONDS", 0.0)


def setting(name: str = "llama-3.1-8b", **changed: Any) -> Setting:
    sizes: dict[str, Any] = {
        "n": 8, "gbs": 64, "mbs": 1, "seq": 4096, "tp": 1, "pp": 1, "cp": 1, "vp": 1, "ep": 1, "gpu": "h100",
        "recipe": "bf16", **changed,
    }  # fmt: skip
    device = read_device(sizes["gpu"])
    return Setting(
        read_architecture(name),
        plain_training(sizes["gbs"], sizes["mbs"], sizes["seq"]),
        plain_layout(sizes["n"], sizes["tp"], sizes["pp"], sizes["cp"], sizes["vp"], sizes["ep"]),
        Precision(recipe=sizes["recipe"]),
        device,
        device.link_domain,
    )


def seconds(one: Setting, **constants: float) -> float:
    return sum(step_parts(one, IDEAL.model_copy(update=constants)).values())


@pytest.mark.usefixtures("ideal")
@pytest.mark.parametrize(
    ("name", "ep"), [("llama-3.1-8b", 1), ("mixtral-8x7b", 8), ("deepseek-v2-lite", 8), ("qwen3-30b-a3b", 8),
     ("gpt-oss-120b", 8)],
)  # fmt: skip
def test_an_ideal_device_needs_the_model_flops_and_no_more(name: str, ep: int) -> None:
    """Tokens per device x FLOPs per token / peak: every product of the model is in the forecast once. Routers, which
    are left out, are under 1 % of them; the optimizer's pass is measured apart."""
    one = setting(name, ep=ep)
    parts = step_parts(one, IDEAL)
    expected = 64 * 4096 / 8 * flops_per_token(one.model, 4096) / 989e12
    assert sum(parts.values()) - parts["optimizer"] == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("ideal")
def test_layers_with_and_without_a_window() -> None:
    """gpt-oss-120b at sequences of 32,768: 18 layers see 128 - 128^2 / 65,536 tokens, 18 see 16,384 on average; per
    token seen, scores and values of 64 heads of 64 take 4 x 64 x 64 FLOPs, three passes, 8 sequences a device."""
    parts = step_parts(setting("gpt-oss-120b", seq=32768, ep=8), IDEAL)
    seen = 18 * (128 - 128**2 / 65536) + 18 * 16384
    assert parts["attention"] == pytest.approx(8 * 32768 * 3 * seen * 4 * 64 * 64 / 989e12)


@pytest.mark.parametrize("seq", [2048, 131072])
@pytest.mark.parametrize(("gpu", "recipe"), [("h100", "bf16"), ("h100", "fp8_tensorwise"), ("gb300", "nvfp4")])
@pytest.mark.parametrize("name", model_names())
def test_no_forecast_is_faster_than_the_device(name: str, gpu: str, recipe: str, seq: int) -> None:
    """Model TFLOP/s stay below the peak of the data sheet in the recipe's own precision."""
    one = setting(name, gpu=gpu, recipe=recipe, seq=seq, n=1, gbs=4)
    model = with_vocabulary(one.model)
    seconds = sum(step_parts(replace(one, model=model), gpu_calibration().constants).values())
    kind = {"bf16": "bf16", "nvfp4": "fp4"}.get(recipe, "fp8")
    assert 4 * seq * flops_per_token(model, seq) / seconds < one.device.peak_tflops[kind] * 1e12  # type: ignore[index]


def test_tensor_parallelism_halves_the_products() -> None:
    whole, split = (step_parts(setting(tp=tp, gbs=8, n=2), IDEAL) for tp in (1, 2))
    # two devices with 4 sequences each, or 8 sequences with half of the products each
    for part in ("linear layers", "feed-forward", "attention", "output head"):
        assert split[part] == pytest.approx(whole[part])


@pytest.mark.usefixtures("ideal")
def test_small_products_are_slow() -> None:
    """At twice the half dimension in all three dimensions a product reaches (2/3)^3 of its rate."""
    model = Architecture.model_validate(
        {
            "name": "cube",
            "source": "this test",
            "layers": 1,
            "hidden_size": 256,
            "feed_forward_size": 128,
            "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_size": 64},
            "vocabulary_size": 256,
        }
    )
    one = setting(n=1, gbs=1, seq=256)
    cube = Setting(model, one.training, one.layout, Precision(), one.device, 8)
    slow = step_parts(cube, IDEAL.model_copy(update={"half_dimension": 128.0}))["output head"]
    fast = step_parts(cube, IDEAL)["output head"]
    assert slow / fast == pytest.approx((3 / 2) ** 3, rel=1e-3)


def test_the_bubble_of_a_pipeline() -> None:
    """(p - 1) / (v x micro-batches) of the time (arXiv 2104.04473, section 2.2)."""
    parts = step_parts(setting("llama-3.1-70b", n=8, pp=8, gbs=16, vp=5), IDEAL)
    rest = sum(parts.values()) - parts["pipeline bubble"] - parts["optimizer"] - parts["data parallel"]
    assert parts["pipeline bubble"] / rest == pytest.approx(7 / (5 * 16))


def test_stages_pass_hidden_states_on() -> None:
    """16 micro-batches; on 8 stages of 5 chunks 39 boundaries: 2 x 39 / 8 sends of 4,096 tokens x 8,192 x 2 bytes at
    450 GB/s; on two nodes at 50 GB/s."""
    near, far = ({"pp": 8, "vp": 5, "gbs": 16 * n // 8, "n": n} for n in (8, 16))
    constants = IDEAL.model_copy(update={"exposed_sums": 1.0})
    sent = 16 * 2 * 39 / 8 * 4096 * 8192 * 2
    for sizes, rate in ((near, 450e9), (far, 50e9)):
        assert step_parts(setting("llama-3.1-70b", **sizes), constants)["point-to-point"] == pytest.approx(sent / rate)
    assert step_parts(setting("llama-3.1-70b"), constants)["point-to-point"] == 0


def test_parameters_that_are_not_gathered_ahead_are_waited_for() -> None:
    """Llama 3.1 8B on 8 GPUs: all messages fit beside a micro-batch of 8 sequences. Else 2 bytes for each of 8.03e9
    parameters, 7/8 of them from others at 450 GB/s, are waited for; without a distributed optimizer none is gathered.
    """
    ahead = setting(mbs=8)
    waits = replace(ahead, software=Software(gathers_ahead=False))
    assert step_parts(ahead, IDEAL)["data parallel"] == pytest.approx(0, abs=1e-9)
    assert step_parts(waits, IDEAL)["data parallel"] == pytest.approx(2 * 8.03e9 * 7 / 8 / 450e9, rel=1e-3)
    training = waits.training.model_copy(
        update={"optimizer": waits.training.optimizer.model_copy(update={"distributed": False})}
    )
    assert step_parts(replace(waits, training=training), IDEAL)["data parallel"] == pytest.approx(0, abs=1e-9)


def test_gradients_without_a_distributed_optimizer_are_sent_twice() -> None:
    """An all-reduce sends what a reduce-scatter and an all-gather do: 2 x 4 bytes, where the distributed optimizer
    sends 4 of a gradient and 2 of a parameter. All of it shown."""
    one, shown = setting(mbs=8), IDEAL.model_copy(update={"exposed_gradients": 1.0})
    optimizer = one.training.optimizer.model_copy(update={"distributed": False})
    plain = replace(one, training=one.training.model_copy(update={"optimizer": optimizer}))
    sent, both = (step_parts(each, shown)["data parallel"] for each in (one, plain))
    assert both / sent == pytest.approx(8 / 6)


def test_the_end_of_a_step_is_that_of_the_fullest_stage() -> None:
    """Llama 3.1 70B on 8 stages of two ranks: the ends hold ten layers (855.6 M parameters each) and a matrix of
    128,256 x 8,192; half of 42 bytes for each, at 0.8 x 3,350 GB/s, and 0.02 s."""
    parts = step_parts(setting("llama-3.1-70b", n=16, pp=8, gbs=16), IDEAL)
    held = 10 * 855.6e6 + 128_256 * 8192
    assert parts["optimizer"] == pytest.approx(held / 2 * 42 / (0.8 * 3350e9) + 0.02, rel=1e-3)


def test_a_layer_waits_for_the_host() -> None:
    """32 layers x 8 micro-batches x 0.1 s, far above what the device needs."""
    assert seconds(setting(), host_dense_layer=0.1) == pytest.approx(32 * 8 * 0.1, rel=0.02)


def test_experts_are_launched_one_by_one() -> None:
    """48 layers x 8 micro-batches x 128 / 8 experts x 0.01 s, far above what the device needs."""
    assert seconds(setting("qwen3-30b-a3b", ep=8), host_expert=0.01) == pytest.approx(48 * 8 * 16 * 0.01, rel=0.02)


@pytest.mark.usefixtures("ideal")
def test_first_and_last_layers_in_bf16_take_bf16s_time() -> None:
    """2 of 32 layers at half of the rate: 34 thirty-seconds of FP8's time."""
    one = setting(recipe="fp8_tensorwise")
    ends = replace(one, precision=Precision(recipe="fp8_tensorwise", first_last_layers_bf16=True))
    for part in ("linear layers", "feed-forward"):
        assert step_parts(ends, IDEAL)[part] / step_parts(one, IDEAL)[part] == pytest.approx(34 / 32, rel=1e-3)


@pytest.mark.usefixtures("ideal")
def test_a_weight_gradient_in_bf16_takes_bf16s_time() -> None:
    """One of three passes at half of the rate: 4 / 3 of the time."""
    one = setting(recipe="fp8_delayed")
    some = replace(one, precision=Precision(recipe="fp8_delayed", products=["forward", "input_gradient"]))
    assert step_parts(some, IDEAL)["feed-forward"] / step_parts(one, IDEAL)["feed-forward"] == pytest.approx(
        4 / 3, rel=1e-3
    )


def test_an_all_to_all_within_a_node_takes_the_link() -> None:
    """8 micro-batches x 48 layers x 4,096 tokens x 4 x 8 x 2,048 x 2 bytes x 7/8, at 450 GB/s."""
    parts = step_parts(setting("qwen3-30b-a3b", ep=8), IDEAL.model_copy(update={"exposed_all_to_all": 1.0}))
    assert parts["all-to-all"] == pytest.approx(8 * 48 * 4096 * 4 * 8 * 2048 * 2 * 7 / 8 / 450e9)


def test_an_all_to_all_across_nodes_takes_the_network() -> None:
    """Two nodes: half of the copies' destinations; a token goes over once if any of its 8 experts is there."""
    parts = step_parts(setting("qwen3-30b-a3b", n=16, ep=16), IDEAL.model_copy(update={"exposed_all_to_all": 1.0}))
    sent = 4 * 48 * 4096 * 4 * 8 * 2048 * 2 * 15 / 16
    once = 2 * (1 - 0.5**8) / 8
    assert parts["all-to-all"] == pytest.approx(sent * 0.5 * once / 50e9)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ({}, {"recipe": "fp8_tensorwise"}),
        ({"gpu": "h100"}, {"gpu": "h200"}),
        ({"gpu": "a100"}, {"gpu": "h100"}),
        ({"gpu": "b200", "recipe": "fp8_mxfp8"}, {"gpu": "gb300", "recipe": "fp8_mxfp8"}),
        ({"pp": 8, "gbs": 8}, {"pp": 8, "gbs": 64}),
    ],
)
def test_what_must_be_faster(slower: dict[str, Any], faster: dict[str, Any]) -> None:
    def tokens_per_second(changed: dict[str, Any]) -> float:
        one = setting(**changed)
        return one.training.tokens_per_step / sum(step_parts(one, gpu_calibration().constants).values())

    assert tokens_per_second(slower) < tokens_per_second(faster)
