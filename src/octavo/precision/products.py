"""The three matrix products of linear layers, in BF16 or emulated FP8, for one layer or a group of experts.

    forward          y  = x w^T     x: tokens x in, w: out x in
    input gradient   gx = g w       g: tokens x out
    weight gradient  gw = g^T x

One definition holds for every recipe: operands are rounded to the recipe's format with its scales and blocks, products
of two operands are exact in FP32, they are summed in FP32, and the sum is rounded once, to BF16. (The weight gradient
is added to Megatron's FP32 main gradient without that rounding.) It is computed over
the rounded values: a BF16 or FP8 number is an FP32 number, a product of two has at most 16 significant bits, and block
scales are powers of two, which commute with rounding. Scales per tensor are no powers of two, so their inverse
multiplies the sum, as on the GPU.

On CPUs the compiled library does it (`octavo.cpu.products`), for all experts in one call: BF16 holds every
operand exactly, and each sum runs in one order on every processor, so the bits are the same too. Elsewhere (and with
more threads than one) torch's operators do, expert by expert; the order of their sums is the kernel's and differs
between processors, as it does between GPUs.

Experts come as one group: tokens sorted by expert, `counts` tokens each, weights stacked. Each expert's tokens,
gradient and weight are tensors of their own with their own scales, as in Transformer Engine's GroupedLinear, and an
expert without tokens is nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from octavo.cpu.formats import Format
from octavo.cpu.products import in_one_call, multiply_in_one_call, oriented
from octavo.cpu.rounding import largest_magnitudes, round_groups_blocks, round_groups_scaled, tensor_scale, to_fp32
from octavo.precision import diagnostics
from octavo.precision.accumulators import PROMOTION_INTERVAL, short_accumulation
from octavo.precision.config import Precision
from octavo.precision.history import AmaxHistory
from octavo.precision.recipes import RECIPES, Recipe, recipe_of
from octavo.records import Product, TensorKind

_USES: dict[TensorKind, tuple[Product, Product]] = {
    # kind -> the product that sums over its columns, the one that sums over its rows
    "input": ("forward", "weight_gradient"),
    "weight": ("forward", "input_gradient"),
    "gradient": ("input_gradient", "weight_gradient"),
}


@dataclass(frozen=True)
class Numerics:
    """What the products of a layer are computed in."""

    recipe: Recipe
    products: frozenset[Product] = frozenset()
    """Those below BF16."""
    accumulation: Literal["fp32", "fp14", "promoted"] = "fp32"
    block_size: int | None = None
    """In place of the recipe's own."""
    amax_history: int = 1
    """Passes that delayed scaling looks back."""

    @classmethod
    def of(cls, precision: Precision) -> Numerics:
        """The numerics that an experiment's precision asks for."""
        recipe = recipe_of(precision)
        if not recipe.quantised:
            return cls(recipe)
        return cls(
            recipe,
            frozenset(precision.products),
            precision.accumulation,
            precision.block_size,
            precision.amax_history,
        )

    def block(self, kind: TensorKind, *, over_rows: bool) -> tuple[int, int] | None:
        """(rows, columns) of a tensor that share a scale when it is summed over its rows or columns; None: all."""
        if not self.recipe.blocks:
            return None
        across, along = (1 if size == 1 else self.block_size or size for size in self.recipe.blocks[kind])
        return (along, across) if over_rows else (across, along)


BF16 = Numerics(RECIPES["bf16"])


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for BF16 products with FP32 sums."""
    return device.type == "cuda" or _CPU_MULTIPLIES_BF16


_CPU_MULTIPLIES_BF16 = torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Operand:
    """A rounded operand of all experts: its values, in FP32 or BF16, and what to multiply each expert's by."""

    values: Tensor
    """Tokens x features, sorted by expert, or experts x out x in."""
    counts: Sequence[int]
    """Tokens of each expert."""
    factors: Sequence[float]

    @property
    def parts(self) -> Sequence[Tensor]:
        """Each expert's own values."""
        return _parts(self.values, self.counts)


def _parts(tensor: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """Each expert's own: a slice of a weight's first dimension, or a run of tokens."""
    return tensor.unbind(0) if tensor.dim() == 3 else tensor.split(list(counts))


def _largest_numbers(tensor: Tensor, sizes: Sequence[int]) -> list[float]:
    """The largest magnitude of each group of values, what is no number left out, as Transformer Engine's kernels take
    it (by fmaxf)."""
    largest = largest_magnitudes(tensor, sizes)
    if any(map(math.isnan, largest)):
        return largest_magnitudes(tensor.nan_to_num(0.0, math.inf, -math.inf), sizes)
    return largest


@dataclass(frozen=True)
class Quantiser:
    """Makes operands of a layer's tensors."""

    numerics: Numerics
    counts: Sequence[int]
    """Tokens of each expert."""
    history: AmaxHistory | None = None
    """Delayed scaling's; it takes note of every pass."""

    def operands(self, tensor: Tensor, kind: TensorKind, *, training: bool) -> tuple[Operand, Operand]:
        """`tensor` as the operand of the product over its columns and of the one over its rows (training only).

        `tensor` is tokens x features, or experts x out x in for weights; it is not changed.
        """
        made: dict[Any, Operand] = {}

        def operand(product: Product, *, over_rows: bool) -> Operand:
            if product not in self.numerics.products:
                if "bf16" not in made:
                    made["bf16"] = self._plain(tensor)
                return made["bf16"]
            block = self.numerics.block(kind, over_rows=over_rows)
            if block not in made:
                made[block] = self._quantise(tensor, kind, block, training)
            return made[block]

        over_columns, over_rows = _USES[kind]
        first = operand(over_columns, over_rows=False)
        return first, operand(over_rows, over_rows=True) if training else first

    def _plain(self, tensor: Tensor) -> Operand:
        """Values that need no factor."""
        values = tensor.contiguous().to(self.operand_type(tensor))
        return Operand(values, self.counts, [1.0] * len(self.counts))

    def _quantise(self, tensor: Tensor, kind: TensorKind, block: tuple[int, int] | None, training: bool) -> Operand:
        """Every expert's part rounded by itself: its scales, and its blocks of rows, are its own."""
        format = self.numerics.recipe.formats[kind]
        exact = self.numerics.recipe.exact_scales
        # all experts in one call: rows of tokens or of weights, one expert's after the other's
        flat = tensor.contiguous().view(-1, tensor.shape[-1])
        rows = [tensor.shape[1]] * tensor.shape[0] if tensor.dim() == 3 else self.counts
        # the tensor's own type holds all rounded values, but for those that a scale of no power of two is taken out of
        whole = torch.empty_like(flat, dtype=torch.float32 if block is not None and not exact else None)
        if block is not None:
            round_groups_blocks(flat, rows, format, block, whole, exact_scales=exact)
            self._report(kind, flat, whole, rows, [None] * len(rows), format)
            return self._plain(whole.view(tensor.shape))
        sizes = [count * flat.shape[1] for count in rows]
        scales = self._scales(flat, sizes, kind, format, training)
        round_groups_scaled(flat, sizes, scales, format, whole)
        self._report(kind, flat, whole, rows, scales, format)
        factors = [to_fp32(1.0 / scale) for scale in scales]
        return Operand(whole.view(tensor.shape).to(self.operand_type(tensor)), self.counts, factors)

    def _report(
        self,
        kind: TensorKind,
        before: Tensor,
        after: Tensor,
        rows: Sequence[int],
        scales: Sequence[float | None],
        format: Format,
    ) -> None:
        """Tell the diagnostics, if they are on, what became of a tensor; blocks have no one scale."""
        if found := diagnostics.current():
            for part, rounded, scale in zip(before.split(list(rows)), after.split(list(rows)), scales, strict=True):
                found.see_operand(kind, part, rounded, scale, format)

    def report_product(self, product: Product, left: Operand, right: Operand, plain: Sequence[Tensor]) -> None:
        """Tell the diagnostics, if they are on, a product of two operands, and that of the `plain` tensors."""
        found = diagnostics.current()
        if found is None or product not in self.numerics.products:
            return
        unrounded = Quantiser(BF16, self.counts)
        got = self._summed(product, left, right)
        found.see_product(product, got, unrounded._summed(product, *(unrounded._plain(tensor) for tensor in plain)))

    def _summed(self, product: Product, left: Operand, right: Operand) -> Tensor:
        """A product in FP32."""
        shapes = {
            "forward": (left.values.shape[0], right.values.shape[-2]),
            "input_gradient": (left.values.shape[0], right.values.shape[-1]),
            "weight_gradient": (len(self.counts), left.values.shape[-1], right.values.shape[-1]),
        }
        out = torch.zeros(shapes[product], device=left.values.device)
        self.multiply(product, left, right, out, add=True)
        return out

    def _scales(
        self, tensor: Tensor, sizes: Sequence[int], kind: TensorKind, format: Format, training: bool
    ) -> list[float]:
        """One per expert, by its own largest magnitude or by those of the passes before."""
        if self.history is None:
            exact = self.numerics.recipe.exact_scales
            return [tensor_scale(most, format, exact=exact) for most in _largest_numbers(tensor, sizes)]
        amaxes = partial(_largest_numbers, tensor, sizes)
        return self.history.scales_of(kind, amaxes, format, training=training)

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        return _parts(tensor, self.counts)

    def operand_type(self, tensor: Tensor) -> torch.dtype:
        """The type in which a tensor's GEMM operands are kept: BF16 where one BF16 GEMM gives the same bits, else FP32.

        Where there is no bias and nothing is accumulated, the GEMM's output has this type, too. Values that an FP32
        scale of a block was taken out of are FP32.
        """
        if self.numerics.recipe.blocks and not self.numerics.recipe.exact_scales:
            return torch.float32
        alone = len(self.counts) == 1 and self.numerics.accumulation == "fp32" and _multiplies_bf16(tensor.device)
        fits = in_one_call(tensor) or (alone and tensor.dtype == torch.bfloat16)
        return torch.bfloat16 if fits else torch.float32

    def multiply(self, product: Product, left: Operand, right: Operand, out: Tensor, *, add: bool = False) -> None:
        """`out` (+)= each expert's product of two matrices times their factors, rounded once, to `out`'s type.

        Results that are added to are FP32. Short accumulators are the FP8 instructions' own: products left in BF16 are
        summed in FP32.
        """
        factors = [to_fp32(one * other) for one, other in zip(left.factors, right.factors, strict=True)]
        short = self.numerics.accumulation != "fp32" and product in self.numerics.products
        if not short and in_one_call(left.values) and in_one_call(right.values):
            multiply_in_one_call(product, left.values, right.values, left.counts, factors, out, add=add)
            return
        parts = zip(self.counts, left.parts, right.parts, factors, self._parts(out), strict=True)
        for count, one, other, factor, result in parts:
            if not count:
                continue
            a, b = oriented(product, one, other)
            if short:
                promotion = PROMOTION_INTERVAL if self.numerics.accumulation == "promoted" else None
                total = short_accumulation(a.float(), b.float(), promotion).mul_(factor)
                # never 0 * result: memory not yet written may hold NaN
                result.add_(total) if add else result.copy_(total)
            else:
                result.addmm_(a.to(result.dtype), b.to(result.dtype), beta=float(add), alpha=factor)


class _LinearProducts(torch.autograd.Function):
    """y[tokens, out] = x[tokens, in] w[experts, out, in]^T (+ bias[experts, out]), each expert on its own tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Parameter, bias: Parameter | None, quantiser: Quantiser, training: bool
    ) -> Tensor:
        experts = len(quantiser.counts)
        stacked = weight.detach().view(experts, -1, x.shape[-1])
        x_columns, x_rows = quantiser.operands(x, "input", training=training)
        w_columns, w_rows = quantiser.operands(stacked, "weight", training=training)
        if bias is None:
            y = x.new_empty(x.shape[0], stacked.shape[1], dtype=quantiser.operand_type(x))
        else:
            tokens = torch.tensor(quantiser.counts, device=x.device)
            y = bias.detach().view(experts, -1).float().repeat_interleave(tokens, 0)
        quantiser.multiply("forward", x_columns, w_columns, y, add=bias is not None)
        quantiser.report_product("forward", x_columns, w_columns, (x, stacked))
        if training:
            ctx.plain = (x, stacked) if diagnostics.current() else None
            ctx.x, ctx.w = x_rows, w_rows
            ctx.weight, ctx.bias, ctx.quantiser = weight, bias, quantiser
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        x, w, weight, bias, quantiser = ctx.x, ctx.w, ctx.weight, ctx.bias, ctx.quantiser
        g_columns, g_rows = quantiser.operands(gradient, "gradient", training=True)

        gx = None
        if ctx.needs_input_grad[0]:
            shape = gradient.shape[0], w.values.shape[-1]
            gx = gradient.new_empty(shape, dtype=quantiser.operand_type(gradient))
            quantiser.multiply("input_gradient", g_columns, w, gx)
            gx = gx.to(gradient.dtype)
            if ctx.plain:
                quantiser.report_product("input_gradient", g_columns, w, (gradient, ctx.plain[1]))

        gw = None
        if ctx.needs_input_grad[1]:
            fused = hasattr(weight, "main_grad")
            total = weight.main_grad if fused else torch.zeros_like(weight, dtype=torch.float32)
            quantiser.multiply("weight_gradient", g_rows, x, total.view(w.values.shape), add=True)
            gw = _already_accumulated(weight) if fused else total.to(weight.dtype)
            if ctx.plain:
                quantiser.report_product("weight_gradient", g_rows, x, (gradient, ctx.plain[0]))

        gb = None
        if bias is not None and ctx.needs_input_grad[2]:
            sums = [part.sum(0, dtype=torch.float32) for part in gradient.split(list(quantiser.counts))]
            gb = torch.stack(sums).view(bias.shape).to(bias.dtype)
        return gx, gw, gb, None, None


def _already_accumulated(weight: Parameter) -> Tensor:
    """Tell Megatron's DistributedDataParallel that main_grad holds the gradient.

    Its hooks want a gradient all the same (of any value; zeros where another layer shares the weight).
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    shared = getattr(weight, "zero_out_wgrad", False)
    return torch.zeros_like(weight) if shared else torch.empty_like(weight)


def linear(
    x: Tensor, weight: Parameter, bias: Parameter | None, numerics: Numerics, history: AmaxHistory | None = None
) -> Tensor:
    """x w^T (+ bias): x [..., in], weight [out, in]; the result is [..., out] in x's type."""
    flat = x.reshape(-1, x.shape[-1])
    return grouped_linear(flat, weight, bias, [flat.shape[0]], numerics, history).view(*x.shape[:-1], -1)


def grouped_linear(
    x: Tensor,
    weight: Parameter,
    bias: Parameter | None,
    counts: Sequence[int],
    numerics: Numerics,
    history: AmaxHistory | None = None,
) -> Tensor:
    """x [tokens, in], sorted by expert, times each expert's weight [experts, out, in]; the result is [tokens, out].

    Raises ValueError where `counts` are not the tokens of x: the compiled products would read and write past its end.
    """
    if sum(counts) != len(x) or min(counts, default=0) < 0:
        raise ValueError(f"groups of {list(counts)} tokens, {sum(counts)} in all, are not the {len(x)} tokens of x")
    return _LinearProducts.apply(x, weight, bias, Quantiser(numerics, counts, history), torch.is_grad_enabled())
