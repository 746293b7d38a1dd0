"""What a person watches while the pipeline works: one bar for the whole and one for each run that is training.

A logger plugin of Snakemake (found by the name of this package; `logger: octavo` in a profile chooses it). In a
terminal it draws bars from the runs' own metrics; in a log it writes one line as each job starts, ends or fails.
Warnings, errors and dry runs are printed as Snakemake words them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from octavo.experiment.run import read_run_config
from octavo.layout import ExperimentFolder, RunFolder

REFRESH_SECONDS = 1.0
TAIL_BYTES = 4096

VERBS = {
    "data": "text to tokens",
    "plan": "forecast",
    "train": "train",
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
        self.bars: dict[int, TaskID] = {}
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
            self._start(fields["jobid"])
        elif event == LogEvent.JOB_FINISHED:
            self._finish(fields["job_id"])
        elif event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR, LogEvent.ERROR):
            self._end_bar(fields.get("jobid", -1))
            self._print(self.format(record), style="red")
        elif event == LogEvent.PROGRESS and self.progress is not None and self.whole is not None:
            self.progress.update(self.whole, completed=fields["done"], total=fields["total"])
        elif event is None and record.levelno >= logging.WARNING:
            self._print(self.format(record), style="red" if record.levelno >= logging.ERROR else "yellow")

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

    def _start(self, job: int) -> None:
        self.started[job] = time.monotonic()
        if self.progress is None:
            self._print(f"{time.strftime('%H:%M:%S')} start  {self._title(job)}")
        elif self._rule(job) == "train":
            self.bars[job] = self.progress.add_task(self._title(job), total=None, note="starting")

    def _finish(self, job: int) -> None:
        self._end_bar(job)
        seconds = time.monotonic() - self.started.get(job, time.monotonic())
        clock = "" if self.progress else f"{time.strftime('%H:%M:%S')} "
        self._print(f"{clock}done   {self._title(job)} ({seconds:.0f} s)")

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
                    self.progress.update(bar, completed=point["step"], total=total, note=f"loss {point['loss']:.3f}")

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
    return ExperimentFolder(Path("results") / wildcards["experiment"]).run(wildcards["cell"], int(wildcards["seed"]))


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


@cache
def total_steps(config: Path) -> int:
    """Steps of the run with this configuration."""
    return read_run_config(config).training.total_steps
