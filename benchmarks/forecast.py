"""How far the forecast of step time is off: published rows against forecasts that have not seen their model.

`python benchmarks/forecast.py` prints the errors, and how long a plan takes in a fresh process, PDF included; `--write`
fits anew and writes configs/clusters/calibration/gpu.yaml.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

from octavo.forecast.fitting import calibrate, fit, residual, rows, write_calibration


def main() -> None:
    """Print a line per row, then the summary."""
    calibration = calibrate()
    if "--write" in sys.argv:
        write_calibration(calibration)
    every = rows()
    for name in calibration.left_out:
        constants = fit([row for row in every if row.model != name])
        for row in (row for row in every if row.model == name):
            layout, training = row.setting.layout, row.setting.training
            off = math.exp(-residual(row, constants)) - 1
            print(
                f"{name:14} {row.setting.device.name:6} {row.setting.recipe:15} tp{layout.tensor} pp{layout.pipeline} "
                f"vp{layout.virtual_pipeline} ep{layout.expert:<3} mbs{training.micro_batch_size} "
                f"{row.tokens_per_second_per_device:8,.0f} tokens/s/GPU published, forecast {off:+.0%}"
            )
    for name, one in calibration.left_out.items():
        print(
            f"{name:14} left out: {one.rows} rows, median absolute error {one.median_absolute_error:.1%}, "
            f"{one.coverage:.0%} within the {calibration.interval:.0%} interval"
        )
    print(
        f"all rows: median absolute error {calibration.median_absolute_error:.1%}, "
        f"{calibration.coverage:.0%} within the {calibration.interval:.0%} interval"
    )
    for name in ("laptop", "h100-node", "deepseek-v3"):
        start = time.perf_counter()
        command = [sys.executable, "-m", "octavo", "plan", f"results/{name}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"octavo plan results/{name}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
