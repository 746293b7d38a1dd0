"""Do our books agree with Slurm's? Every attempt against `sacct`, to the second."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from octavo.accounting.slurm import EXIT_REASONS
from octavo.records import SlurmRow

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE_SECONDS = 1.0
"""By which an attempt may differ: sacct counts whole seconds."""


@dataclass(frozen=True)
class Difference:
    """One row that the two books do not agree on."""

    job: str
    submit: datetime | None
    run: str
    what: str


@dataclass(frozen=True)
class Reconciliation:
    """What the comparison found. Rows still running are left out: they move."""

    compared: int
    device_hours: float
    """By our books, over the rows compared."""
    slurm_device_hours: float
    differences: list[Difference]


def reconcile(attempts: pd.DataFrame, rows: list[SlurmRow]) -> Reconciliation:
    """Compare `attempts.parquet` with the rows that sacct has now; attempts without a Slurm job are not compared."""
    ended = {row.key: row for row in rows if row.state in EXIT_REASONS}
    ours: dict[tuple[str, datetime], tuple[str, float, int, float]] = {}
    differences = []
    for one in attempts.loc[attempts["job"].notna()].to_dict("records"):
        run = f"{one['cell']}/seed-{one['seed']}"
        if one["source"] != "sacct":
            differences.append(Difference(str(one["job"]), None, run, "not in sacct: the hours are the trainer's own"))
            continue
        key = (str(one["job"]), one["submit"].to_pydatetime().astimezone(UTC))
        _, seconds, _, hours = ours.get(key, ("", 0.0, 0, 0.0))
        more = float(one["device_hours"])
        ours[key] = (run, seconds + more * 3600 / one["devices"], int(one["devices"]), hours + more)
    for key, row in ended.items():
        if key not in ours:
            run = f"{row.cell}/seed-{row.seed}"
            differences.append(Difference(row.job, row.submit, run, f"in sacct alone: {row.elapsed_seconds} s"))
    for key, (run, seconds, devices, _) in ours.items():
        row = ended.get(key)
        if row is None:
            if not any(key == other.key for other in rows):
                differences.append(Difference(*key, run, f"in our books alone: {seconds:.0f} s"))
        elif abs(seconds - row.elapsed_seconds) > TOLERANCE_SECONDS:
            differences.append(Difference(*key, run, f"{seconds:.0f} s in ours, {row.elapsed_seconds} s in sacct"))
        elif devices != row.devices:
            differences.append(Difference(*key, run, f"{devices} devices in ours, {row.devices} in sacct"))
    both = [key for key in ours if key in ended]
    return Reconciliation(
        compared=len(both),
        device_hours=sum(ours[key][3] for key in both),
        slurm_device_hours=sum(ended[key].devices * ended[key].elapsed_seconds / 3600 for key in both),
        differences=differences,
    )
