"""Verdicts on imported runs of known truth, where a comparison could be unfair: schedules, validations, text, speed.

Each case was once a false verdict. The arithmetic of the truth is in `tests.simulated`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import OctavoError
from octavo.records import ClaimResult, ComparisonsFile, read_record
from tests.simulated import SimulatedCell, bring
from tests.tiny import REPOSITORY

Bring = Callable[..., dict[int, ClaimResult]]

PLANNED = "needs a run planned for this length"
DENSE = SimulatedCell()
FIVE = (1, 2, 3, 4, 5)


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bring:
    """Brings cells whose runs deviate by 0.02 % each."""
    monkeypatch.setenv("OCTAVO_ROOT", str(REPOSITORY))

    def found(*cells: SimulatedCell, seeds: tuple[int, ...] = (1, 2, 3), sd: float = 2e-4, **keys: Any) -> Any:
        rng = np.random.default_rng(5)
        noise = {(cell.name, seed): float(rng.normal() * sd) for cell in cells for seed in seeds}
        return bring(tmp_path, cells, REPOSITORY / "configs", noise, seeds, **keys)

    return found


def mixture(hours: float, **more: Any) -> SimulatedCell:
    """One whose steps take 1.35 times as long, and that needs so much of the dense model's hours."""
    return SimulatedCell("moe", pace=1.35 / hours, seconds=1.35, **more)


def fp8(**more: Any) -> SimulatedCell:
    return SimulatedCell(precision="fp8_blockwise", seconds=0.7, **more)


# --- schedules ------------------------------------------------------------------------------------------------------


def test_with_a_constant_rate_the_verdict_is_the_truth(claims: Bring) -> None:
    claim = claims(DENSE, mixture(0.95))[1]
    assert claim.verdict == "supported"
    assert claim.effect is not None
    assert claim.effect.value == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(("hours", "schedule", "worth"), [(0.95, "linear", 0.06), (0.90, "last fifth", 0.04)])
def test_the_longer_run_is_not_refuted_by_its_high_rate(
    claims: Bring, hours: float, schedule: Any, worth: float
) -> None:
    """1.35 times as many hours: it is read at 74 % of its run."""
    decay: dict[str, Any] = {"schedule": schedule, "worth": worth}
    claim = claims(replace(DENSE, **decay), mixture(hours, **decay))[1]
    assert claim.verdict == "inconclusive"
    assert claim.reason == PLANNED
    assert PLANNED in claim.sentence
    assert claim.seeds_needed is None


def test_what_contradicts_the_bias_is_decided(claims: Bring) -> None:
    """A mixture that needs 0.6 of the hours does so in spite of its high rate."""
    decay: dict[str, Any] = {"schedule": "linear", "worth": 0.06}
    claim = claims(replace(DENSE, **decay), mixture(0.6, **decay))[1]
    assert claim.verdict == "supported"


@pytest.mark.parametrize(("bf16_steps", "fp8_steps"), [(300, 150), (150, 300)])
def test_runs_planned_for_other_lengths_are_not_compared_at_one(claims: Bring, bf16_steps: int, fp8_steps: int) -> None:
    """FP8 that is BF16: the longer of the two is read at half its decay, about 2 % above the other's end."""
    decay: dict[str, Any] = {"schedule": "linear", "worth": 0.05}
    claim = claims(SimulatedCell(steps=bf16_steps, **decay), fp8(steps=fp8_steps, **decay))[2]
    assert claim.verdict == "inconclusive"
    assert claim.reason == PLANNED
    assert " ends " not in claim.sentence


def test_a_rate_that_was_not_logged_may_decay(claims: Bring) -> None:
    decay: dict[str, Any] = {"schedule": "linear", "worth": 0.06}
    claim = claims(replace(DENSE, **decay), mixture(0.95, **decay), columns={"learning_rate": "aux"})[1]
    assert claim.reason == PLANNED
    assert "was not logged" in claim.sentence


# --- final losses ---------------------------------------------------------------------------------------------------


def test_final_losses_are_compared_after_the_last_step_that_both_validated(claims: Bring) -> None:
    """Validated every 50 and every 150 of 400 steps: both after 300. The last of each are 7.7 % apart."""
    claim = claims(replace(DENSE, interval=50), fp8(interval=150))[2]
    assert claim.verdict == "supported"
    assert "after 75 % of the runs" in claim.sentence
    assert claim.effect is not None
    assert abs(claim.effect.value) < 0.1


def test_without_a_common_validation_final_losses_are_not_compared(claims: Bring) -> None:
    """Every 70 and every 90 of 400 steps."""
    claim = claims(replace(DENSE, interval=70), fp8(interval=90))[2]
    assert claim.verdict == "not testable here"
    assert "no step after which both were validated" in claim.sentence


# --- text -----------------------------------------------------------------------------------------------------------


SAME = {"tokenizer": "a", "data": "web", "validation": "held out"}


def test_losses_of_other_tokens_are_refused_and_bits_per_byte_offered(claims: Bring) -> None:
    other = {**SAME, "tokenizer": "b"}
    claim = claims(replace(DENSE, keys=SAME), fp8(keys=other))[2]
    assert claim.verdict == "not testable here"
    assert "losses per token of different tokenizers (b, a) are not compared: bits per byte could be" in claim.sentence


def test_bits_per_byte_are_compared_where_bytes_are_known(claims: Bring) -> None:
    """The same loss per token, of tokens of 4 and of 4.4 bytes: 1 / 1.1 of the bits per byte."""
    one, other = {**SAME, "bytes_per_token": 4.0}, {**SAME, "tokenizer": "b", "bytes_per_token": 4.4}
    claim = claims(replace(DENSE, keys=one), fp8(keys=other))[2]
    assert claim.effect is not None
    assert claim.effect.value == pytest.approx(100 * (1 / 1.1 - 1), abs=0.1)
    assert "bits per byte" in claim.sentence


def test_other_validation_text_is_not_compared_at_all(claims: Bring) -> None:
    one, other = {**SAME, "bytes_per_token": 4.0}, {**SAME, "validation": "mine", "bytes_per_token": 4.0}
    assert claims(replace(DENSE, keys=one), fp8(keys=other))[2].verdict == "not testable here"


def test_what_is_not_known_of_the_text_is_said(claims: Bring, tmp_path: Path) -> None:
    claims(replace(DENSE, keys={"tokenizer": "a"}), fp8(keys={"tokenizer": "a"}))
    path = tmp_path / "results" / "simulated" / "comparisons.json"
    found = read_record(path, ComparisonsFile, made_by="octavo claims").comparisons
    assert {one.unlike for one in found} == {"training data and validation data"}
    claims(replace(DENSE, keys=SAME), fp8(keys=SAME))
    assert {one.unlike for one in read_record(path, ComparisonsFile, made_by="octavo claims").comparisons} == {None}


# --- the same run twice ---------------------------------------------------------------------------------------------


def test_runs_that_are_the_same_numbers_under_two_names_give_no_verdict(tmp_path: Path, claims: Bring) -> None:
    """Without noise of their own both cells' losses of a seed are the same; faster steps are of the same run, too."""
    found = claims(DENSE, fp8(), sd=0.0)
    for number in (2, 3):
        assert found[number].verdict == "not testable here"
        assert found[number].effect is None
        assert "the runs of seed 1, 2 and 3 log the same losses at every step" in found[number].sentence
    path = tmp_path / "results" / "simulated" / "comparisons.json"
    compared = read_record(path, ComparisonsFile, made_by="octavo claims").comparisons
    assert compared
    for one in compared:
        assert one.loss_difference is None
        assert "they are the same numbers" in str(one.note)


def test_losses_that_differ_in_a_late_digit_are_of_two_runs(claims: Bring) -> None:
    assert claims(DENSE, fp8(), sd=1e-6)[2].verdict == "supported"


# --- divergences, speed, words --------------------------------------------------------------------------------------


def test_runs_that_blew_up_enter_fishers_test_and_say_nothing_of_speed(claims: Bring) -> None:
    """5 of 5 against 0 of 5: 1 / 252. Their steps were still faster."""
    found = claims(DENSE, fp8(endings=dict.fromkeys(FIVE, 9.0)), seeds=FIVE)
    assert found[2].verdict == "refuted"
    assert found[3].verdict == "supported"
    assert "5 of 5 runs of Dense FP8 blockwise diverged" in found[2].sentence
    assert "diverged" not in found[3].sentence


def test_a_step_that_compiles_does_not_set_the_speed(claims: Bring) -> None:
    """A step of 60 s and 399 of 0.7 s take as long as 340 s: 0.85 of 400 s. The median step takes 0.7."""
    claim = claims(DENSE, fp8(first_seconds=60.0))[3]
    assert claim.effect is not None
    assert claim.effect.value == pytest.approx(0.7)
    assert "takes 0.70 times as long" in claim.sentence


def test_on_more_devices_speed_is_in_device_seconds(claims: Bring) -> None:
    """16 devices against 8, 0.7 s a step against 1 s: sooner done, and 1.4 times the device-seconds."""
    claim = claims(DENSE, fp8(keys={"devices": 16}))[3]
    assert claim.verdict == "refuted"
    assert "Dense FP8 blockwise (16 devices) takes 1.40 times the device-seconds per token" in claim.sentence
    assert "Dense BF16 (8 devices)" in claim.sentence
    assert "as long" not in claim.sentence


def test_times_on_different_devices_are_not_compared(claims: Bring, tmp_path: Path) -> None:
    """FP8 on the faster device, the same speed on the same one: 0.7 times as long says nothing of FP8."""
    a100 = {"device_kind": "A100"}
    found = claims(replace(DENSE, keys=a100), fp8())
    assert found[3].verdict == "not testable here"
    assert "ran on different devices (H100 SXM, A100)" in found[3].sentence
    assert found[2].verdict == "supported"
    path = tmp_path / "results" / "simulated" / "comparisons.json"
    (hours,) = [
        one
        for one in read_record(path, ComparisonsFile, made_by="octavo claims").comparisons
        if one.axis == "device_hours"
    ]
    assert hours.resource_ratio is None
    assert "different devices" in str(hours.note)
    assert claims(replace(DENSE, keys=a100), mixture(0.5))[1].verdict == "not testable here"


def test_one_price_is_not_charged_for_two_kinds_of_device(claims: Bring) -> None:
    with pytest.raises(OctavoError, match="one price for A100 and H100 SXM"):
        claims(replace(DENSE, keys={"device_kind": "A100"}), fp8(), cluster="h100-node")


def test_digits_are_enough_to_see_a_difference(claims: Bring) -> None:
    claim = claims(DENSE, replace(fp8(), seconds=0.9985))[3]
    assert claim.verdict == "supported"
    assert "0.9985 times" in claim.sentence


def test_eight_bits_that_are_better_cost_no_accuracy(claims: Bring) -> None:
    """1 % below BF16's loss."""
    assert claims(DENSE, fp8(offset=-0.01))[2].verdict == "supported"


def test_runs_of_a_few_steps_decide_nothing(claims: Bring) -> None:
    claim = claims(SimulatedCell(steps=60), fp8(steps=60), seeds=(1, 2), sd=1e-6)[2]
    assert claim.verdict == "inconclusive"
    assert claim.reason == "runs of 60 steps"
    assert "60 steps are too short" in claim.sentence


def test_an_interval_clear_of_the_margin_beside_inconclusive_is_explained(claims: Bring) -> None:
    """Two pairs and two claims that are tested: what is refuted alone need not be among them."""
    noisy = claims(
        DENSE, fp8(offset=0.0036), SimulatedCell("moe", pace=1.05),
        SimulatedCell("moe", "fp8_blockwise", pace=1.05, seconds=0.7, offset=0.001), sd=5e-4,
    )  # fmt: skip
    claim = noisy[2]
    assert claim.verdict == "inconclusive"
    assert claim.effect_of == "Dense FP8 blockwise"
    assert claim.effect is not None
    assert claim.effect.low is not None
    assert claim.effect.low > 0.25
    assert claim.reason is not None
    assert claim.reason.startswith("refuted alone (p = 0.0")
    assert f"(p = {claim.p_adjusted:.3g})" in claim.reason
