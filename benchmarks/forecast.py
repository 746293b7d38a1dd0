"""How far the forecast of step time is off: published rows against forecasts that have not seen their model.

`python benchmarks/forecast.py` prints the errors, and how long a plan takes in a fresh process, PDF included; `--write`
fits anew, moves the priors, and writes configs/clusters/calibration/gpu.yaml.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.fitting import calibrate, fit, residual, rows, sensitivity, write_calibration


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
        start = time.perf_counter()
        command = [sys.executable, "-m", "octavo", "plan", f"results/{name}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"octavo plan results/{name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
