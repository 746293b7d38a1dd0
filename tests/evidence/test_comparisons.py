"""Comparisons against closed-form truth: a synthetic cell's loss after t tokens is a formula, so what it takes to reach
another's loss is one too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from octavo.evidence.comparisons import AXES, paired
from octavo.records import Axis, Comparison
from tests.evidence.conftest import Judged
from tests.synthetic import Truth

Judge = Callable[..., Judged]

EXACT: dict[str, Any] = {"seed_sd": 0.0, "run_sd": 0.0, "step_sd": 0.0}
SAME_SEQUENCES = {
    "training": {
        "steps": 200, "global_batch_size": 8, "micro_batch_size": 8, "sequence_length": 128,
        "optimizer": {"learning_rate": 1e-3}, "evaluation": {"interval": 4, "sequences": 16, "final_sequences": 16},
        "checkpoints": {"interval": 50},
    }
}  # fmt: skip


def of(found: Judged, axis: Axis, cell: str = "moe-bf16", against: str = "dense-bf16") -> Comparison:
    one = [c for c in found.comparisons.comparisons if (c.axis, c.cell, c.against) == (axis, cell, against)]
    assert len(one) == 1
    return one[0]


def exact(judged: Judge, **arguments: Any) -> Judged:
    chosen: dict[str, Any] = {
        "precisions": ("bf16",), "ablations": {}, "seeds": (1, 2), "only": ["01-moe-saves-device-hours"],
        "changes": SAME_SEQUENCES, "truth": Truth(token_advantage={"moe": 1.25}, **EXACT), "steps": 200,
    }  # fmt: skip
    return judged(**{**chosen, **arguments})


def test_a_token_advantage_is_the_ratio_of_tokens(judged: Judge) -> None:
    comparison = of(exact(judged), "tokens")
    assert comparison.resource_ratio is not None
    assert comparison.resource_ratio.value == pytest.approx(1 / 1.25, rel=2e-3)  # interpolated between points
    assert comparison.censored == 0


def test_the_loss_difference_at_equal_tokens(judged: Judge) -> None:
    """200 steps of 1,024 tokens: 1.5 + 4 / sqrt(1 + 1.25 x 204,800 / 20,000) over 1.5 + 4 / sqrt(1 + 204,800 / 20,000)
    is 2.5767 / 2.6930, 4.3 % less."""
    dense, moe = (1.5 + 4 / np.sqrt(1 + advantage * 204_800 / 20_000) for advantage in (1.0, 1.25))
    comparison = of(exact(judged), "tokens")
    assert comparison.loss_difference is not None
    assert comparison.loss_difference.value == pytest.approx(100 * (moe / dense - 1), rel=1e-9)
    assert comparison.loss_difference.unit == "%"
    assert comparison.loss_difference.n == 2


def test_device_hours_weigh_tokens_by_the_time_they_take(judged: Judge) -> None:
    """A step of the mixture takes 1.35 times as long: 1.35 / 1.25 = 1.08 times the device-hours for the same loss, and
    after as many device-hours as the dense model has, 1 / 1.35 of its tokens."""
    comparison = of(exact(judged), "device_hours")
    assert comparison.resource_ratio is not None
    assert comparison.loss_difference is not None
    assert comparison.resource_ratio.value == pytest.approx(1.35 / 1.25, rel=2e-3)
    dense, moe = (1.5 + 4 / np.sqrt(1 + 204_800 * factor / 20_000) for factor in (1.0, 1.25 / 1.35))
    assert comparison.loss_difference.value == pytest.approx(100 * (moe / dense - 1), rel=2e-3)
    assert comparison.note == "MoE BF16 is read at 74 % of its run, with its learning rate at 26 % of its peak"


def test_a_cell_that_is_worse_needs_more(judged: Judge) -> None:
    found = exact(judged, truth=Truth(token_advantage={"moe": 0.8}, **EXACT))
    comparison = of(found, "tokens")
    assert comparison.resource_ratio is not None
    assert comparison.resource_ratio.value == pytest.approx(1 / 0.8, rel=2e-3)


def test_model_flops_weigh_tokens_by_their_flops(judged: Judge) -> None:
    found = exact(judged)
    flops = found.grid.runs.groupby("cell")["flops_per_token"].first()
    comparison = of(found, "model_flops")
    assert comparison.resource_ratio is not None
    assert comparison.resource_ratio.value == pytest.approx(flops["moe-bf16"] / flops["dense-bf16"] / 1.25, rel=2e-3)


def test_money_counts_start_up_too(judged: Judge) -> None:
    """An attempt holds its device 10 s before its first step: 200 x 1 + 10 s for dense, 200 x 1.35 + 10 s for the
    mixture, spread over their steps."""
    comparison = of(exact(judged), "cost")
    assert comparison.resource_ratio is not None
    dense, moe = 210 / 200, 280 / 200
    assert comparison.resource_ratio.value == pytest.approx(moe / dense / 1.25, rel=3e-3)


def test_a_curve_ends_with_its_run(judged: Judge) -> None:
    """200 steps of 1024 tokens, the last of which is validated as those before it."""
    curve = exact(judged).grid.curve("dense-bf16", 1, "tokens")
    assert curve is not None
    assert curve.end == 200 * 1024


def test_too_few_validations_leave_the_curve_to_training_losses(judged: Judge) -> None:
    """40 steps and a validation every 20: the curve goes through training losses, which are the truth without noise."""
    found = exact(judged, steps=40, changes={}, validation_interval=20)
    comparison = of(found, "device_hours")
    assert comparison.resource_ratio is not None
    assert comparison.resource_ratio.value == pytest.approx(1.35 / 1.25, rel=5e-3)
    assert comparison.note is not None
    assert "training losses" in comparison.note


def test_runs_too_short_for_any_curve_say_so(judged: Judge) -> None:
    found = exact(judged, steps=2, changes={}, validation_interval=20)
    tokens, hours = of(found, "tokens"), of(found, "device_hours")
    assert tokens.loss_difference is not None
    assert tokens.resource_ratio is None
    assert hours.loss_difference is None
    for comparison in (tokens, hours):
        assert comparison.note is not None
        assert "too few losses for a curve" in comparison.note


def test_parameter_axes_are_for_cells_that_agree_in_them(judged: Judge) -> None:
    """Two of eight experts of 64 and a shared one of 128 are the dense 256; in total the mixture has 2.5 times it."""
    found = exact(judged)
    assert of(found, "active_parameters").mismatch == pytest.approx(0.0, abs=0.05)
    assert not [c for c in found.comparisons.comparisons if c.axis == "total_parameters"]
    fp8 = exact(judged, precisions=("bf16", "fp8_blockwise"))
    assert of(fp8, "total_parameters", "moe-fp8_blockwise", "moe-bf16").mismatch == 0.0


def test_every_pair_stands_on_every_axis(judged: Judge) -> None:
    found = exact(judged, precisions=("bf16", "fp8_blockwise"), ablations=None, steps=30)
    pairs = {(c.kind, c.cell, c.against) for c in found.comparisons.comparisons}
    assert pairs == {
        ("architecture", "moe-bf16", "dense-bf16"),
        ("architecture", "moe-fp8_blockwise", "dense-fp8_blockwise"),
        ("precision", "dense-fp8_blockwise", "dense-bf16"),
        ("precision", "moe-fp8_blockwise", "moe-bf16"),
        ("ablation", "moe-bf16+no_shared_expert", "moe-bf16"),
        ("ablation", "moe-bf16+few_experts", "moe-bf16"),
        ("ablation", "moe-fp8_blockwise+fp14", "moe-fp8_blockwise"),
    }
    axes = {c.axis for c in found.comparisons.comparisons if c.cell == "moe-fp8_blockwise+fp14"}
    assert axes == set(AXES)


def test_times_of_an_emulation_are_marked(judged: Judge) -> None:
    found = exact(judged, precisions=("bf16", "fp8_blockwise"), steps=30)
    for axis in AXES:
        fp8 = [c for c in found.comparisons.comparisons if c.axis == axis and "fp8" in c.cell]
        assert all(c.emulated == (axis in ("device_hours", "cost")) for c in fp8)
    assert not of(found, "device_hours").emulated


def test_a_diverged_run_is_censored_and_said(judged: Judge) -> None:
    found = exact(judged, seeds=(1, 2, 3), diverged=[("moe-bf16", 2)])
    comparison = of(found, "tokens")
    assert comparison.censored == 1
    assert comparison.note is not None
    assert "seed 2 diverged" in comparison.note
    assert comparison.loss_difference is not None
    assert comparison.loss_difference.n == 2


def test_a_curve_that_begins_below_the_loss_is_censored(judged: Judge) -> None:
    """So much better that its first validation, after 4 of 200 steps, is below the other's end."""
    found = exact(judged, truth=Truth(token_advantage={"moe": 100.0}, **EXACT))
    comparison = of(found, "tokens")
    assert comparison.censored == 2
    assert comparison.resource_ratio is None
    assert comparison.note is not None
    assert "begins below" in comparison.note
    assert comparison.loss_difference is not None


def test_a_pair_without_a_common_seed_says_so(judged: Judge) -> None:
    found = exact(judged, unfinished={("moe-bf16", 1): 20, ("moe-bf16", 2): 20})
    comparison = of(found, "tokens")
    assert comparison.loss_difference is None
    assert comparison.note == "no seed is complete for both"


def test_pairing_takes_off_what_seeds_have_in_common(judged: Judge) -> None:
    """Seeds differ by 5 %, the runs of a seed by 0.05 %: the paired difference knows the second only."""
    seeds = tuple(range(1, 11))
    truth = Truth(seed_sd=0.05, run_sd=0.0005, step_sd=0.0)
    found = exact(judged, seeds=seeds, truth=truth, steps=40, changes={}, validation_interval=4)
    comparison = of(found, "tokens")
    assert comparison.loss_difference is not None
    low, high = comparison.loss_difference.low, comparison.loss_difference.high
    assert low is not None
    assert high is not None
    # half a 95 % interval of ten differences of two runs: 2.262 x sqrt(2) x 0.05 % x (about 0.96) / sqrt(10) = 0.05 %
    assert 0.02 < (high - low) / 2 < 0.1
    assert comparison.loss_difference.bootstrap_low is not None
    assert comparison.loss_difference.bootstrap_low == pytest.approx(low, abs=0.03)


def test_an_interval_of_a_ratio_is_one_of_its_logarithm(judged: Judge) -> None:
    found = exact(judged, seeds=(1, 2, 3), truth=Truth(seed_sd=0.01, run_sd=0.01, step_sd=0.0))
    comparison = of(found, "tokens")
    grid = found.grid
    (pair,) = grid.pairs("architecture")
    values = paired(grid, pair, "tokens")
    assert values is not None
    ratio = comparison.resource_ratio
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.value == pytest.approx(np.exp(values.ratio.mean()))
    assert np.sqrt(ratio.low * ratio.high) == pytest.approx(ratio.value)


def test_runs_are_found_whole_across_row_groups(judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group of steps.parquet may end within a run."""
    whole = exact(judged)
    runs = [(cell, seed) for cell in ("dense-bf16", "moe-bf16") for seed in (1, 2)]
    curves = {run: whole.grid.curve(*run, "tokens") for run in runs}
    monkeypatch.setattr("octavo.evidence.aggregate.ROW_GROUP", 250)
    cut = exact(judged)
    assert pq.ParquetFile(cut.folder.steps_table).num_row_groups == 4  # 250 and 150 rows, twice
    for (cell, seed), curve in curves.items():
        again = cut.grid.curve(cell, seed, "tokens")
        assert curve is not None
        assert again is not None
        assert again.resource.tolist() == curve.resource.tolist()
        assert again.loss.tolist() == curve.loss.tolist()


def test_a_second_dense_model_is_a_pair_of_its_own(judged: Judge) -> None:
    """One with the mixture's total parameters: that pair stands on the axis of total parameters, the other does not."""
    from tests.synthetic import ATTENTION, MODELS

    large = {"layers": 2, "hidden_size": 64, "feed_forward_size": 640, "attention": ATTENTION}
    found = exact(judged, steps=20, changes={**SAME_SEQUENCES, "models": {**MODELS, "large": large}})
    by_axis = {(c.axis, c.against) for c in found.comparisons.comparisons if c.cell == "moe-bf16"}
    assert ("total_parameters", "large-bf16") in by_axis
    assert ("total_parameters", "dense-bf16") not in by_axis
    assert ("active_parameters", "large-bf16") not in by_axis
    parts = {part.label: part for part in found.claims[1].parts}
    assert parts["MoE BF16 against large BF16"].verdict == "not testable here"
    assert parts["BF16"].effect is not None
