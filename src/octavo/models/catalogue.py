"""The architecture files in `configs/models`, read and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.configuration import parse_section, read_yaml
from octavo.errors import no_such
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.models.flops import flops_per_token
from octavo.models.parameters import ParameterCount, count_parameters

SCHEMA_VERSION = 1

ASSUMED_VOCABULARY = 2048
"""For models that take their experiment's tokenizer: the vocabulary that this project's small experiments use."""


def read_architecture(name: str) -> Architecture:
    """A model of `configs/models` by name. A model without a vocabulary of its own has none here either."""
    path = configs().models / f"{name}.yaml"
    if not path.exists():
        raise no_such("model", name, model_names(), where=path.parent)
    return _read(path)


def model_names() -> list[str]:
    """The models there are, sorted."""
    return sorted(path.stem for path in configs().models.glob("*.yaml"))


def catalogue(sequence_length: int) -> list[dict[str, Any]]:
    """One record per model, for `octavo models --json`; keys are only ever added to.

    `active_parameters` count the embeddings that the model's own paper counts (`active_counts`: all, head or none;
    models of this project count the output head); `flops_per_token` are model FLOPs of training, multi-token
    prediction included where the model has it.
    """
    return [_record(read_architecture(name), sequence_length) for name in model_names()]


def active_as_published(architecture: Architecture, count: ParameterCount) -> int:
    """Active parameters with those embeddings that the model's paper counts; the output head where there is none."""
    counted = architecture.published.active_counts if architecture.published else "head"
    return {"all": count.active, "head": count.active_in_products, "none": count.active_without_embeddings}[counted]


def with_vocabulary(architecture: Architecture) -> Architecture:
    """The same with ASSUMED_VOCABULARY where it has none of its own."""
    if architecture.vocabulary_size is not None:
        return architecture
    return architecture.model_copy(update={"vocabulary_size": ASSUMED_VOCABULARY})


def _read(path: Path) -> Architecture:
    return parse_section({"name": path.stem, **read_yaml(path)}, Architecture, path)


def _record(architecture: Architecture, sequence_length: int) -> dict[str, Any]:
    own_vocabulary = architecture.vocabulary_size is not None
    architecture = with_vocabulary(architecture)
    count = count_parameters(architecture)
    assumed = "" if own_vocabulary else f" (vocabulary: the tokenizer's; {ASSUMED_VOCABULARY:,} assumed)"
    return {
        "schema_version": SCHEMA_VERSION,
        "name": architecture.name,
        "total_parameters": count.total,
        "active_parameters": active_as_published(architecture, count),
        "active_counts": architecture.published.active_counts if architecture.published else "head",
        "total_parameters_without_embeddings": count.total_without_embeddings,
        "active_parameters_without_embeddings": count.active_without_embeddings,
        "multi_token_prediction_parameters": count.multi_token_prediction,
        "flops_per_token": flops_per_token(architecture, sequence_length),
        "sequence_length": sequence_length,
        "source": architecture.source + assumed,
    }
