"""What a decoder-only transformer is made of: one schema for dense and mixture-of-experts models, ours and published.

Sizes are those of the papers: `hidden_size` d_model, `feed_forward_size` the width of a dense SwiGLU layer, `experts`
the routed experts that replace the feed-forward of the layers after `leading_dense_layers` (DeepSeekMoE, arXiv
2401.06066), `MultiLatentAttention` and multi-token prediction as in DeepSeek-V3 (arXiv 2412.19437).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from octavo.configuration import Section

Even = Annotated[PositiveInt, Field(multiple_of=2)]
"""RoPE rotates pairs."""
MOST_LAYERS = 10_000
"""Layers are gone through one by one, and with a few zeros too many for hours."""


class GroupedQueryAttention(Section):
    """Attention with `heads` query heads that share `kv_heads` key and value heads (GQA, arXiv 2305.13245)."""

    kind: Literal["gqa"] = "gqa"
    """Marks this kind of attention."""
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key and value heads; as many as `heads`: multi-head attention, 1: multi-query."""
    head_size: Even
    """Width of a head."""
    qkv_bias: bool = False
    """A bias on the query, key and value projections (Qwen2, gpt-oss)."""
    output_bias: bool = False
    """A bias on the output projection (gpt-oss)."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMSNorm on queries and keys: over each head (Qwen3) or over the whole projection (OLMoE)."""
    sliding_window: PositiveInt | None = None
    """Tokens that a sliding-window layer attends to; None: every layer attends to all earlier tokens."""
    sliding_window_every: PositiveInt = 1
    """1: every layer slides; 2: every second layer, beginning with the first (gpt-oss)."""
    sinks: bool = False
    """One learned attention-sink logit per head (gpt-oss)."""

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads: {self.kv_heads} does not divide {self.heads}")
        return self


class MultiLatentAttention(Section):
    """Multi-head latent attention: keys and values from one compressed vector per token (MLA, arXiv 2405.04434)."""

    kind: Literal["mla"] = "mla"
    """Marks this kind of attention."""
    heads: PositiveInt
    """Attention heads."""
    q_lora_rank: PositiveInt | None = None
    """Width of the compressed query; None: queries are not compressed (DeepSeek-V2-Lite)."""
    kv_lora_rank: PositiveInt
    """Width of the compressed keys and values."""
    qk_head_size: PositiveInt
    """Per head, the part of queries and keys without position."""
    qk_rope_head_size: Even
    """Per head, the part that carries RoPE; its key is shared by all heads."""
    v_head_size: PositiveInt
    """Width of a head's values."""


Attention = Annotated[GroupedQueryAttention | MultiLatentAttention, Field(discriminator="kind")]


class Router(Section):
    """How tokens choose experts, and what keeps the experts' loads even."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    """What turns the router's logits into scores."""
    normalise: bool = False
    """Divide the chosen experts' scores by their sum."""
    scale: PositiveFloat = 1.0
    """A factor on the chosen experts' scores."""
    balance: Literal["aux_loss", "expert_bias", "none"] = "aux_loss"
    """Auxiliary loss (Switch, arXiv 2101.03961), or the bias of aux-loss-free balancing (arXiv 2408.15664)."""
    aux_loss_weight: NonNegativeFloat = 0.0
    """Weight of the auxiliary loss."""
    bias_update_rate: NonNegativeFloat = 1e-3
    """By how much `expert_bias` changes an expert's bias in a step."""
    bias: bool = False
    """A bias on the router's own projection (gpt-oss)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the router's product and scores."""

    @model_validator(mode="after")
    def _balanced(self) -> Self:
        if self.balance == "expert_bias" and self.score != "sigmoid":
            raise ValueError("balance: expert_bias goes with score: sigmoid (Megatron-Core refuses it with softmax)")
        return self


class Experts(Section):
    """Routed experts beside optional shared ones, in every layer after the leading dense ones."""

    count: PositiveInt
    """Routed experts per layer."""
    top_k: PositiveInt
    """Routed experts per token."""
    size: PositiveInt
    """The SwiGLU width of one routed expert."""
    shared_size: NonNegativeInt = 0
    """The SwiGLU width of the shared expert, in total over shared experts (the "generalist"); 0: none."""
    leading_dense_layers: NonNegativeInt = 0
    """Layers at the beginning that stay dense."""
    every: PositiveInt = 1
    """1: every layer after those has experts; 2: every second layer, the first stays dense (Llama 4 Maverick)."""
    router: Router = Router()
    """How tokens choose experts."""
    bias: bool = False
    """A bias on the experts' projections (gpt-oss)."""

    @model_validator(mode="after")
    def _top_k(self) -> Self:
        if self.top_k > self.count:
            raise ValueError(f"top_k must be at most count: {self.top_k} of {self.count} experts")
        return self


class Published(Section):
    """What the model's own paper or card says of it."""

    total_parameters: PositiveFloat
    """All parameters."""
    active_parameters: PositiveFloat
    """Parameters that a token meets."""
    active_counts: Literal["all", "head", "none"] = "all"
    """Which embeddings the paper's active parameters count: input embedding and output head, the head alone, none."""
    source: str
    """Document and page, section or table."""


class Architecture(Section):
    """A decoder-only transformer with RMSNorm, SwiGLU and RoPE."""

    name: str
    """The model's name, as tables print it."""
    source: str
    """Where the sizes come from: a paper, a model card, or this project."""
    layers: Annotated[PositiveInt, Field(le=MOST_LAYERS)]
    """Transformer layers, those of multi-token prediction not counted."""
    hidden_size: PositiveInt
    """Width of the residual stream (d_model)."""
    feed_forward_size: PositiveInt | None = None
    """Width of dense SwiGLU layers; None only where no layer is dense."""
    gated: bool = True
    """Whether feed-forwards have a gate (SwiGLU); false: two matrices with a squared ReLU between (Nemotron-4), which
    Octavo plans and does not train."""
    attention: Attention
    """Grouped-query or multi-head latent attention."""
    experts: Experts | None = None
    """None: a dense model."""
    vocabulary_size: PositiveInt | None = None
    """None: the tokenizer's."""
    tied_embeddings: bool = False
    """Whether the output head is the input embedding."""
    multi_token_prediction_layers: Annotated[NonNegativeInt, Field(le=MOST_LAYERS)] = 0
    """Layers that predict further tokens (DeepSeek-V3's MTP modules)."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of RoPE's frequencies."""
    norm_epsilon: PositiveFloat = 1e-5
    """Epsilon of RMSNorm."""
    published: Published | None = None
    """What the model's source says of its parameters, which tests compare."""

    @model_validator(mode="after")
    def _dense_layers(self) -> Self:
        leading = self.experts.leading_dense_layers if self.experts else 0
        if leading > self.layers:
            raise ValueError(f"experts.leading_dense_layers is {leading}, more than the {self.layers} layers")
        if self.experts is not None and not self.is_mixed(self.layers - 1):
            raise ValueError(f"experts.every is {self.experts.every}: it must divide the {self.layers} layers")
        if self.feed_forward_size is None and self.dense_layers:
            raise ValueError("feed_forward_size is missing: the model has dense layers")
        return self

    def is_mixed(self, layer: int) -> bool:
        """Whether a layer (from 0) has experts; a multi-token-prediction layer (from `layers` on) is like the last."""
        if self.experts is None:
            return False
        one = min(layer, self.layers - 1)
        return one >= self.experts.leading_dense_layers and (one + 1) % self.experts.every == 0

    @property
    def dense_layers(self) -> int:
        """Layers whose feed-forward is dense."""
        return sum(not self.is_mixed(layer) for layer in range(self.layers))

    @property
    def moe_layers(self) -> int:
        """Layers whose feed-forward is a mixture of experts (multi-token-prediction layers not counted)."""
        return self.layers - self.dense_layers
