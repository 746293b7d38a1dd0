"""A small set of configuration files to break in one place at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders
from tests.tiny import TINY, changed

ATTENTION = {"kind": "gqa", "heads": 4, "kv_heads": 4, "head_size": 16}
WIDER = {"layers": 2, "hidden_size": 64, "attention": ATTENTION}
EXPERIMENT = changed(
    TINY,
    {
        "models.dense": {**WIDER, "feed_forward_size": 128},
        "models.moe": {**WIDER, "experts": {"count": 8, "top_k": 2, "size": 64, "shared_size": 0}},
        "seeds": [1, 2],
        "data.sources": [{"kind": "files", "path": "text"}],
        "training.steps": 10,
        "training.optimizer.learning_rate": 1e-3,
        "training.evaluation.interval": 5,
        "training.checkpoints.interval": 5,
        "cluster": "one",
        "ablations": {
            "shared": {
                "description": "a generalist",
                "cells": ["moe-bf16"],
                "change": {"model.experts.shared_size": 64},
            }
        },
    },
)
CLUSTER = {
    "description": "eight of them",
    "device": "h100",
    "devices_per_node": 8,
    "nodes": 1,
    "cuda": "13.0",
    "rental": {"per_device_hour": 2.0, "source": "test"},
}
DEVICE = {
    "name": "H100",
    "kind": "gpu",
    "compute_capability": "9.0",
    "peak_tflops": {"bf16": 989.0, "fp8": 1979.0},
    "memory_gib": 80,
    "memory_gb_per_second": 3350,
    "link_gb_per_second": 450,
    "link_domain": 8,
    "network_gb_per_second": 50,
    "power_watts": 700,
    "sources": {"all": "test"},
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Experiment]:
    """Write the files, with changes to the experiment, cluster or device, and load the experiment `small`."""

    def write_and_load(
        changes: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
        device: dict[str, Any] | None = None,
    ) -> Experiment:
        for name, value in (
            ("experiments/small", changed(EXPERIMENT, changes or {})),
            ("clusters/one", changed(CLUSTER, cluster or {})),
            ("clusters/devices/h100", changed(DEVICE, device or {})),
        ):
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(value, sort_keys=False))
        (tmp_path / "models").mkdir(exist_ok=True)
        return load_experiment("small", ConfigFolders(tmp_path))

    return write_and_load
