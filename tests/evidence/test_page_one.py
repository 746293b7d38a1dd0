"""What page one says of comparisons: the pair of an effect, why a claim is open, what diverged, what is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.records import ClaimResult, Comparison, Estimate
from octavo.report.inputs import load_inputs
from octavo.report.sections.answer import diverged_runs, finding, unknown_text, verdict_table
from octavo.report.sections.small_print import limits
from tests.evidence.conftest import Judged
from tests.simulated import SimulatedCell, bring
from tests.synthetic import Truth
from tests.tiny import REPOSITORY


def claim(**changes: object) -> ClaimResult:
    effect = Estimate(value=0.31, low=0.26, high=0.36, n=3, unit="%")
    given = {
        "number": 2, "name": "fp8", "title": "Eight bits", "text": "", "source": "", "verdict": "inconclusive",
        "sentence": "", "effect": effect, "expectation": None, "runs": [],
    }  # fmt: skip
    return ClaimResult.model_validate({**given, **changes})


def test_a_line_of_the_verdicts_names_the_pair_the_reason_and_the_adjusted_p() -> None:
    reason = "refuted alone (p = 0.0251), not among 2 comparisons (p = 0.0502)"
    (row,) = verdict_table([claim(effect_of="MoE FP8", reason=reason, p_adjusted=0.0502)]).rows
    assert row[2] == f"inconclusive: {reason}"
    assert row[3].startswith("MoE FP8: +0.31 %")
    assert row[4] == "0.0502"


def test_an_effect_has_digits_enough_to_see_which_side_of_1_it_is_on() -> None:
    effect = Estimate(value=0.99853, low=0.99851, high=0.99855, n=3, unit="ratio")
    (row,) = verdict_table([claim(verdict="supported", effect=effect)]).rows
    assert row[3] == "× 0.99853 [0.99851, 0.99855]"


@pytest.mark.parametrize(("p", "shown"), [(0.05000001, "0.05000001"), (0.0499999, "0.05"), (0.0321, "0.0321")])
def test_a_p_value_shows_on_which_side_of_5_percent_it_is(p: float, shown: str) -> None:
    (row,) = verdict_table([claim(p_adjusted=p)]).rows
    assert row[4] == shown


def test_a_run_that_diverged_is_in_the_lead(judged: Callable[..., Judged]) -> None:
    found = judged(only=["02-fp8-loss-error"], ablations={}, diverged=[("moe-fp8_blockwise", 2)])
    assert diverged_runs(load_inputs(found.folder)) == [
        "Diverged, without a loss at the end: 1 of 3 runs of MoE FP8 blockwise (emulated)."
    ]


def test_what_is_not_known_of_the_text_is_in_the_lead() -> None:
    one = Comparison(
        axis="tokens", cell="a", against="b", kind="precision", loss_difference=None, resource_ratio=None,
        unlike="tokenizers and validation data",
    )  # fmt: skip
    (said,) = unknown_text([one])
    assert "the same tokenizers and validation data" in said
    assert unknown_text([one.model_copy(update={"unlike": None})]) == []


def test_the_limits_say_what_three_seeds_cannot_see(judged: Callable[..., Judged]) -> None:
    found = judged(only=["02-fp8-loss-error"], ablations={})
    text = " ".join(block.text for block in limits(load_inputs(found.folder)).blocks)  # type: ignore[union-attr]
    assert "With three seeds and skewed noise a claim of a small difference is supported falsely more often" in text
    assert "15 to 26 % with lognormal noise" in text


def test_the_heading_gives_every_pairs_saving_and_names_the_pair_that_refutes(judged: Callable[..., Judged]) -> None:
    """In FP8 the mixture's loss is 1 % higher: it saves less there, and it alone is more than 0.25 % above BF16."""
    truth = Truth(token_advantage={"moe": 2.0}, offsets={"moe-fp8_blockwise": 0.01}, run_sd=0.0002)
    found = judged(
        only=["01-moe-saves-device-hours", "02-fp8-loss-error"], ablations={}, device="gpu", truth=truth
    )  # fmt: skip
    hours, bits = found.claims[1], found.claims[2]
    assert (hours.verdict, bits.verdict) == ("supported", "refuted")
    ratios = sorted(part.effect.value for part in hours.parts if part.effect)
    assert len(ratios) == 2
    assert hours.effect is not None
    assert hours.effect.value == ratios[1]
    least, most = (f"{100 * (1 - ratio):.0f}" for ratio in reversed(ratios))
    assert int(least) < int(most)
    said = finding(load_inputs(found.folder))
    assert f"needs {least} to {most} % fewer" in said
    assert "raises the loss by more than 0.25 % (MoE FP8 blockwise)" in said


def test_the_smaller_effect_stands_for_the_claim_though_the_larger_scatters_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours by 1.35 / pace: 22 % fewer in BF16, where seeds scatter, 14 % in FP8, where they do not."""
    monkeypatch.setenv("OCTAVO_ROOT", str(REPOSITORY))
    cells = [
        SimulatedCell(architecture, precision, pace=pace, seconds=seconds)
        for precision, pace in (("bf16", 1.35 / 0.78), ("fp8_blockwise", 1.35 / 0.86))
        for architecture, pace, seconds in (("dense", 1.0, 1.0), ("moe", pace, 1.35))
    ]
    noise = {("moe-bf16", 1): 1e-2, ("moe-bf16", 2): -1e-2, ("moe-fp8_blockwise", 1): 1e-5}
    noise |= {("dense-fp8_blockwise", seed): 1e-6 * seed for seed in (1, 2, 3)}
    effect = bring(tmp_path, cells, REPOSITORY / "configs", noise)[1].effect
    assert effect is not None
    assert effect.value == pytest.approx(0.86, abs=0.02)
