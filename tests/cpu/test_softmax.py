"""A router's softmax on a CPU: torch's bits where those are the same on every processor, 16 partial sums elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from octavo.cpu import kernels, library  # noqa: E402
from octavo.cpu.layers import row_softmax  # noqa: E402
from tests.conftest import run_alone  # noqa: E402

pytestmark = pytest.mark.skipif(library.COMPILED is None, reason="needs a C compiler")
CAPABILITY = torch.backends.cpu.get_cpu_capability()
ROWS = 256


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(columns: int) -> Any:
    torch.manual_seed(columns)
    return 5 * torch.randn(ROWS, columns)


def sum_of_lanes(x: Any) -> Any:
    """Of the last dimension: 16 partial sums, which are added by halves; fewer numbers are added one by one."""
    columns = x.shape[-1]
    if columns < 16:
        parts = list(x.unbind(-1))
    else:
        chunks = torch.nn.functional.pad(x, (0, -columns % 16)).unflatten(-1, (-1, 16))
        lanes = chunks[..., 0, :]
        for chunk in range(1, chunks.shape[-2]):
            lanes = lanes + chunks[..., chunk, :]
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
        return lanes[..., 0]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("columns", [1, 4, 7, 8, 12, 16, 24, 40, 128])
def test_it_has_the_bits_of_torch_on_vectors_of_sixteen(columns: int) -> None:
    """On vectors of eight torch's sums of 8 to 15 and of more than 16 numbers have another order."""
    if CAPABILITY != "AVX512" and not (CAPABILITY == "AVX2" and (columns < 8 or columns == 16)):
        pytest.skip(f"torch with {CAPABILITY} adds {columns} numbers in another order")
    x, gradient = rows(columns).requires_grad_(), torch.randn(ROWS, columns)
    expected = torch.softmax(x, -1)
    (of_x,) = torch.autograd.grad(expected, x, gradient)
    found = row_softmax(torch.softmax)(x, -1)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, x, gradient)[0], of_x)


@pytest.mark.parametrize("columns", [3, 8, 16, 24, 128])
def test_sums_run_over_sixteen_parts_on_every_processor(columns: int) -> None:
    weights, gradient = kernels.softmax(rows(columns)), torch.randn(ROWS, columns)
    assert torch.equal(
        kernels.softmax_gradient(gradient, weights),
        (gradient - sum_of_lanes(gradient * weights).unsqueeze(-1)) * weights,
    )
    known = torch.zeros(1, columns)  # every exponential is 1, every partial sum exact
    assert torch.equal(kernels.softmax(known), torch.full((1, columns), 1.0) * (1 / torch.tensor(float(columns))))


@pytest.mark.parametrize("columns", [2, 16, 128])
def test_it_is_as_near_to_the_truth_as_fp32(columns: int) -> None:
    """An exponential is off by one unit in the last place, and so is the sum of each of its up to 12 additions."""
    x = rows(columns)
    assert torch.allclose(kernels.softmax(x).double(), x.double().softmax(-1), rtol=16 * 2.0**-23, atol=1e-37)


def test_no_number_makes_its_row_no_number_and_minus_infinity_has_no_weight() -> None:
    x = torch.zeros(4, 20)
    x[0, 3], x[1, 0], x[2, 19], x[3, 5] = torch.nan, torch.inf, torch.nan, -torch.inf
    found = kernels.softmax(x)
    assert found[:3].isnan().all()
    assert found[3, 5] == 0
    assert found[3].sum() == pytest.approx(1)
    assert torch.equal(found.isnan(), x.softmax(-1).isnan())


def test_routers_use_it() -> None:
    """128 scores a token: the logits' gradient goes through the loops."""
    said = run_alone("""
from octavo.cpu.backend import install; install()
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
logits = torch.randn(8, 128, requires_grad=True)
from octavo.cpu import kernels
taken = []
plain = kernels.softmax
kernels.softmax = lambda x: taken.append(tuple(x.shape)) or plain(x)
topk_routing_with_score_function(logits, 32, use_pre_softmax=True)
print(taken)
""")
    assert said == "[(8, 128)]"
