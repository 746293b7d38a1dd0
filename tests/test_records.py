"""Files between stages: another version, a file cut short or a changed line is one clear error."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from octavo.errors import OctavoError
from octavo.metrics import read_metrics_table
from octavo.records import (
    SCHEMA_VERSION,
    TABLE_FIELDS,
    MetricsRecord,
    Result,
    last_line,
    lines_from_the_end,
    read_last_lines,
    read_lines,
    read_metrics,
    read_record,
    read_table,
    table_schema,
    trained_steps,
    write_table,
)

ROUTING = pd.DataFrame(
    {"sequence": [0, 1], "domain": ["code", "drama"], "layer": [0, 0], "expert": [3, 1], "tokens": [5, 7]}
)


def result_value() -> dict[str, object]:
    """A result that validates."""
    return {
        "schema_version": SCHEMA_VERSION, "experiment": "e", "cell": "dense-bf16", "architecture": "dense",
        "precision": "bf16", "ablation": None, "seed": 1, "run_fingerprint": "f", "status": "completed", "steps": 2,
        "tokens": 8, "training_loss": 5.0, "validation_loss": 5.1, "validation_bits_per_byte": 2.0,
        "validation_loss_by_domain": {"code": 5.1}, "flops_per_token": 1e6, "total_parameters": 10,
        "active_parameters": 9, "training_seconds": 1.0, "emulated": False, "device_kind": "cpu", "device_count": 1,
        "metrics_sha256": "0", "files_sha256": {}, "parameters_sha256": None, "data_manifest_sha256": "0",
    }  # fmt: skip


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_result_reads_back(tmp_path: Path) -> None:
    path = write(tmp_path / "result.json", result_value())
    assert read_record(path, Result, made_by="octavo train").validation_loss == 5.1


def test_a_result_of_another_version_says_both_versions(tmp_path: Path) -> None:
    path = write(tmp_path / "result.json", {**result_value(), "schema_version": 99})
    with pytest.raises(OctavoError, match="schema version 99") as caught:
        read_record(path, Result, made_by="octavo train results/e/runs/c/seed-1")
    assert f"schema version {SCHEMA_VERSION}" in str(caught.value)
    assert "octavo train results/e/runs/c/seed-1" in str(caught.value)


def test_a_result_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result_value())[:100])
    with pytest.raises(OctavoError, match="not whole JSON"):
        read_record(path, Result, made_by="octavo train")


def test_a_result_that_lacks_a_value_names_it(tmp_path: Path) -> None:
    value = result_value()
    del value["validation_loss"]
    with pytest.raises(OctavoError, match="validation_loss"):
        read_record(write(tmp_path / "result.json", value), Result, made_by="octavo train")


def test_the_last_line_of_a_killed_writer_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "tokens": 4, "time": 0.0, "attempt": 1, "loss": 2.0})
    path.write_text(line + "\n" + line[:20])
    assert [record.step for record in read_lines(path, MetricsRecord)] == [1]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "tokens": 4, "time": 0.0, "attempt": 1, "loss": 2.0})
    path.write_text(f"{line}\n{line[:20]}\n{line}\n")
    with pytest.raises(OctavoError, match="line 2") as caught:
        read_lines(path, MetricsRecord)
    assert f"{path}:2" in str(caught.value)


def test_a_table_reads_back_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "routing.parquet"
    write_table(path, ROUTING, "routing")
    pd.testing.assert_frame_equal(read_table(path, "routing", made_by="octavo train"), ROUTING)
    assert pq.read_schema(path).equals(table_schema("routing"))


def test_the_same_table_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, ROUTING, "routing")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_table_that_is_another_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    write_table(path, ROUTING, "routing")
    with pytest.raises(OctavoError, match="holds table 'routing'"):
        read_table(path, "runs", made_by="octavo aggregate results/e")


def test_a_truncated_table_says_how_to_make_it_again(tmp_path: Path) -> None:
    path = tmp_path / "routing.parquet"
    write_table(path, ROUTING, "routing")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(OctavoError, match="cannot be read") as caught:
        read_table(path, "routing", made_by="octavo train X")
    assert "octavo train X" in str(caught.value)


def test_a_table_with_a_changed_bit_is_refused_or_says_the_same(tmp_path: Path) -> None:
    """Pages carry checksums, and names and types of columns are checked; other bits may change nothing that is read."""
    path = tmp_path / "routing.parquet"
    write_table(path, ROUTING, "routing")
    whole = path.read_bytes()
    draw = random.Random(7)
    refused = 0
    for bit in [draw.randrange(8 * len(whole)) for _ in range(200)]:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            pd.testing.assert_frame_equal(read_table(path, "routing", made_by="octavo train"), ROUTING)
        except OctavoError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("name", TABLE_FIELDS)
def test_every_table_knows_which_run_or_sequence_a_row_is_of(name: str) -> None:
    columns = [field[0] for field in TABLE_FIELDS[name]]
    assert len(columns) == len(set(columns))
    assert columns[:3] == ["experiment", "cell", "seed"] or columns[0] == "sequence"


def write_metrics(path: Path, *lines: tuple[int, int, str]) -> Path:
    """A metrics file with (attempt, step, kind) per line; each is written at time 100 x attempt + step."""
    kinds = {
        "train": {"loss": 5.0, "step_seconds": 1.0},
        "nan": {"step_seconds": 1.0},  # JSON has no NaN: the loss is left out
        "validate": {"validation_loss": 5.0},
        "validate nan": {},
    }
    written = [
        json.dumps({"step": step, "tokens": 8 * step, "time": 100 * attempt + step, "attempt": attempt} | kinds[kind])
        for attempt, step, kind in lines
    ]
    path.write_text("".join(line + "\n" for line in written))
    return path


def test_steps_that_a_resumed_run_trained_again_count_once(tmp_path: Path) -> None:
    """Saved at 10, killed at 18, resumed, completed at 20: attempt 1 counts up to 10, attempt 2 from 11 on."""
    first = [(1, step, "train") for step in range(1, 19)]
    second = [(2, step, "train") for step in range(11, 21)]
    path = write_metrics(tmp_path / "metrics.jsonl", *first, *second, (2, 20, "validate"))
    counted = {step: line.attempt for step, line in trained_steps(path).items()}
    assert counted == {step: 1 if step <= 10 else 2 for step in range(1, 21)}
    assert list(read_metrics(path)) == [*range(1, 11), *range(19, 30)], "the lines' numbers in the file"


def test_a_resumed_run_that_diverges_earlier_replaces_what_came_later_too(tmp_path: Path) -> None:
    """Saved at 10, killed at 18, resumed, diverged at 13: steps 14 to 18 are not the run's, nor their validation."""
    first = [(1, step, "train") for step in range(1, 19)]
    path = write_metrics(
        tmp_path / "metrics.jsonl", *first[:10], (1, 10, "validate"), *first[10:], (1, 18, "validate"),
        (2, 11, "train"), (2, 12, "train"), (2, 13, "nan"),
    )  # fmt: skip
    assert list(trained_steps(path)) == list(range(1, 14))
    assert [line.step for line in read_metrics(path).values() if line.validation_loss] == [10]


def test_an_attempt_that_trained_nothing_replaces_nothing(tmp_path: Path) -> None:
    """It validates again at the end of a run that was killed before it wrote its result."""
    path = write_metrics(
        tmp_path / "metrics.jsonl", (1, 1, "train"), (1, 2, "train"), (1, 2, "validate"), (2, 2, "validate nan")
    )
    assert list(read_metrics(path)) == [1, 2, 3, 4]
    assert list(trained_steps(path)) == [1, 2]


def test_the_last_line_of_an_attempt_is_its_last_sign_of_life_even_where_it_does_not_count(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics.jsonl", (1, 1, "train"), (1, 2, "train"), (2, 1, "train"))
    assert [line and line.time for line in (last_line(path, 1), last_line(path, 2), last_line(path, 3))] == [
        102, 201, None,
    ]  # fmt: skip


def test_the_end_of_a_run_is_read_however_long_the_run_is(tmp_path: Path) -> None:
    """What comes before is not looked at: a status, or a restart, costs the same after any number of steps."""
    path = write_metrics(tmp_path / "metrics.jsonl", *[(2, step, "train") for step in range(1, 400)])
    end = path.read_text()
    path.write_text("damaged\n" * 9 + end)
    last = last_line(path, 2)
    assert last
    assert last.step == 399
    assert [line.step for line in read_last_lines(path, MetricsRecord, 2)] == [398, 399]
    from_the_end = [line.step for line in islice(lines_from_the_end(path, MetricsRecord), 399)]
    assert from_the_end == list(range(399, 0, -1)), "over the borders of what is read at a time"
    with pytest.raises(OctavoError, match="line 400 from the end"):
        last_line(path, 1)


@pytest.mark.parametrize("line", ["null", "[]", "1", '"x"', "", "{", '{"step": 1e999}', '{"step": NaN}', "[" * 100_000])
@pytest.mark.parametrize("first", [True, False])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, first: bool) -> None:
    """In both readers of metrics; pyarrow's crashes where the first line is null."""
    good = '{"step": 1, "tokens": 2, "time": 1.0, "attempt": 1, "loss": 2.0}'
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{one}\n" for one in ([line, good] if first else [good, line])))
    for read in (lambda: read_metrics_table(path), lambda: read_lines(path, MetricsRecord)):
        with pytest.raises(OctavoError) as refused:
            read()
        assert refused.value.where == f"{path}:{1 if first else 2}"


def test_the_last_lines_are_found_however_long_they_are(tmp_path: Path) -> None:
    """Longer than what is read first; what a killed writer left of another line is no line."""
    path = tmp_path / "metrics.jsonl"
    load = [[0.001] * 1000] * 30
    lines = [{"step": step, "tokens": 8, "time": 0.0, "attempt": 1, "expert_load": load} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    assert path.stat().st_size > 1 << 17
    for count in (1, 2, 3, 9):
        found = read_last_lines(path, MetricsRecord, count)
        assert [line.step for line in found] == [1, 2, 3][-count:]
        assert found == read_lines(path, MetricsRecord)[-count:]
    path.write_text('{"step": 3')
    assert read_last_lines(path, MetricsRecord) == []
    assert read_last_lines(tmp_path / "missing", MetricsRecord) == []
    path.write_text('{"step": 3}\n')
    with pytest.raises(OctavoError, match="line 1 from the end is not a MetricsRecord: tokens: Field required"):
        read_last_lines(path, MetricsRecord)
