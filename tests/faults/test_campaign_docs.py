"""The table in the docs is what the campaign tries."""

from __future__ import annotations

import re

from campaign import FAULTS, KILLS

from tests.tiny import REPOSITORY


def test_the_docs_list_every_fault_as_often_as_it_is_tried() -> None:
    text = (REPOSITORY / "docs/verification.md").read_text().partition("## Fault injection")[2]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|(?:.*\|)?$", text, re.MULTILINE)
    listed = {fault: (int(tried), int(survived)) for fault, tried, survived in rows}
    expected = {fault: (tries, tries) for fault, tries in FAULTS.items()}
    total = sum(FAULTS.values())
    assert listed == {**expected, "all": (total, total)}


def test_there_are_fifty_points_of_killing() -> None:
    assert sum(KILLS.values()) >= 50
