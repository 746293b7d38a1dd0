"""Routed experts as one module: all experts' weights stacked, their products computed as one group.

Takes the place of megatron.core.transformer.moe.experts.{GroupedMLP, TEGroupedMLP} where there is no CUDA: the same
call, and the same SwiGLU experts weighted by the router's probabilities before the second product (so that the
combination after it is a sum).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import _initialize_affine_weight_gpu
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import divide
from torch import Tensor
from torch.nn import Parameter

from octavo.cpu import kernels as cpu_kernels
from octavo.precision.history import AmaxHistory
from octavo.precision.products import BF16, Numerics, grouped_linear

_WIDTH_AXIS: dict[str, int | None] = {"weight1": 2, "weight2": 2, "bias1": 2, "bias2": None}
"""The axis of each parameter that expert-tensor-parallel ranks share out."""


class GroupedExperts(MegatronModule):
    """The experts of one layer and rank.

    Weights are [experts, 2, width, hidden] (gate and up, then width over expert-tensor-parallel ranks) and
    [experts, hidden, width]: sharded along plain axes, so checkpoints can be resharded over expert parallelism.
    """

    numerics: Numerics = BF16

    def __init__(
        self, num_local_experts: int, config: TransformerConfig, pg_collection: ProcessGroupCollection, **_: Any
    ) -> None:
        super().__init__(config=config)
        self.num_local_experts = num_local_experts
        self.groups = pg_collection
        assert config.moe_ffn_hidden_size is not None
        width = divide(config.moe_ffn_hidden_size, pg_collection.expt_tp.size())
        hidden = config.hidden_size
        self.weight1 = self._parameter("weight1", (2, width, hidden), config.init_method)
        self.weight2 = self._parameter("weight2", (hidden, width), config.output_layer_init_method)
        self.bias1 = self.bias2 = None
        if config.add_bias_linear:
            self.bias1 = self._parameter("bias1", (2, width), torch.nn.init.zeros_)
            self.bias2 = self._parameter("bias2", (hidden,), torch.nn.init.zeros_)
        self.history1 = self.history2 = None
        if self.numerics.recipe.scaling == "delayed":
            self.history1 = AmaxHistory(self.numerics.amax_history, num_local_experts)
            self.history2 = AmaxHistory(self.numerics.amax_history, num_local_experts)

    def _parameter(self, name: str, shape: tuple[int, ...], initialise: Any) -> Parameter:
        """One parameter of every expert; their random numbers are the expert-parallel rank's own."""
        shape = (self.num_local_experts, *shape)
        parameter = Parameter(torch.empty(shape, device=torch.cuda.current_device(), dtype=self.config.params_dtype))
        if self.config.perform_initialization:
            _initialize_affine_weight_gpu(parameter, initialise, partition_dim=_WIDTH_AXIS[name] or 0, is_expert=True)
        parameter.allreduce = self.config.expert_model_parallel_size == 1  # type: ignore[attr-defined]
        return parameter

    def forward(
        self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """Tokens [tokens, hidden], sorted by expert, with their router probabilities [tokens]."""
        counts = tokens_per_expert.tolist()
        both = grouped_linear(
            permuted_local_hidden_states, self.weight1, self.bias1, counts, self.numerics, self.history1
        )
        activated = _WeightedSwiGLU.apply(both, permuted_probs)
        return grouped_linear(activated, self.weight2, self.bias2, counts, self.numerics, self.history2), None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One sharded tensor per parameter: over expert-parallel ranks by expert, over tensor-parallel by width."""
        before = len(sharded_offsets)
        experts = (before, self.groups.ep.rank(), self.groups.ep.size())
        tensors = {}
        for name, parameter in self.named_parameters(recurse=False):
            offsets, replica = [*sharded_offsets, experts], self.groups.expt_tp.rank()
            if (width_axis := _WIDTH_AXIS[name]) is not None:
                offsets.append((before + width_axis, self.groups.expt_tp.rank(), self.groups.expt_tp.size()))
                replica = 0
            key = f"{prefix}{name}"
            tensors[key] = ShardedTensor.from_rank_offsets(
                key,
                parameter,
                *offsets,
                replica_id=(0, replica, self.groups.expt_dp.rank()),
                prepend_axis_num=before,
            )
        # amax histories, experts last; those at the same place of all ranks are the same: one rank's do, where no other
        # number of ranks goes on from them
        reshardable = bool(metadata and metadata.get("reshardable"))
        for name, buffer in self.named_buffers():
            place = [(before + buffer.dim() - 1, self.groups.ep.rank(), self.groups.ep.size())] * reshardable
            tensors[f"{prefix}{name}"] = ShardedTensor.from_rank_offsets(
                f"{prefix}{name}",
                buffer,
                *sharded_offsets,
                *place,
                replica_id=(
                    0 if reshardable else self.groups.ep.rank(),
                    self.groups.expt_tp.rank(),
                    self.groups.expt_dp.rank(),
                ),
                prepend_axis_num=before,
            )
        return tensors

    def backward_dw(self) -> None:
        """Weight gradients are not delayed."""


class _WeightedSwiGLU(torch.autograd.Function):
    """silu(gate) * up * probability: [tokens, 2 width], [tokens] -> [tokens, width]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, probabilities: Tensor) -> Tensor:
        ctx.save_for_backward(both, probabilities)
        return cpu_kernels.swiglu(both, probabilities)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return cpu_kernels.swiglu_gradient(gradients[0], *ctx.saved_tensors)
