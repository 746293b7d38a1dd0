"""Parts of `steps.parquet` that are kept, so that only runs which are new or changed are read again.

A part is a few runs of one cell: their steps as a Parquet file, and beside it a record of what else was worked out of
their files. Its name is the hash of all that it was made of: the cell as it is configured, the seeds, the code, and the
files of each run by size, times and inode, which are compared in place of the bytes: no program can set a file's ctime.
The record seals both files by their hashes. So a part of other files, of another version, damaged or half written is
one that is not found, and it is made again.

A file that was changed within seconds of being read could be changed once more without another ctime; a part of such
files is not kept, nor is one whose files changed meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import octavo
from octavo.files import atomic_path, fingerprint, sha256, unwritable, write_text
from octavo.layout import RunFolder

SETTLED = 2_000_000_000
"""Nanoseconds after which a change of a file has another ctime than the one before, on any file system."""

Signature = list[tuple[int, ...] | None]
"""Of each file of a run: size, times and inode."""


@dataclass(frozen=True)
class Part:
    """A part, kept or just made."""

    steps: Path
    facts: Any
    """What else was worked out, as JSON."""


class Parts:
    """The parts in a folder; those that were asked for stay when it is tidied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: set[Path] = set()

    def part(self, cell: str, configured: Any, runs: list[RunFolder], make: Callable[[Path], tuple[Any, bool]]) -> Part:
        """The part of these runs of a cell. `configured`: all that it is made of besides their files and the code.

        `make` writes the steps into a file and gives the other facts, and whether they may be kept.
        """
        seen = [_signature(run) for run in runs]
        name = fingerprint([_code(), cell, configured, seen])
        steps = self._folder / cell / f"{name}.parquet"
        record = steps.with_suffix(".json")
        self._asked |= {steps, record}
        if (facts := _sealed(record, steps)) is not None:
            return Part(steps, facts)
        with atomic_path(steps) as temporary:
            begun = temporary.stat().st_ctime_ns  # by the file system's clock
            facts, good = make(temporary)
        if good and seen == [_signature(run) for run in runs] and _settled(seen, begun):
            _seal(record, steps, facts)
        return Part(steps, facts)

    def tidy(self, *, cells: set[str], whole: bool) -> None:
        """Remove the parts of these cells that were not asked for; `whole`: and those of all other cells."""
        for path in self._folder.glob("*/*"):
            if path not in self._asked and (whole or path.parent.name in cells):
                with suppress(OSError):
                    path.unlink()
        for folder in self._folder.glob("*/"):
            with suppress(OSError):
                folder.rmdir()  # where it is empty


@contextmanager
def parts_of(kept: Path | None, beside: Path) -> Iterator[Parts]:
    """The parts that are kept in a folder, for one process at a time; None: of a temporary one in `beside`.

    That also where the file system has no locks.
    """
    if kept is not None:
        with suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
        with _lock(kept) as locked:
            if locked:
                yield Parts(kept)
                return
    try:
        beside.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=beside, prefix=".parts-")
    except OSError as error:
        raise unwritable(beside, error) from error
    with temporary as name:
        yield Parts(Path(name))


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder; whether that could be done."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks no folder
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(handle)


_ANY = RunFolder(Path())
_READ = tuple(file.name for file in (_ANY.result, _ANY.metrics, _ANY.attempts, _ANY.provenance, _ANY.routing))
"""Files of a run that a part is made of."""


def _signature(run: RunFolder) -> Signature:
    folder = str(run.path)
    return [_stat(f"{folder}/{name}") for name in _READ]


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # of ten thousand runs, Path.stat takes twice as long
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _settled(seen: list[Signature], begun: int) -> bool:
    return all(begun - file[2] > SETTLED for run in seen for file in run if file)


def _seal(record: Path, steps: Path, facts: Any) -> None:
    text = json.dumps({"steps": sha256(steps), "facts": facts})
    write_text(record, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


def _sealed(record: Path, steps: Path) -> Any:
    """The facts of a part; None where there is none, or it is not as it was sealed."""
    try:
        digest, text, end = record.read_text().split("\n")
        if hashlib.sha256(text.encode()).hexdigest() != digest or end:
            return None
        value = json.loads(text)
        return value["facts"] if value["steps"] == sha256(steps) else None
    except (OSError, ValueError):
        return None


@cache
def _code() -> str:
    """A hash of what makes parts: this package and the libraries that compute and write."""
    import numpy as np
    import pyarrow as pa

    package = Path(octavo.__file__).parent
    files = sorted(package.rglob("*.py"))
    return fingerprint([pa.__version__, np.__version__, [(str(f.relative_to(package)), sha256(f)) for f in files]])
