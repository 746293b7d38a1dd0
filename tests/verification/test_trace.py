"""A number leads back to its runs, attempts, steps, configuration, data, image, lock and commit."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder
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


@pytest.mark.parametrize(
    "name",
    [
        "claims.99.effect", "claims.1.nothing", "runs.moe-bf16/seed-9.loss", "weather", "",
        "attempts.moe-bf16/seed-1/9.cost", "steps.moe-bf16/seed-1/41.loss", "steps.moe-bf16/seed-1.loss",
        "plan.nothing.cost", "plan.moe-bf16.nothing",
    ],
)  # fmt: skip
def test_a_number_that_is_not_there(folder: ExperimentFolder, name: str) -> None:
    with pytest.raises(OctavoError, match="there is no number"):
        list(trace(folder, name))
