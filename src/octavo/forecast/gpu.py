"""Time of a training step on GPUs, part by part.

One device's work on one micro-batch is summed over the layers of the fullest pipeline stage: matrix products at a share
of the device's peak that falls for small dimensions, attention, work bound by memory, experts' dispatch, and messages
as far as they are not hidden behind work. A layer takes at least the time that the host needs to launch it. A step is
the stage's time for all its micro-batches, the pipeline's bubble, gradients and optimizer. docs/forecast.md has every
formula with its source; the constants are in configs/clusters/calibration/gpu.yaml, fitted by
`octavo.forecast.fitting` to published throughput.

Seconds, bytes and FLOPs throughout; "three passes" are forward, gradient of the input, gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.forecast.calibration import Constants, Width
from octavo.forecast.communication import (
    all_to_all_bytes,
    context_parallel_bytes,
    expert_parameters,
    point_to_point_bytes,
    shared_parameters,
    tensor_parallel_bytes,
)
from octavo.forecast.setting import Setting
from octavo.models.architecture import Experts
from octavo.models.flops import attention_flops
from octavo.models.stages import splits, stage_layers
from octavo.models.weights import (
    Weight,
    attention_weights,
    attention_widths,
    feed_forward_weights,
    prediction_projection,
)
from octavo.precision.config import Precision, RecipeName

BF16, FP32 = 2, 4
PASSES = 3
GIGA, TERA = 1e9, 1e12
REACHED_BANDWIDTH = 0.8
"""Share of the data sheet's memory bandwidth that streaming kernels reach."""


class Rates:
    """What the device reaches, by the constants."""

    def __init__(self, setting: Setting, constants: Constants) -> None:
        device, low = setting.device, width(setting.precision.recipe)
        sustained = constants.sustained_of(device.compute_capability)
        bf16 = device.peak_tflops["bf16"] * TERA
        share = {"bf16": 1.0, "fp8": constants.fp8_products, "fp4": constants.fp4_products}[low]
        quantised = len(setting.precision.products) if low != "bf16" else PASSES
        seconds = quantised / (device.peak_tflops[low] * TERA * share) + (PASSES - quantised) / bf16
        self.low = PASSES / seconds * sustained
        """FLOP/s of large products in the recipe's precision, over the three passes."""
        self.bf16 = bf16 * sustained
        """FLOP/s of large products in BF16."""
        faster = constants.attention_blackwell_ultra if device.compute_capability == "10.3" else 1.0
        self.attention = bf16 * constants.attention * faster
        self.memory = device.memory_gb_per_second * GIGA * REACHED_BANDWIDTH
        self.link = device.link_gb_per_second * GIGA
        self.network = device.network_gb_per_second * GIGA
        self.quantised = low != "bf16"
        self._half = constants.half_dimension

    def product(self, rows: float, inner: float, columns: float, rate: float) -> float:
        """Three passes of (rows x inner) (inner x columns); a dimension of `half_dimension` halves the rate."""
        filled = 1.0
        for dimension in (rows, inner, columns):
            filled *= dimension / (dimension + self._half)
        return PASSES * 2 * rows * inner * columns / (rate * filled)


def width(recipe: RecipeName) -> Width:
    """Of the recipe's operands: recipes of one width are taken to be equally fast."""
    return "bf16" if recipe == "bf16" else "fp4" if recipe == "nvfp4" else "fp8"


def step_parts(setting: Setting, constants: Constants) -> dict[str, float]:
    """Part of a step -> seconds; their sum is the step."""
    rates = Rates(setting, constants)
    layout = setting.layout
    parts = {**_fullest_stage(setting, rates, constants), "point-to-point": _neighbours(setting, rates, constants)}
    parts = {part: seconds * setting.micro_batches for part, seconds in parts.items()}
    bubble = (layout.pipeline - 1) / (layout.virtual_pipeline * setting.micro_batches)
    parts["pipeline bubble"] = sum(parts.values()) * bubble
    return {**parts, **_once_a_step(setting, rates, constants)}


def _fullest_stage(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """Parts of the pipeline stage that takes longest, one micro-batch: the others wait for it.

    Output heads and multi-token-prediction layers are on the last stage. A model whose layers Megatron-Core would not
    split over the stages has a layout made by hand: its stages are taken to be even.
    """
    model, layout = setting.model, setting.layout
    layer = _layers(setting, rates, constants)
    heads = 1 + model.multi_token_prediction_layers
    last = model.layers - 1  # a multi-token-prediction layer is like it
    projection = {"linear layers": _products(setting, rates, setting.tokens, [prediction_projection(model)])}
    ends = _sum(
        (model.multi_token_prediction_layers, layer(last)),
        (model.multi_token_prediction_layers, projection),
        (heads, {"output head": _head(setting, rates, constants)}),
    )
    if not splits(model.layers, layout.pipeline, layout.virtual_pipeline):
        everything = _sum(*((1, layer(one)) for one in range(model.layers)), (1, ends))
        return {part: seconds / layout.pipeline for part, seconds in everything.items()}
    stages = []
    for stage in range(layout.pipeline):
        held = stage_layers(model.layers, layout.pipeline, layout.virtual_pipeline, stage)
        stages.append(_sum(*((1, layer(one)) for one in held)))
    stages[-1] = _sum((1, stages[-1]), (1, ends))
    return max(stages, key=lambda parts: sum(parts.values()))


def _neighbours(setting: Setting, rates: Rates, constants: Constants) -> float:
    """Hidden states and gradients to and from the neighbouring stages, one micro-batch. Stages are the outermost groups
    of ranks, so that beyond one link domain some stage's neighbour is over the network."""
    sent = point_to_point_bytes(setting.model, setting.layout) * setting.tokens
    return constants.exposed_sums * sent / _group_rate(setting, rates, setting.layout.world_size)


def _layers(setting: Setting, rates: Rates, constants: Constants) -> Callable[[int], dict[str, float]]:
    """The parts of a layer (from 0), worked out once for layers that are alike."""
    ends = {0, setting.model.layers - 1} if setting.precision.first_last_layers_bf16 else set()
    in_bf16 = Rates(replace(setting, precision=Precision()), constants)
    alike: dict[tuple[bool, float, bool], dict[str, float]] = {}

    def layer(index: int) -> dict[str, float]:
        mixed = index >= setting.model.dense_layers
        scores = attention_flops(setting.model.attention, setting.training.sequence_length, index)
        key = mixed, scores, index in ends
        if key not in alike:
            own = in_bf16 if index in ends else rates
            alike[key] = _whole_layer(setting, own, constants, mixed=mixed, scores=scores)
        return alike[key]

    return layer


def _sum(*terms: tuple[float, dict[str, float]]) -> dict[str, float]:
    """Each part times its factor, added up."""
    total: dict[str, float] = {}
    for factor, parts in terms:
        for part, seconds in parts.items():
            total[part] = total.get(part, 0.0) + factor * seconds
    return total


def _whole_layer(
    setting: Setting, rates: Rates, constants: Constants, *, mixed: bool, scores: float
) -> dict[str, float]:
    """One layer's parts, one micro-batch, and what waiting for the host adds to them. `scores`: FLOPs per token."""
    if mixed:
        assert setting.model.experts is not None, "asked of layers with experts"
        local = setting.model.experts.count / setting.layout.expert
        feed_forward = _mixed_layer(setting, rates, constants)
        host = constants.host_mixed_layer + constants.host_expert * local
    else:
        feed_forward, host = _dense_layer(setting, rates, constants), constants.host_dense_layer
    parts = {**_attention(setting, rates, constants, scores), **feed_forward}
    busy = sum(parts.values())
    return {**parts, "host": (busy**2 + host**2) ** 0.5 - busy}


def _attention(setting: Setting, rates: Rates, constants: Constants, scores: float) -> dict[str, float]:
    """Norms, projections, scores and values, residual; tensor- and context-parallel messages of the whole layer.

    `scores`: forward FLOPs per token of scores and weighted values, which a layer's window decides.
    """
    model, layout, tokens = setting.model, setting.layout, setting.tokens
    hidden, tensor = model.hidden_size, layout.tensor
    widths = sum(attention_widths(model.attention))
    # norms and residuals are read and written about twenty times over forward and backward; queries, keys, values and
    # output six times (rotation, attention itself); quantising reads BF16 and writes FP8 as it is and transposed
    bytes_moved = 40 * hidden / setting.sequence_split + 12 * widths / tensor
    if rates.quantised:
        bytes_moved += 6 * (2 * hidden / setting.sequence_split + widths / tensor)
    layers = model.layers + model.multi_token_prediction_layers
    sums = tensor_parallel_bytes(model, tensor) / layers * tokens
    keys = context_parallel_bytes(model, layout.context) / layers / tensor * tokens
    return {
        "linear layers": _products(setting, rates, tokens, attention_weights(model)),
        "attention": PASSES * scores * tokens / tensor / rates.attention,
        "memory": constants.memory_passes * bytes_moved * tokens / rates.memory,
        "tensor parallel": constants.exposed_sums * sums / _group_rate(setting, rates, tensor),
        "context parallel": constants.exposed_sums * keys / _group_rate(setting, rates, tensor * layout.context),
    }


def _dense_layer(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """A SwiGLU feed-forward."""
    width = setting.model.feed_forward_size
    assert width is not None, "checked by Architecture: it has dense layers"
    products = _products(setting, rates, setting.tokens, feed_forward_weights(setting.model, 0))
    return _added(setting, rates, constants, products, width)


def _mixed_layer(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """Routed experts, evenly loaded, the shared one, and their tokens' way there and back."""
    model, layout, tokens = setting.model, setting.layout, setting.tokens
    experts: Experts | None = model.experts
    assert experts is not None, "asked of layers with experts"
    per_expert = tokens * experts.top_k * layout.expert / experts.count / layout.tensor
    local = experts.count / layout.expert
    weights = feed_forward_weights(model, model.layers)
    routed = [weight for weight in weights if weight.split == "expert"]
    products = _products(setting, rates, tokens, [weight for weight in weights if weight.split != "expert"])
    width = experts.size * experts.top_k + experts.shared_size
    parts = _added(setting, rates, constants, products, width)
    copies = experts.top_k * model.hidden_size * tokens / layout.tensor
    layers = model.moe_layers + model.multi_token_prediction_layers
    sent = all_to_all_bytes(model, layout.expert) / layers * tokens / layout.tensor
    return {
        **parts,
        "experts": local * _products(setting, rates, per_expert, routed),
        # forward, a copy is read and written by sorting for ranks (2), sending (2), sorting for experts (2), padding
        # and quantising (1.5), and on its way back by sorting (2), sending (2) and adding up (1); backward as often
        "expert dispatch": constants.dispatch_passes * 25 * BF16 * copies / rates.memory,
        "all-to-all": constants.exposed_all_to_all * sent / _all_to_all_rate(setting, rates),
    }


def _added(setting: Setting, rates: Rates, constants: Constants, products: float, width: float) -> dict[str, float]:
    """Feed-forward products in "feed-forward" and the memory traffic of its activation in "activation"."""
    # gate and up are read and written by SwiGLU and its gradient, 16 bytes per element of the width; quantising adds 8
    bytes_moved = (16 + (8 if rates.quantised else 0)) * width / setting.layout.tensor
    moved = constants.memory_passes * bytes_moved * setting.tokens / rates.memory
    return {"feed-forward": products, "activation": moved}


def _head(setting: Setting, rates: Rates, constants: Constants) -> float:
    """Logits in BF16 and the cross-entropy over them, one micro-batch."""
    model = setting.model
    columns = (model.vocabulary_size or 0) / setting.layout.tensor
    moved = constants.memory_passes * 12 * columns * setting.tokens / rates.memory
    return rates.product(setting.tokens, model.hidden_size, columns, rates.bf16) + moved


def _once_a_step(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """Gradients over data-parallel ranks as far as they are not hidden, and the optimizer's pass over its state."""
    model, layout = setting.model, setting.layout
    ranks = layout.data * layout.context
    shared = shared_parameters(model, layout.tensor) / layout.pipeline
    experts = expert_parameters(model, layout.expert) / layout.pipeline
    copies = max(1, ranks * layout.tensor // layout.expert)
    sent = (FP32 + BF16) * (shared * (ranks - 1) / ranks + experts * (copies - 1) / copies)
    rate = rates.link if layout.world_size <= setting.link_domain else rates.network
    sharded = setting.training.optimizer.distributed
    state = shared / (ranks if sharded else 1) + experts / (copies if sharded else 1)
    # AdamW reads and writes main parameter and two moments, reads the gradient, writes the BF16 parameter
    return {
        "data parallel": constants.exposed_gradients * sent / rate if sent else 0.0,
        "optimizer": state * (2 * 3 * FP32 + FP32 + BF16) / rates.memory,
    }


def _products(setting: Setting, rates: Rates, tokens: float, weights: list[Weight]) -> float:
    """So many tokens times each of the linear layers' weights, in the recipe's precision."""
    shapes = [weight.shape(setting.layout.tensor) for weight in weights if weight.kind == "linear"]
    return sum(rates.product(tokens, inputs, outputs, rates.low) for inputs, outputs in shapes)


def _group_rate(setting: Setting, rates: Rates, ranks: int) -> float:
    """Bytes per second within a group of neighbouring ranks."""
    return rates.link if ranks <= setting.link_domain else rates.network


def _all_to_all_rate(setting: Setting, rates: Rates) -> float:
    """Bytes of copies per second: link and network work side by side, each on its share of the destinations.

    The `flex` dispatchers (DeepEP, HybridEP) send a token once to each domain that has any of its experts and copy it
    there; with top_k experts drawn evenly from n domains that is n (1 - (1 - 1/n)^top_k) domains.
    """
    ranks, near = setting.layout.expert, setting.link_domain
    if ranks <= near:
        return rates.link
    domains = ranks / near
    far = 1 - 1 / domains
    assert setting.model.experts is not None, "asked of layers with experts"
    top_k = setting.model.experts.top_k
    once = domains * (1 - far**top_k) / top_k if setting.layout.dispatcher == "flex" else 1.0
    return min(rates.link / (1 - far), rates.network / (far * once))
