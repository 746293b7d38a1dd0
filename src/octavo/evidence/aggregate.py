"""Run folders -> `runs.parquet`, `steps.parquet`, `attempts.parquet`.

A few runs of a cell are read at a time, on every core, and written in row groups: memory does not grow with the number
of runs. Such groups make parts, which may be kept (`octavo.evidence.parts`): the next time only parts with a run that
is new or changed are made again, and `steps.parquet` is all parts one behind the other. Of a step that was written more
than once (a run that went on from a checkpoint) the last line counts; a last line that was cut off does not.

An attempt's device-hours are part of the **final** cost in proportion to its step time that the result rests on; what
its lost steps took, and all of a superseded run, is in the **all-in** cost alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.accounting.results import contradictions, layouts_by_attempts
from octavo.data.manifest import current_manifest
from octavo.divergence import diverged
from octavo.errors import OctavoError
from octavo.evidence.parts import Part, Parts, parts_of
from octavo.evidence.row_groups import join
from octavo.experiment.run import CellConfig, Experiment, RunIdentity
from octavo.files import atomic_path, fingerprint
from octavo.layout import ExperimentFolder, RunFolder
from octavo.metrics import FP8, read_metrics_table
from octavo.models.matched import matched_quantity
from octavo.records import (
    AttemptRecord,
    LayoutSince,
    Result,
    added,
    laid_out,
    lines_that_count,
    mean_final_loss,
    read_lines,
    read_record,
    table_schema,
    write_table,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ROW_GROUP = 1 << 18
"""Rows of `steps.parquet` that are in memory at a time."""
BATCH = 16
"""Runs of a cell whose steps are worked out together: what an array operation costs at least is paid once for all."""
PART = 64
"""Runs of a cell that are read again where one of them changed."""

_TRAINING = (
    "loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second", "model_tflops",
    "memory_bytes",
)  # fmt: skip
_VALIDATION = ("validation_loss", "validation_bits_per_byte")
_COLUMNS = ("tokens", *_TRAINING, *_VALIDATION, *FP8, "expert_load")
"""What is read of `metrics.jsonl`."""


@dataclass(frozen=True)
class _Cell:
    """A cell and its sizes, counted once for all of its runs."""

    config: CellConfig
    emulated: bool
    total_parameters: int
    active_parameters: int
    flops_per_token: float
    known: str
    """A hash of all of this."""

    @classmethod
    def of(cls, config: CellConfig, experiment: Experiment) -> _Cell:
        total, active, flops = (
            matched_quantity(config.model, by, config.training.sequence_length)
            for by in ("total_parameters", "active_parameters", "flops_per_token")
        )
        emulated = config.precision.emulated(on_gpu=experiment.device.kind == "gpu")
        numbers = emulated, int(total), int(active), flops
        return cls(config, *numbers, known=fingerprint([config.model_dump(mode="json"), numbers]))


@dataclass(frozen=True)
class _Run:
    """What one run folder says, but for its steps."""

    row: dict[str, Any]
    """Of `runs.parquet`, but for what its attempts cost."""
    kept: list[tuple[int, float]]
    """Attempt, and the share of its step time that the result rests on."""
    contradictions: list[str]
    """What its files say otherwise than its result."""

    @property
    def name(self) -> str:
        """`cell/seed-n`."""
        return f"{self.row['cell']}/seed-{self.row['seed']}"


def aggregate(
    experiment: Experiment,
    folder: ExperimentFolder,
    attempts: pd.DataFrame,
    ablation: str | None = None,
    into: ExperimentFolder | None = None,
    seeds: list[int] | None = None,
    *,
    keep: bool = False,
) -> ExperimentFolder:
    """Write the tables of an experiment, or of one ablation and its baselines; the folder that they are in.

    `attempts` are the experiment's ledger (`octavo.accounting.ledger.attempts_frame`); `into` is another folder;
    `seeds` of a first report are those of every cell, in place of all that are asked for. `keep`: parts that an earlier
    call kept in the folder are used, and those of now are kept.
    Raises OctavoError for a run that was trained under another configuration or on another data set than the others,
    or whose files are damaged or not those that its result was written with.
    """
    cells = experiment.ablation_cells(ablation) if ablation else list(experiment.cells.values())
    target = into or (folder.ablation(ablation) if ablation else folder)
    if ablation:  # otherwise cells and seeds that the experiment no longer has stay in the ledger: they were paid for
        attempts = attempts.loc[attempts["cell"].isin([cell.cell for cell in cells])]
    if seeds:
        attempts = attempts.loc[attempts["seed"].isin(seeds)]
    found, damaged = list[_Run](), {}
    data = current_manifest(experiment.file.data, experiment.file.tokenizer)
    asked = {cell.cell: seeds or experiment.seeds_of(cell.cell, folder) for cell in cells}
    with parts_of(folder.parts if keep else None, target.path) as parts:
        made: list[Path] = []
        for part in _read_all(folder, [_Cell.of(cell, experiment) for cell in cells], asked, parts):
            made.append(part.steps)
            for run in (_Run(**facts) for facts in part.facts):
                data = _same_data(run, data)
                found.append(run)
                damaged |= {run.name: run.contradictions} if run.contradictions else {}
        _refuse(damaged, folder)
        with atomic_path(target.steps_table) as temporary:
            join(made, temporary)
        parts.tidy(cells=set(asked), whole=not (ablation or seeds))
    write_table(target.attempts_table, attempts, "attempts")
    write_table(target.runs_table, _with_costs(found, attempts), "runs")  # last: where it is, the others are
    return target


def _read_all(
    folder: ExperimentFolder, cells: list[_Cell], seeds: dict[str, list[int]], parts: Parts
) -> Iterator[Part]:
    """Runs and their steps in the experiment's order, read ahead by a few parts; `seeds` are those of each cell."""

    def part(cell: _Cell, of_seeds: list[int]) -> Part:
        runs = [folder.run(cell.config.cell, seed) for seed in of_seeds]
        return parts.part(
            cell.config.cell, [cell.known, of_seeds], runs, lambda path: _make_part(folder, cell, of_seeds, path)
        )

    asked = (
        (cell, seeds[cell.config.cell][start : start + PART])
        for cell in cells
        for start in range(0, max(1, len(seeds[cell.config.cell])), PART)  # a cell without seeds has a part, too
    )
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(part, *one) for one in islice(asked, 2 * workers))
        try:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(part, *one) for one in islice(asked, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _make_part(folder: ExperimentFolder, cell: _Cell, seeds: list[int], into: Path) -> tuple[Any, bool]:
    """Write the steps of a part's runs; what else they say, and whether none contradicts itself."""
    found: list[_Run] = []
    with _StepsWriter(into) as steps:
        for start in range(0, len(seeds), BATCH):
            runs, table = _read_runs(folder, cell, seeds[start : start + BATCH])
            steps.add(table)
            found += runs
    return [asdict(run) for run in found], not any(run.contradictions for run in found)


def _read_runs(folder: ExperimentFolder, cell: _Cell, seeds: list[int]) -> tuple[list[_Run], pa.Table]:
    """A few runs of a cell, and their steps one run after the other."""
    runs = [folder.run(cell.config.cell, seed) for seed in seeds]
    own = [cell.config.identity(seed) for seed in seeds]
    results = [_read_result(run, cell.config, identity) for run, identity in zip(runs, own, strict=True)]
    layouts = [_layouts(run, result) for run, result in zip(runs, results, strict=True)]
    steps, starts, kept = _steps([read_metrics_table(run.metrics, _COLUMNS) for run in runs], cell, seeds, layouts)
    tokens, seconds = (np.split(steps[name].fill_null(0).to_numpy(), starts) for name in ("tokens", "step_seconds"))
    hours = np.split(steps["device_hours"].to_numpy(), starts)
    step, loss = (np.split(steps[name].to_numpy(), starts) for name in ("step", "loss"))
    found = [
        _Run(
            _run_row(
                cell, seed, own[i].run_fingerprint, results[i], len(tokens[i]), int(tokens[i][-1:].sum()),
                float(seconds[i].sum()), float(hours[i][-1:].sum()), layouts[i], diverged(step[i], loss[i]),
            ),
            kept[i],
            _contradictions(runs[i], results[i], cell, own[i], step[i], loss[i], seconds[i]),
        )
        for i, seed in enumerate(seeds)
    ]  # fmt: skip
    return found, steps


def _layouts(folder: RunFolder, result: Result | None) -> list[LayoutSince]:
    """The layouts of a run's steps: by its result or, where it has none, by its attempts."""
    return result.layouts if result else layouts_by_attempts(read_lines(folder.attempts, AttemptRecord))


def _read_result(folder: RunFolder, cell: CellConfig, identity: RunIdentity) -> Result | None:
    if not folder.result.exists():
        return None
    again = f"snakemake results/{cell.experiment}/report.pdf"
    result = read_record(folder.result, Result, made_by=again)
    if not identity.holds(result):
        raise OctavoError(
            "the run was trained under another configuration than the experiment has now",
            where=folder.result,
            expected=f"run fingerprint {identity.run_fingerprint[:12]}, found {result.run_fingerprint[:12]}",
            fix=f"train it again: {again}; or change the configuration back",
        )
    return result


def _contradictions(
    folder: RunFolder,
    result: Result | None,
    cell: _Cell,
    identity: RunIdentity,
    step: np.ndarray,
    loss: np.ndarray,
    seconds: np.ndarray,
) -> list[str]:
    """What is wrong with a result: its files are others, or it does not say what its configuration and steps say."""
    if result is None:
        return []
    sizes = ("total_parameters", "active_parameters", "flops_per_token", "emulated")
    as_configured = result.run_fingerprint == identity.run_fingerprint
    last = result.layouts[-1].devices if result.layouts else None
    devices = cell.config.parallelism.world_size if as_configured else last
    configured = {**{name: getattr(cell, name) for name in sizes}, "device_count": devices}
    complete = result.status == "completed"
    logged = {
        "training_loss": mean_final_loss(step, loss, cell.config.training.total_steps) if complete else None,
        "training_seconds": added(seconds),
    }
    return contradictions(folder, result) + [
        f"result.json does not follow from {source}: {name} is {found!r} instead of {value!r}"
        for source, expected in (("metrics.jsonl", logged), ("the configuration", configured))
        for name, value in expected.items()
        if (found := getattr(result, name)) != value
    ]


def _refuse(damaged: dict[str, list[str]], folder: ExperimentFolder) -> None:
    """No table is made of a run whose files are not those of its result."""
    if not damaged:
        return
    runs = "; ".join(f"{run}: {', '.join(found)}" for run, found in damaged.items())
    raise OctavoError(
        f"{len(damaged)} run{'s' if len(damaged) > 1 else ''} cannot be trusted: {runs}",
        where=folder.runs,
        expected="files with the hashes that each run's result.json holds",
        fix=f"put the files back as they were, or move the folder of each such run away and train it again: "
        f"snakemake {folder.report_pdf}",
    )


def _same_data(run: _Run, data: str | None) -> str | None:
    """The manifest of the data set that all runs must share: the one there is, or the first run's."""
    found = run.row["data_manifest_sha256"]
    if None not in (found, data) and found != data:
        experiment = run.row["experiment"]
        raise OctavoError(
            f"{run.name} was trained on another data set: its text or tokenizer was changed",
            where=f"results/{experiment}/runs/{run.name}/result.json data_manifest_sha256",
            expected=f"manifest {str(data)[:12]}, found {str(found)[:12]}",
            fix=f"train it again: snakemake results/{experiment}/report.pdf; or prepare the earlier text again",
        )
    return data or found


# --- steps ---------------------------------------------------------------------------------------------------------


def _steps(
    metrics: list[pa.Table], cell: _Cell, seeds: list[int], layouts: list[list[LayoutSince]]
) -> tuple[pa.Table, np.ndarray, list[list[tuple[int, float]]]]:
    """One row per step of each run, where the second and later runs start, and the shares of each run's attempts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fields: Any = getattr(pc, "struct_field")  # noqa: B009  # pyarrow makes its functions at run time
    schema = table_schema("steps")
    lines = pa.concat_tables(metrics).combine_chunks()
    run = np.repeat(np.arange(len(metrics)), [table.num_rows for table in metrics])
    # numbered on from run to run: what is worked out of one run's steps and attempts holds of several runs' as well
    step, steps = _numbered_on(lines["step"].to_numpy(), run)
    attempt, attempts = _numbered_on(lines["attempt"].to_numpy(), run)
    validation = lines["validation_loss"].is_valid().to_numpy()
    trained = lines["step_seconds"].is_valid().to_numpy()
    counts = lines_that_count(step, attempt, trained)
    shares = _shares(attempt, lines["step_seconds"].fill_null(0.0).to_numpy(), counts & trained)
    kept: list[list[tuple[int, float]]] = [[] for _ in seeds]
    for number, share in shares.items():
        kept[number // attempts].append((number % attempts, share))

    rows = np.unique(step[counts])
    starts = np.searchsorted(rows, np.arange(1, len(seeds)) * steps)
    training = lines.take(pa.array(_place(rows, step, counts & trained)))
    validated = pa.array(_place(rows, step, counts & validation))
    tokens = lines["tokens"].take(pa.array(_place(rows, step, counts)))
    seconds = np.split(training["step_seconds"].fill_null(0.0).to_numpy(), starts)
    devices = [
        _devices(of_run % steps, run, cell.config.parallelism.world_size)
        for of_run, run in zip(np.split(rows, starts), layouts, strict=True)
    ]
    columns: dict[str, Any] = {
        "experiment": pa.repeat(cell.config.experiment, len(rows)),
        "cell": pa.repeat(cell.config.cell, len(rows)),
        "seed": pa.array(np.asarray(seeds)[rows // steps]),
        "step": pa.array(rows % steps),
        "tokens": tokens,
        "model_flops": pa.array(tokens.to_numpy() * cell.flops_per_token),
        "devices": np.concatenate(devices),
        "device_hours": np.concatenate([np.cumsum(a * b) for a, b in zip(seconds, devices, strict=True)]) / 3600,
        **{name: training[name] for name in (*_TRAINING, "expert_load")},
        **{name: lines[name].take(validated) for name in _VALIDATION},
        **{f"{name}_{part}": fields(training[name], part) for name, parts in FP8.items() for part in parts},
    }
    return pa.table([columns[name] for name in schema.names], schema=schema), starts, kept


def _devices(step: np.ndarray, layouts: list[LayoutSince], configured: int) -> np.ndarray:
    """The devices that each step of a run was trained on."""
    if not layouts:
        return np.full(len(step), configured)
    since = np.searchsorted([one.after_step for one in layouts], step, side="left") - 1
    return np.array([one.devices for one in layouts])[np.maximum(since, 0)]


def _numbered_on(number: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, int]:
    """Make a number (from 0) unique over runs: number + run x stride; the result and the stride.

    One array operation then works on several runs at once, as on one whose numbers go on.
    """
    apart = int(number.max(initial=0)) + 1
    return number + run * apart, apart


def _place(rows: np.ndarray, step: np.ndarray, chosen: np.ndarray) -> np.ma.MaskedArray | np.ndarray:
    """For each step of `rows`, the index of its last chosen line; masked where it has none."""
    lines = np.flatnonzero(chosen)
    at = np.searchsorted(step[lines], rows, side="right") - 1
    if not len(lines):
        return np.ma.MaskedArray(np.zeros(len(rows), dtype=np.int64), mask=True)
    found = (at >= 0) & (step[lines[at]] == rows)
    return lines[at] if found.all() else np.ma.MaskedArray(lines[at], mask=~found)


def _shares(attempt: np.ndarray, seconds: np.ndarray, kept: np.ndarray) -> dict[int, float]:
    spent = np.bincount(attempt, weights=seconds)
    resting = np.bincount(attempt, weights=seconds * kept)
    return {int(number): float(resting[number] / spent[number]) for number in np.flatnonzero(spent)}


# --- tables ---------------------------------------------------------------------------------------------------------


class _StepsWriter:
    """Collects the steps of runs and writes them into a file in row groups."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            path, table_schema("steps"), compression="zstd", compression_level=1, write_page_checksum=True
        )
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> _StepsWriter:
        return self

    def add(self, steps: pa.Table) -> None:
        """Take the steps of some runs."""
        self._waiting.append(steps)
        self._rows += steps.num_rows
        if self._rows >= ROW_GROUP:
            self._flush()

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=ROW_GROUP)
        self._waiting, self._rows = [], 0


def _with_costs(runs: list[_Run], attempts: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs with hours, energy and money of their attempts, added up in the ledger's order.

    A sum that an unknown amount (NaN) belongs to is not known either. Attempts at other runs are left out.
    """
    import pandas as pd

    count = len(runs)
    number = {(run.row["cell"], run.row["seed"]): index for index, run in enumerate(runs)}
    shares = {(index, attempt): share for index, run in enumerate(runs) for attempt, share in run.kept}
    of = [number.get(run, count) for run in zip(attempts["cell"], attempts["seed"], strict=True)]
    share = np.array([shares.get(one, 0.0) for one in zip(of, attempts["attempt"], strict=True)])
    share[attempts["superseded"].to_numpy(dtype=bool)] = 0.0
    place = np.array(of, np.intp)
    made = np.bincount(place, minlength=count + 1)[:count]

    def added_up(column: str, weights: np.ndarray | float = 1.0) -> np.ndarray:
        amounts = attempts[column].to_numpy(dtype=float, na_value=np.nan) * weights
        return np.where(made, np.bincount(place, amounts, count + 1)[:count], np.nan)

    first = dict(zip(reversed(of), reversed(attempts["currency"].tolist()), strict=True))
    return pd.DataFrame([run.row for run in runs]).assign(
        attempts=made,
        device_hours_final=added_up("device_hours", share),
        device_hours_all_in=added_up("device_hours"),
        energy_kwh_all_in=added_up("energy_kwh"),
        cost_final=added_up("cost", share),
        cost_all_in=added_up("cost"),
        currency=[first.get(index) for index in range(count)],
    )


def _run_row(
    of: _Cell, seed: int, run_fingerprint: str, result: Result | None, steps: int, tokens: int, seconds: float,
    device_hours: float, layouts: list[LayoutSince], has_diverged: bool,
) -> dict[str, Any]:  # fmt: skip
    """A run's row but for what its attempts cost; numbers of a run without a result are those of its steps so far.

    `has_diverged`: whether its losses end without a sane one, whatever its result says. `layouts`: those that its steps
    were trained under; empty where they were not recorded: the cell's.
    """
    cell = of.config
    experts = cell.model.experts
    counted = result or of
    sane = result if result and not has_diverged else None
    return {
        "experiment": cell.experiment,
        "cell": cell.cell,
        "seed": seed,
        "architecture": cell.architecture,
        "precision": cell.precision.recipe,
        "ablation": cell.ablation,
        "experts": experts.count if experts else 0,
        "experts_per_token": experts.top_k if experts else None,
        "expert_size": experts.size if experts else None,
        "shared_expert_size": experts.shared_size if experts else None,
        "accumulation": cell.precision.accumulation,
        "status": "unfinished" if result is None else "diverged" if has_diverged else result.status,
        "steps": result.steps if result else steps,
        "tokens": result.tokens if result else tokens,
        "total_parameters": counted.total_parameters,
        "active_parameters": counted.active_parameters,
        "flops_per_token": counted.flops_per_token,
        "training_loss": sane.training_loss if sane else None,
        "validation_loss": sane.validation_loss if sane else None,
        "validation_step": sane.steps if sane and sane.validation_loss is not None else None,
        "validation_bits_per_byte": sane.validation_bits_per_byte if sane else None,
        "training_seconds": result.training_seconds if result else seconds,
        "training_device_hours": device_hours,
        "device_kind": result.device_kind if result else None,
        "device_count": result.device_count if result else cell.parallelism.world_size,
        "layouts": laid_out(layouts) if layouts else cell.layout,
        "emulated": counted.emulated,
        "run_fingerprint": run_fingerprint,
        "data_manifest_sha256": result.data_manifest_sha256 if result else None,
        **(_losses_of(cell, result) if result else {}),
        "parameters_sha256": result.parameters_sha256 if result else None,
    }


def _losses_of(cell: CellConfig, result: Result) -> dict[str, str]:
    """What a run's losses are losses of: the prepared text with its tokenizer, and the sequences validated on."""
    data, training = result.data_manifest_sha256, cell.training
    held_out = f"{training.evaluation.final_sequences} sequences of {training.sequence_length} tokens"
    return {"tokenizer": data, "data": data, "validation": f"{held_out} of {data}"}
