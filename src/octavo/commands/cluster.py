"""`octavo show`: the job script of a run, without submitting it. `octavo image`: the container that runs happen in."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter_trained


class VariantName(StrEnum):
    """Variants of container.def."""

    gpu = "gpu"
    cpu = "cpu"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(show)
    app.command()(image)


def show(
    experiment: ExperimentArgument,
    run: Annotated[str, typer.Argument(help="CELL/seed-N, as in the run's path: moe-bf16/seed-1.")],
) -> None:
    """Print what would be submitted for a run and what its job would start. Nothing is submitted."""
    from octavo.cluster.image import Image, read_image
    from octavo.cluster.job import sbatch_command, slurm_section
    from octavo.cluster.launch import Launch
    from octavo.configuration import read_yaml
    from octavo.errors import OctavoError
    from octavo.experiment.load import load_experiment
    from octavo.layout import image_file, repository

    cell, _, seed = run.partition("/seed-")
    if not seed.isdigit():
        raise OctavoError(f"{run!r} names no run", expected="CELL/seed-N, moe-bf16/seed-1 say")
    loaded = load_experiment(enter_trained(experiment).name)
    config, folder = loaded.run(cell, int(seed)), loaded.folder.run(cell, int(seed))
    profile = read_yaml(repository() / "workflow" / "profiles" / "slurm" / "config.yaml")
    submitted = sbatch_command(loaded, config, int(seed), requeue=bool(profile.get("slurm-requeue")))
    slurm, built = slurm_section(loaded), None
    if variant := slurm.image:
        try:
            built = read_image(repository(), variant)
        except OctavoError:
            built = Image(variant, image_file(variant), "(not built yet)")
    planned = Launch(loaded, config, ("train", str(folder.path)), repository(), built)
    if left := [key for key in ("partition", "account") if getattr(slurm, key) is None]:
        typer.echo(f"# {' and '.join(left)}: not in the cluster file; your default is added when it is submitted")
    typer.echo(f"# submitted: the snakemake inside runs `octavo {' '.join(planned.arguments)}`\n{submitted}\n")
    typer.echo(f"# started inside the job\n{planned.script()}")


def image(variant: Annotated[VariantName, typer.Argument(help="gpu, or cpu for tests without any.")]) -> None:
    """Build the container image from container.def and the lock, and record its digest and packages."""
    from octavo.cluster.image import build_image
    from octavo.layout import repository

    built = build_image(repository(), variant.value)
    typer.echo(f"{built.path}  {built.digest}")
