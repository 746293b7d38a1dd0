"""Damaged and hostile versions of a file, each a function of its number alone."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**18), 1e300, -1e-300, float("inf"), float("nan"), "", "0", "null",
    "x" * 300, "x" * 100_000, "../" * 20 + "etc/passwd", "/dev/zero", "/dev/stdin", ".", "2001-99-99", "\x1b[2J",
    "a\nb", [], {}, [[]], [None], {"": None}, {"a": {"b": {}}}, [1, "a"], "bf16", "fp8_blockwise", "<script>",
    "{{ x }}", "%s%n",
)  # fmt: skip
"""What stands in the place of a value."""

HOSTILE_YAML = (
    "2001-99-99", "!!int abc", "!!float x", "!!timestamp 1", "!!binary x", "!!python/object/apply:os.getcwd []", "0x_",
    "1:99:99", "9" * 5000, "-" + "9" * 25, "1e999", ".nan", "-.inf", "*a", "&a [*a]", "? [a, b]\n: c", "{a: {b: 1}}",
    "[" * 2000, "{a: " * 2000, "- " * 500, "'", '"\\0"', '"\\ud800"', "|\n x", "<<: {a: 1}", "=", "~", "!", "!<x> 1",
    "&a [1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c]",
    "\t", "---", "...", "%YAML 9", "# ", "x" * 300, "on", "1_0_0", "0o9", "+", "..",
)  # fmt: skip
HOSTILE_JSON = (
    "null", "[]", "{}", "1", '"x"', "NaN", "Infinity", "-1e999", "9" * 5000, "[" * 100_000, '{"a":' * 10_000, "true",
    '"\\ud800"', '"\x00"', "1e400", "-0", '{"step": null}', '{"step": -1}', '{"step": 1e18}', "}{", "\\", "\ufeff{}",
)  # fmt: skip
HOSTILE_LOG = (
    "nan", "-inf", "9" * 400, "1e999", "-1", "0", "iteration 99999999999999999999/ 1 |", "\x1b[31m", "\r", "|" * 500,
    " iteration       10/      30 |", "step: 10  loss: nan", "lm loss: |", ",,,,", '"', "x" * 50_000, "-", ":::", "%",
)  # fmt: skip


def mutant_of_text(content: bytes, dice: random.Random, hostile: tuple[str, ...]) -> bytes:
    """Another text: one to three bytes, words, lines or pieces of it are other ones."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        content = dice.choice(TEXT_CHANGES)(content, dice, hostile)
    return content


def mutant_of_value(value: Any, dice: random.Random) -> Any:
    """A copy of a JSON value in which something is another thing, missing, there twice or under another name."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return dice.choice(HOSTILE_VALUES)
    held, key = dice.choice(places)
    change = dice.randrange(5)
    if change == 0:
        del held[key]
    elif change == 1 and isinstance(held, dict):
        held[f"{key}{dice.choice(('x', '.', ' ', '-', chr(0x1B)))}"] = held.pop(key)
    elif change == 2 and isinstance(held, list):
        held.insert(key, copy.deepcopy(held[key]))
    elif change == 3:
        held[key] = copy.deepcopy(dice.choice(places)[0])
    else:
        held[key] = copy.deepcopy(dice.choice(HOSTILE_VALUES))
    return value


def mutant_of_yaml(content: bytes, dice: random.Random) -> bytes:
    """Of a YAML file, as text or as a value."""
    if dice.random() < 0.5:
        return mutant_of_text(content, dice, HOSTILE_YAML)
    return yaml.safe_dump(mutant_of_value(yaml.safe_load(content), dice), sort_keys=False).encode("utf-8", "replace")


def mutant_of_log(content: bytes, dice: random.Random) -> bytes:
    """Of a log or a table as text."""
    return mutant_of_text(content, dice, HOSTILE_LOG)


def mutant_of_json(content: bytes, dice: random.Random) -> bytes:
    """Of a JSON file, or of one line of several."""
    if dice.random() < 0.5:
        return mutant_of_text(content, dice, HOSTILE_JSON)
    lines = content.splitlines() if content.count(b"\n") > 1 and not content.startswith(b"{\n") else [content]
    number = dice.randrange(len(lines))
    lines[number] = json.dumps(mutant_of_value(json.loads(lines[number]), dice)).encode()
    return b"\n".join(lines) + b"\n"


def mutant_of_bytes(content: bytes, dice: random.Random) -> bytes:
    """Of a binary file: bytes and pieces of it."""
    for _ in range(dice.choice((1, 1, 2, 5))):
        content = dice.choice((_flip, _cut, _twice, _truncate, _noise))(content, dice, ())
    return content


def mutant_of_zip(content: bytes, dice: random.Random) -> bytes:
    """Of an archive: its bytes, or its members, whose metadata is made to fit."""
    if dice.random() < 0.4:
        return mutant_of_bytes(content, dice)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        files = {member.filename: packed.read(member) for member in packed.infolist()}
    metadata = "ro-crate-metadata.json"
    name = dice.choice(sorted(files))
    change = dice.randrange(5)
    if change == 0:
        files[name] = mutant_of_bytes(files[name], dice)
    elif change == 1:
        files[dice.choice(HOSTILE_NAMES)] = files[name]
    elif change == 2:
        files.pop(name)
    elif change == 3:
        files[metadata] = mutant_of_json(files[metadata], dice)
    else:
        files[name[: dice.randrange(1, len(name))] + dice.choice(("", "/", "x", "\x1b", "/../x"))] = files.pop(name)
    if metadata in files and change != 3:
        value = json.loads(files[metadata])
        kept = [one for one in value["@graph"] if "sha256" not in one]
        fitting = [{"@id": name, "sha256": "0", "contentSize": str(len(files[name]))} for name in files]
        files[metadata] = json.dumps({**value, "@graph": kept + fitting}).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
        for name, held in files.items():
            packed.writestr(zipfile.ZipInfo(name), held)
    return target.getvalue()


HOSTILE_NAMES = (
    "octavo/__init__.py", "sitecustomize.py", "json.py", "evil.pth", "conftest.py", "../x", "/x", "a/" * 500 + "x", "",
    "x" * 400, "results/synthetic/figures/x.py", "results/other/runs.parquet", "con\x00trol", "\x1b[2J", "results/",
    "results/synthetic/runs.parquet/x.json", "configs/experiments/.yaml", "Snakefile/x", "ро.yaml",
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (mapping or list, key) of a value."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found


def _flip(content: bytes, dice: random.Random, _: object) -> bytes:
    if not content:
        return b"\0"
    at = dice.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << dice.randrange(8))]) + content[at + 1 :]


def _piece(content: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(content) + 1)
    return start, min(len(content), start + dice.choice((1, 4, 30, 1000)))


def _cut(content: bytes, dice: random.Random, _: object) -> bytes:
    start, end = _piece(content, dice)
    return content[:start] + content[end:]


def _twice(content: bytes, dice: random.Random, _: object) -> bytes:
    start, end = _piece(content, dice)
    return content[:end] + content[start:]


def _truncate(content: bytes, dice: random.Random, _: object) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


def _noise(content: bytes, dice: random.Random, _: object) -> bytes:
    start, end = _piece(content, dice)
    return content[:start] + dice.randbytes(dice.choice((1, 8, 100))) + content[end:]


def _word(content: bytes, dice: random.Random, hostile: tuple[str, ...]) -> bytes:
    """Something hostile in the place of what stands between two spaces or other marks."""
    words = content.replace(b":", b" ").replace(b",", b" ").split()
    if not words:
        return dice.choice(hostile).encode("utf-8", "replace")
    word = dice.choice(words)
    at = content.find(word, dice.randrange(len(content)))
    at = at if at >= 0 else content.find(word)
    return content[:at] + dice.choice(hostile).encode("utf-8", "replace") + content[at + len(word) :]


def _line(content: bytes, dice: random.Random, hostile: tuple[str, ...]) -> bytes:
    lines = content.split(b"\n")
    at = dice.randrange(len(lines))
    change = dice.randrange(4)
    if change == 0:
        lines[at] = dice.choice(hostile).encode("utf-8", "replace")
    elif change == 1:
        lines.insert(at, dice.choice(lines))
    elif change == 2:
        lines.pop(at)
    else:
        dice.shuffle(lines)
    return b"\n".join(lines)


TEXT_CHANGES: tuple[Callable[[bytes, random.Random, tuple[str, ...]], bytes], ...] = (
    _flip, _cut, _twice, _truncate, _noise, _word, _word, _word, _line, _line,
)  # fmt: skip
