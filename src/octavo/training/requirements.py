"""What a run needs of its machine, asked before anything heavy is imported and any rank is started."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.run import RunConfig, load_cluster
from octavo.layout import configs

DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "NCCL_ALGO": ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
}
"""What cuBLAS, Transformer Engine and NCCL must be told for kernels that repeat to the last bit and one order of sums:
the value that is set, and others that do (torch's notes on reproducibility; Megatron-LM 0.16.1's --deterministic-mode).
"""


def device_of(run: RunConfig) -> Device:
    """The kind of device that the run's experiment trains on."""
    return load_cluster(run.cluster, configs())[1]


def check_layout(run: RunConfig) -> None:
    """Refuse what was found not to work, or not to be reproducible, without CUDA."""
    layout, moe = run.parallelism, run.model.experts is not None
    if device_of(run).kind != "cpu":
        return
    refused = {
        "context parallelism: Megatron-Core has it in Transformer Engine's attention alone": layout.context > 1,
        "tensor parallelism with experts: Megatron-Core wants sequence parallelism with it, which fails over gloo": (
            layout.tensor > 1 and moe
        ),
        "the flex dispatcher: its kernels are CUDA's": layout.dispatcher == "flex" and moe,
        "the distributed optimizer: its checkpoints do not resume to the last bit over gloo": (
            run.training.optimizer.distributed
        ),
    }
    for reason, asked in refused.items():
        if asked:
            raise OctavoError(
                f"on CPUs a run cannot have {reason}",
                where=f"cell {run.cell} of experiment {run.experiment}",
                fix="leave it out of the experiment, or run it on a GPU cluster",
            )


def deterministic_environment(run: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of deterministic mode, as they are or as they must be set.

    Raises OctavoError where one contradicts it, on GPUs: on CPUs nothing reads them.
    """
    found = {name: environment.get(name, values[0]) for name, values in DETERMINISTIC.items()}
    wrong = [name for name, value in found.items() if value not in DETERMINISTIC[name]]
    if wrong and device_of(run).kind == "gpu":
        name = wrong[0]
        raise OctavoError(
            f"the environment says {name}={found[name]}, and the run is to be deterministic",
            where=f"cell {run.cell} of experiment {run.experiment}",
            expected=f"{name} unset, or one of {', '.join(DETERMINISTIC[name])}",
            fix=f"unset {name}, or set training.deterministic: false in the experiment",
        )
    return found


def check_device(run: RunConfig, *, on_gpu: bool) -> None:
    """Refuse to train on CPUs what says that it trains on GPUs."""
    device = device_of(run)
    if device.kind == "gpu" and not on_gpu:
        raise OctavoError(
            f"the run is for {device.name}, and this machine has no GPU that CUDA can use",
            where=f"cluster {run.cluster} of experiment {run.experiment}",
            expected=device.name,
            fix="run it on that cluster, or name a cluster of CPUs in the experiment (configs/clusters/laptop.yaml)",
        )
