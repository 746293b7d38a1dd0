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
    load({"data.sources": [{**FILES, "held_out": ["a.txt"]}]})
    (checkout / "text").mkdir()
    for name in ("a.txt", "b.txt"):
        (checkout / "text" / name).write_text("words " * 200_000)
    assert check() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"claims": ["no-such-claim"]}, "there is no claim 'no-such-claim'"),
        ({"claims": ["../models/x"]}, "wrong value: '../models/x'"),
        (
            {"ablations.shared.change": {"model.experts.shared_size": 0}},
            "changes nothing that moe-bf16 is trained with",
        ),
        ({"ablations.shared.change": {"model.name": "another"}}, "changes nothing that moe-bf16 is trained with"),
        (
            {
                "ablations.shared.change": {
                    "training.optimizer": {"learning_rate": 1.0},
                    "training.optimizer.beta1": 0.5,
                }
            },
            "'training.optimizer' and 'training.optimizer.beta1' change the same value",
        ),
        ({"training.optimizer.learning_rate": 1e300}, "less than or equal to 10"),
        ({"cluster": "x" * 300}, "wrong value"),
        ({"models.dense": "x" * 300}, "wrong value"),
        ({"data": "x" * 300}, "there is no text"),
        ({"data.sources": [{"kind": "files", "path": "x" * 300}]}, "names of 1 to 255 bytes"),
    ],
)
def test_what_would_be_trained_for_nothing_is_refused(
    checkout: Path, load: Callable[..., Experiment], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(OctavoError) as refused:
        load(changes)
    assert said in str(refused.value)
    assert "small.yaml" in str(refused.value)


def test_a_job_is_signalled_before_its_time_is_over(load: Callable[..., Experiment]) -> None:
    with pytest.raises(OctavoError, match="signal_seconds: 120 leaves nothing of a time limit of 120 s"):
        load(cluster={"slurm": {"time_limit_minutes": 2, "signal_seconds": 120}})
