"""The plan says what every cell needs and costs, and stops what exceeds its budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from octavo.cli import app
from octavo.cpu.processor import processor
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.forecast.calibration import cpu_calibration
from octavo.forecast.cpu import MULTIPLIES_BF16
from octavo.forecast.document import typeset, write_plan
from octavo.forecast.measured import forecast_cells
from octavo.forecast.plan import COLUMNS, check_budget, plan_frame, plan_record
from octavo.forecast.setting import read_device
from octavo.layout import ExperimentFolder

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def laptop(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """The quickstart experiment, changed, in a checkout of its own."""

    def load(change: Change = lambda _: None) -> Experiment:
        monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
        for folder in ("configs/models", "configs/clusters", "configs/data", "workflow"):
            if not (tmp_path / folder).exists():
                (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder).symlink_to(repository / folder)
        value = yaml.safe_load((repository / "configs/experiments/quickstart.yaml").read_text())
        # what the arithmetic below rests on, whatever becomes of the quickstart
        value.pop("overrides", None)
        value.update(
            precisions=["bf16", "fp8_tensorwise"], seeds=[1], tokenizer={"kind": "bpe", "vocabulary_size": 2048}
        )
        value["training"].update(steps=150, global_batch_size=8, micro_batch_size=8, sequence_length=128)
        change(value)
        (tmp_path / "configs/experiments").mkdir(exist_ok=True)
        (tmp_path / "configs/experiments/small.yaml").write_text(yaml.safe_dump(value))
        return load_experiment("small")

    return load


def frame_of(experiment: Experiment) -> pd.DataFrame:
    """The plan as it is made now."""
    return plan_frame(experiment, forecast_cells(experiment))


def record_of(experiment: Experiment) -> dict[str, Any]:
    """The same as one value."""
    return plan_record(experiment, frame_of(experiment), forecast_cells(experiment))


def two_seeds_and_an_ablation(value: dict[str, Any]) -> None:
    value["seeds"] = [1, 2]
    change = {"model.experts.top_k": 2}
    value["ablations"] = {"fewer": {"description": "two experts", "cells": ["moe-bf16"], "change": change}}


def test_every_cell_has_a_row(laptop: Callable[..., Experiment]) -> None:
    frame = frame_of(laptop(two_seeds_and_an_ablation))
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame.cell) == [
        "dense-bf16", "dense-fp8_tensorwise", "moe-bf16", "moe-fp8_tensorwise", "moe-bf16+fewer",
    ]  # fmt: skip
    assert list(frame.ablation.dropna()) == ["fewer"]


def test_the_arithmetic_of_a_row(laptop: Callable[..., Experiment]) -> None:
    row = frame_of(laptop(two_seeds_and_an_ablation)).set_index("cell").loc["dense-bf16"]
    # 3 layers of 4 x 96 x 96 attention, 3 x 96 x 288 feed-forward and 2 norms; the last norm; embedding and head
    body = 3 * (4 * 96 * 96 + 3 * 96 * 288 + 2 * 96) + 96
    assert row.total_parameters == body + 2 * 2048 * 96
    assert row.active_parameters == body + 2048 * 96
    assert row.tokens == 150 * 8 * 128
    # 6 FLOPs per parameter in a product, attention to 64 tokens on average
    flops = 6 * (body + 2048 * 96 - 7 * 96) + 3 * 3 * 2 * 3 * 64 * 64
    assert row.flops_per_token == flops
    # nothing was measured in this checkout: the table's larger dense model is this one
    table = cpu_calibration()
    slower = 1 if MULTIPLIES_BF16 & set(str(processor()["cpu_flags"]).split()) else table.without_bf16
    known = {(one.kind, one.recipe, one.work["flops"]): one.seconds_per_token for one in table.steps}
    rate = 1 / (known["dense", "bf16", flops] * slower)
    assert row.tokens_per_second_per_device == pytest.approx(rate)
    hours = row.tokens / rate / 3600
    assert row.hours_per_run == pytest.approx(hours)
    assert row.device_hours == pytest.approx(2 * hours)  # two seeds on one core
    assert row.cost == pytest.approx(2 * hours * 0.0580)
    # from twice the speed at the low price to half of it at the high one
    assert row.cost_low == pytest.approx(2 * hours / 2 * 0.0580)
    assert row.cost_high == pytest.approx(2 * hours * 2 * 0.1008)
    assert row.energy_kwh == pytest.approx(2 * hours * 3.75 * 0.8 / 1000)
    assert row.tokens_per_second_low < row.tokens_per_second_per_device < row.tokens_per_second_high


def test_optimizer_state_dominates_a_small_models_memory(laptop: Callable[..., Experiment]) -> None:
    """2 bytes of BF16, 4 of gradient, 12 of AdamW per parameter; logits of 1,024 tokens in FP32; then activations."""
    row = frame_of(laptop()).set_index("cell").loc["dense-bf16"]
    fixed = 18 * row.total_parameters + 1024 * 2048 * 4
    # per token and layer: 2 residuals and 2 norms of 96, q, k, v and the output twice, gate, up, product, in BF16;
    # 3 softmax statistics in FP32; the embedded tokens
    activations = 1024 * (3 * (2 * (4 * 96 + 5 * 96 + 3 * 288) + 4 * 3) + 2 * 96)
    assert row.memory_bytes_per_device == fixed + activations
    assert row.memory_fits


def test_a_model_that_does_not_fit_is_said_so(laptop: Callable[..., Experiment]) -> None:
    """4 layers x 12 x 4,096^2 parameters x 18 bytes: 14 GiB on a core with 4."""

    def grow(value: dict[str, Any]) -> None:
        del value["match"]
        attention = {"kind": "gqa", "heads": 32, "kv_heads": 32, "head_size": 128}
        size = {"layers": 4, "hidden_size": 4096, "feed_forward_size": 4096 * 8 // 3, "attention": attention}
        value["models"] = {"big": size}

    frame = frame_of(laptop(grow))
    assert not frame.memory_fits.any()
    assert (frame.memory_bytes_per_device > 14 * 2**30).all()


def test_the_plan_as_one_value(laptop: Callable[..., Experiment]) -> None:
    experiment = laptop(two_seeds_and_an_ablation)
    frame = frame_of(experiment)
    record = record_of(experiment)
    assert record["schema_version"] == 1
    assert record["runs"] == 5 * 2
    totals = record["totals"]
    assert totals["device_hours"] == pytest.approx(frame.device_hours.sum())
    assert totals["device_hours_high"] == pytest.approx(totals["device_hours"] * 2)  # all at the low end of speed
    assert record["ablations_share"] == pytest.approx(frame.device_hours.iloc[-1] / frame.device_hours.sum())
    for cell, step in record["steps"].items():  # 1,024 tokens a step
        rate = frame.set_index("cell").loc[cell].tokens_per_second_per_device
        assert sum(step.values()) == pytest.approx(1024 / rate)
    assert [cell["cell"] for cell in record["cells"]] == list(frame.cell)
    assert record["cells"][0]["ablation"] is None


def test_gpus_have_gpu_hours_a_budget_and_another_price() -> None:
    experiment = load_experiment("h100-node")
    record = record_of(experiment)
    assert record["hours_are"] == "GPU-hours"
    assert record["other_price"]["basis"] == "ownership"
    # 30,000 x 1.33 USD at 10 % over five years less a tenth of it, 5 % maintenance, 0.97 kW for 150 USD a month, an
    # engineer of 138,000 for 128 GPUs, a PUE of 1.3 at 0.087 USD per kWh (0.3 of it in idle hours), 70 % of all hours
    paid, power = 30_000 * 1.33, 0.97 * 1.3 * 0.087
    capital = paid * (1 - 0.1 / 1.1**5) * 0.1 / (1 - 1.1**-5)
    year = capital + 0.05 * paid + 0.97 * 150 * 12 + 138_000 / 128
    owned = year / (8760 * 0.7) + power * (1 + 0.3 * 0.3 / 0.7)
    assert record["other_price"]["per_device_hour"] == pytest.approx(owned)
    assert record["owned"]["low"] < owned < record["owned"]["high"]
    rents = {rent["commitment"]: rent for rent in record["rents"]}
    assert set(rents) == {"on demand", "for a year", "spot"}
    # the year's fixed cost and its idle power, over the rent of 3.00 less the power at work and that saved when idle
    even = (year / 8760 + 0.3 * power) / (3.0 - power + 0.3 * power)
    assert rents["on demand"]["break_even_use"]["value"] == pytest.approx(even)
    assert rents["for a year"]["break_even_use"] is None
    assert rents["for a year"]["owned_over_rented"]["value"] == pytest.approx(owned * 0.7 / 2.35)
    check_budget(experiment, frame_of(experiment))
    tight = experiment.file.model_copy(
        update={"budget": experiment.file.budget.model_copy(update={"gpu_hours": 200.0})}
    )
    frame = frame_of(experiment)
    with pytest.raises(OctavoError) as caught:
        check_budget(dataclasses.replace(experiment, file=tight), frame)
    lines = str(caught.value).splitlines()
    middle = frame.device_hours.sum()
    most = (frame.device_hours * frame.tokens_per_second_per_device / frame.tokens_per_second_low).sum()
    said = f"the plan needs up to {most:,.0f} GPU-hours ({middle:,.0f} in the middle of its range), the budget is 200"
    assert said in lines[0]
    assert lines[1].split()[0] == "moe-bf16+more_smaller_experts"  # the dearest first


def test_the_verb_writes_its_files_and_says_so(laptop: Callable[..., Experiment], tmp_path: Path) -> None:
    laptop()
    results = tmp_path / "results" / "small"
    done = CliRunner().invoke(app, ["plan", str(results)])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "results/small/plan.pdf"  # in the checkout that the results lie in
    row = pd.read_csv(results / "plan.csv").iloc[0]
    rate, low, high = (f"{row[f'tokens_per_second_{end}']:,.0f}" for end in ("per_device", "low", "high"))
    first = " ".join(lines[0].split())
    assert first.startswith(f"dense-bf16 {rate} tokens/s/core (80 % interval {low} to {high}); ")
    assert "octavo calibrate takes seconds" in done.stdout
    record = json.loads(CliRunner().invoke(app, ["plan", str(results), "--json"]).stdout)
    assert [cell["cell"] for cell in record["cells"]] == list(pd.read_csv(results / "plan.csv").cell)


def test_the_verb_says_of_each_cell_how_far_to_trust_it(tmp_path: Path) -> None:
    """No model of the fit is near in size to this experiment's: a wider interval, and no error is claimed."""
    results = tmp_path / "results" / "h100-node"
    lines = {line.split()[0]: line for line in CliRunner().invoke(app, ["plan", str(results)]).stdout.splitlines()}
    assert "tokens/s/GPU (80 % interval" in lines["dense-bf16"]
    assert "median error" not in lines["dense-fp8_tensorwise"]
    assert "no model of its kind in the fit is within a factor of 2 of it in size" in lines["Speed:"]
    assert "sums in a fixed order are reckoned to add 25% to a step" in lines["Speed:"]
    assert "recipes of FP8 are forecast to be equally fast" in lines["Speed:"]


def test_a_plan_over_budget_leaves_no_files(laptop: Callable[..., Experiment], tmp_path: Path) -> None:
    laptop(set_budget(device_hours=0.001))
    results = tmp_path / "results" / "small"
    refused = CliRunner().invoke(app, ["plan", str(results)])
    assert isinstance(refused.exception, OctavoError)
    assert not results.exists()


@pytest.mark.parametrize("path", ["results/small/ablations/x", "small/results", "."])
def test_a_path_that_is_no_results_folder(laptop: Callable[..., Experiment], path: str) -> None:
    laptop()
    refused = CliRunner().invoke(app, ["plan", path]).exception
    assert isinstance(refused, OctavoError)
    assert "results/<experiment>" in str(refused)


def test_a_recipe_that_the_clusters_gpu_cannot_do(laptop: Callable[..., Experiment]) -> None:
    """Found when the experiment is read, with the GPUs that can."""

    def ask(value: dict[str, Any]) -> None:
        value.update(cluster="h100-node", precisions=["bf16", "fp8_mxfp8"])

    with pytest.raises(OctavoError) as caught:
        laptop(ask)
    message = str(caught.value)
    assert "H100" in message
    assert "fp8_mxfp8" in message
    assert "B200" in message
    assert "GB300" in message


def test_every_gpu_experiment_plans() -> None:
    """Each loads, has its rows, and its steps' parts add up to the step."""
    for name in ("h100-node", "h100-16node", "deepseek-v3"):
        experiment = load_experiment(name)
        frame = frame_of(experiment)
        record = record_of(experiment)
        for row in frame.to_dict("records"):
            tokens = experiment.cells[row["cell"]].training.tokens_per_step
            seconds = tokens / row["tokens_per_second_per_device"] / row["devices"]
            assert sum(record["steps"][row["cell"]].values()) == pytest.approx(seconds)


def set_budget(**budget: float) -> Change:
    def change(value: dict[str, Any]) -> None:
        value["budget"] = budget

    return change


def test_a_plan_within_its_budget_goes_on(laptop: Callable[..., Experiment]) -> None:
    experiment = laptop(set_budget(device_hours=1, cost=1))
    check_budget(experiment, frame_of(experiment))


@pytest.mark.parametrize(("budget", "unit"), [({"device_hours": 0.001}, "device-hours"), ({"cost": 1e-6}, "USD")])
def test_a_plan_over_budget_stops_with_the_cells_by_cost(
    laptop: Callable[..., Experiment], budget: dict[str, float], unit: str
) -> None:
    experiment = laptop(set_budget(**budget))
    with pytest.raises(OctavoError) as caught:
        check_budget(experiment, frame_of(experiment))
    message = str(caught.value)
    assert unit in message.splitlines()[0]
    assert f"budget.{next(iter(budget))}" in message
    cells = [line.split()[0] for line in message.splitlines() if line.startswith("  dense") or line.startswith("  moe")]
    assert cells == ["moe-fp8_tensorwise", "moe-bf16", "dense-fp8_tensorwise", "dense-bf16"]
    assert "GPU" not in message


def test_a_budget_of_gpu_hours_means_nothing_without_gpus(laptop: Callable[..., Experiment]) -> None:
    experiment = laptop(set_budget(gpu_hours=1))
    with pytest.raises(OctavoError, match="has no GPUs"):
        check_budget(experiment, frame_of(experiment))


def test_the_files(laptop: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = laptop(two_seeds_and_an_ablation)
    frame = frame_of(experiment)
    folder = ExperimentFolder(tmp_path / "results/small")
    write_plan(folder, frame, record_of(experiment))
    pd.testing.assert_frame_equal(
        pd.read_csv(folder.plan_csv, dtype={"ablation": "string"}), frame, check_dtype=False, rtol=1e-12
    )


def test_the_page_says_device_hours_of_cores_and_escapes_what_files_say(laptop: Callable[..., Experiment]) -> None:
    from io import BytesIO

    from pypdf import PdfReader

    def describe(value: dict[str, Any]) -> None:
        value["description"] = "#panic() *and* [brackets $"

    experiment = laptop(describe)
    record = record_of(experiment)
    pdf = typeset(record)
    pages = PdfReader(BytesIO(pdf)).pages
    text = pages[0].extract_text()
    assert len(pages) == 1
    assert "#panic() *and* [brackets $" in text
    assert "device-hours" in text
    assert "GPU-hour" not in text
    for cell in experiment.cells:
        assert cell in text
    assert "Where a step" in text
    assert typeset(json.loads(json.dumps(record))) == pdf  # the same plan is the same file


def test_a_plan_of_many_cells_stays_on_one_page(laptop: Callable[..., Experiment]) -> None:
    from io import BytesIO

    from pypdf import PdfReader

    experiment = laptop()
    record = record_of(experiment)
    record["cells"] = [{**record["cells"][0], "cell": f"cell{i}", "cost": i + 1.0} for i in range(200)]
    record["steps"] = {f"cell{i}": record["steps"]["dense-bf16"] for i in range(200)}
    pages = PdfReader(BytesIO(typeset(record))).pages
    text = pages[0].extract_text()
    assert len(pages) == 1
    assert "cell199" in text  # the dearest
    assert "more cells, each cheaper" in text


def test_the_upper_end_is_held_against_the_budget(laptop: Callable[..., Experiment]) -> None:
    """The slow end of speed takes twice as long: half more than the middle is too little a budget."""
    experiment = laptop()
    frame = frame_of(experiment)
    middle = float(frame.device_hours.sum())
    for limit, refused in ((1.5 * middle, True), (2.1 * middle, False)):
        budget = experiment.file.budget.model_copy(update={"device_hours": limit})
        planned = dataclasses.replace(experiment, file=experiment.file.model_copy(update={"budget": budget}))
        if refused:
            with pytest.raises(OctavoError, match="in the middle of its range"):
                check_budget(planned, frame)
        else:
            check_budget(planned, frame)


def test_what_the_planned_runs_cannot_tell_is_said() -> None:
    """DeepSeek 7B against DeepSeekMoE 16B: 6.49 B against 2.62 B active parameters, 50 B tokens each."""
    experiment = load_experiment("h100-16node")
    trained, sizes = record_of(experiment)["remarks"]
    assert "4 of 4 cells of the grid see 7.7 to 19.1 tokens per active parameter" in trained
    assert "The dense model has 6.49 B active parameters, the mixture 2.62 B" in sizes
    assert "(claim 1 is one) cannot be tested with this pair" in sizes
    experiment = load_experiment("deepseek-v3")  # 14.8 T over 36.6 B: 404, and there is no pair
    assert not any("tokens per active parameter" in one for one in record_of(experiment)["remarks"])


def test_attention_that_is_not_fused_is_not_planned_for_and_said_to_be_so() -> None:
    experiment = dataclasses.replace(load_experiment("h100-node"), device=read_device("l40s"))
    (said,) = [one for one in record_of(experiment)["remarks"] if one.startswith("Not planned for: ")]
    assert said.startswith("Not planned for: dense-bf16, ")
    assert "whole score matrices are computed, which take more memory and time than a plan says" in said


def test_a_published_run_of_the_model_stands_beside_its_forecast() -> None:
    """DeepSeek-V3's table 1: 2.664 M H800 hours for 14.8 T tokens, 14.8e12 / 2.664e6 / 3600 = 1,543 tokens/s."""
    (remark,) = record_of(load_experiment("deepseek-v3"))["remarks"]
    assert "1,543 tokens/s per H800 (2,664,000 hours of all devices for 14.8 T tokens;" in remark
    assert "configs/published/runs/deepseek-v3.yaml" in remark
