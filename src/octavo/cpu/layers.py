"""What lies between the matrix products, made for CPUs: RMSNorm, rotary embedding, attention and the loss.

Tensors between layers are BF16, as on a GPU; inside, a layer computes in FP32 and rounds once, as fused GPU kernels do.
The arithmetic is in `octavo.cpu.kernels`; here it becomes modules. Norm and attention go into
Megatron-Core by its own way, a `BackendSpecProvider`, the loss by a subclass of its model; SwiGLU and the rotary
embedding take the place of functions that Megatron-Core fuses on GPUs (`octavo.cpu.backend`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

from octavo.cpu import kernels as cpu_kernels
from octavo.cpu import library
from octavo.cpu.products import in_one_call, multiply_causal, multiply_wide


class CpuLayers:
    """A spec provider's linear layers and experts with this module's norm and attention."""

    def __init__(self, provider: BackendSpecProvider) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def layer_norm(self, *_: bool, **__: bool) -> type:
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
        out, scale = cpu_kernels.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return *cpu_kernels.rms_norm_gradient(gradients[0], *ctx.saved_tensors), None


def rotary_embedding(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Megatron's function for [sequence, batch, heads, size] (`plain`), in one pass where halves rotate.

    Angles stay in FP32 as in Transformer Engine's fused kernel; `plain` would round cosines to BF16.
    """

    def apply(
        t: Tensor, freqs: Tensor, rotary_interleaved: bool = False, mscale: float = 1.0, **latent: bool
    ) -> Tensor:
        if rotary_interleaved or t.dim() != 4 or freqs.shape[1:3] != (1, 1):
            return plain(t, freqs, rotary_interleaved, mscale=mscale, **latent)
        size = freqs.shape[-1]
        turning, rest = t[..., :size], t[..., size:]
        if any(latent.values()):  # one, whose name differs by version: pairs lie beside each other in MLA's checkpoints
            turning = torch.cat((turning[..., 0::2], turning[..., 1::2]), -1)
        turned: Any = _Rotate.apply(turning, *_cosine_and_sine(freqs, mscale))
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned

    return apply


@lru_cache(maxsize=4)
def _cosine_and_sine(angles: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Of angles [sequence, 1, 1, size]; Megatron hands out the same tensor at every step."""
    angles = angles.detach().float().view(angles.shape[0], -1)
    return angles.cos().mul_(factor), angles.sin().mul_(factor)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.angles = cosine, sine
        return cpu_kernels.rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return cpu_kernels.rotate(gradients[0], *ctx.angles, back=True), None, None


def router_gating_linear(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Megatron-Core's function for a router's logits, by products whose bits are the same on every processor.

    torch's FP32 product is the BLAS library's, which sums in another order on another maker's processor. `plain` is
    Megatron's own, for what the compiled products do not take.
    """

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        if bias is None and dtype == torch.float32 and in_one_call(x) and in_one_call(weight):
            return _RouterLogits.apply(x, weight)  # type: ignore[no-any-return]
        return plain(x, weight, bias, dtype)

    return linear


class _RouterLogits(torch.autograd.Function):
    """x w^T with x [..., features] and w [experts, features] in BF16: FP32 logits; FP32 sums in its gradients, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply_wide("forward", x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_x = multiply_wide("input_gradient", gradient, weight).to(x.dtype).view_as(x)
        return of_x, multiply_wide("weight_gradient", gradient, x.reshape(-1, x.shape[-1])).to(weight.dtype)


def row_softmax(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.softmax` with the same bits on every processor; `plain` is torch's, for what the loops do not take."""

    def softmax(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
        wide = dtype == torch.float32 or (dtype is None and x.dtype == torch.float32)
        rows = x.dim() > 0 and dim in (-1, x.dim() - 1) and x.numel() > 0
        if library.COMPILED is not None and x.device.type == "cpu" and wide and rows:
            return _RowSoftmax.apply(x.float().contiguous())  # type: ignore[no-any-return]
        return plain(x, dim, dtype=dtype)

    return softmax


class _RowSoftmax(torch.autograd.Function):
    """Softmax over the last dimension of an FP32 tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        weights = cpu_kernels.softmax(x)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return cpu_kernels.softmax_gradient(gradients[0].contiguous(), weights)


class CpuModel(GPTModel):
    """Megatron's model with its loss in fewer passes over the logits."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Nats of each token, [batch, sequence]; labels [batch, sequence], logits [sequence, batch, vocabulary]."""
        if self.config.tensor_model_parallel_size > 1:
            return super().compute_language_model_loss(labels, logits)
        return _CrossEntropy.apply(logits, labels.t()).t().contiguous()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits [..., vocabulary]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = logits.contiguous(), labels.contiguous()
        loss, *numbers = cpu_kernels.cross_entropy(logits, labels)
        ctx.save_for_backward(logits, labels, *numbers)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return cpu_kernels.cross_entropy_gradient(gradients[0], *ctx.saved_tensors), None


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
        queries, keys, values = (tensor.flatten(1, 2).transpose(0, 1) for tensor in (query, key, value))
        if self.softmax_offset is None:
            attended: Any = _Attend.apply(queries, keys, values, self.scale, self.window)
        else:
            attended = _AttendWithSinks.apply(queries, keys, values, self.softmax_offset, self.scale, self.window)
        return attended.transpose(0, 1).reshape(length, batch, -1)

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


class _Attend(torch.autograd.Function):
    """softmax(scale q k^T) v over the keys that come before, of [batch x heads, sequence, size].

    Scores and softmax are FP32. Weights and the gradients of scores are rounded to BF16, in which they are multiplied,
    as FlashAttention does (arXiv 2307.08691).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        q, k, v = (tensor.contiguous() for tensor in (query, key, value))
        scores = multiply_causal("forward", q, k, torch.float32)  # q k^T
        weights = cpu_kernels.attention_weights(scores, scale, window)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.window = scale, window
        return multiply_causal("input_gradient", weights, v, query.dtype)  # weights v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_weights = multiply_causal("forward", gradient, v, torch.float32)
        to_scores = cpu_kernels.attention_weights_gradient(to_weights, weights, ctx.scale, ctx.window)
        to_q = multiply_causal("input_gradient", to_scores, k, q.dtype)
        to_k = multiply_causal("weight_gradient", to_scores, q, k.dtype)  # scores^T q
        return to_q, to_k, multiply_causal("weight_gradient", weights, gradient, v.dtype), None, None


class _AttendWithSinks(torch.autograd.Function):
    """The same with a sink of each head, which takes part in the softmax as one more key, whose value is nothing."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, scale: float, window: int | None
    ) -> Tensor:
        q, k, v = (tensor.contiguous() for tensor in (query, key, value))
        matrices, length, _ = q.shape
        later = cpu_kernels.mask(length, window, q.device) != 0
        scores = multiply_causal("forward", q, k, torch.float32).mul_(scale).masked_fill_(later, -torch.inf)
        of_heads = sinks.float().repeat(matrices // len(sinks)).view(-1, 1, 1).expand(-1, length, 1)
        whole = cpu_kernels.softmax(torch.cat((scores, of_heads), -1))
        weights, of_sinks = whole[..., :-1].bfloat16().contiguous(), whole[..., -1:].clone()
        ctx.save_for_backward(q, k, v, sinks, weights, of_sinks)
        ctx.scale = scale
        return multiply_causal("input_gradient", weights, v, query.dtype)  # weights v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, weights, of_sinks = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_weights = multiply_causal("forward", gradient, v, torch.float32).tril_()  # without what is left open
        whole = torch.cat((weights.float(), of_sinks), -1)
        to_all = cpu_kernels.softmax_gradient(torch.cat((to_weights, torch.zeros_like(of_sinks)), -1), whole)
        to_scores = to_all[..., :-1].mul(ctx.scale).bfloat16()
        # running sums are made one after another, where torch's sum depends on the processor's vectors
        of_head = to_all[..., -1].view(-1, len(sinks), q.shape[1]).transpose(0, 1).flatten(1)
        to_q = multiply_causal("input_gradient", to_scores, k, q.dtype)
        to_k = multiply_causal("weight_gradient", to_scores, q, k.dtype)
        to_v = multiply_causal("weight_gradient", weights, gradient, v.dtype)
        return to_q, to_k, to_v, of_head.cumsum(-1)[:, -1].to(sinks.dtype), None, None
