"""How far the forecast of step time is off: published rows against forecasts that have not seen their model.

`python benchmarks/forecast.py` prints the errors, and how long a plan takes through the pipeline, PDF included;
`--write` fits anew, moves the priors, and writes configs/clusters/calibration/gpu.yaml.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.fitting import calibrate, fit, residual, rows, sensitivity, write_calibration

BAR = 10
"""Seconds that a plan may take, from the shell's prompt and back."""


def main() -> None:
    """Print a line per row, then the summary."""
    calibration = calibrate()
    if "--write" in sys.argv:
        calibration = calibration.model_copy(update={"sensitivity": sensitivity()})
        write_calibration(calibration)
    every = rows()
    for name in calibration.left_out:
        constants = fit([row for row in every if row.model != name])
        for row in (row for row in every if row.model == name):
            layout, training, recipe = row.setting.layout, row.setting.training, row.setting.precision.recipe
            off = math.exp(-residual(row, constants)) - 1
            print(
                f"{name:14} {row.setting.device.name:6} {recipe:15} tp{layout.tensor} pp{layout.pipeline} "
                f"vp{layout.virtual_pipeline} ep{layout.expert:<3} mbs{training.micro_batch_size} "
                f"{row.tokens_per_second_per_device:8,.0f} tokens/s/GPU published, forecast {off:+.0%}"
            )
    errors = [*calibration.left_out.items(), *((f"all {kind}", one) for kind, one in calibration.kinds.items())]
    for name, one in errors:
        print(
            f"{name:14} left out: {one.rows} rows ({one.settings} settings) without NVFP4's, median absolute error "
            f"{one.median_absolute_error:.1%}, {one.coverage:.0%} within the {calibration.interval:.0%} interval"
        )
    for one in calibration.sensitivity or gpu_calibration().sensitivity:
        print(
            f"prior of {one.prior} x {one.factor:g}: median absolute error of dense models {one.dense:.1%}, mixtures "
            f"{one.experts:.1%}, NVFP4's rows {one.nvfp4:.1%}"
        )
    for name in ("laptop", "h100-node", "deepseek-v3"):
        _time_plan(name)


def _time_plan(name: str) -> None:
    """Wall time of the plan through the pipeline, in a fresh process, and the processors' own time beside it: what the
    machine was busy with else lengthens the first alone."""
    command = [str(Path(sys.executable).parent / "snakemake"), "--profile", "workflow/profiles/local"]
    command += ["--forcerun", "plan", "--", f"results/{name}/plan.pdf"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    verdict = "within" if wall < BAR else "over"
    print(
        f"snakemake results/{name}/plan.pdf: {wall:.1f} s of wall time ({verdict} the bar of {BAR} s), "
        f"{processors:.1f} s of processors, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
