"""With Transformer Engine's layers every model is built in every recipe, and what is not as asked is found out.

Runs Transformer Engine's Python package on the meta device: what its kernels compute is not tested here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.precision.recipes import RECIPES, SCALE_VARIABLES

pytest.importorskip("megatron.core")

LINEARS = {
    # Attention has qkv and the output projection; a dense layer fc1 (gate and up) and fc2, experts one group of each.
    "laptop-dense": 3 * (2 + 2),
    "llama-3.1-8b": 32 * (2 + 2),
    "qwen3-30b-a3b": 48 * (2 + 2),
    # MLA: q down, q up, kv down, kv up, output. 3 dense layers; 58 of experts with a shared one; one more of these for
    # the multi-token prediction, which has a projection of its own (arXiv 2412.19437, section 4.2).
    "deepseek-v3": 62 * 5 + 3 * 2 + 59 * (2 + 2) + 1,
}
PREDICTION = 5 + (2 + 2) + 1
"""DeepSeek-V3's multi-token prediction: MLA, experts and the shared one, its projection."""
PARAMETERS = {
    "llama-3.1-8b": 8.03e9,  # its model card
    "qwen3-30b-a3b": 30.5e9,  # arXiv 2505.09388, table 2
    # 671 B, and the prediction's layer without the embedding and head that it shares: 14 B by DeepSeek's README, less
    # 2 x 129280 x 7168 = 1.85 B, which the checkpoint holds twice
    "deepseek-v3": 671e9 + 14e9 - 1.85e9,
}
CASES = [
    *(("laptop-dense", recipe) for recipe in RECIPES),
    *(("llama-3.1-8b", recipe) for recipe in ("bf16", "fp8_delayed")),
    *(("qwen3-30b-a3b", recipe) for recipe in ("bf16", "fp8_mxfp8")),
    *(("deepseek-v3", recipe) for recipe in ("bf16", "fp8_blockwise", "nvfp4")),
]
"""Every recipe and every model. `tests/training/test_gpu_branch.py` trains small ones of each kind in all recipes."""


def construct(
    package: Path, cases: list[tuple[str, dict[str, Any], bool]], *options: str, **environment: str
) -> list[Any]:
    """Build models in a process of their own; the answer for each."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("construct_models.py")), *options],
        input=json.dumps(cases),
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run(package: Path, program: str) -> str:
    """What a program that pretends to have Transformer Engine prints last."""
    path = os.pathsep.join([str(package), str(Path(__file__).parent)])
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(transformer_engine: Path) -> dict[tuple[str, str], Any]:
    answers = construct(transformer_engine, [(model, {"recipe": recipe}, False) for model, recipe in CASES])
    return dict(zip(CASES, answers, strict=True))


@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_every_model_is_built_in_every_recipe(built: dict[tuple[str, str], Any], model: str, recipe: str) -> None:
    """All linear layers are Transformer Engine's in the recipe, and the output head is left in BF16.

    So is, by Megatron-Core, multi-token prediction where the recipe is of four bits.
    """
    left = PREDICTION if (model, recipe) == ("deepseek-v3", "nvfp4") else 0
    assert built[model, recipe].get("error") is None
    assert built[model, recipe]["built"] == {
        f"{recipe} (Transformer Engine)": LINEARS[model] - left,
        "bf16 (Megatron-Core)": 1,
        **({"bf16 (Transformer Engine)": left} if left else {}),
    }


@pytest.mark.parametrize(
    ("recipe", "saved"),
    [
        ("fp8_delayed", "TEDelayedScaling"),  # Megatron-Core's own
        ("fp8_tensorwise", "nothing"),
        ("fp8_blockwise", "nothing"),
        ("fp8_mxfp8", "nothing"),
        ("nvfp4", "nothing"),
        ("bf16", "nothing"),
    ],
)
def test_the_state_that_a_layer_saves_is_read_again(built: Any, recipe: str, saved: str) -> None:
    """It is a pickle that names the recipe's class, in delayed scaling, whose scales are of the steps before. Other
    recipes save none."""
    assert built["laptop-dense", recipe]["read"] == saved


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        ("llama-3.1-8b", ["apply_rope_fusion"]),
        ("qwen3-30b-a3b", ["apply_rope_fusion", "moe_permute_fusion"]),
        ("deepseek-v3", ["moe_permute_fusion"]),
    ],
)
def test_dense_and_mixture_have_the_fused_kernels_that_there_are(built: Any, model: str, fused: list[str]) -> None:
    """Else their speeds would say who is fused, not which architecture is faster. The runs are deterministic: no fused
    cross-entropy."""
    assert built[model, "bf16"]["fused"] == fused


@pytest.mark.parametrize("model", PARAMETERS)
def test_published_models_have_the_parameters_that_were_published(built: Any, model: str) -> None:
    assert built[model, "bf16"]["parameters"] == pytest.approx(PARAMETERS[model], rel=0.01)


@pytest.fixture(scope="module")
def special(transformer_engine: Path) -> dict[str, Any]:
    cases = {
        "first and last": ("llama-3.1-8b", {"recipe": "fp8_tensorwise", "first_last_layers_bf16": True}, False),
        "first and last, prediction": (
            "deepseek-v3",
            {"recipe": "fp8_blockwise", "first_last_layers_bf16": True},
            False,
        ),
        "parameters": ("llama-3.1-8b", {"recipe": "fp8_delayed", "fp8_parameters": True}, False),
        "replaced": ("laptop-dense", {"recipe": "fp8_tensorwise"}, True),
        "odd width": ("laptop-moe", {"recipe": "fp8_tensorwise"}, False),
    }
    return dict(zip(cases, construct(transformer_engine, list(cases.values())), strict=True))


def test_first_and_last_layers_in_bf16_are_counted_as_such(special: dict[str, Any]) -> None:
    assert special["first and last"]["built"] == {
        "fp8_tensorwise (Transformer Engine)": 30 * 4,
        "bf16 (Transformer Engine)": 2 * 4,
        "bf16 (Megatron-Core)": 1,
    }


def test_multi_token_prediction_is_neither_first_nor_last(special: dict[str, Any]) -> None:
    """Megatron-Core enters FP8 around it without a layer's number. The first layer is dense, the last has experts."""
    first, last = 5 + 2, 5 + (2 + 2)
    assert special["first and last, prediction"]["built"] == {
        "fp8_blockwise (Transformer Engine)": LINEARS["deepseek-v3"] - first - last,
        "bf16 (Transformer Engine)": first + last,
        "bf16 (Megatron-Core)": 1,
    }


def test_a_pipeline_stage_in_the_middle_has_neither_first_nor_last_layer(transformer_engine: Path) -> None:
    """Layers 9 to 16 of 32: `decoder.layers.0` is the ninth."""
    case = ("llama-3.1-8b", {"recipe": "fp8_tensorwise", "first_last_layers_bf16": True}, False)
    (answer,) = construct(transformer_engine, [case], "--second-of-four")
    assert answer["built"] == {"fp8_tensorwise (Transformer Engine)": 8 * 4}


def test_a_layer_that_is_not_transformer_engines_is_found(special: dict[str, Any]) -> None:
    """A plain layer in the place of one."""
    assert "decoder.layers.1.self_attention.linear_proj was built as Linear" in special["replaced"]["error"]


def test_sizes_that_fp8_kernels_cannot_take_are_found_before_the_first_step(special: dict[str, Any]) -> None:
    """The laptop's experts are 72 wide; Transformer Engine's FP8 products want multiples of 16."""
    assert "72" in special["odd width"]["error"]
    assert "multiples of 16" in special["odd width"]["error"]


def test_a_recipe_that_the_environment_changed_is_found(transformer_engine: Path) -> None:
    """A variable changes Transformer Engine's block scales, or leaves out the Hadamard transform: other recipes."""
    changed = {
        "fp8_blockwise": "NVTE_FP8_BLOCK_SCALING_FP32_SCALES",
        "fp8_tensorwise": "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES",
        "nvfp4": "NVTE_NVFP4_DISABLE_RHT",
    }
    cases = [("laptop-dense", {"recipe": recipe}, False) for recipe in [*changed, "fp8_mxfp8"]]
    *answers, untouched = construct(transformer_engine, cases, **dict.fromkeys(changed.values(), "1"))
    for variable, answer in zip(changed.values(), answers, strict=True):
        assert f"{variable} makes another recipe" in answer["error"]
    assert "error" not in untouched


def test_formats_and_scales_that_an_experiment_gives_are_built(transformer_engine: Path) -> None:
    """Scales come by a variable of the environment, which `octavo train` sets: without it the run stops."""
    changed = {"recipe": "fp8_blockwise", "formats": {"gradient": "e5m2"}, "scales": "fp32"}
    case, (variable, _) = ("laptop-dense", changed, False), SCALE_VARIABLES["fp8_blockwise"]
    (built,) = construct(transformer_engine, [case], **{variable: "1"})
    assert built["built"] == {
        "fp8_blockwise (Transformer Engine, gradient e5m2, scales FP32)": LINEARS["laptop-dense"],
        "bf16 (Megatron-Core)": 1,
    }
    (refused,) = construct(transformer_engine, [case])
    assert f"{variable} makes another recipe" in refused["error"]
    assert f"set {variable}=1" in refused["error"]


def test_transformer_engine_has_no_weight_gradient_in_bf16(transformer_engine: Path) -> None:
    """Megatron-Core asks for it by `override_linear_precision`, and Transformer Engine 2 takes and forgets it."""
    program = """
import transformer_engine_without_gpu as engine
engine.pretend()
from transformer_engine.common.recipe import DelayedScaling
print(any("override_linear" in name for name in vars(DelayedScaling(override_linear_precision=(False, False, True)))))
"""
    assert run(transformer_engine, program) == "False"


def test_the_table_of_gpus_is_transformer_engines(transformer_engine: Path) -> None:
    """Its own checks, asked with the compute capability faked."""
    program = """
import json
import transformer_engine_without_gpu as engine
engine.pretend()
import transformer_engine.pytorch.quantization as quantization
from transformer_engine.common import recipe
recipes = {
    "fp8_delayed": recipe.DelayedScaling(),
    "fp8_tensorwise": recipe.Float8CurrentScaling(),
    "fp8_blockwise": recipe.Float8BlockScaling(),
    "fp8_mxfp8": recipe.MXFP8BlockScaling(),
    "nvfp4": recipe.NVFP4BlockScaling(),
}
quantization.tex.get_cublasLt_version = lambda: 130000
answers = {}
for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
    quantization.get_device_compute_capability = lambda: capability
    for name, one in recipes.items():
        for known in ("FP8", "MXFP8", "NVFP4", "FP8_BLOCK_SCALING"):
            setattr(quantization, f"_{known}_SUPPORT", None)
        try:
            quantization.check_recipe_support(one)
        except RuntimeError:
            continue
        if name != "nvfp4" or quantization.check_nvfp4_support()[0]:  # which check_recipe_support leaves out
            answers.setdefault(name, []).append("%d.%d" % capability)
print(json.dumps(answers))
"""
    answers = json.loads(run(transformer_engine, program))
    assert answers == {name: list(recipe.capabilities) for name, recipe in RECIPES.items() if recipe.quantised}
