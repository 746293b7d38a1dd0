"""A tiny experiment, its undisturbed results, and a way to start verbs and to disturb them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import AttemptRecord, Result, read_lines, read_record
from octavo.verification.compare import counted_metrics, first_difference
from tests.tiny import ONE_THREAD, TINY, changed

EXPERIMENT = changed(
    TINY,
    {
        "precisions": ["bf16", "fp8_tensorwise"],
        "training.steps": 24,
        "training.evaluation.interval": 8,
        "training.logging": {"expert_load_interval": 8, "precision_interval": 8},
        "training.checkpoints": {"interval": 6, "grace_seconds": 5},
    },
)
NAME = "tiny"
CELLS = ("dense-bf16", "dense-fp8_tensorwise", "moe-bf16", "moe-fp8_tensorwise")
STAGES = {
    "aggregate": ["runs.parquet", "steps.parquet", "attempts.parquet"],
    "claims": ["claims.json", "comparisons.json"],
    "figures": ["figures"],
    "report": ["report.pdf", "report.html", "report.hashes.json"],
}
KILLS = {"train": 24, "aggregate": 8, "claims": 8, "figures": 4, "report": 6}
"""Points at which SIGKILL strikes in the whole campaign."""
POINTS = KILLS if os.environ.get("OCTAVO_CAMPAIGN") == "whole" else dict.fromkeys(STAGES, 2) | {"train": 12}
"""Those of this one. Of training 12 are every cell once and then twice, the second time in the attempt that goes on."""
FAULTS = {
    "SIGKILL while training": KILLS["train"],
    **{f"SIGKILL while in {stage}": KILLS[stage] for stage in STAGES},
    "disk full while training": 6,
    **{f"disk full in {stage}": 1 for stage in STAGES},
    "read-only results": 1 + len(STAGES),
    "clock set back a day": 1,
    "two trainers of one run": 1,
    "a stage twice at once": len(STAGES),
    "two pipelines at once": 1,
    "NaN in a parameter": 2,
    "a rank killed in a run of two": 2,
    "a damaged checkpoint": 5,
}
"""How often the whole campaign tries each fault."""


class Forge:
    """Starts verbs (see `forge.py`)."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root, self.log = root, logs / "verbs.log"
        environment = {**os.environ, **ONE_THREAD, "MKL_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("forge.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert self._answer() == "ready"

    def start(self, *arguments: str, root: Path | None = None, inject: str | None = None) -> int:
        """Start a verb; its process id."""
        order = {"argv": arguments, "root": str(root or self.root), "log": str(self.log), "inject": inject}
        return self._ask(order)

    def wait(self, pid: int) -> int:
        """Its exit status."""
        return self._ask({"wait": pid})

    def run(self, *arguments: str, root: Path | None = None, inject: str | None = None) -> int:
        """Start a verb and wait."""
        return self.wait(self.start(*arguments, root=root, inject=inject))

    def kill_after(self, seconds: float, *arguments: str) -> bool:
        """Start a verb and kill it and its children after a time; whether it was still there."""
        pid = self.start(*arguments)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):  # it may not have made its group yet
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.wait(pid) == -signal.SIGKILL

    def said(self) -> str:
        """The end of what verbs printed."""
        return self.log.read_text()[-2000:]

    def _ask(self, order: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())


class Campaign:
    """The undisturbed results, and the count of what was tried and survived."""

    def __init__(self, root: Path, forge: Forge) -> None:
        self.root, self.forge = root, forge
        self.folder = ExperimentFolder(root / "results" / NAME)
        self.undisturbed = root.parent / "undisturbed"
        self.seconds: dict[str, float] = {}
        self.table: dict[str, list[int]] = {}

    def prepare(self) -> None:
        """Make everything once, undisturbed, and time it."""
        for verb in ("plan", "data"):
            target = NAME if verb == "data" else f"results/{NAME}"
            assert self.forge.run(verb, target) == 0, self.forge.said()
        for cell in CELLS:
            self._time(cell, *self.train(cell))
        for stage in STAGES:
            self._time(stage, stage, f"results/{NAME}")
        shutil.copytree(self.folder.path, self.undisturbed)

    def train(self, cell: str) -> tuple[str, str]:
        """The command of a run."""
        return "train", f"results/{NAME}/runs/{cell}/seed-1"

    def run_folder(self, cell: str) -> RunFolder:
        """A run's folder."""
        return self.folder.run(cell, 1)

    def attempts(self, cell: str) -> list[AttemptRecord]:
        """The attempts of a run."""
        return read_lines(self.run_folder(cell).attempts, AttemptRecord)

    def restore(self) -> None:
        """Put the undisturbed results back."""
        shutil.rmtree(self.folder.path)
        shutil.copytree(self.undisturbed, self.folder.path)

    def assert_same_run(self, cell: str, folder: RunFolder | None = None) -> None:
        """A run is, bit for bit, the undisturbed one."""
        found, whole = folder or self.run_folder(cell), ExperimentFolder(self.undisturbed).run(cell, 1)
        results = [read_record(one.result, Result, made_by="") for one in (found, whole)]
        times = {"training_seconds", "metrics_sha256", "files_sha256"}
        assert results[0].model_dump(exclude=times) == results[1].model_dump(exclude=times)
        assert first_difference(counted_metrics(whole.metrics), counted_metrics(found.metrics)) is None
        if whole.routing.exists():
            assert found.routing.read_bytes() == whole.routing.read_bytes()

    def assert_same_files(self, stage: str, folder: Path | None = None) -> None:
        """What a stage makes is, byte for byte, what it made undisturbed."""
        for name in STAGES[stage]:
            found, whole = (folder or self.folder.path) / name, self.undisturbed / name
            pairs = [(found, whole)]
            if whole.is_dir():
                assert {one.name for one in found.iterdir()} == {one.name for one in whole.iterdir()}
                pairs = [(found / one.name, one) for one in whole.iterdir()]
            for left, right in pairs:
                assert left.read_bytes() == right.read_bytes(), left.name

    @contextlib.contextmanager
    def count(self, fault: str, times: int = 1) -> Iterator[None]:
        """Count a fault as tried, and as survived when the block ends well; `times` that came one after the other."""
        assert fault in FAULTS
        row = self.table.setdefault(fault, [0, 0])
        row[0] += times
        yield
        row[1] += times

    def _time(self, name: str, *command: str) -> None:
        began = time.monotonic()
        assert self.forge.run(*command) == 0, self.forge.said()
        self.seconds[name] = time.monotonic() - began
