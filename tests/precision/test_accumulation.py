"""`octavo accumulation` repeats the experiment of DeepSeek-V3, section 3.3.2."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("megatron.core")

import torch

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.precision.accumulation import accumulate, accumulation_errors
from octavo.report.accumulation import STYLES, accumulation_chart

SMALL = ["accumulation", "--largest", "512", "--outputs", "16"]


@pytest.fixture(scope="module")
def largest() -> dict[tuple[int, str], float]:
    """Errors by K and accumulation."""
    return {(one.k, one.accumulation): one.maximum for one in accumulation_errors([512, 1024, 2048, 4096], 320, 1)}


def test_the_papers_example_has_an_error_of_nearly_two_percent(largest: dict[tuple[int, str], float]) -> None:
    """K = 4096: "a maximum relative error of nearly 2 %". The maximum grows with the outputs: 1.4 % over 256 x 256,
    1.9 % over 2048 x 2048.
    """
    assert 0.012 < largest[4096, "fp14"] < 0.02


def test_a_short_accumulators_error_grows_with_k_and_promotion_stops_that(
    largest: dict[tuple[int, str], float],
) -> None:
    """What is cut of the sum grows in proportion to K; what is cut of products of both signs with its square root, as
    the outputs do: from 512 to 4096 by a factor between 1 and 8. Promoted sums of 128 are cut alone.
    """
    assert 2 < largest[4096, "fp14"] / largest[512, "fp14"] < 8
    assert largest[4096, "promoted"] < largest[512, "promoted"] < 0.0015
    assert largest[4096, "fp32"] < 1e-5


def test_matrices_of_ones_lose_nothing() -> None:
    """Every partial sum is a multiple of 32 below 2^14."""
    a, b = torch.ones(2, 4096), torch.ones(4096, 3)
    for accumulation in ("fp32", "promoted", "fp14"):
        assert (accumulate(a, b, accumulation) == 4096).all()


def test_ones_and_a_little_more_are_truncated() -> None:
    """14 significant bits of 64 to 128 are multiples of 2^(6 - 13) = 2^-7: of 64 + 2^-9, 64 is kept."""
    a, b = torch.ones(1, 64), torch.ones(64, 1)
    b[63] += 2.0**-9
    assert accumulate(a, b, "fp14").item() == 64.0  # by the second step, whose largest is the sum of the first, 32
    assert accumulate(a, b, "fp32").item() == 64.0 + 2.0**-9


def test_the_verb_prints_a_table_json_and_csv(tmp_path: Path) -> None:
    runner = CliRunner()
    table = runner.invoke(app, SMALL)
    assert table.exit_code == 0
    assert "promoted" in table.stdout
    assert "512" in table.stdout
    path = tmp_path / "errors.csv"
    found = json.loads(runner.invoke(app, [*SMALL, "--json", "--out", str(path)]).stdout)
    assert {one["k"] for one in found} == {128, 256, 512}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["maximum"]) for row in rows] == [one["maximum"] for one in found]


def test_without_torch_the_verb_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['megatron'] = None\n"
        f"sys.argv = ['octavo', *{SMALL!r}]\n"
        "from octavo.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not installed" in done.stderr
    assert "octavo[train]" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--largest", "1000"], "1000 is no power of two"),
        (["--largest", str(2**20), "--outputs", "8192"], "need 19"),  # (24 x 2^20 + 48 x 8192) x 8192 bytes: 195 GiB
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of 64 GiB."""
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.__getitem__)
    with pytest.raises(OctavoError, match=message):
        CliRunner().invoke(app, ["accumulation", *options], catch_exceptions=False)


def test_seeds_are_those_that_torch_takes() -> None:
    assert CliRunner().invoke(app, ["accumulation", "--seed", str(2**70)]).exit_code == 2


def test_the_verb_draws_error_against_k_on_logarithmic_axes(tmp_path: Path) -> None:
    """Three accumulations over K = 128, 256, 512, with the numbers of the table."""
    path = tmp_path / "errors.svg"
    done = CliRunner().invoke(app, [*SMALL, "--json", "--figure", str(path)], catch_exceptions=False)
    assert path.read_text().startswith("<?xml")
    errors = json.loads(done.stdout)
    chart = accumulation_chart(
        (one["k"], one["accumulation"], one["maximum"], one["root_mean_square"]) for one in errors
    )
    assert all(axis.log for axis in (*chart.panels.values(), chart.y))
    largest = chart.frame[chart.frame["panel"] == "largest"]
    assert set(largest["series"]) <= set(STYLES)
    assert sorted(set(largest["x"])) == [128, 256, 512]
    assert list(largest["y"]) == [one["maximum"] for one in errors if one["maximum"] > 0]


def test_other_formats_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"drawn as \.gif"):
        CliRunner().invoke(app, ["accumulation", "--figure", str(tmp_path / "a.gif")], catch_exceptions=False)
