"""Which rank of a run this process is, and starting the other ranks where nobody else does.

A run is one process per device. Three ways lead here: `torchrun` sets RANK and WORLD_SIZE, `srun` sets SLURM_PROCID and
SLURM_STEP_NUM_TASKS, and `octavo train` alone starts the ranks of its run on this machine itself. This module is the
only one that reads those variables, and imports nothing heavy: a finished run answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from octavo.errors import OctavoError

STARTED = datetime.now(UTC)
"""When this process began, near enough: this module is among the first that it imports."""

RESTART = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that was told to stop, saved, and can go on where it was."""


@dataclass(frozen=True)
class Process:
    """A process of a run: its ranks, and where it meets the others."""

    rank: int
    world_size: int
    local_rank: int
    """Among the processes of this node."""
    address: str = "127.0.0.1"
    port: int = 0
    """Where rank 0 listens; 0: there is nobody to meet."""

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


def find_process(world_size: int) -> Process | None:
    """This process in a run of `world_size` processes; None where the ranks are still to be started.

    Raises OctavoError when torchrun or srun started another number of processes.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        _check("torchrun", int(environment["WORLD_SIZE"]), world_size)
        return Process(
            int(environment["RANK"]),
            world_size,
            int(environment.get("LOCAL_RANK", 0)),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            int(environment.get("MASTER_PORT", 0)),
        )
    # a batch script without srun has SLURM_PROCID and SLURM_NTASKS too; the step's variables are srun's alone
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1:
        _check("srun", tasks, world_size)
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
        return Process(
            int(environment["SLURM_PROCID"]),
            world_size,
            int(environment["SLURM_LOCALID"]),
            first_host(environment["SLURM_STEP_NODELIST"]),
            20_000 + (job * 101 + step) % 10_000,
        )
    return Process(0, 1, 0) if world_size == 1 else None


def _check(launcher: str, found: int, expected: int) -> None:
    if found != expected:
        raise OctavoError(
            f"{launcher} started {found} processes",
            where="octavo train",
            expected=f"{expected}, the run's tensor x pipeline x context x data",
            fix="start one process per device, or change the run's parallelism",
        )


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-07,12],cpu1` -> `gpu03`."""
    match = re.match(r"([^,\[]+)(?:\[([^\]-]+?)[-,\]][^,]*)?([^,\[]*)", nodes)
    if match is None:
        raise OctavoError(f"no host in Slurm's node list {nodes!r}", where="SLURM_STEP_NODELIST")
    prefix, number, _ = match.groups()
    return prefix + (number or "")


def nodes() -> list[str]:
    """The nodes that the run is on, as Slurm names them; this host where there is no Slurm."""
    listed = os.environ.get("SLURM_STEP_NODELIST")
    return [listed] if listed else [socket.gethostname()]


def start_ranks(world_size: int, arguments: Sequence[str], grace_seconds: float) -> int:
    """Start `octavo <arguments>` once per rank on this machine and wait; the exit status of the run.

    SIGTERM and SIGUSR1 go on to the ranks, which save and leave. When one rank fails the others, which may wait for it
    forever, are told to leave and after `grace_seconds` are killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {name: str(value) for name, value in variables.items()}
        ranks.append(subprocess.Popen([sys.executable, "-m", "octavo", *arguments], env=environment))

    def pass_on(number: int, _: object) -> None:
        for process in ranks:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, pass_on)
    return _wait(ranks, grace_seconds)


def _wait(ranks: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    """The first failure's exit status, RESTART if that is the worst there was, or 0."""
    failed, since = 0, 0.0
    while any(process.poll() is None for process in ranks):
        time.sleep(0.05)
        codes = [process.poll() for process in ranks]
        if not failed and (worst := next((code for code in codes if code not in (None, 0, RESTART)), None)):
            failed, since = worst, time.monotonic()
            for process in ranks:
                process.terminate()
        if failed and time.monotonic() - since > grace_seconds:
            for process in ranks:
                process.kill()
    codes = [process.returncode for process in ranks]
    worst = failed or next((code for code in codes if code not in (0, RESTART)), 0)
    if worst:
        return 128 - worst if worst < 0 else worst
    return RESTART if RESTART in codes else 0
