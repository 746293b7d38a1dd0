"""The three products of a linear layer, against the papers' definitions computed slowly in FP64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("megatron.core")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from octavo.cpu import library
from octavo.cpu import products as cpu_products
from octavo.cpu.formats import Format
from octavo.cpu.products import multiply_causal
from octavo.precision import products
from octavo.precision.accumulators import short_accumulation
from octavo.precision.config import Precision
from octavo.precision.history import AmaxHistory
from octavo.precision.products import BF16, Numerics, Operand, Quantiser, grouped_linear, linear
from octavo.precision.recipes import RECIPES
from octavo.records import Product, TensorKind

RECIPES_EMULATED = ["fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"]
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
KINDS: dict[Product, tuple[TensorKind, TensorKind]] = {
    "forward": ("input", "weight"),
    "input_gradient": ("gradient", "weight"),
    "weight_gradient": ("gradient", "input"),
}
COUNTS = [100, 0, 37, 163]
"""Tokens by expert: one has none."""


@pytest.mark.parametrize("counts", [[5, 4], [5, 6], [-1, 11]])
def test_groups_that_are_not_the_tokens_are_an_error(counts: list[int]) -> None:
    """The compiled products take the sizes of groups for the size of memory."""
    weight = Parameter(torch.zeros(2, 8, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="are not the 10 tokens"):
        grouped_linear(torch.zeros(10, 8, dtype=torch.bfloat16), weight, None, counts, BF16)


def cast(values: Tensor, scale: float, format: Format) -> Tensor:
    return (values.float() * scale).to(TORCH[format.name]).double() / scale


def along_sum(recipe: str, kind: TensorKind, values: Tensor, *, size: int | None = None) -> Tensor:
    """A matrix rounded for a product that sums over its columns, in FP64, from the definition of each recipe.

    tensorwise: one scale, largest / amax. blockwise (arXiv 2412.19437, figure 7): 1x128 tiles along the sum for
    activations and gradients, 128x128 for weights. mxfp8 (OCP MX): 32 along the sum. Powers of two in both.
    """
    format = RECIPES[recipe].formats[kind]  # type: ignore[index]
    if recipe == "fp8_tensorwise":
        amax = values.abs().max().item() if values.numel() else 0.0
        return cast(values, torch.tensor(format.largest / amax, dtype=torch.float32).item() if amax else 1.0, format)
    along = size or (128 if recipe == "fp8_blockwise" else 32)
    across = along if kind == "weight" and recipe == "fp8_blockwise" else 1
    out = torch.zeros(values.shape, dtype=torch.float64)
    for top in range(0, values.shape[0], across):
        for left in range(0, values.shape[1], along):
            part = values[top : top + across, left : left + along]
            if amax := part.abs().max().item():
                scale = 2.0 ** math.floor(math.log2(format.largest / amax))
                out[top : top + across, left : left + along] = cast(part, scale, format)
    return out


def product(recipe: str, name: Product, left: Tensor, right: Tensor, *, eight_bits: bool = True) -> Tensor:
    """left @ right^T, both with the sum along their columns, in FP64."""
    if not eight_bits:
        return left.double() @ right.double().t()
    first, second = KINDS[name]
    return along_sum(recipe, first, left) @ along_sum(recipe, second, right).t()


def expected(
    recipe: str, x: Tensor, weight: Tensor, g: Tensor, counts: Sequence[int], products: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """y, gx, gw of a group of experts."""
    parts = list(zip(x.split(list(counts)), weight, g.split(list(counts)), strict=True))
    y = [product(recipe, "forward", a, w, eight_bits="forward" in products) for a, w, _ in parts]
    gx = [product(recipe, "input_gradient", b, w.t(), eight_bits="input_gradient" in products) for _, w, b in parts]
    gw = [
        product(recipe, "weight_gradient", b.t(), a.t(), eight_bits="weight_gradient" in products) for a, _, b in parts
    ]
    return torch.cat(y), torch.cat(gx), torch.stack(gw)


def tensors(seed: int = 0) -> tuple[Tensor, Parameter, Tensor]:
    """x [300, 160], weight [4, 144, 160], gradient [300, 144] with rows and columns of very different size."""
    generator = torch.Generator().manual_seed(seed)

    def spread(*shape: int) -> Tensor:
        rows = torch.exp2(torch.randint(-6, 6, (*shape[:-1], 1), generator=generator).float())
        columns = torch.exp2(torch.randint(-6, 6, (shape[-1],), generator=generator).float())
        return (torch.randn(shape, generator=generator) * rows * columns).bfloat16()

    return spread(300, 160).requires_grad_(), Parameter(spread(4, 144, 160)), spread(300, 144)


def close(actual: Tensor, wanted: Tensor, *, bits: int = 8) -> bool:
    """Within a rounding to `bits` significant bits, and FP32's sums of terms that cancel."""
    error = (actual.double() - wanted).abs()
    return bool((error <= wanted.abs() * 2.0**-bits + wanted.abs().max() * 2.0**-20).all())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As runs have; the compiled products have no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    x: Tensor, weight: Parameter, g: Tensor, numerics: Numerics, counts: Sequence[int] = COUNTS
) -> tuple[Tensor, Tensor, Tensor]:
    x.grad = weight.grad = None
    y = grouped_linear(x, weight, None, counts, numerics)
    y.backward(g)
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("recipe", RECIPES_EMULATED)
def test_experts_products_are_the_papers(implementation: None, recipe: Any) -> None:
    """Each expert with scales and blocks of its own; one without tokens."""
    x, weight, g = tensors()
    found = run(x, weight, g, Numerics.of(Precision(recipe=recipe)))
    wanted = expected(recipe, x.detach(), weight.detach(), g, COUNTS, list(KINDS))
    assert [close(one, other) for one, other in zip(found, wanted, strict=True)] == [True] * 3
    assert (found[2][1] == 0).all()
    plain = expected(recipe, x.detach(), weight.detach(), g, COUNTS, [])
    assert [close(one, other) for one, other in zip(found, plain, strict=True)] == [False] * 3  # it is not BF16


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("recipe", RECIPES_EMULATED)
def test_products_left_out_are_in_bf16(implementation: None, recipe: Any, name: Product) -> None:
    x, weight, g = tensors(1)
    left: list[Any] = [one for one in KINDS if one != name]
    found = run(x, weight, g, Numerics.of(Precision(recipe=recipe, products=left)))
    wanted = expected(recipe, x.detach(), weight.detach(), g, COUNTS, left)
    assert all(close(one, other) for one, other in zip(found, wanted, strict=True))


def test_bf16_products_are_plain_products(implementation: None) -> None:
    x, weight, g = tensors(2)
    found = run(x, weight, g, Numerics.of(Precision(recipe="bf16")))
    wanted = expected("bf16", x.detach(), weight.detach(), g, COUNTS, [])
    assert all(close(one, other) for one, other in zip(found, wanted, strict=True))


def test_another_block_size() -> None:
    x, weight, _ = tensors(3)
    with torch.no_grad():
        y = linear(x, Parameter(weight[0]), None, Numerics.of(Precision(recipe="fp8_blockwise", block_size=32)))
    a = along_sum("fp8_blockwise", "input", x, size=32)
    assert close(y, a @ along_sum("fp8_blockwise", "weight", weight[0], size=32).t())


def test_the_weight_gradient_is_added_in_fp32_to_the_main_gradient(implementation: None) -> None:
    """Without a rounding to BF16 on the way, as Megatron's fused kernels do it."""
    x, weight, g = tensors(4)
    before = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    weight.main_grad = before.clone()  # type: ignore[attr-defined]
    run(x, weight, g, Numerics.of(Precision(recipe="fp8_blockwise")))
    wanted = expected("fp8_blockwise", x.detach(), weight.detach(), g, COUNTS, list(KINDS))[2]
    assert close(weight.main_grad - before, wanted, bits=18)  # type: ignore[attr-defined]
    assert weight.grad_added_to_main_grad  # type: ignore[attr-defined]


def test_biases_are_added_before_the_one_rounding(implementation: None) -> None:
    x, weight, g = tensors(6)
    bias = Parameter(torch.randn(4, 144, generator=torch.Generator().manual_seed(6)).bfloat16())
    y = grouped_linear(x, weight, bias, COUNTS, Numerics.of(Precision(recipe="fp8_blockwise")))
    y.backward(g)
    plain = expected("fp8_blockwise", x.detach(), weight.detach(), g, COUNTS, list(KINDS))[0]
    rows = torch.repeat_interleave(bias.detach().double(), torch.tensor(COUNTS), dim=0)
    assert close(y.detach(), plain + rows)
    assert bias.grad is not None
    sums = torch.stack([part.double().sum(0) for part in g.split(COUNTS)])
    assert close(bias.grad, sums)


def test_evaluation_rounds_as_training_does() -> None:
    x, weight, _ = tensors(7)
    numerics = Numerics.of(Precision(recipe="fp8_mxfp8"))
    trained = grouped_linear(x, weight, None, COUNTS, numerics)
    with torch.no_grad():
        assert torch.equal(grouped_linear(x, weight, None, COUNTS, numerics), trained)


# --- delayed scaling --------------------------------------------------------------------------------------------------


def test_delayed_scaling_uses_the_largest_of_the_passes_before() -> None:
    """amax 1, 4, 2 with a history of 2: scales 1 (none yet), 448 / 1, 448 / 4, 448 / 4, then 448 / 2."""
    history = AmaxHistory(2, experts=1)
    format = RECIPES["fp8_delayed"].formats["input"]
    seen = []
    for amax in (1.0, 4.0, 0.0, 2.0, 2.0, 0.0):  # a pass without tokens is none
        seen.append(history.scale("input")[0])
        history.record("input", [amax], format)
    assert seen == [1.0, 448.0, 112.0, 112.0, 112.0, 224.0]
    assert history.scale("input") == [224.0]
    history.record("input", [math.inf], format)
    assert history.scale("input") == [224.0]
    assert history.scale("gradient") == [1.0]


def test_delayed_products_use_the_scales_before_this_pass_and_saturate() -> None:
    x, weight, _ = tensors(8)
    x = (x.detach() / x.detach().abs().max()).requires_grad_()  # amax 1
    history = AmaxHistory(4, experts=1)
    numerics, single = Numerics.of(Precision(recipe="fp8_delayed", amax_history=4)), Parameter(weight[0].detach())
    linear(x, single, None, numerics, history).float().sum().backward()
    y = linear((x * 4).detach().requires_grad_(), single, None, numerics, history)
    a = (x.detach().float() * 4 * 448.0).clamp(-448, 448).to(torch.float8_e4m3fn).double() / 448.0
    amax = single.abs().max().item()
    w = cast(single.detach(), torch.tensor(448.0 / amax, dtype=torch.float32).item(), numerics.recipe.formats["weight"])
    assert close(y.detach(), a @ w.t())


def test_validation_counts_with_the_next_pass() -> None:
    """Transformer Engine's kernels add every magnitude to the newest; training alone rolls the history."""
    history = AmaxHistory(4, experts=1)
    format = RECIPES["fp8_delayed"].formats["input"]
    assert history.scales_of("input", lambda: [8.0], format, training=False) == [1.0]
    assert history.passes.tolist() == [[0], [0], [0]]
    assert history.scales_of("input", lambda: [2.0], format, training=True) == [1.0]
    assert history.scale("input") == [448.0 / 8.0]


def test_weights_are_quantised_once_in_a_step() -> None:
    history = AmaxHistory(4, experts=1)
    format = RECIPES["fp8_delayed"].formats["weight"]
    found = []
    for _ in range(2):
        history.begin_step()
        found += [history.scales_of("weight", lambda: [2.0], format, training=True) for _ in range(3)]
    assert found == [[1.0]] * 3 + [[224.0]] * 3
    assert history.passes.tolist() == [[0], [2], [0]]


def test_a_history_lives_through_a_checkpoint_and_a_change_to_bf16() -> None:
    history = AmaxHistory(3, experts=2)
    history.record("weight", [0.3, 7.7], RECIPES["fp8_delayed"].formats["weight"])
    other = AmaxHistory(3, experts=2)
    other.load_state_dict(history.bfloat16().state_dict())
    assert other.scale("weight") == history.scale("weight") != [1.0, 1.0]


@pytest.mark.parametrize("recipe", ["fp8_tensorwise", "fp8_delayed"])
def test_what_is_no_number_does_not_change_the_scale_of_the_others(recipe: Any) -> None:
    """Transformer Engine's largest magnitude is made by fmaxf, which leaves NaN out."""
    x, weight, _ = tensors(3)
    spoilt = x.detach().clone()
    x = x.detach().clone()
    x[5, 7], spoilt[5, 7] = 0.0, math.nan
    outputs = []
    for values in (x, spoilt):
        history = AmaxHistory(2, experts=len(COUNTS)) if recipe == "fp8_delayed" else None
        for _ in range(2):  # delayed scaling: the second pass has the scale of the first
            outputs.append(grouped_linear(values, weight, None, COUNTS, Numerics.of(Precision(recipe=recipe)), history))
    rows = [row for row in range(len(x)) if row != 5]
    assert torch.equal(outputs[1][rows], outputs[3][rows])
    assert outputs[3][5].isnan().all()


# --- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulation", "promotion"), [("fp14", None), ("promoted", 128)])
def test_layers_sum_as_asked(implementation: None, accumulation: Any, promotion: int | None) -> None:
    x, weight, g = tensors(10)
    numerics = Numerics.of(Precision(recipe="fp8_blockwise", accumulation=accumulation))
    y, gx, _ = run(x, weight, g, numerics)
    part, w = x.detach()[:100], weight.detach()[0]
    a, b = along_sum("fp8_blockwise", "input", part).float(), along_sum("fp8_blockwise", "weight", w).float()
    assert torch.equal(y[:100], short_accumulation(a, b.t(), promotion).bfloat16())
    c, d = along_sum("fp8_blockwise", "gradient", g[:100]).float(), along_sum("fp8_blockwise", "weight", w.t()).float()
    assert torch.equal(gx[:100], short_accumulation(c, d.t(), promotion).bfloat16())


def test_short_accumulators_do_not_read_memory_that_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))
    x, weight, g = tensors(11)
    for one in run(x, weight, g, Numerics.of(Precision(recipe="fp8_tensorwise", accumulation="fp14"))):
        assert one.isfinite().all()


def test_products_left_in_bf16_are_summed_in_fp32() -> None:
    """Short accumulators are those of FP8 instructions: with one product in FP8, one has them."""
    x, weight, g = tensors(10)
    short, plain = (
        run(x, weight, g, Numerics.of(Precision(recipe="fp8_blockwise", products=["forward"], accumulation=sums)))
        for sums in ("fp14", "fp32")
    )
    assert not torch.equal(short[0], plain[0])
    assert torch.equal(short[1], plain[1])
    assert torch.equal(short[2], plain[2])


# --- the compiled products --------------------------------------------------------------------------------------------


def in_order(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """factor * (left @ right) in FP32, the terms of each sum in pairs, the second of a pair first.

    A product of two BF16 numbers has 16 significant bits: it is exact in FP32.
    """
    a, b = (matrix.float().numpy() for matrix in (left, right))
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for pair in range(0, a.shape[1], 2):
        for k in range(min(pair + 1, a.shape[1] - 1), pair - 1, -1):
            total += a[:, k : k + 1] * b[k : k + 1]
    return torch.from_numpy(total * np.float32(factor))


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 41), min_size=1, max_size=4),
    features=st.tuples(st.integers(1, 70), st.integers(1, 100)),
    seed=st.integers(0, 99),
)
def test_compiled_products_sum_in_one_order_with_every_instruction_set(
    counts: list[int], features: tuple[int, int], seed: int
) -> None:
    """To the last bit: rounded to BF16, and added in FP32."""
    if library.COMPILED is None:
        pytest.skip("there was no C compiler at installation")
    (into, out), generator = features, torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x, w, g = normal(sum(counts), into), normal(len(counts), out, into), normal(sum(counts), out)
    factors = torch.rand(len(counts), generator=generator).tolist()
    ones = [1.0] * len(counts)
    shapes = {"forward": (sum(counts), out), "input_gradient": (sum(counts), into), "weight_gradient": w.shape}
    operands: dict[Product, Any] = {"forward": (x, w), "input_gradient": (g, w), "weight_gradient": (g, x)}
    for name, (left, right) in operands.items():
        one, other = Operand(left, counts, factors), Operand(right, counts, ones)
        start = torch.randn(shapes[name], generator=generator)
        turned = [cpu_products.oriented(name, *pair) for pair in zip(one.parts, other.parts, strict=True)]
        begins = start.split(counts) if start.dim() == 2 else start
        sums = [in_order(*pair, products.to_fp32(factor)) for pair, factor in zip(turned, factors, strict=True)]
        join = torch.cat if start.dim() == 2 else torch.stack
        added = join([begin + total for begin, total in zip(begins, sums, strict=True)])
        for instructions in range(library.COMPILED.octavo_instruction_sets()):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cpu_products, "FASTEST", instructions)
                total = start.clone()
                Quantiser(products.BF16, counts).multiply(name, one, other, total, add=True)
                assert torch.equal(total, added)
                if name != "weight_gradient":
                    rounded = torch.empty(shapes[name], dtype=torch.bfloat16)
                    Quantiser(products.BF16, counts).multiply(name, one, other, rounded)
                    assert torch.equal(rounded, torch.cat(sums).bfloat16())


@pytest.mark.parametrize("tokens", [1, 7, 31, 32, 33, 64, 97])
def test_attention_leaves_out_what_comes_later(implementation: None, tokens: int) -> None:
    """The same sums without their zeros, where the triangle ends within a block of rows and where it ends with one."""
    generator = torch.Generator().manual_seed(tokens)
    queries, keys = torch.randn(2, 3, tokens, 5, generator=generator).bfloat16()
    weights = torch.randn(3, tokens, tokens, generator=generator).bfloat16().tril()
    sets = library.COMPILED.octavo_instruction_sets() if library.COMPILED else 1
    for instructions in range(sets):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_products, "FASTEST", instructions)
            scores = multiply_causal("forward", queries, keys, torch.float32)
            values = multiply_causal("input_gradient", weights, keys, torch.bfloat16)
            gradients = multiply_causal("weight_gradient", weights, queries, torch.bfloat16)
        assert close(scores.tril(), (queries.double() @ keys.double().mT).tril(), bits=20)
        assert close(values, weights.double() @ keys.double())
        assert close(gradients, weights.double().mT @ queries.double())


def test_what_is_not_a_number_comes_through() -> None:
    """And stays in its row: lines are filled up with zeros, and 0 times infinity is no number."""
    x, weight = torch.ones(5, 3).bfloat16(), Parameter(torch.ones(7, 3).bfloat16())
    x[2, 1], x[3, 0] = math.nan, math.inf
    with torch.no_grad():
        y = linear(x, weight, None, products.BF16)
    assert y[:, 0].tolist() == pytest.approx([3.0, 3.0, math.nan, math.inf, 3.0], nan_ok=True)


def test_several_threads_multiply_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled products would leave all but one idle."""
    torch.set_num_threads(2)
    monkeypatch.setattr(products, "multiply_in_one_call", None)
    x, weight, g = tensors(2)
    found = run(x, weight, g, Numerics.of(Precision(recipe="bf16")))
    wanted = expected("bf16", x.detach(), weight.detach(), g, COUNTS, [])
    assert all(close(one, other) for one, other in zip(found, wanted, strict=True))
