"""What was expected and what was found, as one record."""

from __future__ import annotations

import math

from octavo.records import AcceptanceCheck, AcceptanceVerdict


def check(
    part: str,
    name: str,
    expected: str,
    source: str,
    found: str,
    verdict: AcceptanceVerdict,
    short_by: float | None = None,
) -> AcceptanceCheck:
    """A check with its verdict. `short_by`: share of a figure's bar that is missing; left out where infinite."""
    short = short_by if short_by is not None and math.isfinite(short_by) else None
    return AcceptanceCheck(
        part=part, name=name, expected=expected, source=source, found=found, verdict=verdict, short_by=short
    )


def at_least(
    part: str, name: str, expected: str, source: str, found: str, value: float, least: float
) -> AcceptanceCheck:
    """A check of a figure that is to reach `least`."""
    if value >= least:
        return check(part, name, expected, source, found, "passed")
    return check(part, name, expected, source, found, "fell short", 1 - value / least)
