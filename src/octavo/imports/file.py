"""The file that says which runs to import, and which cell each log is.

What it does not say and the logs do not hold stays blank: without `sequence_length` or `tokens_per_step` there are no
tokens, without `flops_per_token` (or a `model` to count) no FLOPs, without `devices` no device-hours, without a
`cluster` no cost. Claims and comparisons that need them are then not testable; nothing is guessed.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from octavo.configuration import Section
from octavo.experiment.config import Name
from octavo.imports.formats import Format
from octavo.precision.config import RecipeName

Count = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, BeforeValidator(lambda key: int(key) if re.fullmatch("[0-9]{1,15}", str(key)) else key)]
"""A key of a mapping, which YAML gives as text."""
Positive = Annotated[int, Field(gt=0, lt=2**53)]
Identifier = Annotated[str, Field(min_length=1, max_length=200)]


class LossesOf(Section):
    """What losses are losses of. Two losses are comparable where all three are the same; null: not stated."""

    tokenizer: Identifier | None = None
    """A name that tells tokenizers apart: `deepseek-v3`, a repository, a hash."""
    data: Identifier | None = None
    """The same for the training text."""
    validation: Identifier | None = None
    """The same for the validation text."""


class ImportedCell(LossesOf):
    """What the logs of a cell's runs do not say."""

    architecture: Name
    """`dense` and `moe`, or other names; claims about mixtures of experts need `experts` or a `model` then."""
    precision: RecipeName
    """The recipe that the runs were trained with."""
    ablation: Name | None = None
    """What this cell changes in the cell of the same architecture and precision."""
    model: str | None = None
    """A file in configs/models, to count parameters, experts and FLOPs with; needs `sequence_length`."""
    experts: Count | None = None
    """Routed experts per layer; 0: a dense model."""
    experts_per_token: Positive | None = None
    """Routed experts per token."""
    expert_size: Positive | None = None
    """SwiGLU width of a routed expert."""
    shared_expert_size: Count | None = None
    """SwiGLU width of the shared experts in total."""
    accumulation: Literal["fp32", "fp14", "promoted"] | None = None
    """How FP8 products were summed."""
    emulated: bool = False
    """FP8 was emulated: its times say nothing about FP8."""
    total_parameters: Positive | None = None
    """All parameters."""
    active_parameters: Positive | None = None
    """Parameters that a token meets."""
    flops_per_token: PositiveFloat | None = None
    """Model FLOPs per trained token, forward and backward."""
    sequence_length: Positive | None = None
    """For logs that count samples, and for `model`."""
    tokens_per_step: Positive | None = None
    """For logs that count neither tokens nor samples."""
    devices: Positive | None = None
    """Devices that a run was trained on."""
    device_kind: str | None = None
    """`cpu`, or the GPU's name."""
    bytes_per_token: PositiveFloat | None = None
    """Mean bytes of the validation text that a token stands for: gives bits per byte, by which other tokens compare."""
    validation_set: Identifier | None = None
    """The validation set to read, of a log with several."""
    runs: Annotated[dict[Seed, str | Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    """Seed -> its log, or its logs in the order they were written; relative to this file."""

    @property
    def name(self) -> str:
        """`moe-fp8_blockwise+no_shared_expert`."""
        return f"{self.architecture}-{self.precision}" + (f"+{self.ablation}" if self.ablation else "")

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.model and self.sequence_length is None:
            raise ValueError("model needs sequence_length, to count FLOPs")
        return self


class ImportFile(LossesOf):
    """Which runs to import. What is said here of their losses holds for each cell that says nothing else."""

    description: str
    """What the runs are, as the report prints it."""
    format: Format
    """The format of the logs."""
    columns: dict[str, str] = {}
    """For `csv`: our name -> the table's."""
    cluster: str | None = None
    """A file in configs/clusters, whose price device-hours are charged at; None: no costs."""
    validation_set: Identifier | None = None
    """The validation set to read, for each cell that says nothing else."""
    cells: Annotated[list[ImportedCell], Field(min_length=1)]
    """The cells, each with its runs' logs."""
