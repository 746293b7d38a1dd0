"""A run starts on the devices that its cluster file names, and on no others."""

from __future__ import annotations

import pytest

pytest.importorskip("megatron.core")

from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import RunConfig
from octavo.precision.config import Precision
from octavo.training.requirements import (
    Gpu,
    attention_warning,
    check_device,
    check_dispatcher,
    scales_environment,
)

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0")


def run(cluster: str, recipe: str = "bf16", *, emulate: bool = False) -> RunConfig:
    precision = Precision(recipe=recipe, emulate=emulate)  # type: ignore[arg-type]
    own = load_experiment("quickstart").run("dense-bf16", 1)
    return own.model_copy(update={"cluster": cluster, "precision": precision})


@pytest.mark.parametrize(
    ("cluster", "recipe", "gpu"),
    [
        ("laptop", "fp8_mxfp8", None),
        ("h100-node", "fp8_blockwise", H100),
        ("h100-node", "bf16", Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.1")),  # newer than the file says
    ],
)
def test_the_device_that_the_run_is_for(cluster: str, recipe: str, gpu: Gpu | None) -> None:
    check_device(run(cluster, recipe), gpu)


@pytest.mark.parametrize(
    ("cluster", "recipe", "gpu", "message"),
    [
        ("laptop", "bf16", H100, "CUDA shows this process NVIDIA H100"),
        ("h100-node", "bf16", None, "no GPU that CUDA can use"),
        ("b200-node", "bf16", H100, r"NVIDIA H100 80GB HBM3, of compute capability 9\.0"),
        ("h100-node", "bf16", Gpu("NVIDIA H100 80GB HBM3", "9.0", "12.8"), r"CUDA 12\.8 here, .* says 13\.0"),
        ("h100-node", "fp8_mxfp8", H100, "does not have recipe fp8_mxfp8"),
    ],
)
def test_other_devices_are_refused(cluster: str, recipe: str, gpu: Gpu | None, message: str) -> None:
    """A cluster of CPUs too: on a GPU its run would be built of Transformer Engine's layers, not of the emulation."""
    with pytest.raises(OctavoError, match=message) as caught:
        check_device(run(cluster, recipe), gpu)
    assert caught.value.where == f"cluster {cluster} of experiment quickstart"


def test_a_gpu_emulates_what_it_lacks() -> None:
    check_device(run("h100-node", "fp8_mxfp8", emulate=True), H100)


def test_attention_that_is_not_fused_is_told_of_at_the_start() -> None:
    """cuDNN 9.18.0 is 91800 in torch's words; without CUDA there is none to look at."""
    assert attention_warning(run("b200-node"), 92400) is None
    assert attention_warning(run("b200-node"), None) is None
    old, ada = attention_warning(run("b200-node"), 91800), attention_warning(run("l40s-node"), 92400)
    assert old is not None
    assert old.startswith(
        "warning: dense-bf16: Transformer Engine has no fused attention in deterministic mode with cu"
    )
    assert ada is not None
    assert "on L40S (compute capability 8.9)" in ada
    assert attention_warning(run("laptop"), None) is None


@pytest.mark.parametrize(("dispatcher", "branch"), [("deepep", "main"), ("hybridep", "hybrid-ep")])
def test_a_dispatcher_whose_package_is_not_there_is_refused(dispatcher: str, branch: str) -> None:
    """It is not in the lock. An experiment's dense models have no dispatcher."""
    dense, moe = (load_experiment("quickstart").run(cell, 1) for cell in ("dense-bf16", "moe-bf16"))
    layout = dense.parallelism.model_copy(update={"dispatcher": dispatcher})
    check_dispatcher(moe)
    check_dispatcher(dense.model_copy(update={"parallelism": layout}))
    with pytest.raises(OctavoError, match=f"the dispatcher {dispatcher} needs the package deep_ep") as caught:
        check_dispatcher(moe.model_copy(update={"parallelism": layout}))
    assert str(caught.value.expected).endswith(f"branch {branch}")


@pytest.mark.parametrize(
    ("cluster", "recipe", "scales", "variable"),
    [
        ("h100-node", "fp8_blockwise", "fp32", "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"),
        ("h100-node", "fp8_tensorwise", "power_of_two", "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES"),
        ("h100-node", "fp8_blockwise", None, None),
        ("laptop", "fp8_blockwise", "fp32", None),
    ],
)
def test_other_scales_are_asked_of_transformer_engine_by_its_variable(
    cluster: str, recipe: str, scales: str | None, variable: str | None
) -> None:
    """Its recipes read them when they are imported (transformer_engine/common/recipe, v2.20)."""
    other = run(cluster, recipe)
    other = other.model_copy(update={"precision": other.precision.model_copy(update={"scales": scales})})
    assert scales_environment(other) == ({variable: "1"} if variable else {})
