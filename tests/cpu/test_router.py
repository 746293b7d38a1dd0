"""A router's logits on a CPU, against double precision and Megatron-Core's own function."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from octavo.cpu import library  # noqa: E402
from octavo.cpu.products import multiply_wide  # noqa: E402
from octavo.records import Product  # noqa: E402
from tests.conftest import run_alone  # noqa: E402

pytestmark = pytest.mark.skipif(library.COMPILED is None, reason="needs a C compiler")
TOKENS, FEATURES, EXPERTS = 96, 40, 12
SHAPES = {
    "forward": ((TOKENS, FEATURES), (EXPERTS, FEATURES)),
    "input_gradient": ((TOKENS, EXPERTS), (EXPERTS, FEATURES)),
    "weight_gradient": ((TOKENS, EXPERTS), (TOKENS, FEATURES)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("product", SHAPES)
def test_products_are_as_near_to_the_truth_as_fp32_sums(product: Product, dtype: Any) -> None:
    """Each sum of up to 96 products is off by at most 96 roundings of 2^-24 of the sum of their magnitudes."""
    torch.manual_seed(1)
    left, right = (torch.randn(shape) for shape in SHAPES[product])
    left, right = left.to(dtype), right.bfloat16()
    one, other = left.double(), right.double()
    if product == "weight_gradient":
        one = one.mT
    if product == "forward":
        other = other.mT
    found = multiply_wide(product, left, right)
    assert found.dtype == torch.float32
    assert ((found - one @ other).abs() <= 96 * 2.0**-24 * (one.abs() @ other.abs())).all()


def test_it_takes_the_place_of_megatrons_function() -> None:
    """Logits and gradients are Megatron's to FP32's rounding, and of BF16 where Megatron rounds to that."""
    said = run_alone(f"""
from octavo.cpu.backend import install; install()
import torch; torch.set_num_threads(1); torch.manual_seed(1)
from megatron.core.transformer.moe import moe_utils, router
x = torch.randn(4, {TOKENS // 4}, {FEATURES}, dtype=torch.bfloat16, requires_grad=True)
weight = torch.randn({EXPERTS}, {FEATURES}, dtype=torch.bfloat16, requires_grad=True)
gradient = torch.randn(4, {TOKENS // 4}, {EXPERTS})
for function in (router.router_gating_linear, moe_utils.router_gating_linear):
    logits = function(x, weight, None, torch.float32)
    made = (logits, *torch.autograd.grad(logits, (x, weight), gradient))
    if function is router.router_gating_linear:
        ours = made
print(type(ours[0].grad_fn).__name__)
for one, other, bits in zip(ours, made, (20, 7, 7)):
    assert one.dtype == other.dtype and one.shape == other.shape
    assert torch.allclose(one.double(), other.double(), rtol=2.0 ** -bits, atol=2.0 ** -bits)
""")
    assert said == "_RouterLogitsBackward"


def test_the_bits_are_not_those_of_a_blas_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's sums in an order of each kind of processor; COMPATIBLE is that for processors of other makers."""
    program = """
from octavo.cpu.backend import install; install()
import hashlib, torch; torch.set_num_threads(1); torch.manual_seed(1)
from megatron.core.transformer.moe import moe_utils, router
x = torch.randn(1024, 128, dtype=torch.bfloat16, requires_grad=True)
weight = torch.randn(16, 128, dtype=torch.bfloat16, requires_grad=True)
for function in (router.router_gating_linear, moe_utils.router_gating_linear):
    logits = function(x, weight, None, torch.float32)
    made = (logits, *torch.autograd.grad(logits, (x, weight), torch.ones(1024, 16) / 3))
    print(hashlib.sha256(b"".join(one.detach().float().numpy().tobytes() for one in made)).hexdigest())
"""
    ours, megatrons = run_alone(program).splitlines()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    ours_again, megatrons_again = run_alone(program).splitlines()
    if megatrons == megatrons_again:
        pytest.skip("this torch's library has one order here")
    assert ours == ours_again
