"""An experiment is named in the same three ways to every verb, and is that of the checkout which it lies in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import app
from octavo.commands.named import enter, enter_path
from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder, repository
from tests.tiny import Checkout, octavo


@pytest.fixture
def checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders that look like checkouts, each with an experiment `tiny`."""
    roots = tmp_path / "one", tmp_path / "two"
    for root in roots:
        for folder in ("configs/experiments", "results/tiny/ablations/few", "docs"):
            (root / folder).mkdir(parents=True)
        (root / "configs/experiments/tiny.yaml").touch()
    monkeypatch.delenv("OCTAVO_ROOT")
    return roots


@pytest.mark.parametrize(
    ("standing_in", "named"),
    [
        (".", "tiny"),
        (".", "results/tiny"),
        (".", "results/tiny/"),
        (".", "configs/experiments/tiny.yaml"),
        ("docs", "tiny"),
        ("docs", "../results/tiny"),
        ("docs", "../configs/experiments/tiny.yaml"),
        ("results", "tiny"),
        ("results/tiny", "."),
        ("configs/experiments", "tiny.yaml"),
    ],
)
def test_name_results_folder_and_file_are_one_experiment_from_any_folder(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, standing_in: str, named: str
) -> None:
    one, _ = checkouts
    monkeypatch.chdir(one / standing_in)
    assert enter(Path(named)) == ExperimentFolder(Path("results/tiny"))
    assert Path.cwd() == repository() == one


@pytest.mark.parametrize("variable", [False, True])
def test_results_belong_to_the_checkout_that_they_lie_in(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    """Also where OCTAVO_ROOT names another, which decides for bare names alone."""
    one, two = checkouts
    monkeypatch.chdir(one)
    if variable:
        monkeypatch.setenv("OCTAVO_ROOT", str(one))
    enter(two / "results" / "tiny")
    assert Path.cwd() == repository() == two
    monkeypatch.chdir(one)
    assert enter_path(two / "results/tiny/runs/dense-bf16/seed-1") == Path("results/tiny/runs/dense-bf16/seed-1")
    assert Path.cwd() == repository() == two


def test_results_on_another_disk_belong_to_the_checkout_that_links_to_them(
    checkouts: tuple[Path, Path], tmp_path: Path
) -> None:
    one, _ = checkouts
    (tmp_path / "scratch").mkdir()
    (one / "results").rename(tmp_path / "scratch/results")
    (one / "results").symlink_to(tmp_path / "scratch/results")
    enter(one / "results/tiny")
    assert repository() == one


@pytest.mark.parametrize(
    ("named", "fix"),
    [
        ("results/tiny/ablations/few", "with --ablation"),
        ("docs/tiny.yaml", "name the experiment"),
        ("../elsewhere/results/tiny", "copy them into results/"),
    ],
)
def test_what_is_no_experiment_is_an_error_that_says_what_to_do(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, named: str, fix: str
) -> None:
    monkeypatch.chdir(checkouts[0])
    with pytest.raises(OctavoError, match="is not an experiment") as error:
        enter(Path(named))
    assert fix in str(error.value)
    assert Path.cwd() == checkouts[0]


def test_results_outside_of_any_checkout_are_of_the_one_that_the_variable_names(
    checkouts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, _), outside = checkouts, tmp_path / "elsewhere/results/tiny"
    outside.mkdir(parents=True)
    with pytest.raises(OctavoError, match="is not an experiment"):
        enter(outside)
    monkeypatch.setenv("OCTAVO_ROOT", str(one))
    assert enter(outside) == ExperimentFolder(outside)
    assert repository() == one


@pytest.mark.parametrize("name", ["../..", "", "few/../few", "/tmp"])
def test_an_ablation_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(OctavoError, match="is no name of an ablation"):
        app(["claims", "tiny", "--ablation", name], standalone_mode=False)


@pytest.mark.parametrize(
    "verb", ["status", "reconcile", "aggregate", "verify", "verification", "bundle", "plan", "check", "data"]
)
def test_a_verb_that_needs_a_configuration_says_that_it_is_given_an_import(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    one, _ = checkouts
    theirs = ExperimentFolder(one / "results" / "theirs")
    theirs.path.mkdir()
    theirs.imported.touch()
    monkeypatch.chdir(one)
    with pytest.raises(OctavoError, match="theirs is an import") as error:
        app([verb, "results/theirs"], standalone_mode=False)
    assert "import, claims, figures, report, trace, converges" in str(error.value)


def test_verbs_do_and_say_the_same_from_every_folder(tmp_path: Path) -> None:
    root = Checkout(tmp_path / "checkout").root
    docs = root / "docs"
    docs.mkdir()

    def from_docs(*arguments: str) -> str:
        done = octavo(root, *arguments, folder=docs)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(folder: Path, named: str) -> dict[str, str]:
        runs = json.loads(octavo(root, "status", named, "--json", folder=folder).stdout)["runs"]
        return {one["cell"]: one["state"] for one in runs}

    from_docs("data", "tiny")
    from_docs("train", "../results/tiny/runs/dense-bf16/seed-1")
    from_docs("aggregate", "../results/tiny")
    from_docs("claims", "../results/tiny")
    assert not (docs / "results").exists()
    waiting = dict.fromkeys(("dense-fp8_blockwise", "moe-bf16", "moe-fp8_blockwise"), "waiting")
    for folder, named in (
        (root, "results/tiny"),
        (docs, "tiny"),
        (docs, "../results/tiny"),
        (tmp_path, "checkout/configs/experiments/tiny.yaml"),
    ):
        assert states(folder, named) == {"dense-bf16": "done", **waiting}
    from_docs("verify", "../results/tiny", "--sample", "0")
    assert "steps" in from_docs("trace", "--results", "../results/tiny", "runs.dense-bf16/seed-1.validation_loss")
