"""A checkout of its own in which acceptance trains: text that it writes itself, models, and experiments.

Runs there are `octavo train` in processes of their own, as the pipeline starts them; the cluster's file is the
checkout's, but for Slurm: runs are on this node, which somebody has already.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo.configuration import read_yaml
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders, RunFolder, configs
from octavo.models.catalogue import read_architecture
from octavo.precision.config import RecipeName
from octavo.training.provenance import commit_as_named

STEPS = 20
EMULATION = "laptop"
"""The cluster file of CPUs on which FP8 is emulated."""
CHECKPOINT_STEPS = 5
TEXT_SEED = 1
NODE_MODELS = {"dense": "node-dense", "moe": "node-moe"}
NODE_VOCABULARY = 32768
"""Of the tokenizer that these are trained with (configs/experiments/h100-node.yaml)."""
SPEED_STEPS = 12
FIRST_TIMED = 5
"""The first step whose time counts: kernels are chosen and memory is taken before."""


@dataclass(frozen=True)
class Scale:
    """How large what is trained is."""

    layers: int
    hidden_size: int
    feed_forward_size: int
    expert_size: int
    sequence_length: int
    batch: int
    """Sequences of a step."""
    seeds: int
    """Seeds of the emulation, between which losses scatter."""
    documents: int
    """Of 4,000 characters or so."""


WHOLE = Scale(4, 256, 1024, 512, 256, 8, seeds=3, documents=2000)
SMALL = Scale(2, 64, 128, 64, 64, 2, seeds=2, documents=40)
"""On the stand-in."""


class Workshop:
    """The checkout."""

    def __init__(self, root: Path, cluster: str, scale: Scale, recipes: list[RecipeName]) -> None:
        self.root, self.cluster, self.scale, self.recipes = root, cluster, scale, recipes
        self.folders = ConfigFolders(root / "configs")
        self.folders.experiments.mkdir(parents=True)
        for name in ("clusters", "models"):
            shutil.copytree(configs().root / name, self.folders.root / name)
        here = self.folders.clusters / f"{cluster}.yaml"
        described = {key: value for key, value in read_yaml(here).items() if key != "slurm"}
        here.write_text(yaml.safe_dump(described, allow_unicode=True), encoding="utf-8")
        write_text_to_train_on(root / "text", scale.documents)

    def small_models(self) -> Experiment:
        """A dense model and a mixture that a CPU trains in a minute, on the cluster."""
        return self._experiment("numerics", self.cluster, self._small(), self.recipes, self._numerics())

    def emulated(self, recipes: list[RecipeName]) -> Experiment:
        """The same, emulated on CPUs, by several seeds."""
        return self._experiment("emulated", EMULATION, self._small(), recipes, self._numerics())

    def speed(self, devices: int, published: dict[str, str] | None = None) -> Experiment:
        """The models that experiments on a node train, or published ones by role, on all devices of the node; without
        checkpoints. On the stand-in the small ones."""
        whole = self.scale is WHOLE
        models = published or (dict(NODE_MODELS) if whole else self._small())
        length = 4096 if whole else self.scale.sequence_length
        training = self._training(SPEED_STEPS, SPEED_STEPS + 1, length, batch=4 * devices)
        training["deterministic"] = not whole  # the stand-in has none of the kernels that are left out then
        training["optimizer"] = {"learning_rate": 1e-4, "distributed": True}
        vocabulary = NODE_VOCABULARY if whole and not published else None
        return self._experiment(
            "speed_" + "_".join(models), self.cluster, models, self.recipes, training, devices, vocabulary
        )

    def prepare(self, experiment: Experiment) -> None:
        """Make the data set of an experiment: all have the same. Raises OctavoError where that fails."""
        done = subprocess.run(
            [sys.executable, "-m", "octavo", "data", experiment.name],
            env=self.environment(on_gpu=False), cwd=self.root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OctavoError(f"the text to train on could not be prepared: {done.stderr.strip()}", where=self.root)

    def folder(self, experiment: Experiment, cell: str, seed: int, what: str = "runs") -> RunFolder:
        """A run's folder."""
        return RunFolder(self.root / "results" / experiment.name / what / cell / f"seed-{seed}")

    def environment(self, *, on_gpu: bool, device: str | None = None) -> dict[str, str]:
        """Of a process that works in this checkout, on this node alone: what was said of a rank is left out.

        `device`: the one that it is to see of CUDA's.
        """
        ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        kept = {key: value for key, value in os.environ.items() if key not in ranks and not key.startswith("SLURM_")}
        kept |= {"OCTAVO_ROOT": str(self.root), "OCTAVO_COMMIT": commit_as_named()}
        if not on_gpu or device is not None:
            kept["CUDA_VISIBLE_DEVICES"] = device if device is not None and on_gpu else ""
        return kept

    def _small(self) -> dict[str, Any]:
        scale = self.scale
        sizes = {
            "layers": scale.layers,
            "hidden_size": scale.hidden_size,
            "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_size": scale.hidden_size // 4},
            "vocabulary_size": 320,  # the tokenizer's 257, and a multiple of what recipes ask for
        }
        experts = {
            "count": 4,
            "top_k": 2,
            "size": scale.expert_size,
            "shared_size": scale.expert_size,
            "router": {"balance": "aux_loss", "aux_loss_weight": 0.01},
        }
        return {
            "dense": {**sizes, "feed_forward_size": scale.feed_forward_size},
            "moe": {**sizes, "experts": experts},
        }

    def _numerics(self) -> dict[str, Any]:
        return self._training(STEPS, CHECKPOINT_STEPS, self.scale.sequence_length, self.scale.batch)

    def _training(self, steps: int, checkpoint: int, length: int, batch: int) -> dict[str, Any]:
        return {
            "steps": steps,
            "sequence_length": length,
            "global_batch_size": batch,
            "micro_batch_size": 1,
            "optimizer": {"learning_rate": 3e-3},
            "schedule": {"warmup_fraction": 0.0, "decay": "constant"},
            "evaluation": {"interval": steps, "sequences": 4, "final_sequences": 4},
            "checkpoints": {"interval": checkpoint},
        }

    def _experiment(
        self,
        name: str,
        cluster: str,
        models: dict[str, Any],
        recipes: list[RecipeName],
        training: dict[str, Any],
        devices: int = 1,
        vocabulary: int | None = None,
    ) -> Experiment:
        overrides = {role: {"model.vocabulary_size": vocabulary} if vocabulary else {} for role in models}
        if "moe" in models:
            overrides["moe"]["parallelism.expert"] = _expert_ranks(models["moe"], devices)
        described = {
            "description": "Made by octavo accept.",
            "models": models,
            "precisions": recipes,
            "seeds": list(range(1, self.scale.seeds + 1)),
            "data": {"sources": [{"kind": "files", "path": "text", "held_out": ["*-?.txt"]}]},
            "tokenizer": {"kind": "bytes"},
            "training": training,
            "parallelism": {"data": devices},
            "overrides": overrides,
            "cluster": cluster,
        }
        path = self.folders.experiments / f"{name}.yaml"
        path.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        return load_experiment(name, self.folders)


def _expert_ranks(model: str | dict[str, Any], devices: int) -> int:
    """As many as divide both the devices and the experts of a mixture."""
    if isinstance(model, dict):
        return math.gcd(devices, model["experts"]["count"])
    experts = read_architecture(model).experts
    return math.gcd(devices, experts.count) if experts else 1


def write_text_to_train_on(folder: Path, documents: int) -> None:
    """Documents of random words, some frequent and most rare: the same on every machine."""
    generator = random.Random(TEXT_SEED)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(400)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    folder.mkdir(parents=True)
    for number in range(documents):
        text = " ".join(generator.choices(words, weights=weights, k=650))
        (folder / f"document-{number}.txt").write_text(text, encoding="utf-8")
