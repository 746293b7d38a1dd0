"""What a first step on GPUs must have computed. Whole steps are seen in test_gpu_branch.py; here are the counts."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.precision.config import Precision
from octavo.records import StepProof
from octavo.training import step_proof
from octavo.training.step_proof import check_step


def proof(forward: int) -> StepProof:
    """Of 3 layers in `fp8_mxfp8` (every 32 elements share a scale) and 4 micro-batches: 12 of each product."""
    products: Any = {
        "forward": {"weight e4m3 1x32, input e4m3 1x32": forward},
        "input_gradient": {"weight e4m3 1x32, gradient e4m3 1x32": 12},
        "weight_gradient": {"input e4m3 1x32, gradient e4m3 1x32": 12},
    }
    return StepProof(
        products=products, attention="none", fused_weight_gradients=3, fused_permutations=0, dispatchers=[]
    )


@pytest.mark.parametrize(
    ("forward", "recomputes", "passes"),
    # the backward pass may make some forward products again, or all: 12 to 24
    [(12, False, True), (18, False, False), (12, True, True), (18, True, True), (24, True, True), (25, True, False),
     (11, True, False)],
)  # fmt: skip
def test_forward_products_are_there_twice_at_most_and_only_where_they_are_recomputed(
    forward: int, recomputes: bool, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_proof, "quantised_linears", lambda *_: [None] * 3)
    models: Any = [None]
    if passes:
        check_step(proof(forward), models, Precision(recipe="fp8_mxfp8"), 4, recomputes=recomputes)
        return
    with pytest.raises(OctavoError, match="the first step's forward products of fp8_mxfp8 were") as caught:
        check_step(proof(forward), models, Precision(recipe="fp8_mxfp8"), 4, recomputes=recomputes)
    assert ("forward products up to twice" in str(caught.value)) == recomputes
