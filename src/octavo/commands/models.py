"""`octavo models`: every architecture file, counted."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(models)


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence, for FLOPs per token.")] = 4096,
) -> None:
    """List the models in configs/models: parameters, active parameters, training FLOPs per token, source."""
    from octavo.models.catalogue import catalogue

    records = catalogue(seq_length)
    if as_json:
        typer.echo(json.dumps(records, indent=2, ensure_ascii=False))
    else:
        _print_table(records, seq_length)


def _print_table(records: list[dict[str, Any]], seq_length: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 150)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "active", "without embeddings", "active", f"GFLOPs/token at {seq_length:,}"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for record in records:
        counts = [
            f"{record[key] / 1e9:,.3f} B" if record[key] >= 1e8 else f"{record[key] / 1e6:,.3f} M"
            for key in (
                "total_parameters",
                "active_parameters",
                "total_parameters_without_embeddings",
                "active_parameters_without_embeddings",
            )
        ]
        table.add_row(
            record["name"],
            *counts,
            f"{record['flops_per_token'] / 1e9:,.4g}",
            textwrap.shorten(record["source"], 44, placeholder=" ..."),
        )
    console.print(table)
