"""`octavo accumulation`: what a short accumulator costs, on this machine, in seconds."""

from __future__ import annotations

import csv
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from octavo.errors import OctavoError
from octavo.files import atomic_path

if TYPE_CHECKING:
    from octavo.precision.accumulation import AccumulationError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(accumulation)


def accumulation(
    largest: Annotated[
        int, typer.Option(min=32, max=2**20, help="The largest K; K doubles from 128 up to it.")
    ] = 16384,
    outputs: Annotated[int, typer.Option(min=1, max=8192, help="Rows and columns of each product.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the random matrices.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this CSV file too.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw error against K into this PDF, SVG or PNG file.")] = None,
) -> None:
    """Repeat DeepSeek-V3's experiment: the error of FP8 products against K with long, promoted and short sums.

    fp32 sums in 32 bits; fp14 keeps 14 bits after every 32 products, as Hopper's tensor cores; promoted adds these to
    an FP32 sum every 128 products. Errors are relative to the outputs' root mean square.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Megatron-Core's, about Transformer Engine, which nothing here needs
            from octavo.precision.accumulation import accumulation_errors
    except ModuleNotFoundError as error:
        raise OctavoError(
            f"{error.name} is not installed, and this verb computes with it",
            fix="install Octavo with its extra `train`: pip install 'octavo[train]'",
        ) from None
    _check_sizes(largest, outputs)
    if figure is not None and figure.suffix not in (".pdf", ".svg", ".png"):
        raise OctavoError(f"no figure is drawn as {figure.suffix or figure.name}", where="--figure",
                          expected="a file that ends in .pdf, .svg or .png")  # fmt: skip
    smallest = min(128, largest)
    sizes = [smallest << step for step in range(largest.bit_length()) if smallest << step <= largest]
    found = accumulation_errors(sizes, outputs, seed)
    if out is not None:
        _write(out, found)
    if figure is not None:
        _draw(figure, found)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        _print(found)


def _check_sizes(largest: int, outputs: int) -> None:
    if largest & (largest - 1):
        below = 1 << largest.bit_length() - 1
        raise OctavoError(
            f"K doubles up to the largest, and {largest} is no power of two",
            where="--largest",
            expected=f"{below} or {2 * below}, say",
        )
    # two matrices of FP32 and their FP64 copies; the exact product, its error and what FP32 sums need
    needed = (24 * largest + 48 * outputs) * outputs
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise OctavoError(
            f"matrices of {outputs} x {largest} need {needed / 2**30:.0f} GiB; this machine has {memory / 2**30:.0f}",
            where="--largest, --outputs",
            fix="ask for fewer outputs or a smaller K",
        )


def _write(path: Path, found: list[AccumulationError]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)


def _draw(path: Path, found: list[AccumulationError]) -> None:
    from octavo.report.accumulation import STYLES, accumulation_chart
    from octavo.report.paint import save_as

    points = [(one.k, one.accumulation, one.maximum, one.root_mean_square) for one in found]
    save_as([path], accumulation_chart(points), STYLES)


def _print(found: list[AccumulationError]) -> None:
    table = Table(title="largest error, relative to the outputs' root mean square")
    table.add_column("K", justify="right")
    for name in dict.fromkeys(one.accumulation for one in found):
        table.add_column(name, justify="right")
    for k in dict.fromkeys(one.k for one in found):
        table.add_row(f"{k:,}", *(_percent(one.maximum) for one in found if one.k == k))
    Console().print(table)


def _percent(error: float) -> str:
    return f"{error:.2%}" if error >= 1e-4 else f"{error:.1e}"
