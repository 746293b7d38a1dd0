"""`octavo accept`: what a cluster's GPUs reach, measured and held against what is expected of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from octavo.errors import OctavoError, no_such


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(accept)
    app.command(hidden=True)(accept_device)


def accept(
    cluster: Annotated[str, typer.Argument(help="The file of configs/clusters that describes these GPUs.")],
    recipe: Annotated[
        list[str] | None, typer.Option(help="Only this recipe, and further ones named so; all that the GPU has.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Of this node; all that CUDA shows.")] = None,
    minutes: Annotated[float, typer.Option(min=1, help="When the last run is to be over.")] = 30,
) -> None:
    """On a node with GPUs: measure products, messages, short runs and speed, and say what passed and what fell short.

    Writes results/probes/<cluster>-accept.json, which the plan reads, and a page beside it. On several nodes start one
    task a GPU: srun octavo accept <cluster>. Ends with status 1 where something fell short.
    """
    from octavo.acceptance import page
    from octavo.acceptance.run import accept as measure
    from octavo.acceptance.run import gpus_here
    from octavo.experiment.load import load_cluster
    from octavo.experiment.precision_checks import version
    from octavo.layout import configs, repository
    from octavo.precision.config import RecipeName
    from octavo.precision.recipes import RECIPES, recipes_of

    described, device = load_cluster(cluster, configs())
    if device.kind != "gpu":
        raise OctavoError(f"the devices of {cluster} are CPUs", where="octavo accept", expected="a cluster of GPUs")
    cuda = version(described.cuda or "0")
    there = [one for one in recipes_of(device.compute_capability) if version(RECIPES[one].minimum_cuda or "0") <= cuda]
    for one in recipe or []:
        if one not in there:
            raise no_such(f"recipe of {device.name}", one, there, where="--recipe")
    chosen: list[RecipeName] = [cast(RecipeName, one) for one in recipe or there]
    count = gpus_here(described, gpus)
    record = measure(
        cluster, described, device, repository(), chosen, count, minutes, lambda said: typer.echo(said, err=True)
    )
    if record is None:  # another task leads
        return
    written = page.write(record, repository())
    for one in record.checks:
        typer.echo(f"{page.verdict(one):<22} {one.part}: {one.name}: {one.found}")
    typer.echo(page.finding(record))
    typer.echo("\n".join(str(path) for path in written))
    if record.fell_short:
        raise typer.Exit(1)


def accept_device(folder: Path, devices: int, recipes: list[str]) -> None:
    """What a task of `accept` does on its device."""
    from octavo.acceptance.device import measure_here
    from octavo.precision.config import RecipeName

    measure_here([cast(RecipeName, one) for one in recipes], folder, devices)
