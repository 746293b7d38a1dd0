"""`octavo aggregate`, `octavo claims`: runs -> tables -> verdicts."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.commands.named import Ablation, ExperimentArgument, enter, enter_trained


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(aggregate)
    app.command()(predict)
    app.command()(ladder)
    app.command()(claims)
    app.command()(look)


def aggregate(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Read all runs and attempts into runs.parquet, steps.parquet and attempts.parquet."""
    from octavo.accounting.ledger import attempts_frame, note_provisional, provisional
    from octavo.evidence.aggregate import aggregate as write_tables
    from octavo.experiment.load import load_experiment
    from octavo.records import read_table

    folder = enter_trained(experiment)
    loaded = load_experiment(folder.name)
    attempts = attempts_frame(loaded)
    scope = write_tables(loaded, folder, attempts, ablation, keep=True)
    attempts = read_table(scope.attempts_table, "attempts", made_by=f"octavo aggregate {folder.path}")
    note_provisional(scope, attempts)
    for reason in provisional(attempts):
        typer.echo(f"the ledger is provisional: {reason}", err=True)
    typer.echo(scope.runs_table)


def predict(experiment: ExperimentArgument) -> None:
    """Say what a ladder's largest rung will show, sealed in prediction.json before it begins (the pipeline asks)."""
    from octavo.evidence.ladder import seal_prediction
    from octavo.experiment.load import load_experiment
    from octavo.training.provenance import checkout_commit

    folder = enter_trained(experiment)
    seal_prediction(folder, load_experiment(folder.name), checkout_commit()[0])
    typer.echo(folder.prediction)


def ladder(experiment: ExperimentArgument) -> None:
    """Of an experiment with a ladder: every planned end in ladder.csv, what they say of leverage in leverage.json."""
    from octavo.evidence.ladder import write_ladder
    from octavo.experiment.load import load_experiment

    folder = enter_trained(experiment)
    write_ladder(folder, load_experiment(folder.name))
    typer.echo(folder.leverage)


def claims(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Hold the claims against the tables: claims.json, and every pair of cells on every axis in comparisons.json."""
    from octavo.evidence.verdicts import write_verdicts
    from octavo.layout import configs

    folder = enter(experiment)
    typer.echo(write_verdicts(folder, configs(), ablation).claims)


def look(
    experiment: ExperimentArgument,
    after: Annotated[int, typer.Option(help="Seeds that the comparisons still open have.")],
    ablation: Ablation = None,
) -> None:
    """Seeds until decided: which cells are to have one more, in looks/AFTER.json (the pipeline asks)."""
    from octavo.accounting.ledger import attempts_frame
    from octavo.evidence.looks import write_look
    from octavo.experiment.load import load_experiment

    folder = enter_trained(experiment)
    loaded = load_experiment(folder.name)
    typer.echo(write_look(loaded, folder, attempts_frame(loaded), after, ablation))
