"""What this machine can do, what it lacks, and how to get it.

Every probe asks the real thing: it imports the library, runs the tool, reads what the driver says.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "note"]
PROBE_SECONDS = 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: State
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Look at this machine, one thing after the other."""
    yield Finding("Python", "ok", platform.python_version())
    yield _processor_finding()
    yield _disk()
    yield _package("torch", "train models", "make setup, or pip install 'octavo[train]'")
    yield _package("megatron-core", "train models", "make setup, or pip install 'octavo[train]'")
    yield _compiled_loops()
    gpus = list(_gpus())
    yield from gpus
    yield _package("transformer-engine", "train in FP8 on GPUs", "pip install 'octavo[gpu]' or use the image",
                   needed=any(gpu.state == "ok" for gpu in gpus))  # fmt: skip
    yield _tool("sbatch", ["sbatch", "--version"], "submit to a cluster", "run on a node that has Slurm's commands")
    yield _accounting()
    yield _tool("apptainer", ["apptainer", "--version"], "run in the image", "https://apptainer.org/docs/admin/main")


def _processor_finding() -> Finding:
    cores = len(os.sched_getaffinity(0))
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    memory = pages * size / 2**30
    return Finding("processor", "ok", f"{cores} cores, {memory:.0f} GiB of memory, {platform.machine()}")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    if free < 5:
        return Finding("disk", "missing", f"{free:.1f} GiB free here", "free some space: 5 GiB are comfortable")
    return Finding("disk", "ok", f"{free:.0f} GiB free here")


def _package(name: str, purpose: str, fix: str, *, needed: bool = True) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing" if needed else "note", f"not installed; needed to {purpose}", fix)


def _compiled_loops() -> Finding:
    """The library of C that installation compiles."""
    from octavo.cpu import library

    if library.COMPILED is not None:
        return Finding("compiled loops", "ok", "models train on the CPU and FP8 is emulated at full speed")
    found = f"{library.REFUSED}: training is slower, and its last bits differ"
    return Finding("compiled loops", "note", found, "install gcc and run: make clean setup")


def _gpus() -> Iterator[Finding]:
    listed = output_of(
        ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    )
    if not listed or not listed.strip():
        yield Finding("GPU", "note", "none: models train on the CPU, FP8 is emulated")
        return
    from octavo.experiment.attention import fused_in_fixed_order
    from octavo.precision.recipes import recipes_of

    for number, line in enumerate(listed.strip().splitlines()):
        name, capability, memory, driver = (part.strip() for part in line.split(","))
        recipes = ", ".join(recipes_of(capability))
        found = f"{name}, {memory}, driver {driver}, recipes: {recipes}"
        if not fused_in_fixed_order(capability):
            found += "; no fused attention in deterministic mode: set training.deterministic: false"
        yield Finding(f"GPU {number}", "ok", found)


def _tool(name: str, command: list[str], purpose: str, fix: str) -> Finding:
    printed = output_of(command)
    if printed is None:
        return Finding(name, "note", f"not found; needed to {purpose}", fix)
    return Finding(name, "ok", printed.strip().splitlines()[0])


def _accounting() -> Finding:
    if shutil.which("sacct") is None:
        return Finding("sacct", "note", "not found; hours come from attempts.jsonl", "use Slurm's accounting")
    if output_of(["sacct", "--noheader", "--allocations", "--starttime", "now"]) is None:
        return Finding("sacct", "note", "it fails: either Slurm keeps no accounting here, or slurmdbd is away",
                       "ask for slurmdbd")  # fmt: skip
    return Finding("sacct", "ok", "Slurm's own accounting is used")


def output_of(command: list[str]) -> str | None:
    """What a command prints; None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
