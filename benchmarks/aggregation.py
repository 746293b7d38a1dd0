"""How long and how much memory 10,000 runs of 1,000 steps take, into tables, verdicts and a report.

    .venv/bin/python benchmarks/aggregation.py [--runs 10000] [--steps 1000] [--folder FOLDER] [--keep]

The bars on two cores are 5 s for `octavo status`, 60 s and 2 GiB for `octavo aggregate`, and 60 s for `octavo report`
from the tables. The runs are synthetic (tests/synthetic.py): four cells are trained for a few seeds, and their files
are copied to the other seeds, with the fingerprints that these have. Needs about 0.4 KB of disk a step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from octavo.experiment.load import load_experiment  # noqa: E402
from octavo.layout import ConfigFolders, ExperimentFolder  # noqa: E402
from tests.synthetic import hashes, write_experiment  # noqa: E402

TEMPLATES = 4
"""Seeds whose files are written; the others get copies."""
BAR_SECONDS, BAR_GIB = 60.0, 2.0
STATUS_SECONDS = 5.0


def write_runs(root: Path, runs: int, steps: int) -> ExperimentFolder:
    """An experiment of 2 architectures x 2 precisions x runs / 4 seeds, all of its runs complete."""
    seeds = list(range(1, runs // 4 + 1))
    arguments = {"ablations": {}, "steps": steps, "validation_interval": max(1, steps // 20)}
    folder = write_experiment(root, seeds=seeds[:TEMPLATES], **arguments)
    write_experiment(root, seeds=seeds, cells=[], **arguments)  # the configuration with all seeds
    experiment = load_experiment(folder.name, ConfigFolders(root / "configs"))
    for cell, seed in experiment.runs():
        if seed <= TEMPLATES:
            continue
        template, run = folder.run(cell.cell, (seed - 1) % TEMPLATES + 1), folder.run(cell.cell, seed)
        own = experiment.run(cell.cell, seed).run_fingerprint
        run.path.mkdir(parents=True)
        shutil.copyfile(template.metrics, run.metrics)
        shutil.copyfile(template.provenance, run.provenance)
        attempt = json.loads(template.attempts.read_text())
        run.attempts.write_text(json.dumps({**attempt, "run_fingerprint": own}) + "\n")
        if template.routing.exists() and seed <= 2 * TEMPLATES:  # of a few runs, as in a grid that logs it there
            shutil.copyfile(template.routing, run.routing)
        result = json.loads(template.result.read_text())
        own_values = {"seed": seed, "run_fingerprint": own, "files_sha256": hashes(run)}
        run.result.write_text(json.dumps({**result, **own_values}) + "\n")
    return folder


def measure(verb: str, root: Path) -> tuple[float, float, float]:
    """Wall-clock seconds, processor seconds and peak memory, GiB, of one verb in a process of its own."""
    octavo = Path(sys.executable).parent / "octavo"
    environment = {**os.environ, "OCTAVO_ROOT": str(root)}
    start = time.perf_counter()
    with subprocess.Popen([octavo, verb, "results/synthetic"], cwd=root, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"octavo {verb} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    """Write the runs, measure each verb, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, help="an empty folder with space; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    arguments = parser.parse_args()
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="octavo-aggregation-"))
    try:
        start = time.perf_counter()
        write_runs(root, arguments.runs, arguments.steps)
        shutil.copytree(REPOSITORY / "configs" / "claims", root / "configs" / "claims")
        shutil.copytree(REPOSITORY / "configs" / "published", root / "configs" / "published")
        shutil.copytree(REPOSITORY / "configs" / "models", root / "configs" / "models")
        for path in (REPOSITORY / "configs" / "clusters" / "devices").glob("*.yaml"):
            shutil.copyfile(path, root / "configs" / "clusters" / "devices" / path.name)
        (root / "workflow").symlink_to(REPOSITORY / "workflow")
        print(f"{arguments.runs} runs x {arguments.steps} steps written in {time.perf_counter() - start:.0f} s")
        bars = {
            "status": f" (bar: {STATUS_SECONDS:.0f} s of processors)",
            "aggregate": f" (bar: {BAR_SECONDS:.0f} s, {BAR_GIB:.0f} GiB)",
            "claims": "",
            "figures": "",
            "report": f" (bar: {BAR_SECONDS:.0f} s)",
        }
        for verb, bar in bars.items():
            seconds, processor, gib = measure(verb, root)
            print(
                f"octavo {verb}: {seconds:.1f} s ({processor:.1f} s of processors), {gib:.2f} GiB at its peak{bar}",
                flush=True,
            )
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
