"""What a run needs of its machine, asked before anything heavy is imported and any rank is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from octavo.errors import OctavoError
from octavo.experiment import attention
from octavo.experiment.cluster import Device
from octavo.experiment.layout_checks import check_devices_can
from octavo.experiment.load import load_cluster
from octavo.experiment.precision_checks import check_recipe, version
from octavo.experiment.run import RunConfig
from octavo.layout import configs
from octavo.precision.recipes import SCALE_VARIABLES

DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),
}
"""What cuBLAS, Transformer Engine and NCCL must be told for kernels that repeat to the last bit and one order of sums:
the value that is set, and others that do (torch's notes on reproducibility; Megatron-LM 0.19.2's --deterministic-mode,
megatron/training/determinism.py, which takes NCCL's trees for repeatable no longer)."""

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


def device_of(run: RunConfig) -> Device:
    """The kind of device that the run's experiment trains on."""
    return load_cluster(run.cluster, configs())[1]


def check_run(run: RunConfig) -> None:
    """Refuse what `octavo check` does, of a run that comes from a file of its own."""
    check_devices_can(run, device_of(run), lambda *_: f"cell {run.cell} of experiment {run.experiment}")


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


def connections_environment(run: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_DEVICE_MAX_CONNECTIONS=1, where Megatron's overlap of communication with products needs it.

    With tensor or context parallelism kernels must start in the order that they were given, and GPUs below compute
    capability 10 keep it with one connection alone (Megatron-LM 0.19.2, megatron/training/arguments.py). Raises
    OctavoError where the environment says another number.
    """
    layout, device = run.parallelism, device_of(run)
    if device.kind == "cpu" or (layout.tensor == 1 and layout.context == 1):
        return {}
    if version(device.compute_capability or "0") >= (10,):
        return {}
    found = environment.get(CONNECTIONS, "1")
    if found != "1":
        raise OctavoError(
            f"the environment says {CONNECTIONS}={found}, and the run has tensor or context parallelism",
            where=f"cell {run.cell} of experiment {run.experiment}",
            expected=f"{CONNECTIONS} unset, or 1",
            fix=f"unset {CONNECTIONS}",
        )
    return {CONNECTIONS: "1"}


def scales_environment(run: RunConfig) -> dict[str, str]:
    """The variable that gives a recipe of Transformer Engine's other scales, where the run asks for them on GPUs."""
    named = SCALE_VARIABLES.get(run.precision.recipe)
    if named is None or run.precision.scales is None or run.precision.emulated(on_gpu=device_of(run).kind == "gpu"):
        return {}
    return {named[0]: "1"}


BRANCHES = {"deepep": ("Buffer", "main"), "hybridep": ("HybridEPBuffer", "hybrid-ep")}
"""Dispatcher -> the class of the package `deep_ep` that Megatron-Core takes for it, and DeepEP's branch that has it."""


def check_dispatcher(run: RunConfig) -> None:
    """Refuse a dispatcher whose package is not installed: it is neither in the lock nor in the image."""
    if run.model.experts is None or not run.parallelism.sends_once:
        return
    name, branch = BRANCHES[run.parallelism.dispatcher]
    try:
        found = hasattr(import_module("deep_ep"), name)
    except ImportError:
        found = False
    if not found:
        raise OctavoError(
            f"the dispatcher {run.parallelism.dispatcher} needs the package deep_ep with {name}, and it is not there",
            where=f"cell {run.cell} of experiment {run.experiment}",
            expected=f"DeepEP built for this GPU: github.com/deepseek-ai/DeepEP, branch {branch}",
            fix="build it into the image (container.def), or use dispatcher: alltoall",
        )


def late_to_save(run: RunConfig, seconds: float) -> str | None:
    """A warning where a step and its checkpoint take longer than Slurm gives notice of a time limit; None: in time."""
    slurm = load_cluster(run.cluster, configs())[0].slurm
    if slurm is None or seconds <= slurm.signal_seconds:
        return None
    return (
        f"warning: a step and its checkpoint take {seconds:.0f} s, but Slurm gives notice of the time limit "
        f"{slurm.signal_seconds} s before: the run would be ended first, losing its steps since the last checkpoint; "
        f"raise slurm.signal_seconds in configs/clusters/{run.cluster}.yaml"
    )


def attention_warning(run: RunConfig, cudnn: int | None) -> str | None:
    """A warning where attention is not fused on the run's device; `cudnn` as torch says it (91801), None: not there."""
    found = (cudnn // 10000, cudnn // 100 % 100, cudnn % 100) if cudnn else attention.CUDNN
    said = attention.unfused_attention(run, device_of(run), found)
    return said and f"warning: {said}"


@dataclass(frozen=True)
class Gpu:
    """The GPU that this process would train on, and what it was found with."""

    name: str
    compute_capability: str
    cuda: str
    """The CUDA that torch was built with."""


def check_device(run: RunConfig, gpu: Gpu | None) -> None:
    """Refuse to train on another device than the run's cluster file says; None: CUDA finds no GPU.

    The plan was made from that file: whether the GPU has the recipe, what a step takes, what an hour costs.
    """
    cluster, device = load_cluster(run.cluster, configs())
    where = f"cluster {run.cluster} of experiment {run.experiment}"
    if device.kind == "cpu":
        if gpu is not None:
            raise OctavoError(
                f"the run is for {device.name}, and CUDA shows this process {gpu.name}",
                where=where,
                fix="start it with `octavo train`, which hides GPUs from runs on CPUs; or name a cluster of GPUs",
            )
        return
    if gpu is None:
        raise OctavoError(
            f"the run is for {device.name}, and this machine has no GPU that CUDA can use",
            where=where,
            expected=device.name,
            fix="run it on that cluster, or name a cluster of CPUs in the experiment (configs/clusters/laptop.yaml)",
        )
    if gpu.compute_capability != device.compute_capability:
        raise OctavoError(
            f"this machine has {gpu.name}, of compute capability {gpu.compute_capability}",
            where=where,
            expected=f"{device.name}, of compute capability {device.compute_capability}",
            fix="run it on that cluster, or name the cluster in the experiment that it does run on",
        )
    if cluster.cuda and version(gpu.cuda) < version(cluster.cuda):
        raise OctavoError(
            f"torch has CUDA {gpu.cuda} here, and the cluster file says {cluster.cuda}",
            where=where,
            expected=f"CUDA {cluster.cuda} or newer",
            fix=f'run in the image, or write cuda: "{gpu.cuda}" and check the experiment again',
        )
    check_recipe(run.precision, layers=run.model.layers, device=device, cuda=gpu.cuda, where=where)
    check_dispatcher(run)
