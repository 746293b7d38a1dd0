"""Mutual information of expert and domain, against tables whose information is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from octavo.evidence.metrics.specialisation import (
    PERMUTATIONS,
    Routing,
    entropy,
    heat,
    information,
    mutual_information,
)
from tests.evidence.conftest import Judged
from tests.synthetic import Truth

DOMAINS = ["code", "drama", "poetry", "scripture"]


def routing(own: float, seed: int = 0, sequences: int = 64, experts: int = 8, tokens: int = 100) -> Routing:
    """A domain's tokens go to its own two experts with probability `own`, else to any."""
    generator = np.random.default_rng(seed)
    domains = [DOMAINS[index % 4] for index in range(sequences)]
    counts = np.zeros((sequences, 2, experts))
    for index in range(sequences):
        mine = np.arange(experts) % 4 == index % 4
        for layer in range(2):
            counts[index, layer] = generator.multinomial(tokens, (1 - own) / experts + own * mine / mine.sum())
    return Routing(counts, domains, [0, 1])


def test_information_of_a_table_by_hand() -> None:
    """Two domains, two experts, three quarters on the diagonal: I = 1 - H(1/4) = 1 - 0.8113 = 0.1887 bits."""
    joint = np.array([[3.0, 1.0], [1.0, 3.0]])
    by_hand = 1 - (-0.25 * np.log2(0.25) - 0.75 * np.log2(0.75))
    assert mutual_information(joint) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.1887, abs=5e-5)


def test_an_expert_for_each_domain_tells_all_of_it() -> None:
    assert mutual_information(np.diag([5.0, 5.0, 5.0, 5.0])) == pytest.approx(2.0)
    assert mutual_information(np.full((4, 8), 3.0)) == pytest.approx(0.0, abs=1e-12)
    assert entropy(np.array([0, 1, 2, 3]), np.ones(4)) == pytest.approx(2.0)


def test_the_share_is_what_experts_tell_of_the_domain() -> None:
    """With probability q to one's own pair of experts: the pair of a token is its domain's with q + (1 - q) / 4, each
    other one with (1 - q) / 4, and I = 2 - H of that; q = 0.6 gives 0.7, 0.1, 0.1, 0.1: I = 0.643 bits of 2. With many
    sequences chance, which is taken off, tells next to nothing."""
    share = np.array([0.7, 0.1, 0.1, 0.1])
    bits = 2 + (share * np.log2(share)).sum()
    found = information([routing(0.6, seed, sequences=800) for seed in range(2)])
    assert found.entropy == pytest.approx(2.0)
    assert found.shares.mean() == pytest.approx(100 * bits / 2, abs=1.0)
    assert found.p_value == 1 / (PERMUTATIONS + 1)


def test_layers_are_told_apart() -> None:
    runs = [routing(0.6, seed) for seed in range(3)]
    for run in runs:
        run.counts[:, 1] = routing(0.0, 99).counts[:, 1]
    found = information(runs)
    assert found.p_by_layer[0] == 1 / (PERMUTATIONS + 1)
    assert found.p_by_layer[1] > 0.01


def test_the_permutation_test_is_wrong_in_5_of_100() -> None:
    """Routing that knows nothing of domains, tokens of a sequence alike: 120 experiments of 20 sequences."""
    generator = np.random.default_rng(5)
    p_values = []
    for _ in range(120):
        counts = np.stack([generator.multinomial(50, generator.dirichlet(np.ones(4)), 1) for _ in range(20)])
        run = Routing(counts.astype(float), [DOMAINS[index % 4] for index in range(20)], [0])
        p_values.append(information([run]).p_value)
    wrong = np.mean(np.array(p_values) <= 0.05)
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)


def test_routing_that_knows_nothing_has_no_share_beyond_chance() -> None:
    found = information([routing(0.0, seed) for seed in range(5)])
    assert abs(found.shares.mean()) < 0.3


def test_the_heat_map_holds_each_domains_share_of_tokens() -> None:
    table = heat(routing(1.0))
    rows = list(zip(table["layer"], table["domain"], table["expert"], table["share"], strict=True))
    assert len(rows) == 2 * 4 * 8
    code = {expert: share for layer, domain, expert, share in rows if (layer, domain) == (0, "code")}
    assert sum(code.values()) == pytest.approx(1.0)
    assert {expert for expert, share in code.items() if share > 0} == {0, 4}


def test_a_claims_data_name_layer_by_layer_what_was_found(judged: Callable[..., Judged]) -> None:
    found = judged(only=["07-experts-specialise"], precisions=("bf16",), ablations={}, truth=Truth(specialisation=0.5))
    claim = found.claims[7]
    layers = claim.data["layers"]
    assert layers["cell"] == ["moe-bf16"] * 2
    assert layers["layer"] == [0, 1]
    assert all(p == 1 / (PERMUTATIONS + 1) for p in layers["p"])
    assert all(bits > high for bits, high in zip(layers["information"], layers["null_high"], strict=True))
    assert claim.data["heat_run"] == "moe-bf16/seed-1"
    assert "shared expert serves every token" in claim.sentence
