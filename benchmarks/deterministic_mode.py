"""What deterministic mode costs a training step: the quickstart's models with and without it, side by side.

    python benchmarks/deterministic_mode.py [rounds]

On one thread of a CPU, where it changes how Megatron-Core looks up and adds up embeddings; what it costs on GPUs, where
it also leaves out the fused cross-entropy and chooses other kernels, can be measured on GPUs alone. The candidates take
turns, and processor time is counted. Needs the data set of the quickstart (`octavo data quickstart`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from training_step import _stepping, measure  # isort: skip  # first: it chooses the threads and the CPU backend

from octavo.experiment.load import load_experiment
from octavo.layout import RunFolder
from octavo.training.launch import Process
from octavo.training.process import set_up_process
from octavo.training.trainer import _Trainer

CELLS = ("dense-bf16", "moe-bf16")


def main() -> int:
    """Print medians and ratios."""
    experiment, place = load_experiment("quickstart"), Process(0, 1, 0)
    set_up_process(experiment.run(CELLS[0], 1), place)
    steps = {}
    for cell in CELLS:
        for deterministic in (False, True):
            run = experiment.run(cell, 1)
            run = run.model_copy(update={"training": run.training.model_copy(update={"deterministic": deterministic})})
            trainer = _Trainer(run, RunFolder(Path(tempfile.mkdtemp(), "runs", cell, "seed-1")), place)
            trainer.folder.path.mkdir(parents=True)
            trainer._build()
            steps[f"{cell} {'deterministic' if deterministic else 'free'}"] = _stepping(trainer)
    times = measure(steps, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:7.1f} ms")
    for cell in CELLS:
        print(
            f"{cell}: deterministic step over free step  {times[f'{cell} deterministic'] / times[f'{cell} free']:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
