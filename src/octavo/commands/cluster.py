"""`octavo show`: the job script of a run, without submitting it. `octavo image`: the container that runs happen in.

`octavo cluster new`: a cluster file from what Slurm says.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter_trained
from octavo.errors import OctavoError, no_such, shown


class VariantName(StrEnum):
    """Variants of container.def."""

    gpu = "gpu"
    cpu = "cpu"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(show)
    app.command()(image)
    clusters = typer.Typer(no_args_is_help=True, help="Cluster files: what runs ask Slurm for, and what they cost.")
    clusters.command()(new)
    app.add_typer(clusters, name="cluster")


def show(
    experiment: ExperimentArgument,
    run: Annotated[str, typer.Argument(help="As in the run's path: moe-bf16/seed-1, or moe-bf16/seed-1/horizon-270.")],
) -> None:
    """Print what would be submitted for a run and what its job would start. Nothing is submitted."""
    from octavo.cluster.image import Image, read_image
    from octavo.cluster.job import allocation_command, sbatch_command, slurm_section
    from octavo.cluster.launch import Launch
    from octavo.configuration import read_yaml
    from octavo.experiment.load import load_experiment
    from octavo.layout import image_file, parse_run, repository

    if (named := parse_run(run)) is None:
        raise OctavoError(f"{run!r} names no run", expected="CELL/seed-N, moe-bf16/seed-1 say")
    loaded = load_experiment(enter_trained(experiment).name)
    config, folder = loaded.run(*named), loaded.folder.run(*named)
    if slurm_section(loaded).same_nodes:
        typer.echo(f"# one allocation for all runs, each a step in it (slurm.same_nodes)\n{allocation_command(loaded)}")
        return
    profile = read_yaml(repository() / "workflow" / "profiles" / "slurm" / "config.yaml")
    submitted = sbatch_command(loaded, config, config.seed, requeue=bool(profile.get("slurm-requeue")))
    slurm, built = slurm_section(loaded), None
    if variant := slurm.image:
        try:
            built = read_image(repository(), variant, slurm.container)
        except OctavoError:
            built = Image(variant, image_file(variant, slurm.container), "(not built yet)")
    planned = Launch(loaded, config, ("train", str(folder.path)), repository(), built)
    if left := [key for key in ("partition", "account") if getattr(slurm, key) is None]:
        typer.echo(f"# {' and '.join(left)}: not in the cluster file; your default is added when it is submitted")
    typer.echo(f"# submitted: the snakemake inside runs `octavo {' '.join(planned.arguments)}`\n{submitted}\n")
    typer.echo(f"# started inside the job\n{planned.script()}")


def image(
    variant: Annotated[VariantName, typer.Argument(help="gpu, or cpu for tests without any.")],
    squashfs: Annotated[bool, typer.Option("--squashfs", help="For pyxis: the file system in it, as a .sqsh.")] = False,
) -> None:
    """Build the container image from container.def and the lock, and record its digest and packages."""
    from octavo.cluster.image import build_image, build_squashfs
    from octavo.layout import repository

    built = (build_squashfs if squashfs else build_image)(repository(), variant.value)
    typer.echo(f"{built.path}  {built.digest}")


def new(
    name: Annotated[str, typer.Argument(help="Of the file: configs/clusters/NAME.yaml.")],
    partition: Annotated[str | None, typer.Option(help="One that sinfo lists.")] = None,
    gpu_type: Annotated[str | None, typer.Option(help="A type of GPU that sinfo lists in it.")] = None,
    device: Annotated[str | None, typer.Option(help="A file of configs/clusters/devices.")] = None,
    account: Annotated[str | None, typer.Option(help="One of yours.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="That an experiment may use; all, if not said.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device-hour, in USD.")] = None,
    source: Annotated[str | None, typer.Option(help="Where that price comes from.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write it anew where it is there already.")] = False,
) -> None:
    """Ask Slurm what there is, offer it, and write a cluster file. What options say is not asked.

    Without a terminal nothing is asked: what is not said and has more than one answer is an error.
    """
    from octavo.cluster.new import Choice, chosen_kind, cluster_file, device_of, look_at_site, write_cluster
    from octavo.experiment.config import FILE_NAME
    from octavo.layout import configs

    if not FILE_NAME.fullmatch(name):
        raise OctavoError(f"{shown(name)} is no name of a file", expected="letters, digits, _ . and -")
    path = configs().clusters / f"{name}.yaml"
    if path.exists() and not replace:
        write_cluster(path, "", replace=False)
    site = look_at_site()
    kinds = chosen_kind(site, partition, gpu_type)
    kind = kinds[_choose("Nodes", [str(one) for one in kinds], "--partition, --gpu-type")]
    known = sorted(file.stem for file in (configs().clusters / "devices").glob("*.yaml"))
    guessed = device or device_of(kind.gpu_type, kind.gpus, known)
    if guessed is not None and guessed not in known:
        raise no_such("device", guessed, known, where=configs().clusters / "devices")
    gpus = [one for one in known if one != "cpu"]
    which = guessed or gpus[_choose("Device", gpus, "--device")]
    if account is not None and site.accounts and account not in site.accounts:
        raise no_such("account of yours", account, site.accounts, where="sacctmgr")
    paid = account or (site.accounts[_choose("Account", site.accounts, "--account")] if site.accounts else None)
    choice = Choice(
        kind=kind,
        device=which,
        account=paid,
        nodes=nodes or kind.nodes,
        price=price if price is not None else _price(),
        source=source or _say("Where that price comes from", "--source"),
    )
    write_cluster(path, cluster_file(name, choice), replace=replace)
    typer.echo(f"{path}: written\nnext: octavo doctor --cluster {name} --probe")


def _choose(what: str, offered: list[str], option: str) -> int:
    """The place of what was chosen; of one thing it is that one, and without a terminal the choice is an error."""
    if len(offered) == 1:
        return 0
    if not sys.stdin.isatty():
        raise OctavoError(
            f"{what}: there is more than one", expected="\n            ".join(offered), fix=f"say {option}"
        )
    for number, one in enumerate(offered, 1):
        typer.echo(f"  {number}  {one}")
    while not 1 <= (number := int(typer.prompt(what, default=1, type=int))) <= len(offered):
        typer.echo(f"one of 1 to {len(offered)}")
    return number - 1


def _say(what: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise OctavoError(f"{what}: is not said", fix=f"say {option}")
    return str(typer.prompt(what))


def _price() -> float:
    if not sys.stdin.isatty():
        raise OctavoError("the price of a device-hour is not said", fix="say --price")
    while (price := float(typer.prompt("What a device-hour costs you, USD", type=float))) < 0:
        typer.echo("0 or more")
    return price
