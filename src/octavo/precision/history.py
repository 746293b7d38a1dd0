"""Delayed scaling's memory: the largest magnitudes of past steps, from which the next step's scales follow.

Transformer Engine's rule (`DelayedScaling`, `amax_compute_algo="max"`, margin 0; its `delayed_scaling.cu`): a tensor is
scaled by largest / (largest magnitude over the last `length` passes); a pass scales by what the passes before it left,
then adds its own magnitude. The scale is 1 at first. A pass whose magnitude is 0 (an expert without tokens) leaves
history and scale as they are. Weights are quantised once in a step, in its first micro-batch. Passes of validation
scale by what there is; their magnitudes count with the next pass of training. Magnitudes are the largest over all ranks
that share the recipe (Megatron's amax reduction group).
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    newest: Tensor
    """Of passes since the history was last rolled."""
    scales: Tensor
    passes: Tensor

    def __init__(self, length: int, experts: int) -> None:
        super().__init__()
        kinds = len(_KINDS)
        self.register_buffer("amaxes", torch.zeros(kinds, length, experts, dtype=torch.int32))
        self.register_buffer("newest", torch.zeros(kinds, experts, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(kinds, experts).view(torch.int32))
        self.register_buffer("passes", torch.zeros(kinds, experts, dtype=torch.int64))
        self._in_steps = False
        self._weight_scales: list[float] | None = None

    def begin_step(self) -> None:
        """Weights are quantised anew by the next pass, and then not before the next step. Without it, by every pass."""
        self._in_steps, self._weight_scales = True, None

    def scales_of(
        self, kind: TensorKind, amaxes: Callable[[], list[float]], format: Format, *, training: bool
    ) -> list[float]:
        """A pass's scales, one per expert; its largest magnitudes are taken note of."""
        if training and kind == "weight" and self._weight_scales is not None:
            return self._weight_scales
        scales = self.scale(kind)
        if training:
            self.record(kind, amaxes(), format)
            if kind == "weight" and self._in_steps:
                self._weight_scales = scales
        else:
            self._note(kind, torch.tensor(amaxes()))
        return scales

    def scale(self, kind: TensorKind) -> list[float]:
        """The scales that the passes so far have left, one per expert."""
        return self.scales[_KINDS.index(kind)].view(torch.float32).tolist()

    def record(self, kind: TensorKind, amaxes: list[float], format: Format) -> None:
        """Add one pass's largest magnitudes and set the next pass's scales."""
        index = _KINDS.index(kind)
        newest = self._note(kind, torch.tensor(amaxes))
        history, passes = self.amaxes[index].view(torch.float32), self.passes[index]
        (seen,) = newest.nonzero(as_tuple=True)
        history[passes[seen] % len(history), seen] = newest[seen]
        passes[seen] += 1
        newest.zero_()
        scales, largest = self.scales[index].view(torch.float32), history.amax(0).tolist()
        for expert in seen.tolist():
            if math.isfinite(largest[expert]):
                scales[expert] = min(to_fp32(format.largest / largest[expert]), torch.finfo(torch.float32).max)

    def _note(self, kind: TensorKind, amaxes: Tensor) -> Tensor:
        """The largest magnitudes since the history was rolled, these among them, over all ranks."""
        newest = self.newest[_KINDS.index(kind)].view(torch.float32)
        torch.maximum(newest, amaxes, out=newest)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
            torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX, group=group)
        return newest
