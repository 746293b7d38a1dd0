"""Looks at the evidence between seeds, where they are added until decided: which cells are to have one more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.evidence.aggregate import aggregate
from octavo.evidence.grid import Grid
from octavo.evidence.verdicts import read_claims, undecided_cells
from octavo.experiment.config import SeedsUntilDecided
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import ExperimentFolder
from octavo.records import Look, read_record

if TYPE_CHECKING:
    import pandas as pd


def write_look(
    experiment: Experiment, folder: ExperimentFolder, attempts: pd.DataFrame, after: int, ablation: str | None = None
) -> Path:
    """Look at the evidence of an experiment, or of one ablation, after so many seeds and write what it asks for.

    Raises OctavoError where the experiment's seeds are a list, or no look is due after so many.
    """
    seeds = experiment.file.seeds
    if not isinstance(seeds, SeedsUntilDecided) or not seeds.first <= after < seeds.last:
        raise OctavoError(
            f"no look is due after {after} seeds",
            where=experiment.place("seeds"),
            expected="seeds: {from: ..., to: ...} with a number between them",
        )
    scope = folder.ablation(ablation) if ablation else folder
    scope.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scope.path, prefix="look-") as beside:
        tables = aggregate(experiment, folder, attempts, ablation, into=ExperimentFolder(Path(beside)))
        cells = undecided_cells(Grid(tables, folder, experiment), read_claims(experiment.configs, experiment))
    path = scope.look(after)
    write_json(path, Look(after=after, cells=cells).model_dump(mode="json"))
    return path


def seeds_asked(
    experiment: Experiment, cells: list[str], look: Callable[[int], Path], until: int | None = None
) -> dict[str, list[int]]:
    """By cell, the seeds that a report rests on, or the look after `until` seeds does.

    `look` gives the file of the look after so many seeds, or raises where it is still to come.
    """
    seeds = experiment.file.seeds
    asked = dict.fromkeys(cells, len(experiment.file.first_seeds))
    if isinstance(seeds, SeedsUntilDecided):
        for after in range(seeds.first, seeds.last if until is None else until):
            found = read_record(look(after), Look, made_by=f"octavo look {experiment.folder.path} --after {after}")
            if not found.cells:
                break
            asked |= {cell: after + 1 for cell in found.cells if cell in asked}
    return {cell: experiment.file.all_seeds[:count] for cell, count in asked.items()}
