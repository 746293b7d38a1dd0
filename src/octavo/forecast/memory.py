"""Bytes per device that training needs: parameters, gradients, optimizer state, activations.

Parameters are BF16, gradients are summed in FP32, AdamW keeps an FP32 main parameter and two FP32 moments (Megatron's
mixed precision; arXiv 1710.03740), sharded over data-parallel ranks with the distributed optimizer (ZeRO stage 1, arXiv
1910.02054). Activations are those that the backward pass
reads, counted product by product as in arXiv 2205.05198, section 4, for RMSNorm, SwiGLU, grouped queries and experts,
with flash attention (arXiv 2205.14135: the scores are not kept), without what is computed again (section 5) or kept in
the host's memory. With sharded parameters (FSDP) a device holds its shard and two whole layers. The device counted is
the one with most to hold: the first or the last pipeline stage.

Not counted: the runtime itself (CUDA context, communication buffers, fragmentation; on CPUs the Python process). `fits`
keeps RESERVE of the device free for it. First and last layers in BF16 are counted as those of the recipe.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from octavo.experiment.cluster import Device
from octavo.experiment.config import Parallelism, Recomputed, Training
from octavo.forecast.setting import Setting, Software
from octavo.models.architecture import Architecture, MultiLatentAttention
from octavo.models.stages import stage_layers
from octavo.models.weights import attention_widths, layer_weights
from octavo.precision.config import Precision
from octavo.precision.recipes import RECIPES

BF16, FP8, FP32 = 2, 1, 4
OPTIMIZER = 3 * FP32
"""Main parameter, first and second moment."""
GIB = 2**30
RESERVE = {"gpu": 2 * GIB, "cpu": GIB // 2}
"""For what is not counted, a judgement: CUDA context and library workspaces about 1 GiB, NCCL's buffers and
fragmentation as much; a Python process with torch on a CPU half of one."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that holds most."""

    parameters: float
    quantised_copies: float
    """FP8 copies of the weights, kept over a step's micro-batches."""
    gradients: float
    optimizer: float
    activations: float
    logits: float
    """The output head's logits and their gradient, on the last pipeline stage."""

    @property
    def total(self) -> int:
        """All of it, whole bytes."""
        parts = (self.parameters, self.quantised_copies, self.gradients, self.optimizer, self.activations, self.logits)
        return math.ceil(sum(parts))


@dataclass(frozen=True)
class Held:
    """Parameters on one device, by how many ranks hold the same ones."""

    shared: float
    """Attention, dense feed-forward, shared experts, routers, norms, embeddings."""
    experts: float
    """Routed experts."""


def memory(
    architecture: Architecture,
    training: Training,
    layout: Parallelism,
    precision: Precision,
    device: Device,
    software: Software | None = None,
) -> Memory:
    """The memory of the fullest device: on the first pipeline stage (micro-batches in flight) or the last (logits).

    `software`: what is recomputed, sharded or moved to the host; None: what `training` says.
    """
    software = software or Software.of(training)
    setting = Setting(architecture, training, layout, precision, device, device.link_domain, software)
    stages = (0, layout.pipeline - 1) if layout.pipeline > 1 else (0,)
    return max((_stage(setting, stage) for stage in stages), key=lambda held: held.total)


def fits(memory_bytes: float, device: Device) -> bool:
    """Whether it is no more than the device has, less what the runtime takes."""
    return memory_bytes <= device.memory_gib * GIB - RESERVE[device.kind]


def _stage(setting: Setting, stage: int) -> Memory:
    model, training, layout = setting.model, setting.training, setting.layout
    precision, software = setting.precision, setting.software
    held = held_parameters(model, layout, stage)
    ranks = layout.data * layout.context
    copies = max(1.0, ranks * layout.tensor / layout.expert)
    shared_ranks, expert_ranks = (ranks, copies) if training.optimizer.distributed or software.sharded else (1, 1)
    count = held.shared + held.experts
    if software.sharded:  # beside its shard a device holds the parameters of the layer at work and of the next
        whole = count / max(1, len(_layers(model, layout, stage))) * 2
        count = held.shared / shared_ranks + held.experts / expert_ranks + whole
    last = stage == layout.pipeline - 1
    kept = setting.tokens * _in_flight(layout, stage) * _layers_bytes(setting, stage)
    return Memory(
        parameters=count * (FP8 if precision.fp8_parameters else BF16),
        quantised_copies=count * _copies(precision, setting.device),
        gradients=count * software.gradient_bytes,
        optimizer=OPTIMIZER * (held.shared / shared_ranks + held.experts / expert_ranks),
        activations=kept * (1 - software.offloaded),
        # FP32 logits and the gradient that replaces them in place (Megatron's vocabulary-parallel cross-entropy)
        logits=setting.tokens * FP32 * (model.vocabulary_size or 0) / layout.tensor if last else 0.0,
    )


def held_parameters(model: Architecture, layout: Parallelism, stage: int) -> Held:
    """Of the stage's layers and, on the first and the last stage, of embedding, output head and final norm."""
    weights = [weight for layer in _layers(model, layout, stage) for weight in layer_weights(model, layer)]
    held = [(weight.split == "expert", weight.held(layout.tensor, layout.expert)) for weight in weights]
    shared, routed = (sum(values for routed, values in held if routed is one) for one in (False, True))
    matrix = (model.vocabulary_size or 0) * model.hidden_size / layout.tensor
    first, last = stage == 0, stage == layout.pipeline - 1
    # a tied matrix is held on both ends of a pipeline
    ends = int(first) + int(last and not (first and model.tied_embeddings))
    return Held(shared + ends * matrix + (model.hidden_size if last else 0), routed)


def _layers(model: Architecture, layout: Parallelism, stage: int) -> list[int]:
    """Layers of a stage, multi-token-prediction layers after the last."""
    mine = stage_layers(model.layers, layout.pipeline, layout.virtual_pipeline, stage)
    if stage == layout.pipeline - 1:
        mine += range(model.layers, model.layers + model.multi_token_prediction_layers)
    return mine


def _in_flight(layout: Parallelism, stage: int) -> float:
    """Micro-batches whose activations a stage holds at a time, 1F1B: arXiv 2104.04473, 2.2; 2205.05198, 4.2.3."""
    waiting = layout.pipeline - stage
    if layout.virtual_pipeline > 1:
        return waiting + (layout.pipeline - 1) / layout.virtual_pipeline
    return waiting


def _layers_bytes(setting: Setting, stage: int) -> float:
    """Bytes per token and micro-batch that the backward pass of a stage's layers reads."""
    model, layout, precision = setting.model, setting.layout, setting.precision
    again = setting.software.recompute
    kinds = Counter(not model.is_mixed(layer) for layer in _layers(model, layout, stage))
    total = sum(
        number * activation_bytes(model, layout, precision, dense=dense, again=again) for dense, number in kinds.items()
    )
    if stage == 0:
        total += BF16 * model.hidden_size / (layout.tensor if layout.sequence else 1)  # the embedded tokens
    return total


def activation_bytes(
    model: Architecture,
    layout: Parallelism,
    precision: Precision,
    *,
    dense: bool,
    again: frozenset[Recomputed] = frozenset(),
) -> float:
    """Bytes per token that one layer's backward pass reads, on one device.

    Kept in BF16: both residual inputs (the norms read them), queries, keys, values and the attention's output, gate and
    up projections. Inputs of linear layers are kept as those products read them: FP8 with an FP8 recipe. What is
    computed `again` is not kept.
    """
    operand = FP8 if RECIPES[precision.recipe].quantised else BF16
    hidden = model.hidden_size / (layout.tensor if layout.sequence else 1)
    if "layers" in again:
        return BF16 * hidden
    widths = attention_widths(model.attention)
    kept = sum(widths)
    if isinstance(model.attention, MultiLatentAttention):
        # the compressed queries, keys and values are kept too: they are inputs of the expanding products
        compressed = (model.attention.q_lora_rank or 0) + model.attention.kv_lora_rank
        kept = compressed + (widths.output if "latent_projections" in again else kept)
    split = BF16 * kept + operand * widths.output + FP32 * model.attention.heads
    norms = 2 * (BF16 * hidden + (0 if "norms" in again else operand * hidden))
    if dense:
        assert model.feed_forward_size is not None, "checked by Architecture: it has dense layers"
        inner = 0.0 if "dense_feed_forward" in again else _inner_bytes(model, model.feed_forward_size, operand)
        return norms + (split + inner) / layout.tensor
    experts = model.experts
    assert experts is not None, "a layer that is not dense has experts"
    # the router reads the normed hidden states in BF16 and keeps FP32 scores; routed tokens are copied top_k times
    # and, with tensor parallelism, split over its ranks
    router = (0 if "norms" in again else BF16 * hidden) + FP32 * experts.count
    product = 0 if "expert_activations" in again else operand
    routed = experts.top_k * (operand * model.hidden_size + _inner_bytes(model, experts.size, product)) / layout.tensor
    shared = _inner_bytes(model, experts.shared_size, product) / layout.tensor
    return norms + split / layout.tensor + router + routed + shared


def _inner_bytes(model: Architecture, width: int, operand: int) -> float:
    """Gate and up projection in BF16, or up alone, and their product, the input of the down projection."""
    return (2 if model.gated else 1) * BF16 * width + operand * width


def _copies(precision: Precision, device: Device) -> float:
    """Bytes per parameter of FP8 copies. On compute capability 8.9 and 9.0 products read only row-major operands, so
    that a weight is kept as it is and transposed (Transformer Engine); on CPUs the emulation rounds as it goes."""
    if device.kind == "cpu" or not RECIPES[precision.recipe].quantised:
        return 0.0
    transposed = device.compute_capability in ("8.9", "9.0") or RECIPES[precision.recipe].scaling == "block"
    return (2 if transposed else 1) * FP8 - (FP8 if precision.fp8_parameters else 0)
