"""Which layers a pipeline stage holds, as Megatron-Core splits them.

Where the stages divide the layers each holds as many; with virtual stages the chunks go round (arXiv 2104.04473,
section 2.2). Where they do not, all stages but the last hold the quotient rounded up and the last the rest, beside
output head and multi-token-prediction layers (Megatron-Core's `num_layers_in_last_pipeline_stage`): 61 layers on 16
stages are 15 times 4, and 1.
"""

from __future__ import annotations

import math


def splits(layers: int, pipeline: int, virtual: int) -> bool:
    """Whether the layers can be split so."""
    if virtual > 1 or layers % pipeline == 0:
        return layers % (pipeline * virtual) == 0
    return last_stage_layers(layers, pipeline) > 0


def last_stage_layers(layers: int, pipeline: int) -> int:
    """Layers of the last stage when all others hold the quotient rounded up; not positive where that is too much."""
    return layers - (pipeline - 1) * math.ceil(layers / pipeline)


def stage_layers(layers: int, pipeline: int, virtual: int, stage: int) -> list[int]:
    """The layers (from 0) of a stage (from 0)."""
    if virtual == 1:
        size = math.ceil(layers / pipeline)
        return list(range(stage * size, min((stage + 1) * size, layers)))
    chunks = pipeline * virtual
    return [layer for layer in range(layers) if layer * chunks // layers % pipeline == stage]
