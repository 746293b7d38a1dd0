"""Where deterministic mode takes fused attention away, so that whole score matrices are computed.

Transformer Engine 2.20 decides it (`get_attention_backend`, `fused_attn.cpp`) without a word: training in a fixed order
of sums is fused on compute capability 9.0, and from 10 on with cuDNN 9.18.1; not below 9.0, not on 12.0 (RTX PRO 6000
and the like), and not with learned sinks. (The image has cuDNN 9.24, and no `flash-attn`.)
"""

from __future__ import annotations

from octavo.experiment.cluster import Device
from octavo.experiment.precision_checks import version
from octavo.experiment.run import CellConfig, Experiment
from octavo.models.architecture import GroupedQueryAttention

CUDNN = (9, 18, 1)
"""The oldest with a backward pass in a fixed order from compute capability 10 on, and with any attention on 12.0."""


def fused_in_fixed_order(compute_capability: str) -> bool:
    """Whether attention is fused in deterministic mode on GPUs of a compute capability, with the image's cuDNN."""
    found = version(compute_capability)
    return found >= (9, 0) and found != (12, 0)


def unfused_attention(cell: CellConfig, device: Device, cudnn: tuple[int, ...] = CUDNN) -> str | None:
    """What to tell a user whose cell trains with whole score matrices on a device; None: its attention is fused.

    Emulation on a GPU has layers of its own, and CPUs fuse what they can.
    """
    capability = device.compute_capability
    if device.kind == "cpu" or capability is None or cell.precision.emulate:
        return None
    told = f"{cell.cell}: Transformer Engine has no fused attention"
    costs = "whole score matrices are computed, which take more memory and time than a plan says"
    old = f"with cuDNN {'.'.join(map(str, cudnn))} on {device.name}"
    if version(capability) == (12, 0) and cudnn < CUDNN:
        return f"{told} {old}: {costs}; run in the image"
    if not cell.training.deterministic:
        return None
    if version(capability) >= (10,) and cudnn < CUDNN:
        reason = old
    elif not fused_in_fixed_order(capability):
        reason = f"on {device.name} (compute capability {capability})"
    elif isinstance(cell.model.attention, GroupedQueryAttention) and cell.model.attention.sinks:
        reason = "with learned sinks"
    else:
        return None
    return (
        f"{told} in deterministic mode {reason}: {costs}; training.deterministic: false has it, and gives up equal bits"
    )


def unfused_cells(experiment: Experiment) -> list[str]:
    """`unfused_attention` of an experiment's cells, with the cells that it is true of."""
    told: dict[str, list[str]] = {}
    for cell in experiment.cells.values():
        if cell.trunk is None and (said := unfused_attention(cell, experiment.device)):
            told.setdefault(said.partition(": ")[2], []).append(cell.cell)
    return [f"{', '.join(cells)}: {said}" for said, cells in told.items()]
