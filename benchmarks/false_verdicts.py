"""How often verdicts are false: experiments whose truth is known, through the whole chain from CSV to claims.

    .venv/bin/python benchmarks/false_verdicts.py [--experiments 720] [--processes 2]

Each experiment is a dense model and a mixture of experts in BF16 and FP8, written as one CSV a run, imported, and held
against the repository's claims: that the mixture needs less than 1 of the hours (1), that FP8 ends less than 0.25 %
above BF16 (2), that it is faster (3). Truths lie on the margin, where either verdict is false, or a little to one side
of it. Seeds are 2 to 8; runs deviate by normal, heavy-tailed (t with 3 degrees), lognormal, or unequal noise (FP8's
three times BF16's). Schedules are constant, linear, cosine, or decay in the last fifth; a mixture's steps take longer,
so that at equal hours it is read before its end; some FP8 runs are planned for another length; some are validated at
other steps; some runs diverge. An experiment is false if any of its verdicts is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.simulated import Schedule, SimulatedCell, bring  # noqa: E402

NOISES = ("normal", "t3", "unequal", "lognormal")
SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine", "last fifth")
KINDS = ("equal plans", "other lengths", "other validations", "divergences")
WORTH = 0.05
DEVIATION = 0.001
"""Of a run's losses, relative."""
SLOWER = 1.35
MARGIN = 0.0025


@dataclass(frozen=True)
class Truth:
    """One experiment."""

    number: int
    noise: str
    schedule: Schedule
    kind: str
    seeds: int
    hours: float
    """What the mixture needs of the dense model's."""
    offset: float
    """FP8's relative loss."""
    speed: float
    """FP8's step time over BF16's."""

    def false(self, number: int, verdict: str) -> bool:
        """Whether a verdict on a claim is false; on the margin either is."""
        effect, margin = {1: (self.hours, 1.0), 2: (self.offset, MARGIN), 3: (self.speed, 1.0)}[number]
        if verdict not in ("supported", "refuted"):
            return False
        return effect == margin or (effect < margin) != (verdict == "supported")


def truths(experiments: int) -> list[Truth]:
    """Every combination of noise, schedule and kind, with truths and seeds drawn."""
    rng = np.random.default_rng(2026)
    combinations = list(product(NOISES, SCHEDULES, KINDS))
    found = []
    for number in range(experiments):
        noise, schedule, kind = combinations[number % len(combinations)]
        hours = float(rng.choice([0.9, 0.95, 1.0, 1.0, 1.05]))
        offset = float(rng.choice([0.0, MARGIN, MARGIN, 2 * MARGIN]))
        speed = float(rng.choice([0.97, 1.0, 1.03]))
        found.append(Truth(number, noise, schedule, kind, int(rng.integers(2, 9)), hours, offset, speed))
    return found


def deviations(truth: Truth, cells: list[SimulatedCell], rng: np.random.Generator) -> dict[tuple[str, int], float]:
    """Relative deviation of each run, centred, with DEVIATION as its scale."""
    found = {}
    for cell, seed in product(cells, range(1, truth.seeds + 1)):
        draw = {
            "normal": rng.normal(),
            "t3": rng.standard_t(3) / np.sqrt(3),
            "lognormal": (rng.lognormal() - np.exp(0.5)) / 2.16,
            "unequal": rng.normal() * (3 if cell.precision != "bf16" else 1),
        }[truth.noise]
        found[cell.name, seed] = float(DEVIATION * draw)
    return found


def cells_of(truth: Truth, rng: np.random.Generator) -> list[SimulatedCell]:
    """Dense and mixture in BF16 and FP8. Step times scatter by run in no way that matters: one factor a cell."""
    worth = 0.0 if truth.schedule == "constant" else WORTH
    cells = []
    for architecture, precision in product(("dense", "moe"), ("bf16", "fp8_blockwise")):
        moe, fp8 = architecture == "moe", precision != "bf16"
        cell = SimulatedCell(
            architecture, precision, pace=SLOWER / truth.hours if moe else 1.0, offset=truth.offset if fp8 else 0.0,
            seconds=(SLOWER if moe else 1.0) * (truth.speed if fp8 else 1.0), steps=200, schedule=truth.schedule,
            worth=worth, interval=10, step_sd=0.02,
        )  # fmt: skip
        if truth.kind == "other lengths" and fp8:
            cell = replace(cell, steps=int(rng.choice([120, 160, 300])))
        if truth.kind == "other validations" and fp8:
            cell = replace(cell, interval=int(rng.choice([25, 30, 75])))
        if truth.kind == "divergences":  # by chance alone, as likely in any cell
            lost = [seed for seed in range(1, truth.seeds + 1) if rng.random() < 0.15]
            cell = replace(cell, endings={seed: float(rng.choice([9.0, 0.0, np.nan])) for seed in lost})
        cells.append(cell)
    return cells


def outcome(truth: Truth) -> dict[int, str]:
    """The verdicts on claims 1 to 3."""
    rng = np.random.default_rng([2026, truth.number])
    cells = cells_of(truth, rng)
    os.environ["OCTAVO_ROOT"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory() as folder:
        claims = bring(
            Path(folder), cells, REPOSITORY / "configs", deviations(truth, cells, rng), range(1, truth.seeds + 1)
        )
    return {number: claims[number].verdict for number in (1, 2, 3)}


def main() -> None:
    """Print the rates by kind, noise and schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=720)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    tried = truths(options.experiments)
    with ProcessPoolExecutor(options.processes) as pool:
        found = list(pool.map(outcome, tried, chunksize=8))
    groups: dict[str, list[bool]] = defaultdict(list)
    decided = 0
    for truth, verdicts in zip(tried, found, strict=True):
        wrong = {number: truth.false(number, verdict) for number, verdict in verdicts.items()}
        decided += sum(verdict in ("supported", "refuted") for verdict in verdicts.values())
        for name in (
            "all",
            truth.noise,
            truth.schedule,
            truth.kind,
            "2 or 3 seeds" if truth.seeds < 4 else "more seeds",
        ):
            groups[name].append(any(wrong.values()))
        for number, one in wrong.items():
            groups[f"claim {number}"].append(one)
            if one:
                print(f"false: claim {number} {verdicts[number]}: {truth}")
    for name, wrong_ones in groups.items():
        print(f"{name:18} {100 * np.mean(wrong_ones):5.1f} % of {len(wrong_ones)}")
    print(f"verdicts reached: {decided} of {3 * len(tried)}")


if __name__ == "__main__":
    main()
