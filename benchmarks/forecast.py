"""How far the forecast of step time is off: published rows against forecasts that have not seen their model.

`python benchmarks/forecast.py` prints the errors, and how long a plan takes through the pipeline, PDF included;
`--write` fits anew, moves the priors, and writes configs/clusters/calibration/gpu.yaml.

Bars, on models left out of the fit: median error of each model and kind, coverage of the intervals, FP8 over BF16.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from octavo.forecast.calibration import AIMS, GpuCalibration, gpu_calibration
from octavo.forecast.fitting import calibrate, fit, residual, sensitivity, write_calibration
from octavo.forecast.memory import memory
from octavo.forecast.rows import rows

COVERAGE = (0.72, 0.88)
"""Of intervals that say 80 %."""
RATIO = 0.08
"""How far FP8 over BF16 may be off."""
FILLED = 1.15
"""Of the GPU's memory, what a layout that ran may be said to need; 31 of 33 must."""
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
                f"release {row.setting.software.release:8} {row.tokens_per_second_per_device:8,.0f} tokens/s/GPU "
                f"published, forecast {off:+.0%}"
            )
    _print_bars(calibration)
    _print_memory()
    for one in calibration.sensitivity or gpu_calibration().sensitivity:
        print(
            f"prior of {one.prior} x {one.factor:g}: median absolute error of dense models {one.dense:.1%}, mixtures "
            f"{one.experts:.1%}"
        )
    for name in ("laptop", "h100-node", "deepseek-v3"):
        _time_plan(name)


def _print_bars(calibration: GpuCalibration) -> None:
    """Each bar, and whether it is met."""
    for kind, of_kind in calibration.kinds.items():
        models = {name: one for name, one in calibration.left_out.items() if name in of_kind.models}
        for name, one in (*models.items(), (f"all {kind}", of_kind)):
            print(
                f"{name:14} left out: {one.rows} rows ({one.settings} settings) without NVFP4's, median absolute error "
                f"{one.median_absolute_error:.1%} ({_met(one.median_absolute_error <= AIMS[kind])} the bar of "
                f"{AIMS[kind]:.0%}), {one.coverage:.0%} within the {calibration.interval:.0%} interval"
            )
        low, high = COVERAGE
        print(f"intervals of {kind}: {_met(low <= of_kind.coverage <= high)} the bar of {low:.0%} to {high:.0%}")
    for pair in calibration.pairs:
        off = pair.forecast / pair.published - 1
        print(
            f"FP8 over BF16, {pair.model} on {pair.devices} {pair.device}: {pair.published:.3f} published, "
            f"{pair.forecast:.3f} forecast without the model, {off:+.1%} ({_met(abs(off) <= RATIO)} the bar of "
            f"{RATIO:.0%})"
        )


def _print_memory() -> None:
    """How many of the layouts that ran need no more than FILLED of their GPU's memory, by the forecast."""
    filled: dict[str, float] = {}
    for row in (row for row in rows() if row.counted):
        one = row.setting
        held = memory(one.model, one.training, one.layout, one.precision, one.device, one.software).total
        key = f"{row.model} {one.device.name} {one.layout}"
        filled[key] = max(filled.get(key, 0.0), held / (one.device.memory_gib * 2**30))
    within = sum(share <= FILLED for share in filled.values())
    bar = within >= len(filled) * 31 / 33
    print(f"memory: {within} of {len(filled)} layouts within {FILLED:g} of the GPU ({_met(bar)} the bar of 31 of 33)")
    for key, share in filled.items():
        if share > FILLED:
            print(f"  {share:.2f} of the GPU: {key}")


def _met(yes: bool) -> str:
    return "meets" if yes else "MISSES"


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
