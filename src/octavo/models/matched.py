"""What two models of a pair are matched in: parameters of one kind or another, or FLOPs."""

from __future__ import annotations

from typing import Literal

from octavo.models.architecture import Architecture
from octavo.models.flops import flops_per_token
from octavo.models.parameters import count_parameters

MatchedBy = Literal["active_parameters", "active_parameters_without_embeddings", "total_parameters", "flops_per_token"]


def matched_quantity(architecture: Architecture, by: MatchedBy, sequence_length: int) -> float:
    """What two models of a pair are compared in (`Match.by` of an experiment)."""
    count = count_parameters(architecture)
    if by == "flops_per_token":
        return flops_per_token(architecture, sequence_length)
    return {
        "active_parameters": count.active_in_products,
        "active_parameters_without_embeddings": count.active_without_embeddings,
        "total_parameters": count.total,
    }[by]
