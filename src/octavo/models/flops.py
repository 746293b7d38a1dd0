"""Model FLOPs per token for training: what the mathematics needs, whatever the hardware does.

A product of a (1 x k) row with a (k x n) matrix is 2kn FLOPs; the backward pass is twice the forward (the gradient of
the input and of the weight), so training is 3 times the forward pass and a parameter in a product costs 6 FLOPs per
token (arXiv 2001.08361, section 2.1). Causal attention is counted once: a token attends to half of the sequence on
average (a window at most). Routed experts count by top-k; routers and logits count; the look-up of the input embedding,
norms, biases, attention sinks and recomputation do not.
"""

from __future__ import annotations

from octavo.models.architecture import Architecture, Attention, GroupedQueryAttention
from octavo.models.weights import Weight, attention_widths, layer_weights, layers_alike

TRAINING = 3
"""Forward pass, gradient of the inputs, gradient of the weights: equal FLOPs each."""


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """Model FLOPs per trained token, forward and backward, multi-token-prediction layers included."""
    layers = range(architecture.layers)
    attention = sum(attention_flops(architecture.attention, sequence_length, layer) for layer in layers)
    products = 2 * (_head(architecture) + sum(n * _in_products(weights) for n, weights in layers_alike(architecture)))
    prediction = architecture.multi_token_prediction_layers * _prediction_flops(architecture, sequence_length)
    return TRAINING * (products + attention + prediction)


def attention_flops(attention: Attention, sequence_length: int, layer: int) -> float:
    """Forward FLOPs per token of scores and weighted values in one layer (from 0), projections not counted."""
    widths = attention_widths(attention)
    return 2 * (widths.queries + widths.output) * mean_context(attention, sequence_length, layer)


def mean_context(attention: Attention, sequence_length: int, layer: int) -> float:
    """Tokens that a token attends to, on average over a sequence: half of it, or what the window leaves."""
    window = sequence_length
    if isinstance(attention, GroupedQueryAttention) and attention.sliding_window is not None:
        slides = layer % attention.sliding_window_every == 0
        window = min(window, attention.sliding_window) if slides else window
    return window - window * window / (2 * sequence_length)


def _in_products(weights: list[Weight]) -> int:
    """Values that one token is multiplied by."""
    return sum(weight.size * weight.active for weight in weights if weight.kind != "vector")


def _head(architecture: Architecture) -> int:
    assert architecture.vocabulary_size is not None, "a cell's architecture has its tokenizer's vocabulary"
    return architecture.vocabulary_size * architecture.hidden_size


def _prediction_flops(architecture: Architecture, sequence_length: int) -> float:
    """Forward FLOPs of one multi-token-prediction layer: projection, a layer like the last one, the logits."""
    products = _head(architecture) + _in_products(layer_weights(architecture, architecture.layers))
    return 2 * products + attention_flops(architecture.attention, sequence_length, architecture.layers - 1)
