"""Kill, fill, freeze and break; then the same command again: the results must be those of an undisturbed run.

Every kill is SIGKILL to the process and its children at a seeded random time of its undisturbed duration. The attempts
must hold every attempt that got as far as writing itself down.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest
from campaign import CELLS, NAME, POINTS, STAGES, Campaign

from octavo.experiment.run import read_run_config
from octavo.files import write_text
from octavo.layout import RunFolder
from octavo.records import AttemptRecord, Result, read_lines, read_record, read_table
from octavo.verification import rerun
from octavo.verification.compare import counted_metrics, first_difference
from tests.tiny import LIMIT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def test_training_killed_at_random_points(campaign: Campaign) -> None:
    """Every cell in turn is killed once, then twice and three times, each time in the attempt that goes on."""
    draw, points = random.Random("train"), 0
    for cell, kills in cycle((cell, kills) for kills in (1, 2, 3) for cell in CELLS):
        if points == POINTS["train"]:
            break
        clear(campaign, cell)
        struck = 0
        for _ in range(min(kills, POINTS["train"] - points)):
            begun = len(campaign.attempts(cell))
            struck += campaign.forge.kill_after(draw.uniform(0, campaign.seconds[cell]), *campaign.train(cell))
            assert len(campaign.attempts(cell)) - begun in (0, 1)
        written = len(campaign.attempts(cell))
        was_complete = campaign.run_folder(cell).result.exists()
        with campaign.count("SIGKILL while training", struck):
            assert campaign.forge.run(*campaign.train(cell)) == 0, campaign.forge.said()
            campaign.assert_same_run(cell)
            attempts = campaign.attempts(cell)
            assert len(attempts) == written + (not was_complete)  # every attempt is in the ledger
            assert [one.attempt for one in attempts] == list(range(1, len(attempts) + 1))
            # the attempt ends before its result is written: a kill between the two leaves one without the other
            assert all(one.exit_reason in ("killed", "completed") for one in attempts[:-1])
        points += struck
    campaign.restore()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_random_points(campaign: Campaign, stage: str) -> None:
    draw, points = random.Random(stage), 0
    while points < POINTS[stage]:
        seconds = draw.uniform(0, campaign.seconds[stage])
        if campaign.forge.kill_after(seconds, stage, f"results/{NAME}"):
            points += 1
            with campaign.count(f"SIGKILL while in {stage}"):
                assert campaign.forge.run(stage, f"results/{NAME}") == 0, campaign.forge.said()
                campaign.assert_same_files(stage)


@needs_root
@pytest.mark.parametrize("cell", ["dense-bf16", "moe-fp8_tensorwise"])
@pytest.mark.parametrize("free", [0, 12_000, 80_000])
def test_disk_full_while_training(campaign: Campaign, cell: str, free: int) -> None:
    """No room for the configuration; for some of the attempts; for a part of a checkpoint."""
    with disk(campaign):
        clear(campaign, cell)
        with campaign.count("disk full while training"):
            with full(campaign.folder.path, free):
                assert campaign.forge.run(*campaign.train(cell)) == 1
                assert "No space left on device" in campaign.forge.said()
                assert not campaign.run_folder(cell).result.exists()
            written = len(campaign.attempts(cell))
            assert campaign.forge.run(*campaign.train(cell)) == 0, campaign.forge.said()
            campaign.assert_same_run(cell)
            assert len(campaign.attempts(cell)) == written + 1


@needs_root
@pytest.mark.parametrize("stage", STAGES)
def test_disk_full_in_a_stage(campaign: Campaign, stage: str) -> None:
    with disk(campaign), campaign.count(f"disk full in {stage}"):
        with full(campaign.folder.path, 0):
            assert campaign.forge.run(stage, f"results/{NAME}") == 1
            assert "No space left on device" in campaign.forge.said()
        assert campaign.forge.run(stage, f"results/{NAME}") == 0, campaign.forge.said()
        campaign.assert_same_files(stage)


@needs_root
@pytest.mark.parametrize("verb", ["train", *STAGES])
def test_read_only_results(campaign: Campaign, verb: str) -> None:
    with disk(campaign), campaign.count("read-only results"):
        command = (verb, f"results/{NAME}")
        if verb == "train":
            command = campaign.train("moe-bf16")
            clear(campaign, "moe-bf16")
        subprocess.run(["mount", "-o", "remount,ro", campaign.folder.path], check=True)
        assert campaign.forge.run(*command) == 1
        assert "Read-only file system" in campaign.forge.said()
        subprocess.run(["mount", "-o", "remount,rw", campaign.folder.path], check=True)
        assert campaign.forge.run(*command) == 0, campaign.forge.said()
        campaign.assert_same_run("moe-bf16")
        if verb in STAGES:
            campaign.assert_same_files(verb)


def test_clock_set_back(campaign: Campaign) -> None:
    """A run is killed, and goes on where the clock shows the day before."""
    cell = "moe-bf16"
    clear(campaign, cell)
    with campaign.count("clock set back a day"):
        kill_at_step(campaign, cell, 9)
        assert campaign.forge.run(*campaign.train(cell), inject="clock") == 0, campaign.forge.said()
        campaign.assert_same_run(cell)
        first, second = campaign.attempts(cell)
        assert second.start < first.start
        assert second.end is not None
        assert second.end >= second.start
        assert campaign.forge.run("aggregate", f"results/{NAME}") == 0, campaign.forge.said()
        hours = read_table(campaign.folder.attempts_table, "attempts", made_by="")["device_hours"]
        assert (hours >= 0).all()
    campaign.restore()


def test_two_trainers_of_one_run(campaign: Campaign) -> None:
    cell = "dense-bf16"
    clear(campaign, cell)
    with campaign.count("two trainers of one run"):
        both = [campaign.forge.start(*campaign.train(cell)) for _ in range(2)]
        statuses = sorted(campaign.forge.wait(pid) for pid in both)
        assert statuses == [0, 1]
        assert "another process trains this run" in campaign.forge.said()
        campaign.assert_same_run(cell)
        assert len(campaign.attempts(cell)) == 1
    campaign.restore()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_twice_at_once(campaign: Campaign, stage: str) -> None:
    with campaign.count("a stage twice at once"):
        both = [campaign.forge.start(stage, f"results/{NAME}") for _ in range(2)]
        statuses = sorted(campaign.forge.wait(pid) for pid in both)
        assert 0 in statuses, campaign.forge.said()
        campaign.assert_same_files(stage)


def test_two_pipelines_at_once(campaign: Campaign) -> None:
    """The second is refused by the first's lock, or, where it came to it before that, by an output that is gone: one
    that is made again is removed first."""
    target = f"results/{NAME}/claims.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-triggers", "mtime", "--force", target]
    environment = {**os.environ, "OCTAVO_ROOT": str(campaign.root)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with campaign.count("two pipelines at once"):
        both = [
            subprocess.Popen(
                command, cwd=campaign.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for _ in range(2)
        ]
        said = [process.communicate(timeout=LIMIT)[0] for process in both]
        failed = [text for process, text in zip(both, said, strict=True) if process.returncode]
        assert len(failed) < 2, said
        assert all("lock" in text or "a concurrent process has deleted it" in text for text in failed), failed
        subprocess.run(command, cwd=campaign.root, env=environment, check=True, capture_output=True)
        campaign.assert_same_files("claims")


@pytest.mark.parametrize("cell", ["dense-bf16", "moe-fp8_tensorwise"])
def test_nan_is_a_diverged_run_and_not_hidden(campaign: Campaign, cell: str) -> None:
    """A NaN in a parameter ends the run as diverged, in every stage; without it the run is the undisturbed one.
    Figures and report are made of the one, which has an FP8 cell's and a mixture's numbers."""
    clear(campaign, cell)
    with campaign.count("NaN in a parameter"):
        assert campaign.forge.run(*campaign.train(cell), inject="nan") == 0, campaign.forge.said()
        result = read_record(campaign.run_folder(cell).result, Result, made_by="")
        assert result.status == "diverged"
        assert result.steps == 9
        assert result.validation_loss is None
        for stage in STAGES if cell == "moe-fp8_tensorwise" else ("aggregate", "claims"):
            assert campaign.forge.run(stage, f"results/{NAME}") == 0, campaign.forge.said()
        clear(campaign, cell)
        assert campaign.forge.run(*campaign.train(cell)) == 0, campaign.forge.said()
        campaign.assert_same_run(cell)
    campaign.restore()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed(campaign: Campaign, rank: int) -> None:
    """One of two data-parallel ranks is killed: the other leaves too, and the run goes on from its checkpoint."""
    run = read_run_config(campaign.run_folder("moe-bf16").config)
    two = run.model_copy(update={"parallelism": run.parallelism.model_copy(update={"data": 2})})
    config = campaign.root / "two-ranks.yaml"
    write_text(config, two.to_yaml())
    whole, broken = (RunFolder(campaign.root / f"ranks/{name}/seed-1") for name in ("whole", f"killed-{rank}"))
    if not whole.result.exists():
        assert ranks(campaign, config, whole).wait(LIMIT) == 0
    with campaign.count("a rank killed in a run of two"):
        process = ranks(campaign, config, broken)
        while rerun.last_step(broken.metrics) < 8:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(rank_process(process.pid, rank), signal.SIGKILL)
        assert process.wait(LIMIT) not in (0, 75)
        assert not broken.result.exists()
        assert ranks(campaign, config, broken).wait(LIMIT) == 0
        results = [read_record(one.result, Result, made_by="") for one in (whole, broken)]
        assert results[0].parameters_sha256 == results[1].parameters_sha256
        assert first_difference(counted_metrics(whole.metrics), counted_metrics(broken.metrics)) is None
        first, second = read_lines(broken.attempts, AttemptRecord)
        assert first.exit_reason in ("killed", "failed", "signalled")
        assert second.first_step >= 6


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "no seal", "another run's"])
def test_a_damaged_checkpoint(campaign: Campaign, damage: str) -> None:
    """The run goes on from the checkpoint before it."""
    cell = "moe-fp8_tensorwise"
    clear(campaign, cell)
    with campaign.count("a damaged checkpoint"):
        kill_at_step(campaign, cell, 16)
        newest = max(campaign.run_folder(cell).checkpoints.glob("step-*"), key=lambda one: int(one.name[5:]))
        shard = newest / "__0_0.distcp"
        if damage == "truncated":
            os.truncate(shard, shard.stat().st_size // 2)
        elif damage == "emptied":
            os.truncate(shard, 0)
        elif damage == "missing":
            shard.unlink()
        elif damage == "no seal":
            (newest / "hashes.json").unlink()
        else:
            shutil.rmtree(newest)
            shutil.copytree(next(campaign.run_folder("dense-bf16").checkpoints.glob("step-*")), newest)
        assert campaign.forge.run(*campaign.train(cell)) == 0, campaign.forge.said()
        assert "not going on from a checkpoint" in campaign.forge.log.read_text()
        campaign.assert_same_run(cell)
        assert campaign.attempts(cell)[-1].first_step < int(newest.name[5:])
    campaign.restore()


def test_every_kill_was_counted(campaign: Campaign) -> None:
    """Last: of each test of kills that was asked for, as many points as it promises, and each survived."""
    for verb, points in POINTS.items():
        fault = "SIGKILL while training" if verb == "train" else f"SIGKILL while in {verb}"
        assert campaign.table.get(fault, [points, points]) == [points, points]


# --- what disturbs --------------------------------------------------------------------------------------------------


def clear(campaign: Campaign, cell: str) -> None:
    """Remove a run."""
    shutil.rmtree(campaign.run_folder(cell).path, ignore_errors=True)


def kill_at_step(campaign: Campaign, cell: str, step: int) -> None:
    """Train a run and kill it once a step is logged."""
    pid = campaign.forge.start(*campaign.train(cell))
    while rerun.last_step(campaign.run_folder(cell).metrics) < step:
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    assert campaign.forge.wait(pid) == -signal.SIGKILL


@contextmanager
def disk(campaign: Campaign) -> Iterator[None]:
    """The experiment's results on a small disk of their own: 4 MB more than they take."""
    size = sum(path.stat().st_size for path in campaign.undisturbed.rglob("*") if path.is_file())
    place = campaign.folder.path
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size * 11 // 10 + 4_000_000}", "tmpfs", place]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        shutil.copytree(campaign.undisturbed, place, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def full(place: Path, free: int) -> Iterator[None]:
    """Fill a disk but for some bytes."""
    filler = place / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(place)
        blocks = room.f_bavail - free // room.f_frsize
        os.posix_fallocate(file.fileno(), 0, blocks * room.f_frsize)
    try:
        yield
    finally:
        filler.unlink()


def ranks(campaign: Campaign, config: Path, folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start a run of more than one rank."""
    command = [sys.executable, "-W", "ignore", "-m", "octavo", "train", str(folder.path), "--config", str(config)]
    environment = {**os.environ, "OCTAVO_ROOT": str(campaign.root)}
    return subprocess.Popen(
        command, cwd=campaign.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def rank_process(parent: int, rank: int) -> int:
    """The process of a rank, of the processes that a launcher started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")
