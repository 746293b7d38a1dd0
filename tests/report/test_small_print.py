"""What the pages after the claims say."""

from __future__ import annotations

import pytest

from octavo.report.document import Table
from octavo.report.sections.small_print import _kernels, how_often_read


@pytest.mark.parametrize(
    ("tokens", "held", "said"),
    [
        (5_934_080, 18_352_478, "none of them twice"),
        (18_352_478, 18_352_478, "none of them twice"),
        (5e6, 2e6, "all of it 2.5 times over"),
    ],
)
def test_text_that_is_read_again_is_said_to_be(tokens: float, held: float, said: str) -> None:
    assert said in how_often_read(tokens, held)


def test_where_the_gpus_time_went_is_told_of_runs_that_were_profiled() -> None:
    assert _kernels({"moe-bf16/seed-1": None}) == []
    (table,) = _kernels({"a": {"FP8 products": 0.52, "NCCL": 0.4, "other": 0.08}, "b": None})
    assert isinstance(table, Table)
    assert table.rows == [["a", "FP8 products 52 %, NCCL 40 %, other 8 %"]]
