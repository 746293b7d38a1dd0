"""`octavo verify` on real runs: it passes on what was trained, and finds what was changed consistently."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from campaign import EXPERIMENT, NAME, Campaign

from octavo.files import sha256
from octavo.layout import ExperimentFolder
from octavo.records import AttemptRecord, VerificationFile, read_lines, read_record

CELLS = ("dense-bf16", "moe-bf16")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def verified(campaign: Campaign) -> VerificationFile:
    return read_record(campaign.folder.verification, VerificationFile, made_by="")


def test_what_was_trained_passes(campaign: Campaign) -> None:
    status = campaign.forge.run("verify", f"results/{NAME}", "--seed", "3", "--gates", "repeatability,restart")
    found = verified(campaign)
    assert status == 0, [(one.run, one.note) for one in found.checks]
    assert found.passed
    by_gate = {one.gate: one for one in found.checks}
    assert by_gate["repeatability"].status == by_gate["restart"].status == "identical"
    assert "killed after step" in by_gate["restart"].note
    for cell in ("dense-bf16", "moe-bf16"):
        campaign.assert_same_run(cell)  # the originals are as they were


def test_a_run_that_nobody_can_make_again_is_found(campaign: Campaign) -> None:
    """Every file agrees with every other: only making the runs again shows that step 5 never was."""
    for folder in campaign.folder.run_folders():
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        lines[4]["loss"] -= 0.25
        folder.metrics.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        value = json.loads(folder.result.read_text())
        folder.result.write_text(json.dumps({**value, "metrics_sha256": sha256(folder.metrics)}, indent=2))
    for stage in ("aggregate", "claims"):
        assert campaign.forge.run(stage, f"results/{NAME}") == 0
    assert campaign.forge.run("verify", f"results/{NAME}", "--gates", "repeatability", "--steps", "10") == 1
    found = verified(campaign)
    assert not found.passed
    assert {one.status for one in found.checks if one.gate == "integrity"} == {"intact"}
    (again,) = [one for one in found.checks if one.gate == "repeatability"]
    assert (again.status, again.first_step, again.differs[0]) == ("different", 5, "loss")
    campaign.restore()


@pytest.fixture(scope="module")
def pairs(campaign: Campaign) -> ExperimentFolder:
    """Two seeds, so that there is a spread to derive the tolerance from: trained, with tables."""
    experiment = {**EXPERIMENT, "precisions": ["bf16"], "seeds": [1, 2]}
    (campaign.root / "configs/experiments/pairs.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    folder = ExperimentFolder(campaign.root / "results/pairs")
    runs = [f"{cell}/seed-{seed}" for cell in CELLS for seed in (1, 2)]
    for command in (["plan"], *(["train", run] for run in runs), ["aggregate"], ["claims"]):
        verb, *run = command
        target = f"results/pairs/runs/{run[0]}" if run else "results/pairs"
        assert campaign.forge.run(verb, target) == 0, campaign.forge.said()
    return folder


def test_every_other_layout_is_trained_and_agrees_within_the_spread_of_seeds(
    campaign: Campaign, pairs: ExperimentFolder
) -> None:
    assert campaign.forge.run("verify", "results/pairs", "--gates", "baseline") == 0, campaign.forge.said()
    found = read_record(pairs.verification, VerificationFile, made_by="")
    changes = {one.note.split(":")[0]: one for one in found.checks if one.gate == "baseline"}
    assert set(changes) == {
        "data 2 instead of 1",
        "expert 2 and data 2 instead of 1 and 1",
        "tensor 2 instead of 1",
        "threads 2 instead of 1",
    }
    assert changes["tensor 2 instead of 1"].run.startswith("dense")
    assert changes["expert 2 and data 2 instead of 1 and 1"].run.startswith("moe")
    losses = {run.path: json.loads(run.result.read_text())["validation_loss"] for run in pairs.run_folders()}
    halves = [losses[pairs.run(cell, 1).path] / losses[pairs.run(cell, 2).path] - 1 for cell in CELLS]
    # Two seeds a, b deviate by (a - b) / 2 each: squares add up to (a - b)^2 / 2, over one degree of freedom a cell.
    deviation = math.sqrt(sum(half**2 / 2 for half in halves) / 2)
    for layout, one in zip(("data", "expert", "tensor", "threads"), changes.values(), strict=True):
        assert one.status in ("identical", "equal within tolerance"), one.note
        if one.status != "identical":
            assert one.difference is not None
            assert one.tolerance is not None
            assert one.difference <= one.tolerance
            assert one.tolerance == pytest.approx(4.303 * math.sqrt(2) * deviation, rel=0.02)  # t, 2 degrees of freedom
        assert "in the first 8 steps the training loss differs by at most 0." in one.note or one.status == "identical"
        cell, _, seed = one.run.rpartition("/seed-")
        (attempt,) = read_lines(pairs.rerun(f"baseline/{layout}", cell, int(seed)).attempts, AttemptRecord)
        assert attempt.device_count == (1 if layout == "threads" else 2)


def test_a_loss_that_another_layout_does_not_give_is_found(campaign: Campaign, pairs: ExperimentFolder) -> None:
    """All results are written a fifth better than they were, in every file: only runs made again show it."""
    for run in pairs.run_folders():
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        better = {name: lines[-1][name] * 0.8 for name in ("final_validation_loss", "final_validation_bits_per_byte")}
        lines[-1] |= better
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        changed = {name.removeprefix("final_"): value for name, value in better.items()}
        result = {**json.loads(run.result.read_text()), **changed, "metrics_sha256": sha256(run.metrics)}
        run.result.write_text(json.dumps(result))
    for stage in ("aggregate", "claims"):
        assert campaign.forge.run(stage, "results/pairs") == 0, campaign.forge.said()
    assert campaign.forge.run("verify", "results/pairs", "--gates", "baseline") == 1
    found = read_record(pairs.verification, VerificationFile, made_by="")
    assert {one.status for one in found.checks if one.gate == "integrity"} == {"intact"}
    assert {one.status for one in found.checks if one.gate == "baseline"} == {"different"}
