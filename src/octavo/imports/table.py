"""What was read of each run, as lines of text: so that a wrong reading is seen."""

from __future__ import annotations

from octavo.imports.runs import Imported, ImportedRun

HEADER = ("run", "status", "logged", "steps", "seconds", "of steps", "validation", "skipped", "blank")


def table(imported: Imported) -> str:
    """A line per run: which steps were read, the seconds and of how many steps, the step of the last validation."""
    rows = [HEADER, *(_row(run) for run in imported.runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:-1], widths[2:]), row[-1]])
        for row in rows
    )


def _row(run: ImportedRun) -> tuple[str, ...]:
    return (
        f"{run.cell}/seed-{run.seed}",
        run.status,
        f"{run.lines:,}",
        f"{run.first_step:,} to {run.last_step:,}",
        "-" if run.seconds is None else f"{run.seconds:,.1f}",
        "-" if run.timed_steps is None else f"{run.timed_steps:,}",
        "-" if run.validation_step is None else f"{run.validation_step:,}",
        f"{run.skipped_steps:,}",
        ", ".join(run.blank) or "-",
    )
