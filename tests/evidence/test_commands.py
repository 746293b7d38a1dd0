"""The verbs, as a user calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder
from tests.evidence.conftest import Judged

SMALL = {"precisions": ("bf16",), "ablations": {}, "seeds": (1,), "steps": 20}


@pytest.fixture
def root(judged: Callable[..., Judged], monkeypatch: pytest.MonkeyPatch) -> Path:
    root = judged(**SMALL).root
    monkeypatch.chdir(root)
    return root


def test_tables_and_verdicts_are_made_from_run_folders(root: Path) -> None:
    folder = ExperimentFolder(root / "results" / "synthetic")
    made = (folder.runs_table, folder.steps_table, folder.attempts_table, folder.claims, folder.comparisons)
    before = [path.read_bytes() for path in made]
    for path in made:
        path.unlink()
    for verb in ("aggregate", "claims"):
        result = CliRunner().invoke(app, [verb, "results/synthetic"], catch_exceptions=False)
        assert result.exit_code == 0
    assert [path.read_bytes() for path in made] == before


def test_claims_without_tables_say_what_makes_them(root: Path) -> None:
    ExperimentFolder(root / "results" / "synthetic").runs_table.unlink()
    with pytest.raises(OctavoError, match="a table is missing") as caught:
        CliRunner().invoke(app, ["claims", "results/synthetic"], catch_exceptions=False)
    assert "octavo aggregate" in str(caught.value.fix)


def test_an_import_names_what_it_left_blank(root: Path) -> None:
    (root / "run.csv").write_text("step,loss\n1,5.0\n2,4.0\n")
    (root / "runs.yaml").write_text(
        "description: theirs\nformat: csv\ncells:\n  - {architecture: dense, precision: bf16, runs: {1: run.csv}}\n"
    )
    result = CliRunner().invoke(app, ["import", "results/theirs", "runs.yaml"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "results/theirs/runs.parquet" in result.stdout
    assert "no tokens for dense-bf16: give sequence_length or tokens_per_step" in result.output
    again = CliRunner().invoke(app, ["claims", "results/theirs"], catch_exceptions=False)
    assert again.exit_code == 0
