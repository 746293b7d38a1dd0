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

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from octavo.forecast.calibration import Constants, Kind, Width
from octavo.forecast.communication import (
    all_to_all_bytes,
    context_parallel_bytes,
    point_to_point_bytes,
    tensor_parallel_bytes,
)
from octavo.forecast.memory import Held, held_parameters
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

T = TypeVar("T")
Shapes = list[tuple[float, float]]
BF16, FP32 = 2, 4
PASSES = 3
GIGA, TERA = 1e9, 1e12
EXPONENTIALS = {"8.0": 2.4e12, "8.9": 5.5e12, "9.0": 3.8e12, "10.0": 4.4e12, "10.3": 8.8e12}
"""Per second: 16 a clock and multiprocessor (CUDA C++ Programming Guide, arithmetic instructions), twice as many on
compute capability 10.3 (NVIDIA, Blackwell Ultra), times multiprocessors and clock of A100, L40S, H100, B200, B300."""
OPTIMIZER_SECONDS = 0.02
"""Of the host and of messages that wait for each other: the gradients' norm over all ranks, whether all are finite, and
some hundred launches."""
DETERMINISM: dict[Kind, float] = {"dense": 0.15, "experts": 0.25}
"""What sums in a fixed order add to a step. "Roughly 15 % of step time", "MoE-heavy models pay more" (Megatron-LM's
documentation of determinism, github.com/NVIDIA/Megatron-LM/pull/5718); for mixtures what its performance test lets pass
(issue 5747, which measured 0.30)."""
REACHED_BANDWIDTH = 0.8
"""Share of the data sheet's memory bandwidth that streaming kernels reach."""


class Rates:
    """What the device reaches, by the constants."""

    def __init__(self, setting: Setting, constants: Constants) -> None:
        device, low = setting.device, width(setting.precision.recipe)
        sustained = constants.sustained_of(device.compute_capability)
        bf16 = device.peak_tflops["bf16"] * TERA
        share = {"bf16": 1.0, "fp8": constants.fp8_products, "fp4": constants.fp4_products}[low]
        self.quantised = low != "bf16"
        passes = len(setting.precision.products) if self.quantised else PASSES

        def over_passes(factor: float) -> float:
            """FLOP/s over the three passes, with so much of the recipe's peak and the rest of the passes in BF16."""
            seconds = passes / (device.peak_tflops[low] * TERA * factor) + (PASSES - passes) / bf16
            return PASSES / seconds * sustained

        self.low = over_passes(share)
        """FLOP/s of large products in the recipe's precision, over the three passes."""
        self.experts = over_passes(share * (constants.fp8_experts if self.quantised else 1.0))
        """The same for experts' products."""
        self.bf16 = bf16 * sustained
        """FLOP/s of large products in BF16."""
        self.attention = bf16 * constants.attention
        """FLOP/s of attention's products."""
        self.exponentials = EXPONENTIALS.get(device.compute_capability or "", EXPONENTIALS["9.0"])
        """Exponentials per second."""
        self.memory = device.memory_gb_per_second * GIGA * REACHED_BANDWIDTH
        self.link = device.link_gb_per_second * GIGA
        self.network = device.network_gb_per_second * GIGA
        self.gradients = setting.software.gradient_bytes
        self._half = constants.half_dimension

    def product(self, rows: float, inner: float, columns: float, rate: float, *, quantised: bool) -> float:
        """Three passes of (rows x inner) (inner x columns); a dimension of `half_dimension` halves the rate.

        Weights are read twice and their gradient is added to what earlier micro-batches left: with few rows that takes
        as long as the products do.
        """
        filled = 1.0
        for dimension in (rows, inner, columns):
            filled *= dimension / (dimension + self._half)
        busy = PASSES * 2 * rows * inner * columns / (rate * filled)
        operand = BF16 / 2 if quantised else BF16
        moved = (2 * operand + 2 * self.gradients) * inner * columns
        return math.hypot(busy, moved / self.memory)


def width(recipe: RecipeName) -> Width:
    """Of the recipe's operands: recipes of one width are taken to be equally fast."""
    return "bf16" if recipe == "bf16" else "fp4" if recipe == "nvfp4" else "fp8"


def step_parts(setting: Setting, constants: Constants) -> dict[str, float]:
    """Part of a step -> seconds; their sum is the step."""
    rates = Rates(setting, constants)
    layout = setting.layout
    parts = {**_fullest_stage(setting, rates, constants), "point-to-point": _neighbours(setting, rates, constants)}
    micro_batch = sum(parts.values())
    parts = {part: seconds * setting.micro_batches for part, seconds in parts.items()}
    bubble = (layout.pipeline - 1) / (layout.virtual_pipeline * setting.micro_batches)
    parts["pipeline bubble"] = sum(parts.values()) * bubble
    parts |= _once_a_step(setting, rates, constants, micro_batch)
    if setting.software.deterministic:
        parts["determinism"] = DETERMINISM[setting.kind] * sum(parts.values())
    of_release = constants.releases.get(setting.software.release, 1.0)
    return {part: seconds * of_release for part, seconds in parts.items()}


def _fullest_stage(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """Parts of the pipeline stage that takes longest, one micro-batch: the others wait for it.

    Output heads and multi-token-prediction layers are on the last stage. A model whose layers Megatron-Core would not
    split over the stages has a layout made by hand: its stages are taken to be even.
    """
    model, pipeline = setting.model, setting.layout.pipeline
    stages = counted(setting, _stages)
    in_bf16 = Rates(replace(setting, precision=Precision()), constants)
    kinds = {kind for stage in stages for kind in stage} | {_kind(setting, model.layers)}
    layers = {kind: _whole_layer(setting, in_bf16 if kind.in_bf16 else rates, constants, kind) for kind in kinds}
    held = [_sum(*((number, layers[kind]) for kind, number in stage.items())) for stage in stages]
    predictions = model.multi_token_prediction_layers
    projection = {"linear layers": _products(rates, setting.tokens, counted(setting, _projection))}
    ends = _sum(
        (predictions, layers[_kind(setting, model.layers)]),
        (predictions, projection),
        (1 + predictions, {"output head": _head(setting, rates, constants)}),
    )
    if not splits(model.layers, pipeline, setting.layout.virtual_pipeline):
        return {part: seconds / pipeline for part, seconds in _sum((1, held[0]), (1, ends)).items()}
    held[-1] = _sum((1, held[-1]), (1, ends))
    return max(held, key=lambda parts: sum(parts.values()))


class LayerKind(NamedTuple):
    """What tells layers apart whose times differ."""

    mixed: bool
    """With experts."""
    scores: float
    """Forward FLOPs per token of attention's scores and values, which a layer's window decides."""
    in_bf16: bool
    """One of the first and last layers, where the recipe leaves these in BF16."""


def _kind(setting: Setting, layer: int) -> LayerKind:
    model = setting.model
    ends = {0, model.layers - 1} if setting.precision.first_last_layers_bf16 else set()
    scores = attention_flops(model.attention, setting.training.sequence_length, min(layer, model.layers - 1))
    return LayerKind(model.is_mixed(layer), scores, layer in ends)


def _stages(setting: Setting) -> list[Counter[LayerKind]]:
    """How many layers of each kind every different stage holds, the last stage last; all layers as one stage where
    Megatron-Core would not split them."""
    model, layout = setting.model, setting.layout
    kinds = [_kind(setting, layer) for layer in range(model.layers)]
    if not splits(model.layers, layout.pipeline, layout.virtual_pipeline):
        return [Counter(kinds)]
    stages = [
        Counter(kinds[layer] for layer in stage_layers(model.layers, layout.pipeline, layout.virtual_pipeline, stage))
        for stage in range(layout.pipeline)
    ]
    return [stage for index, stage in enumerate(stages) if stage not in stages[:index]][:-1] + stages[-1:]


def counted(setting: Setting, count: Callable[[Setting], T]) -> T:
    """What a setting decides alone, whatever the constants: the fit asks for it thousands of times."""
    known = setting.__dict__.setdefault("_counted", {})
    if count not in known:
        known[count] = count(setting)
    return known[count]


def _neighbours(setting: Setting, rates: Rates, constants: Constants) -> float:
    """Hidden states and gradients to and from the neighbouring stages, one micro-batch. Stages are the outermost groups
    of ranks, so that beyond one link domain some stage's neighbour is over the network."""
    sent = point_to_point_bytes(setting.model, setting.layout) * setting.tokens
    return constants.exposed_sums * sent / _group_rate(setting, rates, setting.layout.world_size)


def _sum(*terms: tuple[float, dict[str, float]]) -> dict[str, float]:
    """Each part times its factor, added up."""
    total: dict[str, float] = {}
    for factor, parts in terms:
        for part, seconds in parts.items():
            total[part] = total.get(part, 0.0) + factor * seconds
    return total


def _whole_layer(setting: Setting, rates: Rates, constants: Constants, kind: LayerKind) -> dict[str, float]:
    """One layer's parts, one micro-batch, and what waiting for the host adds to them."""
    software = setting.software
    if kind.mixed:
        feed_forward = _mixed_layer(setting, rates, constants)
        assert setting.model.experts is not None, "asked of layers with experts"
        local = setting.model.experts.count / setting.layout.expert
        each = constants.host_expert * (constants.host_quantising if rates.quantised else 1.0)
        host = constants.host_mixed_layer + each * local
        host *= constants.early_experts if software.early else 1.0
        # the host must read how many tokens each expert got before it can launch the products, so that it hides less
        overlap = constants.host_overlap
    else:
        feed_forward, host, overlap = _dense_layer(setting, rates, constants), constants.host_dense_layer, 2.0
    host *= constants.graphs_host if software.graphs else 1.0
    parts = {**_attention(setting, rates, constants, kind.scores), **feed_forward}
    if "layers" in software.recompute:
        parts = {part: seconds * (1 + 1 / PASSES) for part, seconds in parts.items()}
    busy = sum(parts.values())
    return {**parts, "host": (busy**overlap + host**overlap) ** (1 / overlap) - busy}


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
        "linear layers": _products(rates, tokens, counted(setting, _in_attention)),
        "attention": _scores(setting, rates, scores) / tensor,
        "memory": constants.memory_passes * bytes_moved * tokens / rates.memory,
        "tensor parallel": constants.exposed_sums * sums / _group_rate(setting, rates, tensor),
        "context parallel": constants.exposed_sums * keys / _group_rate(setting, rates, tensor * layout.context),
    }


def _scores(setting: Setting, rates: Rates, scores: float) -> float:
    """Seconds of attention's scores and values: its products, and one exponential of each pair of tokens and head in
    the forward pass and one in the backward pass, which tensor cores wait for the longer the smaller a head is."""
    widths, heads = attention_widths(setting.model.attention), setting.model.attention.heads
    pairs = scores / (2 * (widths.queries + widths.output) / heads)
    return setting.tokens * (PASSES * scores / rates.attention + 2 * pairs / rates.exponentials)


def _dense_layer(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """A SwiGLU feed-forward."""
    width = setting.model.feed_forward_size
    assert width is not None, "checked by Architecture: it has dense layers"
    products = _products(rates, setting.tokens, counted(setting, _in_feed_forward))
    return _added(setting, rates, constants, products, width)


def _mixed_layer(setting: Setting, rates: Rates, constants: Constants) -> dict[str, float]:
    """Routed experts, evenly loaded, the shared one, and their tokens' way there and back."""
    model, layout, tokens = setting.model, setting.layout, setting.tokens
    experts: Experts | None = model.experts
    assert experts is not None, "asked of layers with experts"
    per_expert = tokens * experts.top_k * layout.expert / experts.count / layout.tensor
    local = experts.count / layout.expert
    products = _products(rates, tokens, counted(setting, _in_shared_expert))
    width = experts.size * experts.top_k + experts.shared_size
    parts = _added(setting, rates, constants, products, width)
    copies = experts.top_k * model.hidden_size * tokens / layout.tensor
    sent = counted(setting, _dispatched) * tokens / layout.tensor
    software = setting.software
    passes = constants.graphs_experts if software.graphs else 1.0
    passes *= constants.early_experts if software.early else 1.0
    # with biases Megatron-Core adds them expert by expert in FP32 (68 bytes an element of the copies, both passes) and
    # its clamped activation is about thirty operations in FP32 of nine bytes an element
    unfused = (68 * copies + 280 * experts.top_k * experts.size * tokens / layout.tensor) if experts.bias else 0.0
    return {
        **parts,
        "experts": local * _products(rates, per_expert, counted(setting, _in_expert), rates.experts),
        # forward, a copy is read and written by sorting for ranks (2), sending (2), sorting for experts (2), padding
        # and quantising (1.5), and on its way back by sorting (2), sending (2) and adding up (1); backward as often
        "expert dispatch": passes * constants.dispatch_passes * 25 * BF16 * copies / rates.memory,
        "biases of experts": passes * constants.unfused_experts * unfused / rates.memory,
        "all-to-all": constants.exposed_all_to_all * sent / _all_to_all_rate(setting, rates),
    }


def _added(setting: Setting, rates: Rates, constants: Constants, products: float, width: float) -> dict[str, float]:
    """Feed-forward products in "feed-forward" and the memory traffic of its activation in "activation"."""
    # gate and up are read and written by SwiGLU and its gradient, 16 bytes per element of the width, without a gate 10;
    # quantising adds 8
    activation = 16 if setting.model.gated else 10
    bytes_moved = (activation + (8 if rates.quantised else 0)) * width / setting.layout.tensor
    moved = constants.memory_passes * bytes_moved * setting.tokens / rates.memory
    return {"feed-forward": products, "activation": moved}


def _head(setting: Setting, rates: Rates, constants: Constants) -> float:
    """Logits in BF16 and the cross-entropy over them, one micro-batch."""
    model = setting.model
    columns = (model.vocabulary_size or 0) / setting.layout.tensor
    moved = constants.memory_passes * 12 * columns * setting.tokens / rates.memory
    return rates.product(setting.tokens, model.hidden_size, columns, rates.bf16, quantised=False) + moved


def _once_a_step(setting: Setting, rates: Rates, constants: Constants, micro_batch: float) -> dict[str, float]:
    """Gradients and parameters over data-parallel ranks as far as they are not hidden, and the optimizer, of the
    pipeline stage that takes longest: the gradients' norm is over all stages, which wait for each other.

    Work can hide only what fits beside it: sums of gradients beside the last micro-batch's backward pass, gathered
    parameters beside the first one's forward pass (`micro_batch`: seconds of one), and with sharded parameters each
    micro-batch has its own.
    """
    stages = [_end_of_step(setting, rates, constants, micro_batch, held) for held in counted(setting, _held)]
    return max(stages, key=lambda parts: sum(parts.values()))


def _end_of_step(
    setting: Setting, rates: Rates, constants: Constants, micro_batch: float, held: Held
) -> dict[str, float]:
    """The same of one stage, whose devices hold so many parameters."""
    layout, software = setting.layout, setting.software
    ranks = layout.data * layout.context
    copies = max(1, ranks * layout.tensor // layout.expert)
    spread = held.shared * (ranks - 1) / ranks + held.experts * (copies - 1) / copies
    rate = _group_rate(setting, rates, layout.world_size // layout.pipeline)  # stages are the outermost groups
    distributed = setting.training.optimizer.distributed or software.sharded
    # without a distributed optimizer the gradients' sums go back to all ranks, and there is nothing to gather
    summed = (1 if distributed else 2) * software.gradient_bytes * spread / rate
    # sharded parameters are gathered for the forward and for the backward pass
    gathered = (2 if software.sharded else 1) * BF16 * spread / rate if distributed else 0.0
    beside = summed + (gathered if software.gathers_ahead else 0.0)
    times = setting.micro_batches if software.sharded else 1
    exposed = times * max(constants.exposed_gradients * beside, beside - micro_batch)
    state = held.shared / (ranks if distributed else 1) + held.experts / (copies if distributed else 1)
    # AdamW reads and writes main parameter and two moments, reads the gradient, writes the BF16 parameter; before that
    # the gradients' norm reads them and clipping reads and writes them
    moved = state * (2 * 3 * FP32 + FP32 + BF16 + 3 * FP32)
    return {
        "data parallel": exposed + (0.0 if software.gathers_ahead else gathered),
        "optimizer": moved / rates.memory + OPTIMIZER_SECONDS,
    }


def _products(rates: Rates, tokens: float, shapes: Shapes, rate: float | None = None) -> float:
    """So many tokens times each of the linear layers' weights, in the recipe's precision."""
    return sum(
        rates.product(tokens, inputs, outputs, rate or rates.low, quantised=rates.quantised)
        for inputs, outputs in shapes
    )


def _shapes(setting: Setting, weights: list[Weight]) -> Shapes:
    """(inputs, outputs) on one device of the linear layers among weights."""
    return [weight.shape(setting.layout.tensor) for weight in weights if weight.kind == "linear"]


def _in_attention(setting: Setting) -> Shapes:
    return _shapes(setting, attention_weights(setting.model))


def _in_feed_forward(setting: Setting) -> Shapes:
    return _shapes(setting, feed_forward_weights(setting.model, 0))


def _in_shared_expert(setting: Setting) -> Shapes:
    weights = feed_forward_weights(setting.model, setting.model.layers)
    return _shapes(setting, [weight for weight in weights if weight.split != "expert"])


def _in_expert(setting: Setting) -> Shapes:
    weights = feed_forward_weights(setting.model, setting.model.layers)
    return _shapes(setting, [weight for weight in weights if weight.split == "expert"])


def _projection(setting: Setting) -> Shapes:
    return _shapes(setting, [prediction_projection(setting.model)])


def _dispatched(setting: Setting) -> float:
    """Bytes of copies per token that a layer with experts sends."""
    model = setting.model
    layers = model.moe_layers + model.multi_token_prediction_layers
    return all_to_all_bytes(model, setting.layout.expert) / layers


def _held(setting: Setting) -> list[Held]:
    """What the devices of every different pipeline stage hold."""
    stages = range(setting.layout.pipeline)
    return list(dict.fromkeys(held_parameters(setting.model, setting.layout, stage) for stage in stages))


def _group_rate(setting: Setting, rates: Rates, ranks: int) -> float:
    """Bytes per second within a group of neighbouring ranks."""
    return rates.link if ranks <= setting.link_domain else rates.network


def _all_to_all_rate(setting: Setting, rates: Rates) -> float:
    """Bytes of copies per second: link and network work side by side, each on its share of the destinations.

    DeepEP and HybridEP send a token once to each domain that has any of its experts and copy it
    there; with top_k experts drawn evenly from n domains that is n (1 - (1 - 1/n)^top_k) domains.
    """
    ranks, near = setting.layout.expert, setting.link_domain
    if ranks <= near:
        return rates.link
    domains = ranks / near
    far = 1 - 1 / domains
    assert setting.model.experts is not None, "asked of layers with experts"
    top_k = setting.model.experts.top_k
    once = domains * (1 - far**top_k) / top_k if setting.layout.sends_once else 1.0
    return min(rates.link / (1 - far), rates.network / (far * once))
