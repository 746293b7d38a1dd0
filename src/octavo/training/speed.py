"""How long steps of small models take in this process: what a run does, without its files, its data and its end."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from octavo.experiment.run import RunConfig
from octavo.megatron_versions import forget_layers
from octavo.training.assembly import build_chunks
from octavo.training.launch import Process
from octavo.training.optimizer import build_optimizer, build_scheduler
from octavo.training.process import set_up_process
from octavo.training.step import Batch, Stepper
from octavo.training.validation import item

WARM_UP = 2
"""Steps of each run before the first that counts: they take memory, and the optimizer makes its state."""


class _Random:
    """Sequences of tokens drawn evenly: what a step costs does not depend on what is written in them."""

    def __init__(self, run: RunConfig) -> None:
        self._length, self._vocabulary = run.training.sequence_length, run.model.vocabulary_size or 1
        self._generator = torch.Generator().manual_seed(run.seed)

    def __getitem__(self, _: int) -> Batch:
        return item(torch.randint(self._vocabulary, (self._length + 1,), generator=self._generator))


def time_steps(runs: Sequence[RunConfig], rounds: int, steps: int, meet: Callable[[], object]) -> list[list[float]]:
    """Seconds of `rounds` x `steps` steps of each run, on one core of this machine.

    They are this process's own seconds of a core: what else the core does meanwhile is not counted, while a busy
    neighbour that shares its caches or its clock is. The runs are timed in turns, so that what slows the machine down
    for a moment slows all of them. `meet` is called before the first step that counts, to wait for other processes.
    """
    set_up_process(runs[0], Process(0, 1, 0))
    trained = [_Timed(run) for run in runs]
    for one in trained:
        one.go(WARM_UP)
    gc.freeze()
    meet()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for own, one in zip(seconds, trained, strict=True):
            own.extend(one.go(steps))
    torch.distributed.destroy_process_group()
    return seconds


class _Timed:
    """A run's model with its optimizer, stepped without a folder."""

    def __init__(self, run: RunConfig) -> None:
        config, chunks, _ = build_chunks(run)
        optimizer = build_optimizer(chunks, run.training, on_gpu=False)
        config.grad_scale_func = optimizer.scale_loss
        self._stepper = Stepper(run, chunks, optimizer, build_scheduler(optimizer, run.training))
        self._sequences = _Random(run)
        self._step = 0

    def go(self, steps: int) -> list[float]:
        """Train for so many steps; the seconds of each."""
        forget_layers()
        seconds = []
        for _ in range(steps):
            self._step += 1
            began = time.process_time()
            self._stepper.step(self._step, self._sequences, signalled=False)
            seconds.append(time.process_time() - began)
        return seconds
