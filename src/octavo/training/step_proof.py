"""What a step with Transformer Engine did, seen where its Python calls what is compiled: proof by what ran.

`octavo.precision.megatron` verifies what was built. Here every product of the first step is counted by the formats and
scales of its two operands, and what attention, weight gradients and experts' tokens took. A step that did not do what
the run's name says stops the run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from octavo.errors import OctavoError
from octavo.precision.config import Precision
from octavo.precision.megatron import quantised_linears
from octavo.precision.recipes import RECIPES, Recipe, recipe_of
from octavo.records import Product, StepProof, TensorKind

_PRODUCTS: dict[tuple[bool, bool], tuple[Product, TensorKind, TensorKind]] = {
    # whether the first and the second operand are turned -> the product, what they are
    (True, False): ("forward", "weight", "input"),
    (False, False): ("input_gradient", "weight", "gradient"),
    (False, True): ("weight_gradient", "input", "gradient"),
}
_SCALES = {
    "Float8Tensor": "one scale",
    "Float8BlockwiseQTensor": "1x128",
    "MXFP8Tensor": "1x32",
    "NVFP4Tensor": "1x16",
}
"""Transformer Engine's quantised tensors -> elements that share a scale (of weights: see `_describe`)."""


OTHER_SCALES = ", scales not its own"
"""Said of tensors whose scales are powers of two where the recipe's are not, or the other way round."""

_PLAIN = ("bfloat16", "float32")
"""Types of products that are not below BF16; routers of Megatron-Core 0.19 multiply in FP32 by Transformer Engine."""


class StepWatch:
    """Counts products while it is on."""

    def __init__(self) -> None:
        self._products: dict[Product, Counter[str]] = {}
        self._permutations = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look at every product that is called inside, and at the fused permutation of experts' tokens."""
        import transformer_engine_torch as compiled  # type: ignore[import-not-found]
        from megatron.core.transformer.moe import moe_utils

        replaced: list[tuple[Any, str, Any]] = []

        def watch(owner: Any, name: str, note: Any) -> None:
            function = getattr(owner, name)

            def watched(*arguments: Any, **options: Any) -> Any:
                note(*arguments)
                return function(*arguments, **options)

            replaced.append((owner, name, function))
            setattr(owner, name, watched)

        watch(compiled, "generic_gemm", lambda a, turn_a, b, turn_b, *_: self._note(a, turn_a, b, turn_b))
        watch(
            compiled, "te_general_grouped_gemm", lambda a, turn_a, b, turn_b, *_: self._note(a[0], turn_a, b[0], turn_b)
        )
        if getattr(moe_utils, "fused_permute_with_probs", None) is not None:
            watch(moe_utils, "fused_permute_with_probs", self._note_permutation)
        try:
            yield
        finally:
            for owner, name, function in replaced:
                setattr(owner, name, function)

    def _note(self, a: Any, turn_a: bool, b: Any, turn_b: bool) -> None:
        product, first, second = _PRODUCTS[turn_a, turn_b]
        seen = f"{first} {_describe(a)}, {second} {_describe(b)}"
        self._products.setdefault(product, Counter())[seen] += 1

    def _note_permutation(self, *_: Any) -> None:
        self._permutations += 1

    def proof(self, models: list[nn.Module]) -> StepProof:
        """What there was to see, right after the step: this rank's part."""
        weights = [
            parameter
            for model in models
            for module in model.modules()
            if getattr(module, "fuse_wgrad_accumulation", False)
            for name, parameter in module.named_parameters(recurse=False)
            if name.startswith("weight")
        ]
        return StepProof(
            products={product: dict(sorted(seen.items())) for product, seen in sorted(self._products.items())},
            attention=_attention(),
            fused_weight_gradients=sum(bool(getattr(one, "grad_added_to_main_grad", False)) for one in weights),
            fused_permutations=self._permutations,
            dispatchers=sorted({
                type(module.token_dispatcher).__name__
                for model in models
                for module in model.modules()
                if hasattr(module, "token_dispatcher")
            }),
        )  # fmt: skip


def _describe(tensor: Any) -> str:
    """`e4m3 1x128`, or `bfloat16` of a tensor that is not quantised."""
    kind = type(tensor).__name__.removesuffix("Storage")
    if kind not in _SCALES:
        return str(tensor.dtype).removeprefix("torch.")
    format = getattr(tensor, "_fp8_dtype", None) or tensor._fp4_dtype
    square = getattr(tensor, "_is_2D_scaled", False) or getattr(tensor._quantizer, "with_2d_quantization", False)
    scale = _SCALES[kind]
    name = str(getattr(format, "name", format)).rpartition("kFloat")[2][1:].lower()
    said = f"{name} {scale.replace('1x', scale[2:] + 'x') if square else scale}"
    powers = getattr(tensor._quantizer, "force_pow_2_scales", None)
    # of delayed scaling's tensors the quantiser says nothing; the others' default is that of their recipe
    other = powers is not None and powers != (kind == "Float8BlockwiseQTensor")
    return said + (OTHER_SCALES if other else "")


def _asked(recipe: Recipe, kind: TensorKind) -> str:
    """What `_describe` says of a tensor in a recipe."""
    across, along = recipe.blocks.get(kind, (0, 0))
    said = f"{kind} {recipe.formats[kind].name} {f'{across}x{along}' if along else 'one scale'}"
    return said + (OTHER_SCALES if recipe.scale != RECIPES[recipe.name].scale else "")


def _attention() -> str:
    """The backend that Transformer Engine chose for attention."""
    name = "transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention"
    chosen = sys.modules[name]._attention_backends
    if chosen.get("use_flash_attention"):
        return f"flash-attn {chosen.get('flash_attention_backend')}"
    if chosen.get("use_fused_attention"):
        from transformer_engine.pytorch.cpp_extensions.fused_attn import (  # type: ignore[import-not-found]
            FusedAttnBackend,
        )

        return f"cuDNN, {FusedAttnBackend(int(chosen['fused_attention_backend'])).name}"
    return "unfused (whole score matrices)" if chosen.get("use_unfused_attention") else "none"


def check_step(
    proof: StepProof, models: list[nn.Module], precision: Precision, micro_batches: int, *, recomputes: bool = False
) -> None:
    """Raise an OctavoError if a step, of so many micro-batches, did not compute what the run's name says.

    With `recomputes` forward products may be there twice: the backward pass makes some of them again.
    """
    recipe = recipe_of(precision)
    layers = sum(len(quantised_linears(model, precision)) for model in models)
    for product, first, second in _PRODUCTS.values():
        seen = proof.products.get(product, {})
        low = {kinds: count for kinds, count in seen.items() if not any(plain in kinds for plain in _PLAIN)}
        operands = f"{_asked(recipe, first)}, {_asked(recipe, second)}" if layers else ""
        expected = {operands: layers * micro_batches} if layers else {}
        most = (2 if recomputes and product == "forward" else 1) * layers * micro_batches
        if low.keys() != expected.keys() or not all(expected[kinds] <= low[kinds] <= most for kinds in low):
            twice = ", forward products up to twice" if recomputes else ""
            raise OctavoError(
                f"the first step's {product} products of {precision.recipe} were {low or 'all in BF16'}",
                expected=f"{expected or 'all in BF16'}: {layers} layers, {micro_batches} micro-batches{twice}",
                fix="this is a bug in Octavo or in the versions installed: compare them with container.def",
            )
