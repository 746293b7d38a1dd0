"""Models built for real by Megatron-Core have as many parameters as are counted from their description."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture, with_vocabulary
from octavo.models.parameters import count_parameters

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

ROUTER = {"score": "sigmoid", "normalise": True, "balance": "expert_bias"}
SMALL: dict[str, Any] = {
    "name": "small",
    "source": "this test",
    "layers": 3,
    "hidden_size": 64,
    "feed_forward_size": 96,
    "vocabulary_size": 257,
}
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_size": 16}
MLA = {
    "kind": "mla", "heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_head_size": 16, "qk_rope_head_size": 8,
    "v_head_size": 16,
}  # fmt: skip
EXPERTS = {"count": 8, "top_k": 2, "size": 32, "shared_size": 48, "leading_dense_layers": 1, "router": ROUTER}
MODELS = {
    "grouped queries": {**SMALL, "attention": GQA},
    "tied embeddings": {**SMALL, "attention": GQA, "tied_embeddings": True},
    "norms on queries and keys": {**SMALL, "attention": {**GQA, "qk_norm": "head"}},
    "biases on queries, keys and values": {**SMALL, "attention": {**GQA, "qkv_bias": True}},
    "biases everywhere, sinks and windows, as in gpt-oss": {
        **SMALL,
        "attention": {
            **GQA,
            "qkv_bias": True,
            "output_bias": True,
            "sinks": True,
            "sliding_window": 16,
            "sliding_window_every": 2,
        },
        "experts": {
            "count": 8,
            "top_k": 2,
            "size": 32,
            "bias": True,
            "router": {"score": "softmax", "normalise": True, "bias": True, "balance": "aux_loss"},
        },
    },
    "latent attention": {**SMALL, "attention": MLA},
    "latent attention, queries not compressed": {**SMALL, "attention": {**MLA, "q_lora_rank": None}},
    "experts after a dense layer, and a shared one": {**SMALL, "attention": GQA, "experts": EXPERTS},
    "latent attention and experts": {**SMALL, "attention": MLA, "experts": EXPERTS},
    "a multi-token-prediction layer": {**SMALL, "attention": GQA, "multi_token_prediction_layers": 1},
}

PROGRAM = """
import json, sys
from octavo.cpu.backend import install
install()
from typing import Any
from octavo.experiment.run import RunConfig
from octavo.models.architecture import Architecture
from octavo.training.megatron import build_model, transformer_config
from octavo.precision import megatron as precision
from octavo.cpu.layers import CpuLayers
from octavo.training.launch import Process
from octavo.training.process import set_up_process

base = json.loads(sys.argv[1])
counts = {}
for name, model in json.loads(sys.argv[2]).items():
    run = RunConfig.model_validate({**base, "model": model})
    if not counts:
        set_up_process(run, Process(rank=0, local_rank=0, world_size=1, address="", port=0))
    config = transformer_config(run, precision.transformer_config_options(run.precision, on_gpu=False))
    provider = CpuLayers(precision.spec_provider(run.precision, on_gpu=False))
    built = build_model(run, config, provider)
    counts[name] = sum(parameter.numel() for parameter in built.parameters())
print(json.dumps(counts))
"""


def run_config() -> dict[str, Any]:
    from octavo.experiment.load import load_experiment

    experiment = load_experiment("quickstart")
    return experiment.run("dense-bf16", 1).model_dump(mode="json")


@pytest.fixture(scope="module")
def built() -> dict[str, int]:
    """Parameters of each model."""
    return build()


def build(**environment: str) -> dict[str, int]:
    """Parameters of each model, built in one process of its own (Megatron-Core takes seconds to import)."""
    ours = {name: with_vocabulary(read_architecture(name)) for name in ("laptop-dense", "laptop-moe")}
    models = {**MODELS, **{name: one.model_dump(mode="json") for name, one in ours.items()}}
    arguments = [json.dumps(run_config()), json.dumps(models)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def counted(architecture: Architecture) -> int:
    count = count_parameters(architecture)
    return count.total + count.multi_token_prediction


@pytest.mark.parametrize("name", MODELS)
def test_small_models_of_every_kind(name: str, built: dict[str, int]) -> None:
    assert built[name] == counted(Architecture.model_validate(MODELS[name]))


@pytest.mark.parametrize("name", ["laptop-dense", "laptop-moe"])
def test_our_models(name: str, built: dict[str, int]) -> None:
    assert built[name] == counted(with_vocabulary(read_architecture(name)))


def test_the_other_version_of_megatron_core_builds_as_many(built: dict[str, int], other_megatron: Path) -> None:
    """0.19 by itself puts a second norm before queries that are not compressed."""
    assert build(PYTHONPATH=str(other_megatron)) == built
