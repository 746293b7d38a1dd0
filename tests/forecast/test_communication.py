"""Bytes per token and device, by hand."""

from __future__ import annotations

import pytest

from octavo.experiment.load import load_experiment
from octavo.experiment.run import CellConfig
from octavo.forecast.communication import traffic
from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture

DENSE = Architecture.model_validate(
    {
        "name": "dense",
        "source": "this test",
        "layers": 2,
        "hidden_size": 64,
        "feed_forward_size": 128,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_size": 16},
        "vocabulary_size": 300,
    }
)
MOE = DENSE.model_copy(
    update={
        "experts": Architecture.model_validate(
            {**DENSE.model_dump(), "experts": {"count": 8, "top_k": 2, "size": 32}}
        ).experts
    }
)


def cell(model: Architecture, sequences: int = 16, distributed: bool = False, **parallelism: int) -> CellConfig:
    """Steps of 16 sequences of 128 tokens."""
    base = load_experiment("quickstart").cells["dense-bf16"]
    value = base.model_dump(mode="json")
    value["model"] = model.model_dump(mode="json")
    value["parallelism"] = parallelism
    value["training"].update(global_batch_size=sequences, micro_batch_size=1)
    value["training"]["optimizer"]["distributed"] = distributed
    return CellConfig.model_validate(value)


def test_one_device_talks_to_nobody() -> None:
    assert traffic(cell(MOE)).total_bytes_per_token == 0


def test_a_token_travels_to_its_experts_and_back_twice() -> None:
    """2 layers x 2 experts x 64 wide x 2 bytes, dispatch and combine, forward and backward; 3 of 4 copies leave."""
    assert traffic(cell(MOE, data=4, expert=4)).all_to_all_bytes_per_token == 2 * 2 * 64 * 2 * 4 * 3 / 4
    assert traffic(cell(DENSE, data=4)).all_to_all_bytes_per_token == 0


def test_deepseek_v3_sends_each_token_to_eight_experts() -> None:
    """58 MoE layers and that of multi-token prediction; 8 x 7,168 x 2 bytes each way."""
    found = traffic(cell(read_architecture("deepseek-v3"), sequences=64, data=64, expert=64))
    assert found.all_to_all_bytes_per_token == pytest.approx(59 * 4 * 8 * 7168 * 2 * 63 / 64)


def test_tensor_parallelism_sums_four_times_a_layer() -> None:
    """Each sum an all-reduce of 64 x 2 bytes over 2 devices: 2 x 1/2 of it sent."""
    assert traffic(cell(DENSE, tensor=2)).all_reduce_bytes_per_token == 2 * 4 * 64 * 2


def test_gradients_are_summed_once_a_step() -> None:
    """FP32 gradients of all parameters but norms, an all-reduce over 4 replicas, over 2,048 / 4 tokens."""
    parameters = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 2 * 300 * 64
    found = traffic(cell(DENSE, data=4))
    assert found.all_reduce_bytes_per_token == pytest.approx(2 * 3 / 4 * 4 * parameters / 512)
    sharded = traffic(cell(DENSE, data=4, distributed=True))
    assert sharded.all_reduce_bytes_per_token == pytest.approx(found.all_reduce_bytes_per_token / 2)
    assert sharded.all_gather_bytes_per_token == pytest.approx(3 / 4 * 2 * parameters / 512)


def test_experts_spread_over_all_devices_have_no_copies_to_sum() -> None:
    """8 experts over 4 devices: only attention, router and embeddings are summed."""
    parameters = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 8) + 2 * 300 * 64
    assert traffic(cell(MOE, data=4, expert=4)).all_reduce_bytes_per_token == pytest.approx(
        2 * 3 / 4 * 4 * parameters / 512
    )


def test_context_parallelism_moves_keys_and_values() -> None:
    """Keys and values of 2 heads of 16 in 2 layers, to the one other device and their gradients back; half of a
    replica's tokens are each device's."""
    assert traffic(cell(DENSE, context=2)).all_gather_bytes_per_token == 2 * 2 * (2 * 2 * 16) * 2 / 2


def test_a_pipeline_passes_hidden_states_on_and_gradients_back() -> None:
    """Two stages of one layer have one boundary; 64 x 2 bytes once each way, an average over the two devices."""
    assert traffic(cell(DENSE, pipeline=2)).point_to_point_bytes_per_token == 2 * 64 * 2 / 2
    assert traffic(cell(DENSE, pipeline=2, context=2)).point_to_point_bytes_per_token == 2 * 64 * 2 / 2 / 2
