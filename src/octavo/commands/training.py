"""`octavo train`: one run, from its configuration to its result."""

from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.commands.named import enter_path
from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder, RunFolder, parse_run

if TYPE_CHECKING:
    from octavo.experiment.run import RunConfig


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(train)


def train(
    run_folder: Annotated[
        Path, typer.Argument(help="results/<experiment>/runs/<cell>/seed-<n>, and below it horizon-<steps>")
    ],
    config: Annotated[
        Path | None, typer.Option(help="A run's config.yaml, to train it in a folder of another name.")
    ] = None,
) -> None:
    """Train one run, or go on with it: what it is follows from its path.

    Started by torchrun or srun it is one rank; alone it starts the ranks of its run itself, in a Slurm job on all of
    the job's nodes. A finished run is left as it is. Told to stop (SIGTERM, SIGUSR1, Ctrl-C) it saves and leaves with
    status 75: start it again and it goes on.
    """
    from octavo.cluster.launch import in_allocation
    from octavo.cluster.launch import launch as launch_in_job
    from octavo.data.manifest import current_manifest
    from octavo.experiment.load import load_experiment
    from octavo.records import laid_out
    from octavo.training import launch
    from octavo.training.journal import finished
    from octavo.training.requirements import check_run

    config = config and config.absolute()
    folder = RunFolder(enter_path(run_folder))
    run = _resolve(folder, config)
    if result := finished(folder, run.own_identity, current_manifest(run.data, run.tokenizer)):
        other = result.run_fingerprint != run.run_fingerprint
        under = f" (under {laid_out(result.layouts)}; it is now configured for {run.layout})" if other else ""
        typer.echo(f"complete: {folder.result}{under}")
        return
    check_run(run)
    if in_allocation() and (experiment := load_experiment(run.experiment)).cluster.slurm:
        raise typer.Exit(launch_in_job(experiment, run, folder, ["--config", str(config)] if config else []))
    process = launch.find_process(run.parallelism.world_size)
    if process is None:
        arguments = ["train", str(folder.path), *(["--config", str(config)] if config else [])]
        grace = run.training.checkpoints.grace_seconds
        raise typer.Exit(launch.start_ranks(run.parallelism.world_size, arguments, grace, folder))
    _set_environment(run)
    gc.disable()  # a million objects that live to the end: to look at them on the way is a seventh of the imports' time
    from octavo.cpu.backend import install

    install()
    from octavo.training.trainer import train as train_run

    gc.freeze()
    gc.enable()
    launch.leave(train_run(run, folder, process))


def _resolve(folder: RunFolder, config: Path | None) -> RunConfig:
    """The run that a folder's path names, or the one in a file."""
    from octavo.experiment.load import load_experiment
    from octavo.experiment.run import read_run_config

    if config is not None:
        return read_run_config(config)
    path = folder.path.absolute()
    runs = next((one for one in path.parents if one.name == "runs"), None)
    named = parse_run(path.relative_to(runs).as_posix()) if runs else None
    if runs is None or named is None:
        raise OctavoError(
            "the folder is not a run's",
            where=folder.path,
            expected="results/<experiment>/runs/<cell>/seed-<n>, or horizon-<steps> in it",
        )
    return load_experiment(ExperimentFolder(runs.parent).name).run(*named)


def _set_environment(run: RunConfig) -> None:
    """Variables that torch and its libraries read when they are imported."""
    from octavo.training.requirements import (
        connections_environment,
        deterministic_environment,
        device_of,
        scales_environment,
    )

    warnings.filterwarnings("ignore", module=r"megatron\.")  # of options that we chose, and of Apex
    if device_of(run).kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also where there is a GPU: a run is what it says
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(run.training.threads)
    os.environ.update(connections_environment(run, os.environ) | scales_environment(run))
    if run.training.deterministic:
        os.environ.update(deterministic_environment(run, os.environ))
