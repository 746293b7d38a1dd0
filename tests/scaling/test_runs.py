"""Rows of a ladder from a table of runs, as an import leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder
from octavo.records import write_table
from octavo.scaling.ladder import rungs
from octavo.scaling.runs import rows_of_runs


def folder(path: Path, **changed: Any) -> ExperimentFolder:
    """Three sizes of two architectures, each a cell of its own, and one run that diverged."""
    sizes = [(name, size) for name in ("dense", "moe") for size in (1, 2, 4)]
    runs = pd.DataFrame([
        {
            "experiment": "theirs", "cell": f"{name}-bf16+s{size}", "seed": 1, "architecture": name,
            "precision": "bf16", "ablation": f"s{size}", "status": "completed", "steps": 10, "emulated": False,
            "attempts": 1, "tokens": 1000 * size, "flops_per_token": 6e6 * size, "active_parameters": 1_000_000 * size,
            "validation_loss": 3 - 0.1 * size, "device_hours_final": float(size), "validation": "theirs",
        }
        for name, size in sizes
    ])  # fmt: skip
    diverged = runs.iloc[:1].assign(seed=2, status="diverged")
    found = ExperimentFolder(path)
    write_table(found.runs_table, pd.concat([runs, diverged]).assign(**changed), "runs")
    return found


def test_sizes_are_told_apart_by_their_parameters(tmp_path: Path) -> None:
    rows = rows_of_runs(folder(tmp_path))
    assert [len(rung.rows) for rung in rungs(rows, "moe")] == [1, 1, 1]
    assert [(row.flops, row.device_hours, row.cost) for row in rows][:2] == [(6e9, 1.0, None), (2.4e10, 2.0, None)]


def test_runs_of_several_texts_are_no_ladder(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="differ in their validation: a, b"):
        rows_of_runs(folder(tmp_path, validation=["a", "b"] * 3 + ["a"]))


def test_runs_that_share_their_beginning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="share their beginning"):
        rows_of_runs(folder(tmp_path, cell="moe-bf16@270"))
