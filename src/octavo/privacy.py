"""What leaves no machine: paths of homes, values of secrets, and names of computers.

Errors are written into the attempts of a run, and the attempts into bundles. They are cleaned where they are written
(`redact`); whatever is packed is looked through all the same (`leak`), and computers are given other names (`Labels`).
A secret is found by the name that it has (`HF_TOKEN=...`) or by its own form (`hf_...`).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from octavo.errors import OctavoError
from octavo.layout import repository

CLEANED = "..."
"""Stands where a secret was."""

HOME = re.compile(
    r"(?<![\w.:/~-])(?:/[\w.-]{1,64}){0,6}/(?:home|homes|[Uu]sers)/[\w.@+-]+"
    r"|\b[A-Za-z]:\\{1,2}Users\\{1,2}[\w.@+-]+"
    r"|(?<![\w.:/~-])/root(?![\w.-])"
)
"""The home of anybody, below whatever file system: /home/x, /Users/x, /gpfs/users/x, C:\\Users\\x, /root."""

_NAMED = (
    r"(?:secret|passw(?:or)?d|passphrase|pwd|credentials?|api[_-]?key|access[_-]?key|private[_-]?key|_pass)(?![a-z])"
)
_TOKEN = r"(?<!per[_ -])token(?![a-z])"
_GIVEN = r"(?:[_-]?(?:[0-9]{1,3}|key|value|secret|base64))?[\"']?\s{0,3}[=:]\s{0,3}[\"']?"
"""NAME=x, name: x, {"name": "x"}, --name=x."""
_VALUE = r"((?!null\b|none\b|true\b|false\b)[^\s\"',;{}\[\]()<>&]+)"
_NO_NUMBER = r"(?!-?[0-9][0-9.e+-]*(?![\w/+=-]))"
"""Where a token is one of text, its value is a number."""
_VARIABLE = "the value of a variable that is named like a secret"
_PASSWORD = "a password in an address"
SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # what it is, and how it looks: the group is the secret
    (_VARIABLE, re.compile(_NAMED + _GIVEN + _VALUE, re.IGNORECASE)),
    (_VARIABLE, re.compile(_TOKEN + _GIVEN + _NO_NUMBER + _VALUE, re.IGNORECASE)),
    (_PASSWORD, re.compile(r"://[^\s/:@\"'<>]{0,64}:([^\s/@\"'<>]{1,256})@")),
    (_PASSWORD, re.compile(r"(?<![\w/:.@-])[A-Za-z][\w.+-]{0,63}:([^\s:@/\"'<>,]{1,128})@[A-Za-z]")),
    ("a bearer's token", re.compile(r"\bbearer\s{1,3}([\w.~+/=-]{8,})", re.IGNORECASE)),
    (
        "an authorisation",
        re.compile(r"\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:\w+\s{1,3})?+([\w.~+/=-]{3,})", re.IGNORECASE),
    ),
    (
        "a token of a known form",
        re.compile(
            r"(?<![A-Za-z0-9_-])(hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|xox[abeoprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}"
            r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
    ),
    ("a private key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----((?:(?!-----END)[\s\S]){1,10000})")),
)


def redact(text: str) -> str:
    """The text with homes as `~`, paths in the checkout relative to it, and no secret's value."""
    for place in _own_places():
        text = text.replace(f"{place}/", "" if place == _checkout() else "~/")
    text = HOME.sub("~", text)
    for _, pattern in SECRETS:
        text = pattern.sub(_without_value, text)
    return text


def leak(text: str) -> str | None:
    """What of a text must not leave the machine; None where there is nothing."""
    if found := own_path(text):
        return found
    for what, pattern in SECRETS:
        for found in pattern.finditer(text):
            if found.group(1) != CLEANED:
                name = re.search(r"[\w-]*$", text[max(0, found.start() - 64) : found.start()])
                return f"{what}: {name.group() if name else ''}{text[found.start() : found.start(1)]}{CLEANED}"
    return None


def own_path(text: str) -> str | None:
    """A path of this machine or of anybody's home; all that can be looked for in what is no text."""
    for place in _own_places():
        if f"{place}/" in text:
            return f"a place of this machine: {place}"
    if found := HOME.search(text):
        return f"somebody's home folder: {found.group()}"
    return None


class Labels:
    """Names of computers -> `node-1`, `node-2`, ... in the order in which they are first met."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}

    def of(self, nodes: str) -> str:
        """The labels of a list of computers, as Slurm (`gpu[03-06],login1`) or anybody writes it."""
        return ",".join(self._labels.setdefault(name, f"node-{len(self._labels) + 1}") for name in expand(nodes))

    def within(self, text: str) -> str:
        """A text in which the computers that were met have their labels."""
        for name in sorted(self._labels, key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", self._labels[name], text)
        return text


def expand(nodes: str) -> list[str]:
    """Slurm's list of hosts, one by one: gpu[03-04,7]x,b -> gpu03x, gpu04x, gpu7x, b. At most 10,000 of a range."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes):
        match = re.fullmatch(r"([^\[\]]*)\[([0-9,-]+)\](.*)", part)
        if match is None:
            names.append(part)
            continue
        for numbers in match[2].split(","):
            first, _, last = numbers.partition("-")
            if not first.isdigit() or (last and not last.isdigit()) or int(last or first) - int(first) >= 10_000:
                return [nodes]
            inner = [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
            names += [name for number in inner for name in expand(f"{match[1]}{number}{match[3]}")]
    return names


def _without_value(match: re.Match[str]) -> str:
    start, end = match.start(1) - match.start(), match.end(1) - match.start()
    return f"{match.group()[:start]}{CLEANED}{match.group()[end:]}"


def _own_places() -> list[str]:
    """The checkout and the home folder, the longest first."""
    places = {_checkout(), str(Path.home()), os.environ.get("HOME", "")}
    return sorted((place.rstrip("/") for place in places if place.rstrip("/")), key=len, reverse=True)


def _checkout() -> str:
    with suppress(OctavoError):
        return str(repository())
    return ""
