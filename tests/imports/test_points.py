"""The order of what a log says: sorted where no step says two things, as written where a run did steps again."""

from __future__ import annotations

import math

import pytest

from octavo.errors import OctavoError
from octavo.imports.points import Point, in_order


def points(*of_steps: tuple[int, float]) -> list[Point]:
    return [Point(step, f"log:{line}", {"loss": loss}) for line, (step, loss) in enumerate(of_steps, 1)]


def steps(found: list[Point]) -> list[tuple[int, float]]:
    return [(point.step, point.values["loss"]) for point in found]


def test_a_table_that_begins_with_its_newest_row_is_sorted() -> None:
    found = in_order(points((30, 7.0), (20, 8.0), (10, 9.0)))
    assert steps(found.points) == [(10, 9.0), (20, 8.0), (30, 7.0)]
    assert found.sorted
    assert found.redone == 0


def test_steps_done_again_from_a_checkpoint_replace_what_came_after_it() -> None:
    """10 20 30 40, then from a checkpoint at 20: 30 again. What was written of 30 and 40 before does not count."""
    found = in_order(points((10, 9.0), (20, 8.0), (30, 7.0), (40, 6.0), (30, 7.1)))
    assert steps(found.points) == [(10, 9.0), (20, 8.0), (30, 7.1)]
    assert (found.redone, found.first_redone) == (2, "log:5")


def test_a_slow_ranks_late_line_is_no_restart() -> None:
    found = in_order(points((4, 7.6), (4, 7.6), (5, 7.1), (5, 7.1), (4, 7.6)))
    assert steps(found.points) == [(4, 7.6), (5, 7.1)]
    assert (found.repeated, found.redone) == (3, 0)


def test_a_loss_that_is_no_number_is_said_again_like_any_other() -> None:
    found = in_order(points((1, 2.0), (2, math.nan), (2, math.nan)))
    assert (len(found.points), found.repeated) == (2, 1)


def test_what_two_lines_say_of_one_step_is_one_point() -> None:
    """A training line and a validation of its step, and a validation of the test set, which the first comes before."""
    training = Point(20, "log:1", {"loss": 8.0})
    found = in_order([training, *(Point(20, "log:2", validation={"": loss}) for loss in (8.1, 7.5))])
    assert [(point.values, point.validation) for point in found.points] == [({"loss": 8.0}, {"": 8.1})]


def test_rows_in_no_order_with_a_step_twice_are_refused() -> None:
    shuffled = points((50, 5.0), (10, 9.0), (40, 6.0), (20, 8.0), (30, 7.0), (10, 9.5))
    with pytest.raises(OctavoError, match="step 10 is there twice") as caught:
        in_order(shuffled)
    assert caught.value.where == "log:6"


@pytest.mark.parametrize(
    ("step", "values"),
    [
        (-1, {"loss": 1.0}),
        (1 << 60, {"loss": 1.0}),
        (1, {"step_seconds": 0.0}),
        (1, {"step_seconds": -0.5}),
        (1, {"tokens": -5.0}),
        (1, {"tokens_per_second_per_device": -5.0}),
    ],
)
def test_numbers_that_cannot_be_are_refused(step: int, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"is no number of steps|above zero|below zero"):
        Point(step, "log:1", values)


def test_an_infinite_loss_is_one_that_is_no_number() -> None:
    assert math.isnan(Point(1, "log:1", {"loss": math.inf}).values["loss"])
