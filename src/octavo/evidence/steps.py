"""`steps.parquet`, run by run: a table of any size is never in memory whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from octavo.layout import ExperimentFolder
from octavo.records import read_table, reading_table

if TYPE_CHECKING:
    import pyarrow as pa


def steps_by_run(tables: ExperimentFolder, columns: list[str]) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """(cell, seed) and its steps' columns, run by run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read_table(tables.steps_table, "steps", made_by=f"octavo aggregate {tables.path}", columns=[])  # its version
    rest: pa.Table | None = None
    made_by = f"octavo aggregate {tables.path}"
    with (
        reading_table(tables.steps_table, made_by=made_by),
        pq.ParquetFile(tables.steps_table, read_dictionary=["cell"], page_checksum_verification=True) as file,
    ):
        for group in range(file.num_row_groups):
            part = file.read_row_group(group, columns=["cell", "seed", *columns])
            part = pa.concat_tables([rest, part]).unify_dictionaries() if rest is not None else part
            runs = list(_runs_of(part))
            for start, end in runs[:-1]:
                yield _run_of(part, start, end)
            rest = part.slice(runs[-1][0]) if runs else None
    if rest is not None and rest.num_rows:
        yield _run_of(rest, 0, rest.num_rows)


def _runs_of(table: pa.Table) -> Iterator[tuple[int, int]]:
    """Where runs begin and end: neighbouring rows of one cell and seed."""
    if not table.num_rows:
        return
    cell = table["cell"].combine_chunks().indices.to_numpy()
    seed = table["seed"].to_numpy()
    begins = np.flatnonzero(np.r_[True, (np.diff(cell) != 0) | (np.diff(seed) != 0)])
    yield from zip(begins.tolist(), [*begins[1:].tolist(), table.num_rows], strict=True)


def _run_of(table: pa.Table, start: int, end: int) -> tuple[tuple[str, int], pa.Table]:
    part = table.slice(start, end - start)
    return (part["cell"][0].as_py(), part["seed"][0].as_py()), part


def floats(table: pa.Table, column: str) -> np.ndarray:
    """A column as floats, null as NaN."""
    return table[column].to_pandas().to_numpy(dtype=float, na_value=np.nan)
