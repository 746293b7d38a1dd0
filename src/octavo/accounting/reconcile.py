"""Does our ledger agree with Slurm's accounting? Every attempt against what `sacct` says now, to the second.

Rows that we kept (`sacct.json`) are no witnesses: what sacct has purged since is not compared, and that is said. Nor is
a number of GPUs that Slurm did not count. Where it did, it is held against what the trainer found as well, which is not
read from sacct.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from octavo.accounting.slurm import EXIT_REASONS, PROVISIONAL, SUBMITTED_DEVICES, TRAINERS_DEVICES
from octavo.experiment.run import Experiment
from octavo.layout import ExperimentFolder
from octavo.records import SlurmRow, read_table

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE_SECONDS = 1.0
"""By which an attempt may differ: sacct counts whole seconds."""

ONLY_SECONDS = (TRAINERS_DEVICES, SUBMITTED_DEVICES)
"""Sources in which the number of devices is not Slurm's."""

Key = tuple[str, datetime]


@dataclass(frozen=True)
class Difference:
    """One row that the ledger and sacct do not agree on."""

    job: str
    submit: datetime | None
    run: str
    what: str


@dataclass(frozen=True)
class Reconciliation:
    """What the comparison found. Rows still running are left out: they move."""

    compared: int
    device_hours: float
    """By our ledger, over the rows compared."""
    slurm_device_hours: float
    differences: list[Difference]
    purged: int
    """Rows of our ledger that sacct had once and has no more: not compared."""
    seconds_only: int
    """Rows compared whose number of devices Slurm does not count; it is ours in both sums."""


@dataclass
class _Ours:
    """What our ledger says of one row of Slurm's: the attempts made in it, added up."""

    run: str
    devices: int
    seconds: float
    device_hours: float
    source: str


def reconcile(
    attempts: pd.DataFrame, rows: list[SlurmRow], kept: list[SlurmRow], trained: dict[str, int]
) -> Reconciliation:
    """Compare `attempts.parquet` with `rows`, which sacct has now; attempts without a Slurm job are not compared.

    `kept`: the rows that it had when the ledger was made; `trained`: job -> devices that the trainer found (GPUs alone:
    a process on a CPU may hold several cores).
    """
    ours, differences = _our_rows(attempts.loc[attempts["job"].notna()].to_dict("records"))
    ended = {row.key: row for row in rows if row.state in EXIT_REASONS}
    moving, before = {row.key for row in rows} - set(ended), {row.key for row in kept}
    both = [key for key in ours if key in ended]
    for key in both:
        differences += [Difference(*key, ours[key].run, what) for what in _differ(ours[key], ended[key], trained)]
    for key in set(ended) - set(ours):
        row = ended[key]
        what = f"in sacct alone: {row.elapsed_seconds} s"
        differences.append(Difference(*key, f"{row.cell}/seed-{row.seed}", what))
    gone = [key for key in ours if key not in ended and key not in moving]
    for key in gone:
        if key not in before:
            differences.append(Difference(*key, ours[key].run, f"in our ledger alone: {ours[key].seconds:.0f} s"))
    return Reconciliation(
        compared=len(both),
        device_hours=sum(ours[key].device_hours for key in both),
        slurm_device_hours=sum(
            (ended[key].devices or ours[key].devices) * ended[key].elapsed_seconds / 3600 for key in both
        ),
        differences=differences,
        purged=sum(key in before for key in gone),
        seconds_only=sum(ended[key].devices is None for key in both),
    )


def made_tables(experiment: Experiment, folder: ExperimentFolder) -> tuple[pd.DataFrame, set[str]]:
    """The ledger's rows as tables have them, and the cells that they are of.

    They are those of the whole experiment; where only ablations were aggregated, those of all these together. Raises
    OctavoError where there is no table at all.
    """
    import pandas as pd

    made_by = f"octavo aggregate {folder.path}"
    names = [name for name in folder.ablations() if folder.ablation(name).attempts_table.exists()]
    names = [name for name in names if name in experiment.file.ablations]
    if folder.attempts_table.exists() or not names:
        whole = read_table(folder.attempts_table, "attempts", made_by=made_by)
        return whole, {run.cell for run in folder.run_folders()} | set(experiment.cells)
    parts = [read_table(folder.ablation(name).attempts_table, "attempts", made_by=made_by) for name in names]
    cells = {cell.cell for name in names for cell in experiment.ablation_cells(name)}
    # two ablations may share a baseline; an attempt is the same one wherever it stands
    attempt = ["cell", "seed", "attempt", "job", "submit", "superseded"]
    return pd.concat(parts).drop_duplicates(attempt), cells


def _our_rows(attempts: list[dict[Any, Any]]) -> tuple[dict[Key, _Ours], list[Difference]]:
    """Our ledger by Slurm's key, and the attempts of jobs that they found no row for."""
    ours: dict[Key, _Ours] = {}
    strangers = []
    for one in attempts:
        job, run = str(one["job"]), f"{one['cell']}/seed-{one['seed']}"
        if one["submit"] is None or one["submit"] != one["submit"]:  # NaT
            strangers.append(Difference(job, None, run, "not in sacct: the hours are the trainer's own"))
            continue
        key = (job, one["submit"].to_pydatetime().astimezone(UTC))
        row = ours.setdefault(key, _Ours(run, int(one["devices"]), 0.0, 0.0, one["source"]))
        row.device_hours += float(one["device_hours"])
        row.seconds += float(one["device_hours"]) * 3600 / row.devices
    return ours, strangers


def _differ(ours: _Ours, row: SlurmRow, trained: dict[str, int]) -> list[str]:
    """What two rows with one key do not agree on."""
    if abs(ours.seconds - row.elapsed_seconds) > TOLERANCE_SECONDS:
        return [f"{ours.seconds:.0f} s in ours, {row.elapsed_seconds} s in sacct"]
    if row.devices is None:
        return (
            []
            if ours.source.removesuffix(PROVISIONAL) in ONLY_SECONDS
            else [f"{ours.devices} devices in ours, none counted in sacct"]
        )
    if ours.devices != row.devices:
        return [f"{ours.devices} devices in ours, {row.devices} in sacct"]
    # whole nodes may be given out for less; less than was trained on cannot be
    if trained.get(row.job, 0) > row.devices:
        return [f"{row.devices} devices in sacct, but {trained[row.job]} trained"]
    return []
