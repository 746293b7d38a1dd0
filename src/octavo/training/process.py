"""Setting one rank up: threads, kernels, process group and parallel state."""

from __future__ import annotations

import ctypes
import logging
import mmap
from typing import Any

import torch
import torch.distributed
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import HashStore

from octavo.experiment.run import RunConfig
from octavo.training.launch import Process
from octavo.training.requirements import Gpu, check_device

HUGE_PAGES = 1 << 29
"""Bytes of the heap that may be huge pages; address space, which takes no memory until it is used."""


def set_up_process(run: RunConfig, process: Process) -> None:
    """Threads, kernels, process group and parallel state of this rank."""
    training, layout = run.training, run.parallelism
    on_gpu = torch.cuda.is_available()
    check_device(run, _gpu() if on_gpu else None)
    logging.getLogger("megatron.core.datasets").setLevel(
        logging.ERROR
    )  # it misses a cache that it was told to do without
    torch.set_num_threads(training.threads)
    torch.set_flush_denormal(training.flush_denormals)
    # else cuBLAS may add partial sums of BF16 products in BF16: the reference that FP8 is held against sums in FP32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    keep_memory()
    if on_gpu:
        torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
        torch.use_deterministic_algorithms(training.deterministic)
        # it would fill every torch.empty, for code that reads what it has not written; a kernel each, for nothing here
        torch_deterministic: Any = torch.utils.deterministic
        torch_deterministic.fill_uninitialized_memory = False
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if process.port:
        torch.distributed.init_process_group(
            backend,
            init_method=f"tcp://{process.address}:{process.port}",
            rank=process.rank,
            world_size=process.world_size,
        )
    else:
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
    )
    # nothing draws from it (no dropout, initial values of our own), but Megatron-Core wants it there
    tensor_parallel.model_parallel_cuda_manual_seed(run.seed + 1)


def _gpu() -> Gpu:
    """The first GPU: those of a machine are of a kind."""
    major, minor = torch.cuda.get_device_capability(0)
    return Gpu(torch.cuda.get_device_name(0), f"{major}.{minor}", torch.version.cuda or "0")


def keep_memory() -> None:
    """Tell glibc to keep freed memory, and Linux to back it with huge pages.

    Every step takes the same memory again: pages fresh from the kernel are slow, and small ones cost a look into the
    page tables each. Numbers do not change.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # other C libraries have none
        return
    library.mallopt(mmap_threshold, 1 << 30)
    library.mallopt(trim_threshold, 2**31 - 1)
    library.malloc.restype = ctypes.c_void_p
    if start := library.malloc(ctypes.c_size_t(HUGE_PAGES)):  # of the heap, whose end it will be again when it is freed
        whole = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        library.madvise(ctypes.c_void_p(whole), ctypes.c_size_t(HUGE_PAGES - mmap.PAGESIZE), mmap.MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(start))
