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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from octavo.accounting.ledger import times_provisional
from octavo.cluster import image as images
from octavo.cluster import job as jobs
from octavo.cluster import launch
from octavo.cluster.adopt import adopt_jobs
from octavo.cluster.own import OwnAllocation, own_allocation
from octavo.configuration import read_yaml
from octavo.data import manifest as data_sets
from octavo.errors import OctavoError
from octavo.evidence.looks import seeds_asked
from octavo.experiment.cluster import Slurm
from octavo.experiment.load import load_cluster, load_experiment
from octavo.experiment.run import CellConfig, Experiment, RunIdentity, data_identifier
from octavo.files import fingerprint, sha256, unwritable
from octavo.forecast.machine import speed_files
from octavo.layout import (
    NOT_EXPERIMENTS,
    TEMPLATES,
    ConfigFolders,
    ExperimentFolder,
    RunFolder,
    configs,
    data_folder,
    image_file,
    parse_run,
    probe_file,
)
from octavo.records import AttemptRecord, read_lines
from octavo.training.journal import finished
from octavo.training.launch import ALLOCATION

SUBMITS = "OCTAVO_SUBMITS"
"""Environment variable: this pipeline submits runs to Slurm. Only the process that works the graph out reads it."""
CORES = len(os.sched_getaffinity(0))
"""This machine's; Snakemake gives a local job at most those of --cores."""
CPU_CORES, CPU_MINUTES, CPU_MEMORY_MB = 8, 240, 32_000
"""Of a job that builds an image or makes tokens, where `--config` says nothing else."""

LONGEST = 100
"""`Experiment.relative_lengths` of the longest run."""
FIRST = 3 * LONGEST
"""Priority of a first report over all runs."""

SPACE_NEEDED = 1 << 20
"""Bytes that must be free in results/ before anything starts: logs alone take them."""

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
        for name in sorted({match[1] for match in found if match} - set(NOT_EXPERIMENTS)):
            _checked_experiment(name)
    except OctavoError as error:
        sys.exit(f"error: {error}")


def check_writable(arguments: list[str]) -> None:
    """End with one message where results cannot be written: of that Snakemake makes a traceback for every job."""
    if any(re.fullmatch(r"-[a-zA-Z]*n[a-zA-Z]*|--dry-?run", one) for one in arguments):
        return
    folder = Path("results")
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SPACE_NEEDED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        sys.exit(f"error: {unwritable(folder.absolute(), error)}")


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


@_told_by_snakemake
def first_results(wildcards: Any) -> list[str]:
    """The result files that a first report rests on."""
    of = experiment(split_scope(wildcards.scope)[0])
    cells = [cell.cell for cell in _cells(wildcards.scope)]
    return [str(of.folder.run(cell, seed).result) for cell in cells for seed in of.first_report_seeds]


@cache
def _first_report(scope: str) -> list[str]:
    of, folder = experiment(split_scope(scope)[0]), ExperimentFolder(Path("results") / scope)
    first = [of.folder.run(cell.cell, seed).result for cell in _cells(scope) for seed in of.file.first_seeds]
    wanted = of.first_report_seeds and (folder.first_report.exists() or not all(path.exists() for path in first))
    return [str(folder.first_report)] if wanted else []


@_told_by_snakemake
def first_report(wildcards: Any) -> list[str]:
    """What says that a first report stands, which the whole one waits for; nothing where the first seeds are trained.

    It is newer than that report: where the pipeline was ended in between, the report is out of date and made anew. What
    is wanted stays so while Snakemake runs: a report whose inputs are others than before would be made twice.
    """
    return _first_report(wildcards.scope)


def first_report_fingerprint(wildcards: Any) -> str:
    """Changes when any run that a first report rests on is configured otherwise."""
    seeds = experiment(split_scope(wildcards.scope)[0]).first_report_seeds
    return fingerprint([[cell.fingerprint, seeds] for cell in _cells(wildcards.scope)])


def scope_leverage(wildcards: Any) -> list[str]:
    """What a ladder says of leverage; nothing where an experiment has no ladder, or for one of its ablations."""
    name, ablation = split_scope(wildcards.scope)
    return [str(experiment(name).folder.leverage)] if experiment(name).rungs and ablation is None else []


def ladder_digest(wildcards: Any) -> str:
    """Of what a ladder's fit is made from besides tables: the rule, and the experiment at published scale."""
    of = experiment(wildcards.experiment)
    name = of.file.ladder.published if of.file.ladder else None
    beyond = experiment(name) if name else of
    return digest(of.path, beyond.path, *_cluster_files(beyond), beyond.configs.models)


def prediction_digest(wildcards: Any) -> str | None:
    """Of what a report says was foretold; it does not wait for it, as the largest rung did."""
    path = ExperimentFolder(Path("results") / split_scope(wildcards.scope)[0]).prediction
    return sha256(path) if path.exists() else None


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
    rates = [of.configs.clusters / "calibration", *speed_files(of.cluster, of.device)]
    published = [of.configs.published / "runs", *of.configs.published.glob("*.csv")]
    return digest(*_cluster_files(of), *rates, of.configs.models, *published, TEMPLATES / "plan.typ")


def tables_digest(wildcards: Any) -> str:
    """Of what tables are made from besides runs and Slurm's accounting: prices and watts."""
    return digest(*_cluster_files(experiment(split_scope(wildcards.scope)[0])))


@_told_by_snakemake
def claims_digest(wildcards: Any) -> str:
    """Of what verdicts are reached with besides tables: claims, published figures, prices, the experiment's file."""
    of = experiment(split_scope(wildcards.scope)[0])
    clusters = of.configs.clusters  # claims may name another cluster file than the experiment's
    plans = _plans_of_claims(of.configs)
    return digest(
        of.configs.claims, of.configs.published, of.path, *clusters.glob("*.yaml"), clusters / "devices",
        *plans, *([of.configs.models] if plans else []),
    )  # fmt: skip


def _plans_of_claims(folders: ConfigFolders) -> list[Path]:
    """The files of experiments whose plans claims name."""
    claims = [read_yaml(path) for path in sorted(folders.claims.glob("*.yaml"))]
    compared = [one.get("comparison") for one in claims if isinstance(one, dict)]
    names = {one["experiment"] for one in compared if isinstance(one, dict) and "experiment" in one}
    return [folders.experiments / f"{name}.yaml" for name in sorted(names, key=str)]


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


def index_digest(_wildcards: Any) -> str:
    """Of what the page of all experiments is made from: their tables and verdicts, and what was verified."""
    made = ("claims.json", "runs.parquet", "verification.json")
    return digest(*(path for name in made for path in sorted(Path("results").glob(f"*/{name}"))))


def ledger_provisional(wildcards: Any) -> object:
    """Whether the tables' times are provisional: they are made again, for Slurm's accounting may answer now."""
    return times_provisional(ExperimentFolder(Path("results") / wildcards.scope))


@_told_by_snakemake
def probe_inputs(wildcards: Any) -> list[str]:
    """What a cluster's nodes are looked at in: the image, if it has one."""
    return list(map(str, _images(load_cluster(wildcards.cluster, configs())[0].slurm)))


def _images(slurm: Slurm | None) -> list[Path]:
    """The image that runs on a cluster happen in, if there is one."""
    return [image_file(slurm.image, slurm.container)] if slurm and slurm.image else []


@_told_by_snakemake
def probe_options(wildcards: Any) -> str:
    """Whether nodes are looked at, or the cluster file alone."""
    slurm = load_cluster(wildcards.cluster, configs())[0].slurm
    return "--probe" if slurm and slurm.probe else ""


def probe_day(wildcards: Any) -> list[str]:
    """Changes every day, and with the cluster file: the cluster is looked at again then."""
    return [datetime.now(UTC).date().isoformat(), digest(configs().clusters / f"{wildcards.cluster}.yaml")]


def cpu_job(config: Mapping[str, Any]) -> dict[str, int | str]:
    """The resources of rules that need no GPU but time, where they are jobs (`--config cpu_partition=...`)."""
    if "cpu_partition" not in config:
        return {}
    account = {"slurm_account": config["cpu_account"]} if "cpu_account" in config else {}
    minutes, memory = config.get("cpu_minutes", CPU_MINUTES), config.get("cpu_memory_mb", CPU_MEMORY_MB)
    return {"slurm_partition": config["cpu_partition"], "runtime": minutes, "mem_mb": memory, **account}


def cpu_job_threads(config: Mapping[str, Any]) -> int | None:
    """The cores of such a job; None: the rule is no job."""
    return int(config.get("cpu_cores", CPU_CORES)) if "cpu_partition" in config else None


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


@cache
def _all_seeds(name: str) -> frozenset[int]:
    return frozenset(experiment(name).file.all_seeds)


def run_config(wildcards: Any) -> CellConfig:
    """The cell of a run."""
    of, (cell, seed) = experiment(wildcards.experiment), run_named(wildcards)
    if cell not in of.cells or seed not in _all_seeds(wildcards.experiment):
        raise WorkflowError(f"{of.path} has no run {wildcards.cell}/seed-{wildcards.seed}")
    return of.cells[cell]


def run_named(wildcards: Any) -> tuple[str, int]:
    """Cell and seed of a run; its wildcard `seed` is the rest of its path: `1`, `1/horizon-270`."""
    named = parse_run(f"{wildcards.cell}/seed-{wildcards.seed}")
    assert named is not None, "rules admit no other names"
    return named


def fingerprint_of_run(wildcards: Any) -> str:
    """Changes when the run is configured otherwise; not for a result that stays though the layout was changed."""
    identity = run_config(wildcards).identity(run_named(wildcards)[1])
    return _made_under(wildcards) or identity.run_fingerprint


def _made_under(wildcards: Any) -> str | None:
    """The fingerprint that a run's result was made under; None where the run is to be trained."""
    cell, seed = run_named(wildcards)
    folder = experiment(wildcards.experiment).folder.run(cell, seed)
    try:
        written = folder.result.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return _finished_under(folder, written, run_config(wildcards).identity(seed), _data_set(wildcards.experiment))


@cache
def _finished_under(folder: RunFolder, written: int, identity: RunIdentity, data: str | None) -> str | None:  # noqa: ARG001
    """The same of a result that was written then: several questions about each run ask for it."""
    result = finished(folder, identity, data)
    return result.run_fingerprint if result else None


def train_inputs(wildcards: Any) -> list[str]:
    """The forecast, the data, the image and the trunk that it begins from, which must be there before a run starts;
    nothing for a finished run.

    A finished run is not started again where one of them is missing or newer. `ancient` would not do: Snakemake starts
    a job whose ancient input is missing, and overlooks what else changed downstream of one that is made again.
    """
    cell, seed = run_config(wildcards), run_named(wildcards)[1]
    runs = experiment(wildcards.experiment).folder
    if _made_under(wildcards):
        return []
    if SUBMITS in os.environ or ALLOCATION in os.environ:
        _check_startable(wildcards.experiment, cell.cell)
    trunk = [str(runs.run(cell.trunk, seed).result)] if cell.trunk else []
    return [*_before_training(wildcards.experiment), *trunk, *foretold_first(wildcards)]


@cache
def _check_startable(name: str, cell: str) -> None:
    """End with the one message of why Slurm, or the allocation at hand, cannot be asked for a cell's runs.

    While the graph is worked out, and so before anything starts; of an error in a function of resources Snakemake makes
    a traceback, when all that goes before training is made.
    """
    try:
        _asked_of_slurm(name, cell)
    except OctavoError as error:
        sys.exit(f"error: {error}")


@cache
def _before_training(name: str) -> list[str]:
    of = experiment(name)
    slurm = of.cluster.slurm
    files: list[Path] = [
        of.folder.plan_csv,
        data_folder(data_identifier(of.file.data, of.file.tokenizer)) / "manifest.json",
        *_images(slurm),
        *([probe_file(of.file.cluster)] if slurm and SUBMITS in os.environ else []),
    ]
    return [str(file) for file in files]


def foretold_first(wildcards: Any) -> list[str]:
    """The prediction, which must be there before a run of a ladder's largest rung starts.

    It is not asked for again where one of these runs has begun: that it goes on under another layout is no reason to
    make a prediction anew, and none can be made then.
    """
    of = experiment(wildcards.experiment)
    if not of.on_last_rung(run_config(wildcards)) or _foretold(wildcards.experiment):
        return []
    return [str(of.folder.prediction)]


@cache
def _foretold(name: str) -> bool:
    """Whether there is a prediction, and a run that it is about has begun as it is configured now."""
    of = experiment(name)
    last = [(of.folder.run(cell.cell, seed), cell.identity(seed)) for cell, seed in of.runs() if of.on_last_rung(cell)]
    return of.folder.prediction.exists() and any(
        identity.holds(attempt) for folder, identity in last for attempt in read_lines(folder.attempts, AttemptRecord)
    )


def prediction_inputs(wildcards: Any) -> list[str]:
    """The results of all rungs of a ladder but the largest.

    Where the prediction is there, those alone that are yet to be trained as they are configured now: it is not made
    again because files are newer.
    """
    of = experiment(wildcards.experiment)
    runs = [
        (of.folder.run(cell.cell, seed), cell.identity(seed)) for cell, seed in of.runs() if not of.on_last_rung(cell)
    ]
    if of.folder.prediction.exists():
        data_set = _data_set(wildcards.experiment)
        runs = [(folder, configured) for folder, configured in runs if not finished(folder, configured, data_set)]
    return [str(folder.result) for folder, _ in runs]


def prediction_fingerprint(wildcards: Any) -> str:
    """Changes when any run that is foretold, or that a prediction rests on, is configured otherwise."""
    of = experiment(wildcards.experiment)
    return fingerprint([[cell.fingerprint, of.file.all_seeds] for cell in of.cells.values()])


def train_priority(wildcards: Any) -> int:
    """The runs of a first report begin first, and of those and the rest the longest, so that none trains alone while
    the other cores wait for the report."""
    of = experiment(wildcards.experiment)
    first = run_named(wildcards)[1] in of.first_report_seeds
    return of.relative_lengths[run_config(wildcards).cell] + (LONGEST if first else 0)


def train_threads(wildcards: Any) -> int:
    """CPU threads of all of a run's processes; of a step that runs on an allocation's nodes what waits for it takes."""
    if ALLOCATION in os.environ and experiment(wildcards.experiment).cluster.slurm:
        return 1
    cell = run_config(wildcards)
    return cell.training.threads * cell.parallelism.world_size


def train_resources(submits: bool) -> dict[str, Callable[..., Any]]:
    """What a run asks of Slurm, by resource (`octavo.cluster.job`), where jobs are submitted; else what caps count.

    Snakemake works every resource of every job out, which on a large grid takes as long as all else that it does.
    """
    if not submits:
        return {key: _of_run(key) for key in device_caps()}
    return {key: _of_run(key) for key in _keys()} | {"nodes": _nodes}


def verification_resources() -> dict[str, Callable[..., Any]]:
    """The same of the cell whose runs take the most devices: what is made again may be one of its."""
    return {key: _of_largest(key) for key in _keys()}


@cache
@_told_by_snakemake
def device_caps() -> dict[str, int]:
    """The most devices that all runs together may hold: a resource of each cluster file that has a cap.

    In an allocation of one's own every cluster file has one, the allocation's devices.
    """
    own, asked = _own(), jobs.caps()
    if own is None:
        return asked
    return {name: min(has, asked.get(name, has)) for name, has in jobs.own_caps(own).items()}


@cache
def _own() -> OwnAllocation | None:
    return own_allocation()


def enter(submits: bool) -> None:
    """Note in the environment where runs are started.

    `submits`: jobs are submitted to Slurm. Where they are not, and Snakemake was started in a Slurm job (salloc, a
    batch job of one's own), runs are steps of it.
    """
    if submits:
        os.environ[SUBMITS] = "1"
        adopt_jobs(logger.warning)
    elif job := os.environ.get("SLURM_JOB_ID"):
        os.environ[ALLOCATION] = job


def retries(submits: bool) -> int:
    """How often a run is tried again: where jobs are submitted, as what ended one may be the cluster's doing."""
    return jobs.most_retries() if submits else 0


def _keys() -> Iterable[str]:
    return [*jobs.RESOURCES, *device_caps()]


@_told_by_snakemake
def _job_resources(name: str, cell: str) -> dict[str, Any]:
    return _asked_of_slurm(name, cell)


@cache
def _asked_of_slurm(name: str, cell: str) -> dict[str, Any]:
    of = experiment(name)
    if of.cluster.slurm is None:
        return {"mem_mb": 0, "runtime": 0}  # not asked for; of these two Snakemake wants numbers
    _check_comments(name)
    caps = device_caps() if ALLOCATION in os.environ else {}
    if (own := _own()) and jobs.slurm_section(of).same_nodes:
        jobs.same_nodes(of, own.nodes, jobs.allocation(of, of.cells[cell]).nodes)  # before any run starts
    return dict(jobs.resources(of, of.cells[cell], has=caps.get(jobs.cap_name(of.file.cluster))))


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
    of, (cell, seed) = experiment(wildcards.experiment), run_named(wildcards)
    nodes = _job_resources(wildcards.experiment, cell).get("nodes")
    try:
        if nodes:
            tries = jobs.slurm_section(of).retries
            launch.refuse_hopeless(of.folder.run(cell, seed), of.run(cell, seed), tries=attempt, retries=tries)
    except OctavoError as error:
        logger.error(f"not tried again: {error}")
        return 0
    return nodes
