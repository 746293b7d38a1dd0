"""What rules ask: the files of a scope, what makes a stage run again, and what must be there before a run starts."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.exceptions import WorkflowError

from octavo import workflow
from octavo.experiment.load import load_experiment
from octavo.experiment.run import run_fingerprint
from octavo.files import fingerprint
from octavo.forecast.machine import identity
from octavo.layout import TEMPLATES, machine_file
from octavo.records import MachineSpeed, TimedStep
from tests.test_records import result_value
from tests.tiny import REPOSITORY, TINY, Checkout, changed

ABLATION = {"description": "a generalist", "cells": ["moe-bf16"], "change": {"model.experts.shared_size": 32}}
WHOLE, PART = SimpleNamespace(scope="tiny"), SimpleNamespace(scope="tiny/ablations/generalist")
RUN = SimpleNamespace(experiment="tiny", cell="dense-bf16", seed="1")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """The tiny experiment with an ablation and two seeds; the working folder."""
    made = Checkout(tmp_path, changed(TINY, {"seeds": [1, 2], "ablations.generalist": ABLATION}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    forget()
    return made


def forget() -> None:
    """As when another snakemake is started."""
    for value in vars(workflow).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


DIGESTS = {
    "plan": lambda: workflow.plan_digest(RUN),
    "tables": lambda: workflow.tables_digest(WHOLE),
    "claims": lambda: workflow.claims_digest(WHOLE),
    "figures": lambda: workflow.figures_digest(WHOLE),
    "report": lambda: workflow.report_digest(WHOLE),
    "fingerprint": lambda: workflow.scope_fingerprint(WHOLE),
}


def digests() -> dict[str, str]:
    forget()
    return {name: ask() for name, ask in DIGESTS.items()}


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("configs/claims/02-fp8-loss-error.yaml", {"claims"}),
        ("configs/published/statements.yaml", {"claims"}),
        ("configs/published/runs/deepseek-v3.yaml", {"claims", "plan"}),  # a plan has it beside its forecast
        ("configs/clusters/laptop.yaml", {"plan", "tables", "claims", "figures", "report"}),  # prices
        ("configs/clusters/devices/cpu.yaml", {"plan", "tables", "claims", "figures", "report"}),  # watts
        ("configs/clusters/calibration/cpu.yaml", {"plan"}),
        ("configs/experiments/tiny.yaml", {"claims", "figures", "report"}),  # its claims, its descriptions
        ("configs/clusters/h100-node.yaml", {"claims"}),  # its prices are in claims 9 and 11
        ("text/document-3.txt", set()),  # the manifest's business
    ],
)
def test_what_a_stage_reads_makes_it_run_again_and_nothing_else_does(
    checkout: Checkout, file: str, again: set[str]
) -> None:
    before = digests()
    append(checkout.root / file, "\n# a remark\n")
    after = digests()
    assert {name for name in DIGESTS if before[name] != after[name]} == again


def test_the_plan_that_a_claim_names_makes_verdicts_again(checkout: Checkout) -> None:
    """Claim 8 is of h100-node's plan where an experiment has no devices that exchange anything."""
    before = digests()
    shutil.copy(REPOSITORY / "configs/experiments/h100-node.yaml", checkout.root / "configs/experiments")
    between = digests()
    append(checkout.root / "configs/models/node-moe.yaml", "\n# a remark\n")
    after = digests()
    assert {name for name in DIGESTS if before[name] != between[name]} == {"claims"}
    assert {name for name in DIGESTS if between[name] != after[name]} == {"claims", "plan"}


def test_a_measured_machine_makes_the_plan_again(checkout: Checkout) -> None:
    before = digests()
    steps = [
        TimedStep(kind=kind, recipe=recipe, work={"flops": flops}, seconds_per_token=flops * 1e-11, spread=0.1)
        for kind in ("dense", "experts")
        for recipe in ("bf16", "fp8_blockwise")
        for flops in (1e5, 1e6)
    ]
    speed = MachineSpeed(machine=identity(), time=datetime.now(UTC), processes=2, load=0.0, steps=steps)
    path = checkout.root / machine_file(fingerprint(identity())[:12])
    path.parent.mkdir(parents=True)
    path.write_text(speed.model_dump_json())
    after = digests()
    assert {name for name in DIGESTS if before[name] != after[name]} == {"plan"}


def test_a_changed_template_makes_the_report_again(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "TEMPLATES", Path(shutil.copytree(TEMPLATES, tmp_path / "templates")))
    before = digests()
    append(tmp_path / "templates/report.typ", "// a remark\n")
    after = digests()
    assert {name for name in DIGESTS if before[name] != after[name]} == {"report"}


def test_a_checkout_that_was_moved_makes_nothing_again(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests()
    moved = checkout.root.rename(checkout.root.with_name("moved"))
    monkeypatch.chdir(moved)
    monkeypatch.setenv("OCTAVO_ROOT", str(moved))
    assert digests() == before


def test_a_scope_is_an_experiment_or_one_ablation_and_its_baseline(checkout: Checkout) -> None:
    runs = "results/tiny/runs"
    assert len(workflow.scope_results(WHOLE)) == 5 * 2  # two models in two precisions and the ablation, two seeds
    assert workflow.scope_results(PART) == [
        f"{runs}/{cell}/seed-{seed}/result.json" for cell in ("moe-bf16", "moe-bf16+generalist") for seed in (1, 2)
    ]
    assert workflow.scope_arguments(WHOLE) == "results/tiny"
    assert workflow.scope_arguments(PART) == "results/tiny --ablation generalist"
    assert workflow.scope_plan(WHOLE) == workflow.scope_plan(PART) == "results/tiny/plan.csv"


def test_seeds_and_cells_of_an_ablation_are_part_of_its_fingerprint_and_others_are_not(checkout: Checkout) -> None:
    before = workflow.scope_fingerprint(PART)
    for changes, same in (
        ({"overrides.dense": {"training.optimizer.learning_rate": 1e-3}}, True),
        ({"overrides.moe": {"training.optimizer.learning_rate": 1e-3}}, False),
        ({"seeds": [1, 2, 3]}, False),
    ):
        checkout.write(changed(TINY, {"seeds": [1, 2], "ablations.generalist": ABLATION, **changes}))
        forget()
        assert (workflow.scope_fingerprint(PART) == before) == same, changes


@pytest.mark.parametrize("wildcards", [{"cell": "dense-fp4"}, {"seed": "3"}])
def test_a_run_that_the_experiment_does_not_have_is_an_error_of_snakemakes(
    checkout: Checkout, wildcards: dict[str, str]
) -> None:
    with pytest.raises(WorkflowError, match="has no run"):
        workflow.train_inputs(SimpleNamespace(**{**vars(RUN), **wildcards}))


def test_mistakes_in_a_file_are_errors_of_snakemakes(checkout: Checkout) -> None:
    checkout.write({**TINY, "trainning": {}})
    with pytest.raises(WorkflowError, match="unknown key 'trainning'"):
        workflow.scope_results(WHOLE)
    checkout.write(TINY)
    forget()
    with pytest.raises(WorkflowError, match="no ablation 'general'"):
        workflow.scope_results(SimpleNamespace(scope="tiny/ablations/general"))


def test_a_finished_run_needs_nothing_and_others_need_plan_and_data(checkout: Checkout) -> None:
    needed = workflow.train_inputs(RUN)
    assert needed[0] == "results/tiny/plan.csv"
    assert [Path(path).name for path in needed] == ["plan.csv", "manifest.json"]
    experiment = load_experiment("tiny")
    folder = experiment.folder.run("dense-bf16", 1)
    folder.path.mkdir(parents=True)
    own = run_fingerprint(experiment.cells["dense-bf16"].fingerprint, 1)
    folder.result.write_text(json.dumps({**result_value(), "run_fingerprint": own}))
    assert workflow.train_inputs(RUN) == []
    folder.result.write_text(json.dumps({**result_value(), "run_fingerprint": "another configuration's"}))
    assert workflow.train_inputs(RUN) == needed
    assert workflow.fingerprint_of_run(RUN) == own
    # of another layout: it is not trained again, also not because a parameter of its rule changed
    computed = experiment.cells["dense-bf16"].identity(1).computation_fingerprint
    of_layout = {"run_fingerprint": "another layout's", "computation_fingerprint": computed}
    folder.result.write_text(json.dumps({**result_value(), **of_layout}))
    assert workflow.train_inputs(RUN) == []
    assert workflow.fingerprint_of_run(RUN) == "another layout's"


def test_the_longest_runs_begin_first_and_take_the_threads_of_all_their_processes(checkout: Checkout) -> None:
    overrides = {"dense": {"training.steps": 80}, "moe": {"parallelism.data": 2, "training.threads": 2}}
    checkout.write(changed(TINY, {"overrides": overrides}))
    runs = {cell: SimpleNamespace(experiment="tiny", cell=cell, seed="1") for cell in ("dense-bf16", "moe-bf16")}
    assert workflow.train_threads(runs["moe-bf16"]) == 4
    assert workflow.train_threads(runs["dense-bf16"]) == 1
    assert workflow.train_priority(runs["dense-bf16"]) > workflow.train_priority(runs["moe-bf16"])


def ask_all(asked: dict[str, Any], wildcards: Any) -> dict[str, Any]:
    return {key: ask(wildcards, attempt=1) if key == "nodes" else ask(wildcards) for key, ask in asked.items()}


def test_without_slurm_a_run_asks_for_nothing_and_with_it_for_what_the_cluster_file_says(checkout: Checkout) -> None:
    asked = ask_all(workflow.train_resources(submits=True), RUN)
    assert {key: value for key, value in asked.items() if value is not None} == {"mem_mb": 0, "runtime": 0}
    checkout.write(changed(TINY, {"cluster": "h100-node", "precisions": ["bf16"]}))
    forget()
    asked = ask_all(workflow.train_resources(submits=True), RUN)
    assert (asked["nodes"], asked["gres"]) == (1, "gpu:h100:1")
    largest = SimpleNamespace(experiment="tiny")
    assert workflow.verification_resources()["gres"](largest) == "gpu:h100:1"
    assert workflow.train_resources(submits=False).keys() == workflow.device_caps().keys(), "what nobody submits"
    assert workflow.retries(submits=False) == 0
    assert workflow.retries(submits=True) > 0


def test_a_first_report_is_of_three_seeds_whose_runs_begin_first(checkout: Checkout) -> None:
    """Once it is there, or where all of the first look is trained already, that does not change under Snakemake: a
    report whose inputs change is made again. Where seeds are fixed there is none."""
    design = {"precisions": ["bf16"], "seeds": {"from": 4, "to": 6}}
    checkout.write(changed(TINY, {**design, "overrides.dense": {"training.steps": 80}}))
    forget()
    first = workflow.first_results(WHOLE)
    assert [path.split("/")[-2] for path in first] == ["seed-1", "seed-2", "seed-3"] * 2
    assert workflow.first_report(WHOLE) == ["results/tiny/first-report.json"]
    run = {"experiment": "tiny", "cell": "moe-bf16"}
    third, fourth = (workflow.train_priority(SimpleNamespace(**run, seed=seed)) for seed in ("3", "4"))
    longest = workflow.train_priority(SimpleNamespace(experiment="tiny", cell="dense-bf16", seed="4"))
    assert workflow.FIRST > third > longest > fourth
    for path in map(Path, [*first, *(path.replace("seed-3", "seed-4") for path in first)]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert workflow.first_report(WHOLE) != []
    forget()
    assert workflow.first_report(WHOLE) == []
    Path("results/tiny/first-report.json").touch()
    forget()
    assert workflow.first_report(WHOLE) != []
    checkout.write(TINY)
    forget()
    assert workflow.first_report(WHOLE) == []


def test_seeds_until_decided_are_asked_for_as_far_as_looks_asked(checkout: Checkout) -> None:
    """First the design's first two; any of its seeds is a run that can be asked for."""
    checkout.write(changed(TINY, {"precisions": ["bf16"], "seeds": {"from": 2, "to": 4}}))
    forget()
    assert workflow.scope_results(WHOLE) == [
        f"results/tiny/runs/{cell}/seed-{seed}/result.json" for cell in ("dense-bf16", "moe-bf16") for seed in (1, 2)
    ]
    assert workflow.run_config(SimpleNamespace(**{**vars(RUN), "seed": "4"})).cell == "dense-bf16"
    with pytest.raises(WorkflowError, match="has no run"):
        workflow.run_config(SimpleNamespace(**{**vars(RUN), "seed": "5"}))
