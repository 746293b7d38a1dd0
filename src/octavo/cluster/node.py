"""What one device's task finds on its node: the node's side of `octavo doctor --probe` (`octavo.cluster.probe`).

It is started like a rank of a run, in the same container or Python, so that what it sees is what a run will see. Every
check asks the real thing, and one that fails keeps no other from being made. Speeds are those of products of matrices
and of an all-reduce over all of the probe's devices, a few seconds each. ECC errors and throttling are NVML's
(nvmlDeviceGetTotalEccErrors, nvmlDeviceGetCurrentClocksEventReasons, of the NVML API reference).
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from octavo.experiment.cluster import Cluster, Device
from octavo.files import write_json
from octavo.records import DeviceProbe, DeviceState, NodeFinding
from octavo.training.launch import Process, find_process

FREE_GIB = 5
CLOCK_SECONDS = 5.0
MEETING_SECONDS = 120
GEMM_SECONDS = 2.0
GEMM_SIZE = {"cuda": 8192, "cpu": 512}
REDUCED_BYTES = {"cuda": 256 << 20, "cpu": 4 << 20}
REDUCTIONS = 10
THROTTLED = {0x08: "hardware slow-down", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""Bits of NVML's clocks event reasons that no healthy node shows under load."""


def probe_here(cluster: Cluster, device: Device, folder: Path, devices: int) -> None:
    """Look at this task's node and device; what was found is written into `folder`, a file for each task."""
    process = find_process(devices) or Process(0, 1, 0)
    findings: list[NodeFinding] = []
    speeds: dict[str, float | None] = {"gemm_tflops": None, "allreduce_gb_per_second": None}
    if process.local_rank == 0:
        findings += _folders(folder, cluster)
        findings += _meeting(process, cluster)
    try:
        for one in _torch(device, process, speeds):  # one by one: what was found before an error stays
            findings.append(one)
    except Exception as error:  # whatever a broken driver or library raises is what was found
        findings.append(_broken("torch", error))
    record = DeviceProbe(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        rank=process.rank,
        python=platform.python_version(),
        image_digest=os.environ.get("OCTAVO_IMAGE_DIGEST"),
        findings=findings,
        gemm_tflops=speeds["gemm_tflops"],
        allreduce_gb_per_second=speeds["allreduce_gb_per_second"],
    )
    write_json(folder / f"rank-{process.rank}.json", record.model_dump(mode="json"))


def _broken(what: str, error: Exception) -> NodeFinding:
    return NodeFinding(what=what, found=first_line(error))


def first_line(error: Exception) -> str:
    """An error of any library, its kind before what it says first."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _folders(folder: Path, cluster: Cluster) -> Iterator[NodeFinding]:
    """Write access, free space, and the clock against the file system's."""
    slurm = cluster.slurm
    for place in (folder, Path("/tmp"), *([Path(slurm.scratch)] if slurm and slurm.scratch else [])):
        try:
            with tempfile.NamedTemporaryFile(dir=place) as file:
                file.write(b"x" * 4096)
                file.flush()
                apart = Path(file.name).stat().st_mtime - time.time()
        except OSError as error:
            yield NodeFinding(what=f"write access to {place}", found=f"{error.strerror}")
            continue
        if (free := shutil.disk_usage(place).free / 2**30) < FREE_GIB:
            yield NodeFinding(
                what=f"space in {place}", found=f"{free:.1f} GiB free, {FREE_GIB} are comfortable", warns=True
            )
        if place == folder and abs(apart) > CLOCK_SECONDS:
            yield NodeFinding(what="clock", found=f"{apart:+.0f} s from that of the file system")


def _meeting(process: Process, cluster: Cluster) -> Iterator[NodeFinding]:
    """Whether ranks find the first node by its name, and what they meet over."""
    try:
        socket.getaddrinfo(process.address, None)
    except OSError as error:
        yield NodeFinding(what=f"host name {process.address}", found=f"is not resolved: {error.strerror}")
    if cluster.cuda and cluster.nodes > 1 and not Path("/dev/infiniband").exists():
        found = "is not there: NCCL goes over TCP, if it is not told NCCL_NET: IB"
        yield NodeFinding(what="/dev/infiniband", found=found, warns=True)


def _torch(device: Device, process: Process, speeds: dict[str, float | None]) -> Iterator[NodeFinding]:
    import torch

    place = "cuda" if device.kind == "gpu" else "cpu"
    if place == "cuda":
        if torch.version.cuda is None:
            fix = "make setup GPU=1, or name a container in the cluster file"
            yield NodeFinding(what="torch", found=f"{torch.__version__} is a build for CPUs: {fix}")
            return
        if not torch.cuda.is_available():
            yield NodeFinding(
                what="GPU", found=f"torch {torch.__version__} sees none: is the driver there? (nvidia-smi)"
            )
            return
        torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
        found = f"{torch.cuda.get_device_capability()[0]}.{torch.cuda.get_device_capability()[1]}"
        if device.compute_capability not in (None, found):
            yield NodeFinding(
                what="GPU",
                found=f"{torch.cuda.get_device_name()} has compute capability {found}, "
                f"and {device.name} {device.compute_capability}",
            )
        place = where_computed(torch)
    speeds["gemm_tflops"] = _gemm(torch, place)
    if place == "cuda":
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        try:
            yield from _nvml(uuid)
        except Exception as error:  # without NVML, too, a GPU can train
            yield NodeFinding(what=f"GPU {uuid}", found=f"NVML does not say how it is: {error}", warns=True)
    if process.port:
        try:
            speeds["allreduce_gb_per_second"] = _allreduce(torch, place, process)
        except Exception as error:
            yield _broken("all-reduce", error)


def where_computed(torch: Any) -> str:
    """Where what is asked for on the GPU is: `cpu` says that something stands in for the GPU."""
    return torch.empty(1, device="cuda").device.type


def _gemm(torch: Any, place: str) -> float:
    """TFLOPS of products of square matrices: 2 n^3 each."""
    size = GEMM_SIZE[place]
    a = torch.ones((size, size), device=place, dtype=torch.bfloat16 if place == "cuda" else torch.float32)
    torch.matmul(a, a)
    best, end = float("inf"), time.monotonic() + GEMM_SECONDS
    while time.monotonic() < end:  # the best of many: what else runs for a moment is not the node's speed
        begin = time.perf_counter()
        for _ in range(10):
            torch.matmul(a, a)
        if place == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / 10)
    return 2 * size**3 / best / 1e12


def _allreduce(torch: Any, place: str, process: Process) -> float:
    """GB of 10^9 bytes that each device reduces in a second, over all devices."""
    torch.distributed.init_process_group(
        "nccl" if place == "cuda" else "gloo",
        init_method=f"tcp://{process.address}:{process.port}",
        rank=process.rank,
        world_size=process.world_size,
        timeout=timedelta(seconds=MEETING_SECONDS),
    )
    values = torch.ones(REDUCED_BYTES[place] // 4, device=place)
    torch.distributed.all_reduce(values)
    torch.distributed.barrier()
    best = float("inf")
    for _ in range(REDUCTIONS):
        begin = time.perf_counter()
        torch.distributed.all_reduce(values)
        if place == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    torch.distributed.destroy_process_group()
    return REDUCED_BYTES[place] / best / 1e9


def device_state(device: str) -> DeviceState:
    """How NVML finds the GPU with this UUID now. Raises what NVML raises where it is not there, or no such GPU is."""
    import pynvml  # type: ignore[import-not-found]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{device}")
    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    try:
        errors = pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    except pynvml.NVMLError:  # not supported, or switched off
        errors = None
    return DeviceState(
        uncorrected_ecc_errors=errors,
        slowed=[name for bit, name in THROTTLED.items() if reasons & bit],
        clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        maximum_clock_mhz=pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
    )


def of_nvml(finding: NodeFinding) -> bool:
    """Whether it says how NVML finds a GPU, which is named by its UUID then."""
    return finding.what.startswith("GPU ")


def _nvml(device: str) -> Iterator[NodeFinding]:
    """ECC errors since the driver was loaded, and what slows the clocks right after work."""
    state = device_state(device)
    if state.slowed:
        yield NodeFinding(what=f"GPU {device}", found=f"its clocks are slowed: {', '.join(state.slowed)}", warns=True)
    if state.uncorrected_ecc_errors is None:
        yield NodeFinding(what=f"GPU {device}", found="its memory errors are not counted (ECC)", warns=True)
    elif state.uncorrected_ecc_errors:
        yield NodeFinding(what=f"GPU {device}", found=f"{state.uncorrected_ecc_errors} uncorrected ECC errors")
