"""Text that changed: what was trained on the earlier text is not gone on from, and not taken for what is asked now."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.training.conftest import Workshop

pytest.importorskip("torch")


@pytest.fixture
def text(workshop: Workshop) -> Path:
    """The text of the experiment `other_text`, prepared."""
    folder = workshop.root / "other_text"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workshop.root / "text", folder)
    workshop.experiment("other_text", {"data.sources": [{"kind": "files", "path": "other_text"}], "data.split_seed": 5})
    prepare_again(workshop)
    return folder


def prepare_again(workshop: Workshop) -> None:
    for manifest in workshop.root.glob("results/data/*/manifest.json"):
        if '"name": "other_text"' in manifest.read_text():
            shutil.rmtree(manifest.parent)
    workshop.octavo("data", "other_text")


def test_a_finished_run_is_trained_again_and_the_earlier_one_stays_in_the_books(workshop: Workshop, text: Path) -> None:
    run = workshop.run("dense-bf16", "other_text")
    run.train()
    first = run.result()
    assert "complete" in run.train()
    (text / "document-3.txt").write_text("entirely other words " * 200)
    prepare_again(workshop)
    assert "earlier text" in run.train()
    assert run.result()["run_fingerprint"] == first["run_fingerprint"]
    assert run.result()["data_manifest_sha256"] != first["data_manifest_sha256"]
    assert run.result()["parameters_sha256"] != first["parameters_sha256"]
    assert [one["first_step"] for one in run.attempts()] == [0]
    assert len(list(run.path.glob("superseded/*/attempts.jsonl"))) == 1


def test_a_run_does_not_go_on_from_a_checkpoint_on_other_text(workshop: Workshop, text: Path) -> None:
    run = workshop.run("moe-bf16", "other_text")
    status, _ = run.interrupt(signal.SIGKILL, after_step=25)
    assert status == -signal.SIGKILL
    (text / "document-3.txt").write_text("entirely other words " * 200)
    prepare_again(workshop)
    assert "going on" not in run.train()
    assert len(run.losses()) == 80
    assert {one["attempt"] for one in run.metrics()} == {1}  # all of them the new run's first attempt's


def test_checkpoints_are_kept_while_the_data_set_is_missing(workshop: Workshop, text: Path) -> None:
    run = workshop.run("dense-fp8_blockwise", "other_text")
    run.interrupt(signal.SIGKILL, after_step=25)
    (manifest,) = (one for one in workshop.root.glob("results/data/*/manifest.json") if "other_text" in one.read_text())
    manifest.rename(manifest.with_name("kept"))
    assert "octavo data" in run.train(expected_status=1)
    manifest.with_name("kept").rename(manifest)
    assert "going on from the checkpoint after step" in run.train()
