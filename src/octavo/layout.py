"""Where things are: the folders of a repository and the files that stages hand to one another.

`results/<experiment>/...` is made from `configs/experiments/<experiment>.yaml`. Nothing else in the package spells a
path of the results folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import OctavoError

TEMPLATES = Path(__file__).parent / "templates"
"""What reports and plans are typeset from: part of the package, so results bring none of their own."""


def repository() -> Path:
    """The checkout that holds `configs/`: OCTAVO_ROOT, or the working directory or one above it."""
    if named := os.environ.get("OCTAVO_ROOT"):
        return Path(named).resolve()
    here = Path.cwd()
    if (found := checkout_of(here)) is None:
        raise OctavoError(
            "this is not a checkout of Octavo",
            where=here,
            expected="a folder with configs/experiments",
            fix="cd into it",
        )
    return found


def checkout_of(path: Path) -> Path | None:
    """The checkout that an absolute path lies in: the nearest folder, itself or above it, with configs/experiments."""
    return next((folder for folder in (path, *path.parents) if (folder / "configs" / "experiments").is_dir()), None)


@dataclass(frozen=True)
class ConfigFolders:
    """The `configs/` folder."""

    root: Path

    @property
    def experiments(self) -> Path:
        """Experiment files."""
        return self.root / "experiments"

    @property
    def data(self) -> Path:
        """Text that experiments share."""
        return self.root / "data"

    @property
    def models(self) -> Path:
        """Architecture files."""
        return self.root / "models"

    @property
    def clusters(self) -> Path:
        """Cluster files; `devices/` below it holds device files."""
        return self.root / "clusters"

    @property
    def claims(self) -> Path:
        """Claim files."""
        return self.root / "claims"

    @property
    def published(self) -> Path:
        """Figures from papers and vendors."""
        return self.root / "published"


def configs() -> ConfigFolders:
    """The `configs/` folder of this checkout."""
    return ConfigFolders(repository() / "configs")


@dataclass(frozen=True)
class RunFolder:
    """`results/<experiment>/runs/<cell>/seed-<n>/`: what one run writes."""

    path: Path

    @property
    def config(self) -> Path:
        """The run fully resolved (`octavo.experiment.run.RunConfig`)."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step (`octavo.records.MetricsRecord`)."""
        return self.path / "metrics.jsonl"

    @property
    def attempts(self) -> Path:
        """One JSON object per attempt (`octavo.records.AttemptRecord`)."""
        return self.path / "attempts.jsonl"

    @property
    def provenance(self) -> Path:
        """`octavo.records.Provenance`."""
        return self.path / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of megatron.core.dist_checkpointing, one folder per step."""
        return self.path / "checkpoints"

    @property
    def routing(self) -> Path:
        """Which experts served which validation sequence (`octavo.records.TABLE_FIELDS`); mixtures of experts only."""
        return self.path / "routing.parquet"

    @property
    def result(self) -> Path:
        """Written last: the run is complete if and only if it exists and validates (`octavo.records.Result`)."""
        return self.path / "result.json"

    @property
    def log(self) -> Path:
        """What the trainer printed."""
        return self.path / "train.log"

    @property
    def superseded(self) -> Path:
        """Runs under an earlier configuration: not results any more, but paid for."""
        return self.path / "superseded"

    @property
    def cell(self) -> str:
        """The cell's name."""
        return self.path.parent.name

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.path.name.removeprefix("seed-"))


@dataclass(frozen=True)
class ExperimentFolder:
    """`results/<experiment>/`."""

    path: Path

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.path.name

    @property
    def plan_csv(self) -> Path:
        """The forecast, one row per cell."""
        return self.path / "plan.csv"

    @property
    def plan_pdf(self) -> Path:
        """The forecast on one page."""
        return self.path / "plan.pdf"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.path / "runs"

    @property
    def runs_table(self) -> Path:
        """Table `runs` of `octavo.records.TABLE_FIELDS`."""
        return self.path / "runs.parquet"

    @property
    def steps_table(self) -> Path:
        """Table `steps` of `octavo.records.TABLE_FIELDS`."""
        return self.path / "steps.parquet"

    @property
    def attempts_table(self) -> Path:
        """Table `attempts` of `octavo.records.TABLE_FIELDS`."""
        return self.path / "attempts.parquet"

    @property
    def sacct(self) -> Path:
        """What Slurm's accounting said of the experiment's jobs (`octavo.records.SlurmAccounting`)."""
        return self.path / "sacct.json"

    @property
    def ledger(self) -> Path:
        """How often the ledger was left provisional (`octavo.records.LedgerState`)."""
        return self.path / "ledger.json"

    def look(self, after: int) -> Path:
        """Which cells are to be trained with one seed more (`octavo.records.Look`), seen after so many."""
        return self.path / "looks" / f"{after}.json"

    def looks(self) -> list[Path]:
        """All looks there are, of the experiment and of its ablations' reports."""
        return sorted([*self.path.glob("looks/*.json"), *self.path.glob("ablations/*/looks/*.json")])

    @property
    def seed_plans(self) -> Path:
        """The seeds that verdicts were planned with (`octavo.records.SeedPlans`); kept when verdicts are made again."""
        return self.path / "seeds.json"

    @property
    def claims(self) -> Path:
        """The verdicts."""
        return self.path / "claims.json"

    @property
    def comparisons(self) -> Path:
        """Every pair of cells on every axis."""
        return self.path / "comparisons.json"

    @property
    def imported(self) -> Path:
        """Where imported runs came from; there is none where the runs are Octavo's own."""
        return self.path / "imported.json"

    @property
    def figures(self) -> Path:
        """Figures as PDF, SVG and PNG, with their data as CSV."""
        return self.path / "figures"

    @property
    def figure_hashes(self) -> Path:
        """SHA-256 of every figure, in their folder."""
        return self.figures / "hashes.json"

    @property
    def report_hashes(self) -> Path:
        """SHA-256 of the report's two files."""
        return self.path / "report.hashes.json"

    @property
    def report_pdf(self) -> Path:
        """The report."""
        return self.path / "report.pdf"

    @property
    def report_html(self) -> Path:
        """The report as one page."""
        return self.path / "report.html"

    @property
    def verification(self) -> Path:
        """Whether the results are reproducible."""
        return self.path / "verification.json"

    def rerun(self, gate: str, cell: str, seed: int) -> RunFolder:
        """The folder of a run made again to verify it; beside the runs, and no part of the ledger."""
        return RunFolder(self.path / "verification" / gate / cell / f"seed-{seed}")

    def ablation(self, name: str) -> ExperimentFolder:
        """The folder of one ablation's report: tables, claims and figures of it and its baseline alone."""
        return ExperimentFolder(self.path / "ablations" / name)

    def ablations(self) -> list[str]:
        """The ablations that have tables or reports of their own."""
        return sorted(path.name for path in self.path.glob("ablations/*") if path.is_dir())

    def run(self, cell: str, seed: int) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.runs / cell / f"seed-{seed}")

    def run_folders(self) -> list[RunFolder]:
        """All run folders there are, by cell and seed."""
        folders = [RunFolder(path) for path in self.runs.glob("*/seed-*") if path.is_dir()]
        return sorted(folders, key=lambda run: (run.cell, run.seed))


def data_folder(identifier: str) -> Path:
    """The prepared data set with this identifier (`octavo.experiment.run.data_identifier`), below the checkout."""
    return Path("results") / "data" / identifier


def image_file(variant: str) -> Path:
    """The container image of a variant of container.def, below the checkout; its record is the .json beside it."""
    return Path("results") / "images" / f"{variant}.sif"
