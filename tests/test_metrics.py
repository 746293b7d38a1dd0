"""`metrics.jsonl` by column: the same numbers in blocks as whole, and the same as the lines themselves say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import metrics
from octavo.cpu.library import COMPILED
from octavo.errors import OctavoError
from octavo.metrics import (
    FP8,
    NUMBERS,
    metrics_blocks,
    metrics_columns,
    metrics_schema,
    read_metrics_table,
    training_figures,
)
from octavo.records import MetricsRecord, read_lines
from tests.test_records import write_metrics

SAVED_AT_10 = [
    *[(1, step, "train") for step in range(1, 19)],
    *[(2, step, "train") for step in range(11, 21)],
    (2, 20, "validate"),
]
"""Killed at step 18, gone on from 10, complete at 20."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Such a run's metrics, with what is left of a line behind them."""
    path = write_metrics(tmp_path / "metrics.jsonl", *SAVED_AT_10)
    path.write_text(path.read_text() + '{"step": 21, "tok')
    return path


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_blocks_are_the_whole_table(path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Of blocks shorter than a line each is one line."""
    whole = read_metrics_table(path)
    monkeypatch.setattr(metrics, "BLOCK", size)
    blocks = list(metrics_blocks(path))
    assert len(blocks) > 1
    assert read_metrics_table(path).equals(whole)
    assert whole.num_rows == len(SAVED_AT_10)


def test_columns_are_what_the_lines_say(path: Path) -> None:
    lines = read_lines(path, MetricsRecord)
    columns = metrics_columns(path, ("time",))
    assert columns.keys() == {"step", "attempt", "time"}
    for name, values in columns.items():
        assert values.tolist() == [getattr(line, name) for line in lines]


def test_a_damaged_line_is_named_whatever_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 100)
    path.write_text(path.read_text().replace('"step": 5,', '"step": five,', 1))
    with pytest.raises(OctavoError, match="line 5 is not a MetricsRecord"):
        metrics_columns(path, ("loss",))


def test_the_figures_of_a_run_are_those_of_the_lines_that_count(path: Path) -> None:
    """Twenty steps: attempt 1 up to step 10, attempt 2 from 11; the last tenth are steps 19 and 20."""
    lines = [line for line in read_lines(path, MetricsRecord) if line.trained]
    counted = [line for line in lines if (line.attempt == 1) == (line.step <= 10)]
    assert len(counted) == 20
    last, loss, seconds = training_figures(path, 20)
    assert last == 20
    assert loss == sum(line.loss or 0.0 for line in counted[-2:]) / 2
    assert seconds == pytest.approx(sum(line.step_seconds or 0.0 for line in counted), rel=1e-12)
    assert training_figures(path.with_name("missing"), 20) == (0, None, 0.0)


# --- the compiled reader against pyarrow's ---------------------------------------------------------------------------

compiled = pytest.mark.skipif(COMPILED is None, reason="there was no C compiler at installation")
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
LINES = st.fixed_dictionaries(
    {name: st.integers(0, 2**62) for name in ("step", "tokens", "attempt")},
    optional={
        "memory_bytes": st.none() | st.integers(0, 2**63 - 1),
        **{name: st.none() | FLOATS for name in ("time", *NUMBERS)},
        **{
            name: st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(parts, st.none() | FLOATS))
            for name, parts in FP8.items()
        },
        "expert_load": st.none() | st.lists(st.lists(st.floats(-1e30, 1e30), max_size=3), max_size=3),
        "validation_loss_by_domain": st.dictionaries(st.sampled_from(["code", "poetry"]), st.floats(0.01, 9)),
        "later": st.sampled_from([None, "words", [1, {"a": []}]]),
    },
)


def both(content: bytes, path: Path, *asked: str) -> tuple[pa.Table | None, pa.Table]:
    schema = metrics_schema()
    schema = pa.schema([schema.field(name) for name in asked]) if asked else schema
    return metrics._parsed_plain(content, schema), metrics._parsed_whatever(content, schema, path)


@compiled
@settings(deadline=None, max_examples=60)
@given(st.lists(LINES, min_size=1, max_size=5), st.sampled_from([None, (",", ":")]))
def test_what_the_trainer_writes_is_read_to_the_bit(lines: list[dict[str, Any]], separators: Any) -> None:
    """-0.0 and 0.0 are equal to pyarrow, so bits are compared."""
    content = "".join(json.dumps(line, separators=separators) + "\n" for line in lines).encode()
    ours, theirs = both(content, Path("none"))
    assert ours is not None
    ours.validate(full=True)
    assert ours.equals(theirs)
    for name in ("time", *NUMBERS):
        one, other = (table[name].fill_null(0.0).to_numpy().view(np.uint64) for table in (ours, theirs))
        assert one.tolist() == other.tolist()


@compiled
@pytest.mark.parametrize("digits", range(1, 25))
def test_every_length_of_number_is_rounded_once(digits: int, tmp_path: Path) -> None:
    """To FP64 as Python reads it; to FP32 as pyarrow does, also where rounding to FP64 first gives another number."""
    generator = random.Random(digits)
    texts = [f"0.{generator.randrange(10**digits)}e{generator.randrange(-30, 30)}" for _ in range(300)]
    # halfway between two FP32 numbers but for a part that FP64 has not
    texts += [f"{1 + (2 * k + 1) * 2.0**-24:.30f}"[: 26 + k % 3] + "1" for k in range(50)]
    lines = [f'{{"step":1,"attempt":1,"tokens":1,"loss":{one},"expert_load":[[{one}]]}}\n' for one in texts]
    ours, theirs = both("".join(lines).encode(), tmp_path / "none")
    assert ours is not None
    assert ours["loss"].to_pylist() == [float(one) for one in texts]
    assert ours["expert_load"].equals(theirs["expert_load"])


@compiled
def test_what_the_trainer_does_not_write_is_left_to_pyarrow() -> None:
    """Each is refused, as a whole; beside them, the line that is not."""
    start = '{"step":1,"tokens":1,"attempt":1'
    others = [
        ',"loss":NaN', ',"loss":1e999', ',"loss":01', ',"loss":1.', ',"loss":.5', ',"loss":+1', ',"loss":"1"',
        ',"loss":true', ',"loss":1,"loss":2', ',"memory_bytes":1.0', ',"memory_bytes":-1', ',"memory_bytes":1e3',
        ',"memory_bytes":9223372036854775808', ',"a\\u0062":1', ',"ä":1', ',"fp8_amax":[1]',
        ',"fp8_amax":{"other":1}', ',"expert_load":[1]', ',"expert_load":[[null]]', ',"expert_load":[[1,]]',
        ',"later":' + 12 * "[" + 12 * "]", ',"later":1e999', ",", ',"loss"', ',"loss":', '}{"step":1', "}\n",
    ]  # fmt: skip
    assert metrics._parsed_plain((start + "}\n").encode(), metrics_schema()) is not None
    for other in others:
        content = f"{start}}}\n{start}{other}}}\n".encode()
        assert metrics._parsed_plain(content, metrics_schema()) is None, other
    for content in (b"null\n", b"[]\n", b"{}\n", b"\n", b'{"step":1,"tokens":1}\n', (start + "}").encode(), b""):
        assert metrics._parsed_plain(content, metrics_schema()) is None, content


@compiled
def test_of_damaged_lines_none_is_read_that_pyarrow_refuses(path: Path) -> None:
    """Bytes replaced, removed, inserted and doubled: refused, or the same table."""
    whole = {"step": 3, "tokens": 4, "attempt": 1, "loss": 1.25, "fp8_amax": {"input": 0.1, "weight": None}}
    line = json.dumps({**whole, "expert_load": [[0.5, 0.25], [1e-05]], "later": {"a": [1, "b"]}}).encode() + b"\n"
    generator, read = random.Random(1), 0
    for _ in range(3000):
        content = bytearray(2 * line)
        for _ in range(generator.randrange(1, 3)):
            at, other = (generator.randrange(len(content) - 1) for _ in range(2))
            some = bytes([generator.choice(b'{}[]",:0159.eE+-nul \t\\\x00\xff\n')])
            doubled = content[other : other + generator.randrange(9)]
            content[at : at + generator.randrange(3)] = generator.choice([some, b"", doubled])
        content = bytes(content.rstrip(b"\n") + b"\n")
        ours = metrics._parsed_plain(content, metrics_schema())
        if ours is not None:
            read += 1
            path.write_bytes(content)
            assert ours.equals(metrics._parsed_whatever(content, metrics_schema(), path)), content
    assert 100 < read < 2900


@compiled
def test_only_what_is_asked_for_is_made(path: Path) -> None:
    ours, theirs = both(path.read_bytes().rpartition(b"\n")[0] + b"\n", path, "attempt", "loss", "expert_load", "step")
    assert ours is not None
    assert ours.equals(theirs)
    assert ours.column_names == ["attempt", "loss", "expert_load", "step"]


def test_without_a_compiler_the_same_table_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_metrics_table(path)
    monkeypatch.setattr(metrics, "COMPILED", None)
    assert read_metrics_table(path).equals(whole)
    assert not any(math.isnan(loss) for loss in whole["loss"].drop_null().to_pylist())
