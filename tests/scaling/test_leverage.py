"""Leverage of a published ladder, of simulated ones of known truth, and what the command says of files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.scaling.fit import fit
from octavo.scaling.ladder import COLUMNS, Row, read_rows, write_rows
from octavo.scaling.leverage import back_tests, choose, leverage_at, leverage_document, loss_at
from tests.conftest import REPOSITORY

PUBLISHED = REPOSITORY / "configs/published/ladders/marin-fast-track.csv"
HEADER = ",".join(COLUMNS)


def simulated(seed: int, *, leverage: float = 4.0, seeds: int = 3, hours_per_flop: float = 1.5) -> list[Row]:
    """Four rungs of L = 1.6 + 2 (C k / 1e18)^-0.16; k is 1 (dense) and `leverage` (mixture); noise 0.3 %."""
    rng = np.random.default_rng([77, seed])
    return [
        Row(
            name,
            flops := 1e18 * 4.0**rung,
            (1.6 + 2 * (flops * k / 1e18) ** -0.16) * math.exp(0.003 * rng.standard_normal()),
            device_hours=flops / 1e18 * slow,
            seed=s,
        )
        for name, k, slow in (("dense", 1.0, 1.0), ("moe", leverage, hours_per_flop))
        for rung in range(4)
        for s in range(seeds)
    ]


def test_the_published_ladder_gives_the_leverage_that_its_rungs_show() -> None:
    """Between neighbouring rungs in proportion of logarithms the table gives 4.3 in FLOPs and 1.42 in hours."""
    found = fit(read_rows(PUBLISHED))
    flops, hours = leverage_at(found, "flops", 2.847), leverage_at(found, "device_hours", 2.847)
    assert flops is not None
    assert flops.value == pytest.approx(4.2, abs=0.4)
    assert hours is not None
    assert 1.2 <= hours.value <= 1.45
    assert hours.low is not None
    assert hours.low > 1


def test_the_largest_dense_size_of_the_published_ladder_is_predicted_from_the_smaller() -> None:
    (test,) = back_tests(read_rows(PUBLISHED))
    assert test["predicted"] == pytest.approx(2.847, rel=0.007)
    assert test["measured"] == pytest.approx(2.847)
    assert test["low"] <= test["measured"] <= test["high"]


def test_intervals_hold_the_truth_of_simulated_ladders() -> None:
    """Of 40 ladders a 95 % interval misses at most 6 with chance 0.986, at most 5 of the 10-fold carried on (0.95)."""
    inside, beyond, cheaper = 0, 0, 0
    for seed in range(40):
        found = fit(simulated(seed), draws=1000)
        at = leverage_at(found, "flops", 1.6 + 2 * 16**-0.16)
        assert at is not None
        inside += at.low is not None and at.high is not None and at.low <= 4 <= at.high
        loss = loss_at(found, "dense", 6.4e20)
        assert loss is not None
        assert loss.low is not None
        assert loss.high is not None
        beyond += loss.low <= 1.6 + 2 * 640**-0.16 <= loss.high
        alike = leverage_at(fit(simulated(seed, leverage=1.0), draws=1000), "flops", 1.6 + 2 * 16**-0.16)
        cheaper += alike is not None and alike.low is not None and alike.low > 1
    assert inside >= 34
    assert beyond >= 35
    assert cheaper <= 4  # of 40 at 2.5 %: more with chance 0.003


def test_hours_follow_from_flops_and_what_a_flop_takes() -> None:
    """Four times the FLOPs, each in the dense model at 1 / 1.5 of the hours: 2.67 times the hours."""
    found = fit(simulated(1))
    loss = 1.6 + 2 * 16**-0.16
    flops, hours = leverage_at(found, "flops", loss), leverage_at(found, "device_hours", loss)
    assert flops is not None
    assert hours is not None
    assert hours.value == pytest.approx(flops.value / 1.5, rel=1e-3)
    assert leverage_at(found, "cost", loss) is None  # no row says its cost


def test_beyond_what_back_tests_support_nothing_is_determined() -> None:
    found = leverage_document(simulated(2), at_losses=[1.7], predict=[6.4e19 * 290, 6.4e19 * 310])
    assert [one["determined"] for one in found["extrapolation"]] == [True, True, False, False]
    assert found["extrapolation"][3]["loss"] is None
    assert {one["value"] for one in found["leverage"]} == {None}
    assert any("is not determined" in warning for warning in found["warnings"])


def test_which_architecture_is_dense_is_told_by_name_or_by_parameters() -> None:
    rows = [Row("b", 1e18, 3.0, active_parameters=1e8, total_parameters=1.1e8), Row("a", 1e18, 3.0, 1e8, 9e8)]
    assert choose(rows) == ("b", "a")
    assert choose([Row("my-dense", 1e18, 3.0), Row("a", 1e18, 3.0)]) == ("my-dense", "a")
    assert choose([Row("x", 1e18, 3.0), Row("a", 1e18, 3.0)], dense="x") == ("x", "a")
    with pytest.raises(OctavoError, match="cannot be told"):
        choose([Row("x", 1e18, 3.0), Row("a", 1e18, 3.0)])
    with pytest.raises(OctavoError, match="3 architectures"):
        choose([Row(name, 1e18, 3.0) for name in ("dense", "moe", "other")])


def test_the_command_prints_json_of_a_stable_shape() -> None:
    asked = ["leverage", str(PUBLISHED), "--json", "--at-loss", "2.847", "--at-loss", "3", "--predict", "1e20"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["schema_version", "fit", "leverage", "extrapolation", "warnings"]
    assert [(one["axis"], one["loss"]) for one in found["leverage"]] == [
        ("flops", 2.847), ("device_hours", 2.847), ("flops", 3.0), ("device_hours", 3.0)
    ]  # fmt: skip
    assert all(list(one) == ["axis", "loss", "value", "low", "high", "interval"] for one in found["leverage"])
    assert [list(one) for one in found["extrapolation"]] == [
        ["flops", "architecture", "loss", "low", "high", "determined"]
    ] * 2
    assert any("tokens per active parameter differ: 20 (dense), 60 (moe)" in warning for warning in found["warnings"])


def test_rows_come_back_from_the_file_that_they_were_written_to(tmp_path: Path) -> None:
    rows = simulated(3)
    write_rows(tmp_path / "ladder.csv", rows)
    assert sorted(map(repr, read_rows(tmp_path / "ladder.csv"))) == sorted(map(repr, rows))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("architecture,flops\ndense,1e18\n", ":1"),
        (f"{HEADER}\n", ""),
        (f"{HEADER}\ndense,1,1,1,1e18,3.1,,,1\ndense,1,1,1,4e18,nan,,,1\n", ":3, column validation_loss"),
        (f"{HEADER}\ndense,1,1,1,1e18,,,,1\n", ":2, column validation_loss"),
        (f"{HEADER}\ndense,1,1,-5,1e18,3,,,1\n", ":2, column tokens"),
        (f"{HEADER}\ndense,1,1,1,1e18,3,,,one\n", ":2, column seed"),
        (f"{HEADER}\ndense,1,1\n", ":2"),
    ],
)
def test_a_bad_table_is_named_with_line_and_column(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(OctavoError) as caught:
        read_rows(path)
    assert caught.value.where == f"{path}{where}"
