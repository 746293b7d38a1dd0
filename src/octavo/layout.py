"""Where things are: the folders of a repository and the files that stages hand to one another.

`results/<experiment>/...` is made from `configs/experiments/<experiment>.yaml`. Nothing else in the package spells a
path of the results folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
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


def horizon_cell(cell: str, steps: int) -> str:
    """The name of a cell's runs that are planned for a shorter length: `moe-bf16@270`."""
    return f"{cell}@{steps}"


def split_horizon(cell: str) -> tuple[str, int | None]:
    """`moe-bf16@270` -> (moe-bf16, 270); `moe-bf16` -> (moe-bf16, None)."""
    trunk, at, steps = cell.partition("@")
    return trunk, int(steps) if at and steps.isdecimal() else None


def parse_run(name: str) -> tuple[str, int] | None:
    """Cell and seed of a run's name or the end of its path; None where it is neither.

    `moe-bf16/seed-1`, and for a shorter horizon `moe-bf16@270/seed-1` or `moe-bf16/seed-1/horizon-270`.
    """
    found = re.fullmatch(r"([^/]+)/seed-([0-9]{1,10})(?:/horizon-([0-9]{1,10}))?", name)
    if found is None:
        return None
    cell, seed, steps = found.groups()
    return horizon_cell(cell, int(steps)) if steps else cell, int(seed)


@dataclass(frozen=True)
class RunFolder:
    """What one run writes: `results/<experiment>/runs/<cell>/seed-<n>/`, and below it `horizon-<steps>/` of a run that
    is planned for a shorter length and begins from the other's checkpoint."""

    path: Path

    @property
    def config(self) -> Path:
        """The run fully resolved (`octavo.experiment.run.RunConfig`)."""
        return self.path / "config.yaml"

    @cached_property
    def metrics(self) -> Path:
        """One JSON object per logged step (`octavo.records.MetricsRecord`)."""
        return self.path / "metrics.jsonl"

    @cached_property
    def attempts(self) -> Path:
        """One JSON object per attempt (`octavo.records.AttemptRecord`)."""
        return self.path / "attempts.jsonl"

    @cached_property
    def provenance(self) -> Path:
        """`octavo.records.Provenance`."""
        return self.path / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of megatron.core.dist_checkpointing, one folder per step."""
        return self.path / "checkpoints"

    @cached_property
    def routing(self) -> Path:
        """Which experts served which validation sequence (`octavo.records.TABLE_FIELDS`); mixtures of experts only."""
        return self.path / "routing.parquet"

    @cached_property
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
    def trunk(self) -> RunFolder | None:
        """The folder of the run whose checkpoint this one begins from; None where it begins by itself."""
        return RunFolder(self.path.parent) if self.path.name.startswith("horizon-") else None

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after a step."""
        return self.checkpoints / f"step-{step}"

    @property
    def cell(self) -> str:
        """The cell's name."""
        if self.trunk:
            return horizon_cell(self.trunk.cell, int(self.path.name.removeprefix("horizon-")))
        return self.path.parent.name

    @property
    def seed(self) -> int:
        """The seed."""
        return self.trunk.seed if self.trunk else int(self.path.name.removeprefix("seed-"))


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
    def plan_steps(self) -> Path:
        """The forecast step of every cell, as the plan was made from it."""
        return self.path / "plan.json"

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
    def parts(self) -> Path:
        """What `octavo aggregate` keeps of runs that it has read (`octavo.evidence.parts`); it may be removed."""
        return self.path / ".parts"

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
    def ladder(self) -> Path:
        """Of a ladder, every planned end (`octavo.scaling.ladder`)."""
        return self.path / "ladder.csv"

    @property
    def leverage(self) -> Path:
        """What the ladder says of leverage and of larger runs (`octavo ladder`)."""
        return self.path / "leverage.json"

    @property
    def prediction(self) -> Path:
        """What was foretold of a ladder's largest rung before it began (`octavo predict`)."""
        return self.path / "prediction.json"

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
    def first_report(self) -> Path:
        """Of how many seeds a report was made while more were trained (`octavo.records.FirstReport`)."""
        return self.path / "first-report.json"

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
        """The ablations that have tables or reports of their own; those that have nothing but looks at the evidence,
        logs or a first report have none yet."""
        return [path.name for path in sorted(self.path.glob("ablations/*")) if ExperimentFolder(path).begun]

    @property
    def begun(self) -> bool:
        """Whether there is a table, a verdict, a figure or a report, the first report aside."""
        made = [self.runs_table, self.steps_table, self.attempts_table, self.claims, self.comparisons, self.figures]
        reports = [] if self.first_report.exists() else [self.report_pdf, self.report_html]
        return any(path.exists() for path in (*made, self.report_hashes, *reports))

    def run(self, cell: str, seed: int) -> RunFolder:
        """The folder of one run."""
        trunk, steps = split_horizon(cell)
        own = self.runs / trunk / f"seed-{seed}"
        return RunFolder(own if steps is None else own / f"horizon-{steps}")

    def with_shorter(self, run: RunFolder) -> list[RunFolder]:
        """The folder of a run and those of the shorter runs that begin from its checkpoints, by length."""
        named = _folders(run.path, "horizon-")
        shorter = [RunFolder(path) for path in named if parse_run(f"{run.cell}/{run.path.name}/{path.name}")]
        return [run, *sorted(shorter, key=lambda one: int(one.path.name.removeprefix("horizon-")))]

    def run_folders(self) -> list[RunFolder]:
        """All run folders there are, by cell and seed."""
        folders = [RunFolder(path) for cell in _folders(self.runs) for path in _folders(cell, "seed-")]
        ordered = sorted(folders, key=lambda run: (run.cell, run.seed))
        return [one for run in ordered for one in self.with_shorter(run)]


def _folders(path: Path, beginning: str = "") -> list[Path]:
    """The folders in a folder whose names begin so; none where there is no such folder, or it may not be read."""
    try:
        with os.scandir(path) as found:  # of ten thousand runs, Path.glob takes three times as long
            return [path / one.name for one in found if one.name.startswith(beginning) and one.is_dir()]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


NOT_EXPERIMENTS = ("data", "images", "probes", "reference")
"""Folders of `results/` that hold something else."""


def data_folder(identifier: str) -> Path:
    """The prepared data set with this identifier (`octavo.experiment.run.data_identifier`), below the checkout."""
    return Path("results") / "data" / identifier


def image_file(variant: str, container: str = "apptainer") -> Path:
    """The container image of a variant of container.def as Apptainer or pyxis starts it, below the checkout."""
    return Path("results") / "images" / f"{variant}.{'sqsh' if container == 'pyxis' else 'sif'}"


def image_record(image: Path) -> Path:
    """What is in an image, beside it: `gpu.json` of `gpu.sif`, `gpu.sqsh.json` of `gpu.sqsh`."""
    return image.with_suffix(".json" if image.suffix == ".sif" else ".sqsh.json")


def probe_file(cluster: str) -> Path:
    """The record that a cluster was looked at before runs, below the checkout."""
    return Path("results") / "probes" / f"{cluster}.json"


def machine_file(identity: str) -> Path:
    """How fast the machine of this identity trains (`octavo.forecast.machine`), below the checkout."""
    return Path("results") / "probes" / f"machine-{identity}.json"


def probe_folder(cluster: str) -> Path:
    """What the tasks of a cluster's last probe wrote, below the checkout."""
    return Path("results") / "probes" / cluster


def accept_file(cluster: str) -> Path:
    """What a cluster's GPUs reach, as `octavo accept` found, below the checkout; its page is the .pdf beside it."""
    return Path("results") / "probes" / f"{cluster}-accept.json"
