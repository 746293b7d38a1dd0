"""`octavo leverage`: a table of runs -> what the dense model needs over what the mixture needs for the same loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.commands.named import enter
from octavo.errors import OctavoError, printable

if TYPE_CHECKING:
    from octavo.scaling.ladder import Row


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(leverage)


def leverage(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.csv|results/NAME", help="A table of runs, or results that have one.")
    ],
    at_loss: Annotated[list[float] | None, typer.Option(help="Leverage at this loss; repeatable.")] = None,
    predict: Annotated[list[float] | None, typer.Option(help="The loss at so many FLOPs; repeatable.")] = None,
    dense: Annotated[str | None, typer.Option(help="The dense architecture, where names do not tell.")] = None,
    mixture: Annotated[str | None, typer.Option(help="The other one, where there are more than two.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit a ladder of sizes: what the dense model needs, in FLOPs, hours and money, for the mixture's loss."""
    from octavo.scaling.leverage import leverage_document

    for option, values in (("--at-loss", at_loss), ("--predict", predict)):
        for value in values or []:
            if not 1e-30 < value < 1e60:
                raise OctavoError(f"{value} is no number above 0", where=option, expected="a number above 0")
    found = leverage_document(
        _rows(source), dense=dense, mixture=mixture, at_losses=at_loss or [], predict=predict or []
    )
    typer.echo(json.dumps(found, indent=2, allow_nan=False) if as_json else printable(_text(found)))


def _rows(source: Path) -> list[Row]:
    """The rows of a CSV file, or of an experiment or import: its ladder.csv, else its runs."""
    from octavo.scaling.ladder import read_rows

    if source.suffix == ".csv":
        return read_rows(source)
    folder = enter(source)
    if folder.ladder.exists():
        return read_rows(folder.ladder)
    from octavo.scaling.runs import rows_of_runs

    return rows_of_runs(folder)


def _text(found: dict[str, Any]) -> str:
    """The document in words and a table."""
    fit = found["fit"]
    lines = [f"{fit['form']}; intervals {100 * fit['interval']:.0f} %"]
    for name, one in fit["architectures"].items():
        gammas = ", ".join(f"{key} {_interval(one[key], 'value')}" for key in ("gamma", "alpha", "beta") if key in one)
        lines.append(f"{name}: {one['rungs']} rungs, {one['runs']} runs, E {_interval(one['E'], 'value')}, {gammas}")
    for test in fit["back_tests"]:
        lines.append(
            f"back-test: the largest rung of {test['architecture']}, predicted from the others: "
            f"{_interval(test, 'predicted')}; measured {test['measured']:.4g}"
        )
    if found["leverage"]:
        lines += ["", f"what {fit['dense']} needs over what {fit['mixture']} needs for the same loss"]
        lines += [
            f"  loss {one['loss']:.4g}  {one['axis']:12s}  {_interval(one, 'value')}" for one in found["leverage"]
        ]
    if found["extrapolation"]:
        lines += ["", "loss of one run"]
        lines += [
            f"  {one['flops']:.4g} FLOPs  {one['architecture']}  {_interval(one, 'loss')}"
            for one in found["extrapolation"]
        ]
    return "\n".join([*lines, *(["", *(f"note: {one}" for one in found["warnings"])] if found["warnings"] else [])])


def _interval(one: dict[str, Any], key: str) -> str:
    if one[key] is None:
        return "not determined"
    low, high = ("unbounded" if one[end] is None else f"{one[end]:.4g}" for end in ("low", "high"))
    return f"{one[key]:.4g} ({low} to {high})"
