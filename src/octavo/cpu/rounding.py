"""Rounding tensors to eight-bit floating point, with one scale per tensor or per block.

Rounded values stay in BF16 or FP32, which have all of them: a rounded tensor holds numbers that the 8-bit format (times
a power of two) has, and nothing else. Rounding is to nearest, ties to even, subnormals kept, saturating, as GPUs'
conversions do; it agrees with torch's float8 casts of the scaled values, except that negative values which round to
zero give +0.

The trick: adding 1.5 * 2^(23-m) * 2^e to a value of exponent e leaves room for m fraction bits below it, so FP32's own
rounding does the work, and subtracting the same number brings the value back. It holds up to 2^100, far above anything
that trains.

Each function is there twice: in torch's operators, and in C (`rounding.c`) for BF16 tensors on CPUs, which is what
training rounds. Both give the same bits; the compiled one is several times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_float, c_int64
from typing import Any

import torch
from torch import Tensor

from octavo.cpu import library
from octavo.cpu.formats import Format

_EXPONENT = 0x7F800000  # FP32's exponent bits: x & _EXPONENT is the power of two at or below |x|


def largest_magnitude(tensor: Tensor) -> float:
    """The largest magnitude in a tensor; 0 for an empty one, NaN if there is a NaN."""
    return largest_magnitudes(tensor, [tensor.numel()])[0]


def largest_magnitudes(tensor: Tensor, sizes: Sequence[int]) -> list[float]:
    """`largest_magnitude` of each group of a tensor's values: the first sizes[0] of them, the next sizes[1], ..."""
    if kernel := _kernel_for(tensor):
        most = (c_float * len(sizes))()
        kernel.octavo_amax(tensor.data_ptr(), len(sizes), _integers(sizes), most)
        return list(most)
    return [_largest(group) for group in tensor.flatten().split(list(sizes))]


def _largest(values: Tensor) -> float:
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


def tensor_scale(amax: float, format: Format, *, exact: bool = False) -> float:
    """The FP32 factor that brings `amax` to the format's largest number; 1 for zero, infinity and NaN.

    With `exact` the power of two at or below it. Transformer Engine's rule (`compute_scale_from_amax`).
    """
    if amax == 0.0 or not math.isfinite(amax):
        return 1.0
    scale = min(to_fp32(format.largest / amax), torch.finfo(torch.float32).max)
    return 2.0 ** (math.frexp(scale)[1] - 1) if exact else scale


def to_fp32(value: float) -> float:
    """A Python float rounded to FP32 (infinite where FP32 is)."""
    return c_float(value).value


def round_scaled(tensor: Tensor, scale: float, format: Format, out: Tensor) -> None:
    """`out` = codes of `format`, as numbers, nearest to `tensor` times `scale` (in FP32), saturating."""
    round_groups_scaled(tensor, [tensor.numel()], [scale], format, out)


def round_groups_scaled(
    tensor: Tensor, sizes: Sequence[int], scales: Sequence[float], format: Format, out: Tensor
) -> None:
    """`round_scaled` of each group of a tensor's values (`largest_magnitudes`) with its own scale; `out` contiguous."""
    if kernel := _kernel_for(tensor, out):
        groups = len(sizes), _integers(sizes), (c_float * len(scales))(*scales)
        kernel.octavo_quantise(tensor.data_ptr(), out.data_ptr(), *groups, *_constants(format))
        return
    parts = (one.flatten().split(list(sizes)) for one in (tensor, out.view(-1)))
    for values, rounded, scale in zip(*parts, scales, strict=True):
        _round_scaled(values, scale, format, rounded)


def _round_scaled(tensor: Tensor, scale: float, format: Format, out: Tensor) -> None:
    values = (tensor.float() * scale).clamp_(-format.largest, format.largest)
    _round_to(values, format, power_of_two(values).clamp_min_(format.smallest_normal))
    out.copy_(values)


def round_blocks(tensor: Tensor, format: Format, block: tuple[int, int], out: Tensor) -> None:
    """`out` = `tensor` [rows, columns], each `block` (rows, columns) rounded with its own power-of-two scale.

    The scale is the largest power of two that keeps the block's largest magnitude within the format (so nothing
    saturates): Transformer Engine's rule for its block recipes, and E8M0's rounded up. The result is de-scaled, which
    is exact. Blocks at the right and lower edge may be smaller. A block with an infinity becomes NaN; NaN stays,
    and the rest of its block is rounded without it.
    """
    round_groups_blocks(tensor, [tensor.shape[0]], format, block, out)


def round_groups_blocks(
    tensor: Tensor,
    rows: Sequence[int],
    format: Format,
    block: tuple[int, int],
    out: Tensor,
    *,
    exact_scales: bool = True,
) -> None:
    """`round_blocks` of each group of a tensor's rows: the first rows[0], the next rows[1], ...; no block has rows of
    two groups. Without `exact_scales` a block's scale is no power of two but `tensor_scale`'s, and `out` is FP32."""
    if not exact_scales:
        for values, rounded in zip(tensor.split(list(rows)), out.split(list(rows)), strict=True):
            _round_blocks_by_fp32(values, format, block, rounded)
        return
    if kernel := _kernel_for(tensor, out):
        _round_blocks_compiled(kernel, tensor, rows, format, block, out)
        return
    for values, rounded in zip(tensor.split(list(rows)), out.split(list(rows)), strict=True):
        _round_blocks(values, format, block, rounded)


def _round_blocks(tensor: Tensor, format: Format, block: tuple[int, int], out: Tensor) -> None:
    values = tensor.to(torch.float32, copy=True)
    # as the compiled loops and Transformer Engine do, the magnitude of a block leaves out what is no number
    magnitudes, powers = values.abs().nan_to_num_(0.0, math.inf), power_of_two(values)
    for rows_of, rows in _cuts(tensor.shape[0], block[0]):
        for columns_of, columns in _cuts(tensor.shape[1], block[1]):
            amax = _blocks(magnitudes[rows_of, columns_of], rows, columns).amax((1, 3), keepdim=True)
            # A block of zeros has an infinite scale, at which its smallest normal is 0, and zeros stay zeros.
            smallest_normal = format.smallest_normal / power_of_two(format.largest / amax)
            power = _blocks(powers[rows_of, columns_of], rows, columns)
            torch.maximum(power, smallest_normal, out=power)
    _round_to(values, format, powers)
    out.copy_(values)


def _round_blocks_by_fp32(tensor: Tensor, format: Format, block: tuple[int, int], out: Tensor) -> None:
    """The inverse of a scale is rounded to FP32, and so is what it multiplies: as Transformer Engine dequantises.

    A scale beyond the largest number of the tensor's type is that number, as in its kernels.
    """
    for rows_of, rows in _cuts(tensor.shape[0], block[0]):
        for columns_of, columns in _cuts(tensor.shape[1], block[1]):
            values = _blocks(tensor[rows_of, columns_of].float(), rows, columns)
            amax = values.abs().nan_to_num(0.0, math.inf).amax((1, 3), keepdim=True)
            # a number divided by a tensor would be multiplied by the rounded inverse
            scale = (torch.full_like(amax, format.largest) / amax).clamp_(max=torch.finfo(tensor.dtype).max)
            scale = torch.where(amax == 0, 1.0, torch.where(amax.isinf(), math.nan, scale))
            codes = (values * scale).clamp_(-format.largest, format.largest)
            _round_to(codes, format, power_of_two(codes).clamp_min_(format.smallest_normal))
            _blocks(out[rows_of, columns_of], rows, columns).copy_(codes.mul_(1.0 / scale))


def power_of_two(values: Tensor) -> Tensor:
    """The power of two at or below each FP32 magnitude (0 for subnormals and zeros); a new tensor."""
    return values.view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32)


def _round_to(values: Tensor, format: Format, power: Tensor) -> None:
    """Round in place to the fraction bits of `format`, each value at the exponent of its `power`.

    That is its own, or the format's smallest normal's if that is larger, times the scale to be taken out afterwards.
    So values may be rounded where they are, without scaling them.
    """
    shift = _shift(format)
    values.add_(power, alpha=shift).sub_(power, alpha=shift)


def _shift(format: Format) -> float:
    return 1.5 * 2.0 ** (23 - format.fraction_bits)


def _blocks(values: Tensor, rows: int, columns: int) -> Tensor:
    """A view of [rows, columns] as [rows of blocks, rows, columns of blocks, columns]."""
    return values.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def _cuts(size: int, block: int) -> list[tuple[slice, int]]:
    """What whole blocks of an axis cover and how long they are, then the same for a shorter one at its end."""
    whole = size - size % block
    cuts = [(slice(0, whole), block), (slice(whole, size), size - whole)]
    return [(cut, length) for cut, length in cuts if cut.stop > cut.start]


# --- the compiled functions -------------------------------------------------------------------------------------------


def _kernel_for(*tensors: Tensor) -> Any:
    """The compiled library, where it is there and takes these tensors."""
    fits = (one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.is_contiguous() for one in tensors)
    return library.COMPILED if all(fits) else None


def _constants(format: Format) -> tuple[float, float, float]:
    return format.largest, format.smallest_normal, _shift(format)


def _integers(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


def _round_blocks_compiled(
    kernel: Any, tensor: Tensor, rows: Sequence[int], format: Format, block: tuple[int, int], out: Tensor
) -> None:
    places, columns = (tensor.data_ptr(), out.data_ptr()), tensor.shape[1]
    if block[0] == 1:  # every row is by itself, whatever group it is in
        kernel.octavo_quantise_rows(*places, tensor.shape[0], columns, block[1], *_constants(format))
    else:
        most, floor = torch.empty(columns, dtype=torch.int16), torch.empty(columns)
        sizes = (len(rows), _integers(rows), columns, *block)
        kernel.octavo_quantise_blocks(*places, *sizes, *_constants(format), most.data_ptr(), floor.data_ptr())
