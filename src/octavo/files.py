"""Writing and reading the files between stages: whole or not at all, and with a clear error when they are not.

A file that another stage reads is written beside its place, flushed to disk and renamed (POSIX rename is atomic),
so that a killed process or a full disk never leaves half of it behind.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from octavo.errors import OctavoError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    Errors of the file system (full disk, no permission) become an `OctavoError` that names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        flush(path.parent)  # the name, too
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def flush(path: Path) -> None:
    """Force a file, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, *, made_by: str) -> Any:
    """The JSON value in `path`. `made_by` names the command that makes the file again, for the error message."""
    try:
        return parse_json(read_bytes(path))
    except FileNotFoundError:
        raise OctavoError("a file is missing", where=path, fix=f"make it: {made_by}") from None
    except ValueError as error:
        raise OctavoError(
            f"the file is not whole JSON: {error}", where=path, fix=f"remove it and make it again: {made_by}"
        ) from error


def parse_json(content: bytes) -> Any:
    """A JSON value (RFC 8259). Raises ValueError, also for what Python takes beside JSON or cannot hold.

    That is NaN and infinity, numbers that a float turns into infinity, integers of more than 64 bits, and nesting that
    is deeper than Python's stack.
    """
    try:
        return _DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_bytes(path: Path, *, most: int = 1 << 30) -> bytes:
    """The bytes of a plain file (`open_plain`); more than `most` are refused."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size  # to get a buffer for the most takes longer than to read a small file
        # what the kernel makes up as it is read (/proc) has content and no size
        content = file.read(min(size, most) + 1 if size else most + 1)
    if len(content) > most:
        raise OctavoError("the file is too large", where=path, expected=f"at most {most:,} bytes")
    return content


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """A plain file to read: pipes and devices, which may never end, are refused.

    Raises FileNotFoundError, and OctavoError for anything else that keeps it from being read within the block.
    """
    try:
        # a pipe is opened without waiting for its other end, and then refused
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or one that cannot be encoded
        raise OctavoError(
            f"the file cannot be read: {getattr(error, 'strerror', None) or error}", where=path
        ) from error
    with file:
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OctavoError("it is no file", where=path, expected="a plain file, no folder, pipe or device")
            yield file
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OctavoError(f"the file cannot be read: {error.strerror}", where=path) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _within_64_bits(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, parse_int=_within_64_bits)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hashes(path: Path, files: Iterable[Path]) -> None:
    """Record the SHA-256 of files by name, for `changed_files`."""
    write_json(path, {file.name: sha256(file) for file in sorted(files)})


def changed_files(path: Path, files: Iterable[Path], *, made_by: str) -> list[str]:
    """The names of those files that are not as `write_hashes` recorded them, or missing, or more."""
    recorded = read_json(path, made_by=made_by)
    if not isinstance(recorded, dict) or not recorded:
        raise OctavoError("the file holds no hashes", where=path, fix=f"make it again: {made_by}")
    found = {file.name: sha256(file) if file.is_file() else None for file in files}
    return sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))


def fingerprint(value: Any) -> str:
    """A SHA-256 over a JSON value in canonical form (sorted keys, no spaces): equal values, equal fingerprints."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unwritable(path: Path, error: OSError) -> OctavoError:
    """The error message for a write that the file system refused."""
    return OctavoError(
        f"the file could not be written: {error.strerror or error}",
        where=path,
        expected="a writable folder with free space",
        fix="free some space or change the permissions, then run the same command again: nothing half-written is left",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
