"""Every number of the argument, recomputed from what was printed; the arithmetic is here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.forecast.published import Derived, Statement, derived, published_research, published_runs

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Derived]:
    return {one.name: one for one in derived()}


def test_six_million_dollars(numbers: dict[str, Derived]) -> None:
    """2,664 K + 119 K + 5 K hours = 2,788 K, at 2 USD."""
    one = numbers["six_million_dollars"]
    assert one.value == pytest.approx(2 * (2_664_000 + 119_000 + 5_000)) == pytest.approx(5.576e6)
    assert one.holds
    assert "2 USD" in one.assumption


def test_one_tenth(numbers: dict[str, Derived]) -> None:
    one = numbers["one_tenth"]
    assert one.value == pytest.approx(2.788 / 30.84) == pytest.approx(0.0904, abs=1e-4)
    assert one.holds


@pytest.mark.parametrize(
    ("allowed", "value", "holds"),
    [
        ({"last_digit": 0.001}, 0.4254, True),  # rounds to 0.425
        ({"last_digit": 0.001}, 0.4256, False),
        ({"about": True}, 0.4675, True),  # 10 % more
        ({"about": True}, 0.3820, False),
        ({"at_most": True}, 0.1, True),
        ({"at_most": True}, 0.426, False),
    ],
)
def test_how_far_off_a_number_may_be(allowed: dict[str, Any], value: float, holds: bool) -> None:
    common = {"text": "saves 42.5 %", "value": 0.425, "unit": "ratio", "assumption": "none", "source": "this test"}
    assert Statement.model_validate({**common, **allowed}).holds(value) is holds


def test_what_is_allowed_is_said(numbers: dict[str, Derived]) -> None:
    assert "within 10 %, for “about”" in numbers["one_tenth"].assumption
    assert "within half of the last printed digit, 0.05" in numbers["days_per_trillion_tokens"].assumption
    with pytest.raises(ValueError, match="one of last_digit, about, at_most"):
        Statement(text="t", value=1.0, unit="u", assumption="a", source="s")


def test_deepseekmoes_compute(numbers: dict[str, Derived]) -> None:
    """74.4 over 183.5 TFLOPs is the printed 40.5 %; counted with causal attention once it is 40.8 %."""
    assert numbers["deepseekmoe_compute"].value == pytest.approx(74.4 / 183.5)
    assert numbers["deepseekmoe_compute"].holds
    assert numbers["deepseekmoe_compute_counted"].value == pytest.approx(0.408, abs=5e-4)
    assert numbers["deepseekmoe_compute_counted"].holds is False


def test_two_thousand_against_sixteen_thousand(numbers: dict[str, Derived]) -> None:
    assert (numbers["deepseek_chips"].value, numbers["meta_chips"].value) == (2048, 16384)
    assert numbers["deepseek_chips"].holds
    assert numbers["meta_chips"].holds


def test_days(numbers: dict[str, Derived]) -> None:
    """2.664 M hours on 2,048 GPUs; a trillion tokens is 1/14.8 of it."""
    assert numbers["two_months"].value == pytest.approx(2_664_000 / 2048 / 24) == pytest.approx(54.2, abs=0.05)
    assert numbers["two_months"].holds
    assert numbers["days_per_trillion_tokens"].value == pytest.approx(2_664_000 / 14.8 / 2048 / 24)
    assert numbers["hours_per_trillion_tokens"].value == pytest.approx(180_000)


def test_the_same_labs_mixture_against_its_own_dense_model(numbers: dict[str, Derived]) -> None:
    assert numbers["mixture_saves"].value == pytest.approx(1 - 172.8 / 300.6) == pytest.approx(0.425, abs=1e-3)
    assert numbers["mixture_saves"].holds


def test_cost_per_trillion_tokens(numbers: dict[str, Derived]) -> None:
    assert numbers["deepseek-v3.cost_per_trillion"].value == pytest.approx(360_000)
    assert numbers["deepseek-v2.cost_per_trillion"].value == pytest.approx(2 * 172_800)
    assert numbers["llama-3.1-405b.cost_per_trillion"].value == pytest.approx(2 * 30.84e6 / 15.6)
    assert numbers["llama-3.1-8b.cost_per_trillion"].value == pytest.approx(2 * 1.46e6 / 15)
    assert numbers["llama-3.1-70b.cost_per_trillion"].value == pytest.approx(2 * 7.0e6 / 15)
    assert numbers["gpt-oss-120b.cost"].value == pytest.approx(4.2e6)
    assert "gpt-oss-120b.cost_per_trillion" not in numbers  # its tokens are not published


def test_utilisation_of_deepseek_v3(numbers: dict[str, Derived]) -> None:
    """14.8 T tokens of 260.6 GFLOPs (multi-token prediction included) in 2.664 M hours: 402 TFLOP/s of 989."""
    assert numbers["deepseek-v3.mfu"].value == pytest.approx(14.8e12 * 260.64e9 / (2.664e6 * 3600) / 989e12, rel=1e-3)


def test_utilisation_without_the_second_tokens_head(numbers: dict[str, Derived]) -> None:
    """250.4 GFLOPs a token, of the authors' 250 (arXiv 2505.09343, table 2): 39.1 %, where they print 38.9 %."""
    one = numbers["deepseek_v3_mfu"]
    assert one.value == pytest.approx(14.8e12 * 250.45e9 / (2.664e6 * 3600) / 989e12, rel=1e-3)
    assert round(one.value, 3) == 0.391
    assert numbers["deepseek-v3.mfu_without_prediction"].value == one.value
    assert round(numbers["deepseek-v3.mfu"].value, 3) == 0.407


def test_a_step_of_deepseek_v3(numbers: dict[str, Derived]) -> None:
    """15,360 x 4,096 tokens at 180,000 GPU-hours per trillion on 2,048 GPUs: 19.9 s, as its authors measured."""
    one = numbers["deepseek_v3_step"]
    assert one.value == pytest.approx(15_360 * 4_096 * 180_000 / 1e12 * 3600 / 2048)
    assert one.holds


def test_hours_of_model_cards_have_a_caveat(numbers: dict[str, Derived]) -> None:
    for name in ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"):
        assert "more than one undisturbed job" in numbers[f"{name}.mfu"].assumption


@pytest.mark.parametrize(("name", "ratio"), [("OLMo 2", 1.5), ("Olmo 3", 1 / (1 - 0.822))])
def test_what_research_adds_to_the_final_runs(name: str, ratio: float) -> None:
    assert published_research()[name].all_in_over_final == pytest.approx(ratio)


def test_every_published_file_has_sources_with_a_year() -> None:
    """arXiv numbers have year and month; a model card, the article and what else there is say theirs."""
    folder = REPOSITORY / "configs" / "published"
    texts = {path.name: path.read_text() for path in (folder / "runs").glob("*.yaml")}
    texts |= {name: (folder / name).read_text() for name in ("research.yaml", "other_runs.yaml")}
    for name, text in texts.items():
        assert re.search(r"arXiv \d{4}\.\d{5}", text), name


def test_a_figure_that_does_not_hold_is_said_so(numbers: dict[str, Derived]) -> None:
    """Llama 3.1 405B: 15.6 T x 2.52 TFLOPs in 30.84 M hours is 36 % of the peak; the paper's 41 % is one job's."""
    one = numbers["llama_405b_mfu"]
    assert one.value == pytest.approx(0.359, abs=2e-3)
    assert one.published_value == 0.41
    assert one.holds is False
    # 15.6 T x 2.52 TFLOPs is 3.94e25, which does not round to the printed 3.8e25; 6 x 405e9 x 15.6e12 would
    assert numbers["llama_405b_flops"].value == pytest.approx(3.937e25, rel=1e-3)
    assert numbers["llama_405b_flops"].holds is False
    assert {name for name, one in numbers.items() if one.holds is False} == {
        "llama_405b_mfu", "llama_405b_flops", "deepseekmoe_compute_counted", "deepseek_v3_mfu",
    }  # fmt: skip


def test_what_nobody_printed_is_neither_right_nor_wrong(numbers: dict[str, Derived]) -> None:
    assert all((one.holds is None) == (one.published_value is None) for one in numbers.values())
    assert numbers["deepseek-v3.bought"].value == 2048 * 40_000


def test_runs_of_models_without_a_file(numbers: dict[str, Derived]) -> None:
    """Olmo 3 32B: 5.5 T tokens at 1,900 a second are 804 K hours, and it took 1.05 M. MLPerf: 8,192 GPUs, 2.02 minutes.
    DeepSeek-V4-Pro: 6 x 49 B x 33 T; nobody said its hours."""
    assert numbers["olmo-3-32b.hours_per_trillion"].value == pytest.approx(1.05e6 / 5.5)
    assert numbers["olmo-3-32b.over_undisturbed"].value == pytest.approx(1.05e6 / (5.5e12 / 1900 / 3600))
    assert round(numbers["olmo-3-32b.over_undisturbed"].value, 2) == 1.31
    assert numbers["mlperf-6.0-deepseek-v3.hours"].value == pytest.approx(8192 * 2.02 / 60)
    assert numbers["deepseek-v4-pro.flops"].value == pytest.approx(9.7e24, rel=1e-3)
    assert not [name for name in numbers if name.startswith(("deepseek-v4", "nemotron-3")) and "hours" in name]


def test_the_hours_that_were_printed() -> None:
    """Model cards and reports, in hours."""
    hours = {name: run.hours for name, run in published_runs().items() if run.device_hours}
    assert hours == pytest.approx(
        {
            "deepseek-v3": 2.788e6,
            "llama-3.1-8b": 1.46e6,
            "llama-3.1-70b": 7.0e6,
            "llama-3.1-405b": 30.84e6,
            "gpt-oss-120b": 2.1e6,
        }
    )


def test_the_verb(numbers: dict[str, Derived]) -> None:
    record = json.loads(CliRunner().invoke(app, ["published", "--json"]).stdout)
    assert record["schema_version"] == 1
    assert [one["name"] for one in record["derived"]] == list(numbers)
    table = CliRunner().invoke(app, ["published"]).stdout
    assert "no" in table
    assert "0.0904" in table


def test_a_run_is_of_the_model_that_its_file_is_named_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model's FLOPs would be counted for these hours."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    path = tmp_path / "configs" / "published" / "runs" / "deepseek-v3.yaml"
    path.write_text(path.read_text().replace("model: deepseek-v3", "model: mixtral-8x7b"))
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    with pytest.raises(OctavoError, match="the run deepseek-v3 is of the model 'mixtral-8x7b'") as refused:
        published_runs()
    assert str(refused.value.where).startswith(str(path))
