"""Published results to hold one's own against: configurations, losses, hashes and the environment, without the runs.

`results/reference/<experiment>/reference.json` is made by `octavo bundle --reference` of the pipeline's own results.
Compared with it, a run is *identical* (its final parameters and its loss are the same bits), or its cell is *equal
within tolerance*: over the seeds that both have, the losses differ on average by no more than the reference's do
between seeds (`octavo.verification.verify`); or it is *different*. Which part of the environment differs is said.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from octavo.errors import OctavoError
from octavo.experiment.run import Experiment, load_experiment
from octavo.files import sha256, write_text
from octavo.layout import ExperimentFolder
from octavo.records import (
    SCHEMA_VERSION,
    ClaimsFile,
    Estimate,
    Provenance,
    Record,
    Result,
    Verdict,
    VerificationCheck,
    read_record,
)
from octavo.verification.compare import environment
from octavo.verification.verify import pooled_spread


class ReferenceRun(Record):
    """One run, as published."""

    cell: str
    seed: int
    run_fingerprint: str
    status: str
    steps: int
    training_loss: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None
    metrics_sha256: str
    parameters_sha256: str | None


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
    environment: dict[str, Any]
    """What may change numbers, as `octavo.verification.compare.environment` flattens it."""
    machine: dict[str, Any]
    """The whole of the provenance's hardware."""
    data_manifest_sha256: str
    configurations: dict[str, Any]
    """Cell -> its resolved configuration."""
    tables: dict[str, str]
    """File -> SHA-256."""
    runs: list[ReferenceRun]
    claims: list[ReferenceClaim]


def write_reference(folder: ExperimentFolder, target: Path) -> Path:
    """Write `reference.json` below `target`. Raises OctavoError where a run is missing."""
    found = describe(folder)
    path = target / "reference.json"
    write_text(path, found.model_dump_json(indent=1) + "\n")
    return path


def describe(folder: ExperimentFolder) -> Reference:
    """The results of an experiment as a reference."""
    experiment = load_experiment(folder.name)
    again = f"snakemake {folder.report_pdf}"
    results = list(_results(experiment, folder, again))
    if not results:
        raise OctavoError("no run has a result yet", where=folder.runs, fix=f"make them: {again}")
    first = folder.run(results[0].cell, results[0].seed)
    made = read_record(first.provenance, Provenance, made_by=again)
    claims = read_record(folder.claims, ClaimsFile, made_by=again).claims if folder.claims.exists() else []
    tables = (folder.runs_table, folder.steps_table, folder.attempts_table, folder.claims, folder.comparisons)
    return Reference(
        experiment=experiment.name,
        commit=made.git_commit,
        environment=environment(made),
        machine=dict(made.hardware),
        data_manifest_sha256=results[0].data_manifest_sha256,
        configurations={name: cell.model_dump(mode="json") for name, cell in experiment.cells.items()},
        tables={path.name: sha256(path) for path in tables if path.exists()},
        runs=[ReferenceRun(**one.model_dump(include=set(ReferenceRun.model_fields))) for one in results],
        claims=[ReferenceClaim(**one.model_dump(include=set(ReferenceClaim.model_fields))) for one in claims],
    )


def compare(folder: ExperimentFolder, published: Path) -> list[VerificationCheck]:
    """Results against a reference: a folder with reference.json, or the file."""
    path = published / "reference.json" if published.is_dir() else published
    reference = read_record(path, Reference, made_by="octavo bundle --reference results/<experiment>")
    own = describe(folder)
    checks = [*_compare_environment(own, reference)]
    theirs = {(one.cell, one.seed): one for one in reference.runs}
    ours = {(one.cell, one.seed): one for one in own.runs}
    spread = _spread(reference)
    for cell in dict.fromkeys(cell for cell, _ in theirs):
        pairs = [(ours[key], one) for key, one in theirs.items() if key[0] == cell and key in ours]
        checks.append(_compare_cell(cell, pairs, spread))
    verdicts = {one.number: one.verdict for one in own.claims}
    for claim in reference.claims:
        found = verdicts.get(claim.number)
        if found != claim.verdict:
            note = f"the verdict is {found or 'missing'!r}, published is {claim.verdict!r}"
            checks.append(_check(f"claim {claim.number}", "not testable here", note))
    return checks


def _results(experiment: Experiment, folder: ExperimentFolder, again: str) -> Any:
    for cell, seed in experiment.runs():
        run = folder.run(cell.cell, seed)
        if run.result.exists():
            yield read_record(run.result, Result, made_by=again)


def _compare_environment(own: Reference, published: Reference) -> list[VerificationCheck]:
    """One check that names what differs; another environment is no failure."""
    keys = sorted(own.environment.keys() | published.environment.keys())
    differing = [
        f"{key}: {own.environment.get(key)}, published {published.environment.get(key)}"
        for key in keys
        if own.environment.get(key) != published.environment.get(key)
    ]
    if own.data_manifest_sha256 != published.data_manifest_sha256:
        differing.append("the data set")
    status = "equal within tolerance" if differing else "identical"
    return [_check("environment", status, "; ".join(differing) or "the same as the published one's")]


def _compare_cell(cell: str, pairs: list[tuple[ReferenceRun, ReferenceRun]], spread: float | None) -> VerificationCheck:
    if not pairs:
        return _check(cell, "not testable here", "none of the published runs was made here")
    if any(mine.run_fingerprint != theirs.run_fingerprint for mine, theirs in pairs):
        return _check(
            cell, "different", "it is configured otherwise than the published one: the runs are not comparable"
        )
    if all(
        mine.parameters_sha256 == theirs.parameters_sha256 and mine.validation_loss == theirs.validation_loss
        for mine, theirs in pairs
    ):
        return _check(cell, "identical", f"{len(pairs)} runs: loss and final parameters are the same bits")
    both = [(mine.validation_loss, theirs.validation_loss) for mine, theirs in pairs]
    changes = [mine / theirs - 1 for mine, theirs in both if mine is not None and theirs is not None]
    if len(changes) < len(both):
        same = all((mine is None) == (theirs is None) for mine, theirs in both)
        status = "equal within tolerance" if same else "different"
        return _check(cell, status, "runs diverged in both" if same else "runs diverged in one of the two")
    difference = abs(fmean(changes))
    said = f"{len(pairs)} runs: the loss differs by {difference:.3%} on average"
    if spread is None:
        return _check(cell, "not testable here", f"{said}; one seed has no spread to hold it against")
    status = "equal within tolerance" if difference <= spread else "different"
    note = f"{said}, the published seeds by {spread:.3%} (standard deviation)"
    return _check(cell, status, note, difference=difference, tolerance=spread)


def _spread(reference: Reference) -> float | None:
    by_cell: dict[str, list[float]] = {}
    for run in reference.runs:
        if run.validation_loss is not None:
            by_cell.setdefault(run.cell, []).append(run.validation_loss)
    return pooled_spread(list(by_cell.values()))


def _check(run: str, status: Any, note: str, **more: Any) -> VerificationCheck:
    return VerificationCheck(gate="baseline", run=run, status=status, note=note, **more)
