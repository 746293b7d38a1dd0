"""Delayed scaling's memory: the largest magnitudes of past steps, from which the next step's scales follow.

Transformer Engine's rule (`DelayedScaling`, `amax_compute_algo="max"`, margin 0): a tensor is scaled by
largest / (largest magnitude over the last `length` passes); a pass scales by what the passes before it left, then adds
its own magnitude. The scale is 1 at first, and stays as it is while the history holds nothing but zeros. Magnitudes
are the largest over all ranks that share the recipe (Megatron's amax reduction group).
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from octavo.cpu.formats import Format
from octavo.cpu.rounding import to_fp32
from octavo.records import TensorKind

_KINDS: tuple[TensorKind, ...] = get_args(TensorKind)


class AmaxHistory(nn.Module):
    """The amax history and scales of one layer's input, weight and gradient, one of each per expert.

    They are FP32 numbers kept as their bits, in int32 buffers: checkpoints save buffers, and turning a model to BF16
    leaves integers alone.
    """

    amaxes: Tensor
    scales: Tensor
    passes: Tensor

    def __init__(self, length: int, experts: int) -> None:
        super().__init__()
        kinds = len(_KINDS)
        self.register_buffer("amaxes", torch.zeros(kinds, length, experts, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(kinds, experts).view(torch.int32))
        self.register_buffer("passes", torch.zeros(kinds, dtype=torch.int64))

    def scale(self, kind: TensorKind) -> list[float]:
        """The scales that the passes so far have left, one per expert."""
        return self.scales[_KINDS.index(kind)].view(torch.float32).tolist()

    def record(self, kind: TensorKind, amaxes: list[float], format: Format) -> None:
        """Add one pass's largest magnitudes and set the next pass's scales."""
        index = _KINDS.index(kind)
        newest = torch.tensor(amaxes)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
            torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX, group=group)
        history = self.amaxes[index].view(torch.float32)
        history[int(self.passes[index]) % len(history)] = newest
        self.passes[index] += 1
        scales = self.scales[index].view(torch.float32)
        for expert, amax in enumerate(history.amax(0).tolist()):
            if amax > 0 and math.isfinite(amax):
                scales[expert] = min(to_fp32(format.largest / amax), torch.finfo(torch.float32).max)
