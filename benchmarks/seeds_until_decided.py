"""Seeds until decided: how often a whole experiment's verdicts are false, and what the design saves.

    .venv/bin/python benchmarks/seeds_until_decided.py [--experiments 2000]

An experiment has four cells (dense and mixture, in BF16 and FP8) and three claims: the mixture's loss is below the
dense model's in BF16; FP8 ends less than 0.25 % above BF16, for both; and in FP8 the mixture is within 0.25 % of the
dense model. Each comparison has its own noise: normal, heavy-tailed (t with 3 degrees), or unequal (one run 3 times as
noisy as the other's). The design looks after 3 to 8 seeds and trains the cells of undecided comparisons alone, as the
pipeline does. For the rates every truth lies on its margin; for the savings truths and spreads are those of `laptop`'s
eight seeds. At the end: what three seeds cannot see, with skewed noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from octavo.evidence.sequential import Looks
from octavo.evidence.verdicts import adjusted_p_values, verdict_of
from octavo.statistics import ALPHA, Looked, Relation, Test, all_of, once, test

LOOKS = Looks(3, 8)
CELLS = ("dense-bf16", "moe-bf16", "dense-fp8", "moe-fp8")
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """A comparison that a claim rests on; effect and spread in %."""

    claim: int
    cells: tuple[str, str]
    relation: Relation
    margin: float
    effect: float
    spread: float


MEASURED = [
    Pair(1, ("moe-bf16", "dense-bf16"), "below", 0.0, -0.40, 0.285),
    Pair(2, ("moe-fp8", "moe-bf16"), "below", 0.25, -0.05, 0.143),
    Pair(2, ("dense-fp8", "dense-bf16"), "below", 0.25, 0.04, 0.152),
    Pair(3, ("moe-fp8", "dense-fp8"), "within", 0.25, -0.49, 0.313),
]
ON_THE_MARGIN = [Pair(one.claim, one.cells, one.relation, one.margin, one.margin, one.spread) for one in MEASURED]

NOISES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t with 3 degrees": lambda rng, n: rng.standard_t(3, n) / np.sqrt(3),
    "unequal": lambda rng, n: (3 * rng.normal(size=n) - rng.normal(size=n)) / np.sqrt(10),
}


def verdicts(
    pairs: list[Pair], differences: list[np.ndarray], looked: Looked
) -> tuple[dict[int, str], list[Test | None]]:
    """Of each claim, adjusted over all; and the tests of the pairs."""
    tests = [
        test(values, pair.relation, pair.margin, looked=looked) for pair, values in zip(pairs, differences, strict=True)
    ]
    claims = sorted({pair.claim for pair in pairs})
    whole = [
        all_of([one for one, pair in zip(tests, pairs, strict=True) if pair.claim == claim and one]) for claim in claims
    ]
    adjusted = adjusted_p_values(whole)
    reached = zip(claims, whole, adjusted, strict=True)
    return {claim: verdict_of(one, p) for claim, one, p in reached}, tests


def until_decided(pairs: list[Pair], drawn: list[np.ndarray]) -> tuple[dict[int, str], int]:
    """The verdicts of the design, and the runs that it trained."""
    seeds: dict[str, int] = dict.fromkeys(CELLS, LOOKS.first)
    found: dict[int, str] = {}
    for after in range(LOOKS.first, LOOKS.last + 1):
        there = [values[: min(seeds[cell] for cell in pair.cells)] for pair, values in zip(pairs, drawn, strict=True)]
        found, tests = verdicts(pairs, there, LOOKS)
        further = {
            cell
            for pair, one in zip(pairs, tests, strict=True)
            if found[pair.claim] == "inconclusive" and not (one and len(found) * one.supports <= ALPHA)
            for cell in pair.cells
        }
        if not further or after == LOOKS.last:
            break
        seeds |= dict.fromkeys(further, after + 1)
    return found, sum(seeds.values())


def simulate(pairs: list[Pair], noise: Draw, experiments: int, seed: int) -> tuple[float, float, float]:
    """Shares: experiments with a verdict, verdicts reached, runs of those that a fixed number of seeds takes."""
    rng = np.random.default_rng(seed)
    any_verdict, reached, runs = 0, 0, 0
    for _ in range(experiments):
        drawn = [pair.effect + pair.spread * noise(rng, LOOKS.last) for pair in pairs]
        found, trained = until_decided(pairs, drawn)
        decided = sum(verdict != "inconclusive" for verdict in found.values())
        any_verdict, reached, runs = any_verdict + bool(decided), reached + decided, runs + trained
    most = experiments * LOOKS.last * len(CELLS)
    return any_verdict / experiments, reached / (experiments * 3), runs / most


def fixed(pairs: list[Pair], noise: Draw, experiments: int, seed: int) -> float:
    """Share of the verdicts that LOOKS.last seeds of every cell reach, looked at once."""
    rng = np.random.default_rng(seed)
    reached = 0
    for _ in range(experiments):
        drawn = [pair.effect + pair.spread * noise(rng, LOOKS.last) for pair in pairs]
        reached += sum(one != "inconclusive" for one in verdicts(pairs, drawn, once)[0].values())
    return reached / (experiments * 3)


def skewed(draw: Draw, relation: Relation, experiments: int) -> list[float]:
    """Rates at which three seeds support a mean on the margin, for spreads of 0.05, 0.1 and 0.2 %."""
    rng = np.random.default_rng(7)
    rates = []
    for spread in (0.05, 0.1, 0.2):
        wrong = 0
        for _ in range(experiments):
            found = test(0.25 + spread * draw(rng, 3), relation, 0.25)
            wrong += found is not None and found.supports <= ALPHA
        rates.append(wrong / experiments)
    return rates


def lognormal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Mean 0, variance 1, with a long tail to higher losses."""
    return (rng.lognormal(size=n) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def one_bad_in_ten(rng: np.random.Generator, n: int) -> np.ndarray:
    """Mean 0, variance about 1: one seed in ten is far worse than the others, which hardly scatter."""
    return np.where(rng.random(n) < 0.1, 3.0, -1 / 3) + 0.1 * rng.normal(size=n)


def main() -> None:
    """Print the rates, the savings and what three seeds cannot see."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000)
    experiments = parser.parse_args().experiments
    for seed, (name, noise) in enumerate(NOISES.items()):
        wrong, _, _ = simulate(ON_THE_MARGIN, noise, experiments, seed)
        print(f"{name}: {100 * wrong:.1f} % of experiments with a false verdict")
        _, reached, share = simulate(MEASURED, noise, experiments, seed + 10)
        eight = fixed(MEASURED, noise, experiments, seed + 10)
        print(
            f"{name}: {100 * (1 - share):.0f} % of the device-hours of eight seeds saved; "
            f"{100 * reached:.0f} % of the verdicts reached, against {100 * eight:.0f} %"
        )
    for name, draw in (("lognormal", lognormal), ("one bad seed in ten", one_bad_in_ten)):
        for relation in ("within", "below"):
            rates = ", ".join(f"{100 * rate:.0f}" for rate in skewed(draw, relation, experiments))
            print(f"three seeds, {name}: {relation} 0.25 % supported falsely in {rates} % (spread 0.05, 0.1, 0.2 %)")


if __name__ == "__main__":
    main()
