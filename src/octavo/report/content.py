"""What the report says: sections of paragraphs, tables and figures made from the numbers.

No result is written by hand: each paragraph is built by `octavo.report.sentences` from the same numbers as the table
or the figure beside it, so text and number cannot contradict one another.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from octavo.report.charts import Chart
from octavo.report.document import Document, ReportSection, Text
from octavo.report.inputs import Inputs
from octavo.report.sections.answer import answer, facts, finding, so_far, still_running
from octavo.report.sections.ledger import forecast, ledger, owning, published
from octavo.report.sections.questions import ablations, claims, experts, fairness, losses, precision, speed, traffic
from octavo.report.sections.scale import scale
from octavo.report.sections.small_print import imported_runs, limits, methods, provenance, run_list, verification


def document(inputs: Inputs, charts: dict[str, Chart]) -> Document:
    """The whole report."""
    sections = whole(inputs, charts) if inputs.ablation is None else against_baseline(inputs, charts)
    sections = [section for section in sections if section.blocks]
    whole_report, heading = inputs.ablation is None, ""
    if whole_report:
        heading = still_running(inputs.first) if inputs.first else finding(inputs)
    if inputs.first:
        said = so_far(inputs, inputs.first)[1 if whole_report else 0 :]
        sections[0] = replace(sections[0], blocks=[Text(" ".join(said), "lead"), *sections[0].blocks])
    ablation = f" --ablation {inputs.ablation}" if inputs.ablation else ""
    trace = f"octavo trace --results results/{inputs.whole.name}{ablation}"
    return Document(
        inputs.title,
        facts(inputs) if whole_report else inputs.description,
        _date(inputs),
        finding=heading,
        trace=trace,
        sections=sections,
    )


def whole(inputs: Inputs, charts: dict[str, Chart]) -> list[ReportSection]:
    """The sections of an experiment's report."""
    return [
        answer(inputs, charts),
        scale(inputs),
        claims(inputs),
        losses(inputs, charts),
        fairness(inputs, charts),
        precision(inputs, charts),
        experts(inputs, charts),
        ablations(inputs, charts),
        speed(inputs, charts),
        traffic(inputs),
        ledger(inputs, charts),
        owning(inputs, charts),
        published(inputs),
        forecast(inputs),
        methods(inputs),
        limits(inputs),
        verification(inputs),
        imported_runs(inputs),
        provenance(inputs),
    ]


def against_baseline(inputs: Inputs, charts: dict[str, Chart]) -> list[ReportSection]:
    """The sections of one ablation's report: two pages."""
    return [
        answer(inputs, charts),
        ablations(inputs, charts),
        ledger(inputs, charts),
        limits(inputs),
        run_list(inputs),
    ]


def _date(inputs: Inputs) -> tuple[int, int, int, int, int, int]:
    """When the last attempt ended; the epoch's beginning for imports, which have no attempts."""
    last = inputs.attempts["end"].max()
    last = pd.Timestamp(0, tz="UTC") if pd.isna(last) else last
    return last.year, last.month, last.day, last.hour, last.minute, last.second
