"""Synthetic experiments, judged by the repository's own claims."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.evidence.grid import Grid
from octavo.evidence.verdicts import write_verdicts
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import ClaimResult, ClaimsFile, ComparisonsFile, read_record
from tests.synthetic import write_tables
from tests.tiny import REPOSITORY, copy_configs


@dataclass(frozen=True)
class Judged:
    """A synthetic experiment and what is said of it."""

    root: Path
    folder: ExperimentFolder
    """Of its tables and verdicts."""

    @property
    def configs(self) -> ConfigFolders:
        return ConfigFolders(self.root / "configs")

    @property
    def claims(self) -> dict[int, ClaimResult]:
        found = read_record(self.folder.claims, ClaimsFile, made_by="octavo claims")
        return {claim.number: claim for claim in found.claims}

    @property
    def comparisons(self) -> ComparisonsFile:
        return read_record(self.folder.comparisons, ComparisonsFile, made_by="octavo claims")

    @property
    def grid(self) -> Grid:
        whole = ExperimentFolder(self.root / "results" / "synthetic")
        return Grid(self.folder, whole, load_experiment("synthetic", self.configs))


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judged]:
    """Writes a synthetic experiment (arguments of `tests.synthetic.write_experiment`) and holds the claims against it;
    `only` names the claims, `plans` experiments of this repository that claims may name."""

    def judge(
        *, only: list[str] | None = None, ablation: str | None = None, plans: Sequence[str] = (), **arguments: Any
    ) -> Judged:
        monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
        copy_configs(tmp_path, ("claims", "published", "models", "clusters"))
        (tmp_path / "configs" / "experiments").mkdir(exist_ok=True)
        for name in plans:
            shutil.copy(REPOSITORY / "configs" / "experiments" / f"{name}.yaml", tmp_path / "configs" / "experiments")
        small: dict[str, Any] = {"steps": 100, "validation_interval": 5, **arguments}
        small["changes"] = {**small.get("changes", {}), **({"claims": only} if only else {})}
        write_tables(tmp_path, ablation=ablation, **small)
        whole = ExperimentFolder(tmp_path / "results" / "synthetic")
        return Judged(tmp_path, write_verdicts(whole, ConfigFolders(tmp_path / "configs"), ablation))

    return judge
