"""Memory by hand: what is split over which ranks, and what a pipeline holds."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.experiment.config import Parallelism, Training
from octavo.forecast.memory import Memory, activation_bytes, fits, memory
from octavo.forecast.setting import plain_training, read_device
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision, RecipeName

HIDDEN, WIDTH, VOCABULARY = 64, 128, 256
VALUE: dict[str, Any] = {
    "name": "small",
    "source": "this test",
    "layers": 8,
    "hidden_size": HIDDEN,
    "feed_forward_size": WIDTH,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_size": 16},
    "vocabulary_size": VOCABULARY,
}
DENSE = Architecture.model_validate(VALUE)
MOE = Architecture.model_validate({**VALUE, "experts": {"count": 8, "top_k": 2, "size": 32, "shared_size": 32}})
ATTENTION = HIDDEN * 64 * 2 + HIDDEN * 32 * 2
LAYER = ATTENTION + 3 * HIDDEN * WIDTH + 2 * HIDDEN


def held(
    model: Architecture = DENSE, recipe: RecipeName = "bf16", sharded: bool = False, gpu: str = "h100", **layout: Any
) -> Memory:
    training: Training = plain_training(16, 2, 128)
    optimizer = training.optimizer.model_copy(update={"distributed": sharded})
    training = training.model_copy(update={"optimizer": optimizer})
    return memory(model, training, Parallelism(**layout), Precision(recipe=recipe), read_device(gpu))


def test_two_four_and_twelve_bytes_a_parameter() -> None:
    parameters = 8 * LAYER + HIDDEN + 2 * VOCABULARY * HIDDEN
    one = held()
    assert (one.parameters, one.gradients, one.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)


def test_the_distributed_optimizer_shares_its_state_out() -> None:
    assert held(sharded=True, data=4).optimizer == held(data=4).optimizer / 4
    assert held(sharded=True, data=4).gradients == held().gradients


def test_experts_are_split_over_expert_ranks_and_nothing_else_is() -> None:
    expert = 3 * HIDDEN * 32
    one, split = held(MOE, data=4), held(MOE, data=4, expert=4)
    assert one.parameters - split.parameters == 2 * 8 * (8 - 2) * expert
    # with 4 devices for 4 expert-parallel ranks no other device has the same experts: their state is not shared out
    shared = split.parameters / 2 - 8 * 2 * expert
    assert held(MOE, sharded=True, data=4, expert=4).optimizer == 12 * (shared / 4 + 8 * 2 * expert)


def test_norms_and_routers_are_whole_on_every_tensor_rank() -> None:
    one, split = held(), held(tensor=2, sequence=True)
    norms = 8 * 2 * HIDDEN + HIDDEN
    assert split.parameters == (one.parameters - 2 * norms) / 2 + 2 * norms


def test_the_first_stage_of_a_pipeline_holds_as_many_micro_batches_as_there_are_stages() -> None:
    """Half of the layers, twice the micro-batches: the activations of the whole model."""
    one, first = held(), held(pipeline=2)
    assert first.activations == pytest.approx(one.activations, rel=0.02)  # but for the embedded tokens, held twice
    assert first.parameters == 2 * (4 * LAYER + VOCABULARY * HIDDEN)


def test_virtual_stages_hold_more() -> None:
    """arXiv 2205.05198, section 4.2.3: 1 + (p - 1) / (p v) times as much."""
    assert held(pipeline=4, virtual_pipeline=2).activations == pytest.approx(
        held(pipeline=4).activations * (1 + 3 / (4 * 2))
    )


def test_the_activations_of_a_layer() -> None:
    """Per token in BF16: two residuals and two norms of 64; queries and output of 64, twice what the output product
    reads, keys and values of 32; gate, up and product of 128; four FP32 softmax statistics."""
    expected = 2 * (4 * 64 + (64 + 32 + 32 + 64) + 64 + 3 * 128) + 4 * 4
    assert activation_bytes(DENSE, Parallelism(), Precision(), dense=True) == expected
    # FP8 keeps what products read in one byte: two norms, attention's output, SwiGLU's product
    eight = activation_bytes(DENSE, Parallelism(), Precision(recipe="fp8_tensorwise"), dense=True)
    assert expected - eight == 2 * 64 + 64 + 128


def test_fp8_keeps_the_weights_a_second_time_and_on_hopper_a_third() -> None:
    parameters = held().parameters / 2
    assert held().quantised_copies == 0
    assert held(recipe="fp8_tensorwise", gpu="h100").quantised_copies == 2 * parameters
    assert held(recipe="fp8_tensorwise", gpu="b200").quantised_copies == parameters
    assert held(recipe="fp8_mxfp8", gpu="b200").quantised_copies == 2 * parameters


def test_logits_are_in_fp32_on_the_last_stage() -> None:
    assert held().logits == 2 * 128 * 4 * VOCABULARY
    assert held(tensor=2, sequence=True).logits == held().logits / 2


def test_what_fits() -> None:
    """An H100 reports 79.6 GiB; 2 of them are kept for the runtime, and half a GiB of a CPU core's 4."""
    for name, most in (("h100", 77.6), ("cpu", 3.5)):
        device = read_device(name)
        assert fits(most * 2**30, device)
        assert not fits(most * 2**30 + 1, device)
