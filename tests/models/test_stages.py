"""Pipeline stages hold every layer once, and no more than the rounded-up quotient."""

from __future__ import annotations

import pytest

from octavo.models.stages import last_stage_layers, splits, stage_layers


@pytest.mark.parametrize(
    ("layers", "pipeline", "virtual"), [(80, 4, 5), (80, 8, 1), (61, 16, 1), (61, 1, 1), (126, 16, 1)]
)
def test_every_layer_is_somewhere_once(layers: int, pipeline: int, virtual: int) -> None:
    assert splits(layers, pipeline, virtual)
    held = [stage_layers(layers, pipeline, virtual, stage) for stage in range(pipeline)]
    assert sorted(layer for stage in held for layer in stage) == list(range(layers))
    assert max(map(len, held)) == -(-layers // pipeline)


def test_an_uneven_pipeline_ends_in_a_shorter_stage() -> None:
    """61 = 15 x 4 + 1, the layers of DeepSeek-V3 on 16 stages."""
    assert last_stage_layers(61, 16) == 1
    assert stage_layers(61, 16, 1, 15) == [60]


def test_virtual_stages_go_round() -> None:
    """8 layers on 2 stages of 2 chunks: the first holds layers 0, 1 and 4, 5 (arXiv 2104.04473, figure 4)."""
    assert stage_layers(8, 2, 2, 0) == [0, 1, 4, 5]


@pytest.mark.parametrize(("layers", "pipeline", "virtual"), [(2, 4, 1), (10, 8, 1), (61, 16, 2), (80, 3, 5)])
def test_what_cannot_be_split(layers: int, pipeline: int, virtual: int) -> None:
    assert not splits(layers, pipeline, virtual)
