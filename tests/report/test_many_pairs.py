"""What is said of more pairs than can be named one by one: how many show what, and the ends of the range."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from octavo.evidence.verdicts import MOST_TOLD
from octavo.records import Comparison, Estimate
from octavo.report.inputs import Inputs, load_inputs
from octavo.report.sections.phrases import at_length, effect_words, losses_of_many
from octavo.report.sections.questions import _rates_of_many, _table_of_many
from tests.evidence.conftest import Judged, judged  # noqa: F401
from tests.synthetic import MODELS, Truth

PRECISIONS = ("bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")


def small(judged: Callable[..., Judged]) -> Inputs:  # noqa: F811
    return load_inputs(judged(only=["02-fp8-loss-error"], ablations={}, seeds=(1, 2)).folder)


def at_tokens(inputs: Inputs, kind: str) -> list[Comparison]:
    return [one for one in inputs.compared(kind) if one.axis == "tokens"]  # type: ignore[arg-type]


def test_losses_of_many_are_counted_with_the_ends_of_their_range(judged: Callable[..., Judged]) -> None:  # noqa: F811
    inputs = small(judged)
    dense, moe = at_tokens(inputs, "precision")
    lower = dense.model_copy(update={"loss_difference": Estimate(value=-1, low=-1.5, high=-0.5, n=3, unit="%")})
    open_ = moe.model_copy(update={"loss_difference": Estimate(value=0.1, low=-0.2, high=0.4, n=3, unit="%")})
    unknown = moe.model_copy(update={"loss_difference": None})
    assert list(losses_of_many(inputs, [lower, open_])) == [
        "FP8 blockwise against BF16 at equal tokens: of 2 pairs 1 with a lower loss and 1 without a difference that "
        "can be relied on: \N{MINUS SIGN}1.00 % (FP8 blockwise against BF16 (Dense)) to "
        "+0.10 % (FP8 blockwise against BF16 (MoE))."
    ]
    assert list(losses_of_many(inputs, [lower, unknown])) == [
        "FP8 blockwise against BF16 at equal tokens: of 2 pairs 1 with a lower loss and 1 that cannot be compared: "
        "\N{MINUS SIGN}1.00 % (FP8 blockwise against BF16 (Dense))."
    ]
    biased = lower.model_copy(update={"loss_bias": -1})  # it looks lower for being read early: that shows nothing
    assert "2 without a difference" in next(iter(losses_of_many(inputs, [biased, open_])))


def test_rates_of_many_have_their_range(judged: Callable[..., Judged]) -> None:  # noqa: F811
    inputs = small(judged)
    rates = {"dense-bf16": 100.0, "moe-bf16": 50.0, "dense-fp8_blockwise": 100.0, "moe-fp8_blockwise": 90.0}
    rate = pd.Series(rates.values(), pd.MultiIndex.from_tuples([(cell, 1) for cell in rates], names=["cell", "seed"]))
    said = _rates_of_many(inputs, at_tokens(inputs, "architecture"), rate)
    assert said == [
        "MoE against dense: the ratio of their rates is 0.500 (MoE against dense (BF16)) to 0.900 (MoE against dense "
        "(FP8 blockwise)), over 2 pairs.",
        "The emulation's speed says nothing of FP8's.",
    ]


def test_the_table_of_many_has_a_line_for_each_pair_and_nothing_is_left_out(judged: Callable[..., Judged]) -> None:  # noqa: F811
    inputs = small(judged)
    table = _table_of_many(inputs)
    pairs = {(one.cell, one.against) for one in inputs.comparisons.comparisons if one.kind != "ablation"}
    assert len(table.rows) == len(pairs) == 4
    of_tokens = [row[1] for row in table.rows]
    for one in [*at_tokens(inputs, "architecture"), *at_tokens(inputs, "precision")]:
        assert one.loss_difference is not None
        shown = effect_words(one.loss_difference.model_copy(update={"low": None, "high": None}))
        assert any(value.startswith(shown) for value in of_tokens)


def test_a_claim_of_many_comparisons_is_told_by_counts_its_range_and_the_worst(judged: Callable[..., Judged]) -> None:  # noqa: F811
    """Three models in four recipes; of 12 comparisons the three with delayed scaling are 1 % above BF16."""
    models = {"dense": MODELS["dense"], "moe": MODELS["moe"], "fine": MODELS["moe"]}
    truth = Truth(offsets={"fp8_delayed": 0.01}, run_sd=0.0002)
    found = judged(
        only=["02-fp8-loss-error"], ablations={}, precisions=PRECISIONS, truth=truth, changes={"models": models}
    )
    claim = found.claims[2]
    assert len(claim.parts) == 12 > MOST_TOLD
    alone = [part.verdict for part in claim.parts]
    assert alone.count("refuted") == 3
    assert f"Of 12 comparisons, each alone, {alone.count('supported')} support the claim" in claim.sentence
    assert "3 refute it" in claim.sentence
    values = {part.label: part.effect.value for part in claim.parts if part.effect}
    least, most = min(values, key=lambda one: values[one]), max(values, key=lambda one: values[one])
    assert f"({least}) and" in claim.sentence
    assert f"({most})" in claim.sentence
    assert "delayed" in most
    named = claim.sentence.partition("the one that is furthest from the claim: ")[2].partition(" ends ")[0]
    assert "delayed" in named  # by its p value, which need not be the largest effect


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["dense-bf16", "moe-bf16/seed-1"], ""),
        (
            ["dense-bf16", "moe-bf16@2384/seed-1"],
            " moe-bf16@2384: runs of moe-bf16 planned for 2384 steps, a shorter length.",
        ),
    ],
)
def test_what_stands_behind_the_at_sign_is_explained_where_a_name_has_one(names: list[str], said: str) -> None:
    assert at_length(names) == said


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(value=0.02, low=0.01, high=0.04, n=6, unit="%"), "+0.02 % [+0.01, +0.04]"),
        (Estimate(value=-0.126, low=-0.191, high=-0.0597, n=7, unit="% per doubling"),
         "\N{MINUS SIGN}0.13 % per doubling [\N{MINUS SIGN}0.19, \N{MINUS SIGN}0.06]"),
        (Estimate(value=0.841, low=0.533, high=1.14, n=0, unit="ratio"), "× 0.841 [0.533, 1.14]"),
        (Estimate(value=45.783, n=0, unit="ratio"), "× 45.8"),
        (Estimate(value=5_576_000, n=0, unit="USD"), "5,576,000 USD"),
    ],
)  # fmt: skip
def test_a_unit_is_said_once_and_with_no_more_digits_than_its_interval_has(estimate: Estimate, said: str) -> None:
    assert effect_words(estimate) == said
