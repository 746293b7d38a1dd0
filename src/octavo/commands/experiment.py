"""`octavo schema`, `octavo check`, `octavo doctor`: what may be configured, whether it is right, and can run here."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.commands.named import ExperimentArgument, enter_trained
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.experiment.cluster import Cluster, Device
    from octavo.experiment.doctor import Finding


class SchemaName(StrEnum):
    """Files that have a schema."""

    experiment = "experiment"
    model = "model"
    data = "data"
    cluster = "cluster"
    device = "device"
    claim = "claim"
    import_ = "import"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(schema)
    app.command()(check)
    app.command()(doctor)
    app.command(hidden=True)(probe_node)


def schema(
    of: Annotated[SchemaName, typer.Argument(help="Which kind of file.")] = SchemaName.experiment,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Instead: every key of every kind of file, as docs/configuration.md.")
    ] = False,
) -> None:
    """Print the JSON schema of a kind of configuration file, for editors."""
    from octavo.commands import reference
    from octavo.evidence.verdicts import Claim
    from octavo.experiment.cluster import Cluster, Device
    from octavo.experiment.config import Data, ExperimentFile
    from octavo.imports.file import ImportFile
    from octavo.models.architecture import Architecture

    kinds = {
        "experiment": ("configs/experiments/<name>.yaml", ExperimentFile),
        "model": ("configs/models/<name>.yaml", Architecture),
        "data": ("configs/data/<name>.yaml", Data),
        "cluster": ("configs/clusters/<name>.yaml", Cluster),
        "device": ("configs/clusters/devices/<name>.yaml", Device),
        "claim": ("configs/claims/<name>.yaml", Claim),
        "import": ("<anywhere>.yaml", ImportFile),
    }
    if markdown:
        typer.echo(reference.markdown(kinds), nl=False)
    else:
        typer.echo(json.dumps(kinds[of.value][1].model_json_schema(), indent=2))


def check(
    experiment: ExperimentArgument,
) -> None:
    """Read an experiment with everything it names, check it and its local text, and list its cells.

    Text that is too short for the training or the validation asked for is an error where it is prepared, or local, of
    at most 64 MiB and read byte by byte; of other text `octavo data` tells it.
    """
    from octavo.data.checks import check_text
    from octavo.experiment.attention import unfused_cells
    from octavo.experiment.load import load_experiment

    loaded = load_experiment(enter_trained(experiment).name)
    check_text(loaded)
    first, most = len(loaded.file.first_seeds), len(loaded.file.all_seeds)
    if first < most:
        typer.echo(f"seeds until decided: {first} for every cell, up to {most} for what is not", err=True)
    for said in unfused_cells(loaded):
        typer.echo(f"warning: {said}", err=True)
    for cell in loaded.cells:
        typer.echo(cell)


def doctor(
    cluster: Annotated[
        str | None, typer.Option(help="Also hold this file of configs/clusters against what Slurm says.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also look at nodes of that cluster, in a short job with a task a device.")
    ] = False,
    nodes: Annotated[int, typer.Option(min=1, help="On how many nodes --probe looks at once.")] = 1,
    record: Annotated[
        bool, typer.Option("--record", help="For the pipeline: the cluster alone; keep what the probe found.")
    ] = False,
) -> None:
    """Show what this machine can do (processor, GPUs and their recipes, Slurm, Apptainer) and what it lacks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from octavo.experiment.doctor import examine
    from octavo.experiment.load import load_cluster
    from octavo.experiment.site import examine_cluster
    from octavo.layout import configs

    if cluster is None and (probe or record):
        raise OctavoError("--probe and --record need a cluster", expected="--cluster NAME, a file of configs/clusters")
    findings = [] if record else list(examine())
    if cluster is not None:
        described = load_cluster(cluster, configs())
        site = list(examine_cluster(cluster, *described))
        if probe and not any(one.state == "missing" for one in site):
            site += _probe(cluster, *described, nodes)
        findings += site
        if record:
            _record(cluster, findings, probe)
    marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        fix = f" [dim]-> {escape(finding.fix)}[/]" if finding.fix else ""
        table.add_row(marks[finding.state], finding.what, escape(finding.found) + fix)
    Console(highlight=False).print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _probe(name: str, cluster: Cluster, device: Device, nodes: int) -> list[Finding]:
    """Look at nodes of a cluster and keep what they said. Raises OctavoError where it has no Slurm."""
    from octavo.cluster.probe import probe
    from octavo.layout import repository

    if cluster.slurm is None:
        raise OctavoError(
            "the cluster has no nodes to look at", where=f"configs/clusters/{name}.yaml", expected="slurm"
        )
    return probe(name, cluster, device, repository(), nodes, lambda said: typer.echo(said, err=True))


def _record(name: str, findings: list[Finding], probed: bool) -> None:
    """Keep what stands in no run's way; raise one OctavoError with all that does."""
    from octavo.cluster.probe import record_probe
    from octavo.layout import repository

    if missing := [one for one in findings if one.state == "missing"]:
        raise OctavoError(
            "\n".join(f"{one.what}: {one.found}{one.fix and f' -> {one.fix}'}" for one in missing),
            where=f"configs/clusters/{name}.yaml",
            fix=f"mend it and look again: octavo doctor --cluster {name}{' --probe' if probed else ''}",
        )
    record_probe(name, repository(), probed)


def probe_node(cluster: str, folder: Path, devices: int) -> None:
    """What a task of `doctor --probe` does on its node."""
    from octavo.cluster.node import probe_here
    from octavo.experiment.load import load_cluster
    from octavo.layout import configs

    probe_here(*load_cluster(cluster, configs()), folder, devices)
