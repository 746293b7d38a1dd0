"""Every command that the README shows exists, and understands its options."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from typer.core import TyperGroup

from octavo.cli import app
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^\$ (.+)$", README, re.MULTILINE) + re.findall(r"`((?:snakemake|octavo|make) [^`]+)`", README)
COMMANDS = [shlex.split(line, comments=True) for line in SHOWN]


def of(program: str) -> list[list[str]]:
    found = [words[1:] for words in COMMANDS if words[0] == program]
    assert found, program
    return found


@pytest.mark.parametrize("words", of("octavo"), ids=" ".join)
def test_verbs_and_flags(words: list[str]) -> None:
    words = words[: words.index(">")] if ">" in words else words
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    group.commands[words[0]].make_context(words[0], words[1:])  # parses, and calls nothing


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_targets_of_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


@pytest.mark.parametrize("words", of("snakemake"), ids=" ".join)
def test_profiles_and_targets_of_snakemake(words: list[str]) -> None:
    option, profile, target = words
    assert option == "--profile"
    assert (REPOSITORY / profile / "config.yaml").exists()
    match = re.fullmatch(r"results/([\w-]+)/(?:ablations/(\w+)/)?report\.pdf", target)
    assert match, target
    experiment = (REPOSITORY / f"configs/experiments/{match[1]}.yaml").read_text()
    assert match[2] is None or f"\n  {match[2]}:" in experiment


@pytest.mark.parametrize("name", re.findall(r"^\| `([\w-]+)` \| ", README, re.MULTILINE))
def test_experiments(name: str) -> None:
    assert (REPOSITORY / f"configs/experiments/{name}.yaml").exists()
