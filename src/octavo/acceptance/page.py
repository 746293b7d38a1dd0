"""The page of `octavo accept`: what passed, what fell short and by how much, and what it means for the plan.

It is set by the report's own template (`octavo.report.pdf`); the record is `octavo.records.Acceptance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from octavo.files import write_json
from octavo.layout import accept_file
from octavo.records import Acceptance, AcceptanceCheck
from octavo.report.document import Block, Document, ReportSection, Table, Text
from octavo.report.pdf import write_pdf

ON_STAND_IN = "On the stand-in: no GPU was measured"
NUMBERS = ("losses", "determinism", "kill and resume")
"""Parts whose checks are of results, not of speed."""


def write(record: Acceptance, root: Path) -> list[Path]:
    """Write the record and its page; their paths."""
    data = root / accept_file(record.cluster)
    page = data.with_suffix(".pdf")
    write_json(data, record.model_dump(mode="json"))
    write_pdf(document(record), page.parent, page)
    return [data, page]


def document(record: Acceptance) -> Document:
    """The page as data."""
    made = record.time
    subtitle = (
        f"{record.devices} x {record.device} on {', '.join(record.nodes)}; {made:%Y-%m-%d %H:%M} UTC, "
        f"{record.seconds / 60:.0f} minutes; Octavo {record.octavo_version}, "
        f"commit {(record.git_commit or 'unknown')[:12]}"
    )
    return Document(
        title=f"Acceptance of {record.cluster}",
        subtitle=subtitle,
        date=(made.year, made.month, made.day, made.hour, made.minute, made.second),
        finding=finding(record),
        sections=[
            ReportSection("What it means for the plan", [Text(one) for one in meaning(record)]),
            ReportSection("What fell short", list(_short(record))),
            *(ReportSection(part.capitalize(), [_table(list(checks))]) for part, checks in _parts(record)),
        ],
    )


def finding(record: Acceptance) -> str:
    """What came out, in one sentence."""
    counts = Counter(one.verdict for one in record.checks)
    said = (
        f"{counts['passed']} of {len(record.checks)} checks passed, {counts['fell short']} fell short, "
        f"{counts['not measured']} were not measured"
    )
    return f"{ON_STAND_IN}; {said}" if record.stand_in else said[0].upper() + said[1:]


def meaning(record: Acceptance) -> Iterator[str]:
    """What follows for the plan of runs on this cluster, sentence by sentence."""
    if record.stand_in:
        yield (
            "Nothing follows for a plan: GPUs were stood in for by a CPU. It says that the steps of the acceptance run "
            "to their end, and that the numbers of Transformer Engine's Python repeat."
        )
        return
    for recipe, factor in sorted(record.factors.items()):
        yield (
            f"In {recipe} these GPUs reach {factor:.0%} of the forecast's tokens/s. `octavo plan` takes this into "
            "account from now on (docs/forecast.md); the device-hours of plans made before are to be multiplied by "
            f"{1 / factor:.2f}."
        )
    base = record.factors.get("bf16")
    for recipe, factor in sorted(record.factors.items()):
        if base and recipe != "bf16":
            yield f"{recipe} gains {factor / base:.2f} times what the forecast has it gain over BF16."
    if not record.factors:
        yield "In no recipe was the speed of every model measured: the plan stays the forecast."
    short = record.fell_short
    if wrong := [one.name for one in short if one.part in NUMBERS]:
        yield f"Until it is explained, results of this cluster are not to be trusted: {'; '.join(wrong)}."
    if slow := [one.name for one in short if one.part == "messages"]:
        yield f"Layouts that rest on these messages will be slower than planned: {', '.join(slow)}."
    if ill := [one.name for one in short if one.part == "state"]:
        yield (f"Every run on these devices is slowed or at risk: {', '.join(ill)} (slurm.exclude takes a node out).")


def _short(record: Acceptance) -> Iterator[Block]:
    if not record.fell_short:
        yield Text("Nothing that was measured.")
        return
    yield _table(record.fell_short)


def _parts(record: Acceptance) -> Iterator[tuple[str, Iterator[AcceptanceCheck]]]:
    yield from groupby(record.checks, key=lambda one: one.part)


def _table(checks: list[AcceptanceCheck]) -> Table:
    return Table(
        header=["check", "expected", "found", "verdict"],
        rows=[[one.name, f"{one.expected} ({one.source})", one.found, verdict(one)] for one in checks],
        align="llll",
        widths=[2.2, 3.6, 3.4, 1.2],
        small=True,
    )


def verdict(one: AcceptanceCheck) -> str:
    """With how much is missing."""
    return f"{one.verdict} by {one.short_by:.1%}" if one.short_by is not None else one.verdict
