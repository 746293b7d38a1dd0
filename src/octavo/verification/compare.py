"""Two runs that should be one: the first step at which they differ, in what, and what differs around them.

Compared are the numbers that a run is a function of: losses, gradient norms, learning rates, routing, FP8 statistics,
validation. Left out are times, speeds and memory. JSON writes a float in the fewest digits that read back as the same
float (IEEE 754 binary64), so equal text is equal bits, the sign of zero included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError
from octavo.layout import RunFolder
from octavo.records import Provenance, read_metrics, read_record

COMPARED = (
    "loss", "aux_loss", "multi_token_prediction_loss", "grad_norm", "learning_rate", "expert_load", "fp8_underflow",
    "fp8_overflow", "fp8_amax", "fp8_product_error", "validation_loss", "validation_bits_per_byte",
    "validation_loss_by_domain", "final_validation_loss", "final_validation_bits_per_byte",
    "final_validation_loss_by_domain",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Where two runs part."""

    step: int
    fields: list[str]


def counted_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was logged of it, from the lines that count."""
    steps: dict[int, dict[str, Any]] = {}
    for line in read_metrics(path).values():
        values = line.model_dump(mode="json", include=set(COMPARED), exclude_none=True)
        steps.setdefault(line.step, {}).update(values)
    return steps


def first_difference(
    original: dict[int, dict[str, Any]], again: dict[int, dict[str, Any]], until: int | None = None
) -> Difference | None:
    """The first step, up to `until`, that differs in a bit or is missing in one of them."""
    for step in sorted(original.keys() | again.keys()):
        if until is not None and step > until:
            break
        left, right = original.get(step, {}), again.get(step, {})
        fields = [name for name in COMPARED if json.dumps(left.get(name)) != json.dumps(right.get(name))]
        if fields:
            return Difference(step, fields)
    return None


def environment_differences(original: Path, again: Path) -> list[str]:
    """What differs between the environments of two runs, as far as it may change numbers: `packages.torch`, ...

    The commit is not part of it: code that gives other numbers is what verification is to find.
    """
    made_by = "octavo train"
    left = environment(read_record(original, Provenance, made_by=made_by))
    right = environment(read_record(again, Provenance, made_by=made_by))
    return [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]


def environment(found: Provenance) -> dict[str, Any]:
    """What may change numbers, flat."""
    nested = found.model_dump(
        mode="json", include={"packages", "hardware", "environment", "python", "image_digest", "threads"}
    )
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    for name in ("hardware.memory_gib", "hardware.cores"):  # a run takes what its configuration says, not what is there
        flat.pop(name, None)
    return flat


def different_tensors(original: RunFolder, again: RunFolder) -> list[str]:
    """The tensors that differ in the newest checkpoint that both have; empty where they have none in common."""
    steps = [{path.name for path in folder.checkpoints.glob("step-*")} for folder in (original, again)]
    shared = sorted(steps[0] & steps[1], key=lambda name: int(name.removeprefix("step-")))
    if not shared:
        return []
    left, right = (_tensors(folder.checkpoints / shared[-1]) for folder in (original, again))
    import torch

    def same(name: str) -> bool:
        return (
            name in left
            and name in right
            and left[name].dtype == right[name].dtype
            and left[name].shape == right[name].shape
            and torch.equal(left[name].contiguous().view(-1).view(torch.uint8),
                            right[name].contiguous().view(-1).view(torch.uint8))
        )  # fmt: skip

    return [name for name in sorted(left.keys() | right.keys()) if not same(name)]


def _tensors(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint by name; OctavoError where it cannot be read without executing what it holds."""
    import torch
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from octavo.training.plain_reading import PlainReader

    try:
        reader = PlainReader(checkpoint)
        tensors = {
            name: torch.empty(one.size, dtype=one.properties.dtype)
            for name, one in reader.index.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # a rotten pickle raises anything
        lines = str(error).strip().splitlines()
        reason = lines[-1] if lines else type(error).__name__
        raise OctavoError(f"the checkpoint cannot be read: {reason}", where=checkpoint) from error
    return tensors
