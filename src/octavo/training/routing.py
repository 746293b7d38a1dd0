"""Which tokens went to which expert: read off the routers while a model runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RouterProbe:
    """Counts tokens per sequence and expert in every mixture-of-experts layer of the decoder, while it is on."""

    def __init__(self, chunks: list[DistributedDataParallel], config: TransformerConfig) -> None:
        frequency = config.moe_layer_freq
        self.layers = [layer for layer, moe in enumerate(frequency) if moe] if isinstance(frequency, list) else []
        self.experts = config.num_moe_experts or 0
        self._whole_sequences = config.tensor_model_parallel_size == 1 or not config.sequence_parallel
        self._counts: dict[int, list[Tensor]] = {}
        self._on = False
        for chunk in chunks:
            for name, module in chunk.named_modules():
                if isinstance(module, TopKRouter) and ".mtp." not in f".{name}.":
                    module.register_forward_hook(self._count)

    def switch(self, on: bool) -> None:
        """Begin to count, from zero, or stop."""
        self._counts, self._on = {}, on

    def _count(self, router: TopKRouter, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        if self._on:
            length, batch = inputs[0].shape[:2]
            assert router.layer_number is not None
            chosen = output[1].view(length, batch, self.experts).sum(0)
            self._counts.setdefault(router.layer_number - 1, []).append(chosen)

    def tokens(self, sequences: int, own: list[int]) -> Tensor:
        """Tokens by [mixture-of-experts layer, sequence, expert] over all ranks, and stop counting.

        `own` are the numbers, among all `sequences`, of those that this rank has seen, in the order it saw them.
        """
        device: Any = torch.cuda.current_device()
        counts = torch.zeros(len(self.layers), sequences, self.experts, dtype=torch.float64, device=device)
        for row, layer in enumerate(self.layers):
            if layer in self._counts:
                seen = torch.cat(self._counts[layer]).to(counts.dtype)
                counts[row].index_add_(0, torch.tensor(own, device=device), seen)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(counts)
        if self._whole_sequences:  # every tensor-parallel rank counted the same tokens
            counts /= parallel_state.get_tensor_model_parallel_world_size()
        self.switch(False)
        return counts
