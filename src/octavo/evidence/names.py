"""What people call an architecture, a precision and a cell: the same words in verdicts, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping

ARCHITECTURES = {"dense": "Dense", "moe": "MoE"}
PRECISIONS = {
    "bf16": "BF16",
    "fp8_delayed": "FP8 delayed",
    "fp8_tensorwise": "FP8 tensorwise",
    "fp8_blockwise": "FP8 blockwise",
    "fp8_mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
}


def family_of(architecture: str) -> str:
    """`moe_560k`, of a ladder -> `moe`; any other name as it is."""
    family = architecture.partition("_")[0]
    return family if family in ARCHITECTURES else architecture


def architecture_name(architecture: str) -> str:
    """`moe` -> `MoE`; `moe_560k`, of a ladder -> `MoE 560k`; any other name as it is."""
    family = family_of(architecture)
    name = ARCHITECTURES.get(family, family)
    return f"{name} {architecture.removeprefix(family + '_')}" if family != architecture else name


def cell_label(architecture: str, precision: str, ablation: str | None = None, *, emulated: bool = False) -> str:
    """`MoE FP8 blockwise (emulated), no shared expert`."""
    name = f"{architecture_name(architecture)} {PRECISIONS.get(precision, precision)}"
    name += " (emulated)" if emulated else ""
    return f"{name}, {words(ablation)}" if ablation else name


def words(name: str) -> str:
    """`no_shared_expert` -> `no shared expert`."""
    return name.replace("_", " ")


def ends(values: Mapping[str, float]) -> tuple[str, str]:
    """The names of the least and of the largest of some values."""
    return min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
