"""Which kernels a step on a GPU ran, by kind, with their share of the GPU's time.

A profiler sees names alone. cuBLAS's newer products are called `nvjet_`, an architecture, and letters for the types of
both operands (two letters below 16 bits), of the sum and of the result: t is BF16, q e4m3, r e5m2, o e2m1, h FP16,
s FP32 (cuBLASLt 13 exports `cublasLtTSTMatmul` and the like). Its older ones and CUTLASS's spell the types out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

_NVJET = r"^nvjet_(sm\d+_)?"
_PRODUCT = r"(gemm|xmma|cutlass)"
KINDS = (
    ("NCCL", re.compile(r"nccl")),
    ("attention", re.compile(r"sdpa|fmha|flash|attn")),
    ("FP4 products", re.compile(rf"{_NVJET}o|{_PRODUCT}.*(e2m1|nvf4|mxf4)")),
    ("FP8 products", re.compile(rf"{_NVJET}[qr]|{_PRODUCT}.*(e4m3|e5m2|fp8|f8)")),
    ("BF16 products", re.compile(rf"{_NVJET}t|{_PRODUCT}.*bf16")),
    ("other products", re.compile(rf"^nvjet|{_PRODUCT}")),
)
"""A kind and what names of its kernels hold, in lower case; the first that fits. What fits none is `other`: norms,
quantising, permutation, activations, the optimizer, copies."""


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    lower = kernel.lower()
    return next((kind for kind, pattern in KINDS if pattern.search(lower)), "other")


def shares(seconds: dict[str, float]) -> dict[str, float] | None:
    """Kind -> share of the time, of kernels' names and times; None where there are none."""
    total = sum(seconds.values())
    if not total:
        return None
    kinds = Counter[str]()
    for kernel, time in seconds.items():
        kinds[kind_of(kernel)] += time  # type: ignore[assignment]  # counters hold any number
    return {kind: time / total for kind, time in kinds.most_common()}


class KernelWatch:
    """Notes the kernels that run while it is on; none where torch cannot profile a GPU."""

    def __init__(self) -> None:
        self.shares: dict[str, float] | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Profile what is run inside."""
        if ProfilerActivity.CUDA not in supported_activities():
            yield
            return
        profiler = profile(activities=[ProfilerActivity.CUDA])
        try:
            profiler.start()
        except RuntimeError:  # another profiler has the GPU: no reason not to train
            yield
            return
        try:
            yield
        finally:
            torch.cuda.synchronize()
            profiler.stop()
        found = [one for one in profiler.key_averages() if one.device_type == DeviceType.CUDA]
        self.shares = shares({one.key: one.self_device_time_total for one in found if not one.is_user_annotation})
