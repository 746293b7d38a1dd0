"""The three matrix products of linear layers, in BF16 or emulated FP8, for one layer or a group of experts.

    forward          y  = x w^T     x: tokens x in, w: out x in
    input gradient   gx = g w       g: tokens x out
    weight gradient  gw = g^T x

One definition holds for every recipe: operands are rounded to the recipe's format with its scales and blocks, products
of two operands are exact in FP32, they are summed in FP32, and the sum is rounded once, to BF16. (The weight gradient
is added to Megatron's FP32 main gradient without that rounding, as its fused kernels do on GPUs.) It is computed as an
FP32 matrix product over the rounded values: a BF16 or FP8 number is an FP32 number, a product of two has at most 16
significant bits, and block scales are powers of two, which commute with rounding. Scales per tensor are no powers of
two, so their inverse multiplies the sum (`alpha`), as on the GPU. Where the hardware multiplies BF16 numbers into FP32
sums by itself, operands are kept in BF16, which holds them exactly, and it computes the two products that are rounded
to BF16. (Not those of experts: CPU libraries make new kernels for new sizes, and theirs are new in every step.) What is
not fixed is the order of the sums: it is the kernel's and differs between processors, as it does between GPUs.

Experts come as one group: tokens sorted by expert, `counts` tokens each, weights stacked. Each expert's tokens,
gradient and weight are tensors of their own with their own scales, as in Transformer Engine's GroupedLinear, and an
expert without tokens is nothing special.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from octavo.experiment.config import Precision
from octavo.precision import diagnostics
from octavo.precision.history import AmaxHistory
from octavo.precision.recipes import RECIPES, Format, Recipe
from octavo.precision.rounding import largest_magnitude, round_blocks, round_scaled, tensor_scale, to_fp32
from octavo.records import Product, TensorKind

PROMOTION_INTERVAL = 128
STEP = 32
"""Products that a tensor core of Hopper's adds to its accumulator at a time."""

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
        recipe = RECIPES[precision.recipe]
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
    """A rounded operand, each expert's part by itself: values in FP32 or BF16, to be multiplied by one number."""

    parts: Sequence[Tensor]
    factors: Sequence[float]

    @classmethod
    def plain(cls, parts: Sequence[Tensor]) -> Operand:
        """Values that need no factor."""
        return cls(parts, [1.0] * len(parts))


@dataclass(frozen=True)
class Quantiser:
    """Makes operands of a layer's tensors."""

    numerics: Numerics
    counts: Sequence[int]
    """Tokens of each expert."""
    history: AmaxHistory | None = None
    """Delayed scaling's; it takes note of training passes."""

    def operands(self, tensor: Tensor, kind: TensorKind, *, training: bool) -> tuple[Operand, Operand]:
        """`tensor` as the operand of the product over its columns and of the one over its rows (training only).

        `tensor` is tokens x features, or experts x out x in for weights; it is not changed.
        """
        made: dict[Any, Operand] = {}

        def operand(product: Product, *, over_rows: bool) -> Operand:
            if product not in self.numerics.products:
                if "bf16" not in made:
                    made["bf16"] = Operand.plain(self._parts(tensor.to(self.product_type(tensor))))
                return made["bf16"]
            block = self.numerics.block(kind, over_rows=over_rows)
            if block not in made:
                made[block] = self._quantise(tensor, kind, block, training)
            return made[block]

        over_columns, over_rows = _USES[kind]
        first = operand(over_columns, over_rows=False)
        return first, operand(over_rows, over_rows=True) if training else first

    def _quantise(self, tensor: Tensor, kind: TensorKind, block: tuple[int, int] | None, training: bool) -> Operand:
        """Every expert's part rounded by itself: its scales, and its blocks of rows, are its own."""
        format = self.numerics.recipe.formats[kind]
        parts = self._parts(tensor.contiguous())
        whole = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
        rounded = self._parts(whole)
        if block is not None:
            for part, out in zip(parts, rounded, strict=True):
                round_blocks(part, format, block, out)
            self._report(kind, parts, rounded, [None] * len(parts), format)
            return Operand.plain(self._parts(whole.to(self.product_type(tensor))))
        scales = self._scales(parts, kind, format, training)
        for part, scale, out in zip(parts, scales, rounded, strict=True):
            round_scaled(part, scale, format, out)
        self._report(kind, parts, rounded, scales, format)
        parts = self._parts(whole.to(self.product_type(tensor)))
        return Operand(parts, [to_fp32(1.0 / scale) for scale in scales])

    def _report(
        self,
        kind: TensorKind,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        scales: Sequence[float | None],
        format: Format,
    ) -> None:
        """Tell the diagnostics, if they are on, what became of a tensor; blocks have no one scale."""
        if found := diagnostics.current():
            for part, rounded, scale in zip(before, after, scales, strict=True):
                found.see_operand(kind, part, rounded, scale, format)

    def report_product(self, product: Product, left: Operand, right: Operand, plain: Sequence[Tensor]) -> None:
        """Tell the diagnostics, if they are on, a product of two operands, and that of the `plain` tensors."""
        found = diagnostics.current()
        if found is None or product not in self.numerics.products:
            return
        got, wanted = [], []
        pairs = zip(*(self._parts(tensor.float()) for tensor in plain), strict=True)
        for expert, (plain_left, plain_right) in enumerate(pairs):
            a, b = _oriented(product, left.parts[expert], right.parts[expert])
            out = torch.zeros(a.shape[0], b.shape[1], device=a.device)
            self.multiply(product, a, b, left.factors[expert] * right.factors[expert], out)
            got.append(out)
            wanted.append(torch.mm(*_oriented(product, plain_left, plain_right)))
        found.see_product(product, got, wanted)

    def _scales(self, parts: Sequence[Tensor], kind: TensorKind, format: Format, training: bool) -> list[float]:
        """One per expert, by its own largest magnitude or by those of the passes before."""
        if self.history is None:
            return [tensor_scale(largest_magnitude(part), format) for part in parts]
        scales = self.history.scale(kind)
        if training:
            self.history.record(kind, [largest_magnitude(part) for part in parts], format)
        return scales

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """Each expert's own: a slice of a weight's first dimension, or a run of tokens."""
        return tensor.unbind(0) if tensor.dim() == 3 else tensor.split(list(self.counts))

    def product_type(self, tensor: Tensor, bias: Tensor | None = None) -> torch.dtype:
        """The type of a tensor's operands and of the products (forward and input gradient) made of them."""
        alone = len(self.counts) == 1 and bias is None and self.numerics.accumulation == "fp32"
        fits = alone and tensor.dtype == torch.bfloat16 and _multiplies_bf16(tensor.device)
        return torch.bfloat16 if fits else torch.float32

    def multiply(
        self, product: Product, left: Tensor, right: Tensor, factor: float, out: Tensor, *, add: bool = False
    ) -> None:
        """`out` (+)= `factor` times the product of two matrices; the sum is rounded once, to the type of `out`.

        Short accumulators are the FP8 instructions' own: products left in BF16 are summed in FP32.
        """
        if left.dtype != out.dtype:
            left, right = left.to(out.dtype), right.to(out.dtype)
        if self.numerics.accumulation == "fp32" or product not in self.numerics.products:
            out.addmm_(left, right, beta=float(add), alpha=to_fp32(factor))
        else:
            promoted = self.numerics.accumulation == "promoted"
            total = short_accumulation(left, right, PROMOTION_INTERVAL if promoted else None)
            total.mul_(to_fp32(factor))
            out.add_(total) if add else out.copy_(total)  # never 0 * out: memory not yet written may hold NaN


def _oriented(product: Product, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The two matrices of a product as they are multiplied: x w^T, g w, g^T x."""
    if product == "forward":
        return left, right.t()
    return (left, right) if product == "input_gradient" else (left.t(), right)


def short_accumulation(a: Tensor, b: Tensor, promotion: int | None) -> Tensor:
    """a b, summed as DeepSeek-V3 describes of Hopper's FP8 tensor cores (arXiv 2412.19437, sections 3.3.2, 3.5.2).

    After every 32 products the accumulator keeps 14 significant bits and drops the rest (truncation). With `promotion`
    it is added to an FP32 sum and begins anew after that many products.
    """
    total = a.new_zeros(a.shape[0], b.shape[1])
    accumulator = torch.zeros_like(total) if promotion else total
    for start in range(0, a.shape[1], STEP):
        accumulator.addmm_(a[:, start : start + STEP], b[start : start + STEP])
        accumulator.view(torch.int32).bitwise_and_(-(1 << 10))  # 14 of FP32's 24 bits
        if promotion and (start + STEP) % promotion == 0:
            total += accumulator
            accumulator.zero_()
    return total + accumulator if promotion else total


class _LinearProducts(torch.autograd.Function):
    """y[tokens, out] = x[tokens, in] w[experts, out, in]^T (+ bias[experts, out]), each expert on its own tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Parameter, bias: Parameter | None, quantiser: Quantiser, training: bool
    ) -> Tensor:
        counts = list(quantiser.counts)
        stacked = weight.detach().view(len(counts), -1, x.shape[-1])
        x_columns, x_rows = quantiser.operands(x, "input", training=training)
        w_columns, w_rows = quantiser.operands(stacked, "weight", training=training)
        y = x.new_empty(x.shape[0], stacked.shape[1], dtype=quantiser.product_type(x, bias))
        for expert, out in enumerate(y.split(counts)):
            if counts[expert]:
                factor = x_columns.factors[expert] * w_columns.factors[expert]
                quantiser.multiply("forward", x_columns.parts[expert], w_columns.parts[expert].t(), factor, out)
                if bias is not None:
                    out.add_(bias.view(len(counts), -1)[expert])
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
        counts = list(quantiser.counts)
        g_columns, g_rows = quantiser.operands(gradient, "gradient", training=True)

        gx = None
        if ctx.needs_input_grad[0]:
            gx = gradient.new_empty(gradient.shape[0], w.parts[0].shape[1], dtype=quantiser.product_type(gradient))
            for expert, out in enumerate(gx.split(counts)):
                if counts[expert]:
                    factor = g_columns.factors[expert] * w.factors[expert]
                    quantiser.multiply("input_gradient", g_columns.parts[expert], w.parts[expert], factor, out)
            gx = gx.to(gradient.dtype)
            if ctx.plain:
                quantiser.report_product("input_gradient", g_columns, w, (gradient, ctx.plain[1]))

        gw = None
        if ctx.needs_input_grad[1]:
            fused = hasattr(weight, "main_grad")
            total = weight.main_grad if fused else torch.zeros_like(weight, dtype=torch.float32)
            stacked = total.view(len(counts), *w.parts[0].shape)
            for expert, out in enumerate(stacked):
                if counts[expert]:
                    factor = g_rows.factors[expert] * x.factors[expert]
                    left = g_rows.parts[expert].t()
                    quantiser.multiply("weight_gradient", left, x.parts[expert], factor, out, add=True)
            gw = _already_accumulated(weight) if fused else total.to(weight.dtype)
            if ctx.plain:
                quantiser.report_product("weight_gradient", g_rows, x, (gradient, ctx.plain[0]))

        gb = None
        if bias is not None and ctx.needs_input_grad[2]:
            sums = [part.sum(0, dtype=torch.float32) for part in gradient.split(counts)]
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
    """x [tokens, in], sorted by expert, times each expert's weight [experts, out, in]; the result is [tokens, out]."""
    return _LinearProducts.apply(x, weight, bias, Quantiser(numerics, counts, history), torch.is_grad_enabled())
