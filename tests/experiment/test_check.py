"""`octavo check`: whether an experiment could begin here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment

FILES = {"kind": "files", "path": "text"}
INDEXED = {"kind": "indexed", "prefix": "text/tokens"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose configs/ is where `load` writes."""
    (tmp_path / "configs").symlink_to(tmp_path)
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    return tmp_path


def check() -> BaseException | None:
    return CliRunner().invoke(app, ["check", "small"]).exception


@pytest.mark.parametrize(
    ("source", "missing"), [(FILES, "text"), (INDEXED, "text/tokens.idx")], ids=["files", "indexed"]
)
def test_text_that_is_missing(
    checkout: Path, load: Callable[..., Experiment], source: dict[str, str], missing: str
) -> None:
    load({"data.sources": [source]})
    error = check()
    assert isinstance(error, OctavoError)
    assert error.where == str(checkout / missing)
    assert error.asked_by is not None
    assert "small.yaml:" in error.asked_by
    assert error.asked_by.endswith("data.sources.0")


def test_text_that_is_there(checkout: Path, load: Callable[..., Experiment]) -> None:
    load()
    (checkout / "text").mkdir()
    (checkout / "text" / "a.txt").write_text("words")
    assert check() is None
