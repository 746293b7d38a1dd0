"""Layouts that Megatron-LM's arguments refuse, or that would fail or train wrong, are errors of `octavo check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.experiment.run import Experiment

FOUR = {"models.dense.layers": 4, "models.moe.layers": 4}
EVEN = {"models.dense.vocabulary_size": 260, "models.moe.vocabulary_size": 260}
STAGES = {**FOUR, "parallelism": {"pipeline": 2, "virtual_pipeline": 2}}


def test_virtual_stages_take_whole_groups_of_micro_batches(load: Callable[..., Experiment]) -> None:
    """2 stages: 4, 4 and 8 sequences in micro-batches of 2 are 2, 2 and 4."""
    assert load(STAGES).cells


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # 6 sequences in micro-batches of 2 are 3, which 2 stages do not divide; 8 would be 4
        ({**STAGES, "training.global_batch_size": 6}, ["global_batch_size", "3 micro-batches", "2 pipeline", "8 seq"]),
        # on 2 data-parallel ranks a step of 4 is one micro-batch each
        (
            {**FOUR, "parallelism": {"pipeline": 2, "virtual_pipeline": 2, "data": 2}},
            ["global_batch_size", "1 micro-batches", "data 2", "8 sequences"],
        ),
        ({**STAGES, "training.evaluation.sequences": 5}, ["evaluation.sequences", "5 sequences are 3 micro-batches"]),
        ({**STAGES, "training.evaluation.final_sequences": 9}, ["evaluation.final_sequences", "9 sequences", "12 seq"]),
        # 34 tokens on 4 tensor-parallel ranks; Megatron-Core would work on 8 each and say nothing
        ({**EVEN, "parallelism": {"tensor": 4, "sequence": True}, "training.sequence_length": 34}, ["sequence", "34"]),
        (
            {**EVEN, "parallelism": {"tensor": 4, "context": 2, "sequence": True}, "training.sequence_length": 36},
            ["context-parallel rank: 18", "multiple of 8"],
        ),
        ({"parallelism": {"tensor": 2}, "models.dense.vocabulary_size": 258}, ["moe", "vocabulary"]),
        (
            {"models.moe.vocabulary_size": 258, "overrides": {"moe": {"parallelism.tensor": 2}}},
            ["moe-bf16: tensor parallelism 2 with experts and sequence: false"],
        ),
        (
            {"models.dense.vocabulary_size": 258, "models.dense.feed_forward_size": 127}
            | {"overrides": {"dense": {"parallelism.tensor": 2}}},
            ["feed-forward size: 127"],
        ),
        (
            {"models.moe.vocabulary_size": 258, "models.moe.experts.shared_size": 33, "ablations": {}}
            | {"overrides": {"moe": {"parallelism.tensor": 2, "parallelism.sequence": True}}},
            ["shared experts' size: 33"],
        ),
        (
            {"overrides": {"moe": {"parallelism.dispatcher": "deepep"}}},
            ["the dispatcher deepep with tensor x expert = 1", "parallelism.dispatcher"],
        ),
        (
            {"parallelism": {"data": 2}}
            | {"overrides": {"moe": {"parallelism.dispatcher": "hybridep", "parallelism.expert": 2}}},
            ["the dispatcher hybridep in deterministic mode", "training.deterministic: false"],
        ),
        (
            {"precisions": ["bf16", {"recipe": "fp8_blockwise", "fp8_parameters": True}]},
            ["fp8_parameters without the distributed optimizer"],
        ),
    ],
)
def test_a_layout_that_cannot_train(load: Callable[..., Experiment], changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OctavoError) as caught:
        load(changes)
    for word in words:
        assert word in str(caught.value)
    assert "small.yaml" in str(caught.value.where)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallelism": {"context": 2}}, "context parallelism"),
        ({"overrides": {"moe": {"parallelism.dispatcher": "deepep", "parallelism.data": 2, "parallelism.expert": 2}}},
         "the dispatcher deepep"),
        ({"training.optimizer.distributed": True}, "the distributed optimizer"),
    ],
)  # fmt: skip
def test_what_cpus_cannot_train_is_told_before_the_run(
    load: Callable[..., Experiment], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(OctavoError, match=f"on CPUs a run cannot have {words}") as caught:
        load(changes, device={"kind": "cpu"})
    assert "small.yaml" in str(caught.value.where)


def test_mx_parameters_need_what_octavo_does_not_set_up(load: Callable[..., Experiment]) -> None:
    with pytest.raises(OctavoError, match="fp8_parameters with fp8_mxfp8"):
        load(
            {
                "precisions": [{"recipe": "fp8_mxfp8", "fp8_parameters": True}],
                "training.optimizer.distributed": True,
                "training.sequence_length": 64,
                "ablations": {},
            },
            device={"compute_capability": "10.0"},
        )
