"""What made a run, as far as it may change its numbers: versions, hardware, threads, commit, and a few variables.

Of the environment only an allow-list is recorded: the rest may hold secrets, and does not change a number.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import octavo
from octavo.cpu.processor import processor
from octavo.errors import OctavoError
from octavo.files import read_json, sha256
from octavo.layout import image_file, repository
from octavo.records import LayoutSince, Provenance

ALLOWED_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "DNNL_MAX_CPU_ISA",
    "KMP_AFFINITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
    "NVTE_FLASH_ATTN",
    "NVTE_FUSED_ATTN",
    "NVTE_GROUPED_LINEAR_USE_FUSED_GROUPED_GEMM",
    "NVTE_NORM_BWD_USE_CUDNN",
    "NVTE_NORM_FWD_USE_CUDNN",
    "NVTE_UNFUSED_FP8_UPDATE",
    "NVTE_USE_CUTLASS_GROUPED_GEMM",
    "NVTE_USE_FAST_MATH",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "PYTHONHASHSEED",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables that choose kernels or the order of sums. NVTE_UNFUSED_ATTN is not among them: Megatron-Core
sets it to 1 itself, and stops where it is anything else."""

PACKAGES = (
    "flash-attn",
    "megatron-core",
    "numpy",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "nvidia-nccl-cu13",
    "octavo",
    "tokenizers",
    "torch",
    "transformer-engine",
    "triton",
)
"""Packages whose versions change numbers."""


def collect(
    *,
    threads: int,
    data_manifest_sha256: str,
    precision_built: dict[str, int],
    emulated: bool,
    deterministic: bool,
    layouts: list[LayoutSince],
) -> Provenance:
    """The provenance of the run that this process trains."""
    commit, dirty = checkout_commit()
    image, packages = os.environ.get("OCTAVO_IMAGE_DIGEST"), _versions()
    return Provenance(
        octavo_version=octavo.__version__,
        git_commit=commit,
        git_dirty=dirty,
        image_digest=image,
        python=platform.python_version(),
        packages=packages,
        lock_sha256=lock_sha256(image, packages),
        hardware=hardware(),
        threads=threads,
        environment={name: os.environ[name] for name in ALLOWED_ENVIRONMENT if name in os.environ},
        data_manifest_sha256=data_manifest_sha256,
        precision_built=precision_built,
        emulated=emulated,
        deterministic=deterministic,
        layouts=layouts,
    )


def hardware() -> dict[str, str | int | float | None]:
    """The processor, its memory, and the GPU where there is one."""
    import torch

    from octavo.cpu import library

    compiled = "torch" if library.COMPILED is None else "compiled"
    described: dict[str, str | int | float | None] = {
        **processor(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "loops": compiled,
        "products": compiled,
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        described |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return described


def _driver() -> str | None:
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no NVML is no reason not to train
        return None


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def lock_sha256(image: str | None, packages: dict[str, str]) -> str | None:
    """SHA-256 of the lock that this process's packages were installed from; None where that is not known.

    In an image (its digest is given) it is the one that the image's record names. Elsewhere it is the one that `make
    setup` installs, with GPU=1 or without: not, though, where it names no or another version of one of `packages`.
    """
    try:
        root = repository()
        if image:
            return _lock_of_image(root, image)
        found = (_lock_of(packages, root / name) for name in ("requirements.lock", "requirements-gpu.lock"))
        return next((lock for lock in found if lock), None)
    except (OctavoError, OSError):
        return None


def _lock_of_image(root: Path, digest: str) -> str | None:
    """That which the record of the image with this digest names; None where no record here is of it."""
    records = (read_json(path, made_by="octavo image") for path in (root / image_file("")).parent.glob("*.json"))
    return next((record["lock_sha256"] for record in records if record["digest"] == digest), None)


def _lock_of(packages: dict[str, str], lock: Path) -> str | None:
    if not lock.exists():
        return None
    locked = set(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    installed = {(name, version.partition("+")[0]) for name, version in packages.items() if name != "octavo"}
    return sha256(lock) if installed <= locked else None


def checkout_commit() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether tracked files differ from it; None, None outside a checkout."""
    if named := os.environ.get("OCTAVO_COMMIT"):  # in a container there is no git: whoever started it says
        commit, _, state = named.partition(" ")
        return commit, state == "dirty"
    try:
        folder = repository()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OctavoError, OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(changes.stdout.strip())


def commit_as_named() -> str:
    """What OCTAVO_COMMIT says to a process that finds no git: the checkout's commit, and whether files differ."""
    commit, dirty = checkout_commit()
    return f"{commit or ''}{' dirty' if dirty else ''}"
