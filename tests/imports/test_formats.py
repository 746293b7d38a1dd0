"""What each format says, line by line, as its source writes it; and what a log looks like that cannot be read.

The lines are those of Megatron-LM's `training_log` and `evaluate_and_print_results` of several years, its golden
values, torchtitan's `MetricsProcessor`, and MLPerf's mllog, with numbers of our own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import OctavoError
from octavo.imports.formats import Format
from octavo.imports.read import Log, read_log


def read(tmp_path: Path, kind: Format, text: str, **options: Any) -> Log:
    path = tmp_path / "run"
    path.write_text(text)
    return read_log([path], kind, options.pop("columns", {}), **options)


def column(log: Log, name: str) -> list[float]:
    return log.steps[name].dropna().tolist()


def megatron(step: int, fields: str, *, planned: int = 400, stamp: str = "") -> str:
    return f" {stamp}iteration {step:8d}/{planned:8d} | elapsed time per iteration (ms): 500.0 | {fields} |\n"


# --- Megatron-LM ----------------------------------------------------------------------------------------------------


def test_megatron_auxiliary_losses_and_tokens_of_forks(tmp_path: Path) -> None:
    """Megatron-Bridge writes the auxiliary loss of sequences, Megatron-DeepSpeed counts tokens; MTP losses are not."""
    fields = "consumed tokens:  88883200 | lm loss: 8.7E-01 | seq_load_balancing_loss: 1.25E+00 | mtp_1 loss: 1.1E+00"
    log = read(tmp_path, "megatron_log", megatron(31, fields))
    assert column(log, "aux_loss") == [1.25]
    assert column(log, "tokens") == [88_883_200]
    assert column(log, "loss") == [0.87]


def test_megatron_leaves_out_a_loss_that_is_no_number(tmp_path: Path) -> None:
    lines = megatron(10, "lm loss: 3.1E+00 | loss scale: 1.0 | grad norm: 0.7") + megatron(
        20, "loss scale: 1.0 | grad norm: nan"
    )
    log = read(tmp_path, "megatron_log", lines)
    assert log.steps["step"].tolist() == [10, 20]
    assert np.isnan(log.steps["loss"].iloc[-1])


def test_megatron_writes_zero_where_all_iterations_were_skipped(tmp_path: Path) -> None:
    skipped = (
        "lm loss: 0.000000E+00 | loss scale: 1.0 | number of skipped iterations:  10 | number of nan iterations: 10"
    )
    log = read(tmp_path, "megatron_log", megatron(10, "lm loss: 9.5E+00 | loss scale: 1.0") + megatron(20, skipped))
    assert column(log, "loss") == [9.5]
    assert log.skipped == 10


def test_megatrons_last_validation_of_older_releases(tmp_path: Path) -> None:
    lines = (
        megatron(400, "lm loss: 3.1E+00 | loss scale: 1.0")
        + " validation loss at the end of training for val data | lm loss value: 3.2E+00 | lm loss PPL: 2.4E+01 |\n"
        + " validation loss at the end of training for test data | lm loss value: 3.3E+00 | lm loss PPL: 2.7E+01 |\n"
    )
    assert read(tmp_path, "megatron_log", lines).steps["validation_loss"].tolist() == [3.2]


SETS = megatron(10, "lm loss: 3.1E+00 | loss scale: 1.0") + "".join(
    f" validation-{name} loss at iteration 10 | lm loss value: {loss}E+00 | lm loss PPL: 2.4E+01 |\n"
    for name, loss in (("books", 3.2), ("code", 1.5))
)


def test_several_validation_sets_are_chosen_from(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="2 validation sets: books, code"):
        read(tmp_path, "megatron_log", SETS)
    assert column(read(tmp_path, "megatron_log", SETS, validation_set="code"), "validation_loss") == [1.5]
    with pytest.raises(OctavoError, match="no validation set 'web'"):
        read(tmp_path, "megatron_log", SETS, validation_set="web")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("megatron_log", megatron(10, "lm loss: 3.1E+00").rstrip() + megatron(20, "lm loss: 3.0E+00")),
        (
            "torchtitan_log",
            "[titan] - root - INFO - step:  1  loss: 12.2  tps: 1,000  [titan] - root - INFO - step:  2  loss: 12.1\n",
        ),
        ("mlperf", ':::MLLOG {"key": "seed", "value": 1} :::MLLOG {"key": "seed", "value": 2}\n'),
    ],
)
def test_two_records_on_one_line_are_named(kind: Format, line: str, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="2 records") as caught:
        read(tmp_path, kind, line)
    assert str(caught.value.where).endswith("run:1")


@pytest.mark.parametrize("milliseconds", ["0.0", "-812.5"])
def test_a_time_that_is_not_above_zero_is_named(milliseconds: str, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="a time is above zero") as caught:
        read(tmp_path, "megatron_log", megatron(10, "lm loss: 3.1E+00").replace("500.0", milliseconds))
    assert str(caught.value.where).endswith("run:1")


def test_times_that_contradict_the_lines_timestamps_are_named(tmp_path: Path) -> None:
    """Ten steps of 500 ms are 5 s; the lines are written five hours apart, as with times in another unit."""
    lines = "".join(
        megatron(10 * (i + 1), "lm loss: 3.1E+00", stamp=f"[2026-04-{1 + i // 4:02d} {5 * (i % 4):02d}:00:00] ")
        for i in range(20)
    )
    with pytest.raises(OctavoError, match="the clock of the same lines"):
        read(tmp_path, "megatron_log", lines)


# --- torchtitan -----------------------------------------------------------------------------------------------------


def test_torchtitans_rate_until_2024(tmp_path: Path) -> None:
    line = "[rank0]:2024-06-25 17:08:02,905 - root - INFO - step: 10  loss:  9.8465  memory:  2.01GiB  wps: 12,246\n"
    assert column(read(tmp_path, "torchtitan_log", line), "tokens_per_second_per_device") == [12_246]


def test_lines_of_every_rank_are_one(tmp_path: Path) -> None:
    def line(step: int, loss: str, rate: str) -> str:
        return f"[titan] 2026-02-24 19:46:17,508 - root - INFO - step:  {step}  loss:  {loss}  tps: {rate}\n"

    lines = line(4, "7.62585", "10,050") + line(4, "7.62585", "10,049") + line(5, "7.07623", "10,007")
    log = read(tmp_path, "torchtitan_log", lines + line(4, "7.62585", "10,048"))
    assert log.steps["step"].tolist() == [4, 5]
    assert log.notes == ("2 lines dropped: they say again what another line said (several ranks, say)",)


# --- golden values --------------------------------------------------------------------------------------------------


def test_old_golden_values_are_lists_of_every_fifth_step(tmp_path: Path) -> None:
    """`metric_values[0 : len(metric_values) : 5]` of values logged at steps 1, 2, 3, ...: those of steps 1, 6, 11."""
    entry = {"start_step": 0, "end_step": 15, "step_interval": 5, "values": [10.8, 10.5, 10.2]}
    log = read(tmp_path, "megatron_golden", json.dumps({"lm loss": entry, "iteration_timing_avg": 0.3}))
    assert log.steps["step"].tolist() == [1, 6, 11]
    assert log.steps["loss"].tolist() == [10.8, 10.5, 10.2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lm loss": 5}, "a number in place of the values"),
        ({"lm loss": {"values": 5}}, "a number in place of the values"),
        ({"lm loss": {"values": [1.0]}}, "needs start_step and step_interval"),
        ({"lm loss": {"values": {"1": True}}}, "is no number"),
        ({"lm loss": {"values": {"one": 1.0}}}, "is no step with its value"),
        ({"lm loss": {"values": {"1": 1.0}}, "iteration-time": {"values": {"1": 0.0}}}, "a time is above zero"),
        ({"0": {"generated_text": "a"}, "throughput": [1]}, "no 'lm loss', but 0, throughput"),
        ({}, "no 'lm loss', but nothing"),
        ([1, 2], "holds a list"),
        (5, "holds a number"),
    ],
)
def test_what_is_no_golden_value_is_named(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=message):
        read(tmp_path, "megatron_golden", json.dumps(value))


# --- tables ---------------------------------------------------------------------------------------------------------


def test_fractional_tokens_are_read(tmp_path: Path) -> None:
    assert column(read(tmp_path, "csv", "step,loss,tokens\n1,5.0,1024.5\n2,4.0,2.049e3\n"), "tokens") == [
        1024.5,
        2049.0,
    ]


def test_a_table_may_be_in_any_order_and_says_so(tmp_path: Path) -> None:
    rows = [f"{step},{10 - step / 100}" for step in range(1, 201)]
    shuffled = [rows[(index * 77) % 200] for index in range(200)]
    log = read(tmp_path, "csv", "\n".join(["step,loss", *shuffled]) + "\n")
    assert log.steps["step"].tolist() == list(range(1, 201))
    assert log.notes == ("the lines did not stand in the order of their steps: sorted",)


def test_a_line_without_an_end_is_no_line_of_a_log(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="longer than") as caught:
        read(tmp_path, "csv", "step,loss\n" + "1" * (2 << 20))
    assert str(caught.value.where).endswith("run:2")


# --- MLPerf ---------------------------------------------------------------------------------------------------------


def event(key: str, value: Any = None, *, at: float | None = None, **metadata: Any) -> str:
    time = {} if at is None else {"time_ms": 1000 * at}
    return f":::MLLOG {json.dumps({**time, 'key': key, 'value': value, 'metadata': metadata})}\n"


START = (
    event("submission_benchmark", "deepseekv3_671b") + event("submission_division", "closed") + event("seed", 3)
    + event("global_batch_size", 64) + event("max_sequence_length", 4096)
)  # fmt: skip


def test_mlperf_losses_by_samples(tmp_path: Path) -> None:
    """64 sequences a step: 128 samples are step 2. The log has no times of day."""
    lines = [START]
    for step, (loss, validation) in enumerate([(5.1, 5.0), (4.9, 4.8)], 1):
        lines.append(event("tracked_stats", {"reduced_train_loss": loss}, samples_count=64 * step))
        lines.append(event("tracked_stats", {"validation_time": 1.3}, step=step))
        lines.append(event("eval_accuracy", validation, samples_count=64 * step))
    lines.append(event("run_stop", samples_count=128, status="success"))
    log = read(tmp_path, "mlperf", "".join(lines))
    assert log.steps["step"].tolist() == [1, 2]
    assert log.steps["loss"].tolist() == [5.1, 4.9]
    assert log.steps["validation_loss"].tolist() == [5.0, 4.8]
    assert "step_seconds" not in log.steps
    assert (log.stated.seed, log.stated.sequence_length, log.finished) == (3, 4096, True)


@pytest.mark.parametrize(
    ("end", "finished"),
    [(event("run_stop", status="success"), True), (event("run_stop", status="aborted"), False), ("", False)],
)
def test_mlperf_says_whether_a_run_ended(end: str, finished: bool, tmp_path: Path) -> None:
    line = event("tracked_stats", {"reduced_train_loss": 5.0}, samples_count=64)
    assert read(tmp_path, "mlperf", START + event("run_start") + line + end).finished is finished


def test_mlperf_times_by_the_clock_are_without_evaluations(tmp_path: Path) -> None:
    """Two steps from 100 s to 110 s, then an evaluation of 60 s, then two steps to 178 s: 5 s and 4 s a step."""
    lines = (
        START + event("run_start", at=100)
        + event("tracked_stats", {"reduced_train_loss": 5.0}, at=110, samples_count=128)
        + event("eval_start", at=110) + event("eval_accuracy", 5.0, at=170, samples_count=128)
        + event("eval_stop", at=170)
        + event("tracked_stats", {"reduced_train_loss": 4.0}, at=178, samples_count=256)
    )  # fmt: skip
    log = read(tmp_path, "mlperf", lines)
    assert log.steps["step_seconds"].tolist() == [5.0, 4.0]
    assert log.steps["stands_for"].tolist() == [2.0, 2.0]


def test_mlperf_times_that_the_log_states(tmp_path: Path) -> None:
    stats = {"reduced_train_loss": 5.0, "train_step_time": 2.5}
    log = read(tmp_path, "mlperf", START + event("tracked_stats", stats, samples_count=64))
    assert log.steps["step_seconds"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (event("tracked_stats", {"reduced_train_loss": 5.0}, samples_count=65), "no multiple of global_batch_size"),
        (event("tracked_stats", {"reduced_train_loss": 5.0}, step=1), "no samples_count"),
        (event("tracked_stats", {"reduced_train_loss": "5"}, samples_count=64), "is no number"),
        (event("global_batch_size", True), "expected a whole number"),
        (':::MLLOG {"key": "seed"\n', "is damaged"),
        (":::MLLOG [1, 2]\n", 'no mapping with a "key"'),
        (event("submission_benchmark", "rgat"), "benchmark 'rgat'"),
    ],
)
def test_an_mlperf_line_that_cannot_be_is_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=message) as caught:
        read(tmp_path, "mlperf", START + line)
    assert str(caught.value.where).endswith("run:6")


# --- what a log looks like ------------------------------------------------------------------------------------------

WRAPPED = """\
 [2025-10-02 22:52:07] iteration       10/      20 | consumed samples:         5120 |
elapsed time per iteration (ms): 13212.7 | learning rate: 3.000000E-04 | global batch
size:   512 | lm loss: 4.474437E+00 | loss scale: 1.0 | grad norm: 0.704 | number of s
kipped iterations:   0 | number of nan iterations:   0 |
"""


@pytest.mark.parametrize(
    ("kind", "text", "look"),
    [
        (
            "megatron_log",
            " iteration 100/ 300 | elapsed time per iteration (ms): 528 | learning rate 1.5E-04 | lm loss 7.1E+00 |\n",
            "Megatron-LM as it was in 2020",
        ),
        ("megatron_log", WRAPPED, "a terminal wrapped"),
        (
            "megatron_log",
            "Training epoch 0, iteration 9/99 | lr: 1e-05 | global_step: 9 | reduced_train_loss: 11.03 | "
            "train_step_timing in s: 5.9\n",
            "NeMo 2",
        ),
        (
            "megatron_log",
            "[INFO|DP=0|PP=0|TP=0] iteration: 1 / 15 | consumed_tokens: 4.1M | elapsed_time_per_iteration_ms: 910 | "
            "lm_loss: 11.3 | lr: 0.0001 |\n",
            "nanotron",
        ),
        ("megatron_log", "INFO - step: 10  loss:  9.5000  tps: 2,048\n", "torchtitan's console output"),
        ("torchtitan_log", megatron(10, "lm loss: 3.1E+00"), "Megatron-LM or Megatron-Bridge"),
        ("torchtitan_log", START, "an MLPerf log"),
        ("megatron_log", "{'loss': 2.3, 'grad_norm': 1.0, 'learning_rate': 1e-05, 'epoch': 0.1}\n", "Hugging Face"),
        ("megatron_log", "step,loss\n1,2.0\n", "a table"),
    ],
)
def test_a_refusal_says_what_the_log_looks_like_and_what_to_do(
    kind: Format, text: str, look: str, tmp_path: Path
) -> None:
    with pytest.raises(OctavoError, match=f"looks like .*{look}") as caught:
        read(tmp_path, kind, text)
    assert caught.value.fix
