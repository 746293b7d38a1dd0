"""The doctor looks at the real machine, and holds cluster files against what Slurm says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from octavo.experiment.cluster import Cluster
from octavo.experiment.doctor import examine, examine_cluster


def found() -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.state, finding.found) for finding in examine()}


def test_the_machine_that_runs_the_tests_can_train() -> None:
    import torch

    findings = found()
    assert findings["torch"] == ("ok", torch.__version__)
    assert findings["megatron-core"][0] == "ok"
    assert f"{len(os.sched_getaffinity(0))} cores" in findings["processor"][1]


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_gpus_and_their_recipes_are_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "nvidia-smi", "NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.1\nNVIDIA A100, 8.0, 40960 MiB, 580.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    findings = found()
    assert "fp8_blockwise" in findings["GPU 0"][1]
    assert "fp8_mxfp8" not in findings["GPU 0"][1]  # Hopper has no MX formats
    assert "fp8" not in findings["GPU 1"][1]  # nor has Ampere any FP8
    assert findings["transformer-engine"][0] in ("ok", "missing")  # with a GPU its absence matters


def test_a_cluster_file_is_held_against_sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "sinfo", "batch|gpu:h100:8|1-00:00:00|4\ncpu|(null)|infinite|2")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def states(**slurm: object) -> list[str]:
        cluster = Cluster.model_validate(
            {"description": "test", "device": "h100", "devices_per_node": 8, "nodes": 1, "slurm": slurm,
             "rental": {"per_device_hour": 2.0, "source": "test"}}
        )  # fmt: skip
        return [f"{finding.state} {finding.found} {finding.fix}" for finding in examine_cluster("test", cluster)]

    assert all(line.startswith("ok") for line in states(partition="batch", gpu_type="h100"))
    assert "one of batch, cpu" in states(partition="gpu")[0]
    assert states(partition="batch", gpu_type="a100")[1].startswith("missing gpu:h100:8")
    assert states(partition="cpu", gpu_type="h100")[1].startswith("missing")
