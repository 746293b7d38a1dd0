"""What one run asks of Slurm: nodes, tasks, memory, GPUs, time, and the options of its cluster file.

The keys are those of Snakemake's Slurm executor (snakemake-executor-plugin-slurm 2.8), which turns them into `sbatch`
options. One training run is one job with one task per device; inside it `octavo train` starts the tasks with `srun`
(`octavo.cluster.launch`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from octavo.cluster.own import OwnAllocation
from octavo.configuration import read_yaml
from octavo.errors import OctavoError
from octavo.experiment.cluster import Slurm, gpu_option
from octavo.experiment.load import load_cluster, load_experiment
from octavo.experiment.run import CellConfig, Experiment
from octavo.layout import configs, repository, split_horizon
from octavo.privacy import expand
from octavo.records import AttemptRecord, read_lines

Resource = int | str | None

RESOURCES = (
    "slurm_partition", "slurm_account", "qos", "constraint", "runtime", "mem_mb", "nodes", "tasks", "cpus_per_task",
    "gres", "mpi", "slurm_extra",
)  # fmt: skip
"""The keys of `resources`, but for the one that caps the devices (`cap_name`)."""


@dataclass(frozen=True)
class Allocation:
    """The shape of a job: the same on every node."""

    nodes: int
    tasks_per_node: int
    """One per device."""
    cpus_per_task: int
    memory_mb: int
    """Per node."""
    gpus: str | None
    """The option that asks for a node's GPUs; None where there is none."""

    @property
    def tasks(self) -> int:
        """Over all nodes."""
        return self.nodes * self.tasks_per_node


def slurm_section(experiment: Experiment) -> Slurm:
    """The cluster file's `slurm` section. Raises OctavoError where it has none."""
    if experiment.cluster.slurm is None:
        raise OctavoError(
            "the cluster file has no section slurm",
            where=f"configs/clusters/{experiment.file.cluster}.yaml",
            fix="add one (docs/cluster.md), name another cluster in the experiment, or use workflow/profiles/local",
        )
    return experiment.cluster.slurm


def allocation(experiment: Experiment, cell: CellConfig) -> Allocation:
    """The nodes and tasks of a cell's runs. Raises OctavoError when they do not fill whole nodes."""
    slurm, cluster = slurm_section(experiment), experiment.cluster
    world = cell.parallelism.world_size
    nodes = -(-world // cluster.devices_per_node)
    if world % nodes:
        raise OctavoError(
            f"{cell.cell} has {world} processes, which {nodes} nodes cannot share evenly",
            where=f"{experiment.path} parallelism",
            expected=f"a multiple of {cluster.devices_per_node}, the devices of a node",
        )
    per_node = world // nodes
    return Allocation(
        nodes=nodes,
        tasks_per_node=per_node,
        cpus_per_task=slurm.cpus_per_device,
        memory_mb=slurm.memory_gb_per_device * 1000 * per_node,
        gpus=gpu_option(experiment.cluster, experiment.device, per_node),
    )


def resources(experiment: Experiment, cell: CellConfig, has: int | None = None) -> dict[str, Resource]:
    """The executor's resources of a cell's runs; None: not asked for. Raises OctavoError where they cannot be had.

    `has`: the devices of the allocation in which runs are steps, if they are.
    """
    slurm, shape = slurm_section(experiment), allocation(experiment, cell)
    if slurm.same_nodes and has is None:
        raise OctavoError(
            "runs are to be on the same nodes, and Slurm gives jobs of their own any nodes",
            where=f"configs/clusters/{experiment.file.cluster}.yaml slurm.same_nodes",
            fix=f"run the pipeline in one allocation (docs/sites/allocation.md):\n{allocation_command(experiment)}\n"
            "or set same_nodes: false: the report then names the cells that were trained on different nodes",
        )
    if has is not None and shape.tasks > has:
        raise OctavoError(
            f"a run of {cell.cell} takes {shape.tasks} devices, and this allocation has {has}",
            where=f"{experiment.path} parallelism",
            fix="take a larger allocation, or make the run's parallelism smaller",
        )
    if slurm.max_concurrent_devices is not None and shape.tasks > slurm.max_concurrent_devices:
        raise OctavoError(
            f"a run of {cell.cell} takes {shape.tasks} devices, and all runs together may hold "
            f"{slurm.max_concurrent_devices}",
            where=f"configs/clusters/{experiment.file.cluster}.yaml slurm.max_concurrent_devices",
            expected=f"at least {shape.tasks}",
            fix="raise it, or make the run's parallelism smaller",
        )
    gres = shape.gpus.removeprefix("--gres=") if shape.gpus and shape.gpus.startswith("--gres=") else None
    return {
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "runtime": slurm.time_limit_minutes,
        "mem_mb": shape.memory_mb,
        "nodes": shape.nodes,
        # of a job with GPUs the executor would make --ntasks-per-gpu of it; --ntasks-per-node below says it all
        "tasks": 0 if gres else shape.tasks,
        "cpus_per_task": shape.cpus_per_task,
        "gres": gres,
        # There, so that the rule runs in the batch step and not in a step of its own, where --signal would end it
        # before the run could save; and zero, so that the executor does not ask for more than one task.
        "mpi": 0,
        "slurm_extra": " ".join(
            [
                f"--ntasks-per-node={shape.tasks_per_node}",
                # not to the batch step (no B:), but to the ranks: they save and leave
                f"--signal=USR1@{slurm.signal_seconds}",
                # several tries append to one log
                "--open-mode=append",
                *([] if slurm.requeue else ["--no-requeue"]),
                *([f"--exclude={','.join(slurm.exclude)}"] if slurm.exclude else []),
                *([shape.gpus] if shape.gpus and not gres else []),
                *(shlex.quote(option) for option in slurm.extra),
            ]
        ),
        # on the same nodes one after another, so each holds all there is
        cap_name(experiment.file.cluster): has if has is not None and slurm.same_nodes else shape.tasks,
    }


def allocation_command(experiment: Experiment) -> str:
    """The `sbatch` call of one allocation for all runs of an experiment, each a step in it on the same nodes."""
    slurm, shapes = slurm_section(experiment), [allocation(experiment, cell) for cell in experiment.cells.values()]
    largest = max(shapes, key=lambda shape: (shape.nodes, shape.tasks_per_node))
    nodes = max(nodes_of_runs(experiment).values(), key=len, default=frozenset[str]())
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    pipeline = f"snakemake --profile workflow/profiles/allocation {experiment.folder.report_pdf}"
    return shlex.join(
        [
            "sbatch",
            *(f"--{name}={value}" for name, value in named.items() if value is not None),
            f"--nodes={largest.nodes}",
            f"--ntasks-per-node={largest.tasks_per_node}",
            f"--cpus-per-task={largest.cpus_per_task}",
            f"--mem={largest.memory_mb}",
            *([largest.gpus] if largest.gpus else []),
            f"--time={slurm.time_limit_minutes}",
            f"--signal=USR1@{slurm.signal_seconds}",
            *([f"--exclude={','.join(slurm.exclude)}"] if slurm.exclude else []),
            *([f"--nodelist={','.join(sorted(nodes))}"] if nodes else []),
            *slurm.extra,
            f"--wrap={pipeline}",
        ]
    )


def nodes_of_runs(experiment: Experiment) -> dict[str, frozenset[str]]:
    """Attempt at a run that trained, and is not superseded -> the nodes that it was on."""
    found = {}
    for cell, seed in experiment.runs():
        folder = experiment.folder.run(cell.cell, seed)
        identity = cell.identity(seed)
        for attempt in read_lines(folder.attempts, AttemptRecord):
            if identity.holds(attempt) and attempt.last_step != attempt.first_step:
                nodes = frozenset(name for listed in attempt.nodes for name in expand(listed))
                found[f"{cell.cell}/seed-{seed}, attempt {attempt.attempt}"] = nodes
    return found


def same_nodes(experiment: Experiment, has: Sequence[str], count: int) -> list[str]:
    """Of the nodes of an allocation those for a run that takes `count`, so that all runs are on the same.

    Of runs on fewer and on more nodes the fewer are among the more. Raises OctavoError where the allocation has not the
    nodes that other runs were on.
    """
    earlier, where = nodes_of_runs(experiment), f"configs/clusters/{experiment.file.cluster}.yaml slurm.same_nodes"
    fewer = max((one for one in earlier.values() if len(one) <= count), key=len, default=frozenset[str]())
    more = min((one for one in earlier.values() if len(one) >= count), key=len, default=frozenset(has))
    chosen = [*sorted(fewer), *(node for node in sorted(more) if node not in fewer)][:count]
    for run, nodes in earlier.items():
        if not (nodes <= set(chosen) or nodes >= set(chosen)):
            raise OctavoError(
                f"runs were on different nodes already: {run}, was on {','.join(sorted(nodes))}, others on "
                f"{','.join(chosen)}",
                where=where,
                fix="move the run's folder away and train it again, or set same_nodes: false: the report then names "
                "the cells that were trained on different nodes",
            )
    if missing := [node for node in chosen if node not in has]:
        raise OctavoError(
            f"other runs were on {','.join(chosen)}, and this allocation has not {','.join(missing)}",
            where=where,
            fix=f"take another one with --nodelist={','.join(chosen)}",
        )
    return chosen


def cap_name(cluster: str) -> str:
    """The resource by which Snakemake counts the devices that runs hold on a cluster."""
    return "devices_" + "".join(letter if letter.isalnum() else "_" for letter in cluster)


def caps() -> dict[str, int]:
    """Resource -> the most that runs may hold at one time, of every cluster file with a max_concurrent_devices."""
    return {cap_name(name): cap for name, cap in _numbers("max_concurrent_devices", None).items()}


def own_caps(own: OwnAllocation) -> dict[str, int]:
    """Resource -> the devices of an allocation, of every cluster file with a section slurm."""
    found = {}
    for name in _numbers("retries", 0):
        with suppress(OctavoError):  # a file's mistakes are told when an experiment asks for it
            cluster, device = load_cluster(name, configs())
            assert cluster.slurm is not None
            found[cap_name(name)] = own.devices(cluster, device, cluster.slurm)
    return found


def most_retries() -> int:
    """The most tries after the first that a cluster file allows: a rule has one number for all of its jobs.

    A run is held to its own cluster file's by `octavo.cluster.launch.refuse_hopeless`.
    """
    return max(_numbers("retries", Slurm.model_fields["retries"].default).values(), default=0)


def _numbers(key: str, default: int | None) -> dict[str, int]:
    """Cluster -> a number of its `slurm` section. A file's mistakes are told when an experiment asks for it."""
    sections = {path.stem: read_yaml(path).get("slurm") for path in sorted(configs().clusters.glob("*.yaml"))}
    numbers = {name: slurm.get(key, default) for name, slurm in sections.items() if isinstance(slurm, dict)}
    return {name: number for name, number in numbers.items() if isinstance(number, int)}


def comment(experiment: str, cell: str, seed: int) -> str:
    """The comment that the executor gives a training job: what joins Slurm's rows to runs (`check_comments`)."""
    return f"rule_train_wildcards_{_wildcards(experiment, cell, seed)}"


def _wildcards(experiment: str, cell: str, seed: int) -> str:
    """The wildcards of the rule `train` as the executor writes them: a slash of a run's path becomes an underscore."""
    trunk, steps = split_horizon(cell)
    return f"{experiment}_{trunk}_{seed}" + (f"_horizon-{steps}" if steps else "")


def check_comments(experiment: Experiment) -> None:
    """Refuse an experiment whose jobs have the comments of another one's: (a, b_c-bf16) and (a_b, c-bf16) are alike.

    Raises OctavoError.
    """
    name, ours = experiment.name, {f"{experiment.name}_{cell}" for cell in experiment.cells}
    for path in sorted(configs().experiments.glob("*.yaml")):
        longer, shorter = max(path.stem, name, key=len), min(path.stem, name, key=len)
        if not longer.startswith(f"{shorter}_"):
            continue
        try:
            theirs = load_experiment(path.stem)
        except OctavoError:
            continue  # submits nothing
        if alike := ours & {f"{path.stem}_{cell}" for cell in theirs.cells}:
            raise OctavoError(
                f"Slurm could not tell the runs of {name} from those of {path.stem}: both have jobs named {min(alike)}",
                where=experiment.path,
                fix="rename one of the experiments",
            )


def sbatch_command(experiment: Experiment, cell: CellConfig, seed: int, *, requeue: bool) -> str:
    """The `sbatch` call that the executor would make; `requeue`: as the profile has it (`slurm-requeue`).

    Of the snakemake that it wraps only what is of this job: how the outer one was started is left out ("...").
    """
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    check_comments(experiment)
    asked = _Resources({name: value for name, value in resources(experiment, cell).items() if value is not None})
    slurm, root = slurm_section(experiment), repository()
    wildcards = _wildcards(experiment.name, cell.cell, seed)
    parameters = {
        "run_uuid": "<id of the snakemake that submits>",
        "slurm_logfile": f"{root}/.snakemake/slurm_logs/rule_train/{wildcards}/%j.log",
        "comment_str": comment(experiment.name, cell.cell, seed),
        "account": f"-A {shlex.quote(slurm.account)}" if slurm.account else "",
        "partition": f"-p {shlex.quote(slurm.partition)}" if slurm.partition else "",
        "workdir": root,
    }
    profile: Any = SimpleNamespace(requeue=requeue, no_requeue=False, qos=None, reservation=None)
    job: Any = _Job(asked, threads=asked["cpus_per_task"])
    trunk, steps = split_horizon(cell.cell)
    of_seed = f"{seed}/horizon-{steps}" if steps else seed
    target = f"train:experiment={experiment.name},cell={trunk},seed={of_seed}"
    wrapped = (
        f"{sys.executable} -m snakemake --snakefile '{root}/Snakefile' --target-jobs '{target}' --allowed-rules train "
        "... --executor slurm-jobstep --jobs 1 --mode 'remote'"
    )
    return f'{get_submit_command(job, parameters, profile)}{set_gres_string(job)} --wrap="{wrapped}"'


class _Resources(dict[str, Any]):
    """Resources as the executor reads them: by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass(frozen=True)
class _Job:
    resources: _Resources
    threads: int
