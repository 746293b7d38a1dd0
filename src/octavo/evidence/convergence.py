"""`octavo converges`: whether runs need as many samples for a loss as a reference does, by MLPerf Training's rules.

Source: mlcommons/training_policies, training_rules.adoc, "Reference Convergence Points (RCPs)" and its appendix of
examples. Runs may not converge faster than the reference by more than chance: that would show other work, not faster
work. Of the runs' samples to the target, and of the reference's, the best and the worst are left out (olympic mean).
The least mean that is accepted follows from a one-sided two-sample t-test, alpha 5 %, with the reference's spread on
both sides. Reference points that converge slower than the line between their neighbours are pruned; between two batch
sizes mean and spread are interpolated.

The rules take the standard deviation without the best and the worst run, too; the checker in mlcommons/logging
(rcp_checker.py) takes it over all runs, and accepts more. Both limits are given, and the rules' decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from octavo.configuration import Section, read_section
from octavo.errors import OctavoError
from octavo.evidence.lengths import whole_lengths
from octavo.records import read_table

if TYPE_CHECKING:
    import pandas as pd

    from octavo.layout import ConfigFolders, ExperimentFolder

ALPHA = 0.05
Count = Annotated[int, Field(gt=0, lt=2**53)]


class ReferencePoint(Section):
    """What a reference needed at one batch size."""

    batch_size: Count
    """Sequences per step."""
    samples: Annotated[list[Count], Field(min_length=4)]
    """Sequences until the target was reached, run by run."""


class Reference(Section):
    """A file of configs/published/convergence."""

    source: str
    validation: str
    """What the loss is of, as imports state it."""
    target_loss: Annotated[float, Field(gt=0)]
    """Validation loss at which a run has converged, nats per token."""
    sequence_length: Count
    runs: Annotated[int, Field(ge=3, le=100)]
    """Runs that the rules ask for."""
    points: Annotated[list[ReferencePoint], Field(min_length=1)]


@dataclass(frozen=True)
class Limit:
    """What runs at one batch size are held against."""

    batch_size: int
    mean: float
    """Olympic mean of the reference's samples."""
    spread: float
    """Their standard deviation without the best and the worst."""
    spread_of_all: float
    runs: int
    """That mean and spread rest on."""
    interpolated: bool = False

    def least(self, runs: int, *, of_all: bool = False) -> float:
        """The least olympic mean of so many runs that is no faster than chance.

        t = (mean - least) / (spread sqrt(1 / n + 1 / m)) at its 95 % quantile, n and m the runs that count.
        """
        from scipy.stats import t

        n, m = self.runs, runs - 2
        quantile = float(t.ppf(1 - ALPHA, n + m - 2))
        return self.mean - quantile * (self.spread_of_all if of_all else self.spread) * float(np.sqrt(1 / n + 1 / m))


Outcome = Literal[
    "not faster than the reference", "faster than the reference by more than chance", "not converged",
    "too few runs", "no reference point",
]  # fmt: skip


@dataclass(frozen=True)
class Convergence:
    """One cell, held against the reference."""

    cell: str
    batch_size: int
    samples: list[float]
    """Sequences to the target, by seed; infinite where a run did not reach it."""
    outcome: Outcome
    limit: Limit | None = None
    mean: float | None = None
    least: float | None = None
    note: str = ""


def olympic(values: Sequence[float]) -> np.ndarray:
    """Values without the least and the largest."""
    return np.sort(np.asarray(values, dtype=float))[1:-1]


def limits(reference: Reference) -> list[Limit]:
    """A limit for each reference point that is not pruned, by batch size."""
    found = []
    for point in sorted(reference.points, key=lambda point: point.batch_size):
        kept = olympic(point.samples)
        of_all = float(np.std(point.samples))
        found.append(Limit(point.batch_size, float(np.mean(kept)), float(np.std(kept)), of_all, len(kept)))
    fastest = min(found, key=lambda limit: limit.mean)
    found = [limit for limit in found if limit.batch_size >= fastest.batch_size]
    at = 1
    while at < len(found) - 1:
        if found[at].mean > _between(found[at - 1], found[at + 1], found[at].batch_size, reference.runs).mean:
            del found[at]  # and the one before it is looked at again: its neighbour is another now
            at = max(at - 1, 1)
        else:
            at += 1
    return found


def limit_at(known: list[Limit], batch_size: int, runs: int) -> Limit | None:
    """The limit at a batch size: its own, one between two, or that of the smallest; None above the largest."""
    above = [limit for limit in known if limit.batch_size >= batch_size]
    below = [limit for limit in known if limit.batch_size <= batch_size]
    if not above:
        return None
    if not below or above[0].batch_size == batch_size:
        return above[0]
    return _between(below[-1], above[0], batch_size, runs)


def _between(low: Limit, high: Limit, batch_size: int, runs: int) -> Limit:
    share = (batch_size - low.batch_size) / (high.batch_size - low.batch_size)

    def at(name: str) -> float:
        return (1 - share) * getattr(low, name) + share * getattr(high, name)

    return Limit(batch_size, at("mean"), at("spread"), at("spread_of_all"), 2 * runs, interpolated=True)


def judge(cell: str, batch_size: int, samples: list[float], reference: Reference) -> Convergence:
    """Hold the samples to the target of a cell's runs against the reference."""
    known = limits(reference)
    limit = limit_at(known, batch_size, reference.runs)
    if limit is None:
        note = f"its largest is of batch size {known[-1].batch_size:,}: run the reference at {batch_size:,}"
        return Convergence(cell, batch_size, samples, "no reference point", note=note)
    if len(samples) < reference.runs:
        note = f"{len(samples)} of {reference.runs}"
        return Convergence(cell, batch_size, samples, "too few runs", limit, note=note)
    mean, least = float(np.mean(olympic(samples))), limit.least(len(samples))
    if not np.isfinite(mean):
        note = f"{sum(not np.isfinite(one) for one in samples)} runs did not reach {reference.target_loss:g}"
        return Convergence(cell, batch_size, samples, "not converged", limit, note=note)
    smaller = limit.batch_size != batch_size  # than any of the reference's
    if mean >= least:
        note = "between batch sizes of the reference" if limit.interpolated else ""
        note = f"at the reference's smallest batch size, {limit.batch_size:,}" if smaller else note
        return Convergence(cell, batch_size, samples, "not faster than the reference", limit, mean, least, note)
    if smaller:
        note = f"its smallest is of batch size {limit.batch_size:,}: run the reference at {batch_size:,}"
        return Convergence(cell, batch_size, samples, "no reference point", limit, mean, least, note)
    lenient = mean >= limit.least(len(samples), of_all=True)
    note = "MLPerf's checker, which takes the spread of all reference runs, accepts it" if lenient else ""
    outcome: Outcome = "faster than the reference by more than chance"
    return Convergence(cell, batch_size, samples, outcome, limit, mean, least, note)


def convergence(folder: ExperimentFolder, reference: Reference) -> list[Convergence]:
    """Every cell of an experiment against a reference. Raises OctavoError for losses of another text."""
    columns = ["cell", "seed", "step", "tokens", "validation_loss"]
    made_by = f"octavo aggregate (or import) {folder.path}"
    runs = whole_lengths(read_table(folder.runs_table, "runs", made_by=made_by))
    steps = read_table(folder.steps_table, "steps", made_by=made_by, columns=columns)
    found = []
    for cell, of_cell in runs.groupby("cell", sort=False):
        other = of_cell["validation"].dropna()
        if len(other := other[other != reference.validation]):
            raise OctavoError(
                f"the validation losses of {cell} are of {other.iloc[0]!r}", where=folder.runs_table,
                expected=f"of {reference.validation!r}, as the reference's",
            )  # fmt: skip
        batches = {_batch(run, reference.sequence_length, folder) for _, run in of_cell.iterrows()}
        if len(batches) > 1:
            raise OctavoError(
                f"the runs of {cell} have batch sizes {', '.join(map(str, sorted(batches)))}", where=folder.runs_table,
                expected="one for all runs of a cell", fix="make them cells of their own",
            )  # fmt: skip
        samples = [_samples(run, steps, reference) for _, run in of_cell.iterrows()]
        judged = judge(str(cell), batches.pop(), samples, reference)
        found.append(judged)
    return found


def _batch(run: pd.Series, length: int, folder: ExperimentFolder) -> int:
    """Sequences per step of a run."""
    batch = run["tokens"] / run["steps"] / length if run["tokens"] == run["tokens"] else float("nan")
    if not (batch > 0 and abs(batch - round(batch)) < 1e-6 * batch):
        raise OctavoError(
            f"{run['cell']} seed {run['seed']} has no whole batch of {length:,} tokens a sequence",
            where=folder.runs_table, expected="tokens = steps x batch size x sequence length",
            fix="give sequence_length or tokens_per_step in the import file",
        )  # fmt: skip
    return round(batch)


def _samples(run: pd.Series, steps: pd.DataFrame, reference: Reference) -> float:
    """Sequences until a run's first validation at the target; infinite where it reached none, or diverged."""
    own = steps[(steps["cell"] == run["cell"]) & (steps["seed"] == run["seed"])]
    reached = own[own["validation_loss"] <= reference.target_loss]
    if not len(reached) or run["status"] == "diverged":
        return float("inf")
    return float(reached["tokens"].iloc[0]) / reference.sequence_length


def read_reference(name: str | None, folder: ExperimentFolder, configs: ConfigFolders) -> Reference:
    """The named file of configs/published/convergence, or the one for the text that the runs' losses are of."""
    files = sorted((configs.published / "convergence").glob("*.yaml"))
    if name is not None:
        chosen = next((file for file in files if file.stem == name), None) or Path(name)
        if chosen.suffix != ".yaml":
            raise OctavoError(
                f"there is no reference {name!r}",
                expected=f"one of {', '.join(file.stem for file in files)}, or a file",
            )
        return read_section(chosen, Reference)
    runs = read_table(folder.runs_table, "runs", made_by=f"octavo import {folder.path} FILE")
    texts = set(runs["validation"].dropna())
    found = [one for one in (read_section(file, Reference) for file in files) if {one.validation} == texts]
    if not found:
        raise OctavoError(
            f"no reference is of what these runs validate on: {', '.join(sorted(texts)) or 'not stated'}",
            where=folder.runs_table, fix=f"name one with --reference: {', '.join(file.stem for file in files)}",
        )  # fmt: skip
    return found[0]
