"""`octavo figures`, `octavo report`: tables and verdicts -> figures -> PDF and HTML."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import typer

from octavo.commands.named import Ablation, ExperimentArgument, enter


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(figures)
    app.command()(report)


def figures(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Draw the figures as PDF, SVG and PNG, with the data of each as CSV beside it."""
    from octavo.files import write_hashes
    from octavo.report.figures import charts
    from octavo.report.inputs import load_inputs
    from octavo.report.paint import save

    inputs = load_inputs(enter(experiment), ablation)
    target = inputs.folder.figures
    target.parent.mkdir(parents=True, exist_ok=True)
    # drawn beside their place: a killed process leaves the old figures or the new ones, never some of each
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".figures.") as name:
        fresh = Path(name) / "figures"
        fresh.mkdir()
        # several at once, where there are cores: most of the time goes into PNG compression and font outlines
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for done in [pool.submit(save, chart, inputs.styles, fresh) for chart in charts(inputs).values()]:
                done.result()
        write_hashes(fresh / inputs.folder.figure_hashes.name, list(fresh.iterdir()))
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    typer.echo(target)


def report(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Typeset report.pdf and write report.html."""
    from octavo.files import write_hashes
    from octavo.report.content import document
    from octavo.report.figures import charts
    from octavo.report.html import write_html
    from octavo.report.inputs import load_inputs
    from octavo.report.pdf import write_pdf

    inputs = load_inputs(enter(experiment), ablation)
    drawn = charts(inputs)
    content = document(inputs, drawn)
    write_html(content, drawn, inputs.styles, inputs.folder.report_html)
    write_pdf(content, inputs.folder.figures, inputs.folder.report_pdf)
    write_hashes(inputs.folder.report_hashes, [inputs.folder.report_html, inputs.folder.report_pdf])
    typer.echo(inputs.folder.report_pdf)
