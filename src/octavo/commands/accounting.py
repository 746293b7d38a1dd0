"""`octavo status`: how far an experiment is. `octavo reconcile`: whether its ledger agrees with Slurm's."""

from __future__ import annotations

import sys
from datetime import timedelta
from shutil import get_terminal_size
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
    """Show which runs are done, running, queued or failed, how far each is, how long still, and Slurm's jobs."""
    from json import dumps

    from octavo.accounting.status import as_json, jobs_in_queue, ledger_status, run_statuses
    from octavo.experiment.load import load_experiment

    loaded = load_experiment(enter_trained(experiment).name)
    if json:
        typer.echo(dumps(as_json(loaded), indent=2))
        return
    jobs, silent = jobs_in_queue(loaded)
    runs = run_statuses(loaded, jobs)
    rows = [("run", "state", "step", "loss", "left", "attempts", "job", "last error")]
    for run in runs:
        left = "" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        rows.append((f"{run.cell}/seed-{run.seed}", run.state, f"{run.step}/{run.steps}", loss, left,
                     str(run.attempts), str(run.job or ""), run.error or ""))  # fmt: skip
    typer.echo("\n".join(_columns(rows, get_terminal_size().columns if sys.stdout.isatty() else None)))
    for run in runs:
        for slow in run.stragglers:
            typer.echo(f"{run.cell}/seed-{run.seed} is slowed down: {slow} (slurm.exclude takes a node out)")
    done = sum(run.state in ("done", "diverged") for run in runs)
    typer.echo(f"{done} of {len(runs)} runs done")
    if left := sum(run.seconds_left or 0 for run in runs):
        typer.echo(f"{timedelta(seconds=round(left))} of training left, one run after another")
    if silent:
        typer.echo(f"which jobs wait or run is not known: {silent}")
    if (most := len(loaded.file.all_seeds) * len(loaded.cells)) > len(loaded.file.first_seeds) * len(loaded.cells):
        typer.echo(f"seeds until decided: {len(runs)} runs asked for so far, {most} at most")
    if damaged := sum(run.state == "damaged" for run in runs):
        typer.echo(f"{damaged} damaged: no tables are made before that is mended")
    for reason in ledger_status(loaded.folder):
        typer.echo(f"the ledger is provisional: {reason}")


def _columns(rows: list[tuple[str, ...]], width: int | None = None) -> list[str]:
    """Lines with columns as wide as their longest value: words on the left, numbers on the right, the last as it is.
    Columns in which no row says anything are left out, and lines longer than `width` are cut.

    (A table of rich takes longer to draw than ten thousand runs take to be looked at.)
    """
    columns = [
        (side, column) for side, column in zip("<<>>>><<", zip(*rows, strict=True), strict=True) if any(column[1:])
    ]
    shape = "  ".join(f"{{:{side}{max(map(len, column))}}}" for side, column in columns)
    lines = [shape.format(*row).rstrip() for row in zip(*(column for _, column in columns), strict=True)]
    return [line if width is None or len(line) <= width else f"{line[: width - 1]}…" for line in lines]


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
    kept, word = slurm.kept_accounting(loaded), trainers_rows(loaded)
    gpus = gives_gpus(loaded.cluster, loaded.device)
    trained = {row["job"]: row["devices"] for row in word if gpus and row["job"]}
    rows = [row for row in slurm.query(loaded, word, kept) if row.cell in cells]
    found = compare(attempts, rows, kept.rows, trained)
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
