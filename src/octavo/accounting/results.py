"""Whether the files of a finished run are those that its result was written with.

`result.json` is written last and holds the hashes of the run's other files. Tables, verdicts and `octavo status` rest
on the result and on these files together, so a file that is not the one with the hash is named before anything is made
of it. The result has no hash of its own: that it says what the end of `metrics.jsonl` says is looked at here, what
follows from all steps where tables are made of them (`octavo.evidence.aggregate`), and everything else by `octavo
verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from octavo.files import sha256
from octavo.layout import RunFolder
from octavo.records import AttemptRecord, LayoutSince, MetricsRecord, Result, read_last_lines


def contradictions(folder: RunFolder, result: Result, *, trust_times: bool = False) -> list[str]:
    """What is wrong with the files of a run that has a result, one sentence each; empty where nothing is.

    `trust_times`: a file is not read whole where the file system says that it was last changed before the result was
    written (by its ctime, which a program cannot set). That is quick however many runs there are.
    """
    return [*changed_files(folder, result, trust_times=trust_times), *_result_against_metrics(folder, result)]


def layouts_by_attempts(attempts: Sequence[AttemptRecord]) -> list[LayoutSince]:
    """The layouts that a run's steps were trained under, by its attempts; empty where these were not recorded.

    An attempt that begins at a step replaces what was trained after it. Of a run that began from its trunk's checkpoint
    they are those of its own steps alone.
    """
    if any(one.layout is None for one in attempts):
        return []
    layouts: list[LayoutSince] = []
    for one in attempts:
        layouts = [earlier for earlier in layouts if earlier.after_step < one.first_step]
        if not layouts or layouts[-1].layout != one.layout:
            own = LayoutSince(after_step=one.first_step, layout=one.layout or "", devices=one.device_count)
            layouts.append(own)
    return layouts


def changed_files(folder: RunFolder, result: Result, *, trust_times: bool = False) -> Iterator[str]:
    """The files that do not have the hash which the result holds of them, one sentence each."""
    recorded = {folder.metrics.name: result.metrics_sha256, **result.files_sha256}
    written = folder.result.stat().st_ctime_ns if trust_times else 0
    for path in (folder.metrics, folder.attempts, folder.provenance, folder.routing):
        changed = _changed_at(path)
        expected = recorded.get(path.name)
        if trust_times and expected and changed is not None and changed <= written:
            continue
        found = None if changed is None else sha256(path)
        if found != expected:
            yield f"{path.name} was changed: SHA-256 {_short(found)} instead of {_short(expected)}"


def _changed_at(path: Path) -> int | None:
    """A file's ctime; None where there is none."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return None


def _result_against_metrics(folder: RunFolder, result: Result) -> Iterator[str]:
    """Whether the result's steps, tokens and validation loss are those of the last line of `metrics.jsonl`."""
    lines = read_last_lines(folder.metrics, MetricsRecord)
    if not lines:
        return  # empty: its hash is another
    (last,) = lines
    complete = result.status == "completed"
    follows = {
        "steps": last.step,
        "tokens": last.tokens,
        "validation_loss": last.final_validation_loss if complete else None,
        "validation_bits_per_byte": last.final_validation_bits_per_byte if complete else None,
        "validation_loss_by_domain": (last.final_validation_loss_by_domain or {}) if complete else {},
    }
    for name, value in follows.items():
        if (found := getattr(result, name)) != value:
            yield f"result.json does not follow from metrics.jsonl: {name} is {found!r} instead of {value!r}"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
