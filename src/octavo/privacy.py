"""What leaves no machine: paths of homes, and the values of secrets.

Errors are written into the books of a run, and the books into bundles. They are cleaned where they are written
(`redact`); whatever is packed is looked through all the same (`leak`).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from octavo.errors import OctavoError
from octavo.layout import repository

HOME = re.compile(r"(?:/home|/Users)/[^/\s\"'<>(){}\[\]|:;,*?\\]+(?=/)|(?<![\w.~])/root(?=/)")
"""The home of anybody."""

SECRET = re.compile(
    r"\b([A-Z][A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)[A-Z0-9_]*)(\s*=\s*)(?!\.\.\.)\S+"
)
"""A variable that is named like a secret, with its value, unless that is cleaned already."""


def redact(text: str) -> str:
    """The text with homes as `~`, paths in the checkout relative to it, and no secret's value."""
    for place in _own_places():
        text = text.replace(f"{place}/", "" if place == _checkout() else "~/")
    return SECRET.sub(r"\1\2...", HOME.sub("~", text))


def leak(text: str) -> str | None:
    """What of a text must not leave the machine; None where there is nothing."""
    for place in _own_places():
        if f"{place}/" in text:
            return f"a place of this machine: {place}"
    if found := HOME.search(text):
        return f"somebody's home folder: {found.group()}"
    if found := SECRET.search(text):
        return f"the value of {found.group(1)}"
    return None


def _own_places() -> list[str]:
    """The checkout and the home folder, the longest first."""
    places = {_checkout(), str(Path.home()), os.environ.get("HOME", "")}
    return sorted((place.rstrip("/") for place in places if place.rstrip("/")), key=len, reverse=True)


def _checkout() -> str:
    with suppress(OctavoError):
        return str(repository())
    return ""
