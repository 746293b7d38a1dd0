"""What the pages after the claims say."""

from __future__ import annotations

import pytest

from octavo.report.sections.small_print import how_often_read


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
