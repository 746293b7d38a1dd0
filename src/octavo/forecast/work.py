"""What a step on a CPU does, counted per token: the forecast is these counts, each at what it was measured to cost."""

from __future__ import annotations

from typing import NamedTuple

from octavo.experiment.run import CellConfig
from octavo.models.architecture import Architecture
from octavo.models.flops import flops_per_token
from octavo.models.weights import Weight, layer_weights
from octavo.precision.config import SHORT_SUM_COLUMNS, Precision


class Work(NamedTuple):
    """Counts per token, forward and backward. What none of them counts costs each token the same."""

    flops: float
    """Model FLOPs."""
    copied: float = 0.0
    """Values of hidden states that are copied to experts, sorted, rounded and added up again."""
    scores: float = 0.0
    """Scores of experts, which routers compute, sort and turn into who gets what."""
    short_sums: float = 0.0
    """Products of two numbers that are summed in fewer bits than FP32, which no instruction does."""


def work_of(cell: CellConfig) -> Work:
    """The work of a cell's step."""
    model = cell.model
    experts = model.experts
    return Work(
        flops=flops_per_token(model, cell.training.sequence_length),
        copied=model.moe_layers * experts.top_k * model.hidden_size if experts else 0.0,
        scores=model.moe_layers * experts.count if experts else 0.0,
        short_sums=_short_sums(model, cell.precision),
    )


def _short_sums(model: Architecture, precision: Precision) -> float:
    """The compiled sums take SHORT_SUM_COLUMNS columns at once, so that a product with fewer takes as long."""
    if precision.recipe == "bf16" or precision.accumulation == "fp32":
        return 0.0
    layers = range(model.layers)[1:-1] if precision.first_last_layers_bf16 else range(model.layers)
    weights = [weight for layer in layers for weight in layer_weights(model, layer) if weight.kind == "linear"]
    if precision.output_head:
        head = ("vocabulary_size", model.vocabulary_size or 0)
        weights.append(Weight("output_layer", ("hidden_size", model.hidden_size), head, "column"))

    def products(weight: Weight) -> float:
        (_, inputs), (_, outputs) = weight.inputs, weight.outputs
        each = {
            "forward": inputs * _whole_columns(outputs),
            "input_gradient": outputs * _whole_columns(inputs),
            "weight_gradient": outputs * _whole_columns(inputs),
        }
        return weight.active * sum(each[product] for product in precision.products)

    return float(sum(map(products, weights)))


def _whole_columns(columns: int) -> int:
    return -(-columns // SHORT_SUM_COLUMNS) * SHORT_SUM_COLUMNS
