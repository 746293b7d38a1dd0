"""`octavo figures`, `octavo report`: tables and verdicts -> figures -> PDF and HTML. `octavo open` shows the page."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from octavo.commands.named import Ablation, ExperimentArgument, enter, enter_trained
from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder

if TYPE_CHECKING:
    from octavo.report.charts import Chart
    from octavo.report.document import Document
    from octavo.report.inputs import Inputs


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(figures)
    app.command()(report)
    app.command()(first_report)
    app.command("open")(open_report)


def figures(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Draw the figures as PDF, SVG and PNG, with the data of each as CSV beside it."""
    from concurrent.futures import ProcessPoolExecutor

    from octavo.files import write_hashes
    from octavo.report.charts import pages
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
            drawn = [page for chart in charts(inputs).values() for page in pages(chart)]
            for done in [pool.submit(save, page, inputs.styles, fresh) for page in drawn]:
                done.result()
        write_hashes(fresh / inputs.folder.figure_hashes.name, list(fresh.iterdir()))
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    typer.echo(target)


def report(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Typeset report.pdf and write report.html."""
    from octavo.files import write_hashes
    from octavo.report.html import write_html
    from octavo.report.inputs import load_inputs
    from octavo.report.pdf import write_pdf

    inputs = load_inputs(enter(experiment), ablation)
    content, drawn = _content(inputs)
    write_html(content, drawn, inputs.styles, inputs.scope.report_html)
    write_pdf(content, inputs.folder.figures, inputs.scope.report_pdf)
    write_hashes(inputs.scope.report_hashes, [inputs.scope.report_html, inputs.scope.report_pdf])
    typer.echo(inputs.scope.report_pdf)


def _content(inputs: Inputs) -> tuple[Document, dict[str, Chart]]:
    """What a report says, and its figures page by page."""
    from octavo.report.charts import pages
    from octavo.report.content import document
    from octavo.report.figures import charts

    made = charts(inputs)
    paged = {name: pages(chart) for name, chart in made.items()}
    content = document(inputs, made).paged({name: [page.name for page in one] for name, one in paged.items()})
    return content, {page.name: page for one in paged.values() for page in one}


def first_report(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Seeds until decided: a report of the first seeds while more are trained (the pipeline asks).

    It is written where no whole report stands, and is as old as its last run: Snakemake takes it for out of date.
    """
    from octavo.accounting.ledger import attempts_frame
    from octavo.evidence.looks import write_first_tables
    from octavo.experiment.load import load_experiment
    from octavo.files import write_json
    from octavo.report.html import write_html
    from octavo.report.inputs import load_inputs
    from octavo.report.paint import save_as
    from octavo.report.pdf import write_pdf

    folder = enter_trained(experiment)
    loaded = load_experiment(folder.name)
    scope = folder.ablation(ablation) if ablation else folder
    scope.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scope.path, prefix="first-") as name:
        tables = ExperimentFolder(Path(name))
        first = write_first_tables(loaded, folder, attempts_frame(loaded), tables, ablation)
        if first.stands:
            inputs = load_inputs(folder, ablation, (tables, first))
            content, drawn = _content(inputs)
            tables.figures.mkdir()
            for page in drawn.values():
                save_as([tables.figures / f"{page.name}.svg"], page, inputs.styles)
            scope.report_hashes.unlink(missing_ok=True)
            write_html(content, drawn, inputs.styles, scope.report_html, processes=1)
            write_pdf(content, tables.figures, scope.report_pdf)
            ended = datetime(*content.date, tzinfo=UTC).timestamp()
            for path in (scope.report_html, scope.report_pdf):
                os.utime(path, (ended, ended))
    write_json(scope.first_report, first.model_dump(mode="json"))
    typer.echo(scope.report_pdf if first.stands else f"{scope.report_pdf} is a whole report, which stays")


def open_report(experiment: ExperimentArgument, ablation: Ablation = None) -> None:
    """Open report.html in the browser. Nothing is served: it is a file."""
    import webbrowser

    folder = enter(experiment)
    page = (folder.ablation(ablation) if ablation else folder).report_html
    if not page.exists():
        raise OctavoError("there is no report yet", where=page, fix=f"make it: snakemake {page.with_suffix('.pdf')}")
    typer.echo(page.absolute())
    if not webbrowser.open(page.absolute().as_uri()):
        raise OctavoError("no browser could be started", where=page.absolute(), fix="open this file in one yourself")
