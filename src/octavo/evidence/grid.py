"""The tables of an experiment as cells, pairs of cells and loss curves: what comparisons and claims are made from.

A pair is a cell and what it is held against: a mixture of experts against a dense model in the same precision, FP8
against BF16 in the same architecture, an ablation against its baseline. Seeds are paired: only those count for which
both have a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from octavo.evidence.curves import FEWEST, Curve, averaged, smooth
from octavo.evidence.names import cell_label
from octavo.layout import ExperimentFolder
from octavo.records import read_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from octavo.experiment.run import Experiment

Kind = Literal["architecture", "precision", "ablation"]
Resource = Literal["tokens", "model_flops", "device_hours", "cost"]

TOLERANCE = 0.05
"""Cells agree in a size if they are no further apart than this; how far they are is always given."""


@dataclass(frozen=True)
class Cell:
    """A cell of the grid or of an ablation, with its runs."""

    name: str
    architecture: str
    precision: str
    ablation: str | None
    experts: int | None
    expert_size: int | None
    shared_expert_size: int | None
    accumulation: str
    emulated: bool
    total_parameters: int | None
    active_parameters: int | None
    runs: pd.DataFrame
    """The completed runs, by seed."""
    diverged: frozenset[int]
    """Seeds whose run diverged."""

    @property
    def mixture(self) -> bool:
        """Whether it is a mixture of experts; by its name where an import does not say how many experts it has."""
        return self.experts > 0 if self.experts is not None else self.architecture.startswith("moe")

    @property
    def baseline(self) -> str:
        """The name of the cell that an ablation changes."""
        return self.name.partition("+")[0]

    @property
    def label(self) -> str:
        """`MoE FP8 blockwise (emulated), no shared expert`."""
        return cell_label(self.architecture, self.precision, self.ablation, emulated=self.emulated)


@dataclass(frozen=True)
class Pair:
    """Two cells that differ in one thing."""

    kind: Kind
    cell: Cell
    against: Cell

    @property
    def seeds(self) -> list[int]:
        """Seeds for which both have a result."""
        return sorted(set(self.cell.runs.index) & set(self.against.runs.index))

    @property
    def diverged(self) -> list[int]:
        """Seeds for which one of the two diverged and the other did not stay unfinished."""
        both = (set(one.runs.index) | one.diverged for one in (self.cell, self.against))
        return sorted(set.intersection(*both) & (self.cell.diverged | self.against.diverged))

    @property
    def emulated(self) -> bool:
        """Whether times of the pair are those of an emulation."""
        return self.cell.emulated or self.against.emulated

    @property
    def run_names(self) -> list[str]:
        """`cell/seed-n` of the runs that count."""
        return [f"{one.name}/seed-{seed}" for one in (self.cell, self.against) for seed in self.seeds]

    def mismatch(self, size: Literal["active_parameters", "total_parameters"]) -> float | None:
        """How far apart the two are in a size, relative to the smaller; None where it is not known."""
        sizes = sorted(getattr(one, size) or 0 for one in (self.cell, self.against))
        return sizes[1] / sizes[0] - 1 if sizes[0] else None

    def agrees(self, size: Literal["active_parameters", "total_parameters"]) -> bool:
        """Whether they are equal in a size, within TOLERANCE."""
        mismatch = self.mismatch(size)
        return mismatch is not None and mismatch <= TOLERANCE


class Grid:
    """The tables of an experiment, or of one ablation and its baselines."""

    def __init__(self, tables: ExperimentFolder, whole: ExperimentFolder, experiment: Experiment | None) -> None:
        """`tables` is the folder with the tables, `whole` the experiment's (the same, but for an ablation);
        `experiment` is None for imported runs."""
        again = f"octavo aggregate {whole.path}" if experiment else f"octavo import {whole.path} FILE"
        self.tables, self.whole, self.experiment = tables, whole, experiment
        self.runs = _whole_times(read_table(tables.runs_table, "runs", made_by=again))
        self.attempts = read_table(tables.attempts_table, "attempts", made_by=again)
        self.cells = {cell.name: cell for cell in _cells(self.runs)}
        self.paired: dict[tuple[str, str, Resource], Any] = {}
        """What `octavo.evidence.comparisons.paired` found: axes and claims ask for the same pairs."""
        self.from_training: set[str] = set()
        """Cells with too few validations for a curve: theirs go through averaged training losses."""

    @property
    def currency(self) -> str | None:
        """Of all costs."""
        known = self.runs["currency"].dropna()
        return str(known.iloc[0]) if len(known) else None

    @property
    def device(self) -> str | None:
        """What the runs ran on: `cpu` or the GPU's name; None where an import does not say."""
        known = self.runs["device_kind"].dropna().unique()
        return ", ".join(sorted(known)) if len(known) else None

    def pairs(self, kind: Kind) -> list[Pair]:
        """All pairs of a kind, in the order of the table."""
        grid = [cell for cell in self.cells.values() if cell.ablation is None]
        if kind == "ablation":
            ablated = [cell for cell in self.cells.values() if cell.ablation]
            return [Pair(kind, one, self.cells[one.baseline]) for one in ablated if one.baseline in self.cells]
        if kind == "architecture":
            return [
                Pair(kind, one, other)
                for one in grid
                for other in grid
                if one.mixture and not other.mixture and one.precision == other.precision
            ]
        return [
            Pair(kind, one, other)
            for one in grid
            for other in grid
            if one.architecture == other.architecture and one.precision != "bf16" and other.precision == "bf16"
        ]

    def curve(self, cell: str, seed: int, resource: Resource) -> Curve | None:
        """A run's smoothed loss over a resource; None where it is not known or has too few points."""
        key = (cell, seed, resource)
        if key not in self._curves:
            self._curves[key] = self._smooth(*key)
        return self._curves[key]

    @cached_property
    def _curves(self) -> dict[tuple[str, int, Resource], Curve | None]:
        return {}

    def _smooth(self, cell: str, seed: int, resource: Resource) -> Curve | None:
        points = self._points.get((cell, seed))
        if points is None:
            return None
        spent = points["device_hours" if resource == "cost" else resource]
        if resource == "cost":
            run = self.cells[cell].runs.loc[seed]
            hours = run["training_seconds"] * run["device_count"] / 3600
            spent = spent * (run["cost_final"] / hours if hours else np.nan)
        return smooth(spent, points["loss"])

    @cached_property
    def _points(self) -> dict[tuple[str, int], dict[str, np.ndarray]]:
        """By run, the measured losses and what was spent when they were measured."""
        found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        columns = ["tokens", "model_flops", "device_hours", "loss", "validation_loss"]
        for (cell, seed), table in steps_by_run(self.tables, columns):
            if cell not in self.cells or seed not in self.cells[cell].runs.index:
                continue
            steps = {name: floats(table, name) for name in columns}
            spent = {name: steps[name] for name in ("tokens", "model_flops", "device_hours")}
            if not np.isfinite(self.cells[cell].runs.loc[seed, "training_seconds"]):
                spent["device_hours"] = np.full_like(spent["device_hours"], np.nan)
            keep = np.isfinite(steps["validation_loss"])
            if keep.sum() >= FEWEST:
                found[cell, seed] = {name: v[keep] for name, v in spent.items()}
                found[cell, seed]["loss"] = steps["validation_loss"][keep]
            else:
                self.from_training.add(cell)
                means = {name: averaged(values, steps["loss"]) for name, values in spent.items()}
                found[cell, seed] = {name: mean[0] for name, mean in means.items()}
                found[cell, seed]["loss"] = means["tokens"][1]
        return found


def _whole_times(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs, without the times of those whose logs time a part of their steps: hours so far are not known of them."""
    part = runs["timed_steps"].notna() & (runs["timed_steps"] < runs["steps"])
    times = ["training_seconds", "device_hours_final", "cost_final"]
    return runs.assign(**{name: runs[name].mask(part) for name in times})


def _cells(runs: pd.DataFrame) -> Iterator[Cell]:
    for name, of_cell in runs.groupby("cell", sort=False):
        first = of_cell.iloc[0]

        def whole(column: str, first: pd.Series = first) -> int | None:
            return int(first[column]) if first[column] == first[column] and first[column] is not None else None

        yield Cell(
            name=str(name),
            architecture=first["architecture"],
            precision=first["precision"],
            ablation=first["ablation"] if isinstance(first["ablation"], str) else None,
            experts=whole("experts"),
            expert_size=whole("expert_size"),
            shared_expert_size=whole("shared_expert_size"),
            accumulation=first["accumulation"] if isinstance(first["accumulation"], str) else "fp32",
            emulated=bool(of_cell["emulated"].any()),
            total_parameters=whole("total_parameters"),
            active_parameters=whole("active_parameters"),
            runs=_numbers(of_cell[of_cell["status"] == "completed"]),
            diverged=frozenset(of_cell.loc[of_cell["status"] == "diverged", "seed"].astype(int)),
        )


def _numbers(runs: pd.DataFrame) -> pd.DataFrame:
    """The numeric columns, null as NaN, by seed."""
    columns = [
        "tokens", "flops_per_token", "training_loss", "validation_loss", "training_seconds", "device_count",
        "device_hours_final", "device_hours_all_in", "cost_final", "cost_all_in",
    ]  # fmt: skip
    return runs.set_index("seed")[columns].astype(float)


def steps_by_run(tables: ExperimentFolder, columns: list[str]) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """(cell, seed) and its steps' columns, run by run: a table of any size is never in memory whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read_table(tables.steps_table, "steps", made_by=f"octavo aggregate {tables.path}", columns=[])  # its version
    rest: pa.Table | None = None
    with pq.ParquetFile(tables.steps_table, read_dictionary=["cell"]) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group, columns=["cell", "seed", *columns])
            part = pa.concat_tables([rest, part]).unify_dictionaries() if rest is not None else part
            runs = list(_runs_of(part))
            for start, end in runs[:-1]:
                yield _run_of(part, start, end)
            rest = part.slice(runs[-1][0]) if runs else None
    if rest is not None and rest.num_rows:
        yield _run_of(rest, 0, rest.num_rows)


def _runs_of(table: pa.Table) -> Iterator[tuple[int, int]]:
    """Where runs begin and end: neighbouring rows of one cell and seed."""
    if not table.num_rows:
        return
    cell = table["cell"].combine_chunks().indices.to_numpy()
    seed = table["seed"].to_numpy()
    begins = np.flatnonzero(np.r_[True, (np.diff(cell) != 0) | (np.diff(seed) != 0)])
    yield from zip(begins.tolist(), [*begins[1:].tolist(), table.num_rows], strict=True)


def _run_of(table: pa.Table, start: int, end: int) -> tuple[tuple[str, int], pa.Table]:
    part = table.slice(start, end - start)
    return (part["cell"][0].as_py(), part["seed"][0].as_py()), part


def floats(table: pa.Table, column: str) -> np.ndarray:
    """A column as floats, null as NaN."""
    return table[column].to_pandas().to_numpy(dtype=float, na_value=np.nan)
