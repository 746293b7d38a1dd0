"""What lies between the products: against the definitions in FP64, compiled and by torch's operators.

A result is rounded once, from FP32 to BF16: it is within half a BF16 unit (2^-9, relative) of the exact value, and a
few FP32 roundings more; 2^-8 is allowed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from octavo.cpu import kernels as cpu_kernels  # noqa: E402
from octavo.cpu import library  # noqa: E402
from octavo.cpu.sources import FLAGS, FOLDER  # noqa: E402

pytestmark = pytest.mark.usefixtures("implementation")

UNIT = 2.0**-8
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 70))
"""Rows and columns: fewer than a vector, whole vectors, and some over."""


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Any:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def exact(function: Any, *tensors: Any) -> tuple[Any, list[Any]]:
    """A function in FP64, and the gradients of its sum weighted with its own shape's `normal`."""
    inputs = [tensor.double().requires_grad_() for tensor in tensors]
    result = function(*inputs)
    result.backward(normal(*result.shape, seed=9).double())
    return result.detach(), [tensor.grad for tensor in inputs]


def assert_near(got: Any, wanted: Any, floor: float = 1e-5) -> None:
    """Within a BF16 unit; sums that cancel are as near as their terms allow (`floor`)."""
    assert torch.allclose(got.double(), wanted.double(), rtol=UNIT, atol=floor)


@settings(deadline=None, max_examples=30)
@given(SIZES)
def test_rms_norm_and_its_gradient(size: tuple[int, int]) -> None:
    x, weight = normal(*size), normal(size[1], seed=1)

    def definition(x: Any, weight: Any) -> Any:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight

    wanted, (wanted_x, wanted_weight) = exact(definition, x, weight)
    got, scale = cpu_kernels.rms_norm(x, weight, 1e-5)
    to_x, to_weight = cpu_kernels.rms_norm_gradient(normal(*size, seed=9), x, weight, scale)
    assert_near(got, wanted)
    assert_near(to_x, wanted_x, 1e-4)
    assert_near(to_weight, wanted_weight, 1e-4)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.booleans())
def test_swiglu_and_its_gradient(size: tuple[int, int], weighted: bool) -> None:
    rows, width = size
    both, weight = normal(rows, 2 * width, scale=3), torch.rand(rows) if weighted else None

    def definition(both: Any, *weight: Any) -> Any:
        gate, up = both.chunk(2, -1)
        return gate / (1 + torch.exp(-gate)) * up * (weight[0].unsqueeze(-1) if weight else 1)

    wanted, gradients = exact(definition, both, *([weight] if weighted else []))
    assert_near(cpu_kernels.swiglu(both, weight), wanted)
    to_both, to_weight = cpu_kernels.swiglu_gradient(normal(rows, width, seed=9), both, weight)
    assert_near(to_both, gradients[0])
    assert (to_weight is None) == (weight is None)
    if to_weight is not None:
        assert_near(to_weight, gradients[1], 1e-4)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.sampled_from([1.0, 30.0]))
def test_cross_entropy_and_its_gradient(size: tuple[int, int], scale: float) -> None:
    rows, vocabulary = size
    logits, labels = normal(rows, vocabulary, scale=scale), torch.arange(rows) % vocabulary

    def definition(logits: Any) -> Any:
        return -(logits - logits.logsumexp(-1, keepdim=True)).gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    wanted, (wanted_logits,) = exact(definition, logits)
    loss, *numbers = cpu_kernels.cross_entropy(logits, labels)
    # no rounding to BF16 here: the loss is FP32
    assert torch.allclose(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    assert_near(cpu_kernels.cross_entropy_gradient(normal(rows, seed=9), logits, labels, *numbers), wanted_logits)


def test_a_hopeless_label_costs_what_its_logit_says() -> None:
    """Its probability, e^-200, is no FP32 number; its loss is 200."""
    loss, *_ = cpu_kernels.cross_entropy(torch.tensor([[200.0, 0.0]]).bfloat16(), torch.tensor([1]))
    assert loss.item() == 200.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_no_number_makes_the_loss_none(bad: float) -> None:
    """So that a run that diverged is seen to have."""
    logits = torch.zeros(2, 40).bfloat16()
    logits[1, 3] = bad
    loss, *_ = cpu_kernels.cross_entropy(logits, torch.tensor([0, 0]))
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize("cut", [False, True], ids=["contiguous", "a part of a wider tensor"])
def test_rotation_and_its_transpose(cut: bool) -> None:
    """A rotation by angle a of the pairs (i, i + half): its transpose takes a vector back to where it was."""
    x = normal(6, 2, 3, 24)[..., :16] if cut else normal(6, 2, 3, 16)
    angles = torch.arange(6.0).view(-1, 1) * torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0]).repeat(2)
    turned = cpu_kernels.rotate(x, angles.cos(), angles.sin())
    pairs = torch.complex(x[..., :8].float(), x[..., 8:].float())
    wanted = pairs * torch.polar(torch.ones(6, 8), angles[:, :8])[:, None, None]
    assert_near(turned, torch.cat((wanted.real, wanted.imag), -1), 1e-2)
    back = cpu_kernels.rotate(turned, angles.cos(), angles.sin(), back=True)
    assert torch.allclose(back.float(), x.float(), rtol=2 * UNIT, atol=2e-2)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.sampled_from([None, 1, 5, 100]))
def test_causal_softmax_and_its_gradient(length: int, window: int | None) -> None:
    scores = normal(2, length, length, scale=4).float()
    allowed = torch.ones(length, length).tril() - torch.ones(length, length).tril(-(window or length))

    def definition(scores: Any) -> Any:
        return (scores * 0.3).masked_fill(allowed == 0, -torch.inf).softmax(-1)

    wanted, (wanted_scores,) = exact(definition, scores)
    later = torch.ones(length, length).triu(1) == 1  # what comes later may be anything
    weights = cpu_kernels.attention_weights(scores.masked_fill(later, torch.nan), 0.3, window)
    gradient = normal(2, length, length, seed=9).float()
    assert weights.dtype == torch.bfloat16
    assert_near(weights, wanted, 1e-6)
    # the weights it starts from are rounded: half a BF16 unit of the largest gradient, and once more
    got = cpu_kernels.attention_weights_gradient(gradient.masked_fill(later, torch.nan), weights, 0.3, window)
    assert_near(got, wanted_scores, 0.3 * UNIT * gradient.abs().max().item())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_vectors_of_any_width_give_the_same_bits(
    implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums run over a fixed number of partial sums, whatever the processor adds at a time."""
    if implementation == "torch":
        pytest.skip("of the compiled loops")

    def results() -> list[Any]:
        x, both, logits = normal(9, 100), normal(9, 200, scale=3), normal(9, 333, scale=5)
        out, scale = cpu_kernels.rms_norm(x, normal(100), 1e-5)
        loss, *numbers = cpu_kernels.cross_entropy(logits, torch.arange(9))
        return [
            out,
            *cpu_kernels.rms_norm_gradient(out, x, normal(100), scale),
            *cpu_kernels.swiglu_gradient(out, both, torch.rand(9, generator=torch.Generator().manual_seed(1))),
            loss,
            cpu_kernels.cross_entropy_gradient(loss, logits, torch.arange(9), *numbers),
            weights := cpu_kernels.attention_weights(normal(2, 50, 50).float(), 0.2, None),
            cpu_kernels.attention_weights_gradient(normal(2, 50, 50).float(), weights, 0.2, 7),
        ]

    installed, path = results(), tmp_path / "plain.so"
    files = sorted(map(str, FOLDER.glob("*.c")))
    subprocess.run(["gcc", *FLAGS, "-shared", "-fPIC", "-DFAST=", "-o", str(path), *files, "-lm"], check=True)
    monkeypatch.setattr(library, "COMPILED", library.open_library(path))
    for one, other in zip(installed, results(), strict=True):
        assert torch.equal(one, other)
