"""What Transformer Engine's own Python quantises is what the emulation quantises, product by product, to the bit.

`engine_products.py` trains one layer both ways; Transformer Engine's compiled module is `tests/transformer_engine_cpu`,
whose rounding is written from the kernels and knows nothing of the emulation's.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.precision.recipes import ALL_PRODUCTS, RECIPES

pytest.importorskip("megatron.core")
CHANGED = [
    'fp8_delayed {"formats": {"gradient": "e4m3"}}',
    'fp8_tensorwise {"formats": {"gradient": "e4m3"}, "scales": "power_of_two"}',
    'fp8_blockwise {"formats": {"gradient": "e5m2"}}',
    'fp8_blockwise {"scales": "fp32"}',
    'fp8_mxfp8 {"formats": {"gradient": "e5m2"}}',
]
EMULATED = [name for name, recipe in RECIPES.items() if recipe.quantised and recipe.emulated]


@pytest.fixture(scope="module")
def compared(transformer_engine: Path) -> dict[str, Any]:
    path = os.pathsep.join([str(transformer_engine), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("engine_products.py"))],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {f"{one['recipe']} {json.dumps(one['changes'])}".removesuffix(" {}"): one for one in answers}


@pytest.mark.parametrize("recipe", [*EMULATED, *CHANGED])
def test_operands_of_all_products_are_equal_to_the_bit(compared: dict[str, Any], recipe: str) -> None:
    """Values, axes and scales: over micro-batches, with an expert that has no tokens, and passes of validation between
    steps. Delayed scaling takes a weight's magnitude once a step, none of a pass without tokens, and validation's with
    the next pass."""
    assert compared[recipe]["products"] == sorted(ALL_PRODUCTS)
    assert compared[recipe]["different"] == []


@pytest.mark.parametrize("recipe", [*EMULATED, *CHANGED])
def test_results_differ_by_the_order_of_sums_alone(compared: dict[str, Any], recipe: str) -> None:
    """By one step of BF16 at most: where two sums lie on two sides of a halfway case."""
    assert compared[recipe]["largest_difference"] <= 1.0


@pytest.mark.parametrize("recipe", EMULATED)
def test_the_table_of_formats_and_blocks_is_transformer_engines(compared: dict[str, Any], recipe: Any) -> None:
    ours = RECIPES[recipe]
    for kind, (format, block) in compared[recipe]["quantisers"].items():
        assert format == ours.formats[kind].name
        assert block == (list(ours.blocks[kind]) if ours.blocks else None)


@pytest.mark.parametrize("recipe", [*EMULATED, *CHANGED])
def test_the_proof_of_a_step_tells_formats_blocks_and_scales_of_what_is_quantised(
    compared: dict[str, Any], recipe: str
) -> None:
    for found, asked in compared[recipe]["described"].values():
        assert found == asked
        assert found.endswith("scales not its own") == ("scales" in recipe)


@pytest.mark.parametrize("changed", CHANGED)
def test_formats_that_an_experiment_gives_are_those_that_transformer_engine_quantises_to(
    compared: dict[str, Any], changed: str
) -> None:
    found = {kind: format for kind, (format, _) in compared[changed]["quantisers"].items()}
    assert found == compared[changed]["asked"]


SMALL = 2.0**-12
"""Beside an infinity it is lost: under the scale 1 it is below half of e4m3's smallest number, 2^-9."""


def test_infinity_and_nan_under_one_scale_are_what_transformer_engine_makes_of_them(compared: dict[str, Any]) -> None:
    """The infinity takes the scale 1 and saturates, all else is lost; NaN stays, and scales are of the others."""
    for side in ("engine", "emulation"):
        infinite, none = compared["fp8_tensorwise"]["extremes"][side]
        assert infinite == [448.0, 0.0, 0.0]
        assert math.isnan(none[0])
        assert none[1:] == [0.0, 0.0]  # one scale: that of the infinity in the other row


@pytest.mark.parametrize(
    ("recipe", "with_infinity"),
    # the MX scale of an infinity is 2^127: 448 times it is an infinity in FP32 (`exp2f_rcp`, ptx.cuh)
    [("fp8_blockwise", [448.0, 0.0, SMALL]), ("fp8_mxfp8", [math.inf, 0.0, SMALL])],
)
def test_a_block_with_an_infinity_is_nan_in_the_emulation_alone(
    compared: dict[str, Any], recipe: str, with_infinity: list[float]
) -> None:
    """The one difference in values that docs/precision.md tells. Other blocks have what they had, and so has the rest
    of a block with NaN."""
    for side, first in (("engine", with_infinity), ("emulation", [math.nan, math.nan, SMALL])):
        infinite, none = compared[recipe]["extremes"][side]
        assert infinite == pytest.approx(first, nan_ok=True, rel=0.0, abs=0.0)
        assert none == pytest.approx([math.nan, SMALL, SMALL], nan_ok=True, rel=0.0, abs=0.0)
