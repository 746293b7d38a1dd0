"""What Snakemake's rules ask of Octavo: the files that a job needs, what makes it run again, what it asks of Slurm.

Rules hand their wildcards in: `experiment`, `cell`, `seed`, and `scope`, which is an experiment or one ablation of it
(`<experiment>/ablations/<name>`): the same reports are made of both. Paths come out relative to the checkout, which is
the working folder. Errors that a user can mend are raised as Snakemake's WorkflowError, which it prints without a
traceback.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from octavo.accounting.ledger import times_provisional
from octavo.cluster import image as images
from octavo.cluster import job as jobs
from octavo.cluster import launch
from octavo.data import manifest as data_sets
from octavo.errors import OctavoError
from octavo.evidence.looks import seeds_asked
from octavo.experiment.load import load_experiment
from octavo.experiment.run import CellConfig, Experiment, data_identifier, run_fingerprint
from octavo.files import fingerprint, sha256
from octavo.layout import TEMPLATES, ExperimentFolder, data_folder, image_file
from octavo.training.journal import finished

CORES = len(os.sched_getaffinity(0))
"""This machine's; Snakemake gives a local job at most those of --cores."""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def _told_by_snakemake(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    @functools.wraps(function)
    def wrapped(*arguments: Parameters.args, **named: Parameters.kwargs) -> Returned:
        try:
            return function(*arguments, **named)
        except OctavoError as error:
            raise WorkflowError(str(error)) from None

    return wrapped


def put_programs_on_path() -> None:
    """Let rules call the `octavo` that is installed beside this Python, whether or not its folder is on the path."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


# --- experiments and scopes -----------------------------------------------------------------------------------------


@cache
def _checked_experiment(name: str) -> Experiment:
    found = load_experiment(name)
    # here, not in train's inputs: where the result exists Snakemake passes over an error in those
    text, tokenizer = found.file.data, found.file.tokenizer
    data_sets.check_newer_sources(text, tokenizer, data_sets.data_set_folder(text, tokenizer))
    return found


@_told_by_snakemake
def experiment(name: str) -> Experiment:
    """An experiment; one whose text is not what its data set was made of is an error, as far as a look can tell."""
    return _checked_experiment(name)


def check_experiments(arguments: list[str]) -> None:
    """End with the one message of what is wrong with the experiments that a command line names.

    Of an error within a rule Snakemake makes a traceback and a banner.
    """
    found = (re.match(r"results/([A-Za-z0-9][\w.-]*)/.", argument) for argument in arguments)
    try:
        for name in sorted({match[1] for match in found if match} - {"data", "images"}):
            _checked_experiment(name)
    except OctavoError as error:
        sys.exit(f"error: {error}")


def split_scope(scope: str) -> tuple[str, str | None]:
    """`laptop/ablations/x` -> (laptop, x); `laptop` -> (laptop, None)."""
    name, _, ablation = scope.partition("/ablations/")
    return name, ablation or None


def scope_arguments(wildcards: Any) -> str:
    """How verbs are told a scope."""
    name, ablation = split_scope(wildcards.scope)
    return f"results/{name}" + (f" --ablation {ablation}" if ablation else "")


@_told_by_snakemake
def _cells(scope: str) -> list[CellConfig]:
    name, ablation = split_scope(scope)
    of = experiment(name)
    return of.ablation_cells(ablation) if ablation else list(of.cells.values())


def scope_results(wildcards: Any) -> list[str]:
    """The result files that a report rests on."""
    of = experiment(split_scope(wildcards.scope)[0])
    return [
        str(of.folder.run(cell.cell, seed).result)
        for cell in _cells(wildcards.scope)
        for seed in of.seeds_of(cell.cell, of.folder)
    ]


def asked_results(look: Callable[[], Any]) -> Callable[[Any], list[str]]:
    """The same of seeds until decided: those that all looks ask for, or before the look `after` so many seeds.

    `look` gives the checkpoint, which stops Snakemake until the look that is asked for is there.
    """
    return _told_by_snakemake(lambda wildcards: _asked(wildcards, look))


def _asked(wildcards: Any, look: Callable[[], Any]) -> list[str]:
    of, after = experiment(split_scope(wildcards.scope)[0]), getattr(wildcards, "after", None)

    def looked(seeds: int) -> Path:
        return Path(look().get(scope=wildcards.scope, after=seeds).output[0])

    cells = [cell.cell for cell in _cells(wildcards.scope)]
    asked = seeds_asked(of, cells, looked, None if after is None else int(after))
    return [str(of.folder.run(cell, seed).result) for cell, seeds in asked.items() for seed in seeds]


def scope_plan(wildcards: Any) -> str:
    """The forecast that a report holds against the runs."""
    return str(ExperimentFolder(Path("results") / split_scope(wildcards.scope)[0]).plan_csv)


# --- what makes a stage run again: params, whose change Snakemake sees ----------------------------------------------


def scope_fingerprint(wildcards: Any) -> str:
    """Changes when any run that a report rests on is configured otherwise."""
    of = experiment(split_scope(wildcards.scope)[0])
    return fingerprint([[cell.fingerprint, of.file.all_seeds] for cell in _cells(wildcards.scope)])


@cache
def digest(*paths: Path) -> str:
    """Of the names and contents of files, and of all files in folders; those that are not there are left out."""
    files = [(path.parent, file) for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return fingerprint(sorted([str(file.relative_to(base)), sha256(file)] for base, file in files if file.is_file()))


def _cluster_files(of: Experiment) -> Iterator[Path]:
    """The cluster file, with the prices, and its device's."""
    yield of.configs.clusters / f"{of.file.cluster}.yaml"
    yield of.configs.clusters / "devices" / f"{of.cluster.device}.yaml"


def plan_digest(wildcards: Any) -> str:
    """Of what a plan is made from besides the experiment's own file."""
    of = experiment(wildcards.experiment)
    return digest(*_cluster_files(of), of.configs.clusters / "calibration", of.configs.models, TEMPLATES / "plan.typ")


def tables_digest(wildcards: Any) -> str:
    """Of what tables are made from besides runs and Slurm's accounting: prices and watts."""
    return digest(*_cluster_files(experiment(split_scope(wildcards.scope)[0])))


def claims_digest(wildcards: Any) -> str:
    """Of what verdicts are reached with besides tables: claims, published figures, prices, the experiment's file."""
    of = experiment(split_scope(wildcards.scope)[0])
    return digest(of.configs.claims, of.configs.published, of.path, *_cluster_files(of))


def figures_digest(wildcards: Any) -> str:
    """Of what figures are drawn from besides their inputs: names and prices."""
    of = experiment(split_scope(wildcards.scope)[0])
    return digest(of.path, *_cluster_files(of))


def report_digest(wildcards: Any) -> str:
    """Of what a report is made from besides its inputs: templates, descriptions and prices."""
    of = experiment(split_scope(wildcards.scope)[0])
    return digest(TEMPLATES, of.path, of.data_path, *_cluster_files(of))


def verification_digest(wildcards: Any) -> str | None:
    """Changes when the results were verified since: the report has a page about it, but does not wait for it."""
    path = ExperimentFolder(Path("results") / wildcards.scope).verification
    return sha256(path) if path.exists() else None


def ledger_provisional(wildcards: Any) -> object:
    """Whether the tables' times are provisional: they are made again, for Slurm's accounting may answer now."""
    return times_provisional(ExperimentFolder(Path("results") / wildcards.scope))


def image_lock(wildcards: Any) -> str:
    """The lock that an image is made from."""
    return str(images.LOCKS[wildcards.variant])


def image_digest(wildcards: Any) -> str:
    """Of all that an image is made from."""
    return images.inputs_digest(Path.cwd(), wildcards.variant)


# --- training -------------------------------------------------------------------------------------------------------


@cache
def _data_set(name: str) -> str | None:
    """The manifest's hash of the data set that there is now."""
    return data_sets.current_manifest(experiment(name).file.data, experiment(name).file.tokenizer)


def run_config(wildcards: Any) -> CellConfig:
    """The cell of a run."""
    of = experiment(wildcards.experiment)
    if wildcards.cell not in of.cells or int(wildcards.seed) not in of.file.all_seeds:
        raise WorkflowError(f"{of.path} has no run {wildcards.cell}/seed-{wildcards.seed}")
    return of.cells[wildcards.cell]


def fingerprint_of_run(wildcards: Any) -> str:
    """Changes when the run is configured otherwise."""
    return run_fingerprint(run_config(wildcards).fingerprint, int(wildcards.seed))


def train_inputs(wildcards: Any) -> list[str]:
    """The forecast, the data and the image, which must be there before a run starts; nothing for a finished run.

    A finished run is not started again where one of them is missing or newer. `ancient` would not do: Snakemake starts
    a job whose ancient input is missing, and overlooks what else changed downstream of one that is made again.
    """
    of, cell = experiment(wildcards.experiment), run_config(wildcards)
    folder = of.folder.run(cell.cell, int(wildcards.seed))
    if finished(folder, fingerprint_of_run(wildcards), _data_set(wildcards.experiment)):
        return []
    slurm = of.cluster.slurm
    files: list[Path] = [
        of.folder.plan_csv,
        data_folder(data_identifier(of.file.data, of.file.tokenizer)) / "manifest.json",
        *([image_file(slurm.image)] if slurm and slurm.image else []),
    ]
    return [str(file) for file in files]


def train_priority(wildcards: Any) -> int:
    """The longest runs begin first, so that none trains alone while the other cores wait for the report."""
    return experiment(wildcards.experiment).relative_length(run_config(wildcards).cell)


def train_threads(wildcards: Any) -> int:
    """CPU threads of all of a run's processes."""
    cell = run_config(wildcards)
    return cell.training.threads * cell.parallelism.world_size


def train_resources() -> dict[str, Callable[..., Any]]:
    """What a run asks of Slurm, by resource (`octavo.cluster.job`); other executors take no notice."""
    return {key: _of_run(key) for key in _keys()} | {"nodes": _nodes}


def verification_resources() -> dict[str, Callable[..., Any]]:
    """The same of the cell whose runs take the most devices: what is made again may be one of its."""
    return {key: _of_largest(key) for key in _keys()}


def device_caps() -> dict[str, int]:
    """The most devices that all runs together may hold: a resource of each cluster file that has a cap."""
    return jobs.caps()


def retries(submits: bool) -> int:
    """How often a run is tried again: where jobs are submitted, as what ended one may be the cluster's doing."""
    return jobs.most_retries() if submits else 0


def _keys() -> Iterable[str]:
    return [*jobs.RESOURCES, *jobs.caps()]


@cache
@_told_by_snakemake
def _job_resources(name: str, cell: str) -> dict[str, Any]:
    of = experiment(name)
    if of.cluster.slurm is None:
        return {"mem_mb": 0, "runtime": 0}  # not asked for; of these two Snakemake wants numbers
    _check_comments(name)
    return dict(jobs.resources(of, of.cells[cell]))


@cache
def _check_comments(name: str) -> None:
    jobs.check_comments(experiment(name))


def _of_run(key: str) -> Callable[..., Any]:
    return lambda wildcards: _job_resources(wildcards.experiment, run_config(wildcards).cell).get(key)


def _of_largest(key: str) -> Callable[..., Any]:
    def of_largest(wildcards: Any) -> Any:
        cells = experiment(wildcards.experiment).cells.values()
        largest = max(cells, key=lambda cell: cell.parallelism.world_size)
        return _job_resources(wildcards.experiment, largest.cell).get(key)

    return of_largest


def _nodes(wildcards: Any, attempt: int) -> int | None:
    """None at all for a try that could end no other way than those before: the executor refuses to submit that."""
    of, cell, seed = experiment(wildcards.experiment), run_config(wildcards).cell, int(wildcards.seed)
    nodes = _job_resources(wildcards.experiment, cell).get("nodes")
    try:
        if nodes:
            tries = jobs.slurm_section(of).retries
            launch.refuse_hopeless(of.folder.run(cell, seed), of.run(cell, seed), tries=attempt, retries=tries)
    except OctavoError as error:
        logger.error(f"not tried again: {error}")
        return 0
    return nodes
