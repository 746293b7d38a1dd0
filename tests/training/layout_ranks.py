"""One of several ranks that train many small runs one after the other, each laid out in its own way.

`python layout_ranks.py RANK FOLDER NAME:CELL...`: the first ranks, as many as a layout asks for, train the run of an
experiment NAME; rank 0 writes what came out to FOLDER/layouts.json. Starting Python and Megatron-Core takes longer than
these runs, so that the processes are started once for all of them.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

from octavo.cpu.backend import install

install()

import torch.distributed  # noqa: E402
from megatron.core import parallel_state  # noqa: E402

from octavo.data.manifest import data_set_folder  # noqa: E402
from octavo.data.sampling import PreparedData, open_dataset  # noqa: E402
from octavo.experiment.load import load_experiment  # noqa: E402
from octavo.experiment.run import RunConfig  # noqa: E402
from octavo.files import write_text  # noqa: E402
from octavo.training.assembly import build_chunks  # noqa: E402
from octavo.training.checkpoint import Checkpointer  # noqa: E402
from octavo.training.launch import Process  # noqa: E402
from octavo.training.optimizer import build_optimizer, build_scheduler  # noqa: E402
from octavo.training.process import set_up_process  # noqa: E402
from octavo.training.step import Stepper  # noqa: E402
from octavo.training.validation import Validator  # noqa: E402

SAVED_AFTER = 2
"""The step after which a checkpoint is made; a second model goes on from it."""


class Model:
    """A run's model as the trainer builds it, with its data and a folder for checkpoints."""

    def __init__(self, run: RunConfig, data: PreparedData, folder: Path, *, leads: bool) -> None:
        self.run = run
        config, chunks, _ = build_chunks(run)
        optimizer = build_optimizer(chunks, run.training, on_gpu=False)
        scheduler = build_scheduler(optimizer, run.training)
        config.grad_scale_func = optimizer.scale_loss
        self.stepper = Stepper(run, chunks, optimizer, scheduler)
        self.validator = Validator(run, data, chunks, self.stepper)
        self.checkpoints = Checkpointer(
            folder, 1, chunks, optimizer, scheduler, leads=leads, run_fingerprint="", data_manifest_sha256=""
        )
        self.sequences = data.training_sequences(run)

    def step(self, step: int) -> tuple[float, float]:
        """Loss and gradient norm of a step."""
        result = self.stepper.step(step, self.sequences, signalled=False)
        return result.loss, result.grad_norm


def train(run: RunConfig, process: Process, folder: Path) -> dict[str, Any]:
    """Train a run, validate, and train its end again from a checkpoint."""
    set_up_process(run, process)
    data = open_dataset(data_set_folder(run.data, run.tokenizer), hashes=False)
    steps = run.training.total_steps
    model = Model(run, data, folder, leads=process.leads)
    numbers = []
    for step in range(1, steps + 1):
        numbers.append(model.step(step))
        if step == SAVED_AFTER:
            model.checkpoints.save(step)
    again = Model(run, data, folder, leads=process.leads)
    begin = again.checkpoints.load_newest()
    repeated = [again.step(step) for step in range(begin + 1, steps + 1)]
    return {
        "losses": [loss for loss, _ in numbers],
        "grad_norms": [norm for _, norm in numbers],
        "validation": model.validator.validate(run.training.evaluation.sequences).loss,
        "resumed": repeated == numbers[SAVED_AFTER:],
    }


def meet(path: Path, *, leads: bool) -> int:
    """The port where the ranks meet: rank 0 chooses one that is free now, and writes it to a file."""
    if leads:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        write_text(path, str(port))
        return port
    while not path.exists():
        time.sleep(0.01)
    return int(path.read_text())


def main() -> None:
    """See the top of the module."""
    rank, folder, found = int(sys.argv[1]), Path(sys.argv[2]), {}
    for number, named in enumerate(sys.argv[3:]):
        name, _, cell = named.partition(":")
        run = load_experiment(name).run(cell, 1)
        size = run.parallelism.world_size
        if rank >= size:
            continue
        port = meet(folder / f"port-{number}", leads=rank == 0) if size > 1 else 0
        found[named] = train(run, Process(rank, size, rank, port=port), folder / f"checkpoints-{number}")
        torch.distributed.barrier()
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    if rank == 0:
        (folder / "layouts.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
