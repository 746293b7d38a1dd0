"""Octavo's GPU branch trains: every recipe and architecture with Transformer Engine's own Python, on a CPU.

Megatron-Core's Transformer Engine layers, DDP, the distributed optimizer, checkpoints with Transformer Engine's state
and Transformer Engine's Python are real; its compiled module is `tests/transformer_engine_cpu`, and NCCL is gloo.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from octavo.precision.recipes import RECIPES

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.timeout(3600)

SIZES: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 64,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_size": 16},
    "vocabulary_size": 320,
    "feed_forward_size": 128,
}
EXPERTS = {"count": 4, "top_k": 2, "size": 64, "shared_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "dense": SIZES,
    "moe": SIZES | {"experts": EXPERTS | {"router": {"balance": "aux_loss", "aux_loss_weight": 0.01}}},
    "latent": SIZES  # as DeepSeek-V3
    | {
        "attention": {"kind": "mla", "heads": 4, "q_lora_rank": 64, "kv_lora_rank": 32}
        | {"qk_head_size": 32, "qk_rope_head_size": 32, "v_head_size": 16},
        "multi_token_prediction_layers": 1,
        "experts": EXPERTS
        | {"leading_dense_layers": 1, "router": {"score": "sigmoid", "normalise": True, "balance": "expert_bias"}},
    },
}
GPU: dict[str, Any] = {
    "models": MODELS,
    "precisions": list(RECIPES),
    "cluster": "b200-node",  # has every recipe
    "training.steps": 4,
    "training.sequence_length": 64,
    "training.global_batch_size": 2,
    "training.micro_batch_size": 1,
    "training.optimizer": {"learning_rate": 3e-3, "clip_gradient": 100.0},
    "training.evaluation": {"interval": 2, "sequences": 4, "final_sequences": 4},
    "training.checkpoints.interval": 2,
}
ONE = [
    *((f"{model}-{recipe}", {}) for model in ("dense", "moe") for recipe in RECIPES),
    *((f"latent-{recipe}", {}) for recipe in ("bf16", "fp8_delayed", "fp8_blockwise", "nvfp4")),
]
TWO: list[tuple[str, dict[str, Any]]] = [
    ("dense-fp8_delayed", {"parallelism": {"data": 2}}),
    ("dense-fp8_blockwise", {"parallelism": {"tensor": 2}}),
    ("dense-nvfp4", {"parallelism": {"pipeline": 2}}),
    ("moe-fp8_delayed", {"parallelism": {"data": 2, "expert": 2}}),
    ("moe-fp8_mxfp8", {"parallelism": {"data": 2}, "training.optimizer.distributed": True}),
    ("moe-fp8_tensorwise", {"parallelism": {"tensor": 2, "sequence": True}}),
    ("latent-bf16", {"parallelism": {"data": 2, "expert": 2}, "training.optimizer.distributed": True}),
    ("latent-bf16", {"parallelism": {"pipeline": 2}}),
]
RELAID: list[tuple[str, dict[str, Any]]] = [  # of the same computation as one above, the optimizer's form included
    ("moe-fp8_mxfp8", {"parallelism": {"data": 1}, "training.optimizer.distributed": True}),
    ("latent-bf16", {"parallelism": {"tensor": 2, "sequence": True}, "training.optimizer.distributed": True}),
]


@pytest.fixture(scope="session")
def stand_in(transformer_engine: Path) -> dict[str, str]:
    """Variables of processes that have Transformer Engine's Python, and a B200 that computes on the CPU."""
    path = os.pathsep.join([str(transformer_engine), str(Path(__file__).parents[1])])
    return {"PYTHONPATH": path, "TRANSFORMER_ENGINE_CPU": "10.0"}


def experiment_of(workshop: Workshop, cell: str, changes: dict[str, Any]) -> str:
    """The name of an experiment with that cell alone, written."""
    model, _, recipe = cell.partition("-")
    axes = changes.get("parallelism", {})
    name = "_".join(["gpu", model, recipe, *(f"{axis}{size}".lower() for axis, size in axes.items())])
    workshop.experiment(name, GPU | {"models": {model: MODELS[model]}, "precisions": [recipe]} | changes)
    return f"{name}:{cell}"


@pytest.fixture(scope="module")
def trained(workshop: Workshop, stand_in: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What every run came to: four steps, validation, and the last two once more from a checkpoint."""
    names = [experiment_of(workshop, cell, changes) for cell, changes in [*ONE, *TWO, *RELAID]]
    workshop.octavo("data", names[0].partition(":")[0])
    return workshop.train_layouts(names, ranks=2, **stand_in)


@pytest.mark.parametrize("cell", [cell for cell, _ in ONE])
def test_every_model_trains_in_every_recipe(workshop: Workshop, trained: Any, cell: str) -> None:
    """It learns as in BF16 (the first steps of a text of 320 symbols: 5.77 towards 5), and goes on to the last bit."""
    found, reference = (trained[experiment_of(workshop, one, {})] for one in (cell, f"{cell.partition('-')[0]}-bf16"))
    assert found["losses"][0] == pytest.approx(5.77, abs=0.1)  # ln 320
    assert found["losses"][-1] < found["losses"][0] - 0.5
    tolerance = 1e-2 if cell.endswith("nvfp4") else 2e-3  # of the loss; e2m1 has one fraction bit, e4m3 three
    assert found["losses"] == pytest.approx(reference["losses"], rel=tolerance)
    assert found["validation"] == pytest.approx(reference["validation"], rel=tolerance)
    assert found["losses"] != reference["losses"] or cell.endswith("bf16")
    assert found["resumed"]


@pytest.mark.parametrize(("cell", "changes"), TWO)
def test_two_ranks_train_what_one_rank_trains(
    workshop: Workshop, trained: Any, cell: str, changes: dict[str, Any]
) -> None:
    """Sums in another order, and scales of a rank's part of a tensor: hence not to the bit, but for going on."""
    one, two = (trained[experiment_of(workshop, cell, what)] for what in ({}, changes))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-2 if cell.endswith("nvfp4") else 2e-3)
    assert two["resumed"]


@pytest.mark.parametrize(
    ("cell", "changes"), [*(one for one in TWO if "training.optimizer.distributed" not in one[1]), *RELAID]
)
def test_a_run_goes_on_from_the_checkpoint_of_another_layout(
    workshop: Workshop, trained: Any, cell: str, changes: dict[str, Any]
) -> None:
    """The distributed optimizer's, too: sharded over two data-parallel ranks, its state goes on in one, or in two
    tensor-parallel ranks, and back."""
    two, tolerance = trained[experiment_of(workshop, cell, changes)], 1e-2 if cell.endswith("nvfp4") else 2e-3
    for way in ("taken_up", "handed_back"):
        assert [loss for loss, _ in two[way]] == pytest.approx(two["losses"][2:], rel=tolerance)


def test_a_step_is_proved_by_the_products_that_ran(workshop: Workshop, trained: Any) -> None:
    """Two layers of qkv, output projection, experts' two groups and the shared expert's two; two micro-batches. Every
    layer has one weight, but for the groups, which have four. The two routers are never below BF16."""
    proof = trained[experiment_of(workshop, "moe-fp8_delayed", {})]["proof"]
    layers, routers, batches = 2 * (2 + 2 + 2), 2, 2
    assert proof["products"] == {
        "forward": {
            "weight bfloat16, input bfloat16": routers * batches,  # summed, and left, in FP32
            "weight e4m3 one scale, input e4m3 one scale": layers * batches,
        },
        "input_gradient": {
            "weight e4m3 one scale, gradient e5m2 one scale": layers * batches,
            "weight float32, gradient float32": routers * batches,
        },
        "weight_gradient": {
            "input e4m3 one scale, gradient e5m2 one scale": layers * batches,
            "input float32, gradient float32": routers * batches,
        },
    }
    assert proof["fused_weight_gradients"] == 2 * (2 + 2 * 4 + 2)
    assert proof["fused_permutations"] == 2 * batches
    assert proof["dispatchers"] == ["MoEAlltoAllTokenDispatcher"]
    assert proof["attention"] == "unfused (whole score matrices)"  # the stand-in has none that is fused


def test_a_step_in_another_precision_than_its_name_says_is_an_error(workshop: Workshop, trained: Any) -> None:
    """Of every run, on every layout: `layout_ranks.py` asks for another recipe once it has taken the step."""
    plain = trained[experiment_of(workshop, "dense-bf16", {})]["of_another_name"]
    assert "the first step's forward products of fp8_tensorwise were all in BF16" in plain
    blocks = trained[experiment_of(workshop, "dense-fp8_blockwise", {})]["of_another_name"]
    assert "products of bf16 were {'weight e4m3 128x128, input e4m3 1x128': 16}" in blocks


def test_tensor_parallel_ranks_agree_on_the_experts_that_each_holds(workshop: Workshop, trained: Any) -> None:
    """Each routes its own half of the tokens: what it holds, and a checkpoint keeps of one rank alone, must be equal.
    Megatron-Core by itself sums experts' gradients over data-parallel ranks alone."""
    found = trained[experiment_of(workshop, "moe-fp8_tensorwise", {"parallelism": {"tensor": 2, "sequence": True}})]
    assert found["experts_differ"] == []


SEEDS = (1, 2, 3)
COMPARED = ("dense-fp8_delayed", "dense-fp8_mxfp8", "moe-fp8_blockwise")


def test_twenty_steps_lose_what_the_emulation_loses(workshop: Workshop, stand_in: dict[str, str]) -> None:
    """Within what seeds make: the branches draw the same weights, but for the experts', whose names differ."""
    changes = GPU | {"training.steps": 20, "training.evaluation.interval": 20, "seeds": list(SEEDS)}
    for cell in COMPARED:
        model, _, recipe = cell.partition("-")
        one = changes | {"models": {model: MODELS[model]}, "precisions": [recipe]}
        workshop.experiment(f"twenty_{cell.replace('-', '_')}", one)
        workshop.experiment(f"emulated_{cell.replace('-', '_')}", one | {"cluster": "laptop"})
    workshop.octavo("data", f"twenty_{COMPARED[0].replace('-', '_')}")
    names = {cell: f"twenty_{cell.replace('-', '_')}:{cell}" for cell in COMPARED}
    emulated = {(cell, seed): f"emulated_{cell.replace('-', '_')}:{cell}:{seed}" for cell in COMPARED for seed in SEEDS}
    engine = workshop.train_layouts(list(names.values()), ranks=1, **stand_in)
    others = workshop.train_layouts(list(emulated.values()), ranks=1)
    for cell in COMPARED:
        by_seed = [others[emulated[cell, seed]]["losses"] for seed in SEEDS]
        spread = [max(losses) - min(losses) for losses in zip(*by_seed, strict=True)]
        differences = [abs(a - b) for a, b in zip(engine[names[cell]]["losses"], by_seed[0], strict=True)]
        assert len(differences) == 20
        assert all(found < largest for found, largest in zip(differences, spread, strict=True)), (differences, spread)


@pytest.fixture(scope="module")
def whole(workshop: Workshop, stand_in: dict[str, str]) -> Run:
    """A mixture with delayed scaling, trained by `octavo train` in one go."""
    workshop.experiment("gpu_whole", GPU | {"training.steps": 8})
    workshop.octavo("data", "gpu_whole")
    run = workshop.run("moe-fp8_delayed", "gpu_whole", variables=stand_in)
    run.train()
    return run


def test_a_run_is_what_its_files_say(whole: Run) -> None:
    result = whole.result()
    assert (result["status"], result["steps"], result["emulated"]) == ("completed", 8, False)
    assert result["training_loss"] == pytest.approx(whole.losses()[-1])
    proof = json.loads((whole.path / "provenance.json").read_text())["step_proof"]
    assert proof["products"]["forward"]["weight e4m3 one scale, input e4m3 one scale"] == 2 * (2 + 2 + 2) * 2
    # two layers: qkv and output projection, experts' two groups, the shared expert's two
    assert whole.precision_built() == {"bf16 (Megatron-Core)": 1, "fp8_delayed (Transformer Engine)": 2 * (2 + 2 + 2)}


def test_a_run_that_was_killed_goes_on_to_the_same_bits(workshop: Workshop, whole: Run) -> None:
    """The checkpoint holds amax histories and scales (Transformer Engine's extra state), main parameters and Adam's."""
    workshop.experiment("gpu_killed", GPU | {"training.steps": 8})
    run = workshop.run("moe-fp8_delayed", "gpu_killed", variables=whole.variables)
    status, _ = run.interrupt(signal.SIGKILL, after_step=3)
    assert status == -signal.SIGKILL
    assert not run.complete
    run.train()
    assert [one["exit_reason"] for one in run.attempts()] == ["killed", "completed"]
    assert run.losses() == whole.losses()
    assert run.validation_losses() == whole.validation_losses()
    assert run.result()["parameters_sha256"] == whole.result()["parameters_sha256"]
