"""Matrix products by the compiled library: BF16 operands, FP32 sums in one order on every processor, rounded once.

What a product multiplies is said in `octavo.precision.products`; here operands are plain tensors, one of each expert's
(or attention head's) after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float, c_int64

import torch
from torch import Tensor

from octavo.cpu import library
from octavo.records import Product

FASTEST = 0
"""Which of the processor's instruction sets the compiled products use, from the fastest."""

_PRODUCTS: Sequence[Product] = ("forward", "input_gradient", "weight_gradient")
"""In the order of products.c."""


def in_one_call(tensor: Tensor) -> bool:
    """Whether the compiled products take operands made of a tensor."""
    fits = tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"
    return library.COMPILED is not None and fits and torch.get_num_threads() == 1


def multiply_in_one_call(
    product: Product,
    left: Tensor,
    right: Tensor,
    counts: Sequence[int],
    factors: Sequence[float],
    out: Tensor,
    *,
    add: bool,
    causal: bool = False,
) -> None:
    """`out` (BF16, or FP32, which may be added to; contiguous) by the compiled products: `counts` tokens of each
    expert, each product times its factor."""
    assert out.is_contiguous()
    assert out.dtype == torch.float32 or (out.dtype == torch.bfloat16 and not add)
    features_in, features_out = right.shape[-1], left.shape[-1]
    if product == "forward":
        features_out = right.shape[-2]
    experts = len(counts)
    failed = library.COMPILED.octavo_multiply(
        *(_PRODUCTS.index(product), FASTEST, 2 if add else int(out.dtype == torch.float32), int(causal)),
        *(left.data_ptr(), right.data_ptr(), out.data_ptr()),
        *((c_int64 * experts)(*counts), (c_float * experts)(*factors)),
        *(experts, features_in, features_out),
    )
    if failed:
        raise MemoryError("no memory to copy the operands of a matrix product")


def oriented(product: Product, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The two matrices of a product as they are multiplied: x w^T, g w, g^T x."""
    if product == "forward":
        return left, right.mT
    return (left, right) if product == "input_gradient" else (left.mT, right)


def multiply_wide(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """A product in FP32 of `left` [tokens, features], BF16 or FP32, and `right` in BF16.

    An FP32 number is the sum of three BF16 numbers, which have 8 of its 24 bits each: their products are added up.
    """
    one, other = oriented(product, left, right)
    out = torch.zeros(one.shape[0], other.shape[1])
    rest, right = left.float(), right.contiguous()
    for _ in range(1 if left.dtype == torch.bfloat16 else 3):
        part = rest.bfloat16().contiguous()
        rest = rest - part.float()
        multiply_in_one_call(product, part, right, [len(left)], [1.0], out, add=True)
    return out


def multiply_causal(product: Product, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """A product of each pair of matrices of causal attention's (BF16, contiguous): FP32 sums, rounded once, to `dtype`.

    forward          scores [pairs, queries, keys] of queries and keys [pairs, tokens, size]; also dO V^T
    input_gradient   of weights, or gradients of scores, [pairs, queries, keys] and values or keys
    weight_gradient  of their transposes and gradients of outputs, or queries

    Weights and gradients of scores are taken to be 0 where the key comes after the query; such scores are left open.
    """
    if not (in_one_call(left) and in_one_call(right)):
        return torch.bmm(*oriented(product, left.float(), right.float())).to(dtype)
    pairs, tokens, _ = left.shape
    counts, ones = [tokens] * pairs, [1.0] * pairs
    shape = (pairs, tokens, tokens if product == "forward" else right.shape[2])
    out = torch.empty(shape, dtype=dtype)

    multiply_in_one_call(product, left, right, counts, ones, out, add=False, causal=True)
    return out
