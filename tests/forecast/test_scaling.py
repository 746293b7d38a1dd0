"""A cell at another scale: the arithmetic, what it assumes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.forecast.measured import forecast_cells
from octavo.forecast.plan import plan_frame
from octavo.forecast.scaling import carry
from octavo.layout import ExperimentFolder
from octavo.records import write_table


@pytest.fixture
def nowhere(tmp_path: Path) -> ExperimentFolder:
    """A results folder without runs."""
    return ExperimentFolder(tmp_path / "results" / "h100-node")


def test_the_forecast_at_its_own_scale_is_the_plan(nowhere: ExperimentFolder) -> None:
    experiment = load_experiment("h100-node")
    row = plan_frame(experiment, forecast_cells(experiment)).set_index("cell").loc["moe-bf16"]
    record = carry(experiment, nowhere, "moe-bf16", tokens=float(row.tokens))
    assert record["basis"] == "forecast"
    assert record["gpus"] == 8
    assert record["gpu_hours"]["value"] == pytest.approx(row.device_hours / 3, rel=1e-6)  # of three seeds
    assert record["days"]["value"] == pytest.approx(row.hours_per_run / 24)
    assert record["cost"]["value"] == pytest.approx(row.cost / 3)
    assert record["gpu_hours"]["low"] < record["gpu_hours"]["value"] < record["gpu_hours"]["high"]


def test_deepseek_v3_at_its_published_scale(nowhere: ExperimentFolder) -> None:
    record = carry(load_experiment("deepseek-v3"), nowhere, "moe-fp8_blockwise", published="deepseek-v3")
    assert (record["tokens"], record["gpus"]) == (14.8e12, 2048)
    assert record["published"]["gpu_hours"] == pytest.approx(2.664e6)
    assert record["gpu_hours"]["low"] < 2.664e6 < record["gpu_hours"]["high"]
    assert not any("equal models" in one for one in record["assumptions"])
    # what the plan says of the cell is said here too; hours of pre-training alone, at the same 2 USD
    experiment = load_experiment("deepseek-v3")
    plan = plan_frame(experiment, forecast_cells(experiment)).set_index("cell").loc["moe-fp8_blockwise"]
    assert record["memory_fits"] == bool(plan["memory_fits"])
    assert record["published"]["cost"] == pytest.approx(5.328e6)
    assert "pre-training alone" in record["published"]["stages"]


def test_another_model_is_said_to_be_another(nowhere: ExperimentFolder) -> None:
    record = carry(load_experiment("h100-node"), nowhere, "moe-bf16", published="llama-3.1-8b")
    assert any("equal tokens, not equal models" in one for one in record["assumptions"])


def write_runs(folder: ExperimentFolder, *seconds: float) -> None:
    """One run of 1e9 tokens on 8 GPUs for each time."""
    layout = load_experiment("h100-node").cells["moe-bf16"].layout
    rows = [
        {
            "experiment": "h100-node", "cell": "moe-bf16", "seed": seed, "architecture": "moe", "precision": "bf16",
            "status": "completed", "steps": 954, "tokens": 10**9, "device_kind": "H100", "device_count": 8,
            "training_device_hours": 8 * taken / 3600, "layouts": layout, "emulated": False, "attempts": 1,
        }
        for seed, taken in enumerate(seconds, 1)
    ]  # fmt: skip
    write_table(folder.runs_table, pd.DataFrame(rows), "runs")


def test_measured_runs_take_the_forecasts_place(nowhere: ExperimentFolder) -> None:
    """4,000, 5,000 and 6,250 s: 31,250, 25,000 and 20,000 tokens/s/GPU, each 0.8 times the one before. In logarithms
    the standard error is ln(1.25) / sqrt(3), and Student's t of two degrees of freedom at 90 % is 1.8856."""
    write_runs(nowhere, 4000.0, 5000.0, 6250.0)
    record = carry(load_experiment("h100-node"), nowhere, "moe-bf16", tokens=1e12)
    assert record["basis"] == "measured"
    assert record["interval"] == 0.8
    half = 1.25 ** (1.8856 / 3**0.5)
    assert record["gpu_hours"]["value"] == pytest.approx(1e12 / 25_000 / 3600)
    assert record["gpu_hours"]["low"] == pytest.approx(1e12 / 25_000 / half / 3600, rel=1e-4)
    assert record["gpu_hours"]["high"] == pytest.approx(1e12 / 25_000 * half / 3600, rel=1e-4)
    larger = carry(load_experiment("h100-node"), nowhere, "moe-bf16", tokens=1e12, gpus=64)
    forecast = carry(load_experiment("h100-node"), ExperimentFolder(nowhere.path / "none"), "moe-bf16", tokens=1e12)
    spread = [one["gpu_hours"]["high"] / one["gpu_hours"]["low"] for one in (larger, forecast)]
    assert spread[0] == pytest.approx(spread[1])  # the way there is forecast
    assert any("from 8 to 64 GPUs" in one for one in larger["assumptions"])


def test_one_run_has_no_interval(nowhere: ExperimentFolder) -> None:
    write_runs(nowhere, 5000.0)
    record = carry(load_experiment("h100-node"), nowhere, "moe-bf16", tokens=1e12)
    assert record["gpu_hours"] == {"value": pytest.approx(1e12 / 25_000 / 3600), "low": None, "high": None}
    assert record["cost"]["low"] is record["days"]["high"] is None
    assert any("one run: no interval" in one for one in record["assumptions"])
    arguments = ["scale", str(nowhere.path), "--cell", "moe-bf16", "--tokens", "1e12"]
    assert "GPU-hours (one run: no interval)" in CliRunner().invoke(app, arguments).stdout


def test_runs_on_cpus_are_no_measure(nowhere: ExperimentFolder) -> None:
    row = {
        "experiment": "h100-node", "cell": "moe-bf16", "seed": 1, "architecture": "moe", "precision": "bf16",
        "status": "completed", "steps": 1, "tokens": 10, "device_kind": "cpu", "device_count": 1,
        "training_device_hours": 1 / 3600, "layouts": "data 1", "emulated": False, "attempts": 1,
    }  # fmt: skip
    write_table(nowhere.runs_table, pd.DataFrame([row]), "runs")
    assert carry(load_experiment("h100-node"), nowhere, "moe-bf16", tokens=1e9)["basis"] == "forecast"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["results/laptop", "--cell", "moe-bf16", "--tokens", "1e9"], "says nothing of GPUs"),
        (["results/h100-node", "--cell", "moe-fp4", "--tokens", "1e9"], "no cell 'moe-fp4'"),
        (["results/h100-node", "--cell", "moe-bf16"], "tokens to carry it to"),
        (["results/h100-node", "--cell", "moe-bf16", "--to", "gpt-oss-120b"], "tokens to carry it to"),
        (["results/h100-node", "--cell", "moe-bf16", "--to", "gpt-6"], "no published run 'gpt-6'"),
        (["results/h100-node", "--cell", "moe-bf16", "--tokens", "1e9", "--gpus", "12"], "cannot hold the layout"),
        (["foo/h100-node", "--cell", "moe-bf16", "--tokens", "1e9"], "'foo/h100-node' is not an experiment"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, ["scale", *arguments]).exception
    assert isinstance(refused, OctavoError)
    assert words in str(refused)


def test_the_verb() -> None:
    arguments = ["scale", "results/deepseek-v3", "--cell", "moe-fp8_blockwise", "--to", "deepseek-v3"]
    text = CliRunner().invoke(app, arguments).stdout
    assert "published: 2,664,000 GPU-hours, pre-training alone" in text
    assert "5,328,000 USD at the same price (arXiv 2412.19437v2, table 1)" in text  # 2.664 M hours at 2 USD
    assert "does not fit" not in text  # as the plan says of the cell, which recomputes what its run did
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["schema_version"] == 1
