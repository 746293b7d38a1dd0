"""All experiments of `results/`, and bundles of others, side by side on one page.

A row is an experiment; what it says is read from its tables and verdicts, and nothing is added. A bundle's tables,
figures and reports are made again first: only where every byte is the same its row is called verified. Of a results
folder the row says what the last `octavo verify` there found.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from octavo.errors import OctavoError
from octavo.evidence.lengths import whole_lengths
from octavo.imports.runs import read_imported
from octavo.layout import ExperimentFolder
from octavo.records import (
    ClaimResult,
    ClaimsFile,
    Provenance,
    VerificationCheck,
    VerificationFile,
    read_record,
    read_table,
)
from octavo.report.document import SIGNS, Document, ReportSection, Table, Text
from octavo.report.html import write_html
from octavo.report.inputs import shared
from octavo.report.sections.phrases import effect_words
from octavo.report.style import MISSING, count, duration, money
from octavo.verification.archive import unpack
from octavo.verification.bundle import verify_bundle


@dataclass(frozen=True)
class Entry:
    """One experiment, as its files have it."""

    name: str
    link: str
    """Its report, relative to the page; empty where it is in a bundle."""
    verified: str
    """How far its numbers were checked, in words."""
    runs: pd.DataFrame
    attempts: pd.DataFrame
    claims: ClaimsFile
    machine: str


def write_index(results: Path, bundles: Sequence[Path], page: Path) -> Path:
    """Write the page. Raises OctavoError where nothing has a report yet, or a file is damaged.

    A bundle whose report could not be made again is shown, marked as different.
    """
    entries = [_of_folder(folder, page) for folder in _reported(results)]
    with ExitStack() as stack:
        for bundle in bundles:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            entries.append(_of_bundle(bundle, root))
    if not entries:
        raise OctavoError(
            "no experiment has a report yet",
            where=results,
            expected="results/<experiment>/claims.json of at least one",
            fix="snakemake --profile workflow/profiles/local -- results/laptop/report.pdf",
        )
    write_html(_document(entries), {}, {}, page)
    return page


def _reported(results: Path) -> list[ExperimentFolder]:
    return [ExperimentFolder(path.parent) for path in sorted(results.glob("*/claims.json"))]


def _of_folder(folder: ExperimentFolder, page: Path) -> Entry:
    again = f"snakemake {folder.report_pdf}"
    verified = "not verified"
    if read_imported(folder) is not None:
        verified = "an import: cannot be verified"
    elif folder.verification.exists():
        found = read_record(folder.verification, VerificationFile, made_by=f"octavo verify {folder.path}")
        verified = f"its own check {'passed' if found.passed else 'FAILED'} ({len(found.checks)} checks)"
    link = ""
    if folder.report_html.exists():
        link = Path(os.path.relpath(folder.report_html, page.parent)).as_posix()
    return _entry(folder, folder.name, link, verified, again)


def _of_bundle(bundle: Path, root: Path) -> Entry:
    verified = of_bundle(verify_bundle(bundle))
    folder = ExperimentFolder(root / "results" / unpack(bundle, root))
    return _entry(folder, f"{folder.name} ({bundle.name})", "", verified, f"octavo verify-bundle {bundle}")


def of_bundle(checks: Sequence[VerificationCheck]) -> str:
    """How far a bundle was verified, from what `verify_bundle` found."""
    different = [one for one in checks if one.status != "identical"]
    if different:
        return f"DIFFERENT ({len(different)} of {len(checks)} checks): {different[0].run}: {different[0].note}"
    return "verified: the bundle's report was made again, byte for byte"


def _entry(folder: ExperimentFolder, name: str, link: str, verified: str, made_by: str) -> Entry:
    runs = read_table(folder.runs_table, "runs", made_by=made_by)
    found = [folder.run(cell, seed).provenance for cell, seed in zip(runs["cell"], runs["seed"], strict=True)]
    provenance = [read_record(path, Provenance, made_by=made_by) for path in found if path.exists()]
    return Entry(
        name=name,
        link=link,
        verified=verified,
        runs=whole_lengths(runs),
        attempts=read_table(folder.attempts_table, "attempts", made_by=made_by),
        claims=read_record(folder.claims, ClaimsFile, made_by=made_by),
        machine=_machine(runs, provenance),
    )


def _machine(runs: pd.DataFrame, provenance: Sequence[Provenance]) -> str:
    """`8 h100`, or for a processor its name."""
    devices = sorted({f"{int(n)} {kind}" for kind, n in
                      runs[["device_kind", "device_count"]].dropna().itertuples(index=False)})  # fmt: skip
    names = [str(one.hardware["cpu_model"]) for one in provenance if one.hardware.get("cpu_model")]
    said = ", ".join(devices) or MISSING
    return f"{said} ({shared(names)})" if names and set(runs["device_kind"].dropna()) == {"cpu"} else said


# --- the page ---------------------------------------------------------------------------------------------------------


def _document(entries: Sequence[Entry]) -> Document:
    ended = max((at for one in entries for at in one.attempts["end"].dropna()), default=None)
    date = ended.to_pydatetime().astimezone(UTC) if ended is not None else datetime.fromtimestamp(0, UTC)
    said = (
        "A row is an experiment, from its own files. Verdicts hold for its models, its text and its machine: rows that "
        "differ do not contradict each other."
    )
    return Document(
        title=f"Octavo: {len(entries)} experiment{'s' * (len(entries) != 1)}",
        subtitle=f"The newest attempt ended {date:%Y-%m-%d %H:%M} UTC" if ended is not None else "",
        date=(date.year, date.month, date.day, date.hour, date.minute, date.second),
        sections=[
            ReportSection("What was run", [Text(said), _facts(entries)]),
            ReportSection("What the claims came to", [*_verdicts(entries)]),
        ],
    )


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "verification": lambda one: one.verified,
    "machine": lambda one: one.machine,
    "cells": lambda one: str(one.runs["cell"].nunique()),
    "runs completed": lambda one: f"{(one.runs['status'] == 'completed').sum()} of {len(one.runs)}",
    "seeds": lambda one: str(one.runs["seed"].nunique()),
    "active parameters": lambda one: _range(one.runs["active_parameters"]),
    "tokens of a run": lambda one: _range(one.runs["tokens"]),
    "FP8": lambda one: "emulated" if one.runs["emulated"].any() else "of the devices",
    "device time, final runs": lambda one: duration(3600 * _total(one.runs["device_hours_final"])),
    "device time, all attempts": lambda one: duration(3600 * _total(one.runs["device_hours_all_in"])),
    "cost, final runs": lambda one: money(_total(one.runs["cost_final"]), _currency(one)),
    "cost, all attempts": lambda one: money(_total(one.runs["cost_all_in"]), _currency(one)),
}
"""What is said of each experiment."""


def _total(values: pd.Series) -> float:
    return float(values.sum(min_count=1))


def _range(values: pd.Series) -> str:
    low, high = count(values.min()), count(values.max())
    return low if low == high else f"{low} to {high}"


def _currency(one: Entry) -> str | None:
    return next(iter(one.runs["currency"].dropna()), None)


def _facts(entries: Sequence[Entry]) -> Table:
    return Table(
        header=["experiment", *COLUMNS],
        rows=[[one.name, *(said(one) for said in COLUMNS.values())] for one in entries],
        align="l" * (1 + len(COLUMNS)),
        links=[one.link for one in entries],
    )


def _verdicts(entries: Sequence[Entry]) -> tuple[Table, Table]:
    """Verdicts by experiment and claim, and what the claims say. A bundle may hold other claims under a number."""
    titles = {(claim.number, claim.title): claim.text for one in entries for claim in one.claims.claims}
    found = [{(claim.number, claim.title): claim for claim in one.claims.claims} for one in entries]
    claims = sorted(titles)
    verdicts = Table(
        header=["experiment", *(f"{number}. {title}" for number, title in claims)],
        rows=[
            [one.name, *(_verdict(own.get(claim)) for claim in claims)] for one, own in zip(entries, found, strict=True)
        ],
        align="l" * (1 + len(claims)),
        links=[one.link for one in entries],
        caption="Effects with 95 % intervals over paired seeds.",
    )
    texts = Table(["claim", "what it says"], [[f"{claim[0]}. {claim[1]}", titles[claim]] for claim in claims], "ll")
    return verdicts, texts


def _verdict(claim: ClaimResult | None) -> str:
    if claim is None:
        return "not asked"
    said = f"{SIGNS[claim.verdict]} {claim.verdict}"
    return f"{said}: {effect_words(claim.effect)}" if claim.effect else said
