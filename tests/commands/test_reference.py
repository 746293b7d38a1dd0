"""docs/configuration.md is what the classes say, and has every key."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from octavo.cli import app
from octavo.experiment.config import Optimizer


def test_the_reference_in_the_docs_is_what_the_classes_say(repository: Path) -> None:
    """Made with `octavo schema --markdown > docs/configuration.md`."""
    said = CliRunner().invoke(app, ["schema", "--markdown"])
    assert said.exit_code == 0, said.exception
    assert (repository / "docs/configuration.md").read_text() == said.stdout


def test_a_key_has_its_type_its_limits_and_its_default(repository: Path) -> None:
    text = (repository / "docs/configuration.md").read_text()
    section = text[text.index("### Optimizer") :]
    section = section[: section.index("\n### ")]
    for key in Optimizer.model_fields:
        assert f"| `{key}` |" in section
    assert "| `learning_rate` | number above 0, at most 10 |  | At its peak." in section
    assert "| `beta1` | number at least 0, below 1 | `0.9` |" in section


def test_every_key_says_what_it_means(repository: Path) -> None:
    rows = [line for line in (repository / "docs/configuration.md").read_text().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
