"""Text in, Megatron data sets out: every format, every tokenizer, nothing lost, the same bytes every time."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from octavo.data import manifest as manifest_module
from octavo.data import prepare as prepare_module
from octavo.data.indexed import IndexedWriter, read_documents
from octavo.data.manifest import Manifest, check_files, check_files_once, check_newer_sources
from octavo.data.packages import read_package
from octavo.data.prepare import prepare
from octavo.data.tokenizers import build_tokenizer
from octavo.errors import OctavoError
from octavo.experiment.config import BpeTokenizer, BytesTokenizer, Data, FileTokenizer, PackageSource, Tokenizer

TEXTS = {f"document {number}": f"line one of {number}\nAnd éclair, 漢字 of {number}.\n" * 3 for number in range(40)}
END = 256  # of the bytes tokenizer: one token after the 256 bytes


def write_txt(folder: Path, compress: Callable[[bytes], bytes] = bytes, suffix: str = "") -> None:
    for name, text in TEXTS.items():
        (folder / f"{name}.txt{suffix}").write_bytes(compress(text.encode()))


def write_jsonl(folder: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS.values()]
    (folder / "all.jsonl").write_text("\n  \n".join(lines) + "\n")  # blank lines between them are no documents


def write_parquet(folder: Path, compress: Callable[[bytes], bytes] = bytes, suffix: str = "") -> None:
    table = pd.DataFrame({"text": list(TEXTS.values()), "other": range(len(TEXTS))}).to_parquet()
    (folder / f"all.parquet{suffix}").write_bytes(compress(table))


def gzipped(content: bytes) -> bytes:
    """Without the time of day, which the hash that splits documents would differ by."""
    return gzip.compress(content, mtime=0)


FORMATS: dict[str, Callable[[Path], None]] = {
    "txt": write_txt,
    "txt.gz": lambda folder: write_txt(folder, gzipped, ".gz"),
    "txt.zst": lambda folder: write_txt(folder, zstandard.ZstdCompressor().compress, ".zst"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "parquet.gz": lambda folder: write_parquet(folder, gzipped, ".gz"),
    "parquet.zst": lambda folder: write_parquet(folder, zstandard.ZstdCompressor().compress, ".zst"),
}


def make(
    folder: Path, data: dict[str, Any] | None = None, tokenizer: Tokenizer | None = None, held_out: float = 0.2
) -> Manifest:
    """Prepare the folder's text as data set `folder/set`; `held_out` is the fraction for validation.

    Documents are split by a hash that includes their path: where few may fall to validation, it must be large.
    """
    source = {"kind": "files", "path": str(folder / "text"), **(data or {})}
    return prepare(
        Data.model_validate({"sources": [source], "validation_fraction": held_out}),
        tokenizer or BytesTokenizer(),
        folder / "set",
        Console(quiet=True),
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    write_txt(tmp_path / "text")
    return tmp_path


def documents_of(folder: Path) -> list[bytes]:
    """All documents of a bytes data set, sorted."""
    found = [*read_documents(folder / "set" / "train"), *read_documents(folder / "set" / "validation-text")]
    assert all(tokens[-1] == END for tokens in found)
    return sorted(bytes(tokens[:-1].astype(np.uint8)) for tokens in found)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_every_document_byte_for_byte(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").mkdir()
    FORMATS[name](tmp_path / "text")
    manifest = make(tmp_path, held_out=0.4)
    assert documents_of(tmp_path) == sorted(text.encode() for text in TEXTS.values())
    size = sum(len(text.encode()) for text in TEXTS.values())
    counted = [split["text"] for split in manifest.splits.values()]
    assert sum(count.bytes or 0 for count in counted) == size
    assert sum(count.tokens for count in counted) == size + len(TEXTS)  # one end of document each


def test_files_are_the_bytes_that_megatron_itself_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    documents = [np.arange(length) % 300 for length in (5, 1, 200)]
    theirs = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    with IndexedWriter(tmp_path / "ours", 300) as ours:
        for tokens in documents:
            theirs.add_document(torch.tensor(tokens), [len(tokens)])
            ours.add(tokens)
            ours.end_document()
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    read = IndexedDataset(str(tmp_path / "ours"))
    assert [list(read[index]) for index in range(3)] == [list(tokens) for tokens in documents]


def test_a_tokenised_data_set_is_a_source(text: Path) -> None:
    make(text)
    again = Data.model_validate(
        {"sources": [{"kind": "indexed", "prefix": str(text / "set" / "train")}], "validation_fraction": 0.3}
    )
    prepare(again, BytesTokenizer(), text / "again", Console(quiet=True))
    first = sorted(tokens.tobytes() for tokens in read_documents(text / "set" / "train"))
    second = [
        tokens.tobytes() for name in ("train", "validation-text") for tokens in read_documents(text / "again" / name)
    ]
    assert sorted(second) == first  # the end of document that is there is not written twice


def test_made_again_the_bytes_are_the_same(text: Path) -> None:
    tokenizer = BpeTokenizer(vocabulary_size=300)
    make(text, tokenizer=tokenizer)
    first = {path.name: path.read_bytes() for path in (text / "set").iterdir()}
    (text / "set").rename(text / "first")
    make(text, tokenizer=tokenizer)
    second = {path.name: path.read_bytes() for path in (text / "set").iterdir()}
    assert first == second
    assert {"manifest.json", "tokenizer.json", "train.bin", "train.idx"} <= set(first)


def test_the_split_follows_a_documents_name_alone(text: Path) -> None:
    def held_out(folder: Path) -> set[str]:
        table = pd.read_parquet(folder / "set" / "documents.parquet")
        return set(table.loc[table["split"] == "validation", "name"])

    make(text)
    before = held_out(text)
    (text / "set").rename(text / "first")
    (text / "text" / "one more.txt").write_text("another document")
    make(text)
    assert held_out(text) - {"one more.txt"} == before
    assert 2 <= len(before) <= 16  # 40 documents at 0.2


def test_named_documents_are_held_out_and_no_others(text: Path) -> None:
    make(text, {"held_out": ["document 7.txt", "document 1?.txt"]})
    table = pd.read_parquet(text / "set" / "documents.parquet")
    expected = {"document 7.txt", *(f"document {number}.txt" for number in range(10, 20))}
    assert set(table.loc[table["split"] == "validation", "name"]) == expected


def test_domains_come_from_the_source(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    lines = [{"body": text, "of": "prose" if index % 2 else "code"} for index, text in enumerate(TEXTS.values())]
    (tmp_path / "text" / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = make(tmp_path, {"text_key": "body", "domain_key": "of"}, held_out=0.4)
    assert {split: sorted(domains) for split, domains in manifest.splits.items()} == {
        "train": ["code", "prose"],
        "validation": ["code", "prose"],
    }


@functools.cache
def tokenizers_of_both_kinds() -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """Pairs of bytes, learned from a text, and bytes alone; made once for all examples."""
    learned = build_tokenizer(BpeTokenizer(vocabulary_size=260), iter(["the cat sat on the mat " * 50]))
    return learned, build_tokenizer(BytesTokenizer(), iter([]))


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_every_text_survives_tokenising(text: str) -> None:
    bpe, plain = tokenizers_of_both_kinds()
    for tokenizer in (bpe, plain):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert plain.encode(text, add_special_tokens=False).ids == list(text.encode())


def test_text_that_spells_the_end_of_a_document_is_plain_text(text: Path) -> None:
    spelt = "before <|end_of_document|> after"
    (text / "text" / "document 3.txt").write_text(spelt)
    make(text, {"held_out": ["document 3.txt"]})
    (tokens,) = read_documents(text / "set" / "validation-text")
    assert tokens.tolist() == [*spelt.encode(), END]


def test_text_that_spells_an_end_that_is_not_special_to_its_tokenizer_is_refused(text: Path) -> None:
    tokenizer = build_tokenizer(BytesTokenizer(), iter([]))
    tokenizer.add_tokens(["<eod>"])
    tokenizer.save(str(text / "tokenizer.json"))
    config = FileTokenizer(path=str(text / "tokenizer.json"), end_of_document="<eod>")
    make(text, tokenizer=config)
    (text / "text" / "document 3.txt").write_text("before <eod> after")
    shutil.rmtree(text / "set")
    with pytest.raises(OctavoError, match=r"document 3\.txt spells '<eod>'"):
        make(text, tokenizer=config)


def test_rows_of_a_query_that_are_no_documents_are_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "text.sqlite")) as database:
        database.execute("create table books (name text, pages int)")
        database.execute("insert into books values ('job', 42)")
        database.commit()
    archive = tmp_path / "text.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.write(tmp_path / "text.sqlite", "text.sqlite")
    source = PackageSource(
        package="text", version="1", archive="wheel", sha256="0" * 64, files=["text.sqlite"], domain="scripture",
        license="none", reader="sqlite", query="select name, pages from books",
    )  # fmt: skip
    with pytest.raises(OctavoError, match=r"gives a row of \(str, int\)"):
        list(read_package(source, archive))


def test_a_trained_tokenizer_can_be_used_by_path(text: Path) -> None:
    make(text, tokenizer=BpeTokenizer(vocabulary_size=300))
    (text / "set").rename(text / "first")
    by_path = FileTokenizer(path=str(text / "first" / "tokenizer.json"), end_of_document="<|endofdocument|>")
    token = json.loads((text / "first" / "tokenizer.json").read_text())["added_tokens"][0]["content"]
    make(text, tokenizer=by_path.model_copy(update={"end_of_document": token}))
    assert (text / "first" / "train.bin").read_bytes() == (text / "set" / "train.bin").read_bytes()


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """A 100 GiB source must not need more than 2 GiB: ten times the text may cost hardly any more memory."""
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from octavo.data.prepare import prepare; from octavo.experiment.config import *\n"
        "folder = Path(sys.argv[1])\n"
        "prepare(Data.model_validate({'sources': [{'kind': 'files', 'path': str(folder / 'text'),"
        " 'held_out': ['small.txt']}]}), BytesTokenizer(), folder / 'set', Console(quiet=True))\n"
        # not getrusage: its peak begins with that of the process that started this one
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for megabytes in (4, 40):
        folder = tmp_path / str(megabytes)
        (folder / "text").mkdir(parents=True)
        (folder / "text" / "small.txt").write_text("held out")
        (folder / "text" / "large.txt").write_text("sixteen letters\n" * (megabytes * 65536))  # one document
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 80, f"{peaks} MiB"


BROKEN: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "nothing there": (lambda folder: (folder / "text").rename(folder / "gone"), {}, "a source of text is missing"),
    "no text": (lambda folder: [path.unlink() for path in (folder / "text").iterdir()], {}, "holds no text"),
    "not UTF-8": (
        lambda folder: (folder / "text" / "document 3.txt").write_bytes(b"\xff\xfe\x00"), {}, "document 3.txt",
    ),
    "cut gzip": (
        lambda folder: (folder / "text" / "z.txt.gz").write_bytes(gzip.compress(b"text" * 999)[:-20]), {}, "z.txt.gz",
    ),
    "damaged gzip": (
        lambda folder: (folder / "text" / "z.txt.gz").write_bytes(gzip.compress(b"text")[:10] + b"\xff" * 20), {},
        "z.txt.gz",
    ),
    "cut compressed table": (
        lambda folder: (folder / "text" / "z.parquet.gz").write_bytes(gzip.compress(b"PAR1" * 99)[:-20]), {},
        "z.parquet.gz",
    ),
    "half a character": (
        lambda folder: (folder / "text" / "z.jsonl").write_text('{"text": "a"}\n{"text": "b\\ud83d"}\n'), {},
        "z.jsonl:2",
    ),
    "a number of 5,000 digits": (
        lambda folder: (folder / "text" / "z.jsonl").write_text('{"text": ' + "1" * 5000 + "}\n"), {}, "z.jsonl:1",
    ),
    "JSON in JSON in JSON": (
        lambda folder: (folder / "text" / "z.jsonl").write_text("[" * 100_000 + "\n"), {}, "z.jsonl:1",
    ),
    "bad JSON": (
        lambda folder: (folder / "text" / "z.jsonl").write_text('{"text": "a"}\n{"text": \n'), {}, "z.jsonl:2",
    ),
    "a line that fills memory": (
        lambda folder: (folder / "text" / "z.jsonl.gz").write_bytes(
            gzip.compress(b'{"text": "a"}\n{"text": "' + b"a" * (1 << 26), 1)
        ), {}, "z.jsonl.gz:2",
    ),
    "wrong key": (lambda folder: (folder / "text" / "z.jsonl").write_text('{"body": "a"}\n'), {}, "text_key"),
    "wrong column": (
        lambda folder: pd.DataFrame({"body": ["a"]}).to_parquet(folder / "text" / "z.parquet"), {}, "one of body",
    ),
    "cut table": (
        lambda folder: (folder / "text" / "z.parquet").write_bytes(b"PAR1 and no more"), {}, "z.parquet",
    ),
    "nothing held out": (lambda folder: None, {"held_out": []}, "no documents for validation"),
    "a misspelt pattern": (
        lambda folder: None, {"held_out": ["document 1?.txt", "dokument 7.txt"]}, "matches 'dokument 7.txt'",
    ),
    "everything held out": (lambda folder: None, {"held_out": ["*"]}, "no documents for train"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_bad_text_is_one_message_and_leaves_nothing(text: Path, name: str) -> None:
    spoil, keys, expected = BROKEN[name]
    spoil(text)
    before = {path for path in text.iterdir() if path.name != "set"}
    with pytest.raises(OctavoError) as caught:
        make(text, keys)
    assert expected in str(caught.value)
    assert set(text.iterdir()) == before, "nothing half-written is left"


def test_a_misspelt_pattern_of_a_packages_files_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "text.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("poems/sonnets.txt", "Shall I compare thee")
        wheel.writestr("poems/odes.txt", "O for a voice")
    source = PackageSource(
        package="text", version="1", archive="wheel", sha256="0" * 64, files=["poems/*", "!*/odes.txt"],
        domain="poetry", license="none",
    )  # fmt: skip
    assert [name for name, _ in read_package(source, archive)] == ["poems/sonnets.txt"]
    misspelt = source.model_copy(update={"files": ["poems/*", "!*/oddes.txt"]})
    with pytest.raises(OctavoError, match=r"no file of text 1 matches '\*/oddes\.txt'"):
        list(read_package(misspelt, archive))


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "big", 70_000) as writer:
        writer.add(np.array([1, 69_999]))
        writer.end_document()
    data = Data.model_validate({"sources": [{"kind": "indexed", "prefix": str(tmp_path / "big")}]})
    with pytest.raises(OctavoError, match="token 69999, the tokenizer 257"):
        prepare(data, BytesTokenizer(), tmp_path / "set", Console(quiet=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]),
        lambda path: path.unlink(),
    ],
    ids=["cut short", "changed", "missing"],
)
def test_a_data_set_that_differs_from_its_manifest_is_refused(text: Path, spoil: Callable[[Path], object]) -> None:
    manifest = make(text)
    check_files(text / "set", manifest)
    spoil(text / "set" / "train.bin")
    with pytest.raises(OctavoError, match=r"does not match its manifest: train\.bin"):
        make(text)


def test_sizes_alone_are_compared_where_another_process_compares_hashes(text: Path) -> None:
    manifest, path = make(text), text / "set" / "train.bin"
    content = path.read_bytes()
    path.write_bytes(b"\0" + content[1:])
    check_files(text / "set", manifest, hashes=False)
    path.write_bytes(content[:-2])
    with pytest.raises(OctavoError, match=r"train\.bin is .* bytes instead of"):
        check_files(text / "set", manifest, hashes=False)


def test_validation_sequences_are_held_out_tokens_in_order_that_do_not_overlap(text: Path) -> None:
    pytest.importorskip("torch")
    from octavo.data.sampling import open_dataset

    make(text)
    tokens = np.concatenate(list(read_documents(text / "set" / "validation-text")))
    whole = (len(tokens) - 1) // 50
    found = open_dataset(text / "set").validation_sequences(50, whole)
    assert [domain for domain, _ in found] == ["text"] * whole
    for number, (_, sequence) in enumerate(found):
        assert sequence.tolist() == tokens[number * 50 : number * 50 + 51].tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: (text / "document 3.txt").write_text("other words"), "document 3.txt has SHA-256"),
        (lambda text: (text / "document 3.txt").unlink(), "document 3.txt is gone"),
        (lambda text: (text / "one more.txt").write_text("words"), "one more.txt is new"),
    ],
    ids=["changed", "gone", "new"],
)
def test_text_that_is_not_what_the_data_set_was_made_of(
    text: Path, change: Callable[[Path], object], named: str
) -> None:
    make(text)
    make(text)  # there already, and of this text
    change(text / "text")
    with pytest.raises(OctavoError) as caught:
        make(text)
    assert named in str(caught.value)
    assert f"remove {text / 'set'} and make it again" in str(caught.value)


def test_files_of_one_name_in_two_folders_both_count(text: Path) -> None:
    for folder in ("a", "b"):
        (text / "text" / folder).mkdir()
        (text / "text" / folder / "same.txt").write_text(folder)
    make(text)
    (text / "text" / "a" / "same.txt").write_text("changed")
    with pytest.raises(OctavoError, match=r"a/same\.txt has SHA-256"):
        make(text)


def test_a_tokenizer_that_is_not_the_one_the_data_set_was_made_with(text: Path) -> None:
    make(text, tokenizer=BpeTokenizer(vocabulary_size=300))
    (text / "set").rename(text / "first")
    path = text / "first" / "tokenizer.json"
    by_path = FileTokenizer(path=str(path), end_of_document="<|end_of_document|>")
    make(text, tokenizer=by_path)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(OctavoError, match=r"the tokenizer tokenizer\.json has SHA-256"):
        make(text, tokenizer=by_path)


def test_a_look_reads_only_text_that_is_newer_than_the_data_set(text: Path) -> None:
    make(text)
    data = Data.model_validate({"sources": [{"kind": "files", "path": str(text / "text")}]})
    later, changed = (text / "set" / "manifest.json").stat().st_mtime + 1, text / "text" / "document 3.txt"
    changed.write_text("other words")
    os.utime(changed, (1, 1))
    check_newer_sources(data, BytesTokenizer(), text / "set")
    os.utime(changed, (later, later))
    with pytest.raises(OctavoError, match=r"document 3\.txt has SHA-256"):
        check_newer_sources(data, BytesTokenizer(), text / "set")


def test_errors_name_the_key_of_the_experiment(text: Path) -> None:
    (text / "text" / "z.jsonl").write_text('{"body": "a"}\n')
    data = Data.model_validate({"sources": [{"kind": "files", "path": str(text / "text")}]})

    def place(*keys: str | int) -> str:
        return f"small.yaml:7 {keys}"

    with pytest.raises(OctavoError) as caught:
        prepare(data, BytesTokenizer(), text / "set", Console(quiet=True), place)
    assert caught.value.where == f"{text / 'text' / 'z.jsonl'}:1"
    assert caught.value.asked_by == "small.yaml:7 ('data', 'sources', 0)"


def test_a_data_set_of_as_many_documents_as_are_noted_at_a_time(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.data.prepare.DOCUMENT_ROWS", len(TEXTS) // 2)
    make(text)
    assert len(pd.read_parquet(text / "set" / "documents.parquet")) == len(TEXTS)


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from octavo.data import prepare
from octavo.experiment.config import BpeTokenizer, Data

keep, times = prepare._Preparation._keep, []
def keep_and_die(self, *arguments):
    keep(self, *arguments)
    times.append(1)
    if len(times) == 3:
        next(iter(arguments[2].values())).add([1, 2, 3])  # what the end came upon
        os.kill(os.getpid(), signal.SIGKILL)

prepare.KEPT_TOKENS, prepare._Preparation._keep = 300, keep_and_die
folder = Path(sys.argv[1])
data = Data.model_validate_json(sys.argv[2])
prepare.prepare(data, BpeTokenizer.model_validate_json(sys.argv[3]), folder / "set", Console(quiet=True))
"""


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_preparation_is_gone_on_from_if_its_text_is_the_same(
    text: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """The bytes are those of one that was never killed, and nothing is left of it."""
    (text / "text" / "more.jsonl").write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(99)))
    sources = [{"kind": "files", "path": str(text / "text")}]
    data = Data.model_validate({"sources": sources, "validation_fraction": 0.3})
    tokenizer = BpeTokenizer.model_validate({"kind": "bpe", "vocabulary_size": 300})
    arguments = [str(text), data.model_dump_json(), tokenizer.model_dump_json()]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (text / ".set.partial" / "kept.json").exists()
    if changed:
        (text / "text" / "document 3.txt").write_text("another text\n" * 50)
    read: list[str] = []
    encode = prepare_module._encode
    monkeypatch.setattr(
        prepare_module, "_encode", lambda batch, by: read.extend(d.name for d, *_ in batch) or encode(batch, by)
    )
    resumed = prepare(data, tokenizer, text / "set", Console(quiet=True))
    assert (len(read) < resumed.sources[0].documents) == (not changed)
    whole = prepare(data, tokenizer, text / "whole", Console(quiet=True))
    for name in whole.files:
        assert (text / "set" / name).read_bytes() == (text / "whole" / name).read_bytes(), name
    assert resumed.files.keys() == whole.files.keys()
    assert not list(text.glob(".set.*/")), "nothing is left beside it"


def test_hashes_are_made_once_until_a_file_is_written_to(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make(text)
    folder, hashed = text / "set", []
    hashes = manifest_module.sha256
    monkeypatch.setattr(manifest_module, "sha256", lambda path: hashed.append(path.name) or hashes(path))
    check_files_once(folder, manifest)
    assert manifest.files.keys() <= set(hashed)
    hashed.clear()
    check_files_once(folder, manifest)
    assert hashed == ["manifest.json"]
    path = folder / "train.bin"
    seen = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # its time can be put back, its ctime cannot
    for _ in range(2):
        with pytest.raises(OctavoError, match=r"train\.bin is other bytes"):
            check_files_once(folder, manifest)


def test_progress_is_shown(text: Path) -> None:
    out = io.StringIO()
    source = {"kind": "files", "path": str(text / "text")}
    data = Data.model_validate({"sources": [source], "validation_fraction": 0.2})
    prepare(data, BytesTokenizer(), text / "set", Console(file=out, force_terminal=True))
    assert "tokens" in out.getvalue()
