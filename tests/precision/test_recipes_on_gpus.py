"""On a GPU: every recipe that it has trains, and learns what its emulation learns. Needs Transformer Engine and data.

The products are the same but for the order of sums, the accumulator of the GPU's forward FP8 products (Transformer
Engine leaves them in Hopper's short one for per-tensor scales) and attention's and norms' own kernels: losses agree to
about a percent over the first steps, in which they fall by far more than that. Tokens per second are recorded in the
test report (`--junit-xml`) and printed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("megatron.core")

import torch

from octavo.experiment.load import load_cluster, load_experiment
from octavo.experiment.run import RunConfig
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision
from octavo.precision.recipes import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.timeout(3600),
]

STEPS = 20
# Sizes that FP8 kernels take: multiples of 128 everywhere.
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"feed_forward_size": 1024},
    "moe": {
        "experts": {
            "count": 8,
            "top_k": 2,
            "size": 512,
            "router": {"score": "softmax", "normalise": False, "balance": "aux_loss", "aux_loss_weight": 0.01},
        }
    },
}
CASES = [(model, recipe) for model in MODELS for recipe in RECIPES]


def has(recipe: str) -> bool:
    """Whether this GPU has a recipe, with this CUDA."""
    known = RECIPES[recipe]  # type: ignore[index]
    major, minor = torch.cuda.get_device_capability()
    cuda = tuple(map(int, (torch.version.cuda or "0").split(".")))
    needed = tuple(map(int, (known.minimum_cuda or "0").split(".")))
    return cuda >= needed and (not known.capabilities or f"{major}.{minor}" in known.capabilities)


def cluster() -> str:
    """A cluster that Octavo knows with GPUs like this one; skips the test if there is none."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    for path in sorted(configs().clusters.glob("*.yaml")):
        if load_cluster(path.stem, configs())[1].compute_capability == capability:
            return path.stem
    pytest.skip(f"no cluster file has GPUs of compute capability {capability}")


def configuration(model: str, precision: Precision) -> RunConfig:
    """The quickstart's data, and a model of four layers, on this machine's kind of GPU."""
    run = load_experiment("quickstart").run("dense-bf16", 1)
    architecture = Architecture.model_validate(
        {
            "name": f"a small {model}",
            "source": "a test",
            "layers": 4,
            "hidden_size": 512,
            "attention": {"kind": "gqa", "heads": 4, "kv_heads": 4, "head_size": 128},
            "vocabulary_size": 2048,
            **MODELS[model],
        }
    )
    training = run.training.model_copy(update={"steps": STEPS})
    changes = {"model": architecture, "precision": precision, "training": training, "cluster": cluster()}
    return run.model_copy(update=changes)


def train(folder: Path, run: RunConfig) -> tuple[list[float], float]:
    """The losses of a run, and its median tokens per second after the first five steps."""
    folder.mkdir(parents=True)
    config = folder / "wanted.yaml"
    config.write_text(run.to_yaml())
    command = [sys.executable, "-m", "octavo", "train", str(folder / "run"), "--config", str(config)]
    environment = {**os.environ, "OCTAVO_TRACEBACK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("loss") is not None]
    assert len(steps) == STEPS
    return [line["loss"] for line in steps], statistics.median(line["tokens_per_second"] for line in steps[5:])


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The losses of a recipe's emulation on the same GPU, once."""
    known: dict[tuple[str, str], list[float]] = {}

    def losses(model: str, recipe: str) -> list[float]:
        if (model, recipe) not in known:
            folder = tmp_path_factory.mktemp("emulated") / "of"
            precision = Precision(recipe=recipe, emulate=recipe != "bf16")  # type: ignore[arg-type]
            known[model, recipe] = train(folder, configuration(model, precision))[0]
        return known[model, recipe]

    return losses


@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_every_recipe_trains_as_its_emulation(
    model: str, recipe: str, emulated: Any, tmp_path: Path, record_property: Any
) -> None:
    if not has(recipe):
        pytest.skip(f"{torch.cuda.get_device_name()} does not have {recipe}")
    precision = Precision(recipe=recipe)  # type: ignore[arg-type]
    losses, rate = train(tmp_path / "gpu", configuration(model, precision))
    record_property("tokens_per_second", rate)
    record_property("gpu", torch.cuda.get_device_name())
    print(f"{torch.cuda.get_device_name()}: {model} {recipe}: {rate:,.0f} tokens/s")
    built = json.loads((tmp_path / "gpu" / "run" / "provenance.json").read_text())["precision_built"]
    assert built[f"{recipe} (Transformer Engine)"] == 4 * 4
    assert losses[-1] < losses[0] - 0.2
    reference = "bf16" if not RECIPES[recipe].emulated else recipe  # type: ignore[index]
    tolerance = 0.03 if reference != recipe else 0.01
    differences = [abs(one - other) / other for one, other in zip(losses, emulated(model, reference), strict=True)]
    assert max(differences) < tolerance


@pytest.mark.parametrize("recipe", [name for name, one in RECIPES.items() if one.quantised and one.emulated])
def test_rounding_on_the_gpu_has_the_cpus_bits(recipe: str) -> None:
    """The emulation's own rounding, in torch's operators on CUDA and compiled on the CPU."""
    from octavo.cpu.rounding import largest_magnitude, round_blocks, round_scaled, tensor_scale

    known = RECIPES[recipe]  # type: ignore[index]
    values = (torch.randn(300, 520) * torch.exp2(torch.randint(-9, 9, (300, 1)))).bfloat16()
    for kind, format in known.formats.items():
        results = []
        for device in ("cpu", "cuda"):
            there = values.to(device)
            out = torch.empty(there.shape, device=device)
            if block := known.blocks.get(kind):
                round_blocks(there, format, block, out)
            else:
                round_scaled(there, tensor_scale(largest_magnitude(there), format), format, out)
            results.append(out.cpu())
        assert torch.equal(*results)
