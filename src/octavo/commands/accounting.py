"""`octavo status`: how far an experiment is. `octavo reconcile`: whether its ledger agrees with Slurm's."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter_trained


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(status)
    app.command()(reconcile)


def status(
    experiment: ExperimentArgument, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show which runs are done, running or failed, how far each is, and how long still."""
    from json import dumps

    from octavo.accounting.status import as_json, ledger_status, run_statuses
    from octavo.experiment.load import load_experiment

    loaded = load_experiment(enter_trained(experiment).name)
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
    if (most := len(loaded.file.all_seeds) * len(loaded.cells)) > len(loaded.file.first_seeds) * len(loaded.cells):
        typer.echo(f"seeds until decided: {len(runs)} runs asked for so far, {most} at most")
    if damaged := sum(run.state == "damaged" for run in runs):
        typer.echo(f"{damaged} damaged: no tables are made before that is mended")
    for reason in ledger_status(loaded.folder):
        typer.echo(f"the ledger is provisional: {reason}")


def reconcile(experiment: ExperimentArgument) -> None:
    """Hold every attempt in attempts.parquet against Slurm's accounting; fail where they differ by more than 1 s."""
    from octavo.accounting import slurm
    from octavo.accounting.ledger import trainers_rows
    from octavo.accounting.reconcile import made_tables
    from octavo.accounting.reconcile import reconcile as compare
    from octavo.errors import OctavoError
    from octavo.experiment.cluster import gives_gpus
    from octavo.experiment.load import load_experiment

    folder = enter_trained(experiment)
    loaded = load_experiment(folder.name)
    if loaded.cluster.slurm is None:
        raise OctavoError(
            "the experiment does not run on Slurm: there are no other hours to compare its ledger with",
            where=f"configs/clusters/{loaded.file.cluster}.yaml", expected="a section slurm",
        )  # fmt: skip
    if not slurm.available():
        raise OctavoError("Slurm's accounting cannot be read here", where="sacct", fix="run this on the cluster")
    attempts, cells = made_tables(loaded, folder)
    kept, word = slurm.kept_accounting(loaded).rows, trainers_rows(loaded)
    gpus = gives_gpus(loaded.cluster, loaded.device)
    trained = {row["job"]: row["devices"] for row in word if gpus and row["job"]}
    rows = [row for row in slurm.query(loaded, word, kept) if row.cell in cells]
    found = compare(attempts, rows, kept, trained)
    for one in found.differences:
        typer.echo(f"{one.run}  job {one.job}  {one.what}")
    typer.echo(
        f"{found.compared} attempts compared: {found.device_hours:.4f} device-hours in our ledger, "
        f"{found.slurm_device_hours:.4f} in sacct, {len(found.differences)} differences"
    )
    if found.purged:
        typer.echo(f"{found.purged} more are in sacct no longer, and were not compared: the site has purged them")
    if found.seconds_only:
        typer.echo(
            f"of {found.seconds_only} the seconds alone were compared: Slurm counts no GPUs here "
            "(gres/gpu is not in its AccountingStorageTRES)"
        )
    if not found.compared:
        typer.echo(f"nothing was compared: sacct has no ended job of the {len(attempts)} attempts in the ledger")
    if found.differences or not found.compared:
        raise typer.Exit(1)
