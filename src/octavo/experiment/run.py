"""What an experiment, a cell and a run are, each with every value resolved (`octavo.experiment.load` makes them).

A *cell* is architecture x precision, `moe-fp8_blockwise`; an *ablation* changes something in a cell,
`moe-fp8_blockwise+no_shared_expert`; a *run* is a cell with a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Protocol

import yaml

from octavo.configuration import Section, place, read_section
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.config import Data, ExperimentFile, Parallelism, SeedsUntilDecided, Tokenizer, Training
from octavo.experiment.ladder import Rung
from octavo.files import fingerprint
from octavo.layout import ConfigFolders, ExperimentFolder, horizon_cell, split_horizon
from octavo.models.architecture import Architecture
from octavo.models.parameters import count_parameters
from octavo.precision.config import Precision
from octavo.records import Look, read_record

SCHEMA_VERSION = 1

FIRST_REPORT = 3
"""Seeds of a first report: the fewest that show a spread."""

ADDED_LATER: dict[tuple[str, ...], Any] = {
    ("training", "schedule", "decay_fraction"): None,
    ("training", "schedule", "trunk_steps"): None,
    ("training", "recompute"): [],
    ("precision", "formats"): {},
    ("precision", "scales"): None,
    ("model", "gated"): True,
    ("model", "experts", "every"): 1,
}
"""Keys that fingerprints leave out at these values: runs from before a key was there stay results."""


class OfRun(Protocol):
    """A record of a run, which holds the fingerprints of its configuration."""

    run_fingerprint: str
    computation_fingerprint: str | None


@dataclass(frozen=True)
class RunIdentity:
    """What tells whether records, checkpoints and results are a run's, as it is configured now."""

    run_fingerprint: str
    """Equal if and only if nothing that changes numbers differs, last bits included."""
    computation_fingerprint: str
    """Equal if and only if nothing but the layout differs: numbers are then equal but for the order of sums."""
    reshards: bool
    """Whether the experiment takes what was trained under another layout."""

    def holds(self, record: OfRun) -> bool:
        """Whether what a record is of belongs to the run."""
        if record.run_fingerprint == self.run_fingerprint:
            return self.reshards or len(getattr(record, "layouts", ())) < 2
        return self.reshards and record.computation_fingerprint == self.computation_fingerprint


class CellConfig(Section):
    """A cell with every value that its runs need; nothing is left to defaults in code."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    cell: str
    architecture: str
    """The model's name in the experiment: `dense`, `moe`."""
    ablation: str | None
    trunk: str | None = None
    """The cell whose checkpoint its runs begin from, before the rate decays; None: they begin by themselves."""
    cluster: str
    model: Architecture
    precision: Precision
    data: Data
    tokenizer: Tokenizer
    training: Training
    parallelism: Parallelism

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that may change the numbers, names left out."""
        return fingerprint(self._hashed())

    @cached_property
    def computation_fingerprint(self) -> str:
        """A hash of what is computed, whatever the layout: only the order of sums may differ where it is equal.

        The layout is the ranks, what is computed again, and the micro-batch. That is part of what is computed where the
        routers have an auxiliary loss, which is a function of the tokens of a micro-batch.
        """
        value = self._hashed()
        del value["parallelism"]
        value["training"].pop("recompute", None)
        if not self._balances_micro_batches:
            del value["training"]["micro_batch_size"]
        return fingerprint(value)

    @property
    def _balances_micro_batches(self) -> bool:
        experts = self.model.experts
        return experts is not None and experts.router.balance == "aux_loss" and experts.router.aux_loss_weight > 0

    @property
    def layout(self) -> str:
        """How it is laid out on devices, in words: `data 2, micro-batch 4`."""
        ranks = self.parallelism
        axes = {name: getattr(ranks, name) for name in ("tensor", "pipeline", "virtual_pipeline", "expert", "context")}
        parts = [f"{name.replace('_', ' ')} {degree}" for name, degree in axes.items() if degree > 1]
        parts += ["sequence parallel"] * ranks.sequence
        parts += [f"data {ranks.data}"] if ranks.data > 1 or ranks.world_size == 1 else []
        if self.model.experts is not None and ranks.dispatcher != "alltoall":
            parts.append(f"dispatcher {ranks.dispatcher}")
        parts.append(f"micro-batch {self.training.micro_batch_size}")
        if self.training.recompute:
            parts.append(f"recomputed: {' and '.join(self.training.recompute)}")
        return ", ".join(parts)

    def identity(self, seed: int) -> RunIdentity:
        """The identity of one of its runs."""
        prints = (run_fingerprint(one, seed) for one in (self.fingerprint, self.computation_fingerprint))
        return RunIdentity(*prints, reshards=self.training.checkpoints.resharding == "allow")

    def _hashed(self) -> dict[str, Any]:
        names = {"experiment", "cell", "architecture", "ablation", "trunk", "seed"}
        value = self.model_dump(mode="json", exclude=names)
        for key in ("name", "source", "published"):
            del value["model"][key]
        del value["training"]["checkpoints"]
        del value["training"]["schedule"]["horizons"]  # which other runs leave this one changes none of its numbers
        for (*sections, key), default in ADDED_LATER.items():
            section: dict[str, Any] = reduce(lambda inner, name: inner[name] or {}, sections, value)
            if section.get(key, default) == default:
                section.pop(key, None)
        return value

    @property
    def begins_after(self) -> int:
        """The trunk's step from whose checkpoint its runs begin; 0 where they begin by themselves."""
        return self.training.decay_begins_after(self.training.total_steps) if self.trunk else 0

    @property
    def own_steps(self) -> int:
        """The steps that its runs train themselves."""
        return self.training.total_steps - self.begins_after

    def in_steps(self) -> CellConfig:
        """The cell with its length in steps, also where it was given in tokens: shorter runs know the trunk's steps."""
        training = self.training.model_copy(update={"steps": self.training.total_steps, "tokens": None})
        return CellConfig(**{**self.fields(), "training": training})

    def shorter(self) -> list[CellConfig]:
        """The cells of the shorter lengths that runs are planned for: each begins from this one's checkpoint."""
        return [
            CellConfig(**{**self.fields(), "cell": horizon_cell(self.cell, steps), "trunk": self.cell,
                          "training": _lasting(self.training, steps, self.training.total_steps)})
            for steps in self.training.shorter_horizons
        ]  # fmt: skip

    def fields(self) -> dict[str, Any]:
        """Name -> value, sections as they are: to make another of it."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def _lasting(training: Training, steps: int, trunk_steps: int | None) -> Training:
    """The training of a run of so many steps that has the start of one of `trunk_steps`."""
    schedule = training.schedule.model_copy(update={"horizons": None, "trunk_steps": trunk_steps})
    return training.model_copy(update={"steps": steps, "tokens": None, "schedule": schedule})


class RunConfig(CellConfig):
    """`config.yaml` of a run: a cell with a seed."""

    seed: int

    @cached_property
    def run_fingerprint(self) -> str:
        """The cell's fingerprint with the seed."""
        return run_fingerprint(self.fingerprint, self.seed)

    @property
    def own_identity(self) -> RunIdentity:
        """What tells whether something is this run's."""
        return self.identity(self.seed)

    def trunk_run(self) -> RunConfig:
        """The run whose checkpoint this one, of a shorter horizon, begins from."""
        whole = _lasting(self.training, self.training.trunk_steps, None)
        return RunConfig(**{**self.fields(), "cell": self.trunk, "trunk": None, "training": whole})

    def by_itself(self) -> RunConfig:
        """The same run trained from the first step on: to the last bit what it is when it begins from a checkpoint."""
        return RunConfig(**{**self.fields(), "trunk": None})

    def to_yaml(self) -> str:
        """The text of `config.yaml`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_fingerprint(cell_fingerprint: str, seed: int) -> str:
    """What a run's results are filed under: equal if and only if nothing that changes numbers differs."""
    return fingerprint([cell_fingerprint, seed])


def read_run_config(path: Path) -> RunConfig:
    """Read a run's `config.yaml`."""
    return read_section(path, RunConfig)


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read, checked and resolved."""

    name: str
    path: Path
    file: ExperimentFile
    cluster: Cluster
    device: Device
    data_path: Path
    """The file in configs/data that the experiment names, or the experiment's own."""
    cells: dict[str, CellConfig]
    """The grid's cells, the ablations' and then those of shorter horizons, by name."""
    rungs: tuple[Rung, ...] = ()
    """Of its ladder, from the smallest; none where it has no ladder."""

    def rung(self, architecture: str) -> Rung | None:
        """The rung that a model is on; None where there is no ladder."""
        return next((one for one in self.rungs if architecture in map(one.role, one.models)), None)

    def on_last_rung(self, cell: CellConfig) -> bool:
        """Whether a cell is on the ladder's largest rung, which is foretold before it is trained."""
        return bool(self.rungs) and self.rung(cell.architecture) is self.rungs[-1]

    @property
    def matched(self) -> list[list[str]]:
        """Names of the models that are held against one another: those of each rung, or all."""
        return [[one.role(kind) for kind in one.models] for one in self.rungs] or [list(self.file.models)]

    @cached_property
    def folder(self) -> ExperimentFolder:
        """Where its results are, relative to the checkout."""
        return ExperimentFolder(Path("results") / self.name)

    @property
    def configs(self) -> ConfigFolders:
        """The folder that the experiment file is in, and its claims, models and clusters."""
        return ConfigFolders(self.path.parent.parent)

    @property
    def grid(self) -> list[CellConfig]:
        """The cells of the whole length that are no ablations."""
        return [cell for cell in self.cells.values() if cell.ablation is None and cell.trunk is None]

    def ablation_cells(self, ablation: str) -> list[CellConfig]:
        """An ablation's cells and, first, their baselines; then those of shorter horizons of both."""
        if ablation not in self.file.ablations:
            raise OctavoError(
                f"the experiment has no ablation {ablation!r}",
                where=self.path,
                expected=f"one of {', '.join(self.file.ablations) or '(it has none)'}",
            )
        baselines = self.file.ablations[ablation].cells
        names = [*baselines, *(f"{base}+{ablation}" for base in baselines)]
        return [self.cells[name] for name in names] + [cell for cell in self.cells.values() if cell.trunk in names]

    def place(self, *keys: str | int) -> str:
        """`file:line key.path` of one of the experiment's keys, also where its text is a file of its own."""
        if keys[0] == "data" and self.data_path != self.path:
            return place(self.data_path, keys[1:])
        return place(self.path, keys)

    def run(self, cell: str, seed: int) -> RunConfig:
        """One run, resolved."""
        if cell not in self.cells or seed not in self.file.all_seeds:
            raise OctavoError(
                f"the experiment has no run {cell}/seed-{seed}",
                where=self.path,
                expected=f"a cell of {', '.join(self.cells)} and a seed of {', '.join(map(str, self.file.all_seeds))}",
            )
        return RunConfig(**self.cells[cell].fields(), seed=seed)

    @property
    def first_report_seeds(self) -> list[int]:
        """The seeds of a report that is made while more are trained: of a design three, or all of the first look where
        they are fewer. None where seeds are fixed, or on a ladder, whose fit needs all of them."""
        seeds = self.file.seeds
        if not isinstance(seeds, SeedsUntilDecided) or self.rungs:
            return []
        return self.file.all_seeds[: min(FIRST_REPORT, seeds.first)]

    @cached_property
    def relative_lengths(self) -> dict[str, int]:
        """Cell -> about how long its runs take, in percent of the longest, where nothing has been measured yet.

        Tokens times parameters, and a tenth more where FP8 is emulated. (Times active parameters a matched
        pair would be even, but experts cost more than what they multiply.)
        """

        def work(one: CellConfig) -> float:
            emulated = one.precision.emulated(on_gpu=self.device.kind == "gpu")
            tokens = one.own_steps * one.training.tokens_per_step
            return tokens * count_parameters(one.model).total * (1.1 if emulated else 1.0)

        works = {name: work(cell) for name, cell in self.cells.items()}
        longest = max(works.values())
        return {name: round(100 * value / longest) for name, value in works.items()}

    def runs(self) -> Iterator[tuple[CellConfig, int]]:
        """Every (cell, seed) that is asked for so far, in the order of the cells."""
        for cell in self.cells.values():
            for seed in self.seeds_of(cell.cell, self.folder):
                yield cell, seed

    def seeds_of(self, cell: str, folder: ExperimentFolder) -> list[int]:
        """The seeds that a cell is asked for so far: all, or of a design the first, and those that looks asked for."""
        asked = len(self.file.first_seeds)
        if asked == len(self.file.all_seeds):
            return self.file.all_seeds
        for path in folder.looks():
            look = read_record(path, Look, made_by=f"snakemake {folder.report_pdf}")
            if split_horizon(cell)[0] in look.cells:
                asked = max(asked, look.after + 1)
        return self.file.all_seeds[:asked]


def data_identifier(data: Data, tokenizer: Tokenizer) -> str:
    """The name of the prepared data set's folder: a hash of what the experiment asks for."""
    return fingerprint([data.model_dump(mode="json"), tokenizer.model_dump(mode="json")])[:16]
