"""A model's modules are in the precision that was asked for, or the run stops; diagnostics of a whole model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import run_alone

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

PRELUDE = """
import json, torch
from octavo.cpu.backend import install
install()
from octavo.errors import OctavoError
from octavo.precision.config import Precision
from octavo.experiment.load import load_experiment
from octavo.precision import diagnostics, megatron
from octavo.precision.products import BF16
from octavo.training.assembly import build_chunks, unwrapped
from octavo.training.launch import Process
from octavo.training.process import set_up_process

def configure(model, **options):
    run = load_experiment("quickstart").run(f"{model}-bf16", 1)
    return run.model_copy(update={"precision": Precision(**options)})

set_up_process(configure("dense"), Process(rank=0, local_rank=0, world_size=1, address="", port=None))

def build(model, **options):
    run = configure(model, **options)
    config, chunks, built = build_chunks(run)
    return run, unwrapped(chunks[0]), built

def refused(model, precision, on_gpu=False):
    try:
        return megatron.verify_built(model, precision, on_gpu=on_gpu)
    except OctavoError as error:
        return str(error)
"""


def run(program: str) -> Any:
    """What a program in a Python of its own prints last: `install` is for a whole process."""
    return json.loads(run_alone(PRELUDE + program).splitlines()[-1])


def test_every_layer_of_a_model_is_counted() -> None:
    """3 layers of qkv, output, fc1 and fc2 (or two groups of experts), and the output head in BF16."""
    assert run("""
recipes = ["fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"]
found = {f"{model} {recipe}": build(model, recipe=recipe)[2] for model in ("dense", "moe") for recipe in recipes}
print(json.dumps(found))
""") == {
        f"{model} {recipe}": {"bf16 (FP32 sums of BF16 products)": 1, f"{recipe} (emulated)": 12}
        for model in ("dense", "moe")
        for recipe in ("fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")
    }


def test_options_change_the_count() -> None:
    found = run("""
print(json.dumps([
    build("dense", recipe="bf16")[2],
    build("dense", recipe="fp8_tensorwise", first_last_layers_bf16=True)[2],
    build("dense", recipe="fp8_tensorwise", output_head=True)[2],
    build("dense", recipe="fp8_blockwise", products=["forward"], accumulation="promoted", block_size=64)[2],
]))
""")
    plain = "bf16 (FP32 sums of BF16 products)"
    assert found == [
        {plain: 13},
        {plain: 2 * 4 + 1, "fp8_tensorwise (emulated)": 4},
        {"fp8_tensorwise (emulated)": 13},
        {plain: 1, "fp8_blockwise (emulated, forward alone, sums promoted, blocks of 64)": 12},
    ]


def test_no_partial_sum_of_bf16_products_is_kept_in_bf16() -> None:
    """torch's default lets cuBLAS do so; the recipe is FP32 sums."""
    assert run("print(torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction * 1)") == 0


def test_a_model_that_is_not_as_asked_is_refused() -> None:
    """One layer replaced by a plain one; left in BF16; of another recipe; in another accumulation; a head in BF16."""
    found = run("""
answers = {}
run, model, _ = build("dense", recipe="fp8_blockwise")
proj = model.decoder.layers[1].self_attention.linear_proj
kept = proj.numerics
proj.numerics = BF16
answers["left in BF16"] = refused(model, run.precision)
proj.numerics = kept
answers["other recipe"] = refused(model, Precision(recipe="fp8_mxfp8"))
answers["other sums"] = refused(model, Precision(recipe="fp8_blockwise", accumulation="fp14"))
answers["head"] = refused(model, Precision(recipe="fp8_blockwise", output_head=True))
answers["middle"] = refused(model, Precision(recipe="fp8_blockwise", first_last_layers_bf16=True))
model.decoder.layers[2].mlp.linear_fc2 = torch.nn.Linear(4, 4)
answers["replaced"] = refused(model, run.precision)
print(json.dumps(answers))
""")
    assert all("does not compute in" in answer for answer in found.values()), found
    assert "decoder.layers.1.self_attention.linear_proj" in found["left in BF16"]
    assert "decoder.layers.2.mlp.linear_fc2 was built as Linear" in found["replaced"]
    assert "output_layer" in found["head"]
    assert "decoder.layers.0" in found["middle"]


def test_a_gpu_without_transformer_engine_is_an_error_and_not_bf16() -> None:
    """megatron-core itself enters an empty context and says nothing."""
    found = run("""
from megatron.core import fp8_utils
assert not fp8_utils.HAVE_TE
precision = Precision(recipe="fp8_tensorwise")
answers = [refused(build("dense", recipe="bf16")[1], precision, on_gpu=True)]
try:
    megatron.spec_provider(precision, on_gpu=True)
except OctavoError as error:
    answers.append(str(error))
print(json.dumps(answers))
""")
    assert len(found) == 2
    assert all("Transformer Engine cannot be imported" in answer and "emulate: true" in answer for answer in found)


def test_diagnostics_see_every_kind_and_product_and_change_nothing() -> None:
    found = run("""
answers = {}
tokens = torch.randint(0, 500, (2, 64), generator=torch.Generator().manual_seed(1))
position = torch.arange(64).expand(2, -1)
for recipe in ("fp8_tensorwise", "fp8_blockwise", "bf16"):
    run, model, _ = build("moe", recipe=recipe)
    def losses():
        for parameter in model.parameters():
            parameter.main_grad.zero_() if hasattr(parameter, "main_grad") else None
        loss = model(tokens, position, None, labels=tokens).float().mean()
        loss.backward()
        weight = model.decoder.layers[0].self_attention.linear_qkv.weight
        return loss.item(), weight.main_grad.clone()
    off = losses()
    with diagnostics.diagnose() as seen:
        on = losses()
    assert diagnostics.current() is None
    assert off[0] == on[0] and torch.equal(off[1], on[1])
    answers[recipe] = seen.fields()
print(json.dumps(answers))
""")
    kinds, products = {"input", "weight", "gradient"}, {"forward", "input_gradient", "weight_gradient"}
    assert set(found["bf16"].values()) == {None}
    for recipe in ("fp8_tensorwise", "fp8_blockwise"):
        assert found[recipe]["fp8_underflow"].keys() == found[recipe]["fp8_overflow"].keys() == kinds
        assert set(found[recipe]["fp8_overflow"].values()) == {0.0}  # scales of the tensor itself leave nothing over
        assert found[recipe]["fp8_product_error"].keys() == products
        # e4m3 keeps 4 significant bits: an operand's error is uniform to 1/16 of its binade, 2.6 % of it by root mean
        # square; two operands 3.7 %. e5m2's gradients have twice that.
        assert 0.02 < found[recipe]["fp8_product_error"]["forward"] < 0.045
    assert found["fp8_tensorwise"]["fp8_product_error"]["input_gradient"] > 0.045
    assert found["fp8_blockwise"]["fp8_product_error"]["input_gradient"] < 0.045


def test_the_emulation_does_not_need_the_layers_made_for_cpus() -> None:
    """On a GPU that emulates, norms and attention are Megatron-Core's own; the linear layers are the same."""
    found = run("""
from octavo.training.megatron import build_model, transformer_config
from octavo.training.initial_values import initialise
tokens = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(1))
position = torch.arange(32).expand(2, -1)
mask = torch.ones(1, 1, 32, 32, dtype=torch.bool).triu(1)
answers = []
for model in ("dense", "moe"):
    run = configure(model, recipe="fp8_blockwise", emulate=True)
    config = transformer_config(run, megatron.transformer_config_options(run.precision, on_gpu=True))
    built = build_model(run, config, megatron.spec_provider(run.precision, on_gpu=True))
    megatron.finish_model(built, run.precision, on_gpu=True)
    initialise(built, 1, run.training)
    built.bfloat16()
    answers.append(megatron.verify_built(built, run.precision, on_gpu=True))
    built(tokens, position, mask, labels=tokens).float().mean().backward()
    assert all(one.grad.isfinite().all() for one in built.parameters() if one.grad is not None)
print(json.dumps(answers))
""")
    assert found == [{"bf16 (FP32 sums of BF16 products)": 1, "fp8_blockwise (emulated)": 12}] * 2
