"""How often the intervals of `octavo leverage` hold: simulated ladders whose truth is known, and a published table.

Kinds: the form that is fitted; E that differs between the architectures by up to 0.1; a wrong form, two power laws of
parameters and tokens with a bend for the mixture; an exponent that falls by up to a quarter somewhere in or beyond the
ladder. Four rungs, 4 times the compute from one to the next, three seeds, noise of 0.1 to 0.6 %. The random numbers are
other than those that the method was chosen with (`--stream`).

    python benchmarks/leverage.py [--ladders 500] [--stream 20261130] [--processes 2]

`--of FILE.csv` asks the same of real runs (the `ladder.csv` of an experiment): the largest rung is predicted from the
others once for each choice of seeds on either side, and the share of 90 % intervals that hold it is printed. One ladder
gives few independent cases: the shares of its choices of seeds go up and down together.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np

from octavo.scaling.fit import Fit, fit
from octavo.scaling.ladder import Row, architectures, read_rows
from octavo.scaling.leverage import Estimate, back_tests, leverage_at, loss_at, measured_losses
from octavo.scaling.prediction import PREDICTED

PUBLISHED = Path(__file__).parents[1] / "configs/published/ladders/marin-fast-track.csv"
KINDS = ("the form", "E apart", "another form", "an exponent that falls")
DRAWS = 1000
RUNGS, FACTOR, SEEDS, FIRST = 4, 4.0, 3, 1e18
BARS = {
    "leverage, inside": (93, 97), "leverage, carried on 10 times": (90, 100), "loss, 10 times": (90, 100),
    "leverage, carried on 100 times": (85, 100), "loss, 100 times": (85, 100), "false 'cheaper'": (0, 5),
}  # fmt: skip

Law = Callable[[float], float]
"""The logarithm of FLOPs over those of the smallest rung -> loss."""


def laws(kind: str, rng: np.random.Generator, leverage: float) -> tuple[Law, Law]:
    """The dense model's and the mixture's truth; `leverage` is that at the start, and everywhere but for `kind`."""
    dense_e = rng.uniform(1.2, 2.0)
    mixture_e = dense_e + (rng.uniform(-0.1, 0.1) if kind == "E apart" else 0.0)
    gamma, size, ahead = rng.uniform(0.1, 0.25), rng.uniform(1.2, 2.5), math.log(leverage)
    if kind in ("the form", "E apart"):
        return (
            lambda x: dense_e + size * math.exp(-gamma * x),
            lambda x: mixture_e + size * math.exp(-gamma * (x + ahead)),
        )
    if kind == "another form":
        alpha, beta, parts = rng.uniform(0.12, 0.22), rng.uniform(0.1, 0.18), rng.uniform(0.5, 1.5, 2)
        bend = rng.uniform(-0.01, 0.01) if leverage != 1 else 0.0

        def two(x: float) -> float:
            return parts[0] * math.exp(-alpha * x) + parts[1] * math.exp(-beta * x)

        return lambda x: dense_e + two(x), lambda x: dense_e + two(x + ahead) * math.exp(bend * x)
    fall, where = rng.uniform(0, 0.25), rng.uniform(0, 6)

    def broken(x: float) -> float:
        return dense_e + size * math.exp(-gamma * x) * (1 + math.exp(x - where)) ** (gamma * fall)

    return broken, lambda x: broken(x + ahead)


def compute_for(law: Law, loss: float) -> float:
    """The x at which a law reaches a loss; infinite where it does not."""
    low, high = -30.0, 60.0
    if law(high) > loss:
        return math.inf
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if law(middle) > loss else (low, middle)
    return (low + high) / 2


def ladder(pair: tuple[Law, Law], rng: np.random.Generator) -> list[Row]:
    """Its runs, with normal noise of the logarithm of the loss."""
    noise = math.exp(rng.uniform(math.log(0.001), math.log(0.006)))
    return [
        Row(name, FIRST * math.exp(x), law(x) * math.exp(noise * rng.standard_normal()), seed=seed)
        for name, law in zip(("dense", "moe"), pair, strict=True)
        for x in math.log(FACTOR) * np.arange(RUNGS)
        for seed in range(SEEDS)
    ]


def one(task: tuple[str, int, int]) -> dict[str, list[bool]]:
    """What held on one simulated ladder, and on one of the same kind whose mixture is no cheaper."""
    kind, number, stream = task
    rng = np.random.default_rng([stream, KINDS.index(kind), number])
    dense, mixture = laws(kind, rng, math.exp(rng.uniform(0, math.log(8))))
    found, held = fit(ladder((dense, mixture), rng), draws=DRAWS), defaultdict(list)
    if losses := measured_losses(found):
        loss = losses[number % len(losses)]
        truth = compute_for(dense, loss) - compute_for(mixture, loss)
        held["leverage, inside"].append(within(leverage_at(found, "flops", loss), math.exp(truth)))
    for times in (10, 100):
        x = math.log(FACTOR) * (RUNGS - 1) + math.log(times)
        for name, law in (("dense", dense), ("moe", mixture)):
            held[f"loss, {times} times"].append(within(loss_at(found, name, FIRST * math.exp(x)), law(x)))
        truth = compute_for(dense, mixture(x)) - x
        carried = leverage_at(found, "flops", mixture(x))
        if carried is not None:
            held[f"leverage, carried on {times} times"].append(
                within(carried, math.exp(truth) if truth < 700 else math.inf)
            )
        held[f"not determined at {times} times"].append(carried is None)
    alike = fit(ladder(laws("the form" if kind == "E apart" else kind, rng, 1.0), rng), draws=DRAWS)
    held["false 'cheaper'"].append(cheaper(alike))
    return held


def cheaper(found: Fit) -> bool:
    """Whether the interval at the lowest loss that both reached leaves 1 out, the mixture being cheaper."""
    losses = measured_losses(found)
    at = leverage_at(found, "flops", losses[0]) if losses else None
    return at is not None and at.low is not None and at.low > 1


def within(said: Estimate | None, truth: float) -> bool:
    """Whether an interval holds the truth; an end that is not bounded does."""
    return said is not None and (said.low is None or said.low <= truth) and (said.high is None or truth <= said.high)


def choices_of_seeds(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """By architecture: predictions of the largest rung whose interval held the measured mean, and how many there were.

    Every choice of seeds of the smaller rungs predicts the mean of every choice of seeds of the largest.
    """
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    chosen = [set(some) for size in range(1, len(seeds) + 1) for some in combinations(seeds, size)]
    tops = {name: max(row.flops for row in rows if row.architecture == name) for name in architectures(rows)}
    held: dict[str, tuple[int, int]] = dict.fromkeys(tops, (0, 0))
    for below in chosen:
        found = fit([row for row in rows if row.seed in below and row.flops < 0.99 * tops[row.architecture]])
        for name, top in tops.items():
            losses = {
                row.seed: row.validation_loss for row in rows if row.architecture == name and row.flops > 0.99 * top
            }
            for measured in (some for some in chosen if some <= losses.keys()):
                said = loss_at(found, name, top, runs=len(measured), confidence=PREDICTED)
                mean = math.exp(sum(math.log(losses[seed]) for seed in measured) / len(measured))
                inside, of = held[name]
                held[name] = inside + within(said, mean), of + 1
    return held


def main() -> None:
    """Print the shares by kind, and what the published table gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=500, help="of each kind")
    parser.add_argument("--stream", type=int, default=20261130)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--of", type=Path, help="a table of runs, in place of simulated ladders")
    options = parser.parse_args()
    if options.of:
        for name, (inside, of) in choices_of_seeds(read_rows(options.of)).items():
            print(f"{name}: {inside} of {of} intervals ({100 * inside / of:.0f} %) hold the largest rung; bar 85 %")
        return
    started = time.process_time()
    total: dict[str, list[bool]] = defaultdict(list)
    by_kind: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        for kind in KINDS:
            mine: dict[str, list[bool]] = defaultdict(list)
            tasks = [(kind, number, options.stream) for number in range(options.ladders)]
            for held in pool.map(one, tasks, chunksize=5):
                for what, values in held.items():
                    mine[what] += values
                    total[what] += values
            by_kind[kind] = {what: 100 * float(np.mean(values)) for what, values in mine.items()}
    print(f"{options.ladders} ladders of each kind; share of intervals that hold, %\n")
    print("| | " + " | ".join(KINDS) + " | all | bar |\n|---|" + "---|" * (len(KINDS) + 2))
    for what, values in total.items():
        shares = [f"{by_kind[kind][what]:.1f}" for kind in KINDS]
        bar = "{} to {}".format(*BARS[what]) if what in BARS else ""
        print(f"| {what} | " + " | ".join(shares) + f" | {100 * np.mean(values):.1f} | {bar} |")
    rows = read_rows(PUBLISHED)
    found = fit(rows)
    for loss in measured_losses(found):
        print(f"\npublished, loss {loss:.4g}:", *(
            f"{axis} {at.value:.3f} ({at.low:.3f} to {at.high:.3f})"
            for axis in ("flops", "device_hours")
            if (at := leverage_at(found, axis, loss)) is not None
        ))  # fmt: skip
    for test in back_tests(rows):
        print(f"\npublished, largest of {test['architecture']}: {test['predicted']:.4f} ({test['low']:.4f} to "
              f"{test['high']:.4f}), measured {test['measured']:.4f}")  # fmt: skip
    print(f"\n{time.process_time() - started:.1f} s of processor time in this process")


if __name__ == "__main__":
    main()
