"""Which nodes slow a run down."""

from __future__ import annotations

import pytest

from octavo.accounting.stragglers import slowness, stragglers
from octavo.records import RankTime


def times(*ranks: tuple[str, int, float]) -> list[RankTime]:
    """Ranks of (node, stage, seconds)."""
    return [RankTime(rank=number, node=node, stage=stage, seconds=seconds)
            for number, (node, stage, seconds) in enumerate(ranks)]  # fmt: skip


def test_the_rank_that_takes_more_than_5_percent_longer_is_named_with_its_node() -> None:
    """Seconds 1.00, 1.02, 1.00, 1.12: the median is 1.01; 1.12 / 1.01 is 10.9 % more, 1.02 / 1.01 1.0 %."""
    ranks = times(("gpu1", 0, 1.00), ("gpu1", 0, 1.02), ("gpu2", 0, 1.00), ("gpu2", 0, 1.12))
    (found,) = stragglers(ranks)
    assert (found.node, found.ranks, found.all_ranks) == ("gpu2", (3,), False)
    assert found.slower == pytest.approx(1.12 / 1.01 - 1)
    assert found.seconds == pytest.approx(1.12 - 1.01)
    assert str(found) == "gpu2, rank 3, works 11% longer at a step than the median rank"


def test_a_node_of_slow_ranks_alone_is_named_without_them_and_the_worst_comes_first() -> None:
    """Nine ranks: the median is 1.0."""
    ranks = times(*[("gpu1", 0, 1.0)] * 5, ("gpu2", 0, 1.1), ("gpu2", 0, 1.2), ("gpu3", 0, 1.3), ("gpu3", 0, 1.3))
    assert list(map(str, stragglers(ranks))) == [
        "gpu3 works 30% longer at a step than the median rank",
        "gpu2 works 20% longer at a step than the median rank",
    ]


def test_stages_of_a_pipeline_do_other_work_and_are_not_held_against_one_another() -> None:
    ranks = times(("gpu1", 0, 1.0), ("gpu2", 0, 1.0), ("gpu3", 1, 2.0), ("gpu4", 1, 2.2))
    assert slowness(ranks) == pytest.approx({0: 0.0, 1: 0.0, 2: 2.0 / 2.1 - 1, 3: 2.2 / 2.1 - 1})
    assert stragglers(ranks) == []


def test_one_rank_is_slower_than_no_other() -> None:
    assert stragglers(times(("gpu1", 0, 1.0))) == stragglers([]) == []
