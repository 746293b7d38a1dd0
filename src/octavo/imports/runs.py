"""`octavo import`: runs that other programs trained -> the tables that verdicts and reports are made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.accounting.money import cost
from octavo.configuration import place, read_section
from octavo.divergence import diverged, sane, validation_lost
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.files import read_json, sha256, write_json
from octavo.imports.file import ImportedCell, ImportFile, LossesOf
from octavo.imports.points import MEASURED
from octavo.imports.read import Log, read_log
from octavo.imports.times import check_rates
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import SCHEMA_VERSION, Record, check_version, write_table

if TYPE_CHECKING:
    import pandas as pd


class ImportedRun(Record):
    """What was read of one run: to be looked at, so that a wrong reading is seen."""

    cell: str
    seed: int
    status: str
    lines: int
    """Steps that a line was written of."""
    first_step: int
    last_step: int
    timed_steps: int | None
    """Steps that there are times for; null: none."""
    seconds: float | None
    """Of those steps."""
    validation_step: int | None
    """The step of the last validation."""
    skipped_steps: int
    """Steps whose update was skipped."""
    blank: list[str]
    """Columns that the run has nothing for."""
    notes: list[str]
    """What was dropped, and why."""


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
    runs: list[ImportedRun] = []
    """What was read, run by run."""


def read_imported(folder: ExperimentFolder) -> Imported | None:
    """Where an experiment folder was imported from; None where its runs are Octavo's own."""
    if not folder.imported.exists():
        return None
    value = read_json(folder.imported, made_by="octavo import")
    check_version(value, folder.imported, made_by="octavo import")
    return Imported.model_validate(value)


def import_runs(
    path: Path, folder: ExperimentFolder, configs: ConfigFolders, *, allow_outside: bool = False
) -> Imported:
    """Read the logs that a file names and write runs.parquet, steps.parquet, attempts.parquet and imported.json.

    Logs lie in the file's folder or below it, unless `allow_outside`. Raises OctavoError where one does not, where the
    folder belongs to an experiment of Octavo's own, where two runs have the same log, or where a log cannot be read.
    """
    import pandas as pd

    asked = read_section(path, ImportFile)
    _check_folder(folder, configs)
    _check_cells(asked, path)
    price = _price(asked, path, configs)
    found = [
        Source(path, asked, index, seed, allow_outside) for index, cell in enumerate(asked.cells) for seed in cell.runs
    ]
    files = _hashes(found, path)
    read = [_read(run, folder.name, price) for run in found]
    steps = pd.concat([one for one, _, _ in read], ignore_index=True)
    runs = pd.DataFrame([row for _, row, _ in read])
    record = Imported(
        description=asked.description, format=asked.format, cluster=asked.cluster,
        currency=price[0].currency if price else None, files=files,
        blank=[*_blank(asked, steps, runs), *_notes(read)], runs=[seen for _, _, seen in read],
    )  # fmt: skip
    write_table(folder.steps_table, steps, "steps")
    write_table(folder.attempts_table, pd.DataFrame({"experiment": []}), "attempts")
    write_table(folder.runs_table, runs, "runs")
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


def _check_cells(asked: ImportFile, path: Path) -> None:
    names = [cell.name for cell in asked.cells]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise OctavoError(f"the cell {name} is there twice", where=place(path, ("cells", index)))
        if (base := name.partition("+")[0]) not in names:
            raise OctavoError(
                f"the ablation {name} has no baseline", where=place(path, ("cells", index)), expected=f"a cell {base}"
            )


def _price(asked: ImportFile, path: Path, configs: ConfigFolders) -> tuple[Cluster, Device] | None:
    if asked.cluster is None:
        return None
    from octavo.experiment.load import load_cluster

    if len(kinds := sorted({cell.device_kind for cell in asked.cells} - {None}, key=str)) > 1:
        raise OctavoError(
            f"one price for {' and '.join(map(str, kinds))}",
            where=place(path, ("cluster",)),
            expected="cells that ran on one kind of device where a cluster prices them",
            fix="leave the cluster out, or import the cells of each kind on their own",
        )
    return load_cluster(asked.cluster, configs)


@dataclass(frozen=True)
class Source:
    """One seed of one cell of an import file."""

    path: Path
    asked: ImportFile
    index: int
    seed: int
    allow_outside: bool

    @property
    def cell(self) -> ImportedCell:
        """The cell that it is a run of."""
        return self.asked.cells[self.index]

    @property
    def name(self) -> str:
        """`moe-bf16 (seed 2)`."""
        return f"{self.cell.name} (seed {self.seed})"

    @property
    def where(self) -> str:
        """The key that names its logs."""
        return place(self.path, ("cells", self.index, "runs", str(self.seed)))

    @property
    def logs(self) -> list[Path]:
        """Its logs. Raises OctavoError for one outside the import file's folder."""
        named = self.cell.runs[self.seed]
        paths = [self.path.parent / log for log in ([named] if isinstance(named, str) else named)]
        for log in paths:
            try:
                inside = (log, *log.rglob("*")) if log.is_dir() else (log,)
            except OSError as error:  # a name that no file can have
                raise OctavoError(
                    f"the log {str(log)[:200]!r} cannot be opened: {error.strerror}", where=self.where,
                    expected="a file beside the import file or below it",
                )  from None  # fmt: skip
            home = self.path.parent.resolve()
            if not self.allow_outside and (outer := next((x for x in inside if not _below(x, home)), None)):
                raise OctavoError(
                    f"the log {str(outer)[:200]!r} lies outside the import file's folder", where=self.where,
                    expected=f"a file in {home} or below it",
                    fix="copy it there, or say --allow-outside if the import file is yours",
                )  # fmt: skip
        return paths


def _below(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, links followed."""
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):  # a name that is none, links in a circle
        return False


def _hashes(runs: list[Source], path: Path) -> dict[str, str]:
    """The SHA-256 of all logs. Raises OctavoError where two runs have the same one, or a run has one twice."""
    files: dict[str, str] = {}
    owner: dict[str, Source] = {}
    for run in runs:
        for log in run.logs:
            for file in sorted(one for one in log.rglob("*") if one.is_file()) if log.is_dir() else [log]:
                if not file.is_file():
                    continue  # what is wrong with it, the reader says
                digest = sha256(file)
                if digest in owner:
                    raise OctavoError(
                        f"the log {file.name!r} of {run.name} is the same file as one of {owner[digest].name}",
                        where=run.where, expected="a log of its own for each run", fix="name the log of this run",
                    )  # fmt: skip
                owner[digest] = run
                files[os.path.relpath(file, path.parent)] = digest
    return files


def _read(
    run: Source, experiment: str, price: tuple[Cluster, Device] | None
) -> tuple[pd.DataFrame, dict[str, Any], ImportedRun]:
    """Rows of steps.parquet, the row of runs.parquet, and what there is to be seen of them."""
    import pandas as pd

    cell, asked = run.cell, run.asked
    log = read_log(run.logs, asked.format, asked.columns, cell.validation_set or asked.validation_set)
    length = _agreed(run, "sequence_length", cell.sequence_length, log.stated.sequence_length)
    _agreed(run, "seed", run.seed, log.stated.seed)
    sizes = _sizes(cell)
    steps = _steps(run, experiment, log, length, sizes)
    row = _row(run, experiment, log, steps, sizes, price)
    empty = {name for name in BLANK if (steps[name].isna().all() if name in steps else pd.isna(row[name]))}
    seen = ImportedRun(
        cell=cell.name, seed=run.seed, status=row["status"], lines=len(steps), first_step=int(steps["step"].iloc[0]),
        last_step=row["steps"], timed_steps=row["timed_steps"], seconds=row["training_seconds"],
        validation_step=row["validation_step"], skipped_steps=log.skipped,
        blank=[name for name in BLANK if name in empty], notes=list(log.notes),
    )  # fmt: skip
    return steps, row, seen


def _agreed(run: Source, key: str, given: int | None, logged: int | None) -> int | None:
    """What the import file and the log say of one thing. Raises OctavoError where they say two."""
    if given is not None and logged is not None and given != logged:
        raise OctavoError(
            f"{key} is {given} in the import file and {logged} in the log of {run.name}", where=run.where,
            fix=f"name the log of this run, or correct {key}",
        )  # fmt: skip
    return logged if given is None else given


def _losses_of(run: Source, log: Log) -> dict[str, str | None]:
    """`tokenizer`, `data`, `validation`: what the cell says, or the file, or the benchmark whose rules fixed them."""
    fixed = f"mlperf/{log.stated.benchmark}"[:200] if log.stated.benchmark and log.stated.closed else None
    return {name: getattr(run.cell, name) or getattr(run.asked, name) or fixed for name in LossesOf.model_fields}


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


def _steps(run: Source, experiment: str, log: Log, length: int | None, sizes: dict[str, Any]) -> pd.DataFrame:
    """Rows of steps.parquet; `_seconds` are those of all steps that a row's time stands for, `_timed` how many."""
    cell = run.cell
    columns = ["step", *MEASURED, "validation_loss", "stands_for"]
    frame = log.steps.reindex(columns=columns).astype({"step": int})
    frame = frame.assign(**{name: sane(frame[name].to_numpy()) for name in ("loss", "validation_loss")})
    tokens = _tokens(cell, frame, length)
    by_rate = _seconds_by_rate(cell, frame, tokens)
    if frame["step_seconds"].notna().any():
        check_rates(frame["step_seconds"].to_numpy(), by_rate.to_numpy(), run.where)
    else:
        frame["step_seconds"] = by_rate
    timed = frame["stands_for"].where(frame["step_seconds"].notna())
    seconds = frame["step_seconds"] * timed
    known = seconds.notna().any() and cell.devices is not None
    return frame.drop(columns=["samples", "tokens_per_second_per_device", "stands_for"]).assign(
        experiment=experiment,
        cell=cell.name,
        seed=run.seed,
        tokens=tokens.round().astype("Int64"),
        model_flops=tokens * sizes["flops_per_token"] if sizes["flops_per_token"] else np.nan,
        devices=cell.devices,
        device_hours=seconds.fillna(0).cumsum() * (cell.devices or 0) / 3600 if known else np.nan,
        memory_bytes=frame["memory_bytes"].round().astype("Int64"),
        _seconds=seconds,
        _timed=timed,
    )


def _tokens(cell: ImportedCell, log: pd.DataFrame, length: int | None) -> pd.Series:
    """Tokens so far: as logged, or samples x sequence length, or steps x tokens per step, or not known.

    Between two lines that say it, a line that does not (a validation) has what the one before it says.
    """
    if log["tokens"].notna().any():
        return log["tokens"].ffill()
    if log["samples"].notna().any() and length:
        return (log["samples"] * length).ffill()
    if cell.tokens_per_step:
        return log["step"].astype(float) * cell.tokens_per_step
    return log["step"] * np.nan


def _seconds_by_rate(cell: ImportedCell, log: pd.DataFrame, tokens: pd.Series) -> pd.Series:
    """The time of a step by tokens per second and device: tokens of a step / (rate x devices); NaN where not known."""
    rate = log["tokens_per_second_per_device"]
    per_step: Any = cell.tokens_per_step
    if not per_step:
        at = tokens[rate.notna()]
        per_step = at.diff() / log["step"][at.index].diff()
        per_step.iloc[:1] = at.iloc[:1] / log["step"][at.index].iloc[:1]
    return per_step / (rate * (cell.devices or np.nan))


def _row(
    run: Source,
    experiment: str,
    log: Log,
    steps: pd.DataFrame,
    sizes: dict[str, Any],
    price: tuple[Cluster, Device] | None,
) -> dict[str, Any]:
    """A row of runs.parquet."""
    cell = run.cell
    trained = steps[log.steps["trained"].to_numpy()]
    last = int(trained["step"].iloc[-1])
    final = trained.loc[trained["step"] > 0.9 * last, "loss"].dropna()
    validation = steps.dropna(subset="validation_loss")
    validated = steps[log.steps["validated"].to_numpy()]
    lost = diverged(trained["step"].to_numpy(), trained["loss"].to_numpy()) or validation_lost(
        validated["step"].to_numpy(), validated["validation_loss"].to_numpy()
    )
    timed = steps["_timed"].sum(min_count=1)
    hours = float(steps["device_hours"].iloc[-1])
    tokens = steps["tokens"].dropna()
    charged = cost(*price, hours) if price and np.isfinite(hours) else None
    loss = float(validation["validation_loss"].iloc[-1]) if len(validation) and not lost else None
    return {
        "experiment": experiment,
        "cell": cell.name,
        "seed": run.seed,
        "architecture": cell.architecture,
        "precision": cell.precision,
        "ablation": cell.ablation,
        **sizes,
        "accumulation": cell.accumulation,
        "status": "diverged" if lost else "completed" if log.finished else "unfinished",
        "steps": last,
        "tokens": int(tokens.iloc[-1]) if len(tokens) else None,
        "training_loss": float(final.mean()) if len(final) and not lost else None,
        "validation_loss": loss,
        "validation_step": None if loss is None else int(validation["step"].iloc[-1]),
        "validation_bits_per_byte": loss / (np.log(2) * cell.bytes_per_token)
        if loss and cell.bytes_per_token
        else None,
        "training_seconds": float(steps["_seconds"].sum()) if np.isfinite(timed) else None,
        "timed_steps": int(timed) if np.isfinite(timed) else None,
        "training_device_hours": hours if np.isfinite(hours) else None,
        "device_kind": cell.device_kind,
        "device_count": cell.devices,
        "emulated": cell.emulated,
        "attempts": 0,
        "device_hours_final": hours if np.isfinite(hours) else None,
        "cost_final": charged,
        "currency": price[0].currency if price and charged is not None else None,
        **_losses_of(run, log),
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


def _notes(read: list[tuple[pd.DataFrame, dict[str, Any], ImportedRun]]) -> Iterator[str]:
    """What was dropped of each run."""
    for _, _, seen in read:
        yield from (f"{seen.cell} (seed {seen.seed}): {note}" for note in seen.notes)


def _blank(asked: ImportFile, steps: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """What is left out, and what would fill it."""
    logged = steps.groupby(["cell", "seed"], sort=False)[[name for name in BLANK if name in steps]].count() == 0
    given = runs.set_index(["cell", "seed"])[[name for name in BLANK if name not in steps]].isna()
    found = [
        f"no {what} for {_named(empty)}: {missing}"
        for empty, (what, missing) in ((logged.get(name, given.get(name)), said) for name, said in BLANK.items())
        if empty is not None and empty.any()
    ]
    by_run = runs.set_index(["cell", "seed"])
    unfinished = by_run["status"] == "unfinished"
    if unfinished.any():
        found.append(f"no result of {_named(unfinished)}: the log ends before the run's last step")
    partly = by_run["timed_steps"].notna() & (by_run["timed_steps"] < by_run["steps"])
    if partly.any():
        found.append(
            f"no times of all steps for {_named(partly)}: hours are those of the logged steps, and comparisons at "
            "equal hours or money leave these runs out"
        )
    if asked.cluster is None:
        found.append("no costs: give a cluster")
    return found


def _named(chosen: pd.Series) -> str:
    """`dense-bf16, moe-bf16 (seeds 2, 3)`: cells, and their seeds where it is not all of them."""
    told = []
    for cell, own in chosen.groupby(level="cell", sort=False):
        seeds = [str(seed) for seed in own.index.get_level_values("seed")[own]]
        if seeds:
            told.append(str(cell) if own.all() else f"{cell} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})")
    return ", ".join(told)
