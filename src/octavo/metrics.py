"""`metrics.jsonl` by column: what is worked out of all steps of a run takes time and memory for the columns it needs.

A file of a million steps is 400 MB. It is read a block at a time, and of a block only the columns that are asked for:
by a compiled reader of what the trainer writes (cpu/lines.c), and by pyarrow where that was not compiled or there is
anything else in the block, with the same table as the result.
`octavo.records` has what a line is, which lines count, and the lines of a file from its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from octavo.cpu.library import COMPILED
from octavo.errors import OctavoError
from octavo.files import open_plain
from octavo.records import MetricsRecord, added, lines_that_count, mean_final_loss, read_lines

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1 << 24
"""Bytes of a file that are read at a time, or one line if that is longer."""

NUMBERS = (
    "loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second", "model_tflops",
    "validation_loss", "validation_bits_per_byte",
)  # fmt: skip
FP8 = {
    "fp8_underflow": ("input", "weight", "gradient"),
    "fp8_overflow": ("input", "weight", "gradient"),
    "fp8_amax": ("input", "weight", "gradient"),
    "fp8_product_error": ("forward", "input_gradient", "weight_gradient"),
}

_COUNTS = {"step", "tokens", "attempt"}
"""Every line has them, from 0."""


@cache
def metrics_schema() -> pa.Schema:
    """The columns of `metrics.jsonl` that may be asked for."""
    import pyarrow as pa

    fractions = {name: pa.struct([(part, pa.float64()) for part in parts]) for name, parts in FP8.items()}
    return pa.schema(
        [
            *((name, pa.int64()) for name in ("step", "tokens", "attempt", "memory_bytes")),
            *((name, pa.float64()) for name in ("time", *NUMBERS)),
            *fractions.items(),
            ("expert_load", pa.list_(pa.list_(pa.float32()))),
        ]
    )


def metrics_blocks(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The lines of `metrics.jsonl` in the order they were written, many at a time; a torn last line is left out.

    `columns`: those that are named, with `step` and `attempt`; None: all. At least one table comes, if an empty one.
    Raises OctavoError that names the line where the file is damaged.
    """
    import pyarrow as pa

    schema = metrics_schema()
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in dict.fromkeys(("step", "attempt", *columns))])
    found = False
    for content in _blocks(path):
        found = True
        yield _parsed(content, schema, path)
    if not found:
        yield schema.empty_table()


def _blocks(path: Path) -> Iterator[bytes]:
    """A file's whole lines, many at a time."""
    with suppress(FileNotFoundError), open_plain(path) as file:
        begun = b""
        while read := file.read(BLOCK):
            whole = read.rfind(b"\n") + 1
            if whole:
                yield begun + read[:whole]
            begun = read[whole:] if whole else begun + read


def _parsed(content: bytes, schema: pa.Schema, path: Path) -> pa.Table:
    """Whole lines as a table."""
    plain = _parsed_plain(content, schema)
    return _parsed_whatever(content, schema, path) if plain is None else plain


_INTEGER, _NUMBER, _PARTS, _PART, _LOADS = range(5)
"""Kinds of fields in cpu/lines.c."""


@cache
def _fields(asked: tuple[str, ...]) -> tuple[bytes, np.ndarray, dict[str, int]]:
    """What cpu/lines.c must know: names, (start, length, kind, column or -1) of each, and the columns by name."""
    names, rows, columns = b"", [], 0
    place: dict[str, int] = {}
    for field in metrics_schema():
        if field.name in asked:
            place[field.name] = columns
        for name, kind in [(field.name, _kind(field)), *((part, _PART) for part in FP8.get(field.name, ()))]:
            rows.append((len(names), len(name), kind, columns if field.name in asked else -1))
            names, columns = names + name.encode(), columns + (field.name in asked)
    return names, np.array(rows, dtype=np.int32), place


def _kind(field: pa.Field) -> int:
    named = {"int64": _INTEGER, "double": _NUMBER}
    return _PARTS if field.name in FP8 else named.get(str(field.type), _LOADS)


def _parsed_plain(content: bytes, schema: pa.Schema) -> pa.Table | None:
    """`_parsed`; None where it is not compiled or the lines are not as the trainer writes them."""
    import pyarrow as pa

    if COMPILED is None:
        return None
    names, fields, place = _fields(tuple(schema.names))
    shape = sum(1 for column in fields[:, 3] if column >= 0), content.count(b"\n")
    cells, valid = np.empty(shape, np.uint64), np.zeros(shape, bool)
    # of the last two no more is touched than is filled
    outer, inner, loads = (
        np.empty(size, kind)
        for size, kind in (
            (shape[1] + 1, np.int32),
            (len(content) // 2 + 1, np.int32),
            (len(content) // 2 + 1, np.float32),
        )
    )
    table, *room = (one.ctypes.data for one in (fields, cells, valid, outer, inner, loads))
    found = COMPILED.octavo_read_lines(content, len(content), shape[1], names, table, len(fields), *room)
    if found < 0 or not all(valid[place[name]].all() for name in _COUNTS & place.keys()):
        return None

    def bits(column: int) -> pa.Buffer | None:
        return None if valid[column].all() else pa.py_buffer(np.packbits(valid[column], bitorder="little"))

    def array(kind: pa.DataType, column: int) -> pa.Array:
        if pa.types.is_struct(kind):
            parts = [array(part.type, column + 1 + index) for index, part in enumerate(kind)]
            return pa.Array.from_buffers(kind, shape[1], [bits(column)], children=parts)
        if pa.types.is_list(kind):
            values = pa.array(loads[:found].copy())
            ends = pa.py_buffer(inner[: outer[-1] + 1].copy())
            rows = pa.Array.from_buffers(kind.value_type, int(outer[-1]), [None, ends], children=[values])
            return pa.Array.from_buffers(kind, shape[1], [bits(column), pa.py_buffer(outer)], children=[rows])
        return pa.Array.from_buffers(kind, shape[1], [bits(column), pa.py_buffer(cells[column])])

    return pa.table([array(field.type, place[field.name]) for field in schema], schema=schema)


def _parsed_whatever(content: bytes, schema: pa.Schema, path: Path) -> pa.Table:
    """`_parsed` of any lines. Raises OctavoError that names the one that is damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json as pj

    if not content.startswith(b"{") or b"NaN" in content or b"Inf" in content:
        # pyarrow crashes where the first line is null, and takes numbers that JSON has not
        read_lines(path, MetricsRecord)  # names the line
    try:
        table = pj.read_json(
            pa.BufferReader(content),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(content)),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        if table.num_rows != content.count(b"\n"):
            raise pa.ArrowInvalid("a line is blank, or holds more than one value")
        for name in _COUNTS & set(schema.names):
            if table[name].null_count or pc.min(table[name]).as_py() < 0:
                raise pa.ArrowInvalid(f"a line lacks its {name}, or it is less than 0")
    except pa.ArrowInvalid as error:
        read_lines(path, MetricsRecord)  # names the line
        raise OctavoError(f"the file cannot be read: {error}", where=path, fix="train the run again") from error
    return table


def read_metrics_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All of `metrics_blocks` as one table."""
    import pyarrow as pa

    return pa.concat_tables(metrics_blocks(path, columns))


def metrics_columns(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of all lines, `step` and `attempt` with them; NaN where a line has no value."""
    table = read_metrics_table(path, columns)
    return {name: table[name].to_numpy() for name in table.column_names}


def training_figures(path: Path, total_steps: int) -> tuple[int, float | None, float]:
    """Of the steps of a `metrics.jsonl` that count: the last, the mean loss of the last tenth, and the seconds of all.

    `total_steps` are those that were planned. (0, None, 0.0) where there is no step.
    """
    lines = metrics_columns(path, ("loss", "step_seconds"))
    trained = ~np.isnan(lines["step_seconds"])
    counts = lines_that_count(lines["step"], lines["attempt"], trained) & trained
    step, loss, seconds = (lines[name][counts] for name in ("step", "loss", "step_seconds"))
    return int(step.max(initial=0)), mean_final_loss(step, loss, total_steps), added(seconds)
