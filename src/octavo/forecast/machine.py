"""How fast this machine trains: measured once by some seconds of real steps, kept with the machine's identity.

`octavo calibrate` (which `make setup` ends with) trains small models, dense and with experts, in BF16 and emulated FP8,
in as many processes side by side as the pipeline runs: two busy cores of one machine are slower than one. The file is
`results/probes/machine-<identity>.json`; another processor, number of cores or build of the compiled loops is another
machine. Reading it takes no torch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
from datetime import UTC, datetime
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from octavo.cpu import library
from octavo.cpu.processor import processor
from octavo.cpu.sources import digest
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.load import load_experiment
from octavo.experiment.run import RunConfig
from octavo.files import fingerprint, write_json
from octavo.forecast.calibration import INTERVAL
from octavo.forecast.work import Work, work_of
from octavo.layout import machine_file, repository
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision, RecipeName
from octavo.records import MachineSpeed, TimedStep, read_record

RECIPES_TIMED: tuple[RecipeName, ...] = ("bf16", "fp8_tensorwise", "fp8_blockwise")
SMALL = {"layers": 2, "hidden_size": 32, "vocabulary_size": 512, "heads": 2, "kv_heads": 2, "head_size": 16}
MIDDLE = {**SMALL, "hidden_size": 64, "head_size": 32}
SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "dense": ({}, {**SMALL, "feed_forward_size": 54}),
    "moe": (
        {},
        {**SMALL, "size": 12},
        {**MIDDLE, "count": 128, "top_k": 32, "size": 6},
        {**MIDDLE, "count": 128, "top_k": 4, "size": 48},
    ),
}
"""Sizes in place of those of the experiment `quickstart`: of a mixture as many models as there are costs of one
(`octavo.forecast.work`), with many experts and few, and with many and few of them a token."""
ROUNDS, STEPS = 3, 2
MOST_PROCESSES = 8
"""Side by side: more would tell little more, and each takes 0.4 GiB."""
LONGEST_WAIT = 300.0
"""Seconds: where one of the processes was killed, the others do not wait for it for ever."""
MADE_BY = "octavo calibrate"


def identity() -> dict[str, str | int | float | None]:
    """What tells machines apart that train at different rates, and what is counted of their steps."""
    return {
        **processor(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "loops": digest() if library.COMPILED is not None else "torch",
        "counts": " ".join(Work._fields),
    }


def speed_files(cluster: Cluster, device: Device) -> list[Path]:
    """The file that forecasts of runs on a cluster rest on, if it is there and they run on this machine's CPU."""
    path = _file(identity())
    return [path] if device.kind == "cpu" and cluster.slurm is None and path.exists() else []


def measured_speed(cluster: Cluster, device: Device) -> MachineSpeed | None:
    """What was measured of this machine; None where nothing was, or the runs of the cluster are not on it."""
    found = speed_files(cluster, device)
    return read_record(found[0], MachineSpeed, made_by=MADE_BY) if found else None


def _file(machine: dict[str, Any]) -> Path:
    return repository() / machine_file(fingerprint(machine)[:12])


def calibrate() -> MachineSpeed:
    """Measure this machine and write its file; some twenty seconds where nothing else runs.

    Raises OctavoError where the experiment whose models are trained is not there, or training fails.
    """
    machine, load = identity(), os.getloadavg()[0]
    timed = anchors()
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    seconds = _side_by_side(timed, processes)
    steps = [_summary(run, [one[index] for one in seconds]) for index, run in enumerate(timed)]
    found = MachineSpeed(machine=machine, time=datetime.now(UTC), processes=processes, load=load, steps=steps)
    write_json(_file(machine), found.model_dump(mode="json"))
    return found


def anchors() -> list[RunConfig]:
    """The runs whose steps are timed: SHAPES of dense models and mixtures in each of RECIPES_TIMED, and a dense one of
    the middle size with sums in 14 bits."""
    experiment = load_experiment("quickstart")
    runs = []
    for name, shapes in SHAPES.items():
        run = experiment.run(f"{name}-bf16", 1)
        for shape, recipe in product(shapes, RECIPES_TIMED):
            update = {"model": _shaped(run.model, shape), "precision": Precision(recipe=recipe)}
            runs.append(run.model_copy(update=update))
    # a smaller model's short sums cost more each: there what is done once a product is most of them
    dense = experiment.run("dense-bf16", 1)
    middle = _shaped(dense.model, {**MIDDLE, "feed_forward_size": 192})
    short = Precision(recipe="fp8_blockwise", accumulation="fp14")
    return [*runs, dense.model_copy(update={"model": middle, "precision": short})]


def _shaped(model: Architecture, shape: dict[str, Any]) -> Architecture:
    """A model with other sizes, each where its section has it."""

    def of(section: Any) -> dict[str, Any]:
        return {key: value for key, value in shape.items() if key in type(section).model_fields}

    experts = model.experts.model_copy(update=of(model.experts)) if model.experts else None
    attention = model.attention.model_copy(update=of(model.attention))
    return model.model_copy(update={**of(model), "attention": attention, "experts": experts})


def _side_by_side(runs: list[RunConfig], processes: int) -> list[list[list[float]]]:
    """Seconds of steps by [process][run][step], all processes at work at the same time."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes, timeout=LONGEST_WAIT)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [context.Process(target=_work, args=(runs, ready, sender), daemon=True) for _, sender in pipes]
    for worker, (_, sender) in zip(workers, pipes, strict=True):
        worker.start()
        sender.close()  # so that the end of a process that failed is seen here
    try:
        return [receiver.recv() for receiver, _ in pipes]
    except EOFError:
        raise OctavoError(
            "a process that trained to measure this machine failed; what it said is above",
            where=MADE_BY,
            fix="see what octavo doctor says; plans are made without it, with the wide interval of the shipped table",
        ) from None
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(runs: list[RunConfig], ready: Any, sender: Connection) -> None:
    """One process: as `octavo train` sets one up."""
    import warnings

    warnings.filterwarnings("ignore", module=r"megatron\.")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    from octavo.cpu.backend import install

    install()
    from octavo.training.speed import time_steps

    try:
        sender.send(time_steps(runs, ROUNDS, STEPS, ready.wait))
    except BaseException:
        ready.abort()  # or the others would wait for this one
        raise


def _summary(run: RunConfig, seconds: list[list[float]]) -> TimedStep:
    import numpy as np

    per_token = np.log(np.concatenate(seconds) / run.training.tokens_per_step)
    low, middle, high = np.quantile(per_token, [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2])
    return TimedStep(
        kind="experts" if run.model.experts else "dense",
        recipe=run.precision.recipe,
        work=work_of(run)._asdict(),
        seconds_per_token=math.exp(middle),
        spread=float(high - low) / 2,
    )
