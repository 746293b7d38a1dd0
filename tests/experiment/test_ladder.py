"""The rule of a ladder: matched pairs, four times the compute from rung to rung, tokens and rates as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.errors import OctavoError
from octavo.experiment.ladder import Ladder, Rung, Setting, rungs, short
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders
from tests.tiny import TINY, changed, copy_configs

VOCABULARY, SEQUENCE, BATCH = 512, 64, 4
POWER = {"value": 8e-3, "at": 100_000, "exponent": -0.5}
LADDER: dict[str, Any] = {
    "rungs": 4,
    "active_parameters": 50_000,
    "compute_factor": 4,
    "tokens_per_parameter": 10,
    "family": {
        "hidden_per_layer": 16, "head_size": 8, "feed_forward": 3, "multiple": 4,
        "experts": {"count": 8, "top_k": 2, "shared": 1},
    },
    "learning_rate": {"dense": POWER, "moe": {**POWER, "value": 6e-3}, "source": "test"},
}  # fmt: skip


def made(**changes: Any) -> tuple[Rung, ...]:
    return rungs(Ladder.model_validate(changed(LADDER, changes)), Setting(VOCABULARY, SEQUENCE, BATCH, BATCH))


def experiment(root: Path, changes: dict[str, Any]) -> Experiment:
    copy_configs(root, ("claims", "clusters"))
    with_ladder = changed(TINY, {"models": ..., "training.steps": ..., "ladder": LADDER})
    value = changed(with_ladder, changes)
    path = root / "configs" / "experiments" / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return load_experiment("tiny", ConfigFolders(root / "configs"))


def test_a_rung_is_a_pair_with_equal_active_parameters() -> None:
    for rung in made():
        dense, moe = rung.models["dense"], rung.models["moe"]
        layers, hidden, experts = dense.layers, dense.hidden_size, moe.experts
        assert experts is not None
        assert dense.feed_forward_size is not None
        assert (moe.layers, moe.hidden_size, moe.attention) == (layers, hidden, dense.attention)
        assert (experts.count, experts.top_k, experts.shared_size) == (8, 2, experts.size)
        # four square matrices of attention, two norms a layer, the last norm, the output head
        rest = layers * (4 * hidden**2 + 2 * hidden) + hidden + VOCABULARY * hidden
        # SwiGLU's three matrices: the dense one; the router, two routed experts and the shared one
        assert rung.active["dense"] == rest + layers * 3 * hidden * dense.feed_forward_size
        assert rung.active["moe"] == rest + layers * (8 * hidden + 3 * 3 * hidden * experts.size)
        assert abs(rung.active["moe"] / rung.active["dense"] - 1) <= 0.02


def test_compute_is_four_times_that_of_the_rung_below() -> None:
    found = made()
    assert abs(found[0].active["dense"] / 50_000 - 1) <= 0.02
    for rung in found:
        dense = rung.models["dense"]
        assert dense.feed_forward_size is not None
        products = dense.layers * (4 * dense.hidden_size**2 + 3 * dense.hidden_size * dense.feed_forward_size)
        products += VOCABULARY * dense.hidden_size
        # 6 FLOPs a weight and token; scores and weighted values over half of the sequence, three times the forward pass
        per_token = 6 * products + 3 * dense.layers * 2 * (2 * dense.hidden_size) * SEQUENCE / 2
        assert rung.flops["dense"] == pytest.approx(per_token * rung.tokens)
        # within the tolerance, and that of rounding to whole steps on the smallest rung (half of 1 in 1,953)
        assert rung.flops["dense"] / found[0].flops["dense"] == pytest.approx(4 ** (rung.number - 1), rel=0.021)
        assert rung.flops["moe"] == pytest.approx(rung.flops["dense"], rel=0.03)


def test_tokens_are_in_proportion_to_active_parameters_and_rates_a_power_of_them() -> None:
    for rung in made():
        parameters = rung.active["dense"]
        assert abs(rung.tokens - 10 * parameters) <= BATCH * SEQUENCE / 2
        assert rung.tokens == rung.steps * BATCH * SEQUENCE
        expected = 8e-3 * (100_000 / parameters) ** 0.5
        assert rung.learning_rates["dense"] == pytest.approx(expected, rel=0.005)
        assert rung.learning_rates["moe"] == pytest.approx(0.75 * expected, rel=0.005)


def test_a_batch_grows_as_the_rule_says_in_whole_multiples() -> None:
    # 8 sequences at 50,000 parameters, in proportion to them
    for rung in made(batch={"value": 8, "at": 50_000, "exponent": 1}):
        assert rung.batch % BATCH == 0
        assert abs(rung.batch - 8 * rung.active["dense"] / 50_000) <= BATCH / 2


def test_a_family_keeps_its_proportions() -> None:
    for rung in made()[1:]:
        dense = rung.models["dense"]
        assert dense.feed_forward_size is not None
        assert 0.6 < dense.hidden_size / dense.layers / 16 < 1.6
        assert 0.6 < dense.feed_forward_size / dense.hidden_size / 3 < 1.6


def test_a_family_may_have_one_depth() -> None:
    found = made(**{"family.hidden_per_layer": ..., "family.layers": 2})
    assert [rung.models["dense"].layers for rung in found] == [2] * 4
    widths = [rung.models["moe"].hidden_size for rung in found]
    assert widths == sorted(widths)


def test_sizes_have_two_digits() -> None:
    assert [short(one) for one in (69_280, 138_960, 996_000, 1_140_000, 99_600_000, 12.4e9)] == [
        "69k", "140k", "1M", "1.1M", "100M", "12B",
    ]  # fmt: skip


def test_a_ladder_becomes_ordinary_cells(tmp_path: Path) -> None:
    found = experiment(tmp_path, {"ladder.only": {"fp8_blockwise": [1, 2]}, "overrides": {"moe": {
        "training.optimizer.router_multiplier": 0.5}}})  # fmt: skip
    sizes = [rung.size for rung in found.rungs]
    in_bf16 = [f"{kind}_{size}-bf16" for size in sizes for kind in ("dense", "moe")]
    in_fp8 = [f"{kind}_{size}-fp8_blockwise" for size in sizes[:2] for kind in ("dense", "moe")]
    assert sorted(found.cells) == sorted(in_bf16 + in_fp8)
    for rung in found.rungs:
        dense, moe = found.cells[f"{rung.role('dense')}-bf16"], found.cells[f"{rung.role('moe')}-bf16"]
        assert dense.training.total_steps == moe.training.total_steps == rung.steps
        assert moe.training.optimizer.learning_rate == rung.learning_rates["moe"]
        assert (dense.training.optimizer.router_multiplier, moe.training.optimizer.router_multiplier) == (1.0, 0.5)
        # as many validations as the smallest rung, which has one every ten steps
        assert dense.training.evaluation.interval == round(10 * rung.steps / found.rungs[0].steps)
        assert found.rung(dense.architecture) is rung
        assert dense.model.feed_forward_size == rung.models["dense"].feed_forward_size


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"training.steps": 40}, "training.steps", "beside a ladder"),
        ({"models": TINY["models"]}, "", "either models or a ladder"),
        ({"ladder": ..., "training.steps": 40}, "", "either models or a ladder"),
        ({"ladder.only": {"fp8_blockwise": [5]}}, "ladder", "there are 4 rungs"),
        ({"ladder.family.layers": 2}, "ladder.family", "either hidden_per_layer or layers"),
        ({"ladder.family.multiple": 512}, "ladder", "no shape of the family"),
        ({"ladder.family.experts.top_k": 9}, "ladder.family.experts", "9 of 8 experts"),
        ({"ladder.published": "nowhere"}, "ladder.published", "no experiment"),
        ({"overrides": {"mixture": {"training.threads": 2}}}, "overrides.mixture", "unknown model"),
        ({"overrides": {"moe": {"training.wrong": 2}}}, "overrides", "no key"),
    ],
)
def test_what_is_wrong_with_a_ladder_is_one_message(tmp_path: Path, changes: Any, where: str, said: str) -> None:
    with pytest.raises(OctavoError) as caught:
        experiment(tmp_path, changes)
    assert where in str(caught.value.where)
    assert said in str(caught.value)
