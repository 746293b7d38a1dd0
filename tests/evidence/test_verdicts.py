"""Every claim, with each verdict it can have, on experiments whose truth is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from octavo.errors import OctavoError
from octavo.evidence.metrics.costs import amount
from octavo.evidence.verdicts import adjusted_p_values, read_claims, verdict_of
from octavo.layout import ConfigFolders
from octavo.statistics import ALPHA, Test, all_of, p_diverges_more
from tests.evidence.conftest import Judged
from tests.synthetic import ABLATIONS, OWNERSHIP, Failure, Truth
from tests.tiny import REPOSITORY

Judge = Callable[..., Judged]

FIVE = (1, 2, 3, 4, 5)
BF16 = ("bf16",)
QUIET: dict[str, Any] = {"run_sd": 0.0002}
TWO_DEVICES = {
    "parallelism": {"data": 2},
    "overrides": {"moe": {"parallelism.expert": 2}},
}


def diverged(cell: str, seeds: tuple[int, ...] = FIVE) -> list[tuple[str, int]]:
    return [(cell, seed) for seed in seeds]


EXPERT_COUNTS: dict[str, dict[str, Any]] = {
    "few_experts": ABLATIONS["few_experts"],
    "many_experts": {  # narrower than 64 x 2 / 32: what the router of 128 costs is taken off
        "description": "128 experts, 32 per token",
        "cells": ["moe-bf16"],
        "change": {"model.experts.count": 128, "model.experts.top_k": 32, "model.experts.size": 3},
    },
}
MANY: dict[str, Any] = {"precisions": BF16, "ablations": EXPERT_COUNTS}


def small_batches(schedule: str = "linear", **changes: Any) -> dict[str, Any]:
    """The synthetic training section with micro-batches that two devices can share."""
    return {
        "training": {
            "schedule": {"decay": schedule}, "steps": 100, "global_batch_size": 8, "micro_batch_size": 4,
            "sequence_length": 128,
            "optimizer": {"learning_rate": 1e-3}, "evaluation": {"interval": 3, "sequences": 16, "final_sequences": 64},
            "checkpoints": {"interval": 15},
        },
        **changes,
    }  # fmt: skip


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # claim 1: a mixture learns `moe` times as fast per token, and its step takes 1.35 times as long
    "1 supported": ("01-moe-saves-device-hours", "supported", {"truth": Truth(token_advantage={"moe": 2.0})}),
    "1 refuted": (
        "01-moe-saves-device-hours", "refuted",
        {"truth": Truth(token_advantage={"moe": 1.05}), "changes": small_batches(schedule="constant")},
    ),
    "1 inconclusive, read while its rate is high": (
        "01-moe-saves-device-hours", "inconclusive", {"truth": Truth(token_advantage={"moe": 1.05})},
    ),
    "1 inconclusive": (
        "01-moe-saves-device-hours", "inconclusive", {"truth": Truth(token_advantage={"moe": 1.35}, run_sd=0.01)},
    ),
    "1 refuted, the mixture diverged": (
        "01-moe-saves-device-hours", "refuted",
        {"seeds": FIVE, "precisions": BF16, "diverged": diverged("moe-bf16")},
    ),
    "1 not testable": ("01-moe-saves-device-hours", "not testable here", {"precisions": ("fp8_blockwise",)}),
    # claim 2: FP8 has a loss offset
    "2 supported": ("02-fp8-loss-error", "supported", {"seeds": FIVE, "truth": Truth(**QUIET)}),
    "2 refuted": (
        "02-fp8-loss-error", "refuted", {"truth": Truth(offsets={"moe-fp8_blockwise": 0.01}, **QUIET)},
    ),
    "2 inconclusive": (
        "02-fp8-loss-error", "inconclusive", {"truth": Truth(offsets={"fp8_blockwise": 0.0025}, run_sd=0.002)},
    ),
    "2 refuted, one architecture diverged": (  # 2 x 1 / 252: all of 5 runs and none of 5
        "02-fp8-loss-error", "refuted",
        {"seeds": FIVE, "diverged": diverged("moe-fp8_blockwise"), "truth": Truth(**QUIET)},
    ),
    "2 inconclusive, one architecture diverged": (  # 2 x 1 / 20: all of 3 runs and none of 3
        "02-fp8-loss-error", "inconclusive",
        {"diverged": diverged("moe-fp8_blockwise", (1, 2, 3)), "truth": Truth(run_sd=1e-5)},
    ),
    "2 inconclusive, BF16 diverged": (
        "02-fp8-loss-error", "inconclusive",
        {"seeds": FIVE, "diverged": diverged("moe-bf16"), "truth": Truth(**QUIET)},
    ),
    "2 inconclusive, one architecture unfinished": (
        "02-fp8-loss-error", "inconclusive",
        {"seeds": FIVE, "unfinished": {("moe-fp8_blockwise", seed): 30 for seed in FIVE}, "truth": Truth(**QUIET)},
    ),
    "2 not testable": ("02-fp8-loss-error", "not testable here", {"precisions": BF16}),
    # claim 3: the time of a step in FP8
    "3 supported": (
        "03-fp8-is-faster", "supported", {"device": "gpu", "truth": Truth(precision_seconds={"fp8_blockwise": 0.7})},
    ),
    "3 refuted": (
        "03-fp8-is-faster", "refuted", {"device": "gpu", "truth": Truth(precision_seconds={"fp8_blockwise": 1.1})},
    ),
    "3 inconclusive": (
        "03-fp8-is-faster", "inconclusive",
        {"device": "gpu", "seeds": (1,), "truth": Truth(precision_seconds={"fp8_blockwise": 0.7})},
    ),
    "3 not testable": ("03-fp8-is-faster", "not testable here", {}),
    # claim 4: sums in 14 bits add a loss offset, or do not
    "4 supported": (
        "04-sums-in-32-bits", "supported", {"seeds": FIVE, "truth": Truth(offsets={"fp14": 0.01}, **QUIET)},
    ),
    "4 refuted": ("04-sums-in-32-bits", "refuted", {"seeds": FIVE, "truth": Truth(**QUIET)}),
    "4 inconclusive": ("04-sums-in-32-bits", "inconclusive", {"truth": Truth(offsets={"fp14": 0.0025}, run_sd=0.002)}),
    "4 supported, sums in 14 bits diverged": (
        "04-sums-in-32-bits", "supported",
        {"seeds": FIVE, "diverged": diverged("moe-fp8_blockwise+fp14"), "truth": Truth(**QUIET)},
    ),
    "4 refuted, sums in 32 bits diverged": (
        "04-sums-in-32-bits", "refuted",
        {"seeds": FIVE, "diverged": diverged("moe-fp8_blockwise"), "truth": Truth(offsets={"fp14": 0.01}, **QUIET)},
    ),
    "4 inconclusive, one seed of sums in 32 bits diverged": (
        "04-sums-in-32-bits", "inconclusive",
        {"seeds": FIVE, "diverged": [("moe-fp8_blockwise", 2)], "truth": Truth(offsets={"fp14": 0.01}, **QUIET)},
    ),
    "4 not testable": ("04-sums-in-32-bits", "not testable here", {"ablations": {}}),
    # claim 5: without the shared expert the loss is offset
    "5 supported": (
        "05-generalist-helps", "supported", {"precisions": BF16, "truth": Truth(offsets={"no_shared_expert": 0.01})},
    ),
    "5 refuted": (
        "05-generalist-helps", "refuted", {"precisions": BF16, "truth": Truth(offsets={"no_shared_expert": -0.01})},
    ),
    "5 inconclusive": ("05-generalist-helps", "inconclusive", {"precisions": BF16, "truth": Truth(run_sd=0.005)}),
    "5 not testable": ("05-generalist-helps", "not testable here", {"precisions": BF16, "ablations": {}}),
    # claim 6: with half as many experts, twice as wide, the loss is offset; a hundred and more are 128
    "6 supported": (
        "06-many-small-experts", "supported", {**MANY, "truth": Truth(offsets={"many_experts": -0.01})},
    ),
    "6 refuted": ("06-many-small-experts", "refuted", {**MANY, "truth": Truth(offsets={"many_experts": 0.01})}),
    "6 refuted, many diverged": (
        "06-many-small-experts", "refuted",
        {**MANY, "seeds": FIVE, "diverged": diverged("moe-bf16+many_experts"),
         "truth": Truth(offsets={"few_experts": 0.01})},
    ),
    "6 inconclusive": ("06-many-small-experts", "inconclusive", {**MANY, "seeds": FIVE, "truth": Truth(run_sd=0.005)}),
    "6 inconclusive, one of many diverged": (
        "06-many-small-experts", "inconclusive",
        {**MANY, "seeds": FIVE, "diverged": [("moe-bf16+many_experts", 2)],
         "truth": Truth(offsets={"many_experts": -0.01}, **QUIET)},
    ),
    "6 not testable, few go on to a few": (
        "06-many-small-experts", "not testable here",
        {"precisions": BF16, "truth": Truth(offsets={"few_experts": 0.01})},
    ),
    "6 not testable, unequal tokens": (
        "06-many-small-experts", "not testable here",
        {**MANY, "ablations": {
            **EXPERT_COUNTS,
            "many_experts": {
                **EXPERT_COUNTS["many_experts"],
                "change": {**EXPERT_COUNTS["many_experts"]["change"], "training.steps": 30},
            },
        }},
    ),
    "6 inconclusive, unequal tokens and one diverged": (
        "06-many-small-experts", "inconclusive",
        {**MANY, "seeds": FIVE, "diverged": [("moe-bf16+few_experts", 2)], "ablations": {
            **EXPERT_COUNTS,
            "many_experts": {
                **EXPERT_COUNTS["many_experts"],
                "change": {**EXPERT_COUNTS["many_experts"]["change"], "training.steps": 30},
            },
        }},
    ),
    "6 not testable": ("06-many-small-experts", "not testable here", {"precisions": BF16, "ablations": {}}),
    # claim 7: a domain prefers its own experts
    "7 supported": ("07-experts-specialise", "supported", {"precisions": BF16, "truth": Truth(specialisation=0.5)}),
    "7 refuted": ("07-experts-specialise", "refuted", {"precisions": BF16, "truth": Truth(specialisation=0.0)}),
    "7 inconclusive": (
        "07-experts-specialise", "inconclusive",
        {"precisions": BF16, "seeds": (1,), "truth": Truth(specialisation=0.5)},
    ),
    "7 not testable": ("07-experts-specialise", "not testable here", {"precisions": BF16, "cells": ["dense-bf16"]}),
    # claim 8: arithmetic on model and layout; FP8 moves as many bytes as BF16 in Megatron-Core
    "8 refuted": ("08-less-traffic", "refuted", {"changes": small_batches(**TWO_DEVICES)}),
    "8 supported": (  # a dense model on two devices, a mixture on one
        "08-less-traffic", "supported",
        {"precisions": BF16, "changes": small_batches(overrides={"dense": {"parallelism.data": 2}})},
    ),
    "8 not testable": ("08-less-traffic", "not testable here", {}),
    # claim 9: a tenth at equal prices, 0.060 to 0.136 where each of two runs has another of the cluster file's prices
    "9 inconclusive": ("09-published-figures", "inconclusive", {"precisions": BF16}),
    # claim 10: what others published; this experiment's own attempts decide nothing
    "10 supported": ("10-all-in-cost", "supported", {"precisions": BF16, "ablations": {}}),
    # claim 11: 40,000 USD for the chip, with its host and network and without them, and the file's own price. Owned, an
    # hour costs less than 5 USD and more than 1 with any of them.
    "11 supported": (
        "11-own-or-rent", "supported", {"precisions": BF16, "device": "gpu", "price": 9.0, "ownership": OWNERSHIP},
    ),
    "11 refuted": (
        "11-own-or-rent", "refuted", {"precisions": BF16, "device": "gpu", "price": 1.0, "ownership": OWNERSHIP},
    ),
    "11 inconclusive": (
        "11-own-or-rent", "inconclusive", {"precisions": BF16, "device": "gpu", "price": 3.4, "ownership": OWNERSHIP},
    ),
    # of an experiment without prices to own, the file that the claim names is asked
    "11 by the claim's own cluster": ("11-own-or-rent", "inconclusive", {"precisions": BF16}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_claim_gets_the_verdict_that_its_truth_deserves(case: str, judged: Judge) -> None:
    name, verdict, arguments = CASES[case]
    if case.split(maxsplit=1)[0] in ("1", "2", "3", "7", "9", "10", "11"):
        arguments = {"ablations": {}, **arguments}  # they do not rest on any
    (claim,) = judged(only=[name], **arguments).claims.values()
    assert claim.name == name
    assert claim.verdict == verdict
    assert claim.sentence.endswith(".")
    if verdict in ("supported", "refuted") and claim.p_adjusted is not None:
        assert claim.p_adjusted <= ALPHA
    if verdict == "not testable here":
        assert claim.effect is None or claim.effect.n == 0
        assert claim.p_adjusted is None


def test_every_claim_is_tried_with_every_verdict_it_can_have(judged: Judge) -> None:
    """Arithmetic on traffic (8) is never inconclusive; published figures are always there (how claim 9 is decided: see
    below); and claim 10 is answered by what others published. Claim 12 is tried on ladders
    (test_ladder_evidence.py)."""
    tried = {(int(case.split()[0]), verdict) for case, (_, verdict, _) in CASES.items()}
    arithmetic = {
        8: {"supported", "refuted", "not testable here"},
        9: {"inconclusive"},
        10: {"supported"},
        11: {"supported", "refuted", "inconclusive"},
    }
    for number in range(1, 12):
        every = arithmetic.get(number, {"supported", "refuted", "inconclusive", "not testable here"})
        assert {verdict for one, verdict in tried if one == number} == every


# --- one seed, many claims ------------------------------------------------------------------------------------------


def test_one_seed_decides_nothing(judged: Judge) -> None:
    claims = judged(seeds=(1,), truth=Truth(token_advantage={"moe": 3.0}, offsets={"fp8_blockwise": 0.05})).claims
    assert sorted(claims) == list(range(1, 13))
    decided = {number for number, claim in claims.items() if claim.verdict in ("supported", "refuted")}
    assert decided == {10}  # what others published: no seed is involved
    assert claims[1].verdict == claims[2].verdict == "inconclusive"
    assert claims[2].effect is not None
    assert claims[2].effect.low is None
    assert "One seed" in claims[2].sentence


def test_claims_that_are_tested_together_are_adjusted_together(judged: Judge) -> None:
    """Alone a p value stays as it is; among others the smallest is multiplied by their number."""
    truth = Truth(run_sd=0.002)
    together = judged(truth=truth, steps=30).claims
    tested = {number: claim.p_adjusted for number, claim in together.items() if claim.p_adjusted is not None}
    assert set(tested) == {1, 2, 4, 5, 7}
    alone = judged(truth=truth, steps=30, only=[together[2].name]).claims[2].p_adjusted
    assert alone is not None
    assert tested[2] is not None
    assert tested[2] >= alone


def test_small_amounts_are_not_rounded_to_nothing() -> None:
    assert amount(0.00344) == "0.0034"
    assert amount(1234.5) == "1,234.50"


def test_an_inconclusive_claim_says_how_many_seeds_it_would_take_and_what_they_would_cost(judged: Judge) -> None:
    found = judged(only=["05-generalist-helps"], precisions=("bf16",), truth=Truth(run_sd=0.005))
    claim = found.claims[5]
    assert claim.seeds_needed is not None
    assert claim.seeds_needed > 3
    runs = found.grid.runs
    pair = runs[runs["cell"].isin(["moe-bf16", "moe-bf16+no_shared_expert"])]
    a_seed = pair.groupby("seed")["cost_all_in"].sum().mean()
    assert claim.seeds_cost == pytest.approx((claim.seeds_needed - 3) * a_seed)
    assert f"about {claim.seeds_needed} seeds" in claim.sentence
    assert claim.currency == "USD"


def test_a_diverged_run_keeps_its_claim_from_being_supported(judged: Judge) -> None:
    arguments: dict[str, Any] = {"only": ["02-fp8-loss-error"], "seeds": FIVE, "truth": Truth(**QUIET)}
    claim = judged(**arguments, diverged=[("moe-fp8_blockwise", 4)]).claims[2]
    assert claim.verdict == "inconclusive"
    by_label = {part.label: part for part in claim.parts}
    assert by_label["MoE FP8 blockwise (emulated)"].note == "1 of 5 runs of MoE FP8 blockwise (emulated) diverged"
    assert "1 of 5 runs of MoE FP8 blockwise (emulated) diverged" in claim.sentence
    assert claim.sentence.endswith("Where runs diverge the claim cannot be supported.")
    assert by_label["Dense FP8 blockwise (emulated)"].verdict == "supported"


def test_where_every_run_diverged_there_is_no_loss_to_compare(judged: Judge) -> None:
    claim = judged(only=["02-fp8-loss-error"], diverged=diverged("moe-fp8_blockwise", (1, 2, 3))).claims[2]
    assert "3 of 3 runs of MoE FP8 blockwise (emulated) diverged, so there is no loss to compare" in claim.sentence
    assert [part.effect is None for part in claim.parts] == [False, True]


def test_what_a_claim_is_about_but_not_tested_on_is_named(judged: Judge) -> None:
    unfinished = {("moe-fp8_blockwise", seed): 30 for seed in (1, 2, 3)}
    claim = judged(only=["02-fp8-loss-error"], ablations={}, unfinished=unfinished).claims[2]
    assert "Not tested: MoE FP8 blockwise (emulated): no seed is complete for both cells." in claim.sentence


def test_how_far_the_number_of_experts_went_is_said(judged: Judge) -> None:
    """4 and 8 experts say something, but not of a hundred and more."""
    claim = judged(only=["06-many-small-experts"], precisions=BF16).claims[6]
    assert "from 4 to 8, at equal active parameters and tokens" in claim.sentence
    assert "Not tested: 100 experts and more in MoE BF16: the runs go up to 8 experts." in claim.sentence
    assert [part.verdict for part in claim.parts][1:] == ["not testable here"]
    assert claim.p_adjusted is None


def test_unequal_tokens_are_the_reason_and_not_missing_ablations(judged: Judge) -> None:
    name, _, arguments = CASES["6 not testable, unequal tokens"]
    assert "equally many tokens" in judged(only=[name], **arguments).claims[6].sentence


def test_a_claim_names_the_runs_it_rests_on(judged: Judge) -> None:
    claim = judged(only=["05-generalist-helps"], precisions=("bf16",), seeds=(1, 2)).claims[5]
    cells = ("moe-bf16", "moe-bf16+no_shared_expert")
    assert sorted(claim.runs) == sorted(f"{cell}/seed-{seed}" for cell in cells for seed in (1, 2))


def test_an_ablation_alone_is_judged_on_its_own_cells(judged: Judge) -> None:
    truth = Truth(offsets={"no_shared_expert": 0.01})
    found = judged(precisions=("bf16",), ablation="no_shared_expert", truth=truth)
    assert found.folder.path.name == "no_shared_expert"
    assert found.claims[5].verdict == "supported"
    assert found.claims[6].verdict == "not testable here"
    cells = {comparison.cell for comparison in found.comparisons.comparisons}
    assert cells == {"moe-bf16+no_shared_expert"}


def test_the_same_tables_give_the_same_bytes(judged: Judge) -> None:
    first = judged(seeds=(1, 2)).folder.claims.read_bytes()
    assert judged(seeds=(1, 2)).folder.claims.read_bytes() == first


# --- sentences ------------------------------------------------------------------------------------------------------


def test_sentences_hold_the_numbers_of_the_claim(judged: Judge) -> None:
    claim = judged(only=["01-moe-saves-device-hours"], precisions=("bf16",)).claims[1]
    assert claim.effect is not None
    ratio, low, high = (float(x) for x in re.findall(r"[\d.]+(?= times)|[\d.]+(?= to)|(?<=to )[\d.]+", claim.sentence))
    assert ratio == round(claim.effect.value, 2)
    assert claim.effect.low is not None
    assert claim.effect.high is not None
    assert (low, high) == (round(claim.effect.low, 2), round(claim.effect.high, 2))
    assert "3 seeds" in claim.sentence
    assert claim.expectation == "below 1"


def test_a_claim_that_cannot_be_tested_says_why(judged: Judge) -> None:
    claims = judged(seeds=(1, 2), ablations={}).claims
    assert "emulated" in claims[3].sentence
    assert "fp14" in claims[4].sentence
    assert "one, and nothing travels" in claims[8].sentence


# --- the arithmetic of claims 8 to 11 -------------------------------------------------------------------------------


def test_a_published_figure_that_does_not_come_out_refutes(judged: Judge) -> None:
    found = judged(only=["09-published-figures"], precisions=("bf16",), seeds=(1,))
    statements = found.configs.published / "statements.yaml"
    value = yaml.safe_load(statements.read_text())
    value["statements"]["one_tenth"]["value"] = 0.01
    statements.write_text(yaml.safe_dump(value))
    from octavo.evidence.verdicts import judge

    (claim,) = judge(found.grid, read_claims(found.configs, found.grid.experiment))
    assert claim.verdict == "refuted"
    assert [part.verdict for part in claim.parts] == ["supported", "refuted", "supported", "supported"]


def test_a_tenth_holds_on_a_condition(judged: Judge) -> None:
    """2.788 M over 30.84 M hours is 0.0904, and 0.09 to 0.11 are about a tenth. The cluster file's rent is 3.00: at
    2.00 for the one and 3.00 for the other it is 0.0603, the other way round 0.1356."""
    (claim,) = judged(only=["09-published-figures"], precisions=("bf16",), seeds=(1,)).claims.values()
    tenth = claim.parts[1]
    assert tenth.effect is not None
    assert tenth.effect.value == pytest.approx(2.788 / 30.84)
    assert tenth.effect.low == pytest.approx(2.788 / 30.84 * 2 / 3)
    assert tenth.effect.high == pytest.approx(2.788 / 30.84 * 3 / 2)
    assert tenth.verdict == "inconclusive"
    assert claim.sentence.endswith("holds on the condition that a GPU-hour of either run costs the same.")
    costs = {(row["run"], row["price"]): row["cost"] for row in claim.data["prices"]}
    assert costs["deepseek-v3", 2.0] == pytest.approx(5.576e6)
    assert costs["llama-3.1-405b", 3.0] == pytest.approx(3 * 30.84e6)


def test_an_hour_owned(judged: Judge) -> None:
    """60,000 at 10 % over four years less a tenth of it, 5 % maintenance, 0.86 kW for 150 USD a month, 138,000 a year
    for 128 devices, over 80 % of 8,760 hours; 0.86 kW x 1.2 at 0.10 USD, and 30 % of it in idle hours."""
    found = judged(only=["11-own-or-rent"], precisions=("bf16",), device="gpu", price=2.0, ownership=OWNERSHIP)
    claim = found.claims[11]
    whole, chip, own = claim.parts
    assert [whole.label, chip.label] == [
        "40,000 USD for the chip with its share of host and network", "40,000 USD for the chip alone",
    ]  # fmt: skip
    capital = 60_000 * (1 - 0.1 / 1.1**4) * 0.1 / (1 - 1.1**-4)
    year = capital + 3_000 + 0.86 * 150 * 12 + 138_000 / 128
    hour = year / (8760 * 0.8) + 0.1032 * (1 + 0.3 * 0.2 / 0.8)
    assert own.effect is not None
    assert own.effect.value == pytest.approx(hour / 2.0)
    assert chip.effect == own.effect  # its own price is 40,000 as well, for the chip alone
    assert whole.effect is not None
    assert whole.effect.value < own.effect.value
    even = (year / 8760 + 0.3 * 0.1032) / (2.0 - 0.7 * 0.1032)
    assert claim.data["owning"][-1]["break_even"]["value"] == pytest.approx(even)
    assert claim.p_adjusted is None


def test_traffic_is_a_ratio_of_computed_bytes(judged: Judge) -> None:
    from octavo.forecast.communication import traffic

    found = judged(only=["08-less-traffic"], changes=small_batches(**TWO_DEVICES), seeds=(1,))
    experiment = found.grid.experiment
    assert experiment is not None
    one, other = (traffic(experiment.cells[name]).total_bytes_per_token for name in ("moe-bf16", "dense-bf16"))
    parts = {part.label: part for part in found.claims[8].parts}
    part = parts["MoE BF16 against Dense BF16"]
    assert part.effect is not None
    assert part.effect.value == pytest.approx(one / other)
    assert found.claims[8].computed_for is None


def test_traffic_of_single_devices_is_that_of_the_plan_that_the_claim_names(judged: Judge) -> None:
    """A mixture of 8 experts on 8 ranks in the plan: what one device sends, from the same model and layout; and it says
    whose it is."""
    from octavo.experiment.load import load_experiment
    from octavo.forecast.communication import traffic

    claim = judged(only=["08-less-traffic"], ablations={}, plans=["h100-node"]).claims[8]
    plan = load_experiment("h100-node", ConfigFolders(REPOSITORY / "configs"))
    one, other = (traffic(plan.cells[name]).total_bytes_per_token for name in ("moe-bf16", "dense-bf16"))
    assert claim.verdict == "refuted"
    assert claim.effect is not None
    assert claim.effect.value == pytest.approx(one / other)
    assert claim.computed_for == "in the plan of h100-node (8 H100)"
    assert claim.sentence.startswith("In the plan of h100-node (8 H100), MoE BF16 sends ")
    assert claim.data["cell"] == [cell.cell for cell in plan.grid]
    assert claim.runs == []
    # every pair has its part; in the sentence the pairs of the same ratio stand together
    ratios = [f"{part.effect.value:.2f}" for part in claim.parts if part.effect]
    assert len(ratios) == len(claim.parts) == 7
    same = claim.sentence.count(" as many bytes per token as ")
    assert same == ("1.00" in ratios)
    assert same + claim.sentence.count(" times the bytes per token of ") == len(set(ratios))
    assert all(part.label.split(" against ")[0] in claim.sentence for part in claim.parts)


def test_traffic_has_its_share_of_the_forecast_step(judged: Judge) -> None:
    from octavo.forecast.steps import forecast_step

    changes = small_batches(**TWO_DEVICES)
    found = judged(only=["08-less-traffic"], changes=changes, seeds=(1,), device="gpu", ablations={})
    experiment = found.grid.experiment
    assert experiment is not None
    claim = found.claims[8]
    shares = dict(zip(claim.data["cell"], claim.data["share_of_step_time"], strict=True))
    for name, parts in {"dense-bf16": ("data parallel",), "moe-bf16": ("data parallel", "all-to-all")}.items():
        step = forecast_step(experiment.cells[name], experiment.cluster, experiment.device)
        assert shares[name] == pytest.approx(sum(step.breakdown[part] for part in parts) / step.seconds)
        assert 0 < shares[name] < 1
    assert f"{shares['moe-bf16']:.0%}".replace("%", " %") + " in MoE BF16" in claim.sentence


def test_nothing_is_free(judged: Judge) -> None:
    """Failed attempts and superseded runs; planned ablations are a line of their own, and no part of the excess."""
    found = judged(
        only=["10-all-in-cost"], precisions=("bf16",), superseded=[("dense-bf16", 1)],
        failures={("moe-bf16", 2): Failure(40)},
    )  # fmt: skip
    claim = found.claims[10]
    amounts = dict(zip(claim.data["part"], claim.data["amount"], strict=True))
    attempts, runs = found.grid.attempts, found.grid.runs
    assert sum(amounts.values()) == pytest.approx(attempts["cost"].sum())
    assert amounts["final runs"] == pytest.approx(runs.loc[runs["ablation"].isna(), "cost_final"].sum())
    assert amounts["planned ablations"] == pytest.approx(runs.loc[runs["ablation"].notna(), "cost_final"].sum())
    # the superseded run held one device for an hour, at 2 USD; the failed try 40 steps of 1.35 s, of which 30 count
    assert amounts["failed, repeated and superseded attempts"] > 2.0


# --- claim files ----------------------------------------------------------------------------------------------------


def test_a_user_adds_a_claim_by_adding_a_file(judged: Judge) -> None:
    found = judged(precisions=("bf16",), truth=Truth(token_advantage={"moe": 2.0}))
    (found.configs.claims / "13-half-the-tokens.yaml").write_text(
        yaml.safe_dump(
            {
                "number": 13, "title": "Half the tokens", "text": "A mixture needs less than 0.6 of the tokens.",
                "source": "us", "metric": "resource_ratio",
                "comparison": {"pairs": "architecture", "axis": "tokens", "equal": "active_parameters"},
                "expectation": {"below": 0.6}, "needs": "both architectures",
            }
        )
    )  # fmt: skip
    from octavo.evidence.verdicts import write_verdicts

    write_verdicts(found.folder, found.configs, None)
    claim = found.claims[13]
    assert claim.verdict == "supported"
    assert claim.effect is not None
    assert claim.effect.value == pytest.approx(0.5, abs=0.02)


def test_runs_that_are_alike_to_the_last_bit_are_said_to_be_alike(judged: Judge) -> None:
    """The same losses in BF16 and FP8: no difference of 0.000000 % in either direction."""
    alike = Truth(token_advantage={}, run_sd=0, step_sd=0)
    sentence = judged(truth=alike, ablations={}, only=["02-fp8-loss-error"]).claims[2].sentence
    assert "ends at the loss of Dense BF16 (95 % interval 0.00 to 0.00 %, 3 seeds)" in sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "vibes"}, "there is no metric 'vibes'"),
        ({"expectation": {}}, "says 0 things"),
        ({"expectation": {"below": 1, "above": 0.5}}, "says 2 things"),
        ({"expectation": {"within": 0.1}}, "within: 0.1"),
        ({"comparison": {"pairs": "architecture", "axes": "tokens"}}, "unknown key 'axes'"),
        ({"opinion": "yes"}, "unknown key 'opinion'"),
        ({"number": 2}, "the same number"),
    ],
)
def test_a_wrong_claim_file_is_named(change: dict[str, Any], message: str, judged: Judge) -> None:
    found = judged(precisions=("bf16",), seeds=(1,), ablations={})
    path = found.configs.claims / "01-moe-saves-device-hours.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(OctavoError, match=message) as caught:
        read_claims(found.configs)
    assert "configs/claims/0" in str(caught.value.where)


def test_an_experiment_names_the_claims_it_is_held_against(judged: Judge) -> None:
    with pytest.raises(OctavoError, match="there is no claim '99-no'"):
        judged(precisions=("bf16",), seeds=(1,), ablations={}, only=["99-no"])


def test_every_claim_of_the_repository_has_text_and_source(judged: Judge, repository: Any) -> None:
    from octavo.layout import ConfigFolders

    claims = read_claims(ConfigFolders(repository / "configs"))
    assert [one.claim.number for one in claims] == list(range(1, 13))
    assert all(one.claim.source and one.claim.needs and one.claim.text for one in claims)


def test_claims_json_holds_no_nan(judged: Judge) -> None:
    folder = judged(seeds=(1, 2)).folder
    for path in (folder.claims, folder.comparisons):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("other", "adjusted", "verdict"), [(1e-4, 0.05, "refuted"), (0.2, 0.1, "inconclusive"), (None, 0.05, "refuted")]
)
def test_three_of_three_diverged_are_a_verdict_only_where_nothing_multiplies_their_p(
    other: float | None, adjusted: float, verdict: str
) -> None:
    """Fisher: 1 / C(6, 3) = 1/20. Holm multiplies the smaller of two p values by 2, the larger by 1."""
    tests = [Test(1.0, p_diverges_more(3, 0, 3)), *([] if other is None else [Test(other, 1.0)])]
    p = adjusted_p_values(tests)[0]
    assert p == pytest.approx(adjusted)
    assert verdict_of(tests[0], p) == verdict


def test_three_of_three_diverged_are_no_verdict_beside_another_pair_of_the_claim() -> None:
    assert all_of([Test(1.0, p_diverges_more(3, 0, 3)), Test(1e-6, 1.0)]).refutes == pytest.approx(0.1)
