"""Megatron-Core runs without CUDA after `install`, and its own mathematics is left alone."""

from __future__ import annotations

import pytest

from tests.conftest import run_alone

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def run(program: str) -> str:
    """The output of a program in a Python of its own: `install` is for a whole process."""
    return run_alone("from octavo.cpu.backend import install\ninstall()\ninstall()\nimport torch\n" + program)


def test_cuda_names_lead_to_the_cpu() -> None:
    assert (
        run(
            "x = torch.zeros(2, device='cuda', pin_memory=True, dtype=torch.bfloat16)\n"
            "with torch.cuda.stream(torch.cuda.Stream()):\n"
            "    print(x.device, x.type(), x.cuda() is x, torch.ones(1, device=torch.cuda.current_device()).device)\n"
            "print(x.type(torch.float32).dtype, torch.cuda.is_available())"
        )
        == "cpu torch.cuda.BFloat16Tensor True cpu\ntorch.float32 False"
    )


def test_start_up_compiles_nothing() -> None:
    """torch._dynamo and inductor alone take more than a second to import; the board for curves, a fifth."""
    assert (
        run(
            "import sys, megatron.core.jit as jit, megatron.core.fusions.fused_bias_swiglu as swiglu\n"
            "print(jit.jit_fuser(len) is len, type(swiglu.swiglu).__name__, 'torch._dynamo' in sys.modules)\n"
            "print('torch.utils.tensorboard' in sys.modules); import torch.utils.tensorboard"
        )
        == "True function False\nFalse"
    )


def test_optimizers_step_without_the_compiler() -> None:
    """And to where they would step with it: torch's own class, of a process that was not told."""
    program = (
        "x = torch.nn.Parameter(torch.ones(3))\n"
        "optimizer = torch.optim.AdamW([x], lr=0.1, fused=True)\n"
        "for _ in range(3):\n"
        "    optimizer.zero_grad(); (x * x).sum().backward(); optimizer.step()\n"
        "optimizer.state_dict()\n"
        "import sys; print(x.tolist(), 'torch._dynamo' in sys.modules)"
    )
    assert run(program).removesuffix("False") == run_alone("import torch\n" + program).removesuffix("True")


def test_random_states_are_the_cpu_generators() -> None:
    assert run(
        "from megatron.core.tensor_parallel import random\n"
        "tracker = random.get_cuda_rng_tracker(); tracker.add('one', 1)\n"
        "with tracker.fork('one'):\n"
        "    inside = torch.rand(1)\n"
        "torch.manual_seed(1)\n"
        "print(torch.equal(inside, torch.rand(1)))"
    ).endswith("True")
