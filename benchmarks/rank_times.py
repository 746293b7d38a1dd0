"""What it costs to note how long a rank works at a step: `python benchmarks/rank_times.py`, two minutes on one core.

Steps of a tiny model with and without the note take turns in one process; processor time is counted. Their difference
is below what such steps scatter, so that the note is timed by itself, too, and the median that goes into `.ranks/` once
a second.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octavo.cpu.backend import install

install()

import numpy as np

from octavo.experiment.load import load_experiment
from octavo.training.launch import Process
from octavo.training.process import set_up_process
from octavo.training.trainer import _Trainer
from tests.tiny import Checkout

STEPS, NOTES = 1500, 100_000
NOTED_STEPS = 1000
"""That a rank keeps the times of."""


class _NoWork:
    def begin(self) -> None:
        """Note nothing."""

    def seconds(self) -> float:
        """Nothing was noted."""
        return 0.0


def main() -> None:
    """Print medians, the difference of neighbouring steps with its interval, and the parts by themselves."""
    trainer = _tiny_trainer()
    stepper: Any = trainer.stepper
    noting, config = stepper._work, stepper._chunks[0].config

    def step(work: Any, reduce: Any) -> float:
        stepper._work, config.finalize_model_grads_func = work, reduce
        trainer.done += 1
        began = time.process_time()
        result = stepper.step(1 + trainer.done % 30, trainer.sequences, signalled=False)
        if work is noting:
            trainer.watch.worked(result.work_seconds)
        return time.process_time() - began

    ways = ((noting, noting._end), (_NoWork(), noting._reduce))
    times = np.array([[step(*way) for way in (ways if pair % 2 else ways[::-1])] for pair in range(STEPS)])
    times[::2] = times[::2, ::-1]
    times = times[20:]
    less = times[:, 0] - times[:, 1]
    draws = np.random.default_rng(1).choice(less, (1000, len(less)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    plain = float(np.median(times[:, 1]))
    print(f"a step without: {1e3 * plain:.2f} ms; with: {1e3 * float(np.median(times[:, 0])):.2f} ms of processor time")
    share, ends = float(np.median(less)) / plain, (low / plain, high / plain)
    print(f"difference of {len(less)} pairs: {share:+.2%} (95 % interval {ends[0]:+.2%} to {ends[1]:+.2%})")

    noting._reduce = lambda: None
    began = time.process_time()
    for _ in range(NOTES):
        noting.begin()
        noting._end()
        trainer.watch.worked(noting.seconds())
    note = (time.process_time() - began) / NOTES
    print(f"the note by itself: {1e6 * note:.2f} us a step, {note / plain:.4%} of it")
    kept = list(np.random.default_rng(1).random(NOTED_STEPS))
    began = time.process_time()
    for _ in range(1000):
        median(kept)
    print(f"the median of {NOTED_STEPS} of them, once a second: {1e3 * (time.process_time() - began):.0f} us")


def _tiny_trainer() -> Any:
    root = Path(tempfile.mkdtemp()) / "checkout"
    checkout = Checkout(root)
    checkout.octavo("data", "tiny")
    os.environ["OCTAVO_ROOT"] = str(root)
    os.chdir(root)
    experiment = load_experiment("tiny")
    run, place = experiment.run("dense-bf16", 1), Process(0, 1, 0)
    set_up_process(run, place)
    folder = experiment.folder.run("dense-bf16", 1)
    trainer: Any = _Trainer(run, folder, place)
    folder.path.mkdir(parents=True)
    trainer._build()
    return trainer


if __name__ == "__main__":
    main()
