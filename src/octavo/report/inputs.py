"""What a report is made from: the tables, the verdicts, the forecast and the provenance of one experiment.

An experiment is Octavo's own, with an experiment file, or imported (`octavo import`): of an import there are only
tables, verdicts and `imported.json`, and what it lacks is left out of the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from octavo.accounting.money import hours_name
from octavo.errors import OctavoError
from octavo.evidence.curves import averaged
from octavo.evidence.lengths import whole_lengths
from octavo.evidence.names import words
from octavo.evidence.steps import floats, steps_by_run
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment, data_identifier
from octavo.files import read_json
from octavo.imports.runs import Imported, read_imported
from octavo.layout import ExperimentFolder, data_folder, split_horizon
from octavo.records import (
    ClaimsFile,
    Comparison,
    ComparisonsFile,
    FirstReport,
    Losses,
    Provenance,
    read_record,
    read_table,
)
from octavo.report.style import CellStyle, cell_styles
from octavo.scaling.ladder import Row, read_rows
from octavo.scaling.prediction import read_prediction

STEP_COLUMNS = [
    "cell", "seed", "step", "tokens", "model_flops", "device_hours", "validation_loss",
    "fp8_underflow_input", "fp8_underflow_weight", "fp8_underflow_gradient",
    "fp8_overflow_input", "fp8_overflow_weight", "fp8_overflow_gradient",
    "fp8_amax_input", "fp8_amax_weight", "fp8_amax_gradient",
    "fp8_product_error_forward", "fp8_product_error_input_gradient", "fp8_product_error_weight_gradient",
]  # fmt: skip
"""What figures draw step by step of `steps.parquet`."""

SPENT = ("tokens", "model_flops", "device_hours", "step")
"""What losses are drawn over."""


@dataclass(frozen=True)
class RunSteps:
    """What figures draw of all steps of a run."""

    cell: str
    seed: int
    device_seconds: float
    """Of the median step; NaN where it is not known."""
    tokens: float
    """Of the median step, NaN where it is not known."""
    load: np.ndarray | None
    """The last logged load of the experts, by [MoE layer, expert]."""
    windows: dict[str, np.ndarray]
    """Training losses averaged over windows of steps, and what was spent; where they stand for validation losses."""


@dataclass(frozen=True)
class Inputs:
    """Everything that a report says rests on these."""

    experiment: Experiment | None
    """None for imported runs."""
    imported: Imported | None
    """Where imported runs came from; None for Octavo's own."""
    whole: ExperimentFolder
    """The experiment's folder."""
    folder: ExperimentFolder
    """Of the tables and verdicts: the experiment's, one ablation's, or that of a first report."""
    ablation: str | None
    runs: pd.DataFrame
    """One row per cell and seed: what the runs of shorter horizons took in all is in those of the whole length."""
    shorter: pd.DataFrame
    """The runs of shorter horizons; empty where runs were planned for one length."""
    steps: pd.DataFrame
    """Steps of the whole length with a validation loss, or with what FP8 does to the numbers."""
    attempts: pd.DataFrame
    claims: ClaimsFile
    comparisons: ComparisonsFile
    plan: pd.DataFrame
    provenance: dict[str, Provenance]
    """By run, `cell/seed-n`; imported runs have none."""
    manifest: dict[str, Any] | None
    """Of the data set; None where it is not on this machine."""
    verification: dict[str, Any] | None
    leverage: dict[str, Any] | None = None
    """What a ladder says (`octavo.evidence.ladder.findings`); None where there is none."""
    ends: Sequence[Row] = ()
    """A ladder's planned ends."""
    prediction: dict[str, Any] | None = None
    """What was foretold of its largest rung; None where nothing was."""
    first: FirstReport | None = None
    """Of how many seeds it is, where more are being trained; None: it is the whole report."""

    @cached_property
    def styles(self) -> dict[str, CellStyle]:
        """How cells are named and drawn."""
        models = list(self.experiment.file.models) if self.experiment else []
        return cell_styles(self.runs, models, list(self.ablations))

    @cached_property
    def hours(self) -> str:
        """GPU-hours or device-hours."""
        return hours_name(self.runs["device_kind"].dropna())

    @property
    def device_time(self) -> str:
        """What hours of devices are where they are given with a unit: GPU time or device time."""
        return self.hours.replace("-hours", " time")

    @property
    def scope(self) -> ExperimentFolder:
        """Where the report goes: the experiment's folder, or one ablation's."""
        return self.whole.ablation(self.ablation) if self.ablation else self.whole

    @property
    def title(self) -> str:
        """Of the report."""
        name = f"Octavo: {self.whole.name}" if self.ablation is None else f"Ablation: {words(self.ablation)}"
        return f"{name}, first report" if self.first else name

    @property
    def description(self) -> str:
        """What the experiment, the ablation or the import says of itself."""
        if self.experiment:
            return self.ablations[self.ablation] if self.ablation else self.experiment.file.description
        return self.imported.description if self.imported else ""

    @property
    def ablations(self) -> dict[str, str]:
        """Description by name; an import does not describe its own."""
        if self.experiment is None:
            return {}
        return {name: ablation.description for name, ablation in self.experiment.file.ablations.items()}

    @property
    def currency(self) -> str | None:
        """Of all costs; None where an import has none."""
        if self.experiment:
            return self.experiment.cluster.currency
        return self.imported.currency if self.imported else None

    @cached_property
    def losses(self) -> Losses:
        """Which losses cells are shown by: validation losses, unless a cell of an import has none."""
        validated = self.complete.groupby("cell")["validation_loss"].count().gt(0)
        return "training" if self.imported and not validated.all() else "validation"

    @property
    def complete(self) -> pd.DataFrame:
        """The runs with a result."""
        return self.runs[self.runs["status"] == "completed"]

    @cached_property
    def of_steps(self) -> list[RunSteps]:
        """Every run's steps in short. They are read run by run: tables of any size are never in memory whole."""
        windows = (*SPENT, "loss") if self.losses == "training" else ()
        columns = list(dict.fromkeys(["step", "tokens", "step_seconds", "devices", "expert_load", *windows]))
        cells = set(self.runs["cell"])
        found = steps_by_run(self.folder, columns)
        return [_in_short(*run, steps, windows) for run, steps in found if run[0] in cells]

    @property
    def horizons(self) -> list[int]:
        """Steps of the shorter lengths that runs were planned for."""
        return sorted({steps for _, steps in map(split_horizon, self.shorter["cell"]) if steps is not None})

    def compared(self, kind: str) -> list[Comparison]:
        """The pairs of a kind, on all axes."""
        return [one for one in self.comparisons.comparisons if one.kind == kind]

    def label(self, cell: str) -> str:
        """A cell's name for people."""
        return self.styles[cell].label if cell in self.styles else cell

    @property
    def emulated(self) -> bool:
        """Whether any cell's FP8 is emulated."""
        return bool(self.runs["emulated"].any())

    @property
    def seeds(self) -> int:
        """Seeds of the experiment."""
        return int(self.runs["seed"].nunique())


def load_inputs(
    folder: ExperimentFolder,
    ablation: str | None = None,
    first: tuple[ExperimentFolder, FirstReport] | None = None,
) -> Inputs:
    """Read what a report needs; of a first report, from the folder with its tables.

    Raises OctavoError for a file that is missing, damaged or of another version.
    """
    imported = read_imported(folder)
    if imported and ablation:
        raise OctavoError(
            "imported runs have no reports of single ablations",
            where=folder.imported,
            fix=f"their ablations are in the whole report: octavo report {folder.path}",
        )
    experiment = None if imported else load_experiment(folder.name)
    scope = folder.ablation(ablation) if ablation else folder
    again = f"octavo import {folder.path} FILE" if imported else f"snakemake {scope.report_pdf}"
    scope = first[0] if first else scope
    judged = f"octavo claims {folder.path}" if imported else again
    if not scope.runs_table.exists():
        raise OctavoError("there are no tables yet", where=scope.runs_table, fix=f"make them: {again}")
    every_run = read_table(scope.runs_table, "runs", made_by=again)
    runs = whole_lengths(every_run)
    return Inputs(
        experiment=experiment,
        imported=imported,
        whole=folder,
        folder=scope,
        ablation=ablation,
        runs=runs,
        shorter=every_run[~every_run["cell"].isin(runs["cell"])],
        steps=read_table(
            scope.steps_table,
            "steps",
            made_by=again,
            columns=STEP_COLUMNS,
            where=(pc.field("validation_loss").is_valid() | pc.field("fp8_underflow_input").is_valid())
            & pc.field("cell").isin(runs["cell"].unique().tolist()),
        ),
        attempts=read_table(scope.attempts_table, "attempts", made_by=again),
        claims=read_record(scope.claims, ClaimsFile, made_by=judged),
        comparisons=read_record(scope.comparisons, ComparisonsFile, made_by=judged),
        plan=_plan(folder),
        provenance=_provenance(folder, every_run, again),
        manifest=_manifest(experiment) if experiment else None,
        verification=read_json(folder.verification, made_by=again)
        if folder.verification.exists() and first is None
        else None,
        first=first[1] if first else None,
        **(_of_ladder(folder, again) if experiment and experiment.rungs and ablation is None else {}),
    )


def _in_short(cell: str, seed: int, steps: pa.Table, windows: Sequence[str]) -> RunSteps:
    step, tokens, seconds, devices = (floats(steps, name) for name in ("step", "tokens", "step_seconds", "devices"))
    trained = np.isfinite(tokens) & np.isfinite(seconds)
    with np.errstate(invalid="ignore"):
        per_step = np.diff(tokens[trained]) / np.diff(step[trained])  # an import may have logged one step in several
    loads = steps["expert_load"].drop_null()
    averages = {name: floats(steps, name) for name in windows}
    return RunSteps(
        cell=cell,
        seed=seed,
        device_seconds=float(np.median((seconds * devices)[trained])) if trained.any() else np.nan,
        tokens=float(np.median(per_step)) if len(per_step) else np.nan,
        load=np.array(loads[-1].as_py()) if len(loads) else None,
        windows={name: averaged(values, averages["loss"])[0] for name, values in averages.items()},
    )


def _of_ladder(folder: ExperimentFolder, again: str) -> dict[str, Any]:
    if not folder.leverage.exists():
        raise OctavoError("what the ladder says is missing", where=folder.leverage, fix=f"make it: {again}")
    return {
        "leverage": read_json(folder.leverage, made_by=again),
        "ends": read_rows(folder.ladder),
        "prediction": read_prediction(folder.prediction) if folder.prediction.exists() else None,
    }


def _plan(folder: ExperimentFolder) -> pd.DataFrame:
    if not folder.plan_csv.exists():
        return pd.DataFrame()
    return pd.read_csv(folder.plan_csv)


def _provenance(folder: ExperimentFolder, runs: pd.DataFrame, again: str) -> dict[str, Provenance]:
    found = {}
    for cell, seed in zip(runs["cell"], runs["seed"], strict=True):
        path = folder.run(cell, seed).provenance
        if path.exists():
            found[f"{cell}/seed-{seed}"] = read_record(path, Provenance, made_by=again)
    return found


def _manifest(experiment: Experiment) -> dict[str, Any] | None:
    identifier = data_identifier(experiment.file.data, experiment.file.tokenizer)
    path = data_folder(identifier) / "manifest.json"
    return read_json(path, made_by=f"octavo data {experiment.name}") if path.exists() else None


def shared(values: list[Any]) -> str:
    """A value that runs have in common, or how they differ: `2.13.0`, `2.13.0 (11 runs), 2.12.1 (1 run)`."""
    counted = Counter(str(value) for value in values)
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{value} ({n} run{'s' if n > 1 else ''})" for value, n in counted.most_common())
