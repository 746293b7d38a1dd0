"""Sizes that Transformer Engine's products would refuse in the first step are refused in the configuration."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.experiment.config import Parallelism
from octavo.experiment.load import load_cluster, load_experiment
from octavo.experiment.precision_checks import check_sizes, widths
from octavo.experiment.run import CellConfig
from octavo.layout import configs
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision


def check(model: str, recipe: str, *, cluster: str = "h100-node", emulate: bool = False, **changes: Any) -> None:
    """A cell of the quickstart with another model, recipe, layout (`tensor`, `sequence`) and micro-batch."""
    cell: CellConfig = load_experiment("quickstart").cells["dense-bf16"]
    training = {key: changes.pop(key) for key in ("micro_batch_size", "sequence_length") if key in changes}
    cell = cell.model_copy(
        update={
            "model": read_architecture(model),
            "precision": Precision(recipe=recipe, emulate=emulate),  # type: ignore[arg-type]
            "parallelism": Parallelism(**changes),
            "training": cell.training.model_copy(update=training),
        }
    )
    check_sizes(cell, load_cluster(cluster, configs())[1], "experiment.yaml precisions")


@pytest.mark.parametrize(
    ("model", "recipe", "changes", "message"),
    [
        # The laptop's experts are 72 wide.
        ("laptop-moe", "fp8_tensorwise", {}, "experts.size is 72 on a rank"),
        ("llama-3.1-8b", "fp8_tensorwise", {"micro_batch_size": 1, "sequence_length": 4}, "4 tokens on a rank"),
        ("llama-3.1-8b", "fp8_mxfp8", {"micro_batch_size": 1, "sequence_length": 40}, "40 tokens on a rank"),
        # 14336 / 1024 = 14
        ("llama-3.1-8b", "fp8_delayed", {"tensor": 1024, "data": 1}, "on a rank, which fp8_delayed cannot multiply"),
        # A rank has 512 / 8 = 64 tokens, and gathers blocks of 128.
        (
            "llama-3.1-8b",
            "fp8_blockwise",
            {"tensor": 8, "sequence": True, "micro_batch_size": 1, "sequence_length": 512},
            "64 tokens on a rank",
        ),
    ],
)
def test_what_would_stop_in_the_first_step_is_refused(
    model: str, recipe: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OctavoError, match=message) as caught:
        check(model, recipe, **changes)
    assert caught.value.where == "experiment.yaml precisions"


@pytest.mark.parametrize(
    ("model", "recipe", "changes"),
    [
        ("laptop-moe", "bf16", {}),
        ("laptop-moe", "fp8_tensorwise", {"emulate": True}),
        ("laptop-moe", "fp8_tensorwise", {"cluster": "laptop"}),
        ("llama-3.1-8b", "fp8_mxfp8", {"micro_batch_size": 1, "sequence_length": 32}),
        ("llama-3.1-8b", "fp8_tensorwise", {"micro_batch_size": 1, "sequence_length": 40}),
        (
            "llama-3.1-8b",
            "fp8_tensorwise",
            {"tensor": 8, "sequence": True, "micro_batch_size": 1, "sequence_length": 512},
        ),
        *[("deepseek-v3", recipe, {}) for recipe in ("fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8", "nvfp4")],
    ],
)
def test_what_fits_or_is_emulated_is_not(model: str, recipe: str, changes: dict[str, Any]) -> None:
    check(model, recipe, **changes)


def test_widths_are_those_of_the_linear_layers() -> None:
    """DeepSeek-V3 (arXiv 2412.19437, section 4.2) over 8 ranks: 128 heads of 128 + 64, 128 + 128 and 128."""
    found = dict(widths(read_architecture("deepseek-v3"), Parallelism(tensor=8)))
    assert found == {
        "hidden_size": 7168,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "kv_lora_rank + qk_rope_head_size": 576,
        "the width of queries": 128 * 192 // 8,
        "the width of keys and values": 128 * 256 // 8,
        "the width of values": 128 * 128 // 8,
        "2 x feed_forward_size": 2 * 18432 // 8,
        "feed_forward_size": 18432 // 8,
        "2 x experts.size": 2 * 2048,  # expert tensor parallelism is 1
        "experts.size": 2048,
        "2 x experts.shared_size": 2 * 2048 // 8,
        "experts.shared_size": 2048 // 8,
        "2 x hidden_size": 2 * 7168,
        "hidden_size of multi-token prediction": 7168 // 8,
    }
