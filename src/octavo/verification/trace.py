"""A number of the report, followed to what made it: runs, attempts, steps, configuration, data, image, lock, commit.

A number has a key, which says what it is of and not where it stands (KEYS): a mean or a sum over the seeds of a cell,
two cells at equal something (comparisons.json), a claim (claims.json), an entry of a table or of plan.csv. An
ablation's report has tables and verdicts of its own. The HTML report shows the key of each number on page one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import OctavoError
from octavo.evidence.cells import MEANS, SUMS, summary
from octavo.evidence.lengths import ALL_IN, whole_lengths
from octavo.files import sha256
from octavo.forecast.machine import speed_files
from octavo.forecast.published import files_behind
from octavo.layout import ExperimentFolder, RunFolder, configs, repository, split_horizon
from octavo.records import (
    AttemptRecord,
    ClaimsFile,
    ComparisonsFile,
    Estimate,
    Provenance,
    Result,
    TableName,
    laid_out,
    read_lines,
    read_metrics,
    read_record,
    read_table,
    trained_steps,
)

if TYPE_CHECKING:
    import pandas as pd


KEYS = (
    "cells.<cell>.<column>",
    "comparisons.<cell>/<baseline>.<axis>.<key>",
    "claims.<number>.<key>",
    "runs.<cell>/seed-<n>.<column>",
    "attempts.<cell>/seed-<n>/<attempt>.<column>",
    "steps.<cell>/seed-<n>/<step>.<column>",
    "plan.<cell>.<column>",
)


@dataclass(frozen=True)
class Number:
    """A number and the runs that it rests on."""

    value: Any
    stands_in: str
    said: str
    """What the file says it is."""
    runs: list[str]
    without_runs: str = "there is none to test it with"
    """What it rests on where there are no runs."""


def trace(folder: ExperimentFolder, name: str, ablation: str | None = None) -> Iterator[str]:
    """The chain of a number, line by line. Raises OctavoError where there is no such number."""
    scope = folder.ablation(ablation) if ablation else folder
    if ablation and not scope.path.is_dir():
        raise OctavoError(
            f"there is no report of the ablation {ablation!r}",
            where=folder.path,
            expected=f"one of {', '.join(folder.ablations()) or '(there are none)'}",
            fix=f"make it: snakemake {scope.report_pdf}",
        )
    number = find(folder, scope, name)
    yield f"{name} = {_show(number.value)}"
    yield f"  {number.said}"
    yield f"  stands in   {number.stands_in}"
    if not number.runs:
        yield f"  rests on no run: {number.without_runs}"
    for run in number.runs:
        cell, _, seed = run.rpartition("/seed-")
        yield from _run(folder.run(cell, int(seed)), run)


def find(folder: ExperimentFolder, scope: ExperimentFolder, name: str) -> Number:
    """The number that a name names, in the files of an experiment or, in its scope, of an ablation."""
    document, _, rest = name.partition(".")
    if document == "claims":
        return _in_claims(folder, scope, name, rest)
    if document == "comparisons":
        return _in_comparisons(scope, name, rest)
    if document == "cells":
        return _in_cells(scope, name, rest)
    if document == "plan":
        return _in_plan(folder, name, rest)
    if document in ("runs", "attempts", "steps"):
        return _in_table(scope, document, name, rest)
    raise _unknown(name, f"one of {', '.join(KEYS)}")


def _in_claims(whole: ExperimentFolder, folder: ExperimentFolder, name: str, rest: str) -> Number:
    made_by = f"octavo claims {folder.path}"
    claims = read_record(folder.claims, ClaimsFile, made_by=made_by).model_dump(mode="json")["claims"]
    number, _, keys = rest.partition(".")
    claim = next((one for one in claims if str(one["number"]) == number), None)
    if claim is None:
        raise _unknown(name, f"claims.<number>, of {', '.join(str(one['number']) for one in claims)}")
    said = f"claim {claim['number']}, {claim['title']}: {claim['verdict']} (configs/claims/{claim['name']}.yaml)"
    value = _descend(claim, keys, name)
    basis = "" if claim["runs"] else _without_runs(claim, whole)
    return Number(value, _file(folder.claims), said, claim["runs"], basis)


def _without_runs(claim: dict[str, Any], folder: ExperimentFolder) -> str:
    """What a claim rests on that no run tests: the files that its numbers are computed from."""
    if claim["verdict"] == "not testable here":
        return f"there is none to test it with; it needs {claim['needs']}"
    if figures := claim["data"].get("published_value") and claim["data"]["name"]:
        files = dict.fromkeys(path for figure in figures for path in files_behind(figure))
        return f"it is computed from published figures, in {_files(files)}"
    return f"it is computed from {_files(_configuration(folder))}"


def _in_comparisons(folder: ExperimentFolder, name: str, rest: str) -> Number:
    made_by = f"octavo claims {folder.path}"
    file = read_record(folder.comparisons, ComparisonsFile, made_by=made_by)
    by_key = {f"{one.cell}/{one.against}.{one.axis}": one for one in file.comparisons}
    key = next((key for key in by_key if rest == key or rest.startswith(f"{key}.")), None)
    if key is None:
        raise _unknown(name, f"comparisons.<cell>/<baseline>.<axis>, of {', '.join(by_key)}")
    one = by_key[key]
    said = f"{one.cell} against {one.against} at equal {one.axis}"
    table = _runs_table(folder)
    named = [split_horizon(cell) for cell in table["cell"]]
    of_pair = [cell in (one.cell, one.against) and (one.planned_ends or not steps) for cell, steps in named]
    runs = _names(table[np.array(of_pair) & (table["status"] != "unfinished")])
    value = _descend(one.model_dump(mode="json"), rest[len(key) :], name)
    return Number(value, _file(folder.comparisons), said, runs)


def _in_cells(folder: ExperimentFolder, name: str, rest: str) -> Number:
    """A mean over the completed seeds of a cell, or a sum over all of them."""
    every_run = _runs_table(folder)
    table = whole_lengths(every_run)
    cells = summary(table)
    cell, _, column = rest.rpartition(".")
    if cell not in cells or column not in cells[cell].columns:
        columns = ", ".join(next(iter(cells.values())).columns) if cells else ""
        raise _unknown(name, f"cells.<cell>.<column>; cells: {', '.join(cells)}; columns: {columns}")
    own = table[table["cell"] == cell]
    value = cells[cell].columns[column]
    if column in MEANS:
        own = own[(own["status"] == "completed") & own[column].notna()]
        said = f"mean of column {column} over {len(own)} completed seeds of {cell}"
    elif column in SUMS:
        said = f"sum of column {column} over {len(own)} seeds of {cell}"
        if column in ALL_IN:
            own = every_run[[split_horizon(one)[0] == cell for one in every_run["cell"]]]
    else:
        said = f"{column} of {cell}"
    shown = value.model_dump(mode="json") if isinstance(value, Estimate) else value
    return Number(shown, _file(folder.runs_table), said, _names(own))


def _runs_table(folder: ExperimentFolder) -> pd.DataFrame:
    return read_table(folder.runs_table, "runs", made_by=f"octavo aggregate {folder.path}")


def _names(table: pd.DataFrame) -> list[str]:
    return [f"{cell}/seed-{seed}" for cell, seed in zip(table["cell"], table["seed"], strict=True)]


ROW = {"runs": None, "attempts": "attempt", "steps": "step"}
"""Table -> the column that, with cell and seed, names a row."""


def _in_table(folder: ExperimentFolder, name_of_table: TableName, name: str, rest: str) -> Number:
    path = folder.path / f"{name_of_table}.parquet"
    key, numbered = ROW[name_of_table], rest.rpartition(".")
    run, number = (numbered[0], None) if key is None else numbered[0].rpartition("/")[::2]
    cell, _, seed = run.rpartition("/seed-")
    table, column = read_table(path, name_of_table, made_by=f"octavo aggregate {folder.path}"), numbered[2]
    rows = table[(table["cell"] == cell) & (table["seed"].astype(str) == seed)]
    if rows.empty or column not in table.columns:
        known = dict.fromkeys(f"{one}/seed-{n}" for one, n in zip(table["cell"], table["seed"], strict=True))
        row = f"/<{key}>" if key else ""
        raise _unknown(
            name,
            f"{name_of_table}.<cell>/seed-<n>{row}.<column>; runs: {', '.join(known)}; "
            f"columns: {', '.join(table.columns)}",
        )
    if key is not None:
        known, rows = rows[key].tolist(), rows[rows[key].astype(str) == number]
        if rows.empty:
            raise _unknown(name, f"a {key} of {run}, from {min(known)} to {max(known)}")
    row = rows.iloc[-1]  # of an attempt's number, the run's last: superseded ones come first
    said = f"column {column} of {run}" + (f", {key} {number}" if key else "")
    return Number(row[column], _file(path), said, [run])


def _in_plan(folder: ExperimentFolder, name: str, rest: str) -> Number:
    import pandas as pd

    from octavo.experiment.load import load_experiment

    experiment = load_experiment(folder.name)
    if not folder.plan_csv.exists():
        raise OctavoError("there is no plan yet", where=folder.plan_csv, fix=f"make it: octavo plan {folder.path}")
    table = pd.read_csv(folder.plan_csv)
    cell, _, column = rest.rpartition(".")
    rows = table[table["cell"] == cell]
    if rows.empty or column not in table.columns or cell not in experiment.cells:
        raise _unknown(name, f"plan.<cell>.<column>; cells: {', '.join(table['cell'])}; columns: {', '.join(table)}")
    calibration = configs().clusters / "calibration" / f"{experiment.device.kind}.yaml"
    files = [*_configuration(folder), calibration, *speed_files(experiment.cluster, experiment.device)]
    if folder.plan_steps.exists():  # it keeps what was measured, of which these files know nothing
        files.append(folder.plan_steps)
    basis = f"it is a forecast, from {_files(files)}; cell fingerprint {experiment.cells[cell].fingerprint}"
    return Number(rows.iloc[0][column], _file(folder.plan_csv), f"column {column} of {cell}", [], basis)


def _configuration(folder: ExperimentFolder) -> list[Path]:
    """The experiment's file, and those of its cluster and device."""
    from octavo.experiment.load import load_experiment

    experiment = load_experiment(folder.name)
    clusters = configs().clusters
    named = (experiment.file.cluster, f"devices/{experiment.cluster.device}")
    return [experiment.path, *(clusters / f"{name}.yaml" for name in named)]


def _files(paths: Iterable[Path]) -> str:
    """As a checkout has them, each with its hash."""
    return ", ".join(f"{os.path.relpath(path, repository())} (SHA-256 {sha256(path)})" for path in paths)


def _run(folder: RunFolder, name: str) -> Iterator[str]:
    made_by = f"octavo train {folder.path}"
    yield f"  run {name}"
    if not folder.result.exists():
        yield f"    no result in {folder.path}: it was imported, or is not finished"
        return
    result = read_record(folder.result, Result, made_by=made_by)
    made = read_record(folder.provenance, Provenance, made_by=made_by)
    rows = {
        "result": _file(folder.result),
        "validation loss": f"{result.validation_loss}" + _validated(folder),
        "configuration": f"{result.run_fingerprint} ({folder.config})",
        **({"layouts": laid_out(result.layouts)} if result.layouts else {}),
        "data": result.data_manifest_sha256,
        "image": made.image_digest or "none: it ran outside a container",
        "lock": made.lock_sha256 or "unknown",
        "commit": f"{made.git_commit or 'unknown'}{' with changes' if made.git_dirty else ''}",
        "packages": ", ".join(f"{package} {version}" for package, version in made.packages.items()),
    }
    for key, value in rows.items():
        yield f"    {key:<16}{value}"
    steps = _steps_by_attempt(folder)
    for one in read_lines(folder.attempts, AttemptRecord):
        counted = steps.get(one.attempt)
        span = f"steps {counted[0]} to {counted[-1]} count" if counted else "none of its steps counts"
        job = f", job {one.slurm_job_id}" if one.slurm_job_id else ""
        begun = f"{one.start:%Y-%m-%d %H:%M:%S} UTC on {one.host}{job}"
        yield f"    attempt {one.attempt:<8}{begun}: {one.exit_reason}; {span}"


def _validated(folder: RunFolder) -> str:
    lines = read_metrics(folder.metrics).items()
    at = [(number, one.step) for number, one in lines if one.final_validation_loss is not None]
    return f" (step {at[-1][1]}, line {at[-1][0]} of {folder.metrics})" if at else ""


def _steps_by_attempt(folder: RunFolder) -> dict[int, list[int]]:
    """Attempt -> the steps that the result takes from it."""
    counted: dict[int, list[int]] = {}
    for step, line in sorted(trained_steps(folder.metrics).items()):
        counted.setdefault(line.attempt, []).append(step)
    return counted


def _descend(value: Any, keys: str, name: str) -> Any:
    for key in filter(None, keys.split(".")):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            allowed = (
                value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ["(nothing)"]
            )
            raise _unknown(name, f"in place of {key!r} one of {', '.join(map(str, allowed))}")
    return value


def _show(value: Any) -> str:
    """An estimate as people read it; anything else as it stands."""
    if isinstance(value, dict) and {"value", "low", "high", "unit", "n"} <= value.keys():
        interval = f"{value['low']} to {value['high']}" if value["low"] is not None else "no interval"
        return f"{value['value']} {value['unit']} ({value['confidence']:.0%} interval {interval}, n = {value['n']})"
    return str(value)


def _file(path: Any) -> str:
    return f"{path} (SHA-256 {sha256(path)})"


def _unknown(name: str, expected: str) -> OctavoError:
    return OctavoError(f"there is no number {name!r}", where="octavo trace", expected=expected)
