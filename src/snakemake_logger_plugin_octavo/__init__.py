"""What a person watches while the pipeline works: one bar for the whole and one for each run that is training.

A logger plugin of Snakemake (found by the name of this package; `logger: octavo` in a profile chooses it). In a
terminal it draws bars from the runs' own metrics; in a log it writes one line as each job starts, ends or fails. Of a
job that is submitted to Slurm it says when it was, why it waits, and when and where it starts, from Slurm's queue.
Of a job that failed it says which, why (by its log) and where the log is, at once and again at the end. Warnings, other
errors and dry runs are printed as Snakemake words them.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from datetime import timedelta
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from octavo.accounting.status import planned_seconds
from octavo.cluster.queue import Job, queue
from octavo.errors import OctavoError, printable
from octavo.experiment.run import read_run_config
from octavo.layout import ExperimentFolder, RunFolder, parse_run
from octavo.records import FirstReport, read_record

REFRESH_SECONDS = 1.0
TAIL_BYTES = 4096
ENOUGH = 3
"""Runs trained, from which on their pace says how long the rest will take."""
QUEUE_SECONDS = (2.0, 30.0)
"""Between two looks at Slurm's queue: at first after a job was submitted, and at most."""

SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+)")
"""What Slurm's executor says of each job: Snakemake's number and Slurm's."""
STOPPED = "Terminating processes on user request"
"""What Snakemake says on Ctrl-C."""
APPEARED = re.compile(
    r"following output files of rule report were not present when the DAG was created:\s*\{(.*)\}", re.S
)
"""Snakemake's warning that a first report, which stands where the whole one will, was made meanwhile."""
EXIT = re.compile(r"CalledProcessError.*(?:exit status (\d+)|died with <Signals\.\w+: (\d+)>)", re.DOTALL)
"""What Snakemake says of a command that failed, before it says of which job."""
FAILED = ("Exiting because a job execution failed", "At least one job did not complete successfully")
"""What it says at the end where some did."""
SAVED = 75
"""Status of a trainer that was told to stop: it saved and left."""
REASON_BYTES = 1 << 16
REASON_LINES = 8
"""Of a log's end, where the reason for a failure is looked for, and the most that is shown of it."""

VERBS = {
    "data": "text to tokens",
    "plan": "forecast",
    "probe": "look at",
    "train": "train",
    "first_report": "first report",
    "aggregate": "tables",
    "claims": "verdicts",
    "figures": "figures",
    "report": "report",
    "verify": "verification",
    "image": "image",
}
"""Rule -> what a person calls its work; other rules go by their names."""


class LogHandler(LogHandlerBase):
    """Snakemake's log records -> bars or lines on standard error."""

    def __post_init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.common_settings.dryrun
        self.jobs: dict[int, tuple[str, dict[str, str]]] = {}
        self.started: dict[int, float] = {}
        self.exits: dict[int | None, int] = {}
        self.failed: dict[int, str] = {}
        self.firsts: set[str] = set()
        self.named = False
        self.since, self.trained = 0.0, 0
        self.bars: dict[int, TaskID] = {}
        self.submitted: dict[int, int] = {}
        self.told: dict[int, str] = {}
        self.looking = threading.Event()
        self.watcher: threading.Thread | None = None
        self.stopped = threading.Event()
        self.progress: Progress | None = None
        self.whole: TaskID | None = None

    @property
    def writes_to_stream(self) -> bool:
        """Bars and lines go to standard error."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No file is written."""
        return False

    @property
    def has_filter(self) -> bool:
        """Snakemake's own filter (quiet, verbose) is used."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Snakemake's own formatter words errors and dry runs."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """The graph of rules is not drawn."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record; an error in here is reported the standard way and never stops the pipeline."""
        try:
            self._show(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.stopped.set()
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        fields: dict[str, Any] = record.__dict__
        if self.common_settings.dryrun:
            self._print(self.format(record))
        elif event == LogEvent.RUN_INFO:
            self._begin(fields["stats"])
        elif event == LogEvent.JOB_INFO:
            self.jobs[fields["jobid"]] = (fields["rule_name"], dict(fields["wildcards"]))
            self.failed.pop(fields["jobid"], None)
            self._start(fields["jobid"], submits=not fields.get("local", True))
        elif event == LogEvent.JOB_FINISHED:
            self._finish(fields["job_id"])
        elif event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR, LogEvent.ERROR):
            self._show_error(record)
        elif event == LogEvent.PROGRESS and self.progress is not None and self.whole is not None:
            note = left(time.monotonic() - self.since, self.trained, fields["total"] - fields["done"])
            self.progress.update(self.whole, completed=fields["done"], total=fields["total"], note=note)
        elif event is None and (found := SUBMITTED.match(record.getMessage())):
            self._submit(int(found[1]), int(found[2]))
        elif event is None and STOPPED in record.getMessage():
            self._print(self.format(record), style="yellow")
            self._print("what trains saves and leaves; the same command goes on from there")
        elif event is None and record.levelno >= logging.WARNING:
            if record.levelno >= logging.ERROR:
                self._show_error(record)
            elif not self._of_first_report(record.getMessage()):
                self._print(self.format(record), style="yellow")

    def _of_first_report(self, warning: str) -> bool:
        """Whether a warning is about nothing but the files of first reports that were made in this run."""
        found = APPEARED.search(warning)
        return bool(found and {one.strip(" '\"\n") for one in found[1].split(",")} <= self.firsts)

    def _show_error(self, record: logging.LogRecord) -> None:
        event, text = getattr(record, "event", None), record.getMessage()
        if event == LogEvent.JOB_ERROR:
            self._fail(record.__dict__, self.exits.pop(record.thread, None))
        elif event == LogEvent.ERROR and (found := EXIT.search(text)):
            self.exits[record.thread] = int(found[1]) if found[1] else 128 + int(found[2])
        elif self.failed and any(said in text for said in FAILED):
            if not self.named:
                self._name_failed()
        else:
            self._print(self.format(record), style="red")

    def _begin(self, stats: dict[str, int]) -> None:
        runs, total = stats.get("train", 0), stats.get("total", sum(stats.values()))
        self._print(f"{runs} runs to train, {total - runs} other jobs")
        if not self.live:
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.whole = self.progress.add_task("all jobs", total=total, note="")
        self.progress.start()
        threading.Thread(target=self._follow, daemon=True).start()

    def _start(self, job: int, *, submits: bool) -> None:
        self.started[job] = time.monotonic()
        if self._rule(job) == "train":
            self.since = self.since or time.monotonic()
        if not submits:
            self._line("start ", job, planned(self.jobs[job][1]) if self._rule(job) == "train" else "")
        if self.progress is not None and self._rule(job) == "train":
            note = "being submitted" if submits else "starting"
            self.bars[job] = self.progress.add_task(self._title(job), total=None, note=note)

    def _submit(self, job: int, number: int) -> None:
        self._line("submit", job, f"job {number}")
        self.submitted[job] = number
        self.told.pop(job, None)
        self.looking.set()
        if self.watcher is None:
            self.watcher = threading.Thread(target=self._look_at_queue, daemon=True)
            self.watcher.start()

    def _finish(self, job: int) -> None:
        self._end_bar(job)
        seconds = time.monotonic() - self.started.get(job, time.monotonic())
        waited = " since it was submitted" if self.submitted.pop(job, None) else ""
        clock = "" if self.progress else f"{time.strftime('%H:%M:%S')} "
        rule, wildcards = self.jobs.get(job, ("job", {}))
        self.trained += rule == "train"
        where = f": results/{wildcards['scope']}/report.pdf" if rule == "report" else ""
        self._print(f"{clock}done   {self._title(job)} ({seconds:.0f} s{waited}){where}")
        if rule == "first_report":
            scope = ExperimentFolder(Path("results") / wildcards["scope"])
            self.firsts |= {str(scope.report_pdf), str(scope.report_html)}
            if said := first_report(scope):
                self._print(said)

    def _fail(self, fields: dict[str, Any], status: int | None) -> None:
        """Which job failed, why, and where its log is."""
        job = fields["jobid"]
        self._end_bar(job)
        self.jobs.setdefault(job, (fields["rule_name"], {}))
        logs = [Path(log) for log in fields.get("log") or ()]
        clock = "" if self.progress else f"{time.strftime('%H:%M:%S')} "
        reason = next(filter(None, map(why, logs)), "")
        if status == SAVED and not reason:
            self._print(f"{clock}left   {self._title(job)}: it saved, and goes on from there", style="yellow")
            return
        reason = reason or (fields.get("rule_msg") or "").strip() or ended(status)
        told = "\n".join([reason, *(f"  {'log:':<10}{log}" for log in logs)])
        self.failed[job] = reason.partition("\n")[0]
        self._print(f"{clock}FAILED {self._title(job)}: {told}", style="red")

    def _name_failed(self) -> None:
        """At the end, what failed, and what to do."""
        lines = [f"  {self._title(job)}: {reason}" for job, reason in self.failed.items()]
        jobs = "1 job" if len(lines) == 1 else f"{len(lines)} jobs"
        self._print("\n".join([f"{jobs} failed:", *lines]), style="red")
        self._print("all else that was made stays; once that is mended, the same command goes on from there")
        self.named = True

    def _end_bar(self, job: int) -> None:
        if job in self.bars and self.progress is not None:
            self.progress.remove_task(self.bars.pop(job))

    def _follow(self) -> None:
        """Move the bars of running runs to where their metrics say that they are."""
        while not self.stopped.wait(REFRESH_SECONDS):
            for job, bar in list(self.bars.items()):
                folder = run_folder(self.jobs[job][1])
                point = last_step(folder.metrics)
                if self.progress is not None and point is not None and job in self.bars:
                    total = total_steps(folder.config)
                    left = timedelta(seconds=round(point["step_seconds"] * (total - point["step"])))
                    note = f"loss {point['loss']:.3f}, {left} left"
                    self.progress.update(bar, completed=point["step"], total=total, note=note)

    def _look_at_queue(self) -> None:
        """Say of submitted jobs what Slurm's queue says, each thing once."""
        wait, most = QUEUE_SECONDS
        while not self.stopped.is_set():
            if self.looking.wait(wait):  # something was just submitted
                self.looking.clear()
                wait = QUEUE_SECONDS[0]
                self.stopped.wait(wait)
            wait = min(1.5 * wait, most)
            try:
                jobs = {job.number: job for same in queue(Path.cwd()).values() for job in same}
            except OctavoError:
                continue  # the executor says it, too
            for job, number in list(self.submitted.items()):
                if (found := jobs.get(number)) is not None:
                    self._tell(job, found)

    def _tell(self, job: int, found: Job) -> None:
        starts = found.state == "running"
        told = "running" if starts else f"{found.state} {found.reason}"  # the expected start changes all the time
        if self.told.get(job) != told and found.state in ("running", "waiting", "held"):
            self.told[job] = told
            self._line("start " if starts else "wait  ", job, str(found))
            if self.progress is not None and job in self.bars:
                self.progress.update(self.bars[job], note=str(found))

    def _line(self, word: str, job: int, more: str = "") -> None:
        """A line of a log; a terminal has bars instead."""
        if self.progress is None:
            self._print(f"{time.strftime('%H:%M:%S')} {word} {self._title(job)}{more and f' ({more})'}")

    def _rule(self, job: int) -> str:
        return self.jobs[job][0] if job in self.jobs else "?"

    def _title(self, job: int) -> str:
        rule, wildcards = self.jobs.get(job, ("job", {}))
        what = f"{wildcards['cell']} seed {wildcards['seed']}" if rule == "train" else " ".join(wildcards.values())
        return f"{VERBS.get(rule, rule)} {what}".rstrip()

    def _print(self, text: str, style: str = "") -> None:
        if text:
            self.console.print(Text(text, style=style))


def run_folder(wildcards: dict[str, str]) -> RunFolder:
    """The folder of the run that a training job makes."""
    return RunFolder(
        Path("results") / wildcards["experiment"] / "runs" / wildcards["cell"] / f"seed-{wildcards['seed']}"
    )


def first_report(scope: ExperimentFolder) -> str:
    """That a first report stands, and where; nothing where a whole one does."""
    first = read_record(scope.first_report, FirstReport, made_by="octavo first-report")
    if not first.stands:
        return ""
    return (
        f"{scope.report_pdf} stands: a first report, after {first.seeds} of up to {first.most} seeds; more are running"
    )


def why(log: Path) -> str:
    """The reason for a failure by a job's log, which Snakemake begins anew: the last error; nothing without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - REASON_BYTES))
            lines = file.read().decode("utf-8", "replace").rstrip().split("\n")
    except OSError:
        return ""
    errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    if not errors:
        return ""
    first = errors[-1]
    rest = takewhile(lambda line: line.startswith("  "), lines[first + 1 :])
    return printable("\n".join([lines[first].removeprefix("error: "), *islice(rest, REASON_LINES - 1)]))


def ended(status: int | None) -> str:
    """How a command ended that left no word of its own."""
    if status is None:
        return "it ended without a word"
    if status > 128 and status - 128 in set(signal.Signals):
        name = signal.Signals(status - 128).name
        beyond = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"it was ended by {name} from outside{beyond}"
    return f"it ended with status {status} and without a word"


def left(seconds: float, trained: int, jobs: int) -> str:
    """`about 0:04:10 left`, at the pace of the runs trained since training began; nothing before a few were."""
    if trained < ENOUGH or not jobs:
        return ""
    return f"about {timedelta(seconds=round(seconds / trained * jobs))} left"


def last_step(metrics: Path) -> dict[str, Any] | None:
    """The last whole training line of a metrics file, read from its end; None where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            point = json.loads(line)
        except ValueError:  # cut by the seek
            continue
        if point.get("loss") is not None:
            return point
    return None


def planned(wildcards: dict[str, str]) -> str:
    """`0:01:10 by the plan`, of the run that a training job makes; nothing where no plan says it."""
    named = parse_run(f"{wildcards['cell']}/seed-{wildcards['seed']}")
    seconds = planned_seconds(ExperimentFolder(Path("results") / wildcards["experiment"])).get(
        named[0] if named else ""
    )
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} by the plan"


@cache
def total_steps(config: Path) -> int:
    """Steps of the run with this configuration."""
    return read_run_config(config).training.total_steps
