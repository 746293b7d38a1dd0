"""Runs planned for several lengths, against closed-form truth: what each would have cost, and what they show.

Dense takes 1 s a step on one device, the mixture 1.35 s; the mixture learns 1.25 times as fast per token. 200 steps of
1,024 tokens, planned for 50, 100 and 200 of them; the rate falls in the last fifth, so the shorter runs begin after
steps 40 and 80. While the rate is at its peak a loss is 5 % above what a planned run would have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octavo.accounting.ledger import attempts_frame
from octavo.evidence.lengths import planned_ends, whole_lengths
from octavo.experiment.load import load_experiment
from octavo.records import Axis, Comparison, read_table
from octavo.verification.trace import find
from tests.evidence.conftest import Judged
from tests.synthetic import Failure, Truth

Judge = Callable[..., Judged]

WSD = {"warmup_fraction": 0.0, "decay": "wsd", "decay_fraction": 0.2}
HORIZONS = {**WSD, "horizons": [0.25, 0.5, 1.0]}
TRUTH = Truth(token_advantage={"moe": 1.25}, decay_worth=0.05, seed_sd=0.0, run_sd=0.0, step_sd=0.0)


def planned(judged: Judge, schedule: dict[str, Any] = HORIZONS, **arguments: Any) -> Judged:
    training = {
        "steps": 200, "global_batch_size": 8, "micro_batch_size": 8, "sequence_length": 128,
        "optimizer": {"learning_rate": 1e-3}, "schedule": schedule, "checkpoints": {"interval": 50},
        "evaluation": {"interval": 10, "sequences": 16, "final_sequences": 16},
    }  # fmt: skip
    chosen: dict[str, Any] = {
        "precisions": ("bf16",), "ablations": {}, "seeds": (1, 2), "changes": {"training": training}, "truth": TRUTH,
        "only": ["01-moe-saves-device-hours"],
    }  # fmt: skip
    return judged(**{**chosen, **arguments})


def of(found: Judged, axis: Axis) -> Comparison:
    (one,) = [one for one in found.comparisons.comparisons if (one.axis, one.kind) == (axis, "architecture")]
    return one


def loss(steps: float, advantage: float = 1.0) -> float:
    return 1.5 + 4 / np.sqrt(1 + advantage * steps * 1024 / 20_000)


def test_planned_ends_have_their_part_of_the_trunk_and_their_own_steps(judged: Judge) -> None:
    ends = planned_ends(planned(judged).folder)
    assert ends["cell"].tolist() == ["dense-bf16"] * 6 + ["moe-bf16"] * 6
    assert ends["seed"].tolist() == [1, 1, 1, 2, 2, 2] * 2
    assert ends["steps"].tolist() == [50, 100, 200] * 4
    assert ends["tokens"].tolist() == [51_200, 102_400, 204_800] * 4
    # a run of 100 steps: 80 of the trunk and 20 of its own, a second each
    seconds = {"dense-bf16": 1.0, "moe-bf16": 1.35}
    hours = [steps * seconds[cell] / 3600 for cell, steps in zip(ends["cell"], ends["steps"], strict=True)]
    assert ends["device_hours"].to_numpy() == pytest.approx(hours)
    # 2 USD an hour; each run's 10 s of start-up are spread over the trunk's steps: 210 s are paid for 200
    price = {"dense-bf16": 2 * 210 / 200, "moe-bf16": 2 * 280 / 270}
    assert ends["cost"].to_numpy() == pytest.approx(
        [one * price[cell] for one, cell in zip(hours, ends["cell"], strict=True)]
    )
    dense, mixture = ([loss(steps, advantage) for steps in (50, 100, 200)] for advantage in (1.0, 1.25))
    assert ends["validation_loss"].to_numpy() == pytest.approx((dense * 2) + (mixture * 2))
    assert (ends["flops"] / ends["tokens"]).nunique() == 2  # of each architecture


def test_without_horizons_the_end_of_a_run_is_its_only_planned_end(judged: Judge) -> None:
    ends = planned_ends(planned(judged, WSD).folder)
    assert ends["steps"].tolist() == [200] * 4
    assert ends["device_hours"].to_numpy() == pytest.approx([200 / 3600] * 2 + [270 / 3600] * 2)


def test_comparisons_are_read_between_planned_ends_without_bias(judged: Judge) -> None:
    """The mixture reaches the dense model's loss after 1 / 1.25 of the tokens; at equal device-hours, 200 s, it has
    trained 200 / 1.35 steps. Three ends a run: interpolated, log-log, to half a percent."""
    found = planned(judged)
    tokens, hours = of(found, "tokens"), of(found, "device_hours")
    assert tokens.resource_ratio is not None
    assert tokens.resource_ratio.value == pytest.approx(1 / 1.25, rel=5e-3)
    assert hours.resource_ratio is not None
    assert hours.resource_ratio.value == pytest.approx(1.35 / 1.25, rel=5e-3)
    assert hours.loss_difference is not None
    assert hours.loss_difference.value == pytest.approx(100 * (loss(200 / 1.35, 1.25) / loss(200) - 1), abs=0.2)
    for one in (tokens, hours):
        assert one.planned_ends
        assert (one.loss_bias, one.ratio_bias, one.early) == (0, 0, None)
        assert "between the ends of runs planned for their lengths" in str(one.note)
    (claim,) = found.claims.values()
    assert "both planned for the length that it takes" in claim.sentence
    assert [run for run in claim.runs if run.endswith("/seed-1")] == [
        "moe-bf16/seed-1", "dense-bf16/seed-1", "dense-bf16@50/seed-1", "dense-bf16@100/seed-1", "moe-bf16@50/seed-1",
        "moe-bf16@100/seed-1",
    ]  # fmt: skip


def test_without_horizons_a_run_is_read_before_its_decay_as_before(judged: Judge) -> None:
    one = of(planned(judged, WSD), "device_hours")
    assert not one.planned_ends
    assert one.loss_bias == 1  # the mixture's loss at 200 s of 270 s is that of a rate at its peak
    assert one.loss_difference is not None
    truth = 100 * (loss(200 / 1.35, 1.25) / loss(200) - 1)
    assert one.loss_difference.value > truth + 3  # about 5 % too high


def test_with_one_planned_end_there_is_no_curve(judged: Judge) -> None:
    shorter = {(f"{cell}@{steps}", seed): steps for cell in ("dense-bf16", "moe-bf16") for steps in (50, 100)
               for seed in (1, 2)}  # fmt: skip
    one = of(planned(judged, unfinished=shorter), "device_hours")
    assert one.loss_difference is None
    assert one.resource_ratio is None
    assert "fewer than 2 ends of planned lengths" in str(one.note)


def test_a_run_that_has_not_begun_has_cost_nothing(judged: Judge) -> None:
    found = planned(judged, cells=["dense-bf16", "dense-bf16@50", "moe-bf16"])
    whole = whole_lengths(read_table(found.folder.runs_table, "runs", made_by="the test"))
    assert (3600 * whole["device_hours_all_in"]).tolist()[:2] == pytest.approx([210 + 20, 210 + 20])  # 10 steps a decay


def test_all_that_was_spent_is_in_the_ledger(judged: Judge) -> None:
    """A node fails in a decay after step 90: the run goes on from its beginning, step 80, and 10 steps are lost."""
    found = planned(judged, failures={("dense-bf16@100", 1): Failure(90)})
    runs = read_table(found.folder.runs_table, "runs", made_by="the test")
    experiment = load_experiment("synthetic", found.configs)
    with contextlib.chdir(found.root):
        ledger = attempts_frame(experiment)["device_hours"].sum()
    assert runs["device_hours_all_in"].sum() == pytest.approx(ledger)
    whole = whole_lengths(runs)
    assert whole["cell"].tolist() == ["dense-bf16"] * 2 + ["moe-bf16"] * 2
    assert whole["device_hours_all_in"].sum() == pytest.approx(ledger)
    # starts of 10 s each; 200 + 10 + 20 steps, and in seed 1 ten that were lost with a further start
    assert (3600 * whole["device_hours_all_in"]).tolist()[:2] == pytest.approx([230 + 30 + 20, 230 + 30])
    assert whole["attempts"].tolist()[:2] == [4, 3]
    traced = find(found.grid.whole, found.folder, "cells.dense-bf16.device_hours_all_in")
    assert traced.value == pytest.approx((280 + 260) / 3600)
