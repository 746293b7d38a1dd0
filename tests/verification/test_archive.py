"""A bundle from a stranger can be refused, and nothing else: no code of it runs and nothing is written outside.

A bundle is changed in one place at a time, its metadata made to fit, and must be refused before anything is unpacked.
"""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from octavo.errors import OctavoError
from octavo.verification.archive import METADATA, unpack
from tests.tiny import octavo

EXPERIMENT = "configs/experiments/synthetic.yaml"


def contents(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def repack(files: dict[str, bytes], target: Path) -> Path:
    """An archive of these files whose metadata states their sizes, as somebody would make it who knows Octavo."""
    metadata = json.loads(files[METADATA])
    graph = [one for one in metadata["@graph"] if "sha256" not in one]
    graph += [
        {"@id": quote(name), "@type": "File", "sha256": "0", "contentSize": str(len(content))}
        for name, content in files.items()
        if name != METADATA
    ]
    files = {**files, METADATA: json.dumps({**metadata, "@graph": graph}).encode()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return target


def refusal(archive: Path, tmp_path: Path) -> str:
    """What is said; nothing may be there afterwards."""
    target = tmp_path / "inside" / "deep"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OctavoError) as refused:
        unpack(archive, target)
    assert sorted(tmp_path.rglob("*")) == before
    return str(refused.value)


def test_a_bundle_is_unpacked(bundle: Path, tmp_path: Path) -> None:
    """Also one that was packed again with the same files."""
    assert unpack(repack(contents(bundle), tmp_path / "again.zip"), tmp_path / "inside") == "synthetic"
    assert (tmp_path / "inside" / EXPERIMENT).stat().st_mode & 0o111 == 0


CODE = [
    "octavo/__init__.py", "octavo/__main__.py", "octavo/cli.py", "sitecustomize.py", "usercustomize.py", "json.py",
    "zipfile.py", "conftest.py", "setup.py", "evil.pth", "lib/python3.11/site-packages/evil.pth", "octavo.so",
    "pyvenv.cfg", "matplotlibrc", "results/synthetic/json.py", "configs/experiments/conftest.py", "workflow/rules/x.py",
    "src/octavo/templates/report.typ", "workflow/report/report.typ", ".env", "results/synthetic/figures/x.py",
]  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_code_where_python_looks_for_it_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    archive = repack({**contents(bundle), name: b"raise SystemExit"}, tmp_path / "evil.zip")
    assert f"holds '{name}', which no bundle does" in refusal(archive, tmp_path)


def test_no_code_of_a_bundle_runs(bundle: Path, tmp_path: Path) -> None:
    """All of it in one archive, verified from the folder that holds the same code; each would leave a mark."""
    mark = tmp_path / "it-ran"
    code = f"open({str(mark)!r}, 'a').write(__name__)\n".encode()
    evil = {name: b"import os; " + code if name.endswith(".pth") else code for name in CODE}
    archive = repack({**contents(bundle), **evil}, tmp_path / "evil.zip")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = octavo(empty, "verify-bundle", str(archive))
    assert done.returncode == 1
    assert "which no bundle does" in done.stderr
    assert not mark.exists()


def test_the_verifier_runs_its_own_code_wherever_it_stands(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were such files unpacked all the same, or in the working directory: the verbs are started in isolation."""
    from octavo.verification import bundle as module

    mark = tmp_path / "it-ran"
    root = tmp_path / "inside"
    unpack(bundle, root)
    for name in ("octavo/__init__.py", "octavo/cli.py", "sitecustomize.py", "usercustomize.py", "json.py", "typer.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"open({str(mark)!r}, 'a').write(__name__)\n")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PYTHONSTARTUP", str(root / "json.py"))
    module._run("aggregate", root, "synthetic", None)
    assert not mark.exists()
    (root / "results/synthetic/runs/moe-bf16/seed-1/metrics.jsonl").write_text("null\n")
    with pytest.raises(OctavoError, match="octavo aggregate refuses what is in the archive"):
        module._run("aggregate", root, "synthetic", None)


@pytest.mark.parametrize(
    "name",
    [
        "../outside", "/outside", "results/../../outside", "results\\..\\outside", "a" * 300, "results/" + "d/" * 3000,
        "results/synthetic/figures/\x1b[2J.svg", "results/synthetic/runs/x/seed-1/checkpoints/model.bin",
        "results/synthetic/figures/", "results/other/runs.parquet", "results/synthetic/figures/\u202egvs.svg",
    ],
)  # fmt: skip
def test_other_places_and_names_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    said = refusal(repack({**contents(bundle), name: b"x"}, tmp_path / "evil.zip"), tmp_path)
    assert "which no bundle does" in said or "of 2 experiments" in said
    assert len(said) < 1000
    assert said.isprintable() or all(line.isprintable() for line in said.split("\n"))


def flagged(archive: Path, target: Path, local: tuple[int, bytes], central: tuple[int, bytes]) -> Path:
    """The archive with other bytes in all headers of its members, at these offsets."""
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        starts = [member.header_offset for member in packed.infolist()]
        at = packed.start_dir
    for start in starts:
        content[start + local[0] : start + local[0] + len(local[1])] = local[1]
    while content[at : at + 4] == b"PK\x01\x02":
        content[at + central[0] : at + central[0] + len(central[1])] = central[1]
        at += 46 + sum(struct.unpack_from("<3H", content, at + 28))
    target.write_bytes(content)
    return target


def test_a_packing_that_is_not_octavos_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Offsets of flags and method in the headers: APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.12."""
    encrypted = flagged(bundle, tmp_path / "a.zip", (6, b"\x01\x00"), (8, b"\x01\x00"))
    assert "which is encrypted" in refusal(encrypted, tmp_path)
    for method in (12, 14, 93, 99):
        other = flagged(bundle, tmp_path / "a.zip", (8, struct.pack("<H", method)), (10, struct.pack("<H", method)))
        assert f"packed by method {method}" in refusal(other, tmp_path)


def test_bytes_beside_the_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    """A program before them, which a shell would run, or anything in the comment behind them."""
    script = tmp_path / "script.zip"
    script.write_bytes(b"#!/bin/sh\nexit\n" + bundle.read_bytes())
    assert "bytes before or behind its files" in refusal(script, tmp_path)
    comment = Path(shutil.copy(bundle, tmp_path / "comment.zip"))
    with zipfile.ZipFile(comment, "a") as packed:
        packed.comment = b"anything"
    assert "bytes before or behind its files" in refusal(comment, tmp_path)


def test_links_twins_and_folders_are_refused(bundle: Path, tmp_path: Path) -> None:
    def add(member: zipfile.ZipInfo, content: bytes) -> str:
        archive = Path(shutil.copy(bundle, tmp_path / "evil.zip"))
        with zipfile.ZipFile(archive, "a") as packed, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            packed.writestr(member, content)
        return refusal(archive, tmp_path)

    link = zipfile.ZipInfo("results/synthetic/figures/link.svg")
    link.external_attr = 0o120777 << 16
    assert "which is no plain file" in add(link, b"/etc/passwd")
    assert "twice" in add(zipfile.ZipInfo(EXPERIMENT), b"x")


def test_sizes_are_checked_before_anything_is_unpacked(bundle: Path, tmp_path: Path) -> None:
    """300 MB of zeros are packed to 0.3 MB."""
    name = "results/synthetic/figures/zeros.csv"
    bomb = repack({**contents(bundle), name: bytes(300_000_000)}, tmp_path / "bomb.zip")
    assert bomb.stat().st_size - bundle.stat().st_size < 1_000_000
    assert "would be unpacked to 3" in refusal(bomb, tmp_path)


def with_metadata(bundle: Path, target: Path, content: bytes) -> Path:
    with zipfile.ZipFile(target, "w") as packed:
        for name, old in contents(bundle).items():
            packed.writestr(name, content if name == METADATA else old)
    return target


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (b"null", "no RO-Crate"),
        (b"[]", "no RO-Crate"),
        (b'{"@graph": 1}', "no RO-Crate"),
        (b'{"@graph": [1]}', "no RO-Crate"),
        (b'{"@graph": [{"sha256": 1, "@id": []}]}', "does not describe"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"@graph": ' + b"9" * 5000 + b"}", "too large a number"),
    ],
)
def test_metadata_that_is_none_is_refused(bundle: Path, tmp_path: Path, metadata: bytes, said: str) -> None:
    assert said in refusal(with_metadata(bundle, tmp_path / "evil.zip", metadata), tmp_path)


def test_a_size_that_the_metadata_does_not_state_is_refused(bundle: Path, tmp_path: Path) -> None:
    value = json.loads(contents(bundle)[METADATA])
    stated = next(one for one in value["@graph"] if one["@id"] == EXPERIMENT)
    stated["contentSize"] = "7"
    archive = with_metadata(bundle, tmp_path / "evil.zip", json.dumps(value).encode())
    assert "its metadata states '7'" in refusal(archive, tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.json", "/dev/zero", "x.py", "json.json/../../x.json"])
def test_a_tokenizer_elsewhere_is_refused(bundle: Path, tmp_path: Path, path: str) -> None:
    files = contents(bundle)
    old = files[EXPERIMENT].decode()
    kept = "\n".join(line for line in old.split("\n") if not line.startswith(("tokenizer:", "  kind: bytes")))
    files[EXPERIMENT] = f"{kept}\ntokenizer: {{kind: file, path: {path}, end_of_document: x}}\n".encode()
    assert "the experiment's tokenizer is" in refusal(repack(files, tmp_path / "evil.zip"), tmp_path)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b""), lambda path: None])
def test_what_is_no_archive_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x.zip")
    refusal(tmp_path / "x.zip", tmp_path)
