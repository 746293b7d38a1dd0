"""A number of the report, followed to what made it: runs, attempts, steps, configuration, data, image, lock, commit.

A number is named by where it stands: `claims.<number>.<key>...` in claims.json, `comparisons.<place>.<key>...` in
comparisons.json (the first is 0), `runs.<cell>/seed-<n>.<column>` in runs.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.errors import OctavoError
from octavo.files import read_json, sha256
from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import AttemptRecord, MetricsRecord, Provenance, Result, read_lines, read_record, read_table


@dataclass(frozen=True)
class Number:
    """A number and the runs that it rests on."""

    value: Any
    stands_in: str
    said: str
    """What the file says it is."""
    runs: list[str]


def trace(folder: ExperimentFolder, name: str) -> Iterator[str]:
    """The chain of a number, line by line. Raises OctavoError where there is no such number."""
    number = find(folder, name)
    yield f"{name} = {_show(number.value)}"
    yield f"  {number.said}"
    yield f"  stands in   {number.stands_in}"
    if not number.runs:
        yield "  rests on no run: it is a published figure, or there was none to test it with"
    for run in number.runs:
        cell, _, seed = run.rpartition("/seed-")
        yield from _run(folder.run(cell, int(seed)), run)


def find(folder: ExperimentFolder, name: str) -> Number:
    """The number that a name names, in the experiment's files."""
    document, _, rest = name.partition(".")
    if document == "claims":
        return _in_claims(folder, name, rest)
    if document == "comparisons":
        return _in_comparisons(folder, name, rest)
    if document == "runs":
        return _in_runs(folder, name, rest)
    raise _unknown(name, "claims.<number>.<key>, comparisons.<place>.<key> or runs.<cell>/seed-<n>.<column>")


def _in_claims(folder: ExperimentFolder, name: str, rest: str) -> Number:
    claims = read_json(folder.claims, made_by=f"octavo claims {folder.path}")["claims"]
    number, _, keys = rest.partition(".")
    claim = next((one for one in claims if str(one["number"]) == number), None)
    if claim is None:
        raise _unknown(name, f"claims.<number>, of {', '.join(str(one['number']) for one in claims)}")
    said = f"claim {claim['number']}, {claim['title']}: {claim['verdict']} (configs/claims/{claim['name']}.yaml)"
    return Number(_descend(claim, keys, name), _file(folder.claims), said, claim["runs"])


def _in_comparisons(folder: ExperimentFolder, name: str, rest: str) -> Number:
    comparisons = read_json(folder.comparisons, made_by=f"octavo claims {folder.path}")["comparisons"]
    place, _, keys = rest.partition(".")
    if not place.isdigit() or int(place) >= len(comparisons):
        raise _unknown(name, f"comparisons.<place>, from 0 to {len(comparisons) - 1}")
    one = comparisons[int(place)]
    said = f"{one['cell']} against {one['against']} at equal {one['axis']}"
    table = read_table(folder.runs_table, "runs", made_by=f"octavo aggregate {folder.path}")
    runs = [
        f"{cell}/seed-{seed}"
        for cell, seed, status in zip(table["cell"], table["seed"], table["status"], strict=True)
        if cell in (one["cell"], one["against"]) and status != "unfinished"
    ]
    return Number(_descend(one, keys, name), _file(folder.comparisons), said, runs)


def _in_runs(folder: ExperimentFolder, name: str, rest: str) -> Number:
    table = read_table(folder.runs_table, "runs", made_by=f"octavo aggregate {folder.path}")
    run, _, column = rest.rpartition(".")
    cell, _, seed = run.rpartition("/seed-")
    rows = table[(table["cell"] == cell) & (table["seed"].astype(str) == seed)]
    if rows.empty or column not in table.columns:
        known = ", ".join(f"{one}/seed-{number}" for one, number in zip(table["cell"], table["seed"], strict=True))
        raise _unknown(name, f"runs.<cell>/seed-<n>.<column>; runs: {known}")
    row = rows.iloc[0]
    return Number(row[column], _file(folder.runs_table), f"column {column} of {run}", [run])


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
    lines = read_lines(folder.metrics, MetricsRecord)
    at = [(number, one.step) for number, one in enumerate(lines, 1) if one.final_validation_loss is not None]
    return f" (step {at[-1][1]}, line {at[-1][0]} of {folder.metrics})" if at else ""


def _steps_by_attempt(folder: RunFolder) -> dict[int, list[int]]:
    """Attempt -> the steps that the result takes from it: those that no later attempt did again."""
    wrote = {one.step: one.attempt for one in read_lines(folder.metrics, MetricsRecord) if one.step_seconds}
    counted: dict[int, list[int]] = {}
    for step, attempt in sorted(wrote.items()):
        counted.setdefault(attempt, []).append(step)
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
