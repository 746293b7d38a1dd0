"""`octavo data`: text -> tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.commands.named import enter_path, enter_trained


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(data)


def data(
    experiment: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT",
            help="laptop, results/laptop, configs/experiments/laptop.yaml, or the data set: results/data/<identifier>.",
        ),
    ],
) -> None:
    """Prepare an experiment's text as Megatron's indexed data sets; check it where it is there already.

    Text that is too short for the training or the validation that the experiment asks for is an error, once it is
    prepared.
    """
    from rich.console import Console

    from octavo.data.checks import check_prepared
    from octavo.data.manifest import data_set_folder
    from octavo.data.prepare import prepare
    from octavo.experiment.load import experiment_with_data, load_experiment

    shared = experiment.absolute().parent.parts[-2:] == ("results", "data")
    name = experiment_with_data(enter_path(experiment).name) if shared else enter_trained(experiment).name
    asked = load_experiment(name)
    text, tokenizer = asked.file.data, asked.file.tokenizer
    console = Console(stderr=True, soft_wrap=True)
    prepare(text, tokenizer, data_set_folder(text, tokenizer), console, asked.place)
    if not shared:  # of those that share a data set, which is too short for one may do for the others
        check_prepared(asked)
