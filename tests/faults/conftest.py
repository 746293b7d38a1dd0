"""The fault campaign of a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from campaign import EXPERIMENT, Campaign, Forge

from tests.tiny import Checkout


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """The session's campaign; its table is printed at the end."""
    place = tmp_path_factory.mktemp("faults")
    (place / "root").mkdir()
    root = Checkout(place / "root", EXPERIMENT).root
    forge = Forge(root, place)
    one = Campaign(root, forge)
    try:
        one.prepare()
        yield one
    finally:
        forge.server.terminate()
        _TABLE.update(one.table)


_TABLE: dict[str, list[int]] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults tried and survived."""
    if not _TABLE:
        return
    total = [sum(row[part] for row in _TABLE.values()) for part in (0, 1)]
    rows = [f"| {fault} | {tried} | {survived} |" for fault, (tried, survived) in [*_TABLE.items(), ("all", total)]]
    terminalreporter.write_line("\n".join(["", "| fault | tried | survived |", "|---|---|---|", *rows]))
