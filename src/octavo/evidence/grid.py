"""The tables of an experiment as cells, pairs of cells and loss curves: what comparisons and claims are made from.

A pair is a cell and what it is held against: a mixture of experts against a dense model in the same precision, FP8
against BF16 in the same architecture, an ablation against its baseline. Seeds are paired: only those count for which
both have a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from octavo.evidence.curves import FEWEST, Curve, averaged, smooth
from octavo.evidence.ladder import LadderFit, fitted_ladder
from octavo.evidence.lengths import planned_ends, whole_lengths
from octavo.evidence.names import cell_label, listed
from octavo.evidence.schedule import undecayed
from octavo.evidence.sequential import Looks
from octavo.evidence.steps import floats, steps_by_run
from octavo.experiment.config import SeedsUntilDecided
from octavo.layout import ExperimentFolder, horizon_cell, split_horizon
from octavo.models.parameters import EQUAL_SIZES
from octavo.records import read_table

if TYPE_CHECKING:
    import pandas as pd

    from octavo.experiment.ladder import Rung
    from octavo.experiment.run import Experiment

Kind = Literal["architecture", "precision", "ablation"]
Resource = Literal["tokens", "model_flops", "device_hours", "cost"]

SPENT = ("tokens", "model_flops", "device_hours")
"""What steps.parquet says was spent."""

TEXT = {"tokenizer": "tokenizers", "data": "training data", "validation": "validation data"}
"""What losses are losses of: a field of Text, and its name for people."""


@dataclass(frozen=True)
class Text:
    """Identifiers of what a cell's losses are losses of; None where it is not known, or not the same for its runs."""

    tokenizer: str | None
    data: str | None
    validation: str | None


@dataclass(frozen=True)
class Points:
    """Losses that a run was measured to have, in the order of its steps, and how far it was then."""

    loss: np.ndarray
    undecayed: np.ndarray
    """The highest learning rate from there on, over its peak (`octavo.evidence.schedule`)."""
    spent: dict[str, np.ndarray]
    """Tokens, model FLOPs, device-hours so far."""


@dataclass(frozen=True)
class Course:
    """What is kept of a run's steps."""

    points: Points
    """What its curve goes through."""
    finals: Points
    """What final losses are taken from: all validations, or without any the training losses of the last tenth."""
    rate_known: bool
    """Whether its learning rate was logged."""
    seconds_per_token: float
    """Device-seconds of the median step after the first tenth; NaN where it is not known."""
    logged: str
    """A hash of every loss that was logged, and of its step; empty where none was."""


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
    text: Text
    """What its losses are losses of."""
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
    def ended(self) -> list[int]:
        """Seeds for which neither stayed unfinished; that a run diverged says nothing of its speed."""
        return sorted(set.intersection(*(set(one.runs.index) | one.diverged for one in (self.cell, self.against))))

    @property
    def diverged(self) -> list[int]:
        """Seeds for which one of the two diverged and the other did not stay unfinished."""
        return sorted(set(self.ended) & (self.cell.diverged | self.against.diverged))

    @property
    def unlike(self) -> list[str]:
        """What is known to differ of tokenizer, training data and validation data, in words."""
        both = {name: (getattr(self.cell.text, name), getattr(self.against.text, name)) for name in TEXT}
        return [
            f"{TEXT[name]} ({one[:40]}, {other[:40]})"
            for name, (one, other) in both.items()
            if one and other != one and other
        ]

    @property
    def unknown(self) -> list[str]:
        """What is not known to be the same of them, in words."""
        return [
            words
            for name, words in TEXT.items()
            if None in (getattr(self.cell.text, name), getattr(self.against.text, name))
        ]

    @property
    def in_bits_per_byte(self) -> bool:
        """Whether losses are compared per byte: tokens or training text differ, and the validation text is the same."""
        text, other = self.cell.text, self.against.text
        same = text.validation is not None and text.validation == other.validation
        return (
            bool(self.unlike)
            and same
            and all(
                np.isfinite(one.runs.loc[self.seeds, "validation_bits_per_byte"]).all()
                for one in (self.cell, self.against)
            )
        )

    @property
    def emulated(self) -> bool:
        """Whether times of the pair are those of an emulation."""
        return self.cell.emulated or self.against.emulated

    @property
    def run_names(self) -> list[str]:
        """`cell/seed-n` of the runs that count."""
        return self.names_of(self.seeds)

    def names_of(self, seeds: list[int]) -> list[str]:
        """`cell/seed-n` of the runs of some seeds."""
        return [f"{one.name}/seed-{seed}" for one in (self.cell, self.against) for seed in seeds]

    def mismatch(self, size: Literal["active_parameters", "total_parameters"]) -> float | None:
        """How far apart the two are in a size, relative to the smaller; None where it is not known."""
        sizes = sorted(getattr(one, size) or 0 for one in (self.cell, self.against))
        return sizes[1] / sizes[0] - 1 if sizes[0] else None

    def agrees(self, size: Literal["active_parameters", "total_parameters"]) -> bool:
        """Whether they are equal in a size, within EQUAL_SIZES."""
        mismatch = self.mismatch(size)
        return mismatch is not None and mismatch <= EQUAL_SIZES


def looks_of(experiment: Experiment | None) -> Looks | None:
    """The design by which an experiment's seeds are added until decided; None where they are fixed, or imported."""
    seeds = experiment.file.seeds if experiment else None
    return Looks(seeds.first, seeds.last) if isinstance(seeds, SeedsUntilDecided) else None


class InGrid(NamedTuple):
    """What decides which cells of a grid are held against one another."""

    name: str
    architecture: str
    precision: str
    mixture: bool
    rung: Rung | None
    """On a ladder: cells of two rungs are not compared."""


def compared(kind: Literal["architecture", "precision"], grid: Sequence[InGrid]) -> Iterator[tuple[str, str]]:
    """The names of cells that differ in one thing: a mixture and a dense model, or FP8 and BF16."""
    for one, other in product(grid, grid):
        alike = one.precision == other.precision and one.rung == other.rung
        if kind == "architecture" and one.mixture and not other.mixture and alike:
            yield one.name, other.name
        same = one.architecture == other.architecture
        if kind == "precision" and same and one.precision != "bf16" and other.precision == "bf16":
            yield one.name, other.name


class Grid:
    """The tables of an experiment, or of one ablation and its baselines."""

    def __init__(self, tables: ExperimentFolder, whole: ExperimentFolder, experiment: Experiment | None) -> None:
        """`tables` is the folder with the tables, `whole` the experiment's (the same, but for an ablation);
        `experiment` is None for imported runs."""
        again = f"octavo aggregate {whole.path}" if experiment else f"octavo import {whole.path} FILE"
        self.tables, self.whole, self.experiment = tables, whole, experiment
        runs = read_table(tables.runs_table, "runs", made_by=again)
        self.runs = _whole_times(whole_lengths(runs))
        """One row per cell and seed: the runs of the whole length."""
        self.planned = {trunk for trunk, steps in map(split_horizon, runs["cell"]) if steps is not None}
        """Cells whose runs were planned for several lengths: theirs are the ends that are compared."""
        self.attempts = read_table(tables.attempts_table, "attempts", made_by=again)
        self.cells = {cell.name: cell for cell in _cells(self.runs)}
        self.paired: dict[tuple[str, str, Resource], Any] = {}
        """What `octavo.evidence.comparisons.paired` found: axes and claims ask for the same pairs."""
        self.from_training: set[str] = set()
        """Cells with too few validations for a curve: theirs go through averaged training losses."""

    @property
    def looks(self) -> Looks | None:
        """The design by which seeds are added until decided; None where they are fixed."""
        return looks_of(self.experiment)

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

    @cached_property
    def ladder(self) -> LadderFit | None:
        """What the experiment's ladder shows; None where it has none, and in the tables of an ablation."""
        if self.experiment is None or not self.experiment.rungs or self.tables != self.whole:
            return None
        return fitted_ladder(self.ends, self.experiment)

    def pairs(self, kind: Kind) -> list[Pair]:
        """All pairs of a kind, in the order of the table."""
        if kind == "ablation":
            ablated = [cell for cell in self.cells.values() if cell.ablation]
            return [Pair(kind, one, self.cells[one.baseline]) for one in ablated if one.baseline in self.cells]
        grid = [
            InGrid(cell.name, cell.architecture, cell.precision, cell.mixture, self._rung(cell.architecture))
            for cell in self.cells.values()
            if cell.ablation is None
        ]
        return [Pair(kind, self.cells[one], self.cells[other]) for one, other in compared(kind, grid)]

    def _rung(self, architecture: str) -> Rung | None:
        return self.experiment.rung(architecture) if self.experiment else None

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
        if cell in self.planned:
            ends = self.ends[(self.ends["cell"] == cell) & (self.ends["seed"] == seed)]
            spent = "flops" if resource == "model_flops" else resource
            return smooth(*(ends[name].to_numpy(float) for name in (spent, "validation_loss")), of_ends=True)
        course = self.courses.get((cell, seed))
        return None if course is None else smooth(self._spent(cell, seed, resource), course.points.loss)

    @cached_property
    def ends(self) -> pd.DataFrame:
        """`octavo.evidence.lengths.planned_ends` of the tables."""
        return planned_ends(self.tables)

    def shorter_runs(self, pair: Pair, seeds: list[int]) -> list[str]:
        """`cell@steps/seed-n` of the runs of shorter horizons whose ends the curves of a pair go through."""
        names = [pair.cell.name, pair.against.name]
        ends = self.ends[self.ends["cell"].isin(names) & self.ends["seed"].isin(seeds)]
        whole = ends.groupby(["cell", "seed"])["steps"].transform("max")
        shorter = ends[ends["steps"] < whole]
        rows = zip(shorter["cell"], shorter["steps"], shorter["seed"], strict=True)
        return [f"{horizon_cell(cell, steps)}/seed-{seed}" for cell, steps, seed in rows]

    def share_at(self, cell: str, curve: Curve, spent: float) -> float:
        """How far into a run its curve was read; all of it between the ends of runs planned for their lengths."""
        return 1.0 if cell in self.planned else spent / curve.end

    def _spent(self, cell: str, seed: int, resource: Resource) -> np.ndarray:
        """What was spent at each point of a run's curve."""
        spent = self.courses[cell, seed].points.spent
        if resource != "cost":
            return spent[resource]
        run = self.cells[cell].runs.loc[seed]
        hours = run["training_device_hours"]
        return spent["device_hours"] * (run["cost_final"] / hours if hours else np.nan)

    def undecayed_at(self, cell: str, seed: int, resource: Resource, spent: float) -> float:
        """How high a run's learning rate still goes, over its peak, when it has spent so much; 0 at a planned end."""
        if cell in self.planned:
            return 0.0
        at = self._spent(cell, seed, resource)
        known = np.isfinite(at)
        return float(np.interp(spent, at[known], self.courses[cell, seed].points.undecayed[known]))

    @cached_property
    def courses(self) -> dict[tuple[str, int], Course]:
        """By run that ended, what is kept of its steps."""
        found: dict[tuple[str, int], Course] = {}
        columns = ["step", *SPENT, "loss", "validation_loss", "learning_rate", "step_seconds", "devices"]
        for (cell, seed), table in steps_by_run(self.tables, columns):
            if cell not in self.cells or seed not in {*self.cells[cell].runs.index, *self.cells[cell].diverged}:
                continue
            steps = {name: floats(table, name) for name in columns}
            if not np.isfinite(self.training_seconds.get((cell, seed), np.nan)):
                steps["device_hours"] = np.full_like(steps["device_hours"], np.nan)
            found[cell, seed] = course = _course(steps)
            if course.points is not course.finals and cell not in self.planned:
                self.from_training.add(cell)
        return found

    def unlike_devices(self, pair: Pair) -> str | None:
        """The kinds of device of the first seed that the two ran on different ones, in words; None where there is none:
        an hour of one is no hour of the other."""
        for seed in pair.ended:
            one, other = (self.device_kinds[cell.name, seed] for cell in (pair.cell, pair.against))
            if one and other and one != other:
                return f"{one[:40]}, {other[:40]}"
        return None

    def same_numbers(self, pair: Pair) -> str | None:
        """Which imported runs of a pair log the same losses at the same steps, in words; None where there are none.

        That is one run under two names. Octavo's own runs are known to be two: some settings change no loss.
        """
        if self.experiment is not None:
            return None
        one, other = (
            {seed: self.courses[cell.name, seed].logged for seed in pair.ended if (cell.name, seed) in self.courses}
            for cell in (pair.cell, pair.against)
        )
        same = sorted(seed for seed in one.keys() & other.keys() if one[seed] and one[seed] == other[seed])
        if not same:
            return None
        return (
            f"the runs of seed {listed([str(seed) for seed in same])} log the same losses at every step in both cells: "
            "they are the same numbers, and say nothing of a difference"
        )

    def seconds_per_token(self, cell: str, seeds: list[int]) -> np.ndarray:
        """Device-seconds a token of the median step, by seed; NaN where it is not known."""
        courses = [self.courses.get((cell, seed)) for seed in seeds]
        return np.array([np.nan if one is None else one.seconds_per_token for one in courses])

    @cached_property
    def devices(self) -> dict[tuple[str, int], float]:
        """By run, how many devices it had."""
        return self._by_run("device_count")

    @cached_property
    def device_kinds(self) -> dict[tuple[str, int], str | None]:
        """By run, what it ran on; None where an import does not say."""
        kinds = self.runs["device_kind"].astype(object).where(self.runs["device_kind"].notna(), None)
        runs = zip(self.runs["cell"], self.runs["seed"], strict=True)
        return dict(zip(runs, kinds, strict=True))

    @cached_property
    def training_seconds(self) -> dict[tuple[str, int], float]:
        """By run, how long its steps took; NaN where its log times a part of them."""
        return self._by_run("training_seconds")

    def _by_run(self, column: str) -> dict[tuple[str, int], float]:
        runs = zip(self.runs["cell"], self.runs["seed"], strict=True)
        return dict(zip(runs, self.runs[column].astype(float), strict=True))


def _course(steps: dict[str, np.ndarray]) -> Course:
    rate = undecayed(steps["step"], steps["learning_rate"])
    validated = np.isfinite(steps["validation_loss"])

    def chosen(which: np.ndarray, losses: str) -> Points:
        return Points(steps[losses][which], rate[which], {name: steps[name][which] for name in SPENT})

    if validated.sum() >= FEWEST:
        finals = points = chosen(validated, "validation_loss")
    else:
        late = (steps["step"] > 0.9 * steps["step"][-1]) & np.isfinite(steps["loss"])
        finals = chosen(validated, "validation_loss") if validated.any() else chosen(late, "loss")
        rates, losses = averaged(rate, steps["loss"])
        points = Points(losses, rates, {name: averaged(steps[name], steps["loss"])[0] for name in SPENT})
    known = bool(np.isfinite(steps["learning_rate"]).any())
    return Course(points, finals, known, _seconds_per_token(steps), _hash_of_losses(steps))


def _hash_of_losses(steps: dict[str, np.ndarray]) -> str:
    logged = np.stack([steps[name] for name in ("step", "loss", "validation_loss")])
    logged = logged[:, np.isfinite(logged[1:]).any(axis=0)]
    return sha256(np.nan_to_num(logged, nan=-1.0).tobytes()).hexdigest() if logged.size else ""


def _seconds_per_token(steps: dict[str, np.ndarray]) -> float:
    """Device-seconds a token of the median step. The first tenth of the lines, one at the least, is left out: there
    programs compile, caches fill and clocks settle."""
    timed = np.flatnonzero(np.isfinite(steps["step_seconds"]) & np.isfinite(steps["tokens"]))
    if len(timed) < 2:
        return np.nan
    tokens = np.median(np.diff(steps["tokens"][timed]) / np.diff(steps["step"][timed]))
    steady = timed[max(1, len(timed) // 10) :]
    return float(np.median((steps["step_seconds"] * steps["devices"])[steady]) / tokens) if tokens > 0 else np.nan


def _whole_times(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs, without the times of those whose logs time a part of their steps: hours so far are not known of them."""
    part = runs["timed_steps"].notna() & (runs["timed_steps"] < runs["steps"])
    times = ["training_seconds", "training_device_hours", "device_hours_final", "cost_final"]
    return runs.assign(**{name: runs[name].mask(part) for name in times})


def _cells(runs: pd.DataFrame) -> Iterator[Cell]:
    for name, of_cell in runs.groupby("cell", sort=False):
        first = of_cell.iloc[0]

        def whole(column: str, first: pd.Series = first) -> int | None:
            return int(first[column]) if first[column] == first[column] and first[column] is not None else None

        def same(column: str, of_cell: pd.DataFrame = of_cell) -> str | None:
            values = of_cell.loc[of_cell["status"] == "completed", column]
            return str(values.iloc[0]) if values.notna().all() and values.nunique() == 1 else None

        yield Cell(
            name=str(name),
            text=Text(same("tokenizer"), same("data"), same("validation")),
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
        "steps", "tokens", "flops_per_token", "training_loss", "validation_loss", "validation_step",
        "validation_bits_per_byte", "training_seconds", "training_device_hours", "device_count",
        "device_hours_final", "device_hours_all_in", "cost_final", "cost_all_in",
    ]  # fmt: skip
    return runs.set_index("seed")[columns].astype(float)
