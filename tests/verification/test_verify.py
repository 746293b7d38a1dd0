"""What `octavo verify` makes of runs that cannot be made again as asked, of its options, and of being ended itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.verification import rerun
from octavo.verification.verify import _Gates, relaid, verify


def test_a_run_that_cannot_be_made_again_is_a_check(folder: ExperimentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, the other gates go on, and verification.json is written."""

    def train(*_: object, **__: object) -> bool:
        raise OctavoError("a run made again failed with status 1: no space", where="seed-1.log")

    monkeypatch.setattr(rerun, "train", train)
    found = verify(folder, sample=1, gates=["repeatability", "restart"], seed=0)
    again = {one.gate: one for one in found.checks if one.gate != "integrity"}
    assert again.keys() == {"repeatability", "restart"}
    for one in again.values():
        assert one.status == "different"
        assert one.note == "it cannot be made again: a run made again failed with status 1: no space (seed-1.log)"
    assert not found.passed
    assert folder.verification.exists()


def test_a_run_of_an_experiment_with_ablations_is_laid_out_otherwise(repository: Path) -> None:
    experiment = load_experiment("laptop-ablations", ConfigFolders(repository / "configs"))
    other = relaid(experiment, experiment.run("moe-bf16", experiment.file.all_seeds[0]), "data")
    assert other is not None
    assert other.parallelism.data == 2


@pytest.mark.parametrize("steps", [1, 10])
def test_no_restart_is_shown_before_the_first_checkpoint(folder: ExperimentFolder, steps: int) -> None:
    """These runs save every 10 steps: what is killed before begins anew, which is no restart."""
    found = verify(folder, sample=1, gates=["restart"], seed=0, steps=steps)
    (one,) = [one for one in found.checks if one.gate == "restart"]
    assert one.status == "not testable here"
    assert one.note == f"no checkpoint is due before step {steps}, to go on from (training.checkpoints.interval: 10)"


def test_only_a_run_that_was_stopped_is_said_to_be(folder: ExperimentFolder) -> None:
    experiment = load_experiment(folder.name)
    run = experiment.run("moe-bf16", 1)
    assert [_Gates(experiment, folder, [run], 0, steps)._up_to(run) for steps in (None, 40, 1000)] == ["", "", ""]
    assert _Gates(experiment, folder, [run], 0, 39)._up_to(run) == " up to step 39, where it was stopped"


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (["results/synthetic", "--against", "published"], ["compare", "results/synthetic", "published"]),
        (["--against=published", "results/synthetic"], ["compare", "results/synthetic", "published"]),
        (["results/synthetic", "--check"], ["verification", "results/synthetic"]),
        (["--bundle", "x.zip"], ["verify-bundle", "x.zip"]),
    ],
)
def test_former_options_of_verify_are_verbs(folder: ExperimentFolder, former: list[str], now: list[str]) -> None:
    """These files are missing: the same error, whichever way they are asked for."""
    found = [CliRunner().invoke(app, arguments).exception for arguments in (["verify", *former], now)]
    assert all(isinstance(one, OctavoError) for one in found)
    assert str(found[0]) == str(found[1])


@pytest.mark.parametrize(
    "arguments",
    [["results/synthetic", "--check", "--gates", "restart"], ["--bundle", "x.zip", "--sample", "3"],
     ["results/synthetic", "--against", "x", "--seed", "2"], ["results/synthetic", "--bundle", "x.zip"]],
)  # fmt: skip
def test_an_option_that_would_be_overlooked_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["verify", *arguments])
    assert done.exit_code == 2
    assert "No such option" in done.output or "unexpected extra argument" in done.output


def test_a_gate_that_is_named_twice_is_tried_once(folder: ExperimentFolder) -> None:
    arguments = ["verify", str(folder.path), "--gates", "restart, restart", "--steps", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert sum(line.startswith("restart ") for line in done.stdout.splitlines()) == 1


@pytest.mark.timeout(3600)
def test_what_is_trained_again_ends_with_what_watches_it(tmp_path: Path) -> None:
    """SIGKILL leaves no word: the kernel ends the run that was started to be compared."""
    pid = tmp_path / "pid"
    sleeper = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    watcher = (
        "import os, subprocess, sys; from octavo.verification.rerun import WITH_PARENT;"
        "subprocess.run([sys.executable, '-c', WITH_PARENT, str(os.getpid()), '-c', sys.argv[1]],"
        " start_new_session=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", watcher, sleeper])
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    child = int(pid.read_text())
    for _ in range(1000):
        if not alive(child):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it went on")


def alive(pid: int) -> bool:
    """Whether a process runs: one that nobody waits for stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
