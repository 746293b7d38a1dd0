"""How long `snakemake -n` takes on a 2,000-run grid, against a bare Snakefile with as many jobs, in one run.

    .venv/bin/python benchmarks/dag.py [--runs 2000] [--repeat 3]

The bar is a ratio of at most 1.5. Both are dry runs from an empty folder; medians over the repeats, interleaved.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"

BARE = """
rule all:
    input: "report.txt"

rule plan:
    output: "plan.txt"
    shell: "touch {{output}}"

rule data:
    output: "data.txt"
    shell: "touch {{output}}"

rule train:
    input: "plan.txt", "data.txt"
    output: "runs/{{cell}}/seed-{{seed}}/result.json"
    log: "logs/{{cell}}-{{seed}}.log"
    shell: "touch {{output}}"

rule report:
    input: expand("runs/{{cell}}/seed-{{seed}}/result.json", cell=["a", "b", "c", "d"], seed=range({seeds}))
    output: "report.txt"
    shell: "touch {{output}}"
"""


def write_grid(folder: Path, runs: int) -> None:
    """The quickstart's configuration with 4 cells and runs / 4 seeds."""
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    shutil.copytree(REPOSITORY / "workflow", folder / "workflow")
    shutil.copy(REPOSITORY / "Snakefile", folder)
    value = yaml.safe_load((folder / "configs/experiments/quickstart.yaml").read_text())
    value |= {"seeds": list(range(1, runs // 4 + 1)), "ablations": {}}
    (folder / "configs/experiments/grid.yaml").write_text(yaml.safe_dump(value))


def seconds(folder: Path, target: str, *options: str) -> float:
    """Wall-clock of one dry run."""
    command = [str(SNAKEMAKE), "--dry-run", "--quiet", "all", "--cores", "2", *options, target]
    environment = {**os.environ, "PATH": f"{SNAKEMAKE.parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        grid, bare = Path(name) / "grid", Path(name) / "bare"
        bare.mkdir()
        (bare / "Snakefile").write_text(BARE.format(seeds=options.runs // 4))
        write_grid(grid, options.runs)
        profile = ("--profile", "workflow/profiles/local")
        ours, theirs = [], []
        for _ in range(options.repeat):
            theirs.append(seconds(bare, "report.txt"))
            ours.append(seconds(grid, "results/grid/report.pdf", *profile))
    ratio = statistics.median(ours) / statistics.median(theirs)
    both = f"octavo {statistics.median(ours):.2f} s, bare {statistics.median(theirs):.2f} s"
    print(f"{both}, ratio {ratio:.2f} (bar: 1.5)")


if __name__ == "__main__":
    main()
