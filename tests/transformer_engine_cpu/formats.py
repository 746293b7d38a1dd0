"""Rounding to Transformer Engine's formats, as its kernels do (transformer_engine/common of v2.20), in plain PyTorch.

Written from the kernels, and independent of Octavo's emulation, which is held against it. Codes are bytes, as on the
GPU: FP8 one each, FP4 two in one.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_FP32_MAX = torch.finfo(torch.float32).max


def divide(number: float, by: Tensor) -> Tensor:
    """Rounded once, as the kernels do; torch's own `number / by` multiplies by a rounded reciprocal."""
    return torch.full_like(by, number) / by


def amax(values: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The largest magnitude, FP32; NaN is skipped, as by fmaxf."""
    magnitudes = values.float().abs().nan_to_num(0.0, float("inf"))
    if not magnitudes.numel():
        return torch.zeros(())
    return magnitudes.amax() if axes is None else magnitudes.amax(axes, keepdim=True)


def scale_of(largest: Tensor, dtype: torch.dtype, *, power_of_two: bool, for_infinite: float = _FP32_MAX) -> Tensor:
    """`compute_scale_from_amax` (recipe_common.cuh): largest code / amax, 1 where amax is 0, infinite or NaN."""
    scale = divide(LARGEST[dtype], largest)
    scale = torch.where(scale.isinf(), for_infinite, scale)
    if power_of_two:
        scale = (scale.view(torch.int32) & -0x800000).view(torch.float32)
    return torch.where(largest.isinf() | largest.isnan() | (largest == 0), 1.0, scale)


def to_fp8(values: Tensor, dtype: torch.dtype) -> Tensor:
    """FP32 values to codes: nearest, ties to even, saturating; NaN stays."""
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).view(torch.uint8)


def from_fp8(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes to FP32."""
    return codes.view(dtype).float()


def _tiles(values: Tensor, rows: int, columns: int) -> Tensor:
    """[rows of tiles, rows, columns of tiles, columns], zeros where the matrix ends within a tile."""
    down, right = -values.shape[0] % rows, -values.shape[1] % columns
    padded = torch.nn.functional.pad(values, (0, right, 0, down))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def blocks_to_fp8(
    values: Tensor, dtype: torch.dtype, block: tuple[int, int], *, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    """A BF16 or FP32 matrix to codes, and 1 / scale by block (quantize_transpose_*_blockwise.cu)."""
    tiles = _tiles(values.float(), *block)
    for_infinite = torch.finfo(values.dtype).max
    scale = scale_of(amax(tiles, (1, 3)), dtype, power_of_two=power_of_two, for_infinite=for_infinite)
    codes = to_fp8(tiles * scale, dtype).flatten(2).flatten(0, 1)
    return codes[: values.shape[0], : values.shape[1]].contiguous(), (1.0 / scale).squeeze((1, 3))


def blocks_to_mxfp8(values: Tensor, dtype: torch.dtype, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A matrix to codes and E8M0 exponents, rounded up (`float_to_e8m0`, `exp2f_rcp` of ptx.cuh)."""
    tiles = _tiles(values.float(), *block)
    ratio = amax(tiles, (1, 3)) * torch.tensor(1.0 / LARGEST[dtype])
    bits = ratio.view(torch.int32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    up = (fraction > 0) & (exponent != 0xFE) & ~((exponent == 0) & (fraction <= 0x400000))
    exponent = torch.where(ratio.isinf(), 0xFE, exponent + up.int())
    inverse = torch.where(exponent == 0xFE, 2.0**-127, ((254 - exponent) << 23).view(torch.float32))
    codes = to_fp8(tiles * inverse, dtype).flatten(2).flatten(0, 1)
    return codes[: values.shape[0], : values.shape[1]].contiguous(), exponent.squeeze((1, 3)).to(torch.uint8)


def from_e8m0(exponents: Tensor) -> Tensor:
    """Exponents to FP64 scales."""
    return torch.exp2(exponents.double() - 127.0)


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def to_fp4(values: Tensor, *, stochastic: bool) -> Tensor:
    """FP32 values to e2m1, two codes a byte (the first in the low half): to nearest, ties to even, or stochastic."""
    magnitudes = values.abs().clamp(max=6.0)
    above = torch.bucketize(magnitudes, _FP4, right=True).clamp(max=7)
    below = above - 1
    below, above = torch.where(magnitudes >= 6.0, 7, below), torch.where(magnitudes >= 6.0, 7, above)
    low, high = _FP4[below], _FP4[above]
    part = torch.where(high > low, (magnitudes - low) / (high - low), 0.0)
    up = part > torch.rand_like(part) if stochastic else (part > 0.5) | ((part == 0.5) & (below % 2 == 1))
    codes = (torch.where(up, above, below) + 8 * (values < 0)).to(torch.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def from_fp4(codes: Tensor) -> Tensor:
    """Bytes to FP32, twice as many columns."""
    halves = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()
    return _FP4[halves & 7] * torch.where(halves >= 8, -1.0, 1.0)


def blocks_to_nvfp4(
    values: Tensor, largest: Tensor, block: tuple[int, int], *, stochastic: bool
) -> tuple[Tensor, Tensor]:
    """A matrix to bytes, and e4m3 scales of 16 columns in a row (core_nvfp4.cuh; custom_recipes has it in Python)."""
    tiles = _tiles(values.float(), *block)
    encode = divide(448.0 * 6.0, largest).clamp(max=_FP32_MAX)
    encode = torch.where(encode == 0, 1.0, encode)
    decode = (amax(tiles, (1, 3)) * (encode * torch.tensor(1.0 / 6.0))).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    inverse = (1.0 / (decode.float() * (1.0 / encode))).clamp(max=_FP32_MAX)
    scaled = (tiles * inverse).flatten(2).flatten(0, 1)[: values.shape[0], : values.shape[1]]
    scales = decode.view(torch.uint8).squeeze((1, 3)).repeat_interleave(block[0], 0)[: values.shape[0]]
    return to_fp4(scaled.contiguous(), stochastic=stochastic), scales
