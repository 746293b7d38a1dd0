"""Slurm's queue: which jobs of this checkout wait, why and until when, and which run where. And asking Slurm at all.

A job belongs to this checkout when it was submitted from its folder, whoever submitted it. Fields are those of
`man squeue` (--format), states and reasons those of its sections JOB STATE CODES and JOB REASON CODES.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from octavo.errors import OctavoError

ANSWER_SECONDS = 60
"""How long Slurm's commands may take; they try to reach the controller for some seconds themselves."""

HELD = ("JobHeldUser", "JobHeldAdmin")

FIELDS = "%A", "%T", "%r", "%S", "%N", "%u", "%Z", "%k"
"""Number, state, reason, (expected) start, nodes, user, the folder it was submitted from, comment."""


@dataclass(frozen=True)
class Job:
    """A job in Slurm's queue."""

    number: int
    state: str
    """`waiting`, `held`, or Slurm's own word in small letters: `running`, `completing`, ..."""
    reason: str
    """Why it waits, in Slurm's word; empty where it does not."""
    start: datetime | None
    """When it started or, of one that waits, is expected to; None where Slurm does not say."""
    nodes: str
    """As Slurm lists them: `gpu[03-06]`; empty where it has none yet."""
    user: str

    def __str__(self) -> str:
        if self.state not in ("waiting", "held"):
            return f"job {self.number} {self.state} on {self.nodes}"
        begin = f"expected start {self.start.astimezone():%d %b %H:%M}" if self.start else ""
        why = ", ".join(part for part in (self.reason, begin) if part)
        return f"job {self.number} {self.state}" + (f": {why}" if why else "")


def queue(root: Path) -> dict[str, list[Job]]:
    """The jobs that were submitted from a folder, by comment, the earliest first.

    Raises OctavoError where Slurm's controller does not answer.
    """
    # nobody who writes a comment can know these: no part of one can pass for a field or a row
    field, row = (f"|{secrets.token_hex(8)}|" for _ in range(2))
    printed = ask("squeue", "--all", "--noheader", f"--format={field.join(FIELDS)}{row}")
    found: dict[str, list[Job]] = {}
    for text in printed.split(f"{row}\n")[:-1]:
        number, state, reason, start, nodes, user, folder, comment = text.split(field)
        if folder == str(root):
            found.setdefault(comment, []).append(_job(number, state, reason, start, nodes, user))
    return {comment: sorted(jobs, key=lambda job: job.number) for comment, jobs in found.items()}


def _job(number: str, state: str, reason: str, start: str, nodes: str, user: str) -> Job:
    waits = state == "PENDING"
    word = ("held" if reason in HELD else "waiting") if waits else state.lower()
    begin = datetime.fromtimestamp(int(start), UTC) if start.isdigit() and int(start) else None
    return Job(int(number), word, reason if waits and reason != "None" else "", begin, nodes, user)


def answer(
    *command: str, seconds: float, stdin: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What a command of Slurm's answers; `variables` are added to its environment.

    Raises OSError, with the reason in `strerror`, where the command is not there or takes longer.
    """
    try:
        return subprocess.run(
            command,
            input=stdin,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # others' comments and submit lines may hold any bytes
            timeout=seconds,
            env={**os.environ, **variables},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s") from None


def ask(*command: str) -> str:
    """What a command of Slurm's prints, be it an error about a job that is gone; times are seconds since 1970.

    Raises OctavoError where the controller does not answer: who else trains this run cannot be known then.
    """
    try:
        asked = answer(*command, seconds=ANSWER_SECONDS, SLURM_TIME_FORMAT="%s")
    except OSError as error:
        silent = str(error.strerror)
    else:
        if "nable to contact slurm controller" not in asked.stderr:
            return asked.stdout
        silent = asked.stderr.strip()
    raise OctavoError(
        f"Slurm's controller cannot be reached: {silent}",
        where=shlex.join(command),
        fix="wait until `scontrol ping` says UP; the pipeline tries again, or goes on when it is started again",
    )
