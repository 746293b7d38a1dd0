"""`octavo data`: text -> tokens."""

from __future__ import annotations

import typer

from octavo.commands.named import ExperimentArgument, enter


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(data)


def data(
    experiment: ExperimentArgument,
) -> None:
    """Prepare an experiment's text as Megatron's indexed data sets; check it where it is there already."""
    from rich.console import Console

    from octavo.data.manifest import data_set_folder
    from octavo.data.prepare import prepare
    from octavo.experiment.load import load_experiment

    asked = load_experiment(enter(experiment).name)
    text, tokenizer = asked.file.data, asked.file.tokenizer
    console = Console(stderr=True, soft_wrap=True)
    prepare(text, tokenizer, data_set_folder(text, tokenizer), console, asked.place)
