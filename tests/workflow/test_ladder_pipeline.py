"""A tiny ladder from text to report: the largest rung waits for the prediction, and the report says what came."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.layout import ExperimentFolder
from octavo.report.sections.scale import TITLE
from octavo.scaling.ladder import COLUMNS
from octavo.scaling.prediction import read_prediction
from tests.tiny import TINY, Checkout, changed, octavo

RATE = {"value": 1e-2, "at": 10_000, "exponent": -0.333}
LADDER: dict[str, Any] = {
    "rungs": 4,
    "active_parameters": 8_000,
    "compute_factor": 2,
    "tokens_per_parameter": 0.5,
    "tolerance": 0.05,
    "family": {"layers": 1, "head_size": 8, "feed_forward": 3, "multiple": 2, "experts": {"count": 4, "top_k": 2}},
    "learning_rate": {"dense": RATE, "moe": RATE, "source": "not searched"},
    "published": "h100-16node",
}
TINY_LADDER = changed(
    changed(TINY, {"models": ..., "training.steps": ...}),
    {"ladder": LADDER, "precisions": ["bf16"], "training.evaluation.interval": 8, "training.checkpoints.interval": 64},
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("ladder"), TINY_LADDER)
    published = Path(__file__).resolve().parents[2] / "configs" / "experiments" / "h100-16node.yaml"
    (made.root / "configs" / "experiments" / published.name).write_text(published.read_text())
    made.snakemake("results/tiny/report.pdf")
    return made


def test_a_ladder_goes_from_text_to_report(checkout: Checkout) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    rows = folder.ladder.read_text().splitlines()
    assert rows[0] == ",".join(COLUMNS)
    assert len(rows) == 1 + 4 * 2
    page = folder.report_html.read_text()
    assert TITLE in page
    assert "foretold loss" in page
    assert "h100-16node" in page
    assert (folder.figures / "scale.csv").exists()
    found = json.loads(folder.leverage.read_text())
    # the largest rung has about 1.5e9 FLOPs: 7e20 is far beyond what this ladder can say
    assert not any(one["determined"] for one in found["published"])


def test_the_largest_rung_began_after_its_prediction(checkout: Checkout) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    sealed = read_prediction(folder.prediction)
    assert {one["architecture"] for one in sealed["expected"]} == {"dense", "moe"}
    assert len(sealed["rows"]) == 3 * 2
    for one in sealed["expected"]:
        for run in one["runs"]:
            first = json.loads((folder.runs / run / "attempts.jsonl").read_text().splitlines()[0])
            assert first["start"] > sealed["sealed"]


def test_a_prediction_is_made_once_and_not_after_the_fact(checkout: Checkout) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    before = folder.prediction.read_bytes()
    reported = folder.report_pdf.stat().st_mtime_ns
    checkout.snakemake("results/tiny/report.pdf")
    assert folder.report_pdf.stat().st_mtime_ns == reported
    assert folder.prediction.read_bytes() == before
    folder.prediction.unlink()
    output = checkout.snakemake("results/tiny/prediction.json", status=1)
    assert "has begun: what is said of it now is no prediction" in output
    assert not folder.prediction.exists()
    folder.prediction.write_bytes(before)


def test_a_bundle_has_the_ladder_and_makes_it_again(checkout: Checkout, tmp_path: Path) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    bundle = tmp_path / "tiny.zip"
    checkout.octavo("bundle", "results/tiny", "--output", str(bundle))
    with zipfile.ZipFile(bundle) as packed:
        assert packed.read("results/tiny/prediction.json") == folder.prediction.read_bytes()
        assert "configs/experiments/h100-16node.yaml" in packed.namelist()
    assert "10 files and" in checkout.octavo("verify-bundle", str(bundle))


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """A file with other text in it for as long as the test looks."""
    before = path.read_bytes()
    path.write_bytes(before.replace(old.encode(), new.encode()))
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_prediction_that_was_changed_is_damage(checkout: Checkout) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    assert "the seal fits" in checkout.octavo("verify", "results/tiny", "--sample", "0")
    with edited(folder.prediction, '"interval": 0.9', '"interval": 0.8'):
        done = octavo(checkout.root, "verify", "results/tiny", "--sample", "0")
        assert done.returncode == 1
        assert "the seal does not fit" in done.stdout


def test_what_the_ladder_says_is_made_again_by_verify(checkout: Checkout) -> None:
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    with edited(folder.leverage, '"schema_version": 1', '"schema_version": 1, "more": 2'):
        done = octavo(checkout.root, "verify", "results/tiny", "--sample", "0")
        assert done.returncode == 1
        assert "leverage.json is not what the tables say" in done.stdout


def test_a_run_that_goes_on_under_another_layout_asks_for_no_new_prediction(checkout: Checkout) -> None:
    """Of the largest rung, when it has begun: a prediction made anew would be none, and the one there would be lost."""
    folder = ExperimentFolder(checkout.root / "results" / "tiny")
    before = folder.prediction.read_bytes()
    run = json.loads(before)["expected"][0]["runs"][0]
    result, aside = folder.runs / run / "result.json", folder.runs / run / "aside"
    result.rename(aside)
    checkout.write(changed(TINY_LADDER, {"parallelism": {"data": 2}}))
    try:
        planned = checkout.snakemake("results/tiny/report.pdf", "--dry-run")
        assert "rule train:" in planned
        assert "rule predict:" not in planned
    finally:
        aside.rename(result)
        checkout.write(TINY_LADDER)
    assert folder.prediction.read_bytes() == before
