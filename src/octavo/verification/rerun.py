"""A run made again in a folder of its own, undisturbed, stopped at a step, or killed on the way.

It is `octavo train` in a process of its own, which reads its configuration from a file; nothing in the trainer knows
that it is being watched. Stopping is SIGTERM, which the trainer answers by saving and leaving after the step at hand;
killing is SIGKILL to all of its processes. When what watches it dies, whatever the reason, it is told to stop, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from octavo.errors import OctavoError
from octavo.experiment.run import RunConfig
from octavo.files import write_text
from octavo.layout import RunFolder
from octavo.records import MetricsRecord, read_last_lines
from octavo.training.launch import RESTART

POLL_SECONDS = 0.01

WITH_PARENT = (
    "import ctypes, os, signal, sys;"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM);"  # PR_SET_PDEATHSIG of prctl(2), which outlasts exec
    "os.getppid() == int(sys.argv[1]) or sys.exit(1);"  # it died before
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""A program that becomes another one, which gets SIGTERM when its parent ends."""


def begin(folder: RunFolder, run: RunConfig) -> Path:
    """Empty the folder and put the run's configuration beside it; its path."""
    shutil.rmtree(folder.path, ignore_errors=True)
    asked = folder.path.with_name(f"{folder.path.name}.yaml")
    write_text(asked, run.to_yaml())
    return asked


def train(
    folder: RunFolder,
    config: Path,
    *,
    stop_at: int | None = None,
    kill_at: int | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> bool:
    """Train the run, or go on with it, until it ends, is stopped once `stop_at` steps are logged, or is killed once
    `kill_at` are; whether it was killed.

    `environment`: another one than this process has. Raises OctavoError when it fails, or takes more than `seconds`.
    """
    train = ["-m", "octavo", "train", str(folder.path), "--config", str(config)]
    command = [sys.executable, "-c", WITH_PARENT, str(os.getpid()), *train]
    log = folder.path.with_name(f"{folder.path.name}.log")
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
        try:
            if stop_at is None and kill_at is None:
                process.wait(seconds)
            elif _watched(process, folder, stop_at, kill_at, seconds):
                return True
        except subprocess.TimeoutExpired:
            raise OctavoError(f"the run was not over after {seconds:.0f} s", where=log) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode not in (0, RESTART):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
        raise OctavoError(
            f"the run failed with status {process.returncode}: {reason.removeprefix('error: ')}", where=log
        )
    return False


def _watched(
    process: subprocess.Popen[bytes],
    folder: RunFolder,
    stop_at: int | None,
    kill_at: int | None,
    seconds: float | None,
) -> bool:
    """Wait for the run, and stop or kill it at its step; whether it was killed. Raises TimeoutExpired."""
    end = None if seconds is None else time.monotonic() + seconds
    signalled = False
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if seconds is not None and end is not None and time.monotonic() > end:
            raise subprocess.TimeoutExpired(process.args, seconds)
        step = last_step(folder.metrics)
        if kill_at is not None and step >= kill_at and not folder.result.exists():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if stop_at is not None and step >= stop_at and not signalled:
            process.terminate()
            signalled = True
    return False


def last_step(metrics: Path) -> int:
    """The last step of a metrics file that may be growing; 0 if there is none yet."""
    return next((line.step for line in read_last_lines(metrics, MetricsRecord)), 0)
