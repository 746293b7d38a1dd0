"""The experiment of DeepSeek-V3 (arXiv 2412.19437, section 3.3.2): the error of a sum of K products against K.

Two random matrices of FP8 (e4m3) codes are multiplied with each accumulation that Octavo emulates; the exact product
is computed in FP64. The report says that with K = 4096 Hopper's accumulator gives "a maximum relative error of nearly
2 %", and does not say of which matrices nor relative to what. Here the operands are normal, and errors are relative to
the outputs' root mean square: an output by itself may cancel to nothing, and then any error is infinite in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from octavo.precision.accumulators import PROMOTION_INTERVAL, short_accumulation

Accumulation = Literal["fp32", "promoted", "fp14"]
ACCUMULATIONS: tuple[Accumulation, ...] = get_args(Accumulation)


@dataclass(frozen=True)
class AccumulationError:
    """The error of one accumulation over one K, relative to the root mean square of the exact outputs."""

    k: int
    accumulation: Accumulation
    maximum: float
    """Over all outputs."""
    root_mean_square: float


def accumulation_errors(sizes: list[int], outputs: int, seed: int) -> list[AccumulationError]:
    """The errors over each K of `sizes`, for `outputs` x `outputs` results."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in sizes:
        a, b = (_codes(shape, generator) for shape in ((outputs, k), (k, outputs)))
        exact = a.double() @ b.double()
        scale = exact.square().mean().sqrt()
        for accumulation in ACCUMULATIONS:
            error = ((accumulate(a, b, accumulation).double() - exact) / scale).abs()
            found.append(AccumulationError(k, accumulation, error.max().item(), error.square().mean().sqrt().item()))
    return found


def accumulate(a: Tensor, b: Tensor, accumulation: Accumulation) -> Tensor:
    """a b of two FP32 matrices, summed as named."""
    if accumulation == "fp32":
        return a @ b
    return short_accumulation(a, b, PROMOTION_INTERVAL if accumulation == "promoted" else None)


def _codes(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Normal numbers rounded to e4m3, as FP32."""
    return torch.randn(shape, generator=generator).to(torch.float8_e4m3fn).float()
