"""What a layer is made of: one table of its weights, which parameters, FLOPs, traffic, memory and step times sum over.

Names and splits over tensor-parallel ranks are those of Megatron-Core's modules built with Transformer Engine's layers
(tests hold them to these). Routed experts are whole on their rank: expert tensor parallelism is 1. On CPUs, where there
is no Transformer Engine, the down projections of MLA are split by their outputs instead of whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from octavo.models.architecture import (
    Architecture,
    Attention,
    Experts,
    GroupedQueryAttention,
    MultiLatentAttention,
)

Split = Literal["column", "row", "whole", "expert"]
"""Over which ranks a weight is spread: tensor-parallel ones by its outputs (column) or its inputs (row), none of them
(whole), or by its copies over expert-parallel ones (expert). Megatron-Core's words: its matrices are [outputs, inputs]
and multiply from the right."""

Width = tuple[str, int]
"""What a width is, in the words of the configuration, and its size."""


@dataclass(frozen=True)
class Weight:
    """A weight of one layer: a matrix that tokens are multiplied by, or a vector (a norm, a bias)."""

    name: str
    inputs: Width
    outputs: Width
    split: Split
    kind: Literal["linear", "router", "vector"] = "linear"
    """Routers are not in a recipe's precision; vectors are no products."""
    copies: int = 1
    """Routed experts, each with its own."""
    active: int = 1
    """Copies that one token meets."""

    @property
    def size(self) -> int:
        """Values of one copy."""
        return self.inputs[1] * self.outputs[1]

    def shape(self, tensor: int) -> tuple[float, float]:
        """(inputs, outputs) of a copy on one of so many tensor-parallel ranks."""
        inputs, outputs = self.inputs[1], self.outputs[1]
        return inputs / (tensor if self.split == "row" else 1), outputs / (tensor if self.split == "column" else 1)

    def held(self, tensor: int, expert: int) -> float:
        """Values on one rank."""
        if self.split == "expert":
            return self.size * self.copies / expert
        return self.size / (1 if self.split == "whole" else tensor)


class AttentionWidths(NamedTuple):
    """Values per token, over all heads."""

    queries: int
    keys: int
    values: int
    output: int


def attention_widths(attention: Attention) -> AttentionWidths:
    """What attention itself reads and writes; those of MLA after they were expanded."""
    if isinstance(attention, GroupedQueryAttention):
        queries, keys = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
        return AttentionWidths(queries, keys, keys, queries)
    queries = attention.heads * (attention.qk_head_size + attention.qk_rope_head_size)
    values = attention.heads * attention.v_head_size
    return AttentionWidths(queries, queries, values, values)


def layer_weights(model: Architecture, layer: int) -> list[Weight]:
    """The weights of a layer (from 0); from `model.layers` on, of a multi-token-prediction layer.

    That has what the last layers have, a projection of two normed hidden states, and a norm at its end.
    """
    weights = [*attention_weights(model), *feed_forward_weights(model, layer)]
    weights += [_vector(name, model.hidden_size) for name in ("input_layernorm", "pre_mlp_layernorm")]
    if layer >= model.layers:
        weights.append(prediction_projection(model))
        weights += [_vector(name, model.hidden_size) for name in ("enorm", "hnorm", "final_layernorm")]
    return weights


def layers_alike(model: Architecture) -> Iterator[tuple[int, list[Weight]]]:
    """How many layers there are of a kind, and the weights of one; multi-token-prediction layers left out."""
    if model.dense_layers:
        yield model.dense_layers, layer_weights(model, 0)
    if model.moe_layers:
        yield model.moe_layers, layer_weights(model, model.layers - 1)


def prediction_projection(model: Architecture) -> Weight:
    """What a multi-token-prediction layer does to the hidden state and the next token's embedding."""
    hidden = model.hidden_size
    of_prediction = ("hidden_size of multi-token prediction", hidden)
    return Weight("eh_proj", ("2 x hidden_size", 2 * hidden), of_prediction, "column")


def attention_weights(model: Architecture) -> list[Weight]:
    """Projections, their biases, and norms and sinks within attention."""
    if isinstance(model.attention, MultiLatentAttention):
        return _latent_attention(model.attention, ("hidden_size", model.hidden_size))
    return _grouped_query_attention(model.attention, ("hidden_size", model.hidden_size))


def _grouped_query_attention(attention: GroupedQueryAttention, hidden: Width) -> list[Weight]:
    widths = attention_widths(attention)
    together = widths.queries + widths.keys + widths.values
    weights = [
        Weight("linear_qkv", hidden, ("the width of queries, keys and values", together), "column"),
        Weight("linear_proj", ("heads x head_size", widths.output), hidden, "row"),
    ]
    if attention.qkv_bias:
        weights.append(_vector("linear_qkv.bias", together, "column"))
    if attention.output_bias:
        weights.append(_vector("linear_proj.bias", hidden[1]))
    if attention.qk_norm != "none":
        each = attention.qk_norm == "head"
        sizes = [attention.head_size] * 2 if each else [widths.queries, widths.keys]
        weights += [
            _vector(name, size, "whole" if each else "column")
            for name, size in zip(("q_layernorm", "k_layernorm"), sizes, strict=True)
        ]
    if attention.sinks:
        weights.append(_vector("softmax_offset", attention.heads, "column"))
    return weights


def _latent_attention(attention: MultiLatentAttention, hidden: Width) -> list[Weight]:
    widths = attention_widths(attention)
    queries = ("the width of queries", widths.queries)
    keys = ("kv_lora_rank", attention.kv_lora_rank)
    with_position = ("kv_lora_rank + qk_rope_head_size", attention.kv_lora_rank + attention.qk_rope_head_size)
    expanded = attention.heads * (attention.qk_head_size + attention.v_head_size)
    if attention.q_lora_rank is None:
        weights = [Weight("linear_q_proj", hidden, queries, "column")]
    else:
        rank = ("q_lora_rank", attention.q_lora_rank)
        weights = [
            Weight("linear_q_down_proj", hidden, rank, "whole"),
            Weight("linear_q_up_proj", rank, queries, "column"),
            _vector("q_layernorm", attention.q_lora_rank),
        ]
    return [
        *weights,
        Weight("linear_kv_down_proj", hidden, with_position, "whole"),
        Weight("linear_kv_up_proj", keys, ("the width of keys and values", expanded), "column"),
        _vector("kv_layernorm", attention.kv_lora_rank),
        Weight("linear_proj", ("the width of values", widths.output), hidden, "row"),
    ]


def feed_forward_weights(model: Architecture, layer: int) -> list[Weight]:
    """A layer's dense feed-forward, or its router, routed experts and shared expert."""
    hidden, experts = ("hidden_size", model.hidden_size), model.experts
    if experts is None or not model.is_mixed(layer):
        assert model.feed_forward_size is not None, "checked by Architecture: it has dense layers"
        return _feed_forward("mlp", hidden, ("feed_forward_size", model.feed_forward_size), gated=model.gated)
    weights = [Weight("router", hidden, ("experts.count", experts.count), "whole", "router")]
    if experts.router.bias:
        weights.append(_vector("router.bias", experts.count))
    weights += _feed_forward("experts", hidden, ("experts.size", experts.size), gated=model.gated, routed=experts)
    if experts.shared_size:
        shared = ("experts.shared_size", experts.shared_size)
        weights += _feed_forward("shared_experts", hidden, shared, gated=model.gated)
    return weights


def _feed_forward(
    name: str, hidden: Width, width: Width, *, gated: bool, routed: Experts | None = None
) -> list[Weight]:
    """Gate and up projection in one matrix (arXiv 2002.05202), or up alone, and down."""
    of_both = (f"2 x {width[0]}", 2 * width[1]) if gated else width
    if routed is None:
        return [
            Weight(f"{name}.linear_fc1", hidden, of_both, "column"),
            Weight(f"{name}.linear_fc2", width, hidden, "row"),
        ]
    copies, active = routed.count, routed.top_k
    weights = [
        Weight(f"{name}.linear_fc1", hidden, of_both, "expert", copies=copies, active=active),
        Weight(f"{name}.linear_fc2", width, hidden, "expert", copies=copies, active=active),
    ]
    if routed.bias:
        weights += [
            Weight(f"{one.name}.bias", ("", 1), one.outputs, "expert", "vector", copies, active) for one in weights
        ]
    return weights


def _vector(name: str, size: int, split: Split = "whole") -> Weight:
    return Weight(name, ("", 1), (name, size), split, "vector")
