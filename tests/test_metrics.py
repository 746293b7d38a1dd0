"""`metrics.jsonl` by column: the same numbers in blocks as whole, and the same as the lines themselves say."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import metrics
from octavo.errors import OctavoError
from octavo.metrics import metrics_blocks, metrics_columns, read_metrics_table, training_figures
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
