"""`octavo aggregate`, `octavo claims`: runs -> tables -> verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[Path, typer.Argument(metavar="results/EXPERIMENT", help="The experiment's results folder.")]
Ablation = Annotated[str | None, typer.Option(help="Only this ablation's cells and their baselines.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(aggregate)
    app.command()(claims)


def aggregate(results: Results, ablation: Ablation = None) -> None:
    """Read all runs and attempts into runs.parquet, steps.parquet and attempts.parquet."""
    from octavo.accounting.ledger import attempts_frame
    from octavo.evidence.aggregate import aggregate as write_tables
    from octavo.experiment.load import load_experiment
    from octavo.layout import ExperimentFolder

    folder = ExperimentFolder(results)
    experiment = load_experiment(folder.name)
    typer.echo(write_tables(experiment, folder, attempts_frame(experiment), ablation).runs_table)


def claims(results: Results, ablation: Ablation = None) -> None:
    """Hold the claims against the tables: claims.json, and every pair of cells on every axis in comparisons.json."""
    from octavo.evidence.verdicts import write_verdicts
    from octavo.layout import ExperimentFolder, configs

    typer.echo(write_verdicts(ExperimentFolder(results), configs(), ablation).claims)
