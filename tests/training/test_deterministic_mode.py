"""Deterministic mode: what breaks it on GPUs is left out or refused, never overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import RunConfig
from octavo.layout import ConfigFolders
from octavo.training.requirements import connections_environment, deterministic_environment

CONFIGS = ConfigFolders(Path(__file__).resolve().parents[2] / "configs")


@pytest.fixture
def on_gpus() -> RunConfig:
    return load_experiment("h100-node", CONFIGS).run("moe-bf16", 1)


def test_what_is_not_set_is_set(on_gpus: RunConfig) -> None:
    assert deterministic_environment(on_gpus, {}) == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
        "NCCL_ALGO": "Ring",
    }
    assert deterministic_environment(on_gpus, {"NCCL_ALGO": "CollnetChain"})["NCCL_ALGO"] == "CollnetChain"


@pytest.mark.parametrize(
    ("name", "value"),
    [("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"), ("NCCL_ALGO", "NVLS"), ("NCCL_ALGO", "Tree"),
     ("CUBLAS_WORKSPACE_CONFIG", ":0:0")],
)  # fmt: skip
def test_a_variable_that_contradicts_it_is_refused(on_gpus: RunConfig, name: str, value: str) -> None:
    """NCCL's trees may differ from run to run: Megatron-LM 0.19.2, megatron/training/determinism.py."""
    with pytest.raises(OctavoError, match=f"{name}={value}") as refused:
        deterministic_environment(on_gpus, {name: value})
    assert refused.value.fix is not None
    assert "training.deterministic: false" in refused.value.fix


def test_on_cpus_nothing_reads_them() -> None:
    run = load_experiment("quickstart", CONFIGS).run("moe-bf16", 1)
    assert deterministic_environment(run, {"NCCL_ALGO": "NVLS"})["NCCL_ALGO"] == "NVLS"


def test_one_connection_where_communication_overlaps_products(on_gpus: RunConfig) -> None:
    """Megatron-LM 0.19.2, arguments.py: with tensor or context parallelism, below compute capability 10."""

    def wanted(cluster: str, environment: dict[str, str] | None = None, **axes: int) -> dict[str, str]:
        layout = on_gpus.parallelism.model_copy(update=axes)
        run = on_gpus.model_copy(update={"parallelism": layout, "cluster": cluster})
        return connections_environment(run, environment or {})

    one = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert wanted("h100-node", tensor=2) == wanted("h100-node", context=2) == one
    assert wanted("h100-node") == wanted("b200-node", tensor=2) == wanted("laptop", tensor=2) == {}
    with pytest.raises(OctavoError, match="CUDA_DEVICE_MAX_CONNECTIONS=8"):
        wanted("h100-node", {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, tensor=2)


def test_the_cross_entropy_is_fused_only_where_bits_may_differ(on_gpus: RunConfig) -> None:
    """Megatron-LM 0.19.2, determinism.py; and Transformer Engine's never ("disabled due to stability issues")."""
    pytest.importorskip("megatron.core")
    from octavo.training.megatron import fused_kernels

    assert not fused_kernels(on_gpus.model, deterministic=True)["cross_entropy_loss_fusion"]
    kernels = fused_kernels(on_gpus.model, deterministic=False)
    assert kernels["cross_entropy_loss_fusion"]
    assert kernels["cross_entropy_fusion_impl"] == "native"
