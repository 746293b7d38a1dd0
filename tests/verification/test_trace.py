"""A number leads back to its runs, attempts, steps, configuration, data, image, lock and commit."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from octavo.errors import OctavoError
from octavo.files import sha256
from octavo.layout import ExperimentFolder
from octavo.report.content import document
from octavo.report.document import Strip, Table, Tiles
from octavo.report.inputs import load_inputs
from octavo.report.sections.answer import grid_table
from octavo.verification.trace import trace


def test_the_chain_of_a_claim_is_whole(folder: ExperimentFolder) -> None:
    claim = next(one for one in json.loads(folder.claims.read_text())["claims"] if one["runs"] and one["effect"])
    said = "\n".join(trace(folder, f"claims.{claim['number']}.effect"))
    assert str(claim["effect"]["value"]) in said.splitlines()[0]
    for name in claim["runs"]:
        cell, _, seed = name.rpartition("/seed-")
        run = folder.run(cell, int(seed))
        result, made = json.loads(run.result.read_text()), json.loads(run.provenance.read_text())
        for part in (result["run_fingerprint"], result["data_manifest_sha256"], made["git_commit"]):
            assert part in said
        assert str(result["validation_loss"]) in said
    assert said.count("steps 1 to 40 count") == len(claim["runs"])


def test_a_number_of_a_table(folder: ExperimentFolder) -> None:
    result = json.loads(folder.run("moe-bf16", 2).result.read_text())
    said = list(trace(folder, "runs.moe-bf16/seed-2.validation_loss"))
    assert said[0] == f"runs.moe-bf16/seed-2.validation_loss = {result['validation_loss']}"
    assert [line for line in said if line.startswith("  run ")] == ["  run moe-bf16/seed-2"]


def test_steps_count_for_the_attempt_that_did_them_last(folder: ExperimentFolder) -> None:
    """An attempt that reached step 40 and was resumed from step 30: of the first, steps 1 to 30 count."""
    run = folder.run("moe-bf16", 1)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    again = [{**line, "attempt": 2} for line in lines if line["step"] > 30]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *again]))
    first = json.loads(run.attempts.read_text())
    second = {**first, "attempt": 2, "first_step": 30}
    run.attempts.write_text("".join(json.dumps(one) + "\n" for one in (first, second)))
    said = "\n".join(trace(folder, "runs.moe-bf16/seed-1.validation_loss"))
    assert "steps 1 to 30 count" in said
    assert "steps 31 to 40 count" in said


@pytest.mark.parametrize(
    ("name", "file", "column", "row"),
    [
        ("attempts.moe-bf16/seed-2/1.device_hours", "attempts.parquet", "device_hours", ("attempt", 1)),
        ("steps.moe-bf16/seed-2/30.loss", "steps.parquet", "loss", ("step", 30)),
    ],
)
def test_a_number_of_an_attempt_or_a_step(
    folder: ExperimentFolder, name: str, file: str, column: str, row: tuple[str, int]
) -> None:
    table = pd.read_parquet(folder.path / file)
    (value,) = table[(table["cell"] == "moe-bf16") & (table["seed"] == 2) & (table[row[0]] == row[1])][column]
    said = list(trace(folder, name))
    assert said[0] == f"{name} = {value}"
    assert "  run moe-bf16/seed-2" in said


def test_a_number_of_the_plan(folder: ExperimentFolder) -> None:
    plan = pd.read_csv(folder.plan_csv).set_index("cell")
    said = list(trace(folder, "plan.moe-bf16.cost"))
    assert said[0] == f"plan.moe-bf16.cost = {plan.loc['moe-bf16', 'cost']}"
    assert "it is a forecast" in said[-1]
    for file in ("experiments/synthetic.yaml", "clusters/devices/synthetic.yaml", "calibration/cpu.yaml"):
        assert file in said[-1]
    assert f"results/synthetic/plan.json (SHA-256 {sha256(folder.plan_steps)})" in said[-1]


def test_a_number_of_an_ablations_report(folder: ExperimentFolder) -> None:
    """Its tables hold the ablation and its baseline alone, and its claims are held against these."""
    run = "runs.moe-bf16+few_experts/seed-1.validation_loss"
    said = list(trace(folder, run, "few_experts"))
    result = json.loads(folder.run("moe-bf16+few_experts", 1).result.read_text())
    assert said[0] == f"{run} = {result['validation_loss']}"
    assert "ablations/few_experts/runs.parquet" in said[2]
    with pytest.raises(OctavoError, match="there is no number"):
        list(trace(folder, "runs.dense-bf16/seed-1.validation_loss", "few_experts"))
    with pytest.raises(OctavoError, match="no report of the ablation 'nothing'"):
        list(trace(folder, run, "nothing"))


def test_every_number_on_page_one_has_a_key_that_leads_to_it(folder: ExperimentFolder) -> None:
    """Each entry with a digit in it, but for names; what is traced, rounded, is what stands there."""
    content = document(load_inputs(folder), {})
    tiles, grid, verdicts, _ = content.sections[0].blocks
    assert isinstance(tiles, Tiles)
    assert isinstance(grid, Table)
    assert isinstance(verdicts, Strip)
    lead = [tile.key for tile in (*tiles.tiles, *verdicts.tested)]
    assert all(lead)
    table = pd.read_parquet(folder.runs_table)
    shown = {}
    whole = grid_table(load_inputs(folder))
    for table_shown in (grid, whole):
        assert table_shown.keys is not None
        for row, keys in zip(table_shown.rows, table_shown.keys, strict=True):
            shown |= {key: text for text, key in zip(row, keys, strict=True) if key}
            assert not any(
                any(map(str.isdigit, text)) and not key for text, key in list(zip(row, keys, strict=True))[2:]
            )
    page = folder.report_html.read_text()
    for key in [*lead, *shown]:
        assert key in page
        said = list(trace(folder, key))
        assert said[0].startswith(f"{key} = ")
        assert any(line.startswith("  run ") for line in said) or "rests on no run" in said[-1]
    own = table[table["cell"] == "moe-bf16"]
    mean, hours = own["validation_loss"].mean(), own["device_hours_all_in"].sum()
    assert shown["cells.moe-bf16.validation_loss"].startswith(f"{mean:.3f} ")
    said = list(trace(folder, "cells.moe-bf16.validation_loss"))
    assert said[0].startswith(f"cells.moe-bf16.validation_loss = {mean}")
    assert said[1] == "  mean of column validation_loss over 2 completed seeds of moe-bf16"
    assert [line for line in said if line.startswith("  run ")] == ["  run moe-bf16/seed-1", "  run moe-bf16/seed-2"]
    assert next(iter(trace(folder, "cells.moe-bf16.device_hours_all_in"))).endswith(f" = {hours}")


def test_a_comparison_is_named_by_its_cells_and_axis(folder: ExperimentFolder) -> None:
    comparisons = json.loads(folder.comparisons.read_text())["comparisons"]
    (one,) = [
        one for one in comparisons
        if (one["cell"], one["against"], one["axis"]) == ("moe-bf16", "dense-bf16", "device_hours")
    ]  # fmt: skip
    said = list(trace(folder, "comparisons.moe-bf16/dense-bf16.device_hours.loss_difference.value"))
    assert said[0].endswith(f" = {one['loss_difference']['value']}")
    assert sum(line.startswith("  run ") for line in said) == 4  # two seeds of each


def test_published_figures_lead_to_the_files_they_are_in(folder: ExperimentFolder) -> None:
    """Claim 9: the article's statements, and what DeepSeek and Meta published of their runs."""
    said = list(trace(folder, "claims.9.effect"))[-1]
    for name in ("statements", "runs/deepseek-v3", "runs/llama-3.1-405b"):
        path = f"configs/published/{name}.yaml"
        assert f"{path} (SHA-256 {sha256(folder.path.parents[1] / path)})" in said
    assert "runs/deepseek-67b" not in said


@pytest.mark.parametrize(
    "name",
    [
        "cells.nothing.cost_all_in", "cells.moe-bf16.nothing", "comparisons.moe-bf16/dense-bf16.weather",
        "comparisons.0.loss_difference",
        "claims.99.effect", "claims.1.nothing", "runs.moe-bf16/seed-9.loss", "weather", "",
        "attempts.moe-bf16/seed-1/9.cost", "steps.moe-bf16/seed-1/41.loss", "steps.moe-bf16/seed-1.loss",
        "plan.nothing.cost", "plan.moe-bf16.nothing",
    ],
)  # fmt: skip
def test_a_number_that_is_not_there(folder: ExperimentFolder, name: str) -> None:
    with pytest.raises(OctavoError, match="there is no number"):
        list(trace(folder, name))
