"""`octavo data`: text -> tokens."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(data)


def data(
    experiment: Annotated[str, typer.Argument(help="Name of a file in configs/experiments, without .yaml.")],
) -> None:
    """Prepare an experiment's text as Megatron's indexed data sets; check it where it is there already."""
    from rich.console import Console

    from octavo.data.manifest import data_set_folder
    from octavo.data.prepare import prepare
    from octavo.experiment.load import load_experiment

    asked = load_experiment(experiment)
    text, tokenizer = asked.file.data, asked.file.tokenizer
    console = Console(stderr=True, soft_wrap=True)
    prepare(text, tokenizer, data_set_folder(text, tokenizer), console, asked.place)
