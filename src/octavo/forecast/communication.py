"""Bytes that a training step moves between devices, per token and device.

Volumes are those that one device sends (it receives as many). A ring's all-gather or reduce-scatter of B bytes over n
devices sends (n - 1)/n x B, an all-reduce twice that (arXiv 1909.08053, section 3; 2205.05198, section 4.2). What one
device sends in a step is divided by the tokens that its replica trains on in the step.

- *All-to-all*: every MoE layer sends each token's hidden state to its top_k experts and their results back, in the
  forward pass, and the gradients both ways in the backward pass; a share (E - 1)/E of the copies leaves the device with
  E expert-parallel ranks (arXiv 2006.16668, section 2.3; DeepSeek-V3, arXiv 2412.19437, section 3.2.2). FP8 recipes
  send in BF16 as Megatron-Core does; DeepSeek-V3 sent its forward dispatch in FP8.
- *All-reduce*: tensor parallelism sums after attention and after the feed-forward, forward and backward (with sequence
  parallelism a reduce-scatter and an all-gather of the same volume); and data parallelism sums FP32 gradients once per
  step (a reduce-scatter alone with the distributed optimizer).
- *Point to point*: with pipeline parallelism every stage boundary passes the hidden states on and their gradients back
  (arXiv 2104.04473, section 3.2); p stages of v chunks have p v - 1 boundaries. With sequence parallelism each
  tensor-parallel rank sends its share, without it all of them.
- *All-gather*: context parallelism gathers keys and values, and reduces their gradients; the distributed optimizer
  gathers BF16 parameters once per step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

from octavo.experiment.config import Parallelism
from octavo.experiment.run import CellConfig
from octavo.models.architecture import Architecture
from octavo.models.weights import Weight, attention_widths, layer_weights, layers_alike

BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends per token of its replica, forward and backward."""

    all_to_all_bytes_per_token: float
    """Tokens to experts and back."""
    all_reduce_bytes_per_token: float
    """Tensor parallelism's activations and data parallelism's gradients."""
    all_gather_bytes_per_token: float
    """Context parallelism's keys and values, the distributed optimizer's parameters."""
    point_to_point_bytes_per_token: float
    """Hidden states and their gradients between pipeline stages."""

    @property
    def total_bytes_per_token(self) -> float:
        """All of them."""
        return sum(astuple(self))


def traffic(cell: CellConfig) -> Traffic:
    """The traffic of one device in a training step of a cell, per token that its replica trains on in the step.

    A replica is the tensor x context x pipeline devices that share one micro-batch; each device's bytes are an average
    over the replica's pipeline stages.
    """
    model, layout, training = cell.model, cell.parallelism, cell.training
    tokens = training.tokens_per_step / layout.data  # of one replica and step
    activations = tensor_parallel_bytes(model, layout.tensor) / (layout.pipeline * layout.context)
    data = layout.data * layout.context
    held, experts = shared_parameters(model, layout.tensor) / layout.pipeline, expert_parameters(model, layout.expert)
    copies = data * layout.tensor // layout.expert
    summed = FP32 * (_ring(data) * held + _ring(copies) * experts / layout.pipeline) / tokens
    gathered = BF16 * (_ring(data) * held + _ring(copies) * experts / layout.pipeline) / tokens
    sharded = training.optimizer.distributed
    keys = context_parallel_bytes(model, layout.context) / (layout.pipeline * layout.context * layout.tensor)
    return Traffic(
        all_to_all_bytes_per_token=all_to_all_bytes(model, layout.expert)
        / (layout.pipeline * layout.context * layout.tensor),
        all_reduce_bytes_per_token=activations + (1 if sharded else 2) * summed,
        all_gather_bytes_per_token=keys + (gathered if sharded else 0.0),
        point_to_point_bytes_per_token=point_to_point_bytes(model, layout) / layout.context,
    )


def all_to_all_bytes(model: Architecture, ranks: int) -> float:
    """Bytes per routed token over all layers: dispatch and combine, forward and backward, in BF16."""
    if model.experts is None or ranks == 1:
        return 0.0
    layers = model.moe_layers + model.multi_token_prediction_layers
    return 4 * layers * model.experts.top_k * model.hidden_size * BF16 * _ring(ranks)


def tensor_parallel_bytes(model: Architecture, ranks: int) -> float:
    """Bytes per token over all layers: two sums of the hidden states forward and two backward, each an all-reduce."""
    layers = model.layers + model.multi_token_prediction_layers
    return layers * 4 * 2 * _ring(ranks) * model.hidden_size * BF16


def context_parallel_bytes(model: Architecture, ranks: int) -> float:
    """Bytes per token over all layers: keys and values to the other ranks, and their gradients back."""
    widths = attention_widths(model.attention)
    layers = model.layers + model.multi_token_prediction_layers
    return layers * 2 * (widths.keys + widths.values) * BF16 * (ranks - 1)


def point_to_point_bytes(model: Architecture, layout: Parallelism) -> float:
    """Bytes per token of a micro-batch that a device sends to other stages, both passes, on average over the stages."""
    boundaries = layout.pipeline * layout.virtual_pipeline - 1
    split = layout.tensor if layout.sequence else 1
    return 2 * boundaries / layout.pipeline * model.hidden_size * BF16 / split if layout.pipeline > 1 else 0.0


def shared_parameters(model: Architecture, tensor: int) -> float:
    """Parameters of one tensor-parallel rank over all pipeline stages, routed experts, norms and biases left out."""
    layers = sum(count * weight.held(tensor, 1) for count, weight in _matrices(model) if weight.split != "expert")
    return layers + (1 if model.tied_embeddings else 2) * (model.vocabulary_size or 0) * model.hidden_size / tensor


def expert_parameters(model: Architecture, ranks: int) -> float:
    """Parameters of the routed experts of one expert-parallel rank over all pipeline stages, biases left out."""
    return sum(count * weight.held(1, ranks) for count, weight in _matrices(model) if weight.split == "expert")


def _matrices(model: Architecture) -> Iterator[tuple[int, Weight]]:
    """How many layers have a matrix, and the matrix; multi-token-prediction layers too."""
    prediction = model.multi_token_prediction_layers, layer_weights(model, model.layers)
    for count, weights in (*layers_alike(model), prediction):
        yield from ((count, weight) for weight in weights if weight.kind != "vector")


def _ring(ranks: int) -> float:
    """Share of a buffer that a ring's member sends in an all-gather or reduce-scatter."""
    return (ranks - 1) / ranks
