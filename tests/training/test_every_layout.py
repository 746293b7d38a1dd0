"""Every parallel layout that the schema allows on CPUs trains what one rank trains, and goes on from a checkpoint.

Two jobs of up to four ranks train all of them (`layout_ranks.py`): starting a rank takes longer than its steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.training.conftest import Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)

EQUAL, CLOSE = 0.0, 2e-3
"""Relative differences from one rank. Pipeline stages compute what one rank does, in the same order. Data-parallel
ranks sum gradients, tensor-parallel ranks partial products and expert-parallel ranks tokens in another one; so do
stages that share the embedding (with the output head, or with multi-token prediction) sum its gradients."""

MODELS: dict[str, dict[str, Any]] = {
    "dense": {"layers": 4, "feed_forward_size": 64},
    "tied": {"layers": 4, "feed_forward_size": 64, "tied_embeddings": True},
    "few": {"layers": 4, "feed_forward_size": 64},  # micro-batches: one for four stages
    "five": {"layers": 5, "feed_forward_size": 64},
    "eight": {"layers": 8, "feed_forward_size": 64},
    "latent": {
        "layers": 4,
        "feed_forward_size": 64,
        "attention": {"kind": "mla", "heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16}
        | {"qk_head_size": 16, "qk_rope_head_size": 8, "v_head_size": 16},
        "multi_token_prediction_layers": 1,
    },
    "moe": {
        "layers": 4,
        "experts": {"count": 4, "top_k": 2, "size": 32, "router": {"balance": "aux_loss", "aux_loss_weight": 0.01}},
    },
    "mixed": {  # as DeepSeek-V3: a dense layer first, a shared expert, balance by a bias
        "layers": 4,
        "feed_forward_size": 64,
        "experts": {"count": 4, "top_k": 2, "size": 32, "shared_size": 32, "leading_dense_layers": 1}
        | {"router": {"score": "sigmoid", "normalise": True, "balance": "expert_bias"}},
    },
}
LAYOUTS: list[tuple[str, dict[str, Any], float]] = [
    ("dense-bf16", {"pipeline": 2, "virtual_pipeline": 2}, EQUAL),
    ("dense-bf16", {"pipeline": 4}, EQUAL),
    ("dense-bf16", {"data": 2}, CLOSE),
    ("dense-bf16", {"tensor": 2, "data": 2}, CLOSE),
    ("dense-bf16", {"data": 2, "pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("dense-bf16", {"tensor": 2, "sequence": True, "pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("dense-fp8_delayed", {"pipeline": 2, "virtual_pipeline": 2}, EQUAL),
    ("few-bf16", {"pipeline": 4}, EQUAL),
    ("five-bf16", {"pipeline": 3}, EQUAL),
    ("eight-bf16", {"pipeline": 2, "virtual_pipeline": 4}, EQUAL),
    ("eight-bf16", {"pipeline": 4, "virtual_pipeline": 2}, EQUAL),
    ("tied-bf16", {"pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("latent-bf16", {"pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("latent-bf16", {"tensor": 2, "sequence": True}, CLOSE),
    ("moe-bf16", {"pipeline": 2, "virtual_pipeline": 2}, EQUAL),
    ("moe-bf16", {"data": 2}, CLOSE),
    ("moe-bf16", {"data": 2, "expert": 2, "dispatcher": "allgather"}, CLOSE),
    ("moe-bf16", {"data": 4, "expert": 2}, CLOSE),
    ("moe-bf16", {"data": 4, "expert": 4}, CLOSE),
    ("moe-bf16", {"data": 2, "expert": 2, "pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("moe-fp8_delayed", {"data": 2, "expert": 2, "pipeline": 2, "virtual_pipeline": 2}, CLOSE),
    ("mixed-bf16", {"pipeline": 2, "virtual_pipeline": 2}, EQUAL),
    ("mixed-fp8_blockwise", {"data": 2, "expert": 2}, CLOSE),
]


def named(cell: str, layout: dict[str, Any]) -> str:
    """The experiment of a layout."""
    return "layout_" + "_".join([cell.partition("-")[0], *(f"{axis}{size}" for axis, size in layout.items())])


def write_layout(workshop: Workshop, cell: str, layout: dict[str, Any], name: str) -> str:
    """Write the experiment that trains a cell on a layout; the run, as `train_layouts` takes it."""
    role, _, recipe = cell.partition("-")
    sizes = {"hidden_size": 32, "vocabulary_size": 320}
    sizes["attention"] = {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_size": 16}  # type: ignore[assignment]
    changes = {
        "models": {role: sizes | MODELS[role]},
        "precisions": [recipe],
        "training.steps": 3,
        "training.global_batch_size": 4,
        "training.micro_batch_size": 4 if role == "few" else 1,
        "training.optimizer": {"learning_rate": 3e-3, "clip_gradient": 100.0},
        "training.evaluation": {"interval": 3, "sequences": 4, "final_sequences": 4},
        "parallelism": layout,
    }
    workshop.experiment(name, changes)
    return f"{name}:{cell}"


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> dict[str, dict[str, Any]]:
    """`<experiment>:<cell>` -> what its run came to, of all layouts and of each cell on one rank."""
    asked = [*((cell, {}) for cell in sorted({cell for cell, _, _ in LAYOUTS})), *((c, axes) for c, axes, _ in LAYOUTS)]
    names = [
        write_layout(workshop, cell, layout, name=f"{named(cell, layout)}_{cell.partition('-')[2]}")
        for cell, layout in asked
    ]
    return workshop.train_layouts(names, ranks=4)


@pytest.mark.parametrize(("cell", "layout", "tolerance"), LAYOUTS, ids=[f"{named(c, a)}-{c}" for c, a, _ in LAYOUTS])
def test_a_layout_trains_what_one_rank_trains(
    trained: dict[str, dict[str, Any]], cell: str, layout: dict[str, Any], tolerance: float
) -> None:
    recipe = cell.partition("-")[2]
    one, many = (trained[f"{named(cell, axes)}_{recipe}:{cell}"] for axes in ({}, layout))
    if tolerance == EQUAL:
        assert many["losses"] == one["losses"]
        assert many["validation"] == one["validation"]
    assert many["losses"] == pytest.approx(one["losses"], rel=tolerance)
    assert many["grad_norms"] == pytest.approx(one["grad_norms"], rel=max(10 * tolerance, 1e-6))
    assert many["validation"] == pytest.approx(one["validation"], rel=tolerance)
    assert many["resumed"]


@pytest.mark.parametrize(("cell", "layout", "tolerance"), LAYOUTS, ids=[f"{named(c, a)}-{c}" for c, a, _ in LAYOUTS])
def test_a_layout_goes_on_from_the_checkpoint_of_one_rank_and_one_rank_from_its(
    trained: dict[str, dict[str, Any]], cell: str, layout: dict[str, Any], tolerance: float
) -> None:
    """After two of three steps. Where a layout's losses are those of one rank, so are they after a change of layout;
    gradient norms are summed over stages in another order. `few` is the dense model in another micro-batch.

    Of experts of several ranks delayed scaling knows the largest magnitude alone, so one goes on with another scale:
    e4m3 has three fraction bits, and what is rounded elsewhere is off by up to 2^-4.
    """
    recipe = cell.partition("-")[2]
    tolerance = CLOSE if cell.startswith("few") else tolerance
    of_norms = 2.0**-4 if recipe == "fp8_delayed" and "expert" in layout else max(10 * tolerance, 1e-6)
    one, many = (trained[f"{named(cell, axes)}_{recipe}:{cell}"] for axes in ({}, layout))
    for (loss, norm), unbroken in ((many["taken_up"][0], one), (many["handed_back"][0], many)):
        if tolerance == EQUAL:
            assert loss == unbroken["losses"][2]
        assert loss == pytest.approx(unbroken["losses"][2], rel=tolerance)
        assert norm == pytest.approx(unbroken["grad_norms"][2], rel=of_norms)
