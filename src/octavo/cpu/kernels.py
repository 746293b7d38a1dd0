"""What lies between the matrix products, computed on CPUs: forward functions and their gradients.

BF16 in, BF16 out, FP32 inside, rounded once, as fused GPU kernels do. `kernels.c` makes one pass over memory where
torch's operators make up to a dozen. Without the compiled library, and for other types and devices, torch's operators
compute the same functions: equal to within rounding, not to the last bit.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from octavo.cpu import library


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled loops can take these operands (contiguous rows are the caller's business)."""
    return library.COMPILED is not None and all(
        tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" for tensor in tensors
    )


# --- RMSNorm (arXiv 1910.07467) ---------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, and each row's factor [..., 1] for the gradient."""
    if _compiled(x, weight):
        x, out, scale = x.contiguous(), x.new_empty(x.shape), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        places = (x.data_ptr(), weight.data_ptr(), out.data_ptr(), scale.data_ptr())
        library.COMPILED.octavo_rms_norm(*places, scale.numel(), x.shape[-1], eps)
        return out, scale
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight.float()).to(x.dtype), scale


def rms_norm_gradient(gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    if _compiled(gradient, x, weight):
        gradient, x = gradient.contiguous(), x.contiguous()
        to_x, to_weight = x.new_empty(x.shape), torch.zeros(weight.shape, dtype=torch.float32)
        places = [tensor.data_ptr() for tensor in (gradient, x, weight, scale, to_x, to_weight)]
        library.COMPILED.octavo_rms_norm_gradient(*places, scale.numel(), x.shape[-1])
        return to_x, to_weight.to(weight.dtype)
    wide, normed = gradient.float(), x.float().mul_(scale)
    to_weight = (wide * normed).flatten(0, -2).sum(0)
    wide = wide * weight.float()
    # d/dx of x * scale: scale * (g - normed * mean(g * normed))
    mean = (wide * normed).mean(-1, keepdim=True)
    to_x = wide.addcmul_(normed, mean, value=-1).mul_(scale)
    return to_x.to(x.dtype), to_weight.to(weight.dtype)


# --- SwiGLU (arXiv 2002.05202) ----------------------------------------------------------------------------------------


def swiglu(both: Tensor, weight: Tensor | None = None) -> Tensor:
    """silu(gate) * up (* weight): [..., 2 width], gate before up, and a weight per row [...] -> [..., width]."""
    width = both.shape[-1] // 2
    if _compiled(both):
        both, out = both.contiguous(), both.new_empty(*both.shape[:-1], width)
        row_weight = None if weight is None else weight.float().contiguous()
        library.COMPILED.octavo_swiglu(both.data_ptr(), _place(row_weight), out.data_ptr(), _rows(both), width)
        return out
    gate, up = both.float().chunk(2, -1)
    product = functional.silu(gate).mul_(up)
    return (product if weight is None else product.mul_(weight.unsqueeze(-1))).to(both.dtype)


def swiglu_gradient(gradient: Tensor, both: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The gradients of what `swiglu` was given: [..., 2 width], and [...] where there is a weight."""
    width = both.shape[-1] // 2
    if _compiled(gradient, both):
        gradient, both, to_both = gradient.contiguous(), both.contiguous(), both.new_empty(both.shape)
        row_weight = None if weight is None else weight.float().contiguous()
        to_weight = None if row_weight is None else torch.empty_like(row_weight)
        places = (gradient.data_ptr(), both.data_ptr(), _place(row_weight), to_both.data_ptr(), _place(to_weight))
        library.COMPILED.octavo_swiglu_gradient(*places, _rows(both), width)
        return to_both, to_weight if weight is None or to_weight is None else to_weight.to(weight.dtype)
    gate, up = both.float().chunk(2, -1)
    sigmoid, slope, to_weight = gate.sigmoid(), gradient.float(), None
    silu = gate * sigmoid
    if weight is not None:
        to_weight = (slope * silu).mul_(up).sum(-1).to(weight.dtype)
        slope = slope * weight.unsqueeze(-1)
    result = torch.empty_like(both)
    to_gate, to_up = result.chunk(2, -1)
    to_up.copy_(slope * silu)
    # d silu(z)/dz = s + z s (1 - s) = s + silu(z) (1 - s)
    to_gate.copy_(sigmoid.addcmul_(silu, 1 - sigmoid).mul_(up).mul_(slope))
    return result, to_weight


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy in nats of each label [...] under logits [..., vocabulary] (contiguous), and what its gradient
    needs of each row: m, the largest logit, and the sum of exp(logit - m) over the vocabulary.
    """
    if _compiled(logits):
        numbers = torch.empty(3, *labels.shape)
        places = [tensor.data_ptr() for tensor in (logits, labels, *numbers)]
        library.COMPILED.octavo_cross_entropy(*places, labels.numel(), logits.shape[-1])
        loss, largest, total = numbers
        return loss, largest, total
    largest = logits.amax(-1).float()
    total = (logits.float() - largest.unsqueeze(-1)).exp_().sum(-1)
    at_label = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()
    return (largest - at_label) + total.log(), largest, total


def cross_entropy_gradient(gradient: Tensor, logits: Tensor, labels: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    """The gradient of the logits: (softmax - one at the label) times the row's gradient [...]."""
    if _compiled(logits):
        out, gradient = torch.empty_like(logits), gradient.float().contiguous()
        places = [tensor.data_ptr() for tensor in (gradient, logits, labels, largest, total, out)]
        library.COMPILED.octavo_cross_entropy_gradient(*places, labels.numel(), logits.shape[-1])
        return out
    rows = gradient.float().unsqueeze(-1)
    result = (logits.float() - largest.unsqueeze(-1)).exp_().mul_(rows / total.unsqueeze(-1))
    return result.scatter_add_(-1, labels.unsqueeze(-1), -rows).to(logits.dtype)


# --- rotary embedding (arXiv 2104.09864) ------------------------------------------------------------------------------


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    """Rotate the halves of x [sequence, batch, heads, size] against each other by angles whose cosines and sines are
    [sequence, size] in FP32; `back`: the transposed rotation, which takes gradients back.
    """
    if _compiled(x) and x.stride(-1) == 1:
        out, strides = x.new_empty(x.shape), (c_int64 * 3)(*x.stride()[:3])
        places = (cosine.data_ptr(), sine.data_ptr(), out.data_ptr())
        library.COMPILED.octavo_rotate(x.data_ptr(), ctypes.addressof(strides), *places, *x.shape, int(back))
        return out
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    wide = x.float()
    product = wide * sine if back else wide
    first, second = product.chunk(2, -1)
    turned = torch.cat((second, -first) if back else (-second, first), -1)
    return (wide * cosine + (turned if back else turned * sine)).to(x.dtype)


# --- softmax of rows --------------------------------------------------------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    """Of x [..., columns] in FP32, contiguous: with the compiled library as torch on vectors of 16.

    torch sums a row over as many partial sums as the processor's vectors are wide: rows of more than 16 numbers, a
    router's scores, had other bits with AVX2 than with AVX-512.
    """
    if library.COMPILED is None or x.device.type != "cpu":
        return x.softmax(-1)
    out = torch.empty_like(x)
    library.COMPILED.octavo_softmax(x.data_ptr(), out.data_ptr(), _rows(x), x.shape[-1])
    return out


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of `softmax`'s x, from that of its weights; both contiguous."""
    if library.COMPILED is None or weights.device.type != "cpu":
        return (gradient - (gradient * weights).sum(-1, keepdim=True)) * weights
    out = torch.empty_like(weights)
    places = (gradient.data_ptr(), weights.data_ptr(), out.data_ptr())
    library.COMPILED.octavo_softmax_gradient(*places, _rows(weights), weights.shape[-1])
    return out


# --- causal softmax ---------------------------------------------------------------------------------------------------


def attention_weights(scores: Tensor, scale: float, window: int | None) -> Tensor:
    """Softmax of scale * scores [matrices, length, length] (FP32, contiguous, lost), in BF16, over the keys (columns)
    that a query (row) attends to: itself and the earlier ones, `window` of them at most. Others' scores are not read.
    """
    matrices, length, _ = scores.shape
    if library.COMPILED is not None and scores.device.type == "cpu":
        weights = torch.empty_like(scores, dtype=torch.bfloat16)
        places = (scores.data_ptr(), weights.data_ptr())
        library.COMPILED.octavo_attention_weights(*places, matrices, length, window or length, scale)
        return weights
    # filled, not added: what the products left open may be no number
    later = mask(length, window, scores.device) != 0
    return scores.mul_(scale).masked_fill_(later, -torch.inf).softmax(-1).bfloat16()


def attention_weights_gradient(gradient: Tensor, weights: Tensor, scale: float, window: int | None) -> Tensor:
    """The gradient of the scores, in BF16, from that of the weights (FP32); all contiguous."""
    matrices, length, _ = weights.shape
    if _compiled(weights):
        to_scores = torch.empty_like(weights)
        places = (gradient.data_ptr(), weights.data_ptr(), to_scores.data_ptr())
        library.COMPILED.octavo_attention_weights_gradient(*places, matrices, length, window or length, scale)
        return to_scores
    wide, gradient = weights.float(), gradient.tril()  # without what the products left open
    sums = (gradient * wide).sum(-1, keepdim=True)
    return (gradient - sums).mul_(wide).mul_(scale).bfloat16()


@lru_cache(maxsize=4)
def mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """[1, length, length]: 0 where a query (row) attends to a key (column), minus infinity elsewhere."""
    distance = torch.arange(length, device=device).view(-1, 1) - torch.arange(length, device=device)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    return torch.zeros(1, length, length, device=device).masked_fill_(~allowed, -torch.inf)


def _rows(tensor: Tensor) -> int:
    return tensor.numel() // tensor.shape[-1]


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
