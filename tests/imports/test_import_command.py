"""The verbs `octavo import` and `octavo converges` as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.imports.formats import Format, tables

FILE = """\
description: two runs
format: csv
tokenizer: t
cells:
  - architecture: dense
    precision: bf16
    tokens_per_step: 1024
    devices: 2
    runs: {1: a.csv, 2: b.csv}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Path:
    """A folder with an import file and its tables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_ROOT", str(repository))
    (tmp_path / "theirs.yaml").write_text(FILE)
    (tmp_path / "a.csv").write_text("step,loss,step_seconds,validation_loss\n1,5.0,0.5,\n2,4.0,0.5,4.5\n3,3.0,0.5,\n")
    (tmp_path / "b.csv").write_text("step,loss\n1,5.0\n2,nan\n")
    return tmp_path


def test_a_line_per_run_says_what_was_read(folder: Path) -> None:
    done = CliRunner().invoke(app, ["import", "results/theirs", "theirs.yaml"], catch_exceptions=False)
    assert done.exit_code == 0
    header, first, second, table = done.stdout.splitlines()
    assert header.split()[:7] == ["run", "status", "logged", "steps", "seconds", "of", "steps"]
    said = ["dense-bf16/seed-1", "completed", "3", "1", "to", "3", "1.5", "3", "2", "0"]
    assert first.replace(",", " ").split()[: len(said)] == said
    said = ["dense-bf16/seed-2", "diverged", "2", "1", "to", "2", "-", "-", "-", "0"]
    assert second.replace(",", " ").split()[: len(said)] == said
    assert "device_hours" in second
    assert "device_hours" not in first
    assert table == "results/theirs/runs.parquet"
    assert "left blank: no training data for dense-bf16: give data" in done.stderr
    assert (folder / table).is_file()


def test_a_log_whose_name_no_file_can_have_is_named(folder: Path) -> None:
    (folder / "theirs.yaml").write_text(FILE.replace("a.csv", "x" * 5000))
    with pytest.raises(OctavoError, match="cannot be opened: File name too long") as found:
        CliRunner().invoke(app, ["import", "results/theirs", "theirs.yaml"], catch_exceptions=False)
    assert "cells.0.runs.1" in str(found.value)


@pytest.mark.parametrize(
    "name",
    [
        "results/../../outside", "results/..", "elsewhere/theirs", "results/-x", "results/a b", "results/" + "a" * 5000,
        "results/data", "results/reference",
    ],
)  # fmt: skip
def test_a_folder_that_is_none_of_results_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(OctavoError, match="no folder of results"):
        CliRunner().invoke(app, ["import", name, "theirs.yaml"], catch_exceptions=False)
    assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "b.csv", "theirs.yaml"]


def test_the_documentation_names_every_format_and_column(repository: Path) -> None:
    said = (repository / "docs/imports.md").read_text()
    assert [name for name in (*get_args(Format), *tables.COLUMNS) if f"`{name}`" not in said and name != "step"] == []


REFERENCE = """\
source: none
validation: v
target_loss: 4.6
sequence_length: 64
runs: 3
points:
  - {{batch_size: 16, samples: {samples}}}
"""


@pytest.mark.parametrize(
    ("samples", "status", "said"),
    [
        ([32, 32, 32, 32], 0, "not faster than the reference"),
        ([64, 64, 64, 64], 1, "faster than the reference by more than chance"),
    ],
)
def test_runs_that_converge_too_fast_end_with_status_1(
    samples: list[int], status: int, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,024 tokens a step are 16 sequences of 64; each run is at 4.5 after step 2, 32 sequences."""
    (folder / "theirs.yaml").write_text(FILE.replace("{1: a.csv, 2: b.csv}", "{1: a.csv, 2: b.csv, 3: c.csv}"))
    for name, loss in (("a", 5.0), ("b", 5.1), ("c", 5.2)):
        (folder / f"{name}.csv").write_text(f"step,loss,validation_loss\n1,{loss},\n2,4.0,4.5\n3,3.0,\n")
    (folder / "held.yaml").write_text(REFERENCE.format(samples=samples))
    assert CliRunner().invoke(app, ["import", "results/theirs", "theirs.yaml"]).exit_code == 0
    done = CliRunner().invoke(app, ["converges", "results/theirs", "--reference", "held.yaml"])
    assert done.exit_code == status
    assert done.stdout.startswith(f"dense-bf16 (batch size 16): {said}")
    assert "32, 32, 32; olympic mean 32" in done.stdout
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = CliRunner().invoke(app, ["converges", "../results/theirs", "--reference", "../held.yaml"])
    assert again.stdout == done.stdout
