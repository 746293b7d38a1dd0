"""Experiments whose truth is known, as others would bring them: one CSV a run, imported and held against the claims.

A cell's loss after n steps, had they been planned as such, is floor + 8 / sqrt(1 + n x pace), times (1 + offset). While
its learning rate has not decayed it lies above that by `worth` x the rate over its peak. So of two cells, one planned
for as long as it takes to reach the other's loss needs 1 / pace of its steps, and seconds / pace of its hours.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from octavo.evidence.verdicts import write_verdicts
from octavo.imports.runs import import_runs
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import ClaimResult, ClaimsFile, read_record

Schedule = Literal["constant", "linear", "cosine", "last fifth"]
TOKENS_PER_STEP = 1000


@dataclass(frozen=True)
class SimulatedCell:
    """One cell, and what is true of it."""

    architecture: str = "dense"
    precision: str = "bf16"
    pace: float = 1.0
    """Times as fast per token as the loss above."""
    offset: float = 0.0
    """Relative."""
    seconds: float = 1.0
    """Of a step."""
    steps: int = 400
    schedule: Schedule = "constant"
    worth: float = 0.0
    interval: int = 10
    """Steps between validations."""
    step_sd: float = 0.0
    """Relative scatter of step times."""
    first_seconds: float | None = None
    """Of the first step, where it compiles."""
    endings: Mapping[int, float] = field(default_factory=dict)
    """Seed -> the loss of its last 20 steps, where it diverged."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the import file."""

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.precision}"

    def rate(self) -> np.ndarray:
        """The learning rate over its peak after each step: a warm-up of a twentieth, then the schedule."""
        share = np.arange(1, self.steps + 1) / self.steps
        decayed = {
            "constant": np.ones_like(share),
            "linear": 1 - share,
            "cosine": (1 + np.cos(np.pi * share)) / 2,
            "last fifth": np.minimum(1, 5 * (1 - share)),
        }
        return np.minimum(decayed[self.schedule], share / 0.05)

    def loss(self) -> np.ndarray:
        """The expected loss after each step."""
        step = np.arange(1, self.steps + 1)
        to_come = np.maximum.accumulate(self.rate()[::-1])[::-1]
        planned = 1.5 + 8 / np.sqrt(1 + step * self.pace)
        return planned * (1 + self.offset) * (1 + self.worth * to_come)


def bring(
    root: Path,
    cells: Iterable[SimulatedCell],
    configs: Path,
    noise: Mapping[tuple[str, int], float] | None = None,
    seeds: Iterable[int] = (1, 2, 3),
    **keys: Any,
) -> dict[int, ClaimResult]:
    """Write the runs below `root`, import them and hold the claims of `configs` against them; the claims by number.

    `noise` is the relative deviation of a run's losses, by cell and seed. `keys` are further ones of the import file.
    """
    asked = []
    for cell in cells:
        runs = {}
        for seed in seeds:
            path = root / f"{cell.name}-{seed}.csv"
            write_run(path, cell, seed, (noise or {}).get((cell.name, seed), 0.0))
            runs[seed] = path.name
        mixture = cell.architecture == "moe"
        asked.append(
            {
                "architecture": cell.architecture, "precision": cell.precision, "devices": 8,
                "device_kind": "H100 SXM", "experts": 64 if mixture else 0, "active_parameters": 10**6,
                "runs": runs, **cell.keys,
            }
        )  # fmt: skip
    file = root / "runs.yaml"
    file.write_text(yaml.safe_dump({"description": "simulated", "format": "csv", "cells": asked, **keys}))
    folder = ExperimentFolder(root / "results" / "simulated")
    import_runs(file, folder, ConfigFolders(configs))
    write_verdicts(folder, ConfigFolders(configs), None)
    return {claim.number: claim for claim in read_record(folder.claims, ClaimsFile, made_by="octavo claims").claims}


def write_run(path: Path, cell: SimulatedCell, seed: int, deviation: float) -> None:
    """One run's CSV: a line every 5 steps, validations at their interval."""
    loss = cell.loss() * (1 + 0.004 * np.random.default_rng(seed).normal()) * (1 + deviation)
    training = loss.copy()
    if seed in cell.endings:
        training[-20:] = cell.endings[seed]
    own = np.random.default_rng([seed, zlib.crc32(cell.name.encode()), int(1e9 * abs(deviation))])
    seconds = cell.seconds * (1 + cell.step_sd * own.normal(size=cell.steps))
    if cell.first_seconds is not None:
        seconds[0] = cell.first_seconds
    lines = ["step,tokens,loss,validation_loss,learning_rate,step_seconds,aux"]
    for step in sorted({1, *range(5, cell.steps + 1, 5), *range(cell.interval, cell.steps + 1, cell.interval)}):
        validated = f"{loss[step - 1]:.8f}" if step % cell.interval == 0 else ""
        lines.append(
            f"{step},{step * TOKENS_PER_STEP},{training[step - 1]:.8f},{validated},"
            f"{1e-3 * cell.rate()[step - 1]:.6e},{seconds[step - 1]:.4f},"
        )
    path.write_text("\n".join(lines) + "\n")
