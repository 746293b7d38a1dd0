"""`octavo models`: every architecture file, counted."""

from __future__ import annotations

import json
import os
import textwrap
from typing import Annotated, Any

import typer

WIDE, NUMBERS = 150, 58
"""Columns that the whole table takes, and that a narrower terminal's takes but for the sources: without what leaves
embeddings out."""


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
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    without = ("without embeddings", "active") if wide else ()
    for heading in ("parameters", "active", *without, "GFLOPs/token" + (f" at {seq_length:,}" if wide else "")):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for record in records:
        counts = [
            f"{record[key] / 1e9:,.3f} B" if record[key] >= 1e8 else f"{record[key] / 1e6:,.3f} M"
            for key in (
                "total_parameters",
                "active_parameters",
                *(("total_parameters_without_embeddings", "active_parameters_without_embeddings") if wide else ()),
            )
        ]
        table.add_row(
            record["name"],
            *counts,
            f"{record['flops_per_token'] / 1e9:,.4g}",
            textwrap.shorten(record["source"], 44 if wide else max(12, console.width - NUMBERS), placeholder=" ..."),
        )
    console.print(table)
