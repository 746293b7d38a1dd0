"""plan.csv and plan.pdf: the plan as files. The page is typeset by Typst from `templates/plan.typ`; the data go in
as JSON, never as markup, and the PDF carries a fixed time, so that equal plans are equal files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from octavo.files import atomic_path
from octavo.layout import TEMPLATES, ExperimentFolder

if TYPE_CHECKING:
    import pandas as pd

TIMESTAMP = datetime(2024, 1, 1, tzinfo=UTC)
"""The creation time that the PDF carries, whenever it is made."""


def write_plan(folder: ExperimentFolder, frame: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write plan.csv and plan.pdf."""
    document = typeset(record)
    with atomic_path(folder.plan_csv) as temporary:
        frame.to_csv(temporary, index=False)
    with atomic_path(folder.plan_pdf) as temporary:
        temporary.write_bytes(document)


def typeset(record: dict[str, Any]) -> bytes:
    """The plan as PDF, from a value of `octavo.forecast.plan.plan_record`."""
    import typst

    return typst.compile(
        str(TEMPLATES / "plan.typ"),
        sys_inputs={"plan": json.dumps(record)},
        timestamp=TIMESTAMP,
        ignore_system_fonts=True,
    )
