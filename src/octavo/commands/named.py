"""How every verb is told its experiment: by its name, its folder in results/ or its YAML file, from any working folder.

Results belong to the checkout that they lie in. A verb goes there first, so that it reads that checkout's
configurations and writes beside those results, wherever it was started.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from octavo.errors import OctavoError, shown
from octavo.layout import ExperimentFolder, checkout_of, repository

ExperimentArgument = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERIMENT", help="laptop, results/laptop or configs/experiments/laptop.yaml, from any folder."
    ),
]
OF_IMPORTS = ("import", "claims", "figures", "report", "trace", "converges", "leverage")
"""Verbs that take imported runs."""


def ablation_name(name: str | None) -> str | None:
    """A name that is no path: tables of an ablation lie in the experiment's folder. Raises OctavoError otherwise."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}", name):
        raise OctavoError(
            f"{shown(name)} is no name of an ablation",
            where="--ablation",
            expected="a key of the experiment's section ablations: letters, digits, _ . + and -",
        )
    return name


Ablation = Annotated[
    str | None, typer.Option(callback=ablation_name, help="Only this ablation's cells and their baselines.")
]


def enter(experiment: Path) -> ExperimentFolder:
    """Make the experiment's checkout the working folder; the experiment's results folder, relative to it.

    Paths that a user gave besides must be made absolute before. Raises OctavoError where the path is neither a results
    folder nor an experiment file of a checkout.
    """
    path = _absolute(experiment)
    checkout = checkout_of(path)
    if checkout is not None and path == checkout / "results" / path.name:
        return _enter(checkout, path.name)
    if checkout is not None and path == checkout / "configs" / "experiments" / f"{path.stem}.yaml":
        return _enter(checkout, path.stem)
    if len(experiment.parts) == 1 and path.suffix != ".yaml":
        return _enter(repository(), path.name)
    if checkout is None and path.parent.name == "results":
        outside = ExperimentFolder(path)
        if "OCTAVO_ROOT" in os.environ or outside.imported.exists():  # an import has no configuration of its own
            return outside
    raise OctavoError(
        f"{shown(str(experiment))} is not an experiment",
        where=path,
        expected="its name, results/<experiment> or configs/experiments/<experiment>.yaml of a checkout",
        fix="results are read in their checkout: copy them into results/ of one, or name it with OCTAVO_ROOT"
        if checkout is None
        else "name the experiment, and an ablation of it with --ablation",
    )


def enter_trained(experiment: Path) -> ExperimentFolder:
    """`enter`, for verbs that need the experiment's configuration. Raises OctavoError for an import, which has none."""
    folder = enter(experiment)
    if folder.imported.exists():
        raise OctavoError(
            f"{folder.name} is an import: others trained its runs, so Octavo has no configuration of them",
            where=folder.imported,
            expected=f"one of the verbs that imports have: {', '.join(OF_IMPORTS)}",
        )
    return folder


def enter_path(path: Path) -> Path:
    """Make the checkout that a path lies in the working folder; the path, relative to it. As it is in no checkout."""
    absolute = _absolute(path)
    checkout = checkout_of(absolute)
    if checkout is None:
        return path
    _go(checkout)
    return absolute.relative_to(checkout)


def _absolute(path: Path) -> Path:
    """Without `..`, but with symbolic links as they are: results/ may be one to another disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _enter(checkout: Path, name: str) -> ExperimentFolder:
    _go(checkout)
    return ExperimentFolder(Path("results") / name)


def _go(checkout: Path) -> None:
    os.chdir(checkout)
    if "OCTAVO_ROOT" in os.environ:
        os.environ["OCTAVO_ROOT"] = str(checkout)
