"""What lies between the matrix products, made for CPUs: RMSNorm, attention, SwiGLU and the loss.

Tensors between layers are BF16, as on a GPU; inside, a layer computes in FP32 and rounds once. That is what fused GPU
kernels do (FlashAttention, arXiv 2205.14135, keeps scores and softmax in FP32), and on a CPU without BF16 instructions
it is also the fast way. torch's modules in their place would make a dozen passes over memory where these make a few.
Norm and attention go into Megatron-Core by its own way, a `BackendSpecProvider`, the loss by a subclass of its model;
SwiGLU takes the place of the two functions that Megatron-Core compiles on GPUs (`octavo.training.cpu_backend`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    is_layer_window_attention,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn


class CpuLayers:
    """A spec provider's linear layers and experts with this module's norm and attention."""

    def __init__(self, provider: BackendSpecProvider) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:  # noqa: ARG002
        """RMSNorm."""
        return RMSNorm

    def core_attention(self) -> type:
        """Softmax attention."""
        return Attention


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467), in FP32, rounded once."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> the same."""
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        gradient, normed = gradients[0].float(), x.float().mul_(scale)
        to_weight = (gradient * normed).flatten(0, -2).sum(0)
        gradient = gradient * weight.float()
        # d/dx of x * scale: scale * (g - normed * mean(g * normed))
        mean = (gradient * normed).mean(-1, keepdim=True)
        to_x = gradient.addcmul_(normed, mean, value=-1).mul_(scale)
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202): [..., 2 width], gate before up -> [..., width]."""
    gate, up = both.float().chunk(2, -1)
    return nn.functional.silu(gate).mul_(up).to(both.dtype)


def swiglu_gradient(gradient: Tensor, both: Tensor) -> Tensor:
    """The gradient of what `swiglu` was given: [..., width], [..., 2 width] -> [..., 2 width]."""
    gate, up = both.float().chunk(2, -1)
    sigmoid, wide = gate.sigmoid(), gradient.float()
    silu = gate * sigmoid
    result = torch.empty_like(both)
    to_gate, to_up = result.chunk(2, -1)
    to_up.copy_(wide * silu)
    # d silu(z)/dz = s + z s (1 - s) = s + silu(z) (1 - s)
    to_gate.copy_(sigmoid.addcmul_(silu, 1 - sigmoid).mul_(up).mul_(wide))
    return result


class CpuModel(GPTModel):
    """Megatron's model with its loss in fewer passes over the logits."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Nats of each token, [batch, sequence]; labels [batch, sequence], logits [sequence, batch, vocabulary]."""
        if self.config.tensor_model_parallel_size > 1:
            return super().compute_language_model_loss(labels, logits)
        return _CrossEntropy.apply(logits, labels.t()).t().contiguous()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits [..., vocabulary] in FP32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.unsqueeze(-1)
        probabilities = torch.softmax(logits, -1, dtype=torch.float32)
        ctx.save_for_backward(probabilities, labels)
        ctx.logits_type = logits.dtype
        # -log p(label), by way of the most probable token, whose probability cannot underflow
        below = logits.amax(-1, keepdim=True).float().sub_(logits.gather(-1, labels))
        return below.sub_(probabilities.amax(-1, keepdim=True).log_()).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        probabilities, labels = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        # in place: nothing goes backward twice, and memory never touched before is slow
        return probabilities.mul_(gradient).scatter_add_(-1, labels, -gradient).to(ctx.logits_type), None


class Attention(MegatronModule):
    """Causal softmax attention, with a sliding window and learned sinks where the model has them.

    Queries [sequence, batch, heads, size], keys and values [sequence, batch, kv heads, size]; the result is
    [sequence, batch, heads x value size].
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        size = k_channels or config.kv_channels
        assert size is not None
        self.scale = softmax_scale or 1 / math.sqrt(size)
        every: Any = config.window_attn_skip_freq
        slides = is_layer_window_attention(config.window_size, every, layer_number)
        self.window = config.window_size[0] + 1 if slides and config.window_size else None
        self.softmax_offset = None
        if config.softmax_type == "learnable":
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = nn.Parameter(torch.zeros(heads, dtype=config.params_dtype))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attend to this token and the earlier ones."""
        length, batch, heads = query.shape[:3]
        groups = heads // key.shape[2]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, dim=2) for tensor in (key, value))
        # [sequence, batch, heads, size] -> [batch x heads, sequence, size]
        queries, keys, values = (tensor.flatten(1, 2).transpose(0, 1).float() for tensor in (query, key, value))
        scores = torch.baddbmm(mask(length, self.window), queries, keys.transpose(1, 2), alpha=self.scale)
        if self.softmax_offset is not None:
            sinks = self.softmax_offset.float().repeat(batch).view(-1, 1, 1).expand(-1, length, 1)
            weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return torch.bmm(weights, values).to(query.dtype).transpose(0, 1).reshape(length, batch, -1)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sinks are split over tensor-parallel ranks with their heads."""
        whole: Any = ensure_metadata_has_dp_cp_group(metadata)
        ranks: Any = parallel_state.get_tensor_model_parallel_group()
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"softmax_offset": 0},
            sharded_offsets,
            tp_group=ranks,
            dp_cp_group=whole["dp_cp_group"],
        )


@lru_cache(maxsize=4)
def mask(length: int, window: int | None) -> Tensor:
    """[1, length, length]: 0 where a query (row) attends to a key (column), minus infinity elsewhere."""
    distance = torch.arange(length).view(-1, 1) - torch.arange(length)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    return torch.zeros(1, length, length).masked_fill_(~allowed, -math.inf)
