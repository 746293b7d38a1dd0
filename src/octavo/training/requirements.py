"""What a run needs of its machine, asked before anything heavy is imported and any rank is started."""

from __future__ import annotations

from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.run import RunConfig, load_cluster
from octavo.layout import configs


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
