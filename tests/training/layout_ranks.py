"""One of several ranks that train many small runs one after the other, each laid out in its own way.

`python layout_ranks.py RANK FOLDER NAME:CELL:SEED...`: the first ranks, as many as a layout asks for, train the run of
an experiment NAME (of seed 1, where none is said); rank 0 writes what came out to FOLDER/layouts.json. Starting Python
and Megatron-Core takes longer than these runs, so that the processes are started once for all of them. Where the
environment names a GPU's compute capability in TRANSFORMER_ENGINE_CPU, they train on Octavo's GPU branch, with
`tests/transformer_engine_cpu`.

A run that computes what an earlier one did, on another layout, also goes on from that one's checkpoint, and that one
from its checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CAPABILITY = os.environ.get("TRANSFORMER_ENGINE_CPU")
if CAPABILITY:
    import transformer_engine_cpu

    transformer_engine_cpu.install(CAPABILITY)
else:
    from octavo.cpu.backend import install

    install()

import torch.distributed  # noqa: E402
from megatron.core import parallel_state  # noqa: E402

from octavo.data.manifest import data_set_folder  # noqa: E402
from octavo.data.sampling import PreparedData, open_dataset  # noqa: E402
from octavo.errors import OctavoError  # noqa: E402
from octavo.experiment.load import load_experiment  # noqa: E402
from octavo.experiment.run import RunConfig  # noqa: E402
from octavo.files import write_text  # noqa: E402
from octavo.megatron_versions import INSTALLED  # noqa: E402
from octavo.precision.config import Precision  # noqa: E402
from octavo.records import LayoutSince  # noqa: E402
from octavo.training.assembly import build_chunks, unwrapped  # noqa: E402
from octavo.training.checkpoint import Checkpointer  # noqa: E402
from octavo.training.launch import Process  # noqa: E402
from octavo.training.optimizer import build_optimizer, build_scheduler  # noqa: E402
from octavo.training.process import set_up_process  # noqa: E402
from octavo.training.requirements import deterministic_environment  # noqa: E402
from octavo.training.step import Stepper  # noqa: E402
from octavo.training.step_proof import StepWatch, check_step  # noqa: E402
from octavo.training.validation import Validator  # noqa: E402

SAVED_AFTER = 2
"""The step after which a checkpoint is made; a second model goes on from it."""


class Model:
    """A run's model as the trainer builds it, with its data and a folder for checkpoints."""

    def __init__(self, run: RunConfig, data: PreparedData, folder: Path, *, leads: bool) -> None:
        self.run = run
        config, chunks, _ = build_chunks(run)
        optimizer = build_optimizer(chunks, run.training, on_gpu=bool(CAPABILITY))
        scheduler = build_scheduler(optimizer, run.training)
        config.grad_scale_func = optimizer.scale_loss
        self.stepper = Stepper(run, chunks, optimizer, scheduler)
        self.validator = Validator(run, data, chunks, self.stepper)
        self.checkpoints = Checkpointer(
            folder,
            1,
            [],
            chunks,
            optimizer,
            scheduler,
            leads=leads,
            identity=run.own_identity,
            layouts=[LayoutSince(after_step=0, layout=run.layout, devices=run.parallelism.world_size)],
            data_manifest_sha256="",
        )
        self.sequences = data.training_sequences(run)

    def step(self, step: int) -> tuple[float, float]:
        """Loss and gradient norm of a step."""
        result = self.stepper.step(step, self.sequences, signalled=False)
        return result.loss, result.grad_norm


def _go_on(run: RunConfig, data: PreparedData, folder: Path, *, leads: bool) -> list[tuple[float, float]]:
    """Loss and gradient norm of the steps after a checkpoint, which may be of another layout."""
    model = Model(run, data, folder, leads=leads)
    begin = model.checkpoints.load_newest()
    return [model.step(step) for step in range(begin + 1, run.training.total_steps + 1)]


def train(run: RunConfig, process: Process, folder: Path, other: Path | None) -> dict[str, Any]:
    """Train a run, validate, and train its end again from a checkpoint; and from that of another layout."""
    set_up_process(run, process)
    data = open_dataset(data_set_folder(run.data, run.tokenizer), hashes=False)
    steps = run.training.total_steps
    model = Model(run, data, folder, leads=process.leads)
    numbers, proved = [], {}
    for step in range(1, steps + 1):
        if step == 1 and CAPABILITY:
            proved = _prove(model, numbers)
        else:
            numbers.append(model.step(step))
        if step == SAVED_AFTER:
            model.validator.validate(run.training.evaluation.sequences)  # whose magnitudes delayed scaling notes
            model.checkpoints.save(step)
    repeated = _go_on(run, data, folder, leads=process.leads)
    return {
        "losses": [loss for loss, _ in numbers],
        "grad_norms": [norm for _, norm in numbers],
        "validation": model.validator.validate(run.training.evaluation.sequences).loss,
        "resumed": repeated == numbers[SAVED_AFTER:],
        **({"taken_up": _go_on(run, data, other, leads=process.leads)} if other else {}),
        "experts_differ": _experts_that_differ(model),
        "megatron_core": INSTALLED,
        **proved,
    }


def _prove(model: Model, numbers: list[tuple[float, float]]) -> dict[str, Any]:
    """Take the first step, with what it did; and what would be said if the run's name were that of another recipe."""
    run, watch, chunks = model.run, StepWatch(), [unwrapped(chunk) for chunk in model.checkpoints.chunks]
    with watch.on():
        numbers.append(model.step(1))
    proof: Any = watch.proof(list(chunks))
    batches = run.training.global_batch_size // run.training.micro_batch_size // run.parallelism.data
    check_step(proof, list(chunks), run.precision, batches)
    other = Precision(recipe="fp8_tensorwise" if run.precision.recipe == "bf16" else "bf16")
    try:
        check_step(proof, list(chunks), other, batches)
    except OctavoError as error:
        return {"proof": proof.model_dump(), "of_another_name": str(error)}
    raise AssertionError(f"a step of {run.precision.recipe} passes for one of {other.recipe}")


def _experts_that_differ(model: Model) -> list[str]:
    """Experts' parameters of which the ranks that hold the same experts have other values."""
    group = parallel_state.get_expert_data_parallel_group()
    named = [
        (name, parameter.detach().double().sum().item())
        for chunk in model.checkpoints.chunks
        for name, parameter in chunk.named_parameters()
        if ".experts." in name
    ]
    every: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(every, named, group=group)
    return [name for (name, value), *others in zip(*every, strict=True) if any(value != other for _, other in others)]


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


@contextmanager
def together(run: RunConfig, rank: int, port_file: Path) -> Iterator[Process | None]:
    """This rank as one of a run's; None where the run has fewer."""
    size = run.parallelism.world_size
    if rank >= size:
        yield None
        return
    os.environ.update(deterministic_environment(run, os.environ))  # as `octavo train` does
    yield Process(rank, size, rank, port=meet(port_file, leads=rank == 0) if size > 1 else 0)
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    if CAPABILITY:
        from transformer_engine_cpu import forget_layers

        forget_layers()


def main() -> None:
    """See the top of the module."""
    rank, folder, found = int(sys.argv[1]), Path(sys.argv[2]), {}
    first: dict[str, tuple[RunConfig, Path]] = {}
    for number, named in enumerate(sys.argv[3:]):
        name, cell, *seed = named.split(":")
        run = load_experiment(name).run(cell, int(seed[0]) if seed else 1)
        own = folder / f"checkpoints-{number}"
        earlier, of_earlier = first.setdefault(run.own_identity.computation_fingerprint, (run, own))
        another = earlier is not run
        with together(run, rank, folder / f"port-{number}") as process:
            if process:
                found[named] = train(run, process, own, of_earlier if another else None)
        if not another:
            continue
        with together(earlier, rank, folder / f"port-{number}-back") as process:
            if process:
                set_up_process(earlier, process)
                data = open_dataset(data_set_folder(run.data, run.tokenizer), hashes=False)
                handed_back = _go_on(earlier, data, own, leads=process.leads)
                found.setdefault(named, {})["handed_back"] = handed_back
    if rank == 0:
        (folder / "layouts.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
