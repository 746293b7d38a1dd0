"""Whether the files of an experiment are what the runs wrote: tamper and rot, named.

A run's result holds the hash of its metrics, and says what follows from them; tables and verdicts are what aggregation
makes of the runs; a data set's manifest holds its hashes, and results the manifest's. Whoever changes metrics, result
and hashes together is found by making the run again (`octavo.verification.gates`), not here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment, RunConfig, data_identifier, read_run_config
from octavo.files import read_json, sha256
from octavo.layout import ExperimentFolder, RunFolder, data_folder, repository
from octavo.records import (
    TABLE_FIELDS,
    AttemptRecord,
    MetricsRecord,
    Provenance,
    Result,
    TableName,
    VerificationCheck,
    read_lines,
    read_record,
    read_table,
)
from octavo.training import seal

MADE_BY = "octavo train {folder}"


def check_files(experiment: Experiment, folder: ExperimentFolder) -> list[VerificationCheck]:
    """One check for everything that is damaged, and one for each kind of file that is intact."""
    runs = [(cell, seed, folder.run(cell.cell, seed)) for cell, seed in experiment.runs()]
    finished = [one for one in runs if one[2].result.exists()]
    manifest = repository() / data_folder(data_identifier(experiment.file.data, experiment.file.tokenizer))
    checks = [*_collect("data", _check_data(manifest, finished), "every file of the data set has its manifest's hash")]
    damaged = [
        _damaged(f"{cell.cell}/seed-{seed}", problem)
        for cell, seed, run in finished
        for problem in _problems(lambda cell=cell, seed=seed, run=run: check_run(experiment, cell, seed, run))
    ]
    checks += damaged or [
        _intact("runs", f"{len(finished)} runs: results follow from metrics, metrics have their hash")
    ]
    for cell, seed, run in runs:
        if not run.result.exists():
            note = "there is no result yet"
            checks.append(
                VerificationCheck(
                    gate="integrity", run=f"{cell.cell}/seed-{seed}", status="not testable here", note=note
                )
            )
    if not damaged:  # tables cannot be made again from damaged runs
        checks += _check_tables(experiment, folder)
    return checks


def check_run(experiment: Experiment, cell: CellConfig, seed: int, folder: RunFolder) -> Iterator[str]:
    """What is wrong with a finished run, one sentence each."""
    made_by = MADE_BY.format(folder=folder.path)
    result = read_record(folder.result, Result, made_by=made_by)
    run = experiment.run(cell.cell, seed)
    if result.run_fingerprint != run.run_fingerprint:
        yield f"result.json is of another configuration ({result.run_fingerprint[:12]}) than the experiment's run"
    asked = read_run_config(folder.config) if folder.config.exists() else None
    if asked is None or asked.run_fingerprint != result.run_fingerprint:
        yield "config.yaml is not the configuration that result.json was made under"
    if (digest := sha256(folder.metrics) if folder.metrics.exists() else None) != result.metrics_sha256:
        found = f"{digest[:12]} instead of {result.metrics_sha256[:12]}" if digest else "missing"
        yield f"metrics.jsonl was changed: SHA-256 {found}"
    yield from _result_follows(result, run, folder)
    provenance = read_record(folder.provenance, Provenance, made_by=made_by)
    if provenance.data_manifest_sha256 != result.data_manifest_sha256:
        yield "provenance.json names another data set than result.json"
    attempts = read_lines(folder.attempts, AttemptRecord)
    if not attempts or attempts[-1].exit_reason != result.status or attempts[-1].last_step != result.steps:
        yield "attempts.jsonl does not end with the attempt that finished the run"
    if [one.attempt for one in attempts] != list(range(1, len(attempts) + 1)):
        yield "attempts.jsonl lacks an attempt"
    if folder.routing.exists():
        read_table(folder.routing, "routing", made_by=made_by)
    yield from _check_checkpoints(folder, result)


def _result_follows(result: Result, run: RunConfig, folder: RunFolder) -> Iterator[str]:
    """Whether a result says what its metrics say."""
    lines = read_lines(folder.metrics, MetricsRecord)
    steps = {line.step: line for line in lines if line.step_seconds}
    final = next((line for line in reversed(lines) if line.final_validation_loss is not None), None)
    last = [one.loss for step, one in steps.items() if step > run.training.total_steps * 0.9 and one.loss is not None]
    complete = result.status == "completed"
    expected = {
        "experiment": run.experiment,
        "cell": run.cell,
        "architecture": run.architecture,
        "precision": run.precision.recipe,
        "ablation": run.ablation,
        "seed": run.seed,
        "steps": max(steps, default=0),
        "tokens": max(steps, default=0) * run.training.tokens_per_step,
        "training_loss": sum(last) / len(last) if complete and last else None,
        "validation_loss": final.final_validation_loss if complete and final else None,
        "validation_bits_per_byte": final.final_validation_bits_per_byte if complete and final else None,
        "training_seconds": sum(one.step_seconds or 0.0 for one in steps.values()),
    }
    for name, value in expected.items():
        if (found := getattr(result, name)) != value:
            yield f"result.json does not follow from metrics.jsonl: {name} is {found!r} instead of {value!r}"


def _check_checkpoints(folder: RunFolder, result: Result) -> Iterator[str]:
    """Whether the checkpoints that are kept are the run's, byte for byte."""
    for checkpoint in sorted(folder.checkpoints.glob("step-*")):
        for problem in seal.problems(checkpoint, result.run_fingerprint, result.data_manifest_sha256):
            yield f"checkpoints/{problem}"


def _check_data(folder: Path, finished: list[tuple[CellConfig, int, RunFolder]]) -> Callable[[], Iterator[str]]:
    from octavo.data.manifest import check_files as check_data_files
    from octavo.data.manifest import read_manifest

    def look() -> Iterator[str]:
        check_data_files(folder, read_manifest(folder))
        digest = sha256(folder / "manifest.json")
        for cell, seed, run in finished:
            value = read_json(run.result, made_by=MADE_BY.format(folder=run.path)).get("data_manifest_sha256")
            if value != digest:
                other = f"manifest {str(value)[:12]} instead of {digest[:12]}"
                yield f"{cell.cell}/seed-{seed} was trained on another data set: {other}"

    return look


def _check_tables(experiment: Experiment, folder: ExperimentFolder) -> list[VerificationCheck]:
    """Tables and verdicts against what aggregation makes of the same runs."""
    from octavo.accounting.books import attempts_frame
    from octavo.evidence.aggregate import aggregate
    from octavo.evidence.verdicts import write_verdicts
    from octavo.layout import configs

    if not folder.runs_table.exists():
        return [_damaged("tables", f"{folder.runs_table.name} is missing")]
    with tempfile.TemporaryDirectory() as name:
        fresh = ExperimentFolder(Path(name) / folder.name)
        fresh.path.mkdir()
        fresh.runs.symlink_to(folder.runs.resolve())

        def look() -> Iterator[str]:
            aggregate(experiment, fresh, attempts_frame(experiment))
            for table in ("runs", "steps", "attempts"):
                yield from _table_differences(folder, fresh, table)
            if folder.claims.exists():
                write_verdicts(fresh, configs(), None)
                for path in (folder.claims, folder.comparisons):
                    if path.read_bytes() != (fresh.path / path.name).read_bytes():
                        yield f"{path.name} is not what the tables and configs/claims say: it was changed, or is old"

        return _collect("tables", look, "tables and verdicts are what the runs make again")


def _table_differences(folder: ExperimentFolder, fresh: ExperimentFolder, table: TableName) -> Iterator[str]:
    import pyarrow.parquet as pq

    path, again = folder.path / f"{table}.parquet", fresh.path / f"{table}.parquet"
    try:
        read_table(path, table, made_by=f"octavo aggregate {folder.path}", columns=[])
        found = pq.read_table(path)
    except (OctavoError, OSError) as error:
        yield f"{path.name}: {str(error).splitlines()[0]}"
        return
    made = pq.read_table(again)
    if found.num_rows != made.num_rows:
        yield f"{path.name} has {found.num_rows} rows instead of {made.num_rows}"
        return
    for column, _, _ in TABLE_FIELDS[table]:
        left, right = found[column].to_pylist(), made[column].to_pylist()
        row = next((row for row, (one, other) in enumerate(zip(left, right, strict=True)) if one != other), None)
        if row is not None:
            yield f"{path.name} was changed: {column} in row {row} is {left[row]!r} instead of {right[row]!r}"


def _problems(look: Callable[[], Iterator[str]]) -> list[str]:
    """What is wrong, an unreadable file included."""
    found: list[str] = []
    try:
        for problem in look():
            found.append(problem)
    except OctavoError as error:
        found.append(f"{Path(error.where.split()[0]).name if error.where else 'a file'}: {error.found}")
    return found


def _collect(name: str, look: Callable[[], Iterator[str]], well: str) -> list[VerificationCheck]:
    return [_damaged(name, problem) for problem in _problems(look)] or [_intact(name, well)]


def _damaged(run: str, note: str) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status="damaged", note=note)


def _intact(run: str, note: str) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status="intact", note=note)
