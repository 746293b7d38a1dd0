"""`octavo <verb>`: the command line. The verbs are in `octavo.commands`.

Errors that a user can mend are printed as one message with exit status 1; anything else is a bug and says so, with the
traceback in a file only if OCTAVO_TRACEBACK is set.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import octavo
from octavo.errors import OctavoError

app = typer.Typer(
    name="octavo",
    help="Does a mixture-of-experts model trained in FP8 reach the same loss for a fraction of the money? "
    "Octavo trains, accounts and reports. The pipeline is `snakemake results/<experiment>/report.pdf`; "
    "these verbs are its steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PACKAGES = (
    "experiment", "models", "forecast", "data", "precision", "training", "cluster", "accounting", "explain", "imports",
    "evidence", "report", "verification", "scaling", "acceptance",
)  # fmt: skip

for _package in PACKAGES:
    import_module(f"octavo.commands.{_package}").register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"octavo {octavo.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options of no verb. Their text is `help` of the app, above."""


def main() -> None:
    """Entry point: runs a verb; turns an OctavoError into one message and exit status 1."""
    try:
        app()
    except OctavoError as error:
        fail(error)
    except BrokenPipeError:
        os._exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        sys.exit(130)
    except MemoryError:
        fail(OctavoError("there is not enough memory", fix="close other programs, or use a machine with more of it"))
    except Exception as error:
        if os.environ.get("OCTAVO_TRACEBACK"):
            raise
        fail(
            OctavoError(
                f"unexpected {type(error).__name__}: {error}",
                fix="this is a bug in Octavo: run again with OCTAVO_TRACEBACK=1 and report what it prints",
            )
        )


def fail(error: OctavoError) -> None:
    """Print an error and leave with status 1."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(str(error)))
    sys.exit(1)
