"""`octavo import`: runs that others made -> the tables that verdicts and reports are made from.

A small YAML file says which cell each log is. What it does not say and the logs do not hold stays blank: without
`sequence_length` or `tokens_per_step` there are no tokens, without `flops_per_token` (or a `model` to count) no FLOPs,
without `devices` no device-hours, without a `cluster` no cost. Claims and comparisons that need them are then not
testable; nothing is guessed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from octavo.accounting.money import cost
from octavo.configuration import Section, place, read_section
from octavo.divergence import diverged, sane
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.config import Name
from octavo.files import read_json, sha256, write_json
from octavo.imports.logs import COLUMNS, Format, read_log
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.precision.config import RecipeName
from octavo.records import SCHEMA_VERSION, Record, check_version, write_table

if TYPE_CHECKING:
    import pandas as pd

Count = Annotated[int, Field(ge=0)]

TRAINED = ["loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds"]
"""Columns that a line of training has; a validation has none of them."""
Identifier = Annotated[str, Field(min_length=1, max_length=200)]


class LossesOf(Section):
    """What losses are losses of. Two losses are comparable where all three are the same; null: not stated."""

    tokenizer: Identifier | None = None
    """A name that tells tokenizers apart: `deepseek-v3`, a repository, a hash."""
    data: Identifier | None = None
    """The same for the training text."""
    validation: Identifier | None = None
    """The same for the validation text."""


class ImportedCell(LossesOf):
    """What the logs of a cell's runs do not say."""

    architecture: Name
    """`dense` and `moe`, or other names; claims about mixtures of experts need `experts` or a `model` then."""
    precision: RecipeName
    ablation: Name | None = None
    """What this cell changes in the cell of the same architecture and precision."""
    model: str | None = None
    """A file in configs/models, to count parameters, experts and FLOPs with; needs `sequence_length`."""
    experts: Count | None = None
    experts_per_token: PositiveInt | None = None
    expert_size: PositiveInt | None = None
    shared_expert_size: Count | None = None
    accumulation: Literal["fp32", "fp14", "promoted"] | None = None
    emulated: bool = False
    """FP8 was emulated: its times say nothing about FP8."""
    total_parameters: PositiveInt | None = None
    active_parameters: PositiveInt | None = None
    flops_per_token: PositiveFloat | None = None
    """Model FLOPs per trained token, forward and backward."""
    sequence_length: PositiveInt | None = None
    """For logs that count samples, and for `model`."""
    tokens_per_step: PositiveInt | None = None
    """For logs that count neither tokens nor samples."""
    devices: PositiveInt | None = None
    device_kind: str | None = None
    """`cpu`, or the GPU's name."""
    runs: Annotated[dict[Count, str | list[str]], Field(min_length=1)]
    """Seed -> its log, or its logs in the order they were written; relative to this file."""

    @property
    def name(self) -> str:
        """`moe-fp8_blockwise+no_shared_expert`."""
        return f"{self.architecture}-{self.precision}" + (f"+{self.ablation}" if self.ablation else "")

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.model and self.sequence_length is None:
            raise ValueError("model needs sequence_length, to count FLOPs")
        return self


class ImportFile(LossesOf):
    """Which runs to import. What is said here of their losses holds for each cell that says nothing else."""

    description: str
    format: Format
    columns: dict[str, str] = {}
    """For `csv`: our name -> the table's."""
    cluster: str | None = None
    """A file in configs/clusters, whose price device-hours are charged at; None: no costs."""
    cells: Annotated[list[ImportedCell], Field(min_length=1)]


class Imported(Record):
    """`imported.json`: where an imported experiment came from."""

    schema_version: int = SCHEMA_VERSION
    description: str
    format: str
    cluster: str | None
    currency: str | None
    files: dict[str, str]
    """Log -> SHA-256, as it was when it was imported."""
    blank: list[str]
    """What was not given, and what is therefore left out."""


def read_imported(folder: ExperimentFolder) -> Imported | None:
    """Where an experiment folder was imported from; None where its runs are Octavo's own."""
    if not folder.imported.exists():
        return None
    value = read_json(folder.imported, made_by="octavo import")
    check_version(value, folder.imported, made_by="octavo import")
    return Imported.model_validate(value)


def import_runs(path: Path, folder: ExperimentFolder, configs: ConfigFolders) -> Imported:
    """Read the logs that a file names and write runs.parquet, steps.parquet, attempts.parquet and imported.json.

    Raises OctavoError where the folder belongs to an experiment of Octavo's own, or a log cannot be read.
    """
    import pandas as pd

    asked = read_section(path, ImportFile)
    _check_folder(folder, configs)
    names = [cell.name for cell in asked.cells]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise OctavoError(f"the cell {name} is there twice", where=place(path, ("cells", index)))
        if (base := name.partition("+")[0]) not in names:
            raise OctavoError(
                f"the ablation {name} has no baseline", where=place(path, ("cells", index)), expected=f"a cell {base}"
            )
    price = _price(asked.cluster, configs)
    runs, steps, files = [], [], {}
    for cell in asked.cells:
        sizes = _sizes(cell)
        for seed, logs in cell.runs.items():
            paths = [path.parent / log for log in ([logs] if isinstance(logs, str) else logs)]
            log = read_log(paths, asked.format, asked.columns)
            of_run = _steps(folder.name, cell, seed, log.steps, sizes)
            steps.append(of_run)
            runs.append(_run(folder.name, cell, seed, of_run, log.finished, sizes, price) | _losses_of(asked, cell))
            for one in paths:
                inside = sorted(file for file in one.rglob("*") if file.is_file()) if one.is_dir() else [one]
                files |= {os.path.relpath(file, path.parent): sha256(file) for file in inside}
    tables = pd.concat(steps, ignore_index=True)
    record = Imported(
        description=asked.description, format=asked.format, cluster=asked.cluster,
        currency=price[0].currency if price else None, files=files,
        blank=_blank(asked, tables, pd.DataFrame(runs)),
    )  # fmt: skip
    write_table(folder.steps_table, tables, "steps")
    write_table(folder.attempts_table, pd.DataFrame({"experiment": []}), "attempts")
    write_table(folder.runs_table, pd.DataFrame(runs), "runs")
    write_json(folder.imported, record.model_dump(mode="json"))
    return record


def _check_folder(folder: ExperimentFolder, configs: ConfigFolders) -> None:
    own = configs.experiments / f"{folder.name}.yaml"
    if own.exists() or folder.runs.exists():
        raise OctavoError(
            f"{folder.name} is an experiment of Octavo's own",
            where=own if own.exists() else folder.runs,
            fix="import into a folder of another name, results/<name>",
        )


def _price(cluster: str | None, configs: ConfigFolders) -> tuple[Cluster, Device] | None:
    if cluster is None:
        return None
    from octavo.experiment.load import load_cluster

    return load_cluster(cluster, configs)


def _losses_of(file: ImportFile, cell: ImportedCell) -> dict[str, str | None]:
    """`tokenizer`, `data` and `validation` of a cell's runs: what the cell says, or what the file says for all."""
    return {name: getattr(cell, name) or getattr(file, name) for name in LossesOf.model_fields}


def _sizes(cell: ImportedCell) -> dict[str, Any]:
    """Parameters, experts and FLOPs, as given or counted; what is given wins."""
    names = (
        "experts", "experts_per_token", "expert_size", "shared_expert_size", "total_parameters", "active_parameters",
        "flops_per_token",
    )  # fmt: skip
    given = {name: getattr(cell, name) for name in names}
    if cell.model is None:
        return given
    from octavo.models.catalogue import read_architecture
    from octavo.models.matched import matched_quantity

    model, length = read_architecture(cell.model), cell.sequence_length
    assert length is not None, "checked by ImportedCell"
    if model.vocabulary_size is None:
        raise OctavoError(f"model {cell.model!r} has no vocabulary of its own", fix="give parameters and FLOPs instead")
    experts = model.experts
    counted = {
        "experts": experts.count if experts else 0,
        "experts_per_token": experts.top_k if experts else None,
        "expert_size": experts.size if experts else None,
        "shared_expert_size": experts.shared_size if experts else None,
        "total_parameters": int(matched_quantity(model, "total_parameters", length)),
        "active_parameters": int(matched_quantity(model, "active_parameters", length)),
        "flops_per_token": matched_quantity(model, "flops_per_token", length),
    }
    return {name: counted[name] if given[name] is None else given[name] for name in names}


def _steps(experiment: str, cell: ImportedCell, seed: int, log: pd.DataFrame, sizes: dict[str, Any]) -> pd.DataFrame:
    """Rows of steps.parquet."""
    log = log.reindex(columns=list(COLUMNS)).astype({"step": int})
    log = log.assign(**{name: sane(log[name].to_numpy()) for name in ("loss", "validation_loss")})
    tokens = _tokens(cell, log)
    rate = log["tokens_per_second_per_device"]
    if log["step_seconds"].isna().all() and rate.notna().any() and cell.tokens_per_step and cell.devices:
        log["step_seconds"] = cell.tokens_per_step / (rate * cell.devices)
    trained = log["loss"].notna() | log["step_seconds"].notna()
    since = np.diff(log["step"].where(trained).ffill().fillna(0), prepend=0)  # steps that a line stands for
    seconds = log["step_seconds"] * since
    known = log["step_seconds"].notna().any() and cell.devices is not None
    hours = seconds.fillna(0).cumsum() * (cell.devices or 0) / 3600 if known else np.nan
    return log.drop(columns=["samples", "tokens_per_second_per_device"]).assign(
        experiment=experiment,
        cell=cell.name,
        seed=seed,
        tokens=tokens.astype("Int64"),
        model_flops=tokens * sizes["flops_per_token"] if sizes["flops_per_token"] else np.nan,
        device_hours=hours,
        memory_bytes=log["memory_bytes"].round().astype("Int64"),
        _seconds=seconds,
    )


def _tokens(cell: ImportedCell, log: pd.DataFrame) -> pd.Series:
    """Tokens so far: as logged, or samples x sequence length, or steps x tokens per step, or not known.

    Between two lines that say it, a line that does not (a validation) has what the one before it says.
    """
    if log["tokens"].notna().any():
        return log["tokens"].ffill()
    if log["samples"].notna().any() and cell.sequence_length:
        return (log["samples"] * cell.sequence_length).ffill()
    if cell.tokens_per_step:
        return log["step"].astype(float) * cell.tokens_per_step
    return log["step"] * np.nan


def _run(
    experiment: str,
    cell: ImportedCell,
    seed: int,
    steps: pd.DataFrame,
    finished: bool,
    sizes: dict[str, Any],
    price: tuple[Cluster, Device] | None,
) -> dict[str, Any]:
    """A row of runs.parquet."""
    last = int(steps["step"].iloc[-1])
    losses, validation = steps.dropna(subset="loss"), steps.dropna(subset="validation_loss")
    final = losses.loc[losses["step"] > 0.9 * last, "loss"]
    trained = steps.dropna(subset=TRAINED, how="all")
    lost = diverged(trained["step"].to_numpy(), trained["loss"].to_numpy())
    known = steps["step_seconds"].notna().any()
    hours = float(steps["device_hours"].iloc[-1])
    tokens = steps["tokens"].dropna()
    charged = cost(*price, hours) if price and np.isfinite(hours) else None
    return {
        "experiment": experiment,
        "cell": cell.name,
        "seed": seed,
        "architecture": cell.architecture,
        "precision": cell.precision,
        "ablation": cell.ablation,
        **sizes,
        "accumulation": cell.accumulation,
        "status": "diverged" if lost else "completed" if finished else "unfinished",
        "steps": last,
        "tokens": int(tokens.iloc[-1]) if len(tokens) else None,
        "training_loss": float(final.mean()) if len(final) and not lost else None,
        "validation_loss": float(validation["validation_loss"].iloc[-1]) if len(validation) and not lost else None,
        "validation_step": int(validation["step"].iloc[-1]) if len(validation) and not lost else None,
        "training_seconds": float(steps["_seconds"].sum()) if known else None,
        "device_kind": cell.device_kind,
        "device_count": cell.devices,
        "emulated": cell.emulated,
        "attempts": 0,
        "device_hours_final": hours if np.isfinite(hours) else None,
        "cost_final": charged,
        "currency": price[0].currency if price and charged is not None else None,
    }


BLANK = {
    "tokens": ("tokens", "give sequence_length or tokens_per_step"),
    "model_flops": ("model FLOPs", "give flops_per_token, or a model and sequence_length"),
    "device_hours": ("device-hours", "give devices (the logs must hold step times)"),
    "validation_loss": ("validation losses", "training losses are compared instead"),
    "experts": ("number of experts", "give experts, or a model"),
    "active_parameters": ("active parameters", "give active_parameters, or a model"),
    "total_parameters": ("total parameters", "give total_parameters, or a model"),
    "device_kind": ("kind of device", "give device_kind"),
    "tokenizer": ("tokenizer", "give tokenizer"),
    "data": ("training data", "give data"),
    "validation": ("validation data", "give validation"),
}
"""Column of steps or runs -> what it is, and what would fill it."""


def _blank(asked: ImportFile, steps: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """What is left out, and what would fill it."""
    logged = steps.groupby(["cell", "seed"], sort=False)[[name for name in BLANK if name in steps]].count() == 0
    given = runs.set_index(["cell", "seed"])[[name for name in BLANK if name not in steps]].isna()
    found = [
        f"no {what} for {_runs(empty)}: {missing}"
        for empty, (what, missing) in ((logged.get(name, given.get(name)), said) for name, said in BLANK.items())
        if empty is not None and empty.any()
    ]
    unfinished = runs.set_index(["cell", "seed"])["status"] == "unfinished"
    if unfinished.any():
        found.append(f"no result of {_runs(unfinished)}: the log ends before the run's last step")
    if asked.cluster is None:
        found.append("no costs: give a cluster")
    return found


def _runs(chosen: pd.Series) -> str:
    """`dense-bf16, moe-bf16 (seeds 2, 3)`: cells, and their seeds where it is not all of them."""
    told = []
    for cell, own in chosen.groupby(level="cell", sort=False):
        seeds = [str(seed) for seed in own.index.get_level_values("seed")[own]]
        if seeds:
            told.append(str(cell) if own.all() else f"{cell} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})")
    return ", ".join(told)
