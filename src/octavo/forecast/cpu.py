"""Time of a training step on a CPU: this machine's measured steps where there are any, else the shipped table.

A step's work is counted (`octavo.forecast.work`): FLOPs, values copied to experts, experts' scores, products summed in
fewer bits. What each costs, and what a token costs whatever is done with it, follows from steps of small models that
were timed, as many as there are costs: non-negative least squares of the seconds per token, relative to them. With as
many models as costs it goes through all of them; beyond them it goes on along the same plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from octavo.cpu.processor import processor
from octavo.experiment.cluster import Cluster, Device
from octavo.forecast.calibration import CpuStep, Kind, cpu_calibration
from octavo.forecast.machine import MADE_BY, measured_speed
from octavo.forecast.work import Work
from octavo.precision.config import RecipeName
from octavo.records import MachineSpeed, TimedStep

SAME_MACHINE = math.log(1.3)
"""Half of the interval's width in ln(tokens/s) on a measured machine: a judgement. Runs of one configuration on one
kind of shared machine took up to 1.37 times as long on one day as on another."""
OUTSIDE = 2.0
"""Work this many times that of all that was measured, or FLOPs as many times below, make the interval WIDER."""
WIDER = 1.5
"""A judgement."""
MULTIPLIES_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors with products of BF16 numbers."""


@dataclass(frozen=True)
class CpuSpeed:
    """What one core takes."""

    costs: dict[tuple[Kind, str], np.ndarray]
    """Kind of model and recipe -> seconds of a token by itself, and of one of each count of Work."""
    most: dict[Kind, Work]
    """The most of each count that was timed."""
    least_flops: dict[Kind, float]
    half_width: float
    """Of the interval, in ln(tokens/s)."""
    notes: tuple[str, ...]
    measured: bool
    """Whether it rests on this machine, which no configuration names."""

    def seconds_per_token(self, kind: Kind, recipe: RecipeName, work: Work) -> float:
        """Of a model with so much work. A recipe that was not measured is as slow as the slowest FP8."""
        counts = np.array([1.0, *work])
        own = [costs for (one, name), costs in self.costs.items() if one == kind and name == recipe]
        quantised = [costs for (one, name), costs in self.costs.items() if one == kind and name != "bf16"]
        return max(float(costs @ counts) for costs in own or quantised)

    def half_width_at(self, kind: Kind, work: Work) -> float:
        """The same, wider for work that is far from what was measured."""
        far = any(count > OUTSIDE * most for count, most in zip(work, self.most[kind], strict=True))
        return self.half_width * (WIDER if far or work.flops < self.least_flops[kind] / OUTSIDE else 1)


def cpu_speed(cluster: Cluster, device: Device) -> CpuSpeed:
    """This machine's where runs of the cluster train on it, and it was measured; else the table's."""
    if measured := measured_speed(cluster, device):
        return _of_machine(measured)
    return _of_table(processor()["cpu_flags"] if cluster.slurm is None else None)


def _of_machine(found: MachineSpeed) -> CpuSpeed:
    """The interval is as wide as the steps' own spread, where that is wider: the machine was busy."""
    spread = float(np.median([step.spread for step in found.steps]))
    busy = f" and a load of {found.load:.1f} before" if found.load >= 1 else ""
    return _speed(
        found.steps,
        max(SAME_MACHINE, spread),
        (
            f"this machine's own steps, measured on {found.time.date()} with {found.processes} processes side by "
            f"side{busy} ({MADE_BY} measures again)",
            "the interval is a judgement of how far a shared machine's speed moves"
            if spread <= SAME_MACHINE
            else "the interval is as wide as the measured steps were spread",
        ),
        measured=True,
    )


def _of_table(flags: object) -> CpuSpeed:
    table = cpu_calibration()
    slower = 1.0
    if flags is not None and not MULTIPLIES_BF16 & set(str(flags).split()):
        slower = table.without_bf16
    return _speed(
        table.steps,
        math.log(table.spread),
        (
            f"steps measured on other machines of the processor's kind, with{'' if slower == 1 else 'out'} BF16 "
            f"instructions: this one was not measured ({MADE_BY} takes seconds)",
            "the interval is a judgement of how far machines of a kind differ",
        ),
        measured=flags is not None,
        slower=slower,
    )


def _speed(
    steps: Sequence[TimedStep | CpuStep],
    half_width: float,
    notes: tuple[str, ...],
    *,
    measured: bool,
    slower: float = 1.0,
) -> CpuSpeed:
    """The costs that steps imply, `slower` times as long."""
    timed: dict[tuple[Kind, str], list[tuple[Work, float]]] = {}
    for step in steps:
        timed.setdefault((step.kind, step.recipe), []).append((Work(**step.work), slower * step.seconds_per_token))
    costs = {of: _costs(found) for of, found in timed.items()}
    # short sums are the same loop in every recipe and kind of model: where they were not timed they cost what they cost
    # elsewhere
    short = 1 + Work._fields.index("short_sums")
    dearest = max(own[short] for own in costs.values())
    for own in costs.values():
        own[short] = own[short] or dearest
    works: dict[Kind, list[Work]] = {}
    for (kind, _), found in timed.items():
        works.setdefault(kind, []).extend(work for work, _ in found)
    return CpuSpeed(
        costs=costs,
        most={kind: Work(*map(max, zip(*found, strict=True))) for kind, found in works.items()},
        least_flops={kind: min(work.flops for work in found) for kind, found in works.items()},
        half_width=half_width,
        notes=notes,
        measured=measured,
    )


def _costs(found: list[tuple[Work, float]]) -> np.ndarray:
    """Seconds of a token, and of one of each count."""
    seconds = np.array([one for _, one in found])
    counts = np.array([[1.0, *work] for work, _ in found]) / seconds[:, None]
    scale = counts.max(0, initial=0.0)
    scale[scale == 0] = 1.0  # nothing of it was done: it costs nothing
    return nnls(counts / scale, np.ones(len(seconds)))[0] / scale
