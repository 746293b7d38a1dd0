# What the rules share: wildcards, and the experiment that a path belongs to. What things mean is octavo's business.

import os
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from octavo.accounting.ledger import times_provisional
from octavo.cluster import image as images
from octavo.cluster import job as jobs
from octavo.cluster import launch as launches
from octavo.data import manifest as data_sets
from octavo.errors import OctavoError
from octavo.experiment.load import experiment_with_data, load_experiment
from octavo.experiment.run import data_identifier, run_fingerprint
from octavo.files import fingerprint, sha256
from octavo.layout import ExperimentFolder, data_folder, image_file
from octavo.training.journal import finished

# rules call `octavo`, which is installed beside the Python that runs this, whether or not its folder is on the path
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


wildcard_constraints:
    experiment=r"[A-Za-z0-9][\w.-]*",
    # an experiment, or one ablation of it: the same reports are made of both
    scope=r"[A-Za-z0-9][\w.-]*(/ablations/[A-Za-z0-9][\w.]*)?",
    cell=r"[\w.]+-[\w.]+(\+[\w.]+)?",
    seed=r"\d+",
    data=r"[0-9a-f]{16}",
    variant=r"gpu|cpu",

THIS_MACHINE = len(os.sched_getaffinity(0))
"""Its cores; Snakemake gives a local job at most those of --cores."""


@cache
def checked_experiment(name):
    """An experiment; one whose text is not what its data set was made of is an error, as far as a look can tell."""
    found = load_experiment(name)
    # here, not in train's inputs: where the result exists Snakemake passes over an error in those
    text, tokenizer = found.file.data, found.file.tokenizer
    data_sets.check_newer_sources(text, tokenizer, data_sets.data_set_folder(text, tokenizer))
    return found


def experiment(name):
    try:
        return checked_experiment(name)
    except OctavoError as error:
        raise WorkflowError(str(error)) from None


def check_experiments(arguments):
    """What is wrong with the experiments that the command line names is said here, and alone.

    Of an error within a rule Snakemake makes a traceback and a banner.
    """
    names = {match[1] for argument in arguments if (match := re.match(r"results/([A-Za-z0-9][\w.-]*)/.", argument))}
    try:
        for name in sorted(names - {"data", "images"}):
            checked_experiment(name)
    except OctavoError as error:
        sys.exit(f"error: {error}")


check_experiments(sys.argv[1:])  # Snakemake itself looks at its targets when all rules are read


def split_scope(scope):
    """laptop/ablations/x -> (laptop, x); laptop -> (laptop, None)."""
    name, _, ablation = scope.partition("/ablations/")
    return name, ablation or None


def scope_arguments(wildcards):
    name, ablation = split_scope(wildcards.scope)
    return f"results/{name}" + (f" --ablation {ablation}" if ablation else "")


def scope_results(wildcards):
    """The result files that a report rests on."""
    name, ablation = split_scope(wildcards.scope)
    of = experiment(name)
    try:
        cells = of.ablation_cells(ablation) if ablation else of.cells.values()
    except OctavoError as error:
        raise WorkflowError(str(error)) from None
    return [str(of.folder.run(cell.cell, seed).result) for cell in cells for seed in of.file.seeds]


def scope_fingerprints(wildcards):
    """Changes when any run that the report rests on is configured otherwise."""
    name, ablation = split_scope(wildcards.scope)
    cells = experiment(name).ablation_cells(ablation) if ablation else experiment(name).cells.values()
    return fingerprint([*(cell.fingerprint for cell in cells), experiment(name).file.seeds])


@cache
def data_set(name):
    """The manifest's hash of the data set that there is now."""
    return data_sets.current_manifest(experiment(name).file.data, experiment(name).file.tokenizer)


def manifest_of(wildcards):
    of = experiment(wildcards.experiment)
    return str(data_folder(data_identifier(of.file.data, of.file.tokenizer)) / "manifest.json")


def image_of(wildcards):
    """The image that the cluster file asks for."""
    slurm = experiment(wildcards.experiment).cluster.slurm
    return [str(image_file(slurm.image))] if slurm and slurm.image else []
