"""Looks at the evidence between seeds, where they are added until decided: which cells are to have one more.

Also the tables of a first report, which decides nothing: it is there to be read while more seeds are trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.experiment.config import SeedsUntilDecided
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import ExperimentFolder, split_horizon
from octavo.records import FirstReport, Look, read_record

if TYPE_CHECKING:
    import pandas as pd


def write_look(
    experiment: Experiment, folder: ExperimentFolder, attempts: pd.DataFrame, after: int, ablation: str | None = None
) -> Path:
    """Look at the evidence of an experiment, or of one ablation, after so many seeds and write what it asks for.

    Raises OctavoError where the experiment's seeds are a list, or no look is due after so many.
    """
    from octavo.evidence.aggregate import aggregate
    from octavo.evidence.grid import Grid
    from octavo.evidence.verdicts import read_claims, undecided_cells

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


def write_first_tables(
    experiment: Experiment, folder: ExperimentFolder, attempts: pd.DataFrame, into: ExperimentFolder,
    ablation: str | None = None,
) -> FirstReport:  # fmt: skip
    """Write tables and verdicts of a first report into another folder; what it is a report of.

    No verdict on runs is reached in it before the first look, and nothing is decided by it. Raises OctavoError where
    the experiment has none.
    """
    from octavo.evidence.aggregate import aggregate
    from octavo.evidence.verdicts import write_verdicts_of

    design, seeds = experiment.file.seeds, experiment.first_report_seeds
    if not isinstance(design, SeedsUntilDecided) or not seeds:
        raise OctavoError(
            "there is no first report of this experiment",
            where=experiment.place("seeds"),
            expected="seeds: {from: ..., to: ...}, and models that are no ladder",
            fix=f"make its report: snakemake {folder.report_pdf}",
        )
    aggregate(experiment, folder, attempts, ablation, into, seeds)
    write_verdicts_of(into, folder, experiment.configs, experiment, ablation)
    scope = folder.ablation(ablation) if ablation else folder
    whole = scope.report_pdf.exists() and scope.report_hashes.exists()
    return FirstReport(seeds=len(seeds), first_look=design.first, most=design.last, stands=not whole)


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
            asked |= {cell: after + 1 for cell in cells if split_horizon(cell)[0] in found.cells}
    return {cell: experiment.file.all_seeds[:count] for cell, count in asked.items()}
