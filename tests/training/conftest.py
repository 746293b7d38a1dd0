"""A workshop of tiny experiments: real text, real `octavo train` processes, models that take milliseconds a step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import LIMIT, TINY, Checkout, changed, environment

EXPERIMENT = changed(
    TINY,
    {
        "precisions": ["bf16", "fp8_tensorwise", "fp8_blockwise", "fp8_delayed"],
        "training.steps": 80,
        # one learning rate throughout: runs of different lengths have the same first steps
        "training.schedule": {"warmup_fraction": 0.0, "decay": "constant"},
        "training.evaluation.interval": 40,
        "training.logging": {"expert_load_interval": 20},
    },
)


class Run:
    """One run's folder, and the processes that train it."""

    def __init__(
        self, root: Path, experiment: str, cell: str, seed: int, variables: dict[str, str], horizon: int | None = None
    ) -> None:
        """`variables` of the environment; with TRANSFORMER_ENGINE_CPU the run is on the stand-in of that GPU."""
        self.root, self.variables = root, variables
        self.path = root / f"results/{experiment}/runs/{cell}/seed-{seed}"
        if horizon:
            self.path /= f"horizon-{horizon}"

    def start(self) -> subprocess.Popen[str]:
        """Start `octavo train` in a process group of its own."""
        module = "transformer_engine_cpu" if "TRANSFORMER_ENGINE_CPU" in self.variables else "octavo"
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, "train", str(self.path)],
            cwd=self.root,
            env={**environment(self.root), **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, expected_status: int = 0) -> str:
        """Train until it ends; what it printed."""
        process = self.start()
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == expected_status, output
        return output

    def interrupt(self, number: signal.Signals, after_step: int, *, group: bool = False) -> tuple[int, str]:
        """Start, send a signal once a step is logged; the exit status and what was printed."""
        process = self.start()
        while process.poll() is None and not any(one["step"] >= after_step for one in self.metrics()):
            time.sleep(0.005)
        assert process.poll() is None, f"the run ended before it was interrupted: {process.communicate()[0]}"
        os.killpg(process.pid, number) if group else process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output

    def metrics(self) -> list[dict[str, Any]]:
        """Whole lines of the metrics, as they are."""
        return self._lines("metrics.jsonl")

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts."""
        return self._lines("attempts.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def losses(self) -> list[float]:
        """The loss of every step, the last that was logged of each."""
        return [
            loss for _, loss in sorted({one["step"]: one["loss"] for one in self.metrics() if "loss" in one}.items())
        ]

    def validation_losses(self) -> dict[int, float]:
        """Step -> validation loss, the last that was logged of each."""
        return {one["step"]: one["validation_loss"] for one in self.metrics() if "validation_loss" in one}

    def result(self) -> dict[str, Any]:
        """The result."""
        return json.loads((self.path / "result.json").read_text())

    def precision_built(self) -> dict[str, int]:
        """Linear layers by implementation, of the provenance."""
        return json.loads((self.path / "provenance.json").read_text())["precision_built"]

    @property
    def complete(self) -> bool:
        """Whether there is a result."""
        return (self.path / "result.json").exists()


class Workshop(Checkout):
    """A checkout whose text is prepared, for experiments that each differ a little from the tiny one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, EXPERIMENT)
        self.octavo("data", "tiny")

    def experiment(self, name: str, changes: dict[str, Any] | None = None) -> None:
        """Write an experiment: the tiny one with the values at dotted paths replaced."""
        self.write(changed(EXPERIMENT, changes or {}), name)

    def run(
        self,
        cell: str,
        experiment: str = "tiny",
        seed: int = 1,
        variables: dict[str, str] | None = None,
        horizon: int | None = None,
    ) -> Run:
        """A run of an experiment, in an environment with these variables beside; `horizon`: steps of a shorter length
        that it is planned for."""
        return Run(self.root, experiment, cell, seed, variables or {}, horizon)

    def train_layouts(self, names: list[str], ranks: int, **variables: str) -> dict[str, dict[str, Any]]:
        """Train runs one after the other on the ranks that each asks for (`layout_ranks.py`): `<experiment>:<cell>` ->
        what came out."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        script = str(Path(__file__).with_name("layout_ranks.py"))
        outputs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, script, str(rank), str(folder), *names],
                cwd=self.root,
                env={**environment(self.root), **variables},
                stdout=output.open("w"),
                stderr=subprocess.STDOUT,
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            while any(one.poll() is None for one in processes) and not any(one.poll() for one in processes):
                time.sleep(0.1)
        finally:  # one that failed leaves the others waiting for it
            for process in processes:
                if process.poll() is None:
                    process.kill()
        codes = [process.wait() for process in processes]
        failed = next((rank for rank, code in enumerate(codes) if code > 0), 0)
        assert codes == [0] * ranks, outputs[failed].read_text()[-3000:]
        return json.loads((folder / "layouts.json").read_text())


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop that the whole session shares; experiments must differ in name."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def uninterrupted(workshop: Workshop) -> Callable[[str], Run]:
    """Cell -> its run in the experiment `tiny`, trained in one go, once in the session."""

    def trained(cell: str) -> Run:
        run = workshop.run(cell)
        if not run.complete:
            run.train()
        return run

    return trained
