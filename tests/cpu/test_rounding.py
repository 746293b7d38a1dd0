"""Rounding agrees to the last bit with other implementations of the formats, and with a slow one from the papers."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from octavo.cpu import library
from octavo.cpu.formats import E4M3, E5M2, Format
from octavo.cpu.rounding import (
    largest_magnitude,
    largest_magnitudes,
    round_blocks,
    round_groups_blocks,
    round_groups_scaled,
    round_scaled,
    tensor_scale,
)

FORMATS = [E4M3, E5M2]
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
NUMPY = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
BLOCKS = {"1x128": (1, 128), "128x1": (128, 1), "128x128": (128, 128), "1x32": (1, 32), "32x1": (32, 1)}


def every_bf16() -> torch.Tensor:
    """All 65,280 finite BF16 numbers."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[values.isfinite()]


def rounded(values: torch.Tensor, scale: float, format: Format) -> torch.Tensor:
    out = torch.full_like(values, math.nan)
    round_scaled(values, scale, format, out)
    return out.float()


def blocked(values: torch.Tensor, format: Format, block: tuple[int, int]) -> torch.Tensor:
    out = torch.full_like(values, math.nan)
    round_blocks(values, format, block, out)
    return out.float()


def torch_cast(values: torch.Tensor, scale: float, format: Format) -> torch.Tensor:
    """torch's cast of the scaled values, saturating; -0 made +0."""
    scaled = (values.float() * scale).clamp(-format.largest, format.largest)
    return scaled.to(TORCH[format.name]).float() + 0.0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_format_is_what_torch_says_it_is(format: Format) -> None:
    info = torch.finfo(TORCH[format.name])
    assert (format.largest, format.smallest_normal) == (info.max, info.smallest_normal)
    assert info.eps == 2.0**-format.fraction_bits


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_all_256_codes_are_kept(implementation: str, format: Format) -> None:
    """Subnormals too; -0 becomes +0."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(TORCH[format.name]).float()
    codes = codes[codes.isfinite()]
    assert len(codes) == {"e4m3": 254, "e5m2": 248}[format.name]  # arXiv 2209.05433, table 1
    assert same_bits(rounded(codes.bfloat16(), 1.0, format), codes + 0.0)
    assert same_bits(rounded(codes, 1.0, format), codes + 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.7, 3.1415927, 2.0**-7, 1.0e4, 2.0**-40])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_bf16_number_rounds_as_torch_casts_it(implementation: str, format: Format, scale: float) -> None:
    scale = float(np.float32(scale))
    values = every_bf16()
    values = values[(values.float() * scale).isfinite()]
    assert same_bits(rounded(values, scale, format), torch_cast(values, scale, format))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_halfway_cases_go_to_the_even_code(format: Format) -> None:
    """Between every two codes: the middle, and the FP32 numbers on both sides of it."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(TORCH[format.name]).float()
    codes = codes[codes.isfinite()].unique()
    middles = (codes[1:] + codes[:-1]) / 2
    infinity = torch.tensor(math.inf)
    near = torch.cat([middles, middles.nextafter(infinity), middles.nextafter(-infinity)])
    assert same_bits(rounded(near, 1.0, format), torch_cast(near, 1.0, format))


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), exponent=st.integers(-60, 60))
def test_fp32_numbers_round_as_torch_and_ml_dtypes_cast_them(bits: list[int], exponent: int) -> None:
    values = torch.tensor(np.array(bits, np.uint32).view(np.float32))
    values, scale = values[values.isfinite() & (values.abs() < 1e18)], 2.0**exponent
    for format in FORMATS:
        ours = rounded(values, scale, format)
        assert same_bits(ours, torch_cast(values, scale, format))
        scaled = np.clip(values.numpy() * np.float32(scale), -format.largest, format.largest)
        assert same_bits(ours, torch.from_numpy(scaled.astype(NUMPY[format.name]).astype(np.float32)) + 0.0)


def test_infinities_saturate_and_nan_stays(implementation: str) -> None:
    values = torch.tensor([math.inf, -math.inf, math.nan, 1.0]).bfloat16()
    out = rounded(values, 1.0, E4M3)
    assert out[:2].tolist() == [448.0, -448.0]
    assert out.isnan().tolist() == [False, False, True, False]


# --- scales -----------------------------------------------------------------------------------------------------------


@given(bits=st.integers(0, 0x7F80))
def test_a_tensors_scale_is_transformer_engines(bits: int) -> None:
    """FP32's division; 1 for nothing and infinity; the largest FP32 number where the division overflows."""
    amax = torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16).item()
    with np.errstate(divide="ignore", over="ignore"):
        divided = np.float32(448.0) / np.float32(amax)
    expected = 1.0 if amax in (0.0, math.inf) else min(float(divided), float(np.finfo(np.float32).max))
    assert tensor_scale(amax, E4M3) == expected


def test_a_tensor_with_nan_keeps_its_other_values() -> None:
    """Transformer Engine's scale of a NaN is 1."""
    assert tensor_scale(math.nan, E4M3) == 1.0


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_largest_magnitude(implementation: str, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).bfloat16()
    assert largest_magnitude(values) == values.float().abs().max().item()
    assert largest_magnitude(-values.abs()) == values.float().abs().max().item()
    assert largest_magnitude(values[:0]) == 0.0
    assert math.isnan(largest_magnitude(torch.tensor([1.0, math.nan]).bfloat16()))


# --- blocks -----------------------------------------------------------------------------------------------------------


def reference(values: torch.Tensor, format: Format, block: tuple[int, int]) -> torch.Tensor:
    """Block by block: the scale is the power of two at or below largest / amax, in FP32; cast, and divide again.

    DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) for the blocks, Transformer Engine for the power of two; E8M0
    (OCP MX v1.0) holds the same numbers.
    """
    out = torch.empty(values.shape)
    for top in range(0, values.shape[0], block[0]):
        for left in range(0, values.shape[1], block[1]):
            here = (slice(top, top + block[0]), slice(left, left + block[1]))
            amax = values[here].abs().max().item()
            if amax == 0:
                out[here] = 0.0
                continue
            scale = 2.0 ** math.floor(math.log2(float(np.float32(format.largest) / np.float32(amax))))
            out[here] = (values[here].float() * scale).to(TORCH[format.name]).float() / scale + 0.0
    return out


def hard(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Values over many binades, with zeros, a row of zeros, a negligible row and numbers at the edges of binades."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.exp2(
        torch.randint(-12, 12, (rows, columns), generator=generator)
    )
    values[torch.rand(rows, columns, generator=generator) < 0.1] = 0.0
    values[rows // 2] = 0.0
    values[0] *= 1e-12
    values[-1] = 448.0 * 2.0 ** torch.randint(-9, 9, (columns,), generator=generator)
    return values.bfloat16()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("shape", [(256, 256), (130, 300), (5, 40), (1, 1), (64, 129), (3, 1024), (3, 2100)])
def test_blocks_are_those_of_the_papers(implementation: str, shape: tuple[int, int], block: tuple[int, int]) -> None:
    """Also where the last blocks are cut off by the edge."""
    values = hard(*shape, seed=shape[1])
    assert same_bits(blocked(values, E4M3, block), reference(values, E4M3, block))


@given(
    data=st.data(),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    block=st.sampled_from([(1, 32), (1, 16), (4, 4), (8, 32), (32, 1)]),
)
def test_compiled_loops_and_torch_give_the_same_bits(
    data: st.DataObject, rows: int, columns: int, block: tuple[int, int]
) -> None:
    """Of any finite BF16 numbers up to 2^100."""
    bits = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=rows * columns, max_size=rows * columns))
    values = torch.tensor(np.array(bits, np.uint16).view(np.int16)).view(torch.bfloat16).view(rows, columns)
    values = torch.where(values.isfinite() & (values.abs() < 2.0**100), values, 0.0)
    for format in FORMATS:
        compiled = blocked(values, format, block)
        if library.COMPILED is None:
            pytest.skip("there was no C compiler at installation")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "COMPILED", None)
            assert same_bits(blocked(values, format, block), compiled)


def test_blocks_without_rows_are_nothing(implementation: str) -> None:
    for block in BLOCKS.values():
        assert blocked(torch.empty(0, 64, dtype=torch.bfloat16), E4M3, block).shape == (0, 64)


def test_a_block_with_an_infinity_becomes_nan_and_one_with_nan_keeps_the_rest(implementation: str) -> None:
    """Blocks of 4 numbers."""
    values = torch.tensor([[math.inf, 1.0, 0.3, 2.0], [math.nan, 1.0, 0.3, 2.0], [1.0, 1.0, 0.3, 2.0]]).bfloat16()
    out = torch.empty(values.shape)
    round_blocks(values, E4M3, (1, 4), out)
    assert out[0].isnan().all()
    assert out[1, 0].isnan()
    assert same_bits(out[1, 1:], out[2, 1:])
    assert out[2].tolist() == [1.0, 1.0, 0.3125, 2.0]  # 0.3 is 1.2 x 2^-2, and e4m3 has 1.125, 1.25


def test_nothing_in_a_block_saturates_and_its_largest_uses_the_top_binade() -> None:
    values = hard(128, 128, seed=3).abs() + 1e-3
    amax = values.float().unflatten(1, (-1, 32)).amax(-1)
    out = blocked(values, E4M3, (1, 32)).unflatten(1, (-1, 32)).amax(-1)
    # the largest is off by at most half a step of its own binade: one part in 16
    assert ((out - amax).abs() <= amax / 16).all()


def test_mx_values_and_scales_are_those_of_torchao(torchao: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode RCEIL is the rule of NVIDIA's GPUs, and so Transformer Engine's: amax / 448 rounded up to E8M0."""
    monkeypatch.syspath_prepend(torchao)
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx  # type: ignore[import-not-found]

    values = hard(256, 512, seed=7)
    scales, codes = to_mx(values, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    theirs = codes.float().unflatten(1, (-1, 32)) * scales.float().unsqueeze(-1)
    assert same_bits(blocked(values, E4M3, (1, 32)), theirs.flatten(1) + 0.0)
    used = values.float().unflatten(1, (-1, 32)).amax(-1) > 0
    ours = torch.exp2(torch.ceil(torch.log2(values.float().abs().unflatten(1, (-1, 32)).amax(-1).double() / 448)))
    assert torch.equal(scales.float()[used], ours.float()[used])


def test_mx_scales_of_the_specification_differ_where_the_largest_would_saturate(
    torchao: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OCP MX v1.0, section 6.3, rounds the scale down, 2^(floor(log2 amax) - 8), and lets values saturate: the same
    but in blocks whose largest magnitude is in the top eighth of its binade, beyond 1.75 times a power of two.
    """
    monkeypatch.syspath_prepend(torchao)
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx  # type: ignore[import-not-found]

    values = hard(256, 512, seed=8)
    scales, codes = to_mx(values, torch.float8_e4m3fn, 32, ScaleCalculationMode.FLOOR)
    theirs = (codes.float().unflatten(1, (-1, 32)) * scales.float().unsqueeze(-1)) + 0.0
    ours = blocked(values, E4M3, (1, 32)).unflatten(1, (-1, 32))
    mantissa = torch.frexp(values.float().abs().unflatten(1, (-1, 32)).amax(-1)).mantissa * 2
    agree = (ours == theirs).all(-1)
    assert agree[mantissa <= 1.75].all()
    assert not agree[mantissa > 1.75].all()


GROUPS = [5, 0, 130, 1, 128, 0]
"""Rows of six experts."""


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_groups_in_one_call_are_each_group_by_itself(block: tuple[int, int]) -> None:
    values = (torch.randn(sum(GROUPS), 200) * torch.logspace(-3, 3, 200)).bfloat16()
    out = torch.full_like(values, math.nan)
    round_groups_blocks(values, GROUPS, E4M3, block, out)
    for group, found in zip(values.split(GROUPS), out.split(GROUPS), strict=True):
        assert same_bits(found.float(), blocked(group, E4M3, block))


@pytest.mark.usefixtures("implementation")
def test_scales_of_groups_in_one_call_are_each_groups_own() -> None:
    values = (torch.randn(sum(GROUPS), 200) * torch.logspace(-3, 3, sum(GROUPS))[:, None]).bfloat16()
    sizes = [200 * rows for rows in GROUPS]
    largest = largest_magnitudes(values, sizes)
    assert largest == [largest_magnitude(group) for group in values.split(GROUPS)]
    scales = [tensor_scale(one, E4M3) for one in largest]
    out = torch.full_like(values, math.nan)
    round_groups_scaled(values, sizes, scales, E4M3, out)
    for group, scale, found in zip(values.split(GROUPS), scales, out.split(GROUPS), strict=True):
        assert same_bits(found.float(), rounded(group, scale, E4M3))
