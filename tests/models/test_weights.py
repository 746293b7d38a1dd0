"""The table of a layer's weights is what Megatron-Core builds of Transformer Engine's layers, weight by weight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from octavo.experiment.config import Parallelism
from octavo.forecast.memory import memory
from octavo.forecast.setting import plain_training, read_device
from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture
from octavo.models.weights import attention_weights, layer_weights, prediction_projection
from octavo.precision.config import Precision

MODELS = {
    "grouped queries": "llama-3.1-8b",
    "norms on queries and keys, experts": "qwen3-30b-a3b",
    "a dense layer, experts, a shared expert": "deepseekmoe-16b",
    "latent attention, experts, multi-token prediction": "deepseek-v3",
    "latent attention, queries not compressed": "deepseek-v2-lite",
    "biases and sinks": "gpt-oss-120b",
}
RANKS = {1: [], 2: ["--first-of-two"]}


@pytest.fixture(scope="module", params=RANKS, ids=lambda tensor: f"tensor {tensor}")
def built(request: pytest.FixtureRequest, transformer_engine: Path) -> tuple[int, dict[str, Any]]:
    """The number of tensor-parallel ranks, and the size of every parameter of each model on the first of them."""
    pytest.importorskip("megatron.core")
    from tests.precision.test_transformer_engine import construct

    cases = [(name, {"recipe": "bf16"}, False) for name in MODELS.values()]
    answers = construct(transformer_engine, cases, "--sizes", *RANKS[request.param])
    return request.param, {name: answer["sizes"] for name, answer in zip(MODELS.values(), answers, strict=True)}


def short(name: str) -> Architecture:
    """A model with one layer after its leading dense ones: every kind of layer that it has."""
    model = read_architecture(name)
    return model.model_copy(update={"layers": (model.experts.leading_dense_layers if model.experts else 0) + 1})


def of_layer(model: Architecture, sizes: dict[str, int], layer: int) -> Counter[int]:
    """How many parameters there are of each size."""
    prefix = f"decoder.layers.{layer}." if layer < model.layers else f"mtp.layers.{layer - model.layers}."
    return Counter(size for name, size in sizes.items() if name.startswith(prefix))


@pytest.mark.parametrize("name", MODELS.values(), ids=MODELS)
def test_every_weight_has_the_size_that_is_built(built: tuple[int, dict[str, Any]], name: str) -> None:
    (tensor, sizes), model = built, short(name)
    for layer in range(model.layers + model.multi_token_prediction_layers):
        counted: Counter[int] = Counter()
        for weight in layer_weights(model, layer):
            counted[int(weight.held(tensor, 1)) // weight.copies] += weight.copies
        assert counted == of_layer(model, sizes[name], layer)


@pytest.mark.parametrize("name", MODELS.values(), ids=MODELS)
def test_the_planned_memory_is_that_of_the_parameters_built(built: tuple[int, dict[str, Any]], name: str) -> None:
    """On one pipeline stage, in BF16."""
    tensor, sizes = built
    layout, device = Parallelism(tensor=tensor), read_device("h100")
    planned = memory(short(name), plain_training(1, 1, 4096), layout, Precision(), device).parameters
    assert planned == 2 * sum(sizes[name].values())


def test_the_down_projections_of_latent_attention_are_whole_on_every_rank() -> None:
    """DeepSeek-V3 (arXiv 2412.19437, section 4.2) over 8 ranks: 36.6 M values of a layer's five projections."""
    matrices = [one for one in attention_weights(read_architecture("deepseek-v3")) if one.kind == "linear"]
    assert {one.name: one.held(8, 1) for one in matrices} == {
        "linear_q_down_proj": 7168 * 1536,
        "linear_q_up_proj": 1536 * 128 * 192 / 8,
        "linear_kv_down_proj": 7168 * 576,
        "linear_kv_up_proj": 512 * 128 * 256 / 8,
        "linear_proj": 128 * 128 * 7168 / 8,
    }


def test_multi_token_prediction_has_a_projection_of_two_hidden_states() -> None:
    model = read_architecture("deepseek-v3")
    assert prediction_projection(model).size == 2 * 7168 * 7168 == 102_760_448
    assert prediction_projection(model) in layer_weights(model, model.layers)
    assert prediction_projection(model) not in layer_weights(model, model.layers - 1)
