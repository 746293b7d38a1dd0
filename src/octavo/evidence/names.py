"""What people call an architecture, a precision and a cell: the same words in verdicts, tables and figures."""

from __future__ import annotations

ARCHITECTURES = {"dense": "Dense", "moe": "MoE"}
PRECISIONS = {
    "bf16": "BF16",
    "fp8_delayed": "FP8 delayed",
    "fp8_tensorwise": "FP8 tensorwise",
    "fp8_blockwise": "FP8 blockwise",
    "fp8_mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
}


def cell_label(architecture: str, precision: str, ablation: str | None = None, *, emulated: bool = False) -> str:
    """`MoE FP8 blockwise (emulated), no shared expert`."""
    name = f"{ARCHITECTURES.get(architecture, architecture)} {PRECISIONS.get(precision, precision)}"
    name += " (emulated)" if emulated else ""
    return f"{name}, {words(ablation)}" if ablation else name


def words(name: str) -> str:
    """`no_shared_expert` -> `no shared expert`."""
    return name.replace("_", " ")


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
