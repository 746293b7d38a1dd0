"""The sentences of the page on scale, for numbers of each verdict, and its chart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from octavo.report.charts import ChartAxis, Fits
from octavo.report.document import Table
from octavo.report.html import numbers
from octavo.report.paint import save
from octavo.report.sections.scale import farther, foretold, growth, lead, published, takeaway
from octavo.report.style import CellStyle


def ratio(axis: str, value: float | None, low: float | None, high: float | None, loss: float = 3.0) -> dict[str, Any]:
    return {"axis": axis, "loss": loss, "value": value, "low": low, "high": high, "interval": 0.95}


@pytest.mark.parametrize(
    ("money", "said"),
    [
        ((1.3, 1.1, 1.5), "the mixture is cheaper in money."),
        ((0.8, 0.7, 0.9), "the mixture is dearer in money."),
        ((1.1, 0.9, 1.3), "whether the mixture is cheaper in money is not decided."),
    ],
)
def test_the_sentence_says_what_the_interval_of_the_money_leaves(money: tuple[float, ...], said: str) -> None:
    found = takeaway([ratio("flops", 2, 1.8, 2.2), ratio("cost", *money)], "device-hours")
    assert found.endswith(said)
    assert "needs 2.00 times (95 % interval 1.80 to 2.20) the model FLOPs and" in found


def test_it_is_read_at_the_lowest_loss() -> None:
    found = takeaway([ratio("flops", 2, 1.8, 2.2, loss=4), ratio("flops", 3, 2.5, 3.5, loss=3.25)], "GPU-hours")
    assert "For a loss of 3.250" in found
    assert "3.00 times" in found
    assert found.endswith("the mixture is cheaper in model FLOPs.")


def test_without_a_common_loss_nothing_is_said() -> None:
    assert "no loss in common" in takeaway([], "device-hours")
    assert "no loss in common" in takeaway([ratio("flops", None, None, None)], "device-hours")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ((2, 1.8, 2.2), "it grows with scale."),
        ((1, 0.9, 1.1), "it falls with scale."),
        ((1.6, 1.3, 1.9), "is not decided."),
    ],
)
def test_growth_is_said_where_intervals_lie_apart(last: tuple[float, ...], said: str) -> None:
    found = growth([ratio("flops", *last, loss=3), ratio("flops", 1.4, 1.2, 1.6, loss=4)])
    assert found.endswith(said)
    assert "from a loss of 4.000 to one of 3.000" in found.lower()


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (
            (1.2, 1.1, 1.3),
            (1.6, 1.4, 1.8),
            "needs 1.60 times a mixture's model FLOPs for the same loss, more the larger",
        ),
        (
            (1.6, 1.4, 1.8),
            (1.2, 1.1, 1.3),
            "needs 1.20 times a mixture's model FLOPs for the same loss, less the larger",
        ),
        ((1.5, 1.3, 1.7), (1.6, 1.4, 1.8), "needs 1.60 times a mixture's model FLOPs for the same loss"),
        ((0.9, 0.8, 1.1), (0.7, 0.6, 0.9), "needs 0.700 times a mixture's model FLOPs for the same loss"),
        ((1.6, 1.4, 1.8), (1.1, 0.9, 1.3), None),
    ],
)
def test_page_one_says_what_is_decided_at_the_lowest_loss_and_whether_it_grows(
    first: tuple[float, ...], last: tuple[float, ...], said: str | None
) -> None:
    found = lead([ratio("flops", *last, loss=3), ratio("flops", *first, loss=4), ratio("cost", 9, 8, 10, loss=2)])
    assert (found is None) == (said is None)
    if said is not None:
        assert found is not None
        assert said in found
        assert ("the larger" in found) == ("the larger" in said)


def test_beyond_what_back_tests_support_it_is_not_determined() -> None:
    near = {"flops": 1e20, "value": 2.0, "low": 1.5, "high": 2.5, "interval": 0.95, "determined": True}
    first, second, last = farther([near, {**near, "flops": 1e23, "determined": False}])
    assert "1e+20 FLOPs the leverage in FLOPs is 2.00 times" in first
    assert second.endswith("is not determined.")
    assert "300 times" in last


def test_published_scale_is_a_range_of_the_money_or_not_determined() -> None:
    one = {
        "experiment": "h100-16node", "cluster": "h100-16node", "precision": "bf16", "dense": "a", "moe": "b",
        "flops": 1e21, "time_ratio": 1.5, "time_low": 1.0, "time_high": 2.2, "time_interval": 0.8, "value": 0.5,
        "low": 0.3, "high": 0.8, "interval": 0.95, "determined": True, "times_largest": 10.0,
    }  # fmt: skip
    texts = [getattr(block, "text", "") for block in published([one])]
    assert "the same loss for 0.300 to 0.800 of the money (median 0.500)" in texts[0]
    assert "tenth" in texts[1]
    texts = [getattr(block, "text", "") for block in published([{**one, "determined": False, "times_largest": 5e7}])]
    assert "not determined" in texts[0]
    assert "of the money" not in texts[0]
    assert published([]) == []


def test_a_chart_of_fits_has_its_points_as_a_table(tmp_path: Path) -> None:
    rows = [("fit", 1.0, 3.0, 2.9, 3.1), ("fit", 4.0, 2.0, 1.9, 2.1), ("measured", 1.0, 3.05, 3.0, 3.1),
            ("foretold", 4.0, 2.02, 1.95, 2.1)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["role", "x", "y", "low", "high"]).assign(panel="loss", series="moe")
    axes = ChartAxis("FLOPs", log=True), ChartAxis("loss", log=True)
    chart = Fits("scale", frame, {"loss": axes}, {"moe": CellStyle("moe", "MoE", "#D55E00", (), "s")})
    save(chart, {}, tmp_path)
    assert (tmp_path / "scale.pdf").stat().st_size > 1000
    assert numbers(chart, {}).rows == [
        ["loss", "MoE", "measured", "1", "3.050", "3.000", "3.100"],
        ["loss", "MoE", "foretold", "4", "2.020", "1.950", "2.100"],
    ]


@pytest.mark.parametrize(("data", "said"), [("a" * 64, "foretold loss"), ("b" * 64, "it is about other data")])
def test_a_prediction_about_other_data_is_not_called_one(data: str, said: str) -> None:
    """Both runs that it is about were trained on data `a`."""
    run = {"cell": "moe_300k-bf16", "seed": 1, "data_manifest_sha256": "a" * 64}
    expected = {"architecture": "moe", "flops": 1e15, "runs": ["moe_300k-bf16/seed-1"], "loss": None}
    sealed = {"expected": [expected], "interval": 0.9, "sealed": "2026-01-01T00:00:00+00:00", "data_sha256": data}
    attempts = pd.DataFrame({"cell": ["moe_300k-bf16"], "seed": [1], "start": [pd.Timestamp("2026-01-02", tz="UTC")]})
    inputs: Any = SimpleNamespace(prediction=sealed, attempts=attempts, runs=pd.DataFrame([run]), ends=[])
    (block,) = foretold(inputs)
    assert said in (" ".join(block.header) if isinstance(block, Table) else block.text)  # type: ignore[union-attr]
