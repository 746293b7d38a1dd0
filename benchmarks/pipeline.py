"""What the pipeline adds to training: wall-clock of the whole over its training steps run back to back.

    .venv/bin/python benchmarks/pipeline.py [--experiment laptop] [--cores 2]

Makes `results/<experiment>/report.pdf` from nothing in a temporary folder (packages of text come from the cache), and
compares its wall-clock with the sum of the step times of all runs over the cores that they shared. The bar is 1.25.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
STAGES = {
    "text to tokens": "data/*/manifest.json",
    "forecast": "{experiment}/plan.pdf",
    "last run": "{experiment}/runs/*/seed-*/result.json",
    "tables": "{experiment}/runs.parquet",
    "claims": "{experiment}/claims.json",
    "figures": "{experiment}/figures/*.csv",
    "report": "{experiment}/report.pdf",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiment", default="laptop")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("configs", "workflow"):
            shutil.copytree(REPOSITORY / part, folder / part)
        shutil.copy(REPOSITORY / "Snakefile", folder)
        command = [str(SNAKEMAKE), "--profile", "workflow/profiles/local", "--cores", str(options.cores),
                   f"results/{options.experiment}/report.pdf"]  # fmt: skip
        environment = {**os.environ, "OCTAVO_ROOT": str(folder)}
        began, start = time.time(), time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        runs = pd.read_parquet(folder / "results" / options.experiment / "runs.parquet")
        for stage, pattern in STAGES.items():
            written = (folder / "results").glob(pattern.format(experiment=options.experiment))
            print(f"{stage:16} done after {max(path.stat().st_mtime for path in written) - began:6.1f} s")
    steps = runs["training_seconds"].sum() / options.cores
    per_step = runs.assign(milliseconds=1000 * runs["training_seconds"] / runs["steps"])
    for cell, mean in per_step.groupby("cell", sort=False)["milliseconds"].mean().items():
        print(f"{cell:24} {mean:6.1f} ms a step")
    print(f"wall-clock {wall:.1f} s, training steps on {options.cores} cores {steps:.1f} s")
    print(f"ratio {wall / steps:.2f} (bar: 1.25)")


if __name__ == "__main__":
    main()
