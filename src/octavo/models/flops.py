"""Model FLOPs per token for training: what the mathematics needs, whatever the hardware does.

A product of a (1 x k) row with a (k x n) matrix is 2kn FLOPs; the backward pass is twice the forward (the gradient of
the input and of the weight), so training is 3 times the forward pass and a parameter in a product costs 6 FLOPs per
token (arXiv 2001.08361, section 2.1). Causal attention is counted once: a token attends to half of the sequence on
average (a window at most). Routed experts count by top-k; routers and logits count; the look-up of the input embedding,
norms, biases, attention sinks and recomputation do not.
"""

from __future__ import annotations

from octavo.models.architecture import Architecture, GroupedQueryAttention, MultiLatentAttention
from octavo.models.parameters import attention_products, swiglu

TRAINING = 3
"""Forward pass, gradient of the inputs, gradient of the weights: equal FLOPs each."""


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """Model FLOPs per trained token, forward and backward, multi-token-prediction layers included."""
    layers = range(architecture.layers)
    attention = sum(attention_flops(architecture.attention, sequence_length, layer) for layer in layers)
    products = 2 * _parameters_in_products(architecture, architecture.dense_layers, architecture.moe_layers)
    prediction = architecture.multi_token_prediction_layers * _prediction_flops(architecture, sequence_length)
    return TRAINING * (products + attention + prediction)


def attention_flops(attention: GroupedQueryAttention | MultiLatentAttention, sequence_length: int, layer: int) -> float:
    """Forward FLOPs per token of scores and weighted values in one layer (from 0), projections not counted."""
    seen = mean_context(attention, sequence_length, layer)
    if isinstance(attention, MultiLatentAttention):
        width = attention.qk_head_size + attention.qk_rope_head_size + attention.v_head_size
    else:
        width = 2 * attention.head_size
    return 2 * attention.heads * width * seen


def mean_context(attention: GroupedQueryAttention | MultiLatentAttention, sequence_length: int, layer: int) -> float:
    """Tokens that a token attends to, on average over a sequence: half of it, or what the window leaves."""
    window = sequence_length
    if isinstance(attention, GroupedQueryAttention) and attention.sliding_window is not None:
        slides = layer % attention.sliding_window_every == 0
        window = min(window, attention.sliding_window) if slides else window
    return window - window * window / (2 * sequence_length)


def _parameters_in_products(architecture: Architecture, dense_layers: int, moe_layers: int) -> int:
    """Of so many layers and the output head, per token."""
    assert architecture.vocabulary_size is not None, "a cell's architecture has its tokenizer's vocabulary"
    hidden, experts = architecture.hidden_size, architecture.experts
    attention = sum(inner * columns for inner, columns, _ in attention_products(architecture.attention, hidden))
    total = (dense_layers + moe_layers) * attention + architecture.vocabulary_size * hidden
    total += dense_layers * swiglu(hidden, architecture.feed_forward_size or 0)
    if experts is not None:
        width = experts.top_k * experts.size + experts.shared_size
        total += moe_layers * (hidden * experts.count + swiglu(hidden, width))
    return total


def _prediction_flops(architecture: Architecture, sequence_length: int) -> float:
    """Forward FLOPs of one multi-token-prediction layer: projection, a layer like the last one, the logits."""
    last = architecture.layers - 1
    dense = last < architecture.dense_layers
    layer = 2 * _parameters_in_products(architecture, int(dense), int(not dense))
    attention = attention_flops(architecture.attention, sequence_length, last)
    return layer + attention + 2 * 2 * architecture.hidden_size**2
