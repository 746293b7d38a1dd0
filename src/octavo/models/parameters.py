"""Parameters of an architecture, counted exactly: total, and active per token; with and without embeddings.

*Total* counts every trained value. *Active* counts what one token meets: of the routed experts the top-k, routers,
shared experts and norms whole. The *embeddings* are the input embedding and the output head, one matrix where they are
tied. Papers differ in whether active parameters count them, so both counts are given; pairs are matched with the output
head counted (a product like any other) and the input embedding not (a look-up). Multi-token-prediction layers are
counted in neither unless asked for: they are dropped after training (DeepSeek-V3, arXiv 2412.19437, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.architecture import Architecture
from octavo.models.weights import layer_weights, layers_alike

EQUAL_SIZES = 0.05
"""Cells agree in a size if they are no further apart than this, relative to the smaller; how far is always given."""

TRAINED = 20
"""Tokens per active parameter from which on a run is not called under-trained: where compute-optimal training of dense
models is (arXiv 2203.15556, section 3 and table 3). For mixtures of experts there is no such number; it is the same
here."""


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
    matrix = architecture.vocabulary_size * architecture.hidden_size
    head = 0 if architecture.tied_embeddings else matrix
    final_norm = architecture.hidden_size
    layers = [(count, weight) for count, weights in layers_alike(architecture) for weight in weights]
    ends = matrix + head + final_norm
    return ParameterCount(
        total=ends + sum(count * weight.size * weight.copies for count, weight in layers),
        active=ends + sum(count * weight.size * weight.active for count, weight in layers),
        input_embedding=matrix,
        output_head=head,
        multi_token_prediction=architecture.multi_token_prediction_layers
        * sum(weight.size * weight.copies for weight in layer_weights(architecture, architecture.layers)),
    )
