"""What processor this machine has, as far as it decides how numbers are computed and how fast; without torch."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
"""Instruction sets by which torch and its libraries choose kernels."""


def processor() -> dict[str, str | int | float | None]:
    """Its name, its family, model and stepping, and which of CPU_FLAGS it has; null where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"cpu_model": platform.processor() or None, "cpu_flags": None}
    rows = [line.partition(":")[::2] for line in text.split("\n\n")[0].splitlines()]
    values = {key.strip(): value.strip() for key, value in rows}
    flags = set(values.get("flags", values.get("Features", "")).split())
    identity = [values[key] for key in ("cpu family", "model", "stepping") if key in values]
    return {
        "cpu_model": values.get("model name"),
        "cpu_family_model_stepping": "/".join(identity) or None,
        "cpu_flags": " ".join(flag for flag in CPU_FLAGS if flag in flags),
    }
