"""Attention with learned sinks on a CPU: the function that it is, and its bits whatever vectors torch has."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from octavo.cpu import library  # noqa: E402
from octavo.cpu.layers import _Attend, _AttendWithSinks  # noqa: E402
from tests.conftest import run_alone  # noqa: E402

BATCH, HEADS, LENGTH, SIZE = 2, 3, 40, 16
SCALE = 1 / math.sqrt(SIZE)


def operands() -> list[Any]:
    """Queries, keys, values and the gradient of the result, [batch x heads, length, size] in BF16."""
    torch.manual_seed(1)
    return [torch.randn(BATCH * HEADS, LENGTH, SIZE).bfloat16() for _ in range(4)]


def gradients(result: Any, of: list[Any], gradient: Any) -> list[Any]:
    return [result, *torch.autograd.grad(result, of, gradient.to(result.dtype))]


def by_definition(operands: list[Any], window: int | None) -> Any:
    """exp(score) over the sum of those and of exp(sink), of the keys that a query attends to."""
    q, k, v, sinks = operands
    distance = torch.arange(LENGTH).view(-1, 1) - torch.arange(LENGTH)
    attends = (distance >= 0) & (distance < (window or LENGTH))
    weights = (SCALE * q @ k.transpose(1, 2)).exp() * attends
    return weights / (weights.sum(-1, keepdim=True) + sinks.repeat(BATCH).exp().view(-1, 1, 1)) @ v


@pytest.mark.parametrize("window", [None, 5])
def test_a_sink_is_one_more_key_whose_value_is_nothing(window: int | None) -> None:
    """Result and gradients against the definition in FP64. Operands, weights and gradients of scores are BF16: each is
    off by 2^-9 of its size at most, and the errors of the up to 40 products in a sum are of both signs."""
    *qkv, gradient = operands()
    sinks = torch.tensor([-1.0, 0.5, 2.0])
    exact = [tensor.double().requires_grad_() for tensor in (*qkv, sinks)]
    expected = gradients(by_definition(exact, window), exact, gradient)
    mine = [tensor.requires_grad_() for tensor in (*qkv, sinks.bfloat16())]
    found = gradients(_AttendWithSinks.apply(*mine, SCALE, window), mine, gradient)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).abs().max() < 0.01 * other.abs().max()


def test_without_weight_a_sink_changes_nothing() -> None:
    *qkv, gradient = operands()
    mine = [tensor.requires_grad_() for tensor in (*qkv, torch.full((HEADS,), -1e4).bfloat16())]
    found = gradients(_AttendWithSinks.apply(*mine, SCALE, None), mine, gradient)
    plain = gradients(_Attend.apply(*mine[:3], SCALE, None), mine[:3], gradient)
    assert torch.equal(found.pop(), torch.zeros(HEADS).bfloat16())
    for one, other in zip(found, plain, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=2**-7, atol=2**-9)


@pytest.mark.skipif(library.COMPILED is None, reason="needs a C compiler")
def test_its_bits_are_those_of_no_vector_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's softmax of 41 numbers and its sum of 80 have other bits with AVX2 than without vectors."""
    program = """
import hashlib, torch
from tests.cpu.test_sinks import SCALE, _AttendWithSinks, gradients, operands
torch.set_num_threads(1)
*qkv, gradient = operands()
mine = [tensor.requires_grad_() for tensor in (*qkv, torch.tensor([-1.0, 0.5, 2.0]).requires_grad_())]
found = gradients(_AttendWithSinks.apply(*mine, SCALE, None), mine, gradient)
print(torch.backends.cpu.get_cpu_capability())
print(hashlib.sha256(b"".join(one.float().detach().numpy().tobytes() for one in found)).hexdigest())
"""
    said = {}
    for capability in ("default", "avx2", "avx512"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        got, digest = run_alone(program).split()
        said[got] = digest
    assert len(said) > 1
    assert len(set(said.values())) == 1
