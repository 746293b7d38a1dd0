"""What a GPU step is forecast for, and settings without an experiment file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from octavo.configuration import read_section
from octavo.errors import OctavoError, no_such
from octavo.experiment.cluster import Device
from octavo.experiment.config import Checkpoints, Evaluation, Optimizer, Parallelism, Training
from octavo.forecast.calibration import Kind
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision


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
    and tokens to other nodes are sent once (the flex dispatcher)."""
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
        dispatcher="flex",
    )
