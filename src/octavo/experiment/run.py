"""What an experiment, a cell and a run are, each with every value resolved (`octavo.experiment.load` makes them).

A *cell* is architecture x precision, `moe-fp8_blockwise`; an *ablation* changes something in a cell,
`moe-fp8_blockwise+no_shared_expert`; a *run* is a cell with a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from octavo.configuration import Section, place, read_section
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.config import Data, ExperimentFile, Parallelism, Tokenizer, Training
from octavo.files import fingerprint
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.models.architecture import Architecture
from octavo.models.parameters import count_parameters
from octavo.precision.config import Precision
from octavo.records import Look, read_record

SCHEMA_VERSION = 1


class CellConfig(Section):
    """A cell with every value that its runs need; nothing is left to defaults in code."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    cell: str
    architecture: str
    """The model's name in the experiment: `dense`, `moe`."""
    ablation: str | None
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
        value = self.model_dump(mode="json", exclude={"experiment", "cell", "architecture", "ablation", "seed"})
        for key in ("name", "source", "published"):
            del value["model"][key]
        del value["training"]["checkpoints"]
        return fingerprint(value)


class RunConfig(CellConfig):
    """`config.yaml` of a run: a cell with a seed."""

    seed: int

    @cached_property
    def run_fingerprint(self) -> str:
        """The cell's fingerprint with the seed."""
        return run_fingerprint(self.fingerprint, self.seed)

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
    """The grid's cells and then the ablations', by name."""

    @property
    def folder(self) -> ExperimentFolder:
        """Where its results are, relative to the checkout."""
        return ExperimentFolder(Path("results") / self.name)

    @property
    def configs(self) -> ConfigFolders:
        """The folder that the experiment file is in, and its claims, models and clusters."""
        return ConfigFolders(self.path.parent.parent)

    @property
    def grid(self) -> list[CellConfig]:
        """The cells that are no ablations."""
        return [cell for cell in self.cells.values() if cell.ablation is None]

    def ablation_cells(self, ablation: str) -> list[CellConfig]:
        """An ablation's cells and, first, their baselines."""
        if ablation not in self.file.ablations:
            raise OctavoError(
                f"the experiment has no ablation {ablation!r}",
                where=self.path,
                expected=f"one of {', '.join(self.file.ablations) or '(it has none)'}",
            )
        baselines = self.file.ablations[ablation].cells
        return [self.cells[name] for name in [*baselines, *(f"{base}+{ablation}" for base in baselines)]]

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
        of_cell = self.cells[cell]
        return RunConfig(**{name: getattr(of_cell, name) for name in CellConfig.model_fields}, seed=seed)

    def relative_length(self, cell: str) -> int:
        """About how long a cell's runs take, in percent of the longest, where nothing has been measured yet.

        Tokens times parameters, and a tenth more where FP8 is emulated. (Times active parameters a matched
        pair would be even, but experts cost more than what they multiply.)
        """

        def work(one: CellConfig) -> float:
            emulated = one.precision.emulated(on_gpu=self.device.kind == "gpu")
            tokens = one.training.total_steps * one.training.tokens_per_step
            return tokens * count_parameters(one.model).total * (1.1 if emulated else 1.0)

        return round(100 * work(self.cells[cell]) / max(map(work, self.cells.values())))

    def runs(self) -> Iterator[tuple[CellConfig, int]]:
        """Every (cell, seed) that is asked for so far, ablations last."""
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
            if cell in look.cells:
                asked = max(asked, look.after + 1)
        return self.file.all_seeds[:asked]


def data_identifier(data: Data, tokenizer: Tokenizer) -> str:
    """The name of the prepared data set's folder: a hash of what the experiment asks for."""
    return fingerprint([data.model_dump(mode="json"), tokenizer.model_dump(mode="json")])[:16]
