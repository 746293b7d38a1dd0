"""The accumulators of tensor cores: how a matrix product is summed where the sum has fewer bits than FP32.

A tensor core adds a step's products and the accumulator at once. All are aligned to the largest exponent among them (of
a product: the sum of its operands' exponents), bits too far below it are cut off, the rest is added exactly, and the
accumulator keeps the leading bits of the sum, the others cut off. MMA-Sim (arXiv 2511.10909) found this of each GPU and
how many bits there are, and holds it against the GPUs to the last bit; arXiv 2512.07004 finds the same of H100 and
B200. DeepSeek-V3 (arXiv 2412.19437, sections 3.3.2 and 3.5.2) saw its effect on Hopper, and adds the accumulator to an
FP32 sum every 128 products.

Exponents are those of the numbers: that a subnormal FP8 code has the smallest normal's is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from octavo.cpu import library
from octavo.precision.config import SHORT_SUM_COLUMNS

PROMOTION_INTERVAL = 128
"""Products after which an accumulator is added to an FP32 sum (DeepSeek-V3, section 3.3.2)."""


@dataclass(frozen=True)
class Accumulator:
    """How a tensor core sums."""

    products: int
    """Added in one step."""
    aligned_bits: int
    """Fraction bits below the largest exponent that count in a step."""
    kept_bits: int
    """Fraction bits that the accumulator keeps of a step's sum; FP32 has 23."""


HOPPER = Accumulator(products=32, aligned_bits=13, kept_bits=13)
"""WGMMA of e4m3 and e5m2 on H100, H200 and H800: MMA-Sim, its tables of FP8 on Hopper."""
BLACKWELL = Accumulator(products=32, aligned_bits=25, kept_bits=23)
"""tcgen05.mma of e4m3 and e5m2 on B200: all of FP32, cut off in place of rounded."""


def short_accumulation(a: Tensor, b: Tensor, promotion: int | None, accumulator: Accumulator = HOPPER) -> Tensor:
    """a b of FP32 matrices of eight-bit numbers, summed by an accumulator, as FP32.

    With `promotion` it is added to an FP32 sum and begins anew after that many products. An output whose FP32 sum is no
    number or infinite is that.
    """
    if not (a.isfinite().all() and b.isfinite().all()):
        plain = a @ b
        finite = short_accumulation(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0), promotion, accumulator)
        return torch.where(plain.isfinite(), finite, plain)
    # 33 numbers below 2^(2 + aligned_bits) are added in 32 bits
    compiled = library.COMPILED if accumulator.aligned_bits <= 23 and a.device.type == "cpu" else None
    return _compiled(compiled, a, b, promotion, accumulator) if compiled else _in_torch(a, b, promotion, accumulator)


def _compiled(kernel: Any, a: Tensor, b: Tensor, promotion: int | None, accumulator: Accumulator) -> Tensor:
    (rows, depth), columns = a.shape, b.shape[1]
    a, b = a.contiguous(), pad(b, (0, -columns % SHORT_SUM_COLUMNS)).contiguous()
    total = torch.empty(rows, b.shape[1])
    fields = _exponent_fields(b).to(torch.int16)
    kernel.octavo_accumulate(
        *(one.data_ptr() for one in (a, b, fields, total)),
        *(rows, b.shape[1], depth, accumulator.products),
        *(accumulator.aligned_bits, _mask(accumulator) & 0xFFFFFFFF, promotion or 0),
    )
    return total[:, :columns]


def _in_torch(a: Tensor, b: Tensor, promotion: int | None, accumulator: Accumulator) -> Tensor:
    """The same sums in FP64, which has room for every step's: to the same bits, and slowly."""
    total = a.new_zeros(a.shape[0], b.shape[1])
    kept = torch.zeros_like(total)
    fields_a, fields_b = _exponent_fields(a), _exponent_fields(b)
    for start in range(0, a.shape[1], accumulator.products):
        step = slice(start, start + accumulator.products)
        products = a[:, step, None].double() * b[None, step].double()
        most = (fields_a[:, step, None] + fields_b[None, step]).amax(1).maximum(_exponent_fields(kept) + 127)
        scale = (accumulator.aligned_bits - (most - 254)).clamp(-126, 126).double().exp2()
        added = (products * scale[:, None]).trunc().sum(1) + (kept.double() * scale).trunc()
        kept = _cut(added / scale, accumulator)
        if promotion and min(step.stop, a.shape[1]) % promotion == 0:
            total, kept = total + kept, torch.zeros_like(kept)
    return total + kept


def _cut(values: Tensor, accumulator: Accumulator) -> Tensor:
    """FP64 numbers in FP32, all but the kept bits cut off."""
    rounded = values.float()
    beyond = rounded.double().abs() > values.abs()  # rounded away from zero: one step back
    exact = torch.where(beyond, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
    return exact.view(torch.int32).bitwise_and(_mask(accumulator)).view(torch.float32)


def _mask(accumulator: Accumulator) -> int:
    return -(1 << (23 - accumulator.kept_bits))


def _exponent_fields(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32).bitwise_right_shift(23).bitwise_and(0xFF)
