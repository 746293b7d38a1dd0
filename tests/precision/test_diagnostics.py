"""Fractions, magnitudes and errors are what they say."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("megatron.core")

import torch
from torch.nn import Parameter

from octavo.cpu.formats import E4M3, E5M2
from octavo.precision.config import Precision
from octavo.precision.diagnostics import Diagnostics, current, diagnose
from octavo.precision.history import AmaxHistory
from octavo.precision.products import Numerics, linear


def test_values_lost_and_saturated_are_counted() -> None:
    """At scale 1 e4m3's smallest number is 2^-9: half of it goes to zero (to even), 1.1 halves do not; 464, halfway
    to the number that would follow 448, still rounds to 448.
    """
    found = Diagnostics()
    before = torch.tensor([0.0, 0.0, 2.0**-10, 1.1 * 2.0**-10, 1.0, 464.0, 465.0, -600.0])
    after = before.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    found.see_operand("input", before, after, 1.0, E4M3)
    assert found.fields() == {
        "fp8_underflow": {"input": 1 / 6},
        "fp8_overflow": {"input": 2 / 8},
        "fp8_amax": {"input": 600.0},
        "fp8_product_error": None,
    }


@pytest.mark.parametrize(("format", "overflow"), [(E4M3, 464.0), (E5M2, 61440.0)])
def test_overflow_begins_half_a_step_beyond_the_largest(format, overflow: float) -> None:  # type: ignore[no-untyped-def]
    assert format.overflow == overflow


def test_a_products_error_is_relative_to_the_exact_one_and_averaged_over_layers() -> None:
    found = Diagnostics()
    found.see_product("forward", torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0]))  # 0.4 / 5
    found.see_product("forward", torch.tensor([1.0]), torch.tensor([1.0]))
    assert found.fields()["fp8_product_error"] == {"forward": pytest.approx(0.04)}


def test_delayed_scaling_reports_what_it_saturates() -> None:
    """The second input is four times the first, whose largest magnitude set the scale."""
    numerics, history = Numerics.of(Precision(recipe="fp8_delayed", amax_history=2)), AmaxHistory(2, experts=1)
    x = torch.linspace(-1, 1, 64 * 32).view(64, 32).bfloat16()
    weight = Parameter(torch.ones(8, 32).bfloat16())
    linear(x.clone().requires_grad_(), weight, None, numerics, history)
    with diagnose() as found:
        linear((4 * x).requires_grad_(), weight, None, numerics, history)
    # three quarters of the values are beyond the range, which ends at 464 / 448 of a quarter of theirs
    assert found.fields()["fp8_overflow"]["input"] == pytest.approx(1 - 0.25 * 464 / 448, abs=0.01)
    assert found.fields()["fp8_amax"]["input"] == 4.0


def _fail() -> None:
    with diagnose() as found:
        assert current() is found
        raise RuntimeError


def test_nothing_is_seen_outside() -> None:
    """Also after an error inside."""
    with pytest.raises(RuntimeError):
        _fail()
    assert current() is None


def test_what_is_not_a_number_is_told_as_none_and_does_not_vanish() -> None:
    """max(0.0, NaN) is 0.0: a diverged tensor would look like one of zeros. JSON has no NaN."""
    found, values = Diagnostics(), torch.tensor([math.nan, 1.0])
    found.see_operand("input", values, values, None, E4M3)
    found.see_operand("input", torch.ones(2), torch.ones(2), None, E4M3)
    found.see_product("forward", values, values)
    found.see_product("forward", torch.ones(2), torch.ones(2))
    assert found.fields()["fp8_amax"] == {"input": None}
    assert found.fields()["fp8_product_error"] == {"forward": None}


def test_asking_twice_gives_the_same_over_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that saw the same: counts double, fractions and magnitudes stay."""
    found = Diagnostics()
    found.see_operand("weight", torch.tensor([1.0, 2.0**-20]), torch.tensor([1.0, 0.0]), 1.0, E4M3)
    alone = found.fields()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")

    def all_reduce(values: torch.Tensor, operation: object) -> None:
        if operation == torch.distributed.ReduceOp.SUM:
            values.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert found.fields() == found.fields() == alone
