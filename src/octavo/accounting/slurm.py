"""Slurm's own accounting: what `sacct` says of an experiment's jobs, joined to its runs.

Slurm keeps one row for every time that a job held devices: a job that was pre-empted or requeued has earlier rows under
the same number, shown only with `--duplicates`, so a row's key is (JobID, Submit). Device-hours are the row's allocated
GPUs (AllocTRES gres/gpu), or cores on a cluster of CPUs, x ElapsedRaw, whole seconds. Where AccountingStorageTRES does
not list gres/gpu a row has no GPUs: they are then those that the trainer found, or that were asked for, and the
ledger's column `source` says so. What has been read is kept in `results/<experiment>/sacct.json`, so that a report can
be made again where there is no Slurm, and after the site has purged its accounting.

A `sacct` that does not answer is not a Slurm without accounting: it is asked again, and where that fails the rows that
rest on it are marked PROVISIONAL, because what it would have said is not known.

A row belongs to the run that its job's comment names (`octavo.cluster.job.comment`), among jobs submitted from this
checkout. Some sites do not store comments, and Slurm stores none before a job ends: the submit line holds it too.
Failing that, the trainer wrote the number of its job into `attempts.jsonl`. In an allocation of one's own, where runs
are steps beside one another, it wrote the step's (`17.3`): the hours are then the step's.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, get_args

from octavo.accounting.money import ESTIMATED, cost, energy_at_the_meter
from octavo.cluster.job import comment
from octavo.cluster.queue import answer
from octavo.errors import OctavoError
from octavo.experiment.cluster import gives_gpus
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import repository
from octavo.records import ExitReason, SlurmAccounting, SlurmRow, read_record

WAITS = (2.0, 10.0)
"""Seconds before sacct is asked a second and a third time: slurmdbd is restarted in less."""

ANSWER_SECONDS = 300
"""In which sacct must answer."""

PROVISIONAL = "; provisional: sacct was not read"
"""What ends the `source` of a row that sacct, asked again, may change."""

FIELDS = (
    "JobIDRaw", "Submit", "State", "ElapsedRaw", "AllocTRES", "Start", "End", "NodeList", "ConsumedEnergyRaw",
    "WorkDir", "Comment", "SubmitLine",
)  # fmt: skip

EXIT_REASONS: dict[str, ExitReason] = {
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
    "COMPLETED": "completed",
    "DEADLINE": "time_limit",
    "FAILED": "failed",
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "REQUEUED": "signalled",
    "REVOKED": "cancelled",
    "TIMEOUT": "time_limit",
}
"""Slurm's states (`man sacct`, JOB STATE CODES) of a row that has ended, in Octavo's words."""

ATTEMPTS_FILE = "attempts.jsonl"
SACCT = "sacct"
TRAINERS_DEVICES = "sacct (GPUs as the trainer found them)"
SUBMITTED_DEVICES = "sacct (GPUs as they were asked for)"
"""Sources of a row's hours: the trainer, Slurm, or Slurm for the seconds alone, where it does not count GPUs."""

CLOCK_LAG = timedelta(minutes=5)
"""By which a node's clock may be off from the controller's."""

BEFORE = timedelta(days=7)
"""How long before the first attempt jobs are looked for: those that failed before training began."""

ORPHAN = 0
"""The attempt number of a row in which training never began."""


class UnansweredError(OctavoError):
    """Slurm's accounting was asked, more than once, and did not answer."""


@dataclass(frozen=True)
class Accounting:
    """What is known of Slurm's accounting."""

    rows: list[SlurmRow]
    """The earliest first."""
    unknown: frozenset[str]
    """Jobs that the trainer ran in and that sacct, when it was asked, had no row of."""
    unanswered: bool
    """It was asked just now and did not answer: there may be more rows."""

    def covers(self, row: dict[str, Any]) -> bool:
        """Whether a row of the ledger is all that Slurm has to say of it."""
        return not self.unanswered and (row["source"] != ATTEMPTS_FILE or row["job"] in self.unknown)


def available() -> bool:
    """Whether Slurm's accounting can be asked on this machine."""
    return shutil.which("sacct") is not None


def read_accounting(experiment: Experiment, attempts: list[dict[str, Any]], *, ask: bool = True) -> Accounting:
    """Every row of the experiment's jobs: those kept and, where there is Slurm and it is to be asked, those of today.

    `attempts` are the ledger's rows by the trainer's word. What is read is kept in `sacct.json`.
    """
    kept = kept_accounting(experiment)
    if not (ask and available()):
        return Accounting(kept.rows, frozenset(kept.unknown), unanswered=False)
    try:
        found = query(experiment, attempts, kept)
    except UnansweredError:
        return Accounting(kept.rows, frozenset(kept.unknown), unanswered=True)
    rows = _ordered({row.key: row for row in [*kept.rows, *found]})
    unknown = sorted(_without_row(attempts, rows))
    read = SlurmAccounting(rows=rows, unknown=unknown)
    if read != kept:
        write_json(experiment.folder.sacct, read.model_dump(mode="json"))
    return Accounting(rows, frozenset(unknown), unanswered=False)


def _without_row(attempts: list[dict[str, Any]], rows: list[SlurmRow]) -> set[str]:
    """Jobs that the trainer ran in and that none of Slurm's rows is about."""
    return {one["job"] for one in attempts if one["job"]} - {row.job for row in rows}


def kept_accounting(experiment: Experiment) -> SlurmAccounting:
    """What was read before; empty where nothing was."""
    path = experiment.folder.sacct
    made_by = f"octavo aggregate {experiment.folder.path}, on the cluster"
    return read_record(path, SlurmAccounting, made_by=made_by) if path.exists() else SlurmAccounting(rows=[])


def with_slurms_hours(
    experiment: Experiment, attempts: list[dict[str, Any]], *, ask: bool = True
) -> list[dict[str, Any]]:
    """The ledger's rows with Slurm's hours in place of the trainer's, as far as they are known; what is not is marked.

    `attempts` are the rows by the trainer's word.
    """
    accounting = read_accounting(experiment, attempts, ask=ask)
    rows = join(experiment, attempts, accounting.rows) if accounting.rows else attempts
    return [
        one | {"source": one["source"] + PROVISIONAL} if one["job"] and not accounting.covers(one) else one
        for one in rows
    ]


def query(experiment: Experiment, attempts: list[dict[str, Any]], kept: SlurmAccounting) -> list[SlurmRow]:
    """What sacct has now of the experiment's jobs; nothing where Slurm keeps no accounting.

    It is asked for all jobs since the first of `attempts` (the ledger's rows by the trainer's word) and of the kept
    rows, and again where it has no row of a job that the trainer ran in and that is not known to be unknown: for some
    seconds after slurmdbd's start it answers what is asked by time with no rows. Raises UnansweredError where it does
    not answer, or has rows when it is asked by number that it has not when it is asked by time.
    """
    begun = [*(attempt["start"] for attempt in attempts), *(row.start for row in kept.rows)]
    since = min(begun, default=datetime.now(UTC))
    jobs = {attempt["job"]: (attempt["cell"], attempt["seed"]) for attempt in attempts if attempt["job"]}
    begin = (since - BEFORE).strftime("%Y-%m-%dT%H:%M:%S")

    def asked(*which: str) -> list[SlurmRow]:
        # nobody who writes a comment can know it: no part of one can pass for a field or a row
        separator = f"|{secrets.token_hex(8)}|"
        printed = _ask(*which, f"--format={','.join(FIELDS)}", f"--delimiter={separator}")
        return parse(
            printed,
            runs_by_comment(experiment),
            jobs,
            str(repository()),
            gpus=gives_gpus(experiment.cluster, experiment.device),
            separator=separator,
        )

    def numbered(which: set[str]) -> list[SlurmRow]:
        """By number: whole jobs, and steps, of which sacct prints no folder and no comment."""
        whole, steps = ([job for job in sorted(which) if ("." in job) == step] for step in (False, True))
        return [
            *(asked(f"--jobs={','.join(whole)}", "--allocations") if whole else []),
            *(asked(f"--jobs={','.join(steps)}") if steps else []),
        ]

    found, late = list[SlurmRow](), list[SlurmRow]()
    steps = {job for job in jobs if "." in job}
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        found = [*asked(f"--starttime={begin}", "--allocations"), *numbered(steps)]
        missing = _without_row(attempts, [*kept.rows, *found]) - set(kept.unknown)
        if not missing:
            return found
        late = numbered(missing)
    if late:
        raise _unanswered("asked by time it has no row of jobs that it knows by number")
    return found


def _ask(*arguments: str) -> str:
    """What sacct prints; empty where Slurm says that it keeps no accounting."""
    command = ["sacct", "--duplicates", "--parsable2", "--noheader", "--noconvert", *arguments]
    said = ""
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            # times are seconds since 1970
            asked = answer(*command, seconds=ANSWER_SECONDS, SLURM_TIME_FORMAT="%s", TZ="UTC")
        except OSError as error:
            said = str(error.strerror)
            continue
        if not asked.returncode:
            return asked.stdout
        said = asked.stderr.strip()
        if "accounting storage is disabled" in said:  # Slurm's words for accounting_storage/none
            return ""
    raise _unanswered(f"sacct failed {len(WAITS) + 1} times: {said}")


def _unanswered(found: str) -> UnansweredError:
    return UnansweredError(
        found,
        where="sacct",
        expected="an answer of Slurm's accounting (slurmdbd)",
        fix="look with sacct, and give the same command again when it answers",
    )


def runs_by_comment(experiment: Experiment) -> dict[str, tuple[str, int]]:
    """Job comment -> (cell, seed), of the experiment's runs and of those that it had once."""
    runs = {(cell.cell, seed) for cell, seed in experiment.runs()}
    runs |= {(folder.cell, folder.seed) for folder in experiment.folder.run_folders()}
    return {comment(experiment.name, cell, seed): (cell, seed) for cell, seed in runs}


def parse(
    text: str,
    runs: dict[str, tuple[str, int]],
    jobs: dict[str, tuple[str, int]],
    work_dir: str,
    *,
    gpus: bool,
    separator: str,
) -> list[SlurmRow]:
    """The rows of sacct's output (FIELDS, times in seconds since 1970) that held devices for a run.

    `runs`: job comment -> (cell, seed); `jobs`: the same by job number; `work_dir`: where jobs were submitted;
    `gpus`: whether the devices are GPUs, and not cores; `separator`: what stands between fields. Raises OctavoError
    where this is no such output.
    """
    rows = []
    for record in _records(text, separator):
        values = dict(zip(FIELDS, record, strict=True))
        line = values.get("SubmitLine", "")
        named = values.get("Comment") or _submitted_comment(line)
        run = runs.get(named) or jobs.get(values["JobIDRaw"])
        here = values.get("WorkDir") == work_dir or "." in values["JobIDRaw"]
        if not here or run is None or not values["Start"].isdigit():
            continue
        cell, seed = run
        elapsed, start = int(values["ElapsedRaw"]), int(values["Start"])
        rows.append(
            SlurmRow(
                job=values["JobIDRaw"],
                submit=_instant(int(values["Submit"])),
                cell=cell,
                seed=seed,
                state=values["State"].split()[0],  # CANCELLED by 1000
                start=_instant(start),
                end=_instant(int(values["End"]) if values["End"].isdigit() else start + elapsed),
                elapsed_seconds=elapsed,
                devices=devices_in(values["AllocTRES"], gpus=gpus),
                requested=_submitted_gpus(line, values["AllocTRES"]) if gpus else None,
                nodes=values["NodeList"],
                energy_joules=float(values["ConsumedEnergyRaw"] or 0) or None,
            )
        )
    return rows


def devices_in(tres: str, *, gpus: bool) -> int | None:
    """GPUs, or cores, in an AllocTRES such as `cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=1000M`.

    None where it has none of them: a site counts GPUs only if its AccountingStorageTRES lists them. Cores are no GPUs.
    """
    counts = _counts(tres)
    if not gpus:
        return counts.get("cpu")
    typed = sum(count for name, count in counts.items() if name.startswith("gres/gpu:"))
    return counts.get("gres/gpu") or typed or None


def exit_reason(state: str, said: str | None) -> str:
    """How an attempt ended, or `running`: Slurm's word, but for what only the trainer knows (`said`)."""
    reason = EXIT_REASONS.get(state, "running")
    if reason in ("completed", "failed") and said in get_args(ExitReason):
        return str(said)
    if reason == "signalled" and said == "stalled":  # it went back into the queue, which is all that Slurm knows
        return said
    return reason


def join(experiment: Experiment, attempts: list[dict[str, Any]], rows: list[SlurmRow]) -> list[dict[str, Any]]:
    """The ledger's rows with Slurm's hours in place of the trainer's.

    `attempts` are rows of `octavo.accounting.ledger` by the trainer's word. One whose job Slurm knows takes the job's
    hours from the time it was allocated to its release, start of the container included; a row of Slurm's in which
    training never began is added as attempt ORPHAN.
    """
    by_job: dict[str, list[SlurmRow]] = {}
    for row in _ordered({row.key: row for row in rows}):
        by_job.setdefault(row.job, []).append(row)
    held: dict[tuple[str, datetime], list[dict[str, Any]]] = {}
    joined = []
    for attempt in attempts:
        row = _row_of(attempt, by_job.get(attempt["job"] or "", []))
        if row is None:
            joined.append(attempt)
        else:
            held.setdefault(row.key, []).append(attempt)
    for row in rows:
        joined += _of_row(experiment, row, held.get(row.key, []))
    return sorted(joined, key=lambda one: (one["cell"], one["seed"], one["start"]))


def _row_of(attempt: dict[str, Any], rows: list[SlurmRow]) -> SlurmRow | None:
    """The row of a job in which an attempt was made: the one that shares most of its time.

    Times of attempts are by the node's clock, those of rows by the controller's: where they share none it is the
    nearest, if that is not further away than clocks may be off.
    """

    def apart(row: SlurmRow) -> timedelta:
        """Time between the two; negative: the time that they share."""
        return max(row.start, attempt["start"]) - min(row.end, attempt["end"])

    near = [row for row in rows if apart(row) <= CLOCK_LAG]
    return min(near, key=apart, default=None)


def _of_row(experiment: Experiment, row: SlurmRow, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ledger's rows of one row of Slurm's: its time, divided where more than one attempt was made in it."""
    if not attempts:
        attempts = [_orphan(experiment, row)]
    attempts = sorted(attempts, key=lambda one: one["start"])
    inner = (min(max(one["start"], row.start), row.end) for one in attempts[1:])  # by the node's clock
    borders = [row.start, *inner, row.end]
    whole = max((row.end - row.start).total_seconds(), 1e-9)
    divided = []
    for attempt, (start, end) in zip(attempts, pairwise(borders), strict=True):
        share = (end - start).total_seconds() / whole if len(attempts) > 1 else 1.0
        devices, source = _devices(row, attempt)
        hours = devices * row.elapsed_seconds * share / 3600  # suspended time is not in elapsed
        energy = _energy(experiment, row, attempt, hours, share)
        measured = energy["energy_kwh"] if energy["energy_source"] != ESTIMATED else None
        divided.append(
            attempt
            | {
                "job": row.job,
                "submit": row.submit,
                "state": exit_reason(row.state, attempt["state"]),
                "nodes": row.nodes,
                "devices": devices,
                "start": start,
                "end": end,
                "device_hours": hours,
                **energy,
                "cost": cost(experiment.cluster, experiment.device, hours, measured),
                "source": source,
            }
        )
    return divided


def _devices(row: SlurmRow, attempt: dict[str, Any]) -> tuple[int, str]:
    """How many devices an attempt held, and by whose word."""
    if row.devices is not None:
        return row.devices, SACCT
    if attempt["devices"] is not None:
        return attempt["devices"], TRAINERS_DEVICES
    if row.requested is not None:
        return row.requested, SUBMITTED_DEVICES
    raise OctavoError(
        f"how many devices job {row.job} of {row.cell}/seed-{row.seed} held is nowhere to be read",
        where="sacct: AllocTRES, SubmitLine",
        expected="gres/gpu in AllocTRES",
        fix="ask for gres/gpu in slurm.conf's AccountingStorageTRES",
    )


def _energy(
    experiment: Experiment, row: SlurmRow, attempt: dict[str, Any], hours: float, share: float
) -> dict[str, Any]:
    """Kilowatt-hours at the meter: Slurm counts nodes, NVML (by the trainer's word) devices."""
    cluster, device = experiment.cluster, experiment.device
    if row.energy_joules is not None:
        nodes = row.energy_joules * share / 3.6e6
        return {
            "energy_kwh": energy_at_the_meter(cluster, device, hours, nodes_kwh=nodes), "energy_source": "slurm"
        }  # fmt: skip
    if attempt["energy_source"] == "nvml":
        return {"energy_kwh": attempt["energy_kwh"], "energy_source": "nvml"}
    return {"energy_kwh": energy_at_the_meter(cluster, device, hours), "energy_source": ESTIMATED}


def _orphan(experiment: Experiment, row: SlurmRow) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "cell": row.cell,
        "seed": row.seed,
        "attempt": ORPHAN,
        "ranks": None,
        "devices": None,
        "state": None,
        "device_kind": "cpu" if experiment.device.kind == "cpu" else experiment.device.name,
        "layout": None,
        "start": row.start,
        "first_step": None,
        "last_step": None,
        "superseded": row.cell not in experiment.cells or row.seed not in experiment.file.all_seeds,
        "energy_kwh": None,
        "energy_source": None,
        "currency": experiment.cluster.currency,
    }


def _submitted_comment(submit_line: str) -> str:
    found = re.search(r"--comment[ =]'?([^\s']+)", submit_line)
    return found.group(1) if found else ""


def _submitted_gpus(submit_line: str, tres: str) -> int | None:
    """GPUs that a job asked for on all of its nodes (the option is of one)."""
    found = re.search(r"--(?:gres[ =]gpu:|gpus-per-node[ =])(?:[^\s:,]+:)?(\d+)\b", submit_line)
    nodes = _counts(tres).get("node")
    return int(found.group(1)) * nodes if found and nodes else None


def _counts(tres: str) -> dict[str, int]:
    """`cpu=2,mem=1000M,node=1` -> its whole numbers."""
    parts = (part.partition("=") for part in tres.split(","))
    return {name: int(count) for name, _, count in parts if count.isdigit()}


def _records(text: str, separator: str) -> Iterator[list[str]]:
    """The rows of sacct's output, each as its fields.

    A row ends at a newline, and comments and submit lines may hold newlines as well. So rows are told by counting
    separators: between two rows there is the last field of the one, a newline, and the first of the other, a number.
    """
    if not text:
        return
    first, *rest = text.removesuffix("\n").split(separator)
    row = [first]
    for number, part in enumerate(rest, 1):
        last_field = number % (len(FIELDS) - 1) == 0
        if last_field and number < len(rest):
            last, _, first = part.rpartition("\n")
            yield _checked([*row, last])
            row = [first]
        else:
            row.append(part)
    yield _checked(row)


def _checked(row: list[str]) -> list[str]:
    if (
        len(row) == len(FIELDS)
        and re.fullmatch(r"\d+(\.\d+)?", row[0])
        and (row[1].isdigit() or row[1] in ("Unknown", "None"))
    ):
        return row
    raise OctavoError(
        f"not a row of sacct: {'|'.join(row)[:200]!r}", where="sacct", expected=", ".join(FIELDS),
        fix="look whether sacct prints something before its rows",
    )  # fmt: skip


def _ordered(rows: dict[tuple[str, datetime], SlurmRow]) -> list[SlurmRow]:
    return sorted(rows.values(), key=lambda row: (row.start, *map(int, row.job.split("."))))


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
