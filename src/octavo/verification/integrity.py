"""Whether the files of an experiment are what the runs and the stages wrote: tamper and rot, named.

A run's result holds the hashes of its metrics, attempts, provenance and routing, and says what follows from them and
from its configuration; tables, verdicts and the plan are made again and compared; figures and reports lie beside their
hashes; a data set's manifest holds its hashes, and results the manifest's. Whoever changes metrics, result and hashes
together is found by making the run again (`octavo.verification.verify`), not here; but nothing that trains again can
find a time that was changed in all files alike: on a cluster, `octavo reconcile` holds the hours against Slurm's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from octavo.accounting import results
from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment, RunConfig, RunIdentity, data_identifier, read_run_config
from octavo.files import changed_files, sha256
from octavo.layout import ExperimentFolder, RunFolder, data_folder, repository
from octavo.metrics import metrics_columns, training_figures
from octavo.models.matched import matched_quantity
from octavo.records import (
    TABLE_FIELDS,
    AttemptRecord,
    ClaimsFile,
    MetricsRecord,
    Provenance,
    Result,
    TableName,
    VerificationCheck,
    laid_out,
    read_last_lines,
    read_lines,
    read_record,
    read_table,
)
from octavo.scaling.prediction import read_prediction
from octavo.training import seal
from octavo.verification.archive import METADATA, described_hashes

MADE_BY = "octavo train {folder}"

CLOCK_SECONDS = 0.01
"""How far two times of one process may be out of order: they are rounded to microseconds, and the clock is steered."""


MONEY = ("cost", "cost_low", "cost_high", "cost_final", "cost_all_in", "currency", "energy_kwh", "energy_kwh_all_in")
"""Columns of tables and of the plan that follow from the cluster file's prices and power."""


class _Outdated(str):
    """What is wrong with a file that was right for the configuration, or the ledger, of before."""


def check_files(experiment: Experiment, folder: ExperimentFolder) -> list[VerificationCheck]:
    """One check for everything that is damaged, and one for each kind of file that is intact.

    Whatever rot made of a file is a check, too: nothing is raised.
    """
    runs = [(cell, seed, folder.run(cell.cell, seed)) for cell, seed in experiment.runs()]
    finished = [one for one in runs if one[2].result.exists()]
    manifest = repository() / data_folder(data_identifier(experiment.file.data, experiment.file.tokenizer))
    bundle = unpacked_bundle()
    if bundle:
        checks = _collect("bundle", f"every file is what {METADATA} describes", partial(_check_described, bundle))
        checks += _collect("data", "results hold the manifest's hash; a bundle holds no text",
                           partial(_check_manifests, manifest, finished))  # fmt: skip
    else:
        well = "every file of the data set has its manifest's hash"
        checks = _collect("data", well, partial(_check_data, manifest), partial(_check_manifests, manifest, finished))
    damaged = [
        _damaged(f"{cell.cell}/seed-{seed}", problem)
        for cell, seed, run in finished
        for problem in check_run(experiment, cell, seed, run)
    ]
    damaged += [
        _damaged(run.path.relative_to(folder.runs).as_posix(), problem)
        for run in _unfinished(folder, [run for _, _, run in finished])
        for problem in _problems(partial(_check_attempts, run))
    ]
    checks += damaged or [_intact("runs", f"{len(finished)} runs: results follow from metrics, files have their hash")]
    for cell, seed, run in runs:
        if not run.result.exists():
            checks.append(_not_testable(f"{cell.cell}/seed-{seed}", "there is no result yet"))
    well = "the plan is what the configuration makes again"
    checks += _collect("plan", well, partial(_check_plan, experiment, folder))
    for scope, ablation in scopes(folder):
        name = f"ablations/{ablation}/" if ablation else ""
        if ablation and ablation not in experiment.file.ablations:
            checks.append(_not_testable(f"ablations/{ablation}", "the experiment has no such ablation any more"))
            continue
        if not damaged:  # tables cannot be made again from damaged runs
            well = "tables and verdicts are what the runs make again"
            checks += _collect(f"{name}tables", well, partial(_check_tables, experiment, folder, scope, ablation))
        if scope.figures.is_dir() or scope.report_pdf.exists() or scope.report_html.exists():
            well = "figures and report have the hashes that they were made with"
            checks += _collect(f"{name}report", well, partial(_check_figures, scope), partial(_check_report, scope))
    if folder.prediction.exists():
        checks += _collect("prediction", "the seal fits what is foretold", partial(_check_prediction, folder))
    return checks


def scopes(folder: ExperimentFolder) -> list[tuple[ExperimentFolder, str | None]]:
    """The experiment, and those of its ablations that have tables or reports of their own."""
    return [(folder, None), *((folder.ablation(name), name) for name in folder.ablations())]


def _unfinished(folder: ExperimentFolder, finished: list[RunFolder]) -> Iterator[RunFolder]:
    """What was paid for without being a result: runs that go on, those of cells and configurations of the past."""
    for run in folder.run_folders():
        if run not in finished:
            yield run
        yield from (RunFolder(path) for path in sorted(run.superseded.glob("*")))


def check_run(experiment: Experiment, cell: CellConfig, seed: int, folder: RunFolder) -> list[str]:
    """What is wrong with a finished run, one sentence each."""
    return _problems(
        partial(_check_result, experiment, cell, seed, folder),
        partial(_check_attempts, folder),
        partial(_check_checkpoints, folder, cell.identity(seed)),
    )


def _check_result(experiment: Experiment, cell: CellConfig, seed: int, folder: RunFolder) -> Iterator[str]:
    """Whether a result is of this run, and its files are those that it was written with."""
    made_by = MADE_BY.format(folder=folder.path)
    result = read_record(folder.result, Result, made_by=made_by)
    run = experiment.run(cell.cell, seed)
    if not run.own_identity.holds(result):
        yield f"result.json is of another configuration ({result.run_fingerprint[:12]}) than the experiment's run"
    asked = read_run_config(folder.config) if folder.config.exists() else None
    if asked is None or asked.run_fingerprint != result.run_fingerprint:
        yield "config.yaml is not the configuration that result.json was made under"
    yield from results.changed_files(folder, result)
    provenance = read_record(folder.provenance, Provenance, made_by=made_by)
    made = asked if asked and asked.run_fingerprint == result.run_fingerprint else run  # under its own layout
    yield from _result_follows(result, made, folder, experiment, provenance)
    for name, value in (
        ("data_manifest_sha256", result.data_manifest_sha256),
        ("emulated", result.emulated),
        ("threads", run.training.threads),
        ("deterministic", run.training.deterministic),
        ("layouts", result.layouts),
    ):
        if (found := getattr(provenance, name)) != value:
            yield f"provenance.json is another run's: {name} is {found!r} instead of {value!r}"
    attempts = read_lines(folder.attempts, AttemptRecord)
    if not attempts or attempts[-1].exit_reason != result.status or attempts[-1].last_step != result.steps:
        yield "attempts.jsonl does not end with the attempt that finished the run"
    if attempts and attempts[-1].device_kind != result.device_kind:
        yield f"attempts.jsonl names {attempts[-1].device_kind!r} for the run, result.json {result.device_kind!r}"
    for one in attempts:
        if one.run_fingerprint == result.run_fingerprint and one.device_count != made.parallelism.world_size:
            devices = f"{one.device_count} devices instead of {made.parallelism.world_size}"
            yield f"attempts.jsonl says that attempt {one.attempt} held {devices}"
    yield from _check_layouts(result, attempts, made)
    if folder.routing.exists():
        read_table(folder.routing, "routing", made_by=made_by)


def _check_layouts(result: Result, attempts: list[AttemptRecord], run: RunConfig) -> Iterator[str]:
    """Whether the layouts of a result's own steps are those of its attempts; those before were its trunk's."""
    by_attempts = results.layouts_by_attempts(attempts)
    if not by_attempts:
        return
    own = {max(one.after_step, run.begins_after): one for one in result.layouts}
    said = [one.model_copy(update={"after_step": step}) for step, one in own.items()]
    if said != by_attempts:
        yield f"result.json names the layouts {laid_out(said)!r}, attempts.jsonl {laid_out(by_attempts)!r}"


def _check_attempts(folder: RunFolder) -> Iterator[str]:
    """Whether the attempts of a run are all there, and no attempt is shorter than what it logged took."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    if [one.attempt for one in attempts] != list(range(1, len(attempts) + 1)):
        yield "attempts.jsonl lacks an attempt"
    lines = metrics_columns(folder.metrics, ("time", "step_seconds"))
    numbers, first = np.unique(lines["attempt"], return_index=True)
    last = len(lines["attempt"]) - 1 - np.unique(lines["attempt"][::-1], return_index=True)[1]
    began = lines["time"][first] - np.nan_to_num(lines["step_seconds"][first])
    logged = dict(zip(numbers.tolist(), zip(began.tolist(), lines["time"][last].tolist(), strict=True), strict=True))
    if unknown := sorted(logged.keys() - {one.attempt for one in attempts}):
        yield f"attempts.jsonl lacks attempt {unknown[0]}, which metrics.jsonl has lines of"
    for one in attempts:
        if one.end and one.end < one.start:
            yield f"attempts.jsonl says that attempt {one.attempt} ended before it began"
        if one.attempt not in logged:
            continue
        first_begun, last_written = logged[one.attempt]
        if one.start.timestamp() > first_begun + CLOCK_SECONDS:
            yield f"attempts.jsonl says that attempt {one.attempt} began after the first step that it logged"
        if one.end and one.end.timestamp() < last_written - CLOCK_SECONDS:
            yield f"attempts.jsonl says that attempt {one.attempt} ended before the last line that it logged"


def _result_follows(
    result: Result, run: RunConfig, folder: RunFolder, experiment: Experiment, provenance: Provenance
) -> Iterator[str]:
    """Whether a result says what its metrics, its configuration and its provenance say."""
    steps, training_loss, training_seconds = training_figures(folder.metrics, run.training.total_steps)
    final = next(iter(read_last_lines(folder.metrics, MetricsRecord)), None)
    complete = result.status == "completed"
    by_domain = final.final_validation_loss_by_domain if complete and final else None
    logged: dict[str, Any] = {
        "experiment": run.experiment,
        "cell": run.cell,
        "architecture": run.architecture,
        "precision": run.precision.recipe,
        "ablation": run.ablation,
        "seed": run.seed,
        "steps": steps,
        "tokens": steps * run.training.tokens_per_step,
        "training_loss": training_loss if complete else None,
        "validation_loss": final.final_validation_loss if complete and final else None,
        "validation_bits_per_byte": final.final_validation_bits_per_byte if complete and final else None,
        "validation_loss_by_domain": by_domain or {},
        "training_seconds": training_seconds,
    }
    length = run.training.sequence_length
    on_cpu = experiment.device.kind == "cpu"
    configured: dict[str, Any] = {
        "flops_per_token": matched_quantity(run.model, "flops_per_token", length),
        "total_parameters": round(matched_quantity(run.model, "total_parameters", length)),
        "active_parameters": round(matched_quantity(run.model, "active_parameters", length)),
        "emulated": run.precision.recipe != "bf16" and (on_cpu or run.precision.emulate),
        "device_count": run.parallelism.world_size,
    }
    recorded = {"device_kind": provenance.hardware.get("gpu") or "cpu"}
    for source, expected in (
        ("metrics.jsonl", logged),
        ("config.yaml", configured),
        ("provenance.json", recorded),
    ):
        for name, value in expected.items():
            if (found := getattr(result, name)) != value:
                yield f"result.json does not follow from {source}: {name} is {found!r} instead of {value!r}"


def _check_checkpoints(folder: RunFolder, identity: RunIdentity) -> Iterator[str]:
    """Whether the checkpoints that are kept are the run's, byte for byte."""
    result = read_record(folder.result, Result, made_by=MADE_BY.format(folder=folder.path))
    identity = replace(identity, run_fingerprint=result.run_fingerprint)  # of its own layout
    for checkpoint in sorted(folder.checkpoints.glob("step-*")):
        for problem in seal.problems(checkpoint, identity, result.data_manifest_sha256):
            yield f"checkpoints/{problem}"


def unpacked_bundle() -> Path | None:
    """The checkout, if it is an unpacked bundle: it then has no text, no tokens and no checkpoints."""
    root = repository()
    return root if (root / METADATA).exists() else None


def _check_described(root: Path) -> Iterator[str]:
    """Whether the files of an unpacked bundle are those that its metadata describe."""
    for name, digest in described_hashes(root).items():
        path = root / name
        if not path.is_file() or sha256(path) != digest:
            yield f"{name} is not what {METADATA} describes"


def _check_data(folder: Path) -> Iterator[str]:
    from octavo.data.manifest import check_files as check_data_files
    from octavo.data.manifest import read_manifest

    check_data_files(folder, read_manifest(folder))
    yield from ()


def _check_manifests(folder: Path, finished: list[tuple[CellConfig, int, RunFolder]]) -> Iterator[str]:
    digest = sha256(folder / "manifest.json")
    for cell, seed, run in finished:
        with suppress(OctavoError):  # a result that cannot be read is named where its run is looked at
            found = read_record(run.result, Result, made_by=MADE_BY.format(folder=run.path)).data_manifest_sha256
            if found != digest:
                other = f"manifest {found[:12]} instead of {digest[:12]}"
                yield f"{cell.cell}/seed-{seed} was trained on another data set: {other}"


def _check_plan(experiment: Experiment, folder: ExperimentFolder) -> Iterator[str]:
    """The plan against what planning makes of the same configuration, and of what was measured when it was made."""
    from octavo.forecast.document import write_plan
    from octavo.forecast.measured import planned_steps
    from octavo.forecast.plan import plan_frame, plan_record

    if not folder.plan_csv.exists():  # a bundle's, or a report's without one
        return
    with tempfile.TemporaryDirectory() as name:
        fresh = ExperimentFolder(Path(name) / folder.name)
        steps = planned_steps(experiment, folder.plan_steps)
        frame = plan_frame(experiment, steps)
        write_plan(fresh, frame, plan_record(experiment, frame, steps))
        outdated = _configuration_changed(experiment, folder) and _same_but_for_money(folder.plan_csv, fresh.plan_csv)
        yield from _byte_differences((folder.plan_csv, folder.plan_pdf), fresh.path, "the configuration", outdated)


def _same_but_for_money(plan: Path, fresh: Path) -> bool:
    import pandas as pd

    try:
        one, other = (pd.read_csv(path).drop(columns=list(MONEY), errors="ignore") for path in (plan, fresh))
    except (OSError, ValueError):
        return False
    return one.equals(other)


def _configuration_changed(experiment: Experiment, scope: ExperimentFolder) -> bool:
    """Whether the verdicts were made with other claims, published figures, prices or devices than there are now."""
    from octavo.evidence.verdicts import configuration_fingerprint, read_claims
    from octavo.layout import configs

    try:
        made = read_record(scope.claims, ClaimsFile, made_by=f"octavo claims {scope.path}").configuration
    except OctavoError:  # named where the verdicts are looked at
        return False
    now = configuration_fingerprint(configs(), read_claims(configs(), experiment), experiment)
    return made not in ("", now)


def _check_tables(
    experiment: Experiment, folder: ExperimentFolder, scope: ExperimentFolder, ablation: str | None
) -> Iterator[str]:
    """Tables and verdicts of the experiment or of one ablation against what aggregation makes of the same runs."""
    from octavo.accounting.ledger import attempts_frame
    from octavo.evidence.aggregate import aggregate
    from octavo.evidence.ladder import write_ladder
    from octavo.evidence.verdicts import write_verdicts
    from octavo.layout import configs

    if not scope.runs_table.exists():
        yield f"{scope.runs_table.name} is missing"
        return
    with tempfile.TemporaryDirectory() as name:
        whole = ExperimentFolder(Path(name) / folder.name)
        whole.path.mkdir()
        whole.runs.symlink_to(folder.runs.resolve())
        fresh = aggregate(experiment, whole, attempts_frame(experiment, ask=False), ablation)
        changed, moving = _configuration_changed(experiment, scope), _was_provisional(scope)
        for table in ("runs", "steps", "attempts"):
            columns = tuple(name for name, _, _ in TABLE_FIELDS[table]) if moving and table != "steps" else ()
            yield from _table_differences(scope, fresh, table, (*columns, *MONEY) if changed else columns)
        if scope.claims.exists() or scope.comparisons.exists() or scope.report_pdf.exists():
            write_verdicts(whole, configs(), ablation)
            source = "the tables and configs/claims"
            yield from _byte_differences((scope.claims, scope.comparisons), fresh.path, source, changed or moving)
        if experiment.rungs and ablation is None and scope.leverage.exists():
            write_ladder(whole, experiment)
            yield from _byte_differences((scope.ladder, scope.leverage), fresh.path, "the tables", changed or moving)


def _was_provisional(scope: ExperimentFolder) -> bool:
    """Whether the ledger in the tables says of itself that it is not final."""
    from octavo.accounting.ledger import provisional

    try:
        return bool(provisional(read_table(scope.attempts_table, "attempts", made_by=f"octavo aggregate {scope.path}")))
    except OctavoError:  # named where the table is compared
        return False


def _check_prediction(folder: ExperimentFolder) -> Iterator[str]:
    read_prediction(folder.prediction)
    yield from ()


def _check_figures(scope: ExperimentFolder) -> Iterator[str]:
    files = [path for path in scope.figures.glob("[!.]*") if path != scope.figure_hashes]  # Snakemake's is hidden
    if scope.figures.is_dir():
        for name in changed_files(scope.figure_hashes, files, made_by=f"snakemake {scope.report_pdf}"):
            yield f"figures/{name} is not what was made: it was changed, or is missing"


def _check_report(scope: ExperimentFolder) -> Iterator[str]:
    files = [path for path in (scope.report_pdf, scope.report_html) if path.exists()]
    if files:
        for name in changed_files(scope.report_hashes, files, made_by=f"snakemake {scope.report_pdf}"):
            yield f"{name} is not what was made: it was changed, or is missing"


def _byte_differences(files: tuple[Path, ...], fresh: Path, source: str, outdated: bool) -> Iterator[str]:
    for path in files:
        if not path.exists():
            yield f"{path.name} is missing"
        elif not path.is_file() or path.read_bytes() != (fresh / path.name).read_bytes():
            if outdated:
                yield _Outdated(f"{path.name} is of before {source} were changed: make it again")
            else:
                yield f"{path.name} is not what {source} say: it was changed, or is old"


def _table_differences(
    folder: ExperimentFolder, fresh: ExperimentFolder, table: TableName, outdated: tuple[str, ...]
) -> Iterator[str]:
    """How a table differs from the one made again; in the columns `outdated` it may for good reason."""
    import pyarrow.parquet as pq

    path, again = folder.path / f"{table}.parquet", fresh.path / f"{table}.parquet"
    try:
        read_table(path, table, made_by=f"octavo aggregate {folder.path}")
    except OctavoError as error:
        yield f"{path.name}: {error.found.splitlines()[0]}"
        return
    found = pq.read_table(path)
    made = pq.read_table(again)
    if found.num_rows != made.num_rows:
        yield f"{path.name} has {found.num_rows} rows instead of {made.num_rows}"
        return
    for column, _, _ in TABLE_FIELDS[table]:
        if found[column].equals(made[column]):
            continue
        left, right = found[column].to_pylist(), made[column].to_pylist()
        row = next((row for row, (one, other) in enumerate(zip(left, right, strict=True)) if one != other), None)
        if row is not None:
            what = f"{column} in row {row} is {left[row]!r} instead of {right[row]!r}"
            yield (
                _Outdated(f"{path.name} is of before: {what}")
                if column in outdated
                else (f"{path.name} was changed: {what}")
            )


def _problems(*looks: Callable[[], Iterator[str]]) -> list[str]:
    """What is wrong, each sentence once, unreadable files included: one look does not end the others."""
    found: list[str] = []
    for look in looks:
        try:
            for problem in look():
                found.append(problem)
        except OctavoError as error:
            found.append(f"{_file_name(error.where)}: {error.found.splitlines()[0]}")
        except OSError as error:
            found.append(f"{_file_name(error.filename)}: {error.strerror}")
        except Exception as error:  # of a file that is whole by its form, and whose content makes no sense
            found.append(f"a file cannot be made sense of: {type(error).__name__}: {error}")
    return list(dict.fromkeys(found))


def _file_name(where: str | None) -> str:
    """`results/x/attempts.jsonl:3` -> `attempts.jsonl:3`."""
    return Path(where.split()[0]).name if where else "a file"


def _collect(name: str, well: str, *looks: Callable[[], Iterator[str]]) -> list[VerificationCheck]:
    return [
        VerificationCheck(gate="integrity", run=name, status="outdated", note=problem)
        if isinstance(problem, _Outdated)
        else _damaged(name, problem)
        for problem in _problems(*looks)
    ] or [_intact(name, well)]


def _damaged(run: str, note: str) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status="damaged", note=note)


def _intact(run: str, note: str) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status="intact", note=note)


def _not_testable(run: str, note: str) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status="not testable here", note=note)
