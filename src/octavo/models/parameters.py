"""Parameters of an architecture, counted exactly: total, and active per token; with and without embeddings.

*Total* counts every trained value. *Active* counts what one token meets: of the routed experts the top-k, routers,
shared experts and norms whole. The *embeddings* are the input embedding and the output head, one matrix where they are
tied. Papers differ in whether active parameters count them, so both counts are given; pairs are matched with the output
head counted (a product like any other) and the input embedding not (a look-up). Multi-token-prediction layers are
counted in neither unless asked for: they are dropped after training (DeepSeek-V3, arXiv 2412.19437, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.architecture import Architecture, Experts, GroupedQueryAttention, MultiLatentAttention


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of trained values."""

    total: int
    active: int
    """Per token, input embedding and output head counted."""
    input_embedding: int
    output_head: int
    """0 where it is the input embedding's matrix (tied)."""
    multi_token_prediction: int
    """In the multi-token-prediction layers, counted nowhere else."""

    @property
    def embeddings(self) -> int:
        """Input embedding and output head, a tied matrix once."""
        return self.input_embedding + self.output_head

    @property
    def total_without_embeddings(self) -> int:
        """All but input embedding and output head."""
        return self.total - self.embeddings

    @property
    def active_without_embeddings(self) -> int:
        """Per token, neither input embedding nor output head counted."""
        return self.active - self.embeddings

    @property
    def active_in_products(self) -> int:
        """Per token, the output head counted and the input embedding not: what pairs are matched on."""
        return self.active_without_embeddings + (self.output_head or self.input_embedding)


def count_parameters(architecture: Architecture) -> ParameterCount:
    """Count the parameters of an architecture whose `vocabulary_size` is set."""
    assert architecture.vocabulary_size is not None, "a cell's architecture has its tokenizer's vocabulary"
    hidden = architecture.hidden_size
    matrix = architecture.vocabulary_size * hidden
    head = 0 if architecture.tied_embeddings else matrix
    moe_layers = architecture.moe_layers
    dense = architecture.dense_layers and architecture.dense_layers * dense_layer_parameters(architecture)
    mixed = moe_layers and moe_layers * moe_layer_parameters(architecture)
    unused = unused_expert_parameters(architecture) * moe_layers
    total = matrix + head + hidden + dense + mixed
    return ParameterCount(
        total=total,
        active=total - unused,
        input_embedding=matrix,
        output_head=head,
        multi_token_prediction=architecture.multi_token_prediction_layers * _prediction_layer(architecture),
    )


def dense_layer_parameters(architecture: Architecture) -> int:
    """Attention, dense feed-forward and two norms."""
    assert architecture.feed_forward_size is not None, "checked by Architecture: it has dense layers"
    return _attention_and_norms(architecture) + swiglu(architecture.hidden_size, architecture.feed_forward_size)


def moe_layer_parameters(architecture: Architecture) -> int:
    """Attention, router, all routed and shared experts, and two norms."""
    experts, hidden = _experts(architecture), architecture.hidden_size
    router = hidden * experts.count + (experts.count if experts.router.bias else 0)
    routed = experts.count * swiglu(hidden, experts.size, bias=experts.bias)
    shared = swiglu(hidden, experts.shared_size)
    return _attention_and_norms(architecture) + router + routed + shared


def unused_expert_parameters(architecture: Architecture) -> int:
    """Per layer, the routed experts that a token does not choose."""
    if architecture.experts is None:
        return 0
    experts = architecture.experts
    return (experts.count - experts.top_k) * swiglu(architecture.hidden_size, experts.size, bias=experts.bias)


def attention_parameters(attention: GroupedQueryAttention | MultiLatentAttention, hidden: int) -> int:
    """Projections, their biases, and norms and sinks within attention."""
    products = sum(inner * columns for inner, columns, _ in attention_products(attention, hidden))
    if isinstance(attention, MultiLatentAttention):
        return products + (attention.q_lora_rank or 0) + attention.kv_lora_rank
    queries, keys = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
    biases = (queries + 2 * keys if attention.qkv_bias else 0) + (hidden if attention.output_bias else 0)
    norms = {"none": 0, "head": 2 * attention.head_size, "full": queries + keys}[attention.qk_norm]
    return products + biases + norms + (attention.heads if attention.sinks else 0)


def attention_products(
    attention: GroupedQueryAttention | MultiLatentAttention, hidden: int
) -> list[tuple[int, int, str]]:
    """(inner, columns, which of them tensor parallelism splits: in, out or none) of the projections of one layer."""
    if isinstance(attention, GroupedQueryAttention):
        queries = attention.heads * attention.head_size
        return [
            (hidden, queries + 2 * attention.kv_heads * attention.head_size, "out"),
            (queries, hidden, "in"),
        ]
    queries = attention.heads * (attention.qk_head_size + attention.qk_rope_head_size)
    expanded = attention.heads * (attention.qk_head_size + attention.v_head_size)
    rank = attention.q_lora_rank
    ask = [(hidden, queries, "out")] if rank is None else [(hidden, rank, "none"), (rank, queries, "out")]
    return [
        *ask,
        (hidden, attention.kv_lora_rank + attention.qk_rope_head_size, "none"),
        (attention.kv_lora_rank, expanded, "out"),
        (attention.heads * attention.v_head_size, hidden, "in"),
    ]


def swiglu(hidden: int, width: int, *, bias: bool = False) -> int:
    """Gate, up and down projection (arXiv 2002.05202)."""
    return 3 * hidden * width + (2 * width + hidden if bias else 0)


def _attention_and_norms(architecture: Architecture) -> int:
    return attention_parameters(architecture.attention, architecture.hidden_size) + 2 * architecture.hidden_size


def _prediction_layer(architecture: Architecture) -> int:
    """One multi-token-prediction layer: a projection of two normed vectors, a layer like the last one, a norm."""
    hidden = architecture.hidden_size
    layer = moe_layer_parameters(architecture) if architecture.moe_layers else dense_layer_parameters(architecture)
    return 2 * hidden * hidden + 3 * hidden + layer


def _experts(architecture: Architecture) -> Experts:
    assert architecture.experts is not None, "asked of a dense model"
    return architecture.experts
