"""Reading an archive that a stranger made: what may be in a bundle, and how large it may be.

All of it is looked at before anything is unpacked. A bundle holds data alone: the allow-list has a pattern for every
place that `octavo bundle` writes, and whatever else is there refuses the archive. Sizes are those that the archive's
metadata states, and the whole may be no more than `RATIO` times the archive. What is unpacked are plain files, which
can be read and not executed; none of them is ever imported, sourced or given to Snakemake.
"""

from __future__ import annotations

import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from octavo.configuration import MOST_BYTES, parse_yaml
from octavo.errors import OctavoError, shown
from octavo.files import parse_json, read_bytes

METADATA = "ro-crate-metadata.json"
MEMBERS = 500_000
"""Files: 10,000 runs have six each."""
METADATA_BYTES = 256 << 20
"""About 500 bytes a file."""
FREE_BYTES = 64 << 20
"""May be unpacked whatever the archive's size: a page of a few colours is packed to nearly nothing."""
RATIO = 30
"""Metrics, the largest part, are packed to a seventh; deflate reaches 1 to 1,032."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}"
_RUN = rf"runs/{_PART}/seed-[0-9]{{1,10}}/(horizon-[0-9]{{1,10}}/)?(superseded/{_PART}/)?"
_RUN_FILES = r"(config\.yaml|metrics\.jsonl|attempts\.jsonl|provenance\.json|routing\.parquet|result\.json)"
_MADE = (
    r"((runs|steps|attempts)\.parquet|(claims|comparisons|report\.hashes|seeds|looks/[0-9]{1,4})\.json|report\.(html|pdf)"
    rf"|figures/{_PART}\.(pdf|svg|png|csv|json))"
)
ALLOWED = re.compile(
    "|".join(
        [
            r"Snakefile|requirements\.lock",
            rf"workflow/rules/{_PART}\.smk|workflow/report/{_PART}\.rst|workflow/profiles/{_PART}/config\.yaml",
            rf"configs/experiments/{_PART}\.yaml",
            rf"configs/(models|data|clusters|claims|published)/({_PART}/)?{_PART}\.(yaml|csv)",
            r"results/data/[0-9a-f]{16}/manifest\.json",
            rf"results/(?P<experiment>(?!data/){_PART})/("
            rf"plan\.(csv|pdf)|ladder\.csv|(leverage|plan|prediction|verification|sacct)\.json|{_MADE}|ablations/{_PART}/{_MADE}"
            rf"|{_RUN}{_RUN_FILES})",
        ]
    )
)
"""The places of a bundle's files. `tokenizer_of` adds the tokenizer's, which an experiment file may keep anywhere."""
TOKENIZER = re.compile(rf"({_PART}/){{0,8}}{_PART}\.json")

UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError,
    LookupError, OverflowError,
)  # fmt: skip
"""What zipfile raises of an archive that is damaged, or made to look like one."""


def allowed(name: str) -> bool:
    """Whether a bundle may hold a file of this name, the tokenizer's apart."""
    return ALLOWED.fullmatch(name) is not None


def unpack(archive: Path, target: Path) -> str:
    """Unpack a bundle into an empty folder, and give the name of its experiment.

    Raises OctavoError, before anything is written, where the archive holds what no bundle does.
    """
    with _reading(archive), zipfile.ZipFile(archive) as packed:
        members = _members(packed, archive)
        described = _described(packed, members, archive)
        experiment = _experiment(members, archive)
        _check_places(members, tokenizer_of(packed, experiment, members), archive)
        _check_sizes(members, described, archive)
        for name, member in members.items():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as source, place.open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    return experiment


def described_hashes(root: Path) -> dict[str, str]:
    """File -> SHA-256, as the metadata of an unpacked bundle state them."""
    path = root / METADATA
    return {name: str(one.get("sha256")) for name, one in _files(read_bytes(path), path).items()}


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    if not archive.exists():
        raise OctavoError("there is no such file", where=archive, expected="an Octavo bundle")
    if not stat.S_ISREG(archive.stat().st_mode):
        raise OctavoError("it is no file", where=archive, expected="an Octavo bundle")
    try:
        yield
    except UNREADABLE as error:
        raise _refused(archive, f"cannot be read: {shown(str(error) or type(error).__name__)}") from None


def _refused(archive: Path, why: str) -> OctavoError:
    return OctavoError(
        f"the archive {why}", where=archive, expected="a bundle as `octavo bundle` writes it", fix="do not trust it"
    )


def _members(packed: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The members by name: plain files, each once, in the clear, packed as `octavo bundle` packs."""
    listed = packed.infolist()
    if packed.comment or min((member.header_offset for member in listed), default=0):  # another program, say
        raise _refused(archive, "holds bytes before or behind its files")
    if len(listed) > MEMBERS:
        raise _refused(archive, f"holds {len(listed):,} files")
    members: dict[str, zipfile.ZipInfo] = {}
    for member in listed:
        name = member.filename
        if member.orig_filename != name:  # cut at a zero byte
            raise _refused(archive, f"holds {shown(member.orig_filename)}, which no bundle does")
        if name in members:
            raise _refused(archive, f"holds {shown(name)} twice")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refused(archive, f"holds {shown(name)}, which is no plain file")
        if member.flag_bits & 0x1:
            raise _refused(archive, f"holds {shown(name)}, which is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(archive, f"holds {shown(name)}, packed by method {member.compress_type}")
        members[name] = member
    return members


def _described(packed: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], archive: Path) -> dict[str, Any]:
    if METADATA not in members:
        raise OctavoError(f"the archive has no {METADATA}", where=archive, expected="an Octavo bundle")
    size = members[METADATA].file_size
    if size > METADATA_BYTES or size > _bound(archive):
        raise _refused(archive, f"has {size:,} bytes of metadata")
    return _files(packed.read(METADATA), archive / METADATA)


def _files(content: bytes, where: Path) -> dict[str, dict[str, Any]]:
    """What ro-crate-metadata.json says of each file, by the file's name."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise OctavoError(f"the metadata is no JSON: {error}", where=where) from None
    graph = value.get("@graph") if isinstance(value, dict) else None
    if not isinstance(graph, list) or not all(isinstance(one, dict) for one in graph):
        raise OctavoError("the metadata is no RO-Crate", where=where, expected="an object with a list under @graph")
    named = [one for one in graph if "sha256" in one and isinstance(one.get("@id"), str)]
    return {unquote(one["@id"]): one for one in named}  # a URI: the + of an ablation's cell is %2B


def _experiment(members: Iterable[str], archive: Path) -> str:
    found = {match["experiment"] for name in members if (match := ALLOWED.fullmatch(name)) and match["experiment"]}
    if len(found) != 1:
        names = ", ".join(shown(name) for name in sorted(found)[:3]) or "none"
        raise _refused(archive, f"holds the results of {len(found)} experiments ({names})")
    return found.pop()


def tokenizer_of(packed: zipfile.ZipFile, experiment: str, members: dict[str, zipfile.ZipInfo]) -> str | None:
    """The place of the tokenizer's file, where the experiment has one of its own."""
    name = f"configs/experiments/{experiment}.yaml"
    if name not in members:
        raise OctavoError(f"the archive has no {name}", where=packed.filename, expected="an Octavo bundle")
    with packed.open(members[name]) as file:
        value = parse_yaml(file.read(MOST_BYTES), Path(name))
    section = value.get("tokenizer")
    path = section.get("path") if isinstance(section, dict) and section.get("kind") == "file" else None
    if path is not None and not (isinstance(path, str) and TOKENIZER.fullmatch(path)):
        raise OctavoError(
            f"the experiment's tokenizer is {shown(str(path))}",
            where=name,
            expected="a .json file in the archive, by its path from the checkout",
        )
    return path


def _check_places(members: dict[str, zipfile.ZipInfo], tokenizer: str | None, archive: Path) -> None:
    for name in members:
        if not allowed(name) and name not in (METADATA, tokenizer):
            raise _refused(archive, f"holds {shown(name)}, which no bundle does")


def _check_sizes(members: dict[str, zipfile.ZipInfo], described: dict[str, Any], archive: Path) -> None:
    """Sizes before anything is unpacked: those that the metadata states, and no more than packing can explain."""
    for name in sorted((members.keys() | described.keys()) - {METADATA}):
        if name not in members:
            raise _refused(archive, f"lacks {shown(name)}, which its metadata describes")
        if name not in described:
            raise _refused(archive, f"holds {shown(name)}, which its metadata does not describe")
        stated = described[name].get("contentSize")
        if str(members[name].file_size) != stated:
            raise _refused(
                archive,
                f"holds {members[name].file_size:,} bytes of {shown(name)}, its metadata states {shown(str(stated))}",
            )
    total = sum(member.file_size for member in members.values())
    if total > _bound(archive):
        raise _refused(archive, f"of {archive.stat().st_size:,} bytes would be unpacked to {total:,}")


def _bound(archive: Path) -> int:
    return FREE_BYTES + RATIO * archive.stat().st_size
