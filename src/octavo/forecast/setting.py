"""What a GPU step is forecast for, and settings without an experiment file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from octavo.configuration import read_section
from octavo.errors import OctavoError, no_such
from octavo.experiment.cluster import Device
from octavo.experiment.config import Checkpoints, Evaluation, Optimizer, Parallelism, Recomputed, Training
from octavo.forecast.calibration import Kind
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision, RecipeName

DEVICES_PER_NODE = 8
"""Of HGX and DGX systems, whose NVLink ends at the node."""


RELEASES = ("25.05.05", "25.11", "26.02", "26.02.01", "26.04", "26.04.01", "26.06", "26.06.01", "26.08")
"""NVIDIA's releases of NeMo and Megatron-Bridge that published rows are of, the oldest first."""
RELEASE = "26.04.01"
"""The one that a forecast is for if none is named: the newest whose rows are all without whole steps as CUDA graphs, as
Octavo's own runs are."""
EARLY = "26.02"
"""The newest release in which mixtures of experts were still launched and sorted as at first."""
GRAPHS_FROM = "26.06"
"""The first release whose recipes have whole steps of mixtures in MXFP8 as CUDA graphs."""


@dataclass(frozen=True)
class Software:
    """What of the training program, beside the layout, decides a step's time and memory."""

    release: str = RELEASE
    """One of RELEASES."""
    graphs: bool = False
    """Whole steps are CUDA graphs, which the host launches at once, with fused products of experts."""
    sharded: bool = False
    """Parameters and gradients too are shared out over data-parallel ranks (FSDP, arXiv 2304.11277)."""
    gathers_ahead: bool = True
    """The distributed optimizer's parameters are gathered beside the next forward pass (Megatron-Core's
    `overlap_param_gather`), as in NVIDIA's recipes; otherwise all devices wait for them."""
    gradient_bytes: int = 4
    """Of a gradient, as it is summed over micro-batches and devices."""
    recompute: frozenset[Recomputed] = frozenset()
    """What the backward pass computes again."""
    offloaded: float = 0.0
    """Share of the activations that is kept in the host's memory."""
    deterministic: bool = False
    """Sums in a fixed order: attention's backward pass and the tokens' way back from experts take longer."""

    @classmethod
    def of(cls, training: Training) -> Software:
        """That of Octavo's own runs."""
        recompute = frozenset(training.recompute)
        return cls(gathers_ahead=False, recompute=recompute, deterministic=training.deterministic)

    @property
    def early(self) -> bool:
        """Whether the release is EARLY or older."""
        return RELEASES.index(self.release) <= RELEASES.index(EARLY)


@dataclass(frozen=True)
class Setting:
    """What a step is forecast for."""

    model: Architecture
    training: Training
    layout: Parallelism
    precision: Precision
    device: Device
    link_domain: int
    """Devices that reach one another over the fast link."""
    software: Software = Software()
    """What the program does besides the layout."""

    @property
    def kind(self) -> Kind:
        """Which of the left-out errors is its own."""
        return "experts" if self.model.experts else "dense"

    @property
    def tokens(self) -> float:
        """Of one micro-batch on one device."""
        return self.training.micro_batch_size * self.training.sequence_length / self.layout.context

    @property
    def micro_batches(self) -> int:
        """Per step and replica."""
        return self.training.global_batch_size // (self.training.micro_batch_size * self.layout.data)

    @property
    def sequence_split(self) -> int:
        """Ranks over which norms and residuals are split."""
        return self.layout.tensor if self.layout.sequence else 1


def has_graphs(release: str, model: Architecture, recipe: RecipeName, device: Device, devices: int) -> bool:
    """Whether NVIDIA's recipe of a release runs whole steps as CUDA graphs: from GRAPHS_FROM on mixtures in MXFP8 where
    NVLink spans nodes or the job is one node (src/megatron/bridge/perf_recipes of Megatron-Bridge v0.6.0)."""
    late = RELEASES.index(release) >= RELEASES.index(GRAPHS_FROM)
    near = device.link_domain > DEVICES_PER_NODE or devices <= device.link_domain
    return late and near and model.experts is not None and recipe == "fp8_mxfp8"


@cache
def read_device(name: str) -> Device:
    """A device of configs/clusters/devices by file name."""
    folder = configs().clusters / "devices"
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise no_such("device", name, sorted(other.stem for other in folder.glob("*.yaml")), where=folder)
    return read_section(path, Device)


def plain_training(global_batch: int, micro_batch: int, sequence_length: int) -> Training:
    """A training section of which only the batch matters, with the distributed optimizer."""
    return Training(
        steps=1,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        sequence_length=sequence_length,
        optimizer=Optimizer(learning_rate=1e-4, distributed=True),
        evaluation=Evaluation(interval=1, sequences=1, final_sequences=1),
        checkpoints=Checkpoints(interval=1),
    )


def plain_layout(devices: int, tensor: int, pipeline: int, context: int, virtual: int, expert: int) -> Parallelism:
    """A layout of so many devices as the published rows have it: sequence parallelism goes with tensor parallelism,
    and tokens to other nodes are sent once (DeepEP, HybridEP)."""
    inner = tensor * pipeline * context
    if devices % inner:
        raise OctavoError(
            f"the layout does not divide the devices: {devices} devices, tensor {tensor} x pipeline {pipeline} x "
            f"context {context} = {inner}",
            where="--n-gpus",
            expected=f"a multiple of {inner}",
        )
    data = devices // inner
    if data * context * tensor % expert:
        raise OctavoError(
            f"expert parallelism {expert} does not divide data {data} x context {context} x tensor {tensor} = "
            f"{data * context * tensor}",
            where="--ep",
            expected=f"a divisor of {data * context * tensor}",
        )
    return Parallelism(
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual,
        context=context,
        expert=expert,
        data=data,
        sequence=tensor > 1,
        dispatcher="deepep",
    )
