"""Which nodes slow a run down: their ranks take longer than the others for the same work.

All ranks wait for the slowest in every step, so a step's time does not tell them apart. What does is the time that each
works before it waits (`octavo.records.RankTime`), held against the median of the ranks of its pipeline stage, which do
the same work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from octavo.cluster.probe import SLOWER
from octavo.records import RankTime


@dataclass(frozen=True)
class Straggler:
    """A node with ranks that take more than SLOWER longer than the median."""

    node: str
    slower: float
    """By how much the slowest of them takes longer, as a share of the median."""
    seconds: float
    """The same in seconds: so long all ranks wait for it in every step."""
    ranks: tuple[int, ...]
    """Those that do."""
    all_ranks: bool
    """Whether those are all of the node's."""

    def __str__(self) -> str:
        which = "" if self.all_ranks else f", rank {', '.join(map(str, self.ranks))},"
        return f"{self.node}{which} works {self.slower:.0%} longer at a step than the median rank"


def stragglers(ranks: Sequence[RankTime]) -> list[Straggler]:
    """The nodes that slow a run down, the worst first."""
    on_node: dict[str, list[RankTime]] = defaultdict(list)
    middle = _medians(ranks)
    for one in ranks:
        on_node[one.node].append(one)
    found = []
    for node, own in on_node.items():
        if slow := [one for one in own if _slower(one, middle) > SLOWER]:
            worst = max(slow, key=lambda one: _slower(one, middle))
            beyond = worst.seconds - middle[worst.stage]
            ranks_of_it = tuple(one.rank for one in slow)
            found.append(Straggler(node, _slower(worst, middle), beyond, ranks_of_it, len(slow) == len(own)))
    return sorted(found, key=lambda one: -one.slower)


def slowness(ranks: Sequence[RankTime]) -> dict[int, float]:
    """Rank -> how much longer it takes than the median of its stage's ranks, as a share of that."""
    middle = _medians(ranks)
    return {one.rank: _slower(one, middle) for one in ranks}


def _medians(ranks: Sequence[RankTime]) -> dict[int, float]:
    """Stage -> seconds of its median rank."""
    by_stage: dict[int, list[float]] = defaultdict(list)
    for one in ranks:
        by_stage[one.stage].append(one.seconds)
    return {stage: median(seconds) for stage, seconds in by_stage.items()}


def _slower(one: RankTime, middle: dict[int, float]) -> float:
    return one.seconds / middle[one.stage] - 1 if middle[one.stage] else 0.0
