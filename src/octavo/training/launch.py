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
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from octavo.errors import OctavoError
from octavo.layout import RunFolder
from octavo.training.ranks import write_killed

STARTED = datetime.now(UTC)
"""When this process began, near enough: this module is among the first that it imports."""

RESTART = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that was told to stop, saved, and can go on where it was."""

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that tell a run to save and leave: SIGUSR1 is Slurm's warning before a time limit, SIGINT is Ctrl-C."""

ALLOCATION = "OCTAVO_ALLOCATION"
"""Environment variable: the Slurm job in which the pipeline runs that started this run, as a step beside others."""


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
        port = int(environment.get("MASTER_PORT", 0))
        if world_size > 1 and not port:  # each rank would train alone
            raise OctavoError("the ranks have no port to meet at", where="MASTER_PORT", fix="torchrun --master-port")
        return Process(
            int(environment["RANK"]),
            world_size,
            int(environment.get("LOCAL_RANK", 0)),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            port,
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


def started_together() -> int:
    """Processes that torchrun or srun started as this one; 1: it was started alone."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


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


def slurm_job() -> str | None:
    """What Slurm accounts this attempt under: its job, or its step where the job is not this run's alone."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and job == os.environ.get(ALLOCATION):
        return f"{job}.{os.environ['SLURM_STEP_ID']}" if "SLURM_STEP_ID" in os.environ else None
    return job


def nodes() -> list[str]:
    """The nodes that the run is on, as Slurm names them; this host where there is no Slurm."""
    listed = os.environ.get("SLURM_STEP_NODELIST")
    return [listed] if listed else [socket.gethostname()]


def leave(status: int) -> NoReturn:
    """End this process, whose files are closed, without taking apart what it imported: that is a third of a second."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def start_ranks(
    world_size: int, arguments: Sequence[str], grace_seconds: float, folder: RunFolder | None = None
) -> int:
    """Start `octavo <arguments>` once per rank on this machine and wait; the worst exit status.

    In the run's `folder`, where they train one, a rank that is killed is named.

    STOPS go on to the ranks, which save and leave. When one rank fails the others, which may wait for it
    forever, are told to leave; `grace_seconds` after one has left without a result, those still there are killed.
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

    for number in STOPS:
        signal.signal(number, pass_on)
    return _wait(ranks, grace_seconds, folder)


def _wait(ranks: list[subprocess.Popen[bytes]], grace_seconds: float, folder: RunFolder | None) -> int:
    """The first failure's exit status, RESTART if that is the worst there was, or 0. A rank that is killed is named."""
    codes: dict[int, int] = {}
    failed, end = 0, float("inf")
    while len(codes) < len(ranks):
        time.sleep(0.05)
        left = {rank: code for rank, one in enumerate(ranks) if (code := one.poll()) is not None and rank not in codes}
        codes |= left
        if any(left.values()) and end == float("inf"):
            end = time.monotonic() + grace_seconds
        for rank, code in left.items():
            if code in (0, RESTART) or failed:
                continue
            failed = code
            if code < 0:
                said = f"rank {rank} was killed by signal {-code}"
                if folder:
                    write_killed(folder, rank, ranks[rank].pid, said)
                print(said, file=sys.stderr, flush=True)
            for process in ranks:
                process.terminate()
        if time.monotonic() > end:
            failed = failed or RESTART  # one that has to be killed stood still: its end is no failure of its own
            for process in ranks:
                process.kill()
    if failed:
        return 128 - failed if failed < 0 else failed
    return RESTART if RESTART in codes.values() else 0
