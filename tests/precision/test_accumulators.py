"""Sums in a tensor core's accumulator, held against the definition of MMA-Sim (arXiv 2511.10909) number by number."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from octavo.cpu import library
from octavo.precision.accumulators import BLACKWELL, HOPPER, Accumulator, short_accumulation

NOTHING = -999
"""An exponent below all others."""


def parts(value: float) -> tuple[Fraction, int]:
    """Significand (1 to 2) and exponent of a number."""
    mantissa, exponent = math.frexp(value)
    return (Fraction(mantissa) * 2, exponent - 1) if value else (Fraction(0), NOTHING)


def step(a: list[float], b: list[float], kept: float, accumulator: Accumulator) -> float:
    """One instruction, in fractions: align to the largest exponent, cut, add, cut."""
    terms = [parts(kept)]
    for one, other in zip(a, b, strict=True):
        (x, at), (y, by) = parts(one), parts(other)
        terms.append((x * y, at + by))
    most = max(exponent for _, exponent in terms)
    total = sum(
        math.trunc(value * Fraction(2) ** (accumulator.aligned_bits + exponent - most)) for value, exponent in terms
    )
    significand, exponent = parts(float(total))
    significand = Fraction(math.trunc(significand * 2**accumulator.kept_bits), 2**accumulator.kept_bits)
    return float(significand * Fraction(2) ** (exponent + most - accumulator.aligned_bits)) if total else 0.0


def slow(a: Tensor, b: Tensor, promotion: int | None, accumulator: Accumulator) -> Tensor:
    out = torch.zeros(a.shape[0], b.shape[1])
    for row in range(a.shape[0]):
        for column in range(b.shape[1]):
            total, kept = torch.zeros(()), 0.0
            for start in range(0, a.shape[1], accumulator.products):
                run = slice(start, start + accumulator.products)
                kept = step(a[row, run].tolist(), b[run, column].tolist(), kept, accumulator)
                if promotion and (start + accumulator.products) % promotion == 0:
                    total, kept = total + kept, 0.0  # in FP32
            out[row, column] = total + kept
    return out


@pytest.fixture(params=["compiled", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to sum."""
    if request.param == "torch":
        monkeypatch.setattr(library, "COMPILED", None)
    elif library.COMPILED is None:
        pytest.skip(library.REFUSED)


def dot(a: list[float], b: list[float], accumulator: Accumulator, promotion: int | None = None) -> float:
    return short_accumulation(torch.tensor([a]), torch.tensor([b]).t(), promotion, accumulator).item()


@pytest.mark.parametrize("accumulator", [HOPPER, BLACKWELL, Accumulator(products=16, aligned_bits=10, kept_bits=20)])
@pytest.mark.parametrize("promotion", [None, 128])
@pytest.mark.parametrize("k", [32, 100, 300])
def test_the_definition(implementation: None, k: int, promotion: int | None, accumulator: Accumulator) -> None:
    generator = torch.Generator().manual_seed(k)
    a, b = (torch.randn(shape, generator=generator).to(torch.float8_e4m3fn).float() for shape in ((3, k), (k, 5)))
    a[0], b[:, 0] = a[0].abs(), b[:, 0].abs()  # sums of one sign, which lose most
    a[1, :40] = 0.0
    assert torch.equal(short_accumulation(a, b, promotion, accumulator), slow(a, b, promotion, accumulator))


def test_hopper_keeps_thirteen_bits_below_the_largest_and_blackwell_twenty_five(implementation: None) -> None:
    """MMA-Sim: F = 13 for FP8 on Hopper, with e8m13 of the sum kept; F = 25 on Blackwell, with FP32 kept.

    16,384 = 2^14 beside 1 = 2^0: below 2^(14 - 13) nothing counts on Hopper, however many there are.
    """
    ones = [128.0] + [1.0] * 31
    assert dot(ones, ones, HOPPER) == 128.0**2
    assert dot(ones, ones, BLACKWELL) == 128.0**2 + 31
    twos = [128.0, 2.0, *[1.0] * 30]  # 2 x 1 = 2^1 counts
    assert dot(twos, ones, HOPPER) == 128.0**2 + 2


def test_products_are_cut_towards_zero_before_they_are_added(implementation: None) -> None:
    """-(2^14) beside thirty-one times -1.5: each of these is cut to nothing, not to -2."""
    a = [-128.0] + [-1.5] * 31
    assert dot(a, [128.0] + [1.0] * 31, HOPPER) == -(128.0**2)


def test_the_accumulator_is_aligned_too(implementation: None) -> None:
    """After a step of 2^14 a second step of thirty-two ones adds nothing; promoted after 32 products it does."""
    a = [128.0] + [0.0] * 31 + [1.0] * 32
    b = [128.0] + [1.0] * 63
    assert dot(a, b, HOPPER) == 128.0**2
    assert dot(a, b, HOPPER, promotion=32) == 128.0**2 + 32
    assert dot(a, b, BLACKWELL) == 128.0**2 + 32


def test_sums_of_one_sign_lose_what_deepseek_saw_and_promotion_keeps(implementation: None) -> None:
    """Uniform positive operands, K = 4,096: about 7 %, where cutting only the sum would lose 0.3 %. In FP32 every 128:
    a hundredth of it."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(shape, generator=generator).to(torch.float8_e4m3fn).float() for shape in ((32, 4096), (4096, 8)))
    exact = a.double() @ b.double()

    def lost(promotion: int | None, accumulator: Accumulator = HOPPER) -> float:
        return (1 - short_accumulation(a, b, promotion, accumulator).double() / exact).mean().item()

    assert 0.05 < lost(None) < 0.09
    assert lost(128) < 0.003
    assert lost(None, BLACKWELL) < 1e-4


def test_what_is_no_number_is_none(implementation: None) -> None:
    a, b = torch.ones(2, 64), torch.ones(64, 3)
    a[0, 40], b[3, 1] = math.inf, math.nan
    found = short_accumulation(a, b, None)
    assert found[0, 0] == math.inf
    assert found[:, 1].isnan().all()
    assert found[1, 0] == 64.0
