"""Published results to hold one's own against: configurations, losses, hours, cost and environment, without the runs.

`results/reference/<experiment>/reference.json` is made by `octavo bundle --reference` of the pipeline's own results; no
hash in it rests on a time. Compared with it, a run is *identical* (every logged number, its loss and its final
parameters are the same bits), or its cell is *equal within tolerance*: over the seeds that both have, the losses differ
on average by no more than so many pairs of seeds would (`octavo.verification.tolerance`); or it is *different*. In
another environment sameness to the last bit is not to be had: what differs is said. Hours and cost are shown beside the
published ones and decide nothing: they are another machine's.

A verdict is *different* where one is supported and the other refuted. In another environment one that rests on time,
hours or money is *not compared* where it is another, and so is one that only one of the two could reach.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from octavo.errors import OctavoError
from octavo.evidence.verdicts import read_claims
from octavo.experiment.load import load_experiment
from octavo.files import fingerprint, write_text
from octavo.layout import ExperimentFolder, RunFolder, configs
from octavo.records import (
    SCHEMA_VERSION,
    ClaimsFile,
    Estimate,
    LayoutSince,
    Provenance,
    Record,
    Result,
    Verdict,
    VerificationCheck,
    read_record,
    read_table,
)
from octavo.verification.compare import counted_metrics, environment
from octavo.verification.tolerance import SeedSpread, seed_spread


class ReferenceRun(Record):
    """One run, as published."""

    cell: str
    seed: int
    run_fingerprint: str
    data_manifest_sha256: str
    status: str
    steps: int
    tokens: int
    training_loss: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None
    device_hours_final: float | None
    device_hours_all_in: float | None
    cost_final: float | None
    cost_all_in: float | None
    numbers_sha256: str
    """Over every logged number that the run is a function of (`octavo.verification.compare`): no times."""
    parameters_sha256: str | None
    layouts: list[LayoutSince] = []
    """Those that it was trained under; several: it was resharded."""


class ReferenceClaim(Record):
    """One claim's verdict, as published."""

    number: int
    name: str
    verdict: Verdict
    effect: Estimate | None


class Reference(Record):
    """`reference.json`."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    commit: str | None
    environment: dict[str, list[Any]]
    """What may change numbers, as `octavo.verification.compare.environment` flattens it: the values of all runs."""
    machine: dict[str, Any]
    """The whole of the first run's hardware."""
    currency: str
    """Of the costs."""
    configurations: dict[str, Any]
    """Cell -> its resolved configuration."""
    runs: list[ReferenceRun]
    claims: list[ReferenceClaim]


def write_reference(folder: ExperimentFolder, target: Path) -> Path:
    """Write `reference.json` below `target`. Raises OctavoError where a run or the tables are missing."""
    found = describe(folder)
    path = target / "reference.json"
    write_text(path, found.model_dump_json(indent=1) + "\n")
    return path


def describe(folder: ExperimentFolder) -> Reference:
    """The results of an experiment as a reference."""
    experiment = load_experiment(folder.name)
    again = f"snakemake {folder.report_pdf}"
    folders = [folder.run(cell.cell, seed) for cell, seed in experiment.runs()]
    folders = [run for run in folders if run.result.exists()]
    if not folders:
        raise OctavoError("no run has a result yet", where=folder.runs, fix=f"make them: {again}")
    made = [read_record(run.provenance, Provenance, made_by=again) for run in folders]
    table = read_table(folder.runs_table, "runs", made_by=again)
    rows = {(row["cell"], row["seed"]): row for row in table.to_dict("records")}
    claims = read_record(folder.claims, ClaimsFile, made_by=again).claims if folder.claims.exists() else []
    return Reference(
        experiment=experiment.name,
        commit=made[0].git_commit,
        environment=_environment(made),
        machine=dict(made[0].hardware),
        currency=experiment.cluster.currency,
        configurations={name: cell.model_dump(mode="json") for name, cell in experiment.cells.items()},
        runs=[_run(run, rows.get((run.cell, run.seed), {}), again) for run in folders],
        claims=[ReferenceClaim(**one.model_dump(include=set(ReferenceClaim.model_fields))) for one in claims],
    )


def _run(folder: RunFolder, row: dict[str, Any], again: str) -> ReferenceRun:
    result = read_record(folder.result, Result, made_by=again)
    paid = {name: row.get(name) for name in ("device_hours_final", "device_hours_all_in", "cost_final", "cost_all_in")}
    return ReferenceRun.model_validate(
        {
            **result.model_dump(include=set(ReferenceRun.model_fields)),
            **{name: None if value is None or isnan(value) else value for name, value in paid.items()},
            "numbers_sha256": fingerprint(sorted(counted_metrics(folder.metrics).items())),
        }
    )


def _environment(made: list[Provenance]) -> dict[str, list[Any]]:
    """Key -> the values that runs have, each once."""
    flat = [environment(one) for one in made]
    keys = sorted({key for one in flat for key in one})
    return {key: [value for value, _ in groupby(sorted((one.get(key) for one in flat), key=str))] for key in keys}


@dataclass(frozen=True)
class ReferenceComparison:
    """Results against a reference."""

    checks: list[VerificationCheck]
    counts: str
    """How many losses and verdicts are the same, in one line."""


def compare(folder: ExperimentFolder, published: Path) -> ReferenceComparison:
    """Results against a reference of the same experiment: a folder with reference.json, or the file."""
    path = published / "reference.json" if published.is_dir() else published
    reference = read_record(path, Reference, made_by="octavo bundle --reference results/<experiment>")
    if reference.experiment != folder.name:
        raise OctavoError(
            f"the reference is of the experiment {reference.experiment}",
            where=path,
            expected=f"one of {folder.name}",
            fix=f"compare results/{reference.experiment} with it",
        )
    own = describe(folder)
    checks = [_compare_environment(own, reference)]
    theirs = {(one.cell, one.seed): one for one in reference.runs}
    ours = {(one.cell, one.seed): one for one in own.runs}
    spread = seed_spread((one.cell, one.validation_loss) for one in reference.runs)
    for cell in dict.fromkeys(cell for cell, _ in theirs):
        pairs = [(ours[key], one) for key, one in theirs.items() if key[0] == cell and key in ours]
        checks.append(_compare_cell(cell, pairs, spread))
    checks.append(_compare_cost(own, reference))
    another = checks[0].status != "identical"
    timed = {one.name for one in read_claims(configs()) if one.rests_on_time}
    verdicts = {one.number: one for one in own.claims}
    of_claims = [
        _compare_verdict(verdicts.get(one.number), one, rests_on_time=one.name in timed, another_environment=another)
        for one in reference.claims
    ]
    pairs = [(ours[key], one) for key, one in theirs.items() if key in ours]
    identical = sum(_same_bits(mine, published) for mine, published in pairs)
    on_time = sum(one.note.startswith(TIMED) for one in of_claims)
    statuses = Counter(one.status for one in of_claims)
    counts = {
        "the same": statuses["identical"],
        f"rest{'s' * (on_time == 1)} on time": on_time,
        "undecided in one of the two": statuses["not compared"] - on_time,
        "not here": statuses["not testable here"],
        "different": statuses["different"],
    }
    said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    return ReferenceComparison([*checks, *of_claims], f"losses identical {identical} of {len(theirs)}, verdicts {said}")


TIMED = "rests on time"


def _compare_verdict(
    own: ReferenceClaim | None, published: ReferenceClaim, *, rests_on_time: bool, another_environment: bool
) -> VerificationCheck:
    """A verdict and the published one, with both effects."""
    name = f"claim {published.number}"
    if own is None:
        return _check(name, "not testable here", "there is no verdict on it here")
    both = f"here {own.verdict}{_interval(own.effect)}, published {published.verdict}{_interval(published.effect)}"
    both += _overlap(own.effect, published.effect)
    if own.verdict == published.verdict:
        return _check(name, "identical", both)
    if rests_on_time and another_environment:
        return _check(name, "not compared", f"{TIMED}: {both}")
    if {own.verdict, published.verdict} == {"supported", "refuted"}:
        return _check(name, "different", both)
    return _check(name, "not compared", f"one of the two does not decide: {both}")


def _interval(effect: Estimate | None) -> str:
    if effect is None:
        return ""
    if effect.low is None or effect.high is None:
        return f" ({effect.value:.4g} {effect.unit})"
    return f" ({effect.value:.4g} {effect.unit}, {effect.low:.4g} to {effect.high:.4g})"


def _overlap(own: Estimate | None, published: Estimate | None) -> str:
    """Whether two intervals have anything in common; nothing where one has no ends or is of another unit."""
    if own is None or published is None or own.unit != published.unit:
        return ""
    if own.low is None or own.high is None or published.low is None or published.high is None:
        return ""
    overlap = own.low <= published.high and published.low <= own.high
    return f": the intervals {'overlap' if overlap else 'do not overlap'}"


def _compare_environment(own: Reference, published: Reference) -> VerificationCheck:
    """Whether sameness to the last bit is to be had, and what stands in its way; no failure."""
    differing = [
        f"{key}: {_shown(own.environment.get(key))}, published {_shown(published.environment.get(key))}"
        for key in sorted(own.environment.keys() | published.environment.keys())
        if own.environment.get(key) != published.environment.get(key)
    ]
    if not differing:
        return _check("environment", "identical", "the same as the published one's")
    note = f"the last bits may differ for good reason: {'; '.join(differing)}"
    return _check("environment", "not testable here", note)


def _compare_cost(own: Reference, published: Reference) -> VerificationCheck:
    """Hours and money beside the published ones, over the runs that both have; no failure."""
    theirs = {(one.cell, one.seed): one for one in published.runs}
    pairs = [(one, theirs[one.cell, one.seed]) for one in own.runs if (one.cell, one.seed) in theirs]
    hours, cost = ([sum(getattr(one[side], name) or 0.0 for one in pairs) for side in (0, 1)]
                   for name in ("device_hours_final", "cost_final"))  # fmt: skip
    note = (
        f"{len(pairs)} final runs took {hours[0]:.4g} device-hours ({cost[0]:.4g} {own.currency}), "
        f"published are {hours[1]:.4g} ({cost[1]:.4g} {published.currency}): hours of two machines are not to be equal"
    )
    return _check("hours and cost", "not testable here", note)


def _shown(values: list[Any] | None) -> str:
    return " and ".join(map(str, values)) if values else "None"


def _compare_cell(
    cell: str, pairs: list[tuple[ReferenceRun, ReferenceRun]], spread: SeedSpread | None
) -> VerificationCheck:
    if not pairs:
        return _check(cell, "not testable here", "none of the published runs was made here")
    for name, what in (("run_fingerprint", "configured otherwise"), ("data_manifest_sha256", "trained on other text")):
        if any(getattr(mine, name) != getattr(theirs, name) for mine, theirs in pairs):
            return _check(cell, "different", f"it is {what} than the published one: the runs are not comparable")
    resharded = sum(len(one.layouts) > 1 for pair in pairs for one in pair)
    if not resharded and all(_same_bits(mine, theirs) for mine, theirs in pairs):
        runs = f"{len(pairs)} run{'s' if len(pairs) > 1 else ''}"
        return _check(cell, "identical", f"{runs}: every logged number and final parameters are the same bits")
    both = [(mine.validation_loss, theirs.validation_loss) for mine, theirs in pairs]
    changes = [mine / theirs - 1 for mine, theirs in both if mine is not None and theirs is not None]
    if len(changes) < len(both):
        same = all((mine is None) == (theirs is None) for mine, theirs in both)
        status = "equal within tolerance" if same else "different"
        return _check(cell, status, "runs diverged in both" if same else "runs diverged in one of the two")
    difference = abs(fmean(changes))
    said = f"{len(pairs)} runs: the loss differs by {difference:.3%} on average"
    if resharded:
        said += f"; {resharded} of both were resharded, and are not compared to the bit"
    if spread is None:
        return _check(cell, "not testable here", f"{said}; one seed has no spread to hold it against")
    tolerance = spread.tolerance(len(pairs))
    status = "equal within tolerance" if difference <= tolerance else "different"
    note = f"{said}, published seeds by up to {tolerance:.3%}"
    return _check(cell, status, note, difference=difference, tolerance=tolerance)


def _same_bits(mine: ReferenceRun, theirs: ReferenceRun) -> bool:
    bits = ("parameters_sha256", "numbers_sha256", "validation_loss", "training_loss")
    return all(getattr(mine, name) == getattr(theirs, name) for name in bits)


def _check(run: str, status: Any, note: str, **more: Any) -> VerificationCheck:
    return VerificationCheck(gate="baseline", run=run, status=status, note=note, **more)
