"""`octavo data`: text -> tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.commands.named import enter, enter_path


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
    """Prepare an experiment's text as Megatron's indexed data sets; check it where it is there already."""
    from rich.console import Console

    from octavo.data.manifest import data_set_folder
    from octavo.data.prepare import prepare
    from octavo.experiment.load import experiment_with_data, load_experiment

    if experiment.absolute().parent.parts[-2:] == ("results", "data"):
        asked = load_experiment(experiment_with_data(enter_path(experiment).name))
    else:
        asked = load_experiment(enter(experiment).name)
    text, tokenizer = asked.file.data, asked.file.tokenizer
    console = Console(stderr=True, soft_wrap=True)
    prepare(text, tokenizer, data_set_folder(text, tokenizer), console, asked.place)
