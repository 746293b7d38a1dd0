"""`octavo status`: how far an experiment is. `octavo reconcile`: whether its books agree with Slurm's."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(status)
    app.command()(reconcile)


def status(
    experiment: ExperimentArgument, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show which runs are done, running or failed, how far each is, and how long still."""
    from json import dumps

    from octavo.accounting.status import as_json, run_statuses
    from octavo.experiment.load import load_experiment

    loaded = load_experiment(enter(experiment).name)
    if json:
        typer.echo(dumps(as_json(loaded), indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    runs = run_statuses(loaded)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, right in (("run", False), ("state", False), ("step", True), ("loss", True), ("left", True),
                        ("attempts", True), ("last error", False)):  # fmt: skip
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for run in runs:
        left = "" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        table.add_row(f"{run.cell}/seed-{run.seed}", run.state, f"{run.step}/{run.steps}", loss, left,
                      str(run.attempts), escape(run.error or ""))  # fmt: skip
    Console(highlight=False).print(table)
    done = sum(run.state in ("done", "diverged") for run in runs)
    typer.echo(f"{done} of {len(runs)} runs done")


def reconcile(experiment: ExperimentArgument) -> None:
    """Hold every attempt in attempts.parquet against Slurm's accounting; fail where they differ by more than 1 s."""
    from octavo.accounting import slurm
    from octavo.accounting.ledger import trainers_rows
    from octavo.accounting.reconcile import reconcile as compare
    from octavo.errors import OctavoError
    from octavo.experiment.cluster import gives_gpus
    from octavo.experiment.load import load_experiment
    from octavo.records import read_table

    folder = enter(experiment)
    loaded = load_experiment(folder.name)
    if not slurm.available():
        raise OctavoError("Slurm's accounting cannot be read here", where="sacct", fix="run this on the cluster")
    attempts = read_table(folder.attempts_table, "attempts", made_by=f"octavo aggregate {folder.path}")
    kept, word = slurm.kept_rows(loaded), trainers_rows(loaded)
    gpus = gives_gpus(loaded.cluster, loaded.device)
    trained = {row["job"]: row["devices"] for row in word if gpus and row["job"]}
    found = compare(attempts, slurm.query(loaded, word, kept), kept, trained)
    for one in found.differences:
        typer.echo(f"{one.run}  job {one.job}  {one.what}")
    typer.echo(
        f"{found.compared} attempts compared: {found.device_hours:.4f} device-hours in our books, "
        f"{found.slurm_device_hours:.4f} in sacct, {len(found.differences)} differences"
    )
    if found.purged:
        typer.echo(f"{found.purged} more are in sacct no longer, and were not compared: the site has purged them")
    if found.seconds_only:
        typer.echo(
            f"of {found.seconds_only} the seconds alone were compared: Slurm counts no GPUs here "
            "(gres/gpu is not in its AccountingStorageTRES)"
        )
    if found.differences or (found.purged and not found.compared):
        raise typer.Exit(1)
