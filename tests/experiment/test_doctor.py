"""The doctor looks at the real machine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from octavo.experiment.doctor import examine


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
    command(tmp_path, "nvidia-smi", "NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.1\nNVIDIA A100, 8.0, 40960 MiB, 580.1"
            "\nNVIDIA RTX PRO 6000 Blackwell Server Edition, 12.0, 97887 MiB, 580.1")  # fmt: skip
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    findings = found()
    assert "fp8_blockwise" in findings["GPU 0"][1]
    assert "fp8_mxfp8" not in findings["GPU 0"][1]  # Hopper has no MX formats
    assert "fp8" not in findings["GPU 1"][1]  # nor has Ampere any FP8
    without = "no fused attention in deterministic mode"
    assert [without in findings[f"GPU {number}"][1] for number in range(3)] == [False, True, True]
    assert findings["transformer-engine"][0] in ("ok", "missing")  # with a GPU its absence matters
