"""Runs of other programs, in the formats that these write, become experiments with verdicts of their own.

The samples are written here, line by line as the programs do: Megatron-LM's `training_log` and
`evaluate_and_print_results` (megatron/training/training.py), the golden values of its functional tests
(tests/functional_tests/test_cases/*/golden_values_*.json), TensorBoard event files with its tags and with
torchtitan's (torchtitan/components/metrics.py), and torchtitan's console lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from octavo.errors import OctavoError
from octavo.evidence.convergence import convergence, read_reference
from octavo.evidence.verdicts import write_verdicts
from octavo.imports.read import read_log
from octavo.imports.runs import Imported, import_runs, read_imported
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import ClaimsFile, ComparisonsFile, read_record, read_table

MEGATRON = """\
 > building train, validation, and test datasets for GPT ...
 [2026-04-27 00:00:01] iteration       10/      30 | consumed samples:         2560 | elapsed time per iteration (ms): \
4000.0 | throughput per GPU (TFLOP/s/GPU): 123.4 | learning rate: 1.500000E-05 | global batch size:   256 | \
lm loss: 9.500000E+00 | load_balancing_loss: 1.041994E+00 | loss scale: 1.0 | grad norm: 5.960 | \
number of skipped iterations:   0 | number of nan iterations:   0 |
 [2026-04-27 00:00:41] iteration       20/      30 | consumed samples:         5120 | elapsed time per iteration (ms): \
2000.0 | learning rate: 3.000000E-05 | global batch size:   256 | lm loss: 8.000000E+00 | loss scale: 1.0 | \
grad norm: 2.500 | number of skipped iterations:   0 | number of nan iterations:   0 |
(min, max) time across ranks (ms):
    evaluate .......................................: (1036.51, 1036.58)
-----------------------------------------------------------------------------------------------
 validation loss at iteration 20 | lm loss value: 8.100000E+00 | lm loss PPL: 3.294468E+03 |
-----------------------------------------------------------------------------------------------
 iteration       30/      30 | consumed samples:         7680 | elapsed time per iteration (ms): 2000.0 | \
learning rate: 3.0E-05 | global batch size:   256 | lm loss: 7.000000E+00 | grad norm: 2.100 |
 validation loss at iteration 30 on validation set | lm loss value: 7.200000E+00 | lm loss PPL: 1.339431E+03 |
 validation loss at iteration 30 on test set | lm loss value: 6.600000E+00 | lm loss PPL: 7.350952E+02 |
"""

TORCHTITAN = """\
[rank0]:[titan] 2026-01-05 10:00:00,000 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.2699  \
\x1b[38;2;180;60;0mgrad_norm:  4.1234  \x1b[36mmemory: 24.04GiB(25.31%)  \x1b[34mtps: 1,000  \x1b[36mtflops: 10.01  \
\x1b[35mmfu: 1.01%\x1b[39m
[rank0]:[titan] 2026-01-05 10:00:10,000 - root - INFO - step: 10  loss:  9.5000  grad_norm:  2.0000  \
memory: 24.04GiB(25.31%)  tps: 2,048  tflops: 20.10  mfu: 2.03%
[rank0]:[titan] 2026-01-05 10:00:12,000 - root - INFO - validate step: 10  loss:  9.6000  memory: 24.04GiB(25.31%)  \
tps: 4,000
[rank0]:[titan] 2026-01-05 10:00:20,000 - root - INFO - step: 20  loss:  8.5000  grad_norm:  1.5000  \
memory: 24.04GiB(25.31%)  tps: 2,048  tflops: 20.10  mfu: 2.03%
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def bring(root: Path, repository: Path, **value: Any) -> tuple[ExperimentFolder, Imported]:
    file = write(root / "theirs.yaml", yaml.safe_dump({"description": "theirs", **value}))
    folder = ExperimentFolder(root / "results" / "theirs")
    return folder, import_runs(file, folder, ConfigFolders(repository / "configs"))


def steps_of(folder: ExperimentFolder) -> pd.DataFrame:
    return read_table(folder.steps_table, "steps", made_by="octavo import")


def run_of(folder: ExperimentFolder) -> pd.Series:
    runs = read_table(folder.runs_table, "runs", made_by="octavo import")
    assert len(runs) == 1
    return runs.iloc[0]


# --- formats --------------------------------------------------------------------------------------------------------


def test_megatron_console_lines(tmp_path: Path, repository: Path) -> None:
    """10 steps of 4 s and 20 of 2 s on 8 devices are 80 s x 8 = 640 device-seconds; 7,680 samples of 4,096 tokens."""
    write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "sequence_length": 4096, "devices": 8, "runs": {1: "run.log"}}
    folder, _ = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    steps, run = steps_of(folder), run_of(folder)
    assert steps["step"].tolist() == [10, 20, 30]
    assert steps["loss"].tolist() == [9.5, 8.0, 7.0]
    assert steps["validation_loss"].tolist()[1:] == [8.1, 7.2]
    assert np.isnan(steps["validation_loss"].iloc[0])
    assert steps["tokens"].tolist() == [samples * 4096 for samples in (2560, 5120, 7680)]
    assert steps["aux_loss"].iloc[0] == 1.041994
    assert steps["grad_norm"].tolist() == [5.96, 2.5, 2.1]
    assert steps["device_hours"].iloc[-1] == pytest.approx(640 / 3600)
    assert run["validation_loss"] == 7.2  # not the test set's 6.6
    assert run["training_loss"] == 7.0
    assert run["training_seconds"] == pytest.approx(80.0)
    assert run["tokens"] == 7680 * 4096
    assert run["status"] == "completed"


def test_a_run_that_went_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Killed after step 30, gone on from 20 in a second file: step 30 of the first file is done again."""
    first = write(tmp_path / "a.log", MEGATRON)
    second = write(
        tmp_path / "b.log",
        " iteration       30/      30 | consumed samples: 7680 | elapsed time per iteration (ms): 2500.0 | "
        "lm loss: 7.100000E+00 |\n",
    )
    frame = read_log([first, second], "megatron_log", {}).steps
    assert frame["step"].tolist() == [10, 20, 30]
    assert frame["loss"].tolist() == [9.5, 8.0, 7.1]
    assert np.isnan(frame["validation_loss"].iloc[-1])


def test_a_step_time_and_its_running_mean(tmp_path: Path) -> None:
    """Some forks write `elapsed time per iteration (ms): 812.5/830.1 |`, the second a mean so far."""
    line = (
        " iteration 10/ 20 | consumed samples: 80 | elapsed time per iteration (ms): 812.5/830.1 | lm loss: 5.0E+00 |\n"
    )
    frame = read_log([write(tmp_path / "run.log", line)], "megatron_log", {}).steps
    assert frame["step_seconds"].tolist() == [0.8125]


def test_torchtitan_console_lines(tmp_path: Path, repository: Path) -> None:
    """4 devices at 2,048 tokens a second each do 8,192 a second: a step of 16,384 tokens takes 2 s."""
    write(tmp_path / "run.log", TORCHTITAN)
    cell = {
        "architecture": "dense", "precision": "bf16", "tokens_per_step": 16_384, "devices": 4, "runs": {0: "run.log"},
    }  # fmt: skip
    folder, _ = bring(tmp_path, repository, format="torchtitan_log", cells=[cell])
    steps = steps_of(folder)
    assert steps["step"].tolist() == [1, 10, 20]
    assert steps["loss"].tolist() == [12.2699, 9.5, 8.5]
    assert steps["validation_loss"].iloc[1] == 9.6
    assert steps["step_seconds"].tolist() == pytest.approx([16_384 / 4000, 2.0, 2.0])
    assert steps["tokens"].tolist() == [16_384, 163_840, 327_680]
    assert steps["device_hours"].iloc[-1] == pytest.approx((16_384 / 4000 + 19 * 2) * 4 / 3600)


def test_golden_values(tmp_path: Path, repository: Path) -> None:
    value = {
        "lm loss": {"start_step": 1, "end_step": 50, "step_interval": 5, "values": {"1": 10.84, "5": 10.8, "10": 10.5}},
        "num-zeros": {"start_step": 1, "end_step": 50, "step_interval": 5, "values": {"1": 2570.0}},
        "mem-max-allocated-bytes": {
            "start_step": 1, "end_step": 50, "step_interval": 5, "values": {"1": 2365860864.0, "5": 3108323328.0},
        },
        "iteration-time": {
            "start_step": 1, "end_step": 50, "step_interval": 5, "values": {"1": "nan", "5": 1.25, "10": 1.0},
        },
    }  # fmt: skip
    write(tmp_path / "golden_values_dev_dgx_h100.json", json.dumps(value))
    cell = {"architecture": "dense", "precision": "bf16", "runs": {1234: "golden_values_dev_dgx_h100.json"}}
    folder, imported = bring(tmp_path, repository, format="megatron_golden", cells=[cell])
    steps = steps_of(folder)
    assert steps["step"].tolist() == [1, 5, 10]
    assert steps["loss"].tolist() == [10.84, 10.8, 10.5]
    assert steps["memory_bytes"].iloc[1] == 3108323328
    assert steps["step_seconds"].tolist()[1:] == [1.25, 1.0]
    assert any("no tokens for dense-bf16" in blank for blank in imported.blank)


def write_events(folder: Path, values: list[tuple[int, str, float]]) -> Path:
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for step, tag, value in values:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=1.0, step=step, summary=summary))
    writer.close()
    return folder


def test_tensorboard_with_megatrons_tags(tmp_path: Path, repository: Path) -> None:
    values = [
        (10, "learning-rate", 1e-4), (10, "lm loss", 9.5), (10, "lm loss vs samples", 9.5), (10, "grad-norm", 1.5),
        (10, "iteration-time", 0.5), (20, "learning-rate", 2e-4), (20, "lm loss", 8.5), (20, "iteration-time", 0.25),
        (20, "lm loss validation", 8.75), (20, "lm loss validation", 8.0),
    ]  # fmt: skip
    write_events(tmp_path / "tensorboard", values)
    cell = {
        "architecture": "moe", "precision": "fp8_blockwise", "tokens_per_step": 1024, "devices": 2,
        "runs": {1: "tensorboard"},
    }  # fmt: skip
    folder, imported = bring(tmp_path, repository, format="tensorboard", cells=[cell])
    steps = steps_of(folder)
    assert steps["loss"].tolist() == [9.5, 8.5]
    assert steps["validation_loss"].iloc[1] == 8.75  # the first: the second is the test set's
    assert steps["learning_rate"].tolist() == pytest.approx([1e-4, 2e-4])
    assert steps["device_hours"].iloc[-1] == pytest.approx((10 * 0.5 + 10 * 0.25) * 2 / 3600)
    assert list(imported.files) == [
        f"tensorboard/{path.name}" for path in (tmp_path / "tensorboard").iterdir()
    ]  # fmt: skip


def test_tensorboard_with_torchtitans_tags(tmp_path: Path, repository: Path) -> None:
    values = [
        (step, tag, value)
        for step, loss in ((10, 9.5), (20, 8.5))
        for tag, value in (
            ("loss_metrics/global_avg_loss", loss), ("loss_metrics/global_max_loss", loss + 1), ("grad_norm", 1.0),
            ("ntokens_seen", step * 2048.0), ("time_metrics/end_to_end(s)", 0.5), ("throughput(tps)", 4096.0),
        )
    ]  # fmt: skip
    write_events(tmp_path / "tb", [*values, (20, "validation_metrics/loss", 8.625)])
    cell = {"architecture": "dense", "precision": "bf16", "devices": 1, "runs": {1: "tb"}}
    folder, _ = bring(tmp_path, repository, format="tensorboard", cells=[cell])
    steps = steps_of(folder)
    assert steps["tokens"].tolist() == [20_480, 40_960]
    assert steps["loss"].tolist() == [9.5, 8.5]
    assert run_of(folder)["validation_loss"] == 8.625
    assert run_of(folder)["training_seconds"] == pytest.approx(10.0)


def test_a_csv_with_its_own_names(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.csv", "it,train,val,seen\n1,5.0,,100\n2,4.5,4.75,200\n3,4.0,,300\n")
    cell = {"architecture": "dense", "precision": "bf16", "runs": {1: "run.csv"}}
    columns = {"step": "it", "loss": "train", "validation_loss": "val", "tokens": "seen"}
    folder, _ = bring(tmp_path, repository, format="csv", columns=columns, cells=[cell])
    steps = steps_of(folder)
    assert steps["tokens"].tolist() == [100, 200, 300]
    assert steps["loss"].tolist() == [5.0, 4.5, 4.0]
    assert run_of(folder)["validation_loss"] == 4.75


# --- times ----------------------------------------------------------------------------------------------------------


def timed(step: int, milliseconds: float, loss: float, *, planned: int = 400) -> str:
    return (
        f" iteration {step}/{planned} | consumed samples: {step} | elapsed time per iteration (ms): {milliseconds} | "
        f"lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 1.000 |\n"
    )


def test_a_log_that_begins_late_has_the_hours_of_its_own_steps(tmp_path: Path, repository: Path) -> None:
    """Gone on from step 300: 60 s for step 301, then 0.5 s for 99 steps: 109.5 s, of 100 steps of 400."""
    lines = [timed(301, 60_000, 5.0), *(timed(step, 500, 5 - step / 1000) for step in range(310, 401, 10))]
    write(tmp_path / "run.log", "".join(lines))
    cell = {
        "architecture": "moe", "precision": "bf16", "sequence_length": 4096, "devices": 8, "runs": {1: "run.log"},
    }  # fmt: skip
    folder, imported = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    run = run_of(folder)
    assert run["training_seconds"] == pytest.approx(109.5)
    assert run["device_hours_final"] == pytest.approx(109.5 * 8 / 3600)
    assert (run["timed_steps"], run["steps"]) == (100, 400)
    assert [blank for blank in imported.blank if blank.startswith("no times of all steps for moe-bf16")]
    seen = imported.runs[0]
    assert (seen.first_step, seen.last_step, seen.lines, seen.timed_steps) == (301, 400, 11, 100)


def test_runs_without_the_times_of_all_steps_are_not_compared_at_equal_hours(tmp_path: Path, repository: Path) -> None:
    cells = []
    for architecture, first, floor in (("dense", 1, 2.0), ("moe", 21, 1.9)):
        runs = {seed: f"{architecture}-{seed}.log" for seed in (1, 2, 3)}
        for seed, name in runs.items():
            losses = ((step, floor + (1 + seed / 100) * 8 / np.sqrt(1 + step)) for step in range(first * 10, 401, 10))
            write(tmp_path / name, "".join(timed(step, 500, loss) for step, loss in losses))
        cells.append(
            {
                "architecture": architecture, "precision": "bf16", "sequence_length": 4096, "devices": 8,
                "experts": 0 if architecture == "dense" else 8, "tokenizer": "t", "validation": "v", "data": "d",
                "runs": runs,
            }
        )  # fmt: skip
    folder, _ = bring(tmp_path, repository, format="megatron_log", cells=cells)
    write_verdicts(folder, ConfigFolders(repository / "configs"), None)
    found = read_record(folder.comparisons, ComparisonsFile, made_by="octavo claims").comparisons
    by_axis = {comparison.axis: comparison for comparison in found}
    assert by_axis["tokens"].loss_difference is not None
    assert by_axis["device_hours"].loss_difference is None
    assert by_axis["device_hours"].resource_ratio is None


def test_tensorboard_times_of_a_longer_interval_than_losses(tmp_path: Path, repository: Path) -> None:
    """Megatron's --log-interval 100 with losses each step: ten times of 0.5 s stand for 1,000 steps, 500 s."""
    values = [(step, "lm loss", 10 - step / 200) for step in range(1, 1001)]
    values += [(step, "iteration-time", 0.5) for step in range(100, 1001, 100)]
    write_events(tmp_path / "tb", sorted(values))
    cell = {"architecture": "dense", "precision": "bf16", "devices": 2, "runs": {1: "tb"}}
    folder, _ = bring(tmp_path, repository, format="tensorboard", cells=[cell])
    assert run_of(folder)["training_seconds"] == pytest.approx(500.0)
    assert run_of(folder)["device_hours_final"] == pytest.approx(1000 / 3600)


def test_torchtitans_time_at_step_1_is_over_its_log_interval(tmp_path: Path, repository: Path) -> None:
    """`time_delta / log_freq` at steps 1, 10, 20: 0.5 s is 5 s of step 1, then 5 s of nine steps, 5 s of ten."""
    values: list[tuple[int, str, float]] = []
    for step in (1, 10, 20):
        values += [(step, "loss_metrics/global_avg_loss", 9.0 - step / 10), (step, "n_tokens_seen", step * 2048.0)]
        values += [(step, "lr/AdamW", 1e-4), (step, "lr/Muon", 2e-4), (step, "time_metrics/end_to_end(s)", 0.5)]
    write_events(tmp_path / "tb", values)
    cell = {"architecture": "dense", "precision": "bf16", "devices": 1, "runs": {1: "tb"}}
    folder, _ = bring(tmp_path, repository, format="tensorboard", cells=[cell])
    steps = steps_of(folder)
    assert steps["step_seconds"].tolist() == pytest.approx([5.0, 5 / 9, 0.5])
    assert run_of(folder)["training_seconds"] == pytest.approx(15.0)
    assert steps["tokens"].tolist() == [2048, 20_480, 40_960]
    assert steps["learning_rate"].tolist() == pytest.approx([1e-4] * 3)


def test_a_step_time_by_logged_tokens_and_rates(tmp_path: Path, repository: Path) -> None:
    """16,384 tokens a step by the table itself, 2,048 a second on each of 4 devices: 2 s."""
    write(tmp_path / "run.csv", "step,loss,tokens,tps\n1,5.0,16384,2048\n2,4.5,32768,2048\n3,4.0,49152.4,2048\n")
    cell = {"architecture": "dense", "precision": "bf16", "devices": 4, "runs": {1: "run.csv"}}
    columns = {"tokens_per_second_per_device": "tps"}
    folder, _ = bring(tmp_path, repository, format="csv", columns=columns, cells=[cell])
    assert steps_of(folder)["step_seconds"].tolist() == pytest.approx([2.0, 2.0, 2.0], rel=1e-4)
    assert steps_of(folder)["tokens"].tolist() == [16_384, 32_768, 49_152]  # a fraction of a token is rounded


def test_times_that_contradict_tokens_per_second_are_named(tmp_path: Path, repository: Path) -> None:
    """2 s by tokens and rate, 2,000 by the table, whose times are milliseconds."""
    rows = "".join(f"{step},{6 - step},{16384 * step},2048,2000\n" for step in (1, 2, 3))
    write(tmp_path / "run.csv", "step,loss,tokens,tps,step_seconds\n" + rows)
    cell = {"architecture": "dense", "precision": "bf16", "devices": 4, "runs": {1: "run.csv"}}
    with pytest.raises(OctavoError, match="2000 s by its time and 2 s by its tokens per second"):
        bring(tmp_path, repository, format="csv", columns={"tokens_per_second_per_device": "tps"}, cells=[cell])


# --- diverged -------------------------------------------------------------------------------------------------------


def megatron_line(step: int, loss: str) -> str:
    return f" iteration {step}/400 | elapsed time per iteration (ms): 500.0 | learning rate: 1.0E-05 |{loss}"


@pytest.mark.parametrize(
    "endings",
    [
        [" lm loss: nan |"],
        [" lm loss: 0.000000E+00 |", " lm loss: 0.000000E+00 |"],  # all iterations skipped
        ["", ""],  # the same by Megatron-LM until 2026: it leaves the loss out
        [" lm loss: 9.0 |"] * 10,
    ],
)
def test_a_run_that_ended_without_a_sane_loss_diverged_also_if_it_was_stopped_then(
    tmp_path: Path, repository: Path, endings: list[str]
) -> None:
    losses = [f" lm loss: {2 + 8 / (1 + step):.6E} |" for step in range(20)] + endings
    write(tmp_path / "run.log", "\n".join(megatron_line(10 * (i + 1), one) for i, one in enumerate(losses)) + "\n")
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    folder, _ = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    run = run_of(folder)
    assert run["status"] == "diverged"
    assert pd.isna(run["training_loss"])


@pytest.mark.parametrize(("cell_text", "status"), [("NaN", "diverged"), ("inf", "diverged"), ("", "completed")])
def test_a_last_validation_of_nan_is_a_divergence_and_a_blank_one_is_none(
    tmp_path: Path, repository: Path, cell_text: str, status: str
) -> None:
    validations = {20: "3.1", 40: "2.9", 60: cell_text}
    rows = [f"{step},{2 + 8 / step},{validations.get(step, '')}" for step in range(10, 61, 10)]
    write(tmp_path / "run.csv", "\n".join(["step,loss,validation_loss", *rows]) + "\n")
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.csv"}}
    folder, _ = bring(tmp_path, repository, format="csv", cells=[cell])
    run = run_of(folder)
    assert run["status"] == status
    assert pd.isna(run["validation_loss"]) == (status == "diverged")


# --- nothing is guessed ---------------------------------------------------------------------------------------------


def test_what_is_not_said_stays_blank(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    folder, imported = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    steps, run = steps_of(folder), run_of(folder)
    for column in ("tokens", "model_flops", "device_hours"):
        assert steps[column].isna().all()
    for column in (
        "tokens", "total_parameters", "experts", "device_hours_final", "device_hours_all_in", "cost_final",
        "device_kind", "validation_bits_per_byte",
    ):  # fmt: skip
        assert pd.isna(run[column])
    assert len(read_table(folder.attempts_table, "attempts", made_by="octavo import")) == 0
    text = "; ".join(imported.blank)
    for asked_for in ("sequence_length", "flops_per_token", "devices", "cluster"):
        assert asked_for in text


def test_a_model_is_counted_and_a_cluster_prices(tmp_path: Path, repository: Path, monkeypatch: Any) -> None:
    write(tmp_path / "run.log", MEGATRON)
    cell = {
        "architecture": "moe", "precision": "bf16", "model": "deepseekmoe-16b", "sequence_length": 4096, "devices": 8,
        "device_kind": "H100 SXM", "runs": {1: "run.log"},
    }  # fmt: skip
    folder, _ = bring(tmp_path, repository, format="megatron_log", cluster="h100-node", cells=[cell])
    run = run_of(folder)
    from octavo.accounting.money import cost
    from octavo.experiment.load import load_cluster

    assert run["total_parameters"] == pytest.approx(16.4e9, rel=0.01)  # arXiv 2401.06066, table 5
    assert (run["experts"], run["experts_per_token"]) == (64, 6)
    cluster, device = load_cluster("h100-node", ConfigFolders(repository / "configs"))
    assert run["cost_final"] == pytest.approx(cost(cluster, device, 640 / 3600))
    assert pd.isna(run["cost_all_in"])  # attempts are not known


def test_what_losses_are_losses_of_is_stated_for_the_file_or_a_cell(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "a.log", MEGATRON)
    write(tmp_path / "b.log", MEGATRON.replace("7.000000E+00", "6.900000E+00"))
    cells = [
        {"architecture": "dense", "precision": "bf16", "runs": {1: "a.log"}},
        {"architecture": "moe", "precision": "bf16", "runs": {1: "b.log"}, "tokenizer": "o200k", "data": "fineweb"},
    ]
    folder, imported = bring(tmp_path, repository, format="megatron_log", tokenizer="gpt2", cells=cells)
    runs = read_table(folder.runs_table, "runs", made_by="octavo import")
    assert runs["tokenizer"].tolist() == ["gpt2", "o200k"]
    assert runs["data"].fillna("").tolist() == ["", "fineweb"]
    assert runs["validation"].isna().all()
    assert "no training data for dense-bf16: give data" in imported.blank


# --- verdicts on imported runs alone --------------------------------------------------------------------------------


def synthetic_log(loss: Callable[[np.ndarray], np.ndarray], milliseconds: float, steps: int = 200) -> str:
    done = np.arange(10, steps + 1, 10)
    lines = []
    for step, value in zip(done, loss(done), strict=True):
        lines.append(
            f" iteration {step:8d}/{steps:8d} | consumed samples: {step * 256:12d} | elapsed time per iteration (ms): "
            f"{milliseconds:.1f} | learning rate: 1.000000E-04 | global batch size:   256 | lm loss: {value:.6E} | "
            "grad norm: 1.000 | number of skipped iterations:   0 | number of nan iterations:   0 |"
        )
        lines.append(f" validation loss at iteration {step} | lm loss value: {value:.6E} | lm loss PPL: 1.0E+01 | ")
    return "\n".join(lines) + "\n"


@pytest.fixture
def grid(tmp_path: Path, repository: Path) -> ExperimentFolder:
    """Dense and MoE, BF16 and FP8, three seeds: MoE learns 1.5 times as fast per step and takes 1.2 times as long; FP8
    ends 0.01 % higher and takes 0.7 times as long."""
    cells = []
    for architecture, pace, slowness in (("dense", 1.0, 1.0), ("moe", 1.5, 1.2)):
        for precision, offset, speed in (("bf16", 0.0, 1.0), ("fp8_blockwise", 1e-4, 0.7)):
            runs = {}
            for seed in (1, 2, 3):
                factor = (1 + offset + 2e-5 * (seed - 2)) * (1 + 0.01 * seed)

                def loss(step: np.ndarray, factor: float = factor, pace: float = pace) -> np.ndarray:
                    return factor * (1.5 + 8 / np.sqrt(1 + step * pace))

                runs[seed] = f"{architecture}-{precision}-{seed}.log"
                write(tmp_path / runs[seed], synthetic_log(loss, 1000 * slowness * speed * (1 + 0.001 * seed)))
            cells.append(
                {
                    "architecture": architecture, "precision": precision, "sequence_length": 4096, "devices": 8,
                    "device_kind": "H100 SXM", "experts": 64 if architecture == "moe" else 0,
                    "active_parameters": 1_000_000, "runs": runs,
                }
            )  # fmt: skip
    return bring(tmp_path, repository, format="megatron_log", cells=cells)[0]


def test_imported_runs_have_verdicts_of_their_own(grid: ExperimentFolder, repository: Path) -> None:
    write_verdicts(grid, ConfigFolders(repository / "configs"), None)
    claims = {c.number: c for c in read_record(grid.claims, ClaimsFile, made_by="octavo claims").claims}
    verdicts = {number: claim.verdict for number, claim in claims.items()}
    assert {number: verdicts[number] for number in (1, 2, 3)} == dict.fromkeys((1, 2, 3), "supported")
    assert {verdicts[9], verdicts[11]} == {"inconclusive"}  # on prices that have ranges
    assert verdicts[10] == "supported"  # by what others published
    for number in (4, 5, 6, 7):
        assert verdicts[number] == "not testable here"
    # a log does not say its layout: claim 8 is of the plan that it names, where 8 devices share the experts
    assert (verdicts[8], claims[8].computed_for) == ("refuted", "in the plan of h100-node (8 H100)")
    effect = claims[1].effect
    assert effect is not None
    assert effect.value == pytest.approx(1.2 / 1.5, rel=0.01)
    assert claims[3].effect is not None
    assert claims[3].effect.value == pytest.approx(0.7, rel=0.01)


def test_imported_runs_are_compared_on_the_axes_they_have(grid: ExperimentFolder, repository: Path) -> None:
    write_verdicts(grid, ConfigFolders(repository / "configs"), None)
    found = read_record(grid.comparisons, ComparisonsFile, made_by="octavo claims").comparisons
    by_axis = {c.axis: c for c in found if (c.cell, c.against) == ("moe-bf16", "dense-bf16")}
    assert by_axis["tokens"].resource_ratio is not None
    assert by_axis["device_hours"].resource_ratio is not None
    assert by_axis["active_parameters"].mismatch == 0.0
    for axis in ("model_flops", "cost"):
        assert by_axis[axis].loss_difference is None
        assert by_axis[axis].note is not None


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("megatron_log", "a.log", "Traceback (most recent call last):\n"),
        ("torchtitan_log", "a.log", MEGATRON.split("validation", maxsplit=1)[0].replace("step", "it")),
        ("megatron_golden", "a.json", '{"lm loss": {"values": {"1": "high"}}}'),
        ("megatron_golden", "a.json", "[1, 2]"),
        ("megatron_golden", "a.json", '{"lm loss"'),
        ("csv", "a.csv", "step,loss\n1,high\n"),
        ("csv", "a.csv", "iteration,loss\n1,2.0\n"),
    ],
)
def test_a_log_that_is_not_what_it_is_called_is_named(
    kind: str, name: str, content: str, tmp_path: Path, repository: Path
) -> None:
    write(tmp_path / name, content)
    cell = {"architecture": "dense", "precision": "bf16", "runs": {1: name}}
    with pytest.raises(OctavoError) as caught:
        bring(tmp_path, repository, format=kind, cells=[cell])
    assert name in str(caught.value.where)
    assert not (tmp_path / "results").exists()


MEGATRON_LINES = MEGATRON.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("csv", "step,loss,tokens\n1,5.0,100\n2,4.5\n", ":3"),  # a row cut short
        ("csv", "step,loss\n1,5.0\n2,4,5\n", ":3"),  # a decimal comma
        ("csv", "step,loss\ninf,5.0\n", ":2"),
        ("csv", "step,loss\n1.5,5.0\n", ":2"),
        ("megatron_log", MEGATRON.replace("8.000000E+00", "8.000000E+"), ":3"),
    ],
)
def test_a_damaged_line_is_named(kind: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="is damaged") as caught:
        read_log([write(tmp_path / "run", content)], kind, {})  # type: ignore[arg-type]
    assert str(caught.value.where).endswith(said)


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_line_that_was_cut_off_loses_no_more_than_its_last_field(kept: int, tmp_path: Path) -> None:
    """Cut anywhere: what is read of it is what was written whole."""
    line = MEGATRON_LINES[-3]
    cut = line[: len(line) * kept // 9]
    steps = read_log([write(tmp_path / "run", "".join(MEGATRON_LINES[:-3]) + cut)], "megatron_log", {}).steps
    last = steps[steps["step"] == 30].to_dict("records")
    whole = {"loss": 7.0, "grad_norm": 2.1, "step_seconds": 2.0, "samples": 7680.0, "learning_rate": 3e-5}
    for row in last:
        read = {str(name): value for name, value in row.items() if name in whole and np.isfinite(value)}
        assert read.items() <= whole.items()


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    log = read_log([write(tmp_path / "run.csv", "\ufeffstep,loss\n1,5.0\n")], "csv", {})
    assert log.steps["loss"].tolist() == [5.0]


def test_a_log_that_ends_before_the_last_step_is_of_an_unfinished_run(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "a.log", MEGATRON)
    write(tmp_path / "b.log", MEGATRON.replace("/      30 |", "/    1000 |"))
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "a.log", 2: "b.log"}}
    folder, imported = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    runs = read_table(folder.runs_table, "runs", made_by="octavo import")
    assert runs["status"].tolist() == ["completed", "unfinished"]
    assert "no result of moe-bf16 (seed 2): the log ends before the run's last step" in imported.blank


def test_what_is_blank_in_one_run_alone_is_said_of_it(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "a.csv", "step,loss,tokens,validation_loss\n1,5.0,100,5.1\n2,4.5,200,4.6\n")
    write(tmp_path / "b.csv", "step,loss,tokens\n1,5.0,100\n2,4.5,200\n")
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "a.csv", 2: "b.csv"}, "experts": 8}
    _, imported = bring(tmp_path, repository, format="csv", cells=[cell])
    assert "no validation losses for moe-bf16 (seed 2): training losses are compared instead" in imported.blank
    assert "no active parameters for moe-bf16: give active_parameters, or a model" in imported.blank
    assert not [blank for blank in imported.blank if "tokens for" in blank or "experts" in blank]


def test_a_damaged_event_file_is_named(tmp_path: Path, repository: Path) -> None:
    folder = write_events(tmp_path / "tb", [(step, "lm loss", 5.0) for step in range(1, 20)])
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[200] ^= 0xFF
    file.write_bytes(content)
    cell = {"architecture": "dense", "precision": "bf16", "runs": {1: "tb"}}
    with pytest.raises(OctavoError, match="damaged"):
        bring(tmp_path, repository, format="tensorboard", cells=[cell])


@pytest.mark.parametrize("kind", ["megatron_log", "tensorboard", "megatron_golden", "torchtitan_log", "csv"])
def test_a_missing_log_is_named(kind: str, tmp_path: Path, repository: Path) -> None:
    cell = {"architecture": "dense", "precision": "bf16", "runs": {1: "none.log"}}
    with pytest.raises(OctavoError, match="missing") as caught:
        bring(tmp_path, repository, format=kind, cells=[cell])
    assert "none.log" in str(caught.value.where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "wandb"}, "wrong value"),
        ({"cells": []}, "wrong value"),
        ({"cluster": "moon"}, "no cluster 'moon'"),
        ({"columns": {"mood": "x"}, "format": "csv"}, "no column 'mood'"),
    ],
)
def test_a_wrong_file_is_named(change: dict[str, Any], message: str, tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    with pytest.raises(OctavoError, match=message):
        bring(tmp_path, repository, **{"format": "megatron_log", "cells": [cell], **change})


def test_two_cells_of_one_name_and_an_ablation_without_its_baseline(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    with pytest.raises(OctavoError, match="there twice"):
        bring(tmp_path, repository, format="megatron_log", cells=[cell, cell])
    with pytest.raises(OctavoError, match="no baseline"):
        bring(tmp_path, repository, format="megatron_log", cells=[{**cell, "ablation": "small"}])


def test_an_experiment_of_octavos_own_is_not_overwritten(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    file = write(
        tmp_path / "theirs.yaml", yaml.safe_dump({"description": "d", "format": "megatron_log", "cells": [cell]})
    )
    with pytest.raises(OctavoError, match="Octavo's own"):
        import_runs(file, ExperimentFolder(tmp_path / "results" / "quickstart"), ConfigFolders(repository / "configs"))


def test_one_log_for_two_runs_is_refused(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "a.log", MEGATRON)
    write(tmp_path / "b.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "a.log", 2: "b.log"}}
    with pytest.raises(
        OctavoError, match=r"'b.log' of moe-bf16 \(seed 2\) is the same file as one of moe-bf16 \(seed 1\)"
    ):
        bring(tmp_path, repository, format="megatron_log", cells=[cell])


def test_logs_outside_the_import_files_folder_are_refused_unless_asked_for(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "secret.log", MEGATRON)
    inside = tmp_path / "theirs"
    inside.mkdir()
    (inside / "link.log").symlink_to(tmp_path / "secret.log")
    for named in ("../secret.log", str(tmp_path / "secret.log"), "link.log"):
        cell = {"architecture": "moe", "precision": "bf16", "runs": {1: named}}
        with pytest.raises(OctavoError, match="outside the import file's folder") as caught:
            bring(inside, repository, format="megatron_log", cells=[cell])
        assert "cells.0.runs.1" in str(caught.value.where)
    imported = import_runs(
        inside / "theirs.yaml", ExperimentFolder(inside / "results" / "theirs"), ConfigFolders(repository / "configs"),
        allow_outside=True,
    )  # fmt: skip
    assert list(imported.files) == ["link.log"]


def test_what_was_dropped_of_a_log_is_said(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "run.log", MEGATRON + MEGATRON_LINES[-3].replace("7.000000E+00", "6.900000E+00"))
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    _, imported = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    (note,) = imported.runs[0].notes
    assert note.startswith("1 line dropped: the run went on from a checkpoint")
    assert f"moe-bf16 (seed 1): {note}" in imported.blank


# --- MLPerf ---------------------------------------------------------------------------------------------------------


def mlperf_log(seed: int, batch: int, steps: int) -> str:
    """A log as the reference implementation of DeepSeek-V3 writes it, with losses of our own."""

    def event(key: str, value: Any = None, **metadata: Any) -> str:
        return f":::MLLOG {json.dumps({'namespace': '', 'key': key, 'value': value, 'metadata': metadata})}\n"

    start = {
        "submission_benchmark": "deepseekv3_671b", "submission_division": "closed", "seed": seed,
        "global_batch_size": batch, "max_sequence_length": 4096, "target_accuracy": 3.6,
    }  # fmt: skip
    lines = [event(key, value) for key, value in start.items()] + [event("run_start")]
    for step in range(1, steps + 1):
        validation = 3.6 if step == steps else 5.2 - 1.5 * step / steps
        lines += [
            event("tracked_stats", {"reduced_train_loss": validation + 0.01 * seed}, samples_count=batch * step),
            event("block_stop", samples_count=batch, step=step),
            event("eval_accuracy", validation, samples_count=batch * step),
        ]
    return "".join(lines) + event("run_stop", samples_count=batch * steps, status="success")


@pytest.fixture
def mlperf(tmp_path: Path, repository: Path) -> tuple[ExperimentFolder, Imported]:
    """Three runs at each of two batch sizes, of 46 and 47 steps."""
    cells: list[dict[str, Any]] = []
    for batch, steps in ((15360, (47, 47, 47)), (18432, (46, 47, 47))):
        runs = {seed: f"gbs{batch}-{seed}.out" for seed in (1, 2, 3)}
        for seed, length in zip(runs, steps, strict=True):
            write(tmp_path / runs[seed], mlperf_log(seed, batch, length))
        cells.append({"architecture": "moe", "precision": "bf16", "runs": runs})
    cells[1]["ablation"] = "gbs18432"
    return bring(tmp_path, repository, format="mlperf", cells=cells)


def test_mlperf_logs_by_batch_size(mlperf: tuple[ExperimentFolder, Imported]) -> None:
    folder, imported = mlperf
    runs = read_table(folder.runs_table, "runs", made_by="octavo import")
    assert runs["steps"].tolist() == [47, 47, 47, 46, 47, 47]
    assert runs["tokens"].tolist() == [
        steps * batch * 4096 for steps, batch in zip(runs["steps"], [15360] * 3 + [18432] * 3, strict=True)
    ]
    assert (runs["validation_loss"] == 3.6).all()
    assert (runs["validation_step"] == runs["steps"]).all()
    assert (runs["status"] == "completed").all()
    assert runs["training_seconds"].isna().all()  # the logs have no times
    assert (runs["validation"] == "mlperf/deepseekv3_671b").all()  # the closed division fixes it
    steps = steps_of(folder)
    assert steps.groupby(["cell", "seed"])["validation_loss"].count().tolist() == [47, 47, 47, 46, 47, 47]
    assert any(blank.startswith("no device-hours for moe-bf16, moe-bf16+gbs18432") for blank in imported.blank)


def test_mlperf_logs_against_the_published_reference(
    mlperf: tuple[ExperimentFolder, Imported], repository: Path
) -> None:
    folder, _ = mlperf
    configs = ConfigFolders(repository / "configs")
    found = convergence(folder, read_reference(None, folder, configs))
    assert [(one.batch_size, one.outcome) for one in found] == [
        (15360, "not faster than the reference"),
        (18432, "not faster than the reference"),
    ]
    assert found[1].samples == [46 * 18432, 47 * 18432, 47 * 18432]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": {2: "run.out"}}, "seed is 2 in the import file and 1 in"),
        ({"sequence_length": 8192}, "sequence_length"),
    ],
)
def test_what_an_mlperf_log_says_otherwise_is_named(
    change: dict[str, Any], said: str, tmp_path: Path, repository: Path
) -> None:
    write(tmp_path / "run.out", mlperf_log(1, 15360, 3))
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.out"}, **change}
    with pytest.raises(OctavoError, match=said):
        bring(tmp_path, repository, format="mlperf", cells=[cell])


def test_where_an_import_came_from_is_kept(tmp_path: Path, repository: Path) -> None:
    import hashlib

    log = write(tmp_path / "run.log", MEGATRON)
    cell = {"architecture": "moe", "precision": "bf16", "runs": {1: "run.log"}}
    folder, imported = bring(tmp_path, repository, format="megatron_log", cells=[cell])
    assert read_imported(folder) == imported
    assert imported.files == {"run.log": hashlib.sha256(log.read_bytes()).hexdigest()}
    assert imported.description == "theirs"
