"""`octavo import`, `octavo converges`: logs that other programs wrote -> tables, and how fast their runs converged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.layout import ExperimentFolder


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(name="import")(import_)
    app.command()(converges)


def import_(
    results: Annotated[Path, typer.Argument(metavar="results/NAME", help="The folder to import into; NAME is free.")],
    file: Annotated[Path, typer.Argument(help="A YAML file that says which cell each log is.", exists=False)],
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Read logs outside the YAML file's folder, too.")
    ] = False,
) -> None:
    """Import runs that others made: Megatron-LM, Megatron-Bridge, torchtitan, MLPerf logs, TensorBoard, CSV.

    Prints a line per run (steps, seconds and of how many steps, last validation, what is blank): look whether it is so.
    """
    from octavo.imports.runs import import_runs
    from octavo.imports.table import table
    from octavo.layout import configs

    folder = _folder(results)
    imported = import_runs(file, folder, configs(), allow_outside=allow_outside)
    for blank in imported.blank:
        typer.echo(f"left blank: {blank}", err=True)
    typer.echo(table(imported))
    typer.echo(folder.runs_table)


def converges(
    results: ExperimentArgument,
    reference: Annotated[
        str | None,
        typer.Option(help="A file of configs/published/convergence; otherwise the one for what the runs validate on."),
    ] = None,
) -> None:
    """Hold the samples that runs need for a loss against a reference, as MLPerf does; exit 1 where they are too few."""
    from octavo.evidence.convergence import convergence, read_reference
    from octavo.layout import configs

    if reference is not None and reference.endswith(".yaml"):
        reference = str(Path(reference).absolute())
    folder = enter(results)
    held = read_reference(reference, folder, configs())
    found = convergence(folder, held)
    for one in found:
        reached = ", ".join(f"{samples:,.0f}" for samples in one.samples)
        means = "" if one.mean is None or one.limit is None else (
            f"; olympic mean {one.mean:,.0f}, reference {one.limit.mean:,.0f}, at least {one.least:,.0f}"
        )  # fmt: skip
        typer.echo(f"{one.cell} (batch size {one.batch_size:,}): {one.outcome}{f' ({one.note})' if one.note else ''}")
        typer.echo(f"  samples to a validation loss of {held.target_loss:g}: {reached}{means}")
    if any(one.outcome == "faster than the reference by more than chance" for one in found):
        raise typer.Exit(1)


def _folder(path: Path) -> ExperimentFolder:
    """The folder to import into. Raises OctavoError for one that is not `results/<name>`."""
    from octavo.layout import NOT_EXPERIMENTS, ExperimentFolder

    if (
        ".." in path.parts
        or path.parent.name != "results"
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", path.name)
        or path.name in NOT_EXPERIMENTS
    ):
        raise OctavoError(
            f"{str(path)[:200]!r} is no folder of results",
            expected="results/NAME, NAME of at most 200 letters, digits, _ . - and not " + " or ".join(NOT_EXPERIMENTS),
            fix="choose a name, octavo import results/theirs FILE",
        )
    return ExperimentFolder(path)
