"""A cluster file from what Slurm says of a site: which values there are to choose from, and the file with its comments.

Partitions, limits, GPUs, cores and memory are those of `sinfo`, accounts and QoS those of `sacctmgr`
(`octavo.experiment.site` reads both). What Slurm cannot know is asked for: the price of a device-hour and its source.
"""

from __future__ import annotations

import getpass
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from octavo.configuration import parse_section, parse_yaml
from octavo.errors import OctavoError, no_such
from octavo.experiment.cluster import Cluster
from octavo.experiment.doctor import output_of
from octavo.experiment.site import SINFO, Nodes, has_pyxis, parse_sinfo
from octavo.files import write_text

LONGEST_MINUTES = 720
"""Of a job, where the partition allows more: a run that needs longer goes on in its next job."""

IMAGE_CUDA = "13.0"
"""CUDA of the packages in requirements-gpu.lock."""


@dataclass(frozen=True)
class Kind:
    """Nodes of one kind in one partition: what a cluster file describes."""

    partition: str
    default: bool
    gpu_type: str | None
    """None: nodes without GPUs, or GPUs that Slurm gives no type."""
    gpus: int
    nodes: int
    cores: int
    memory_mb: int
    minutes: float

    def __str__(self) -> str:
        devices = f"{self.gpus} x {self.gpu_type or 'GPU'}" if self.gpus else "no GPUs"
        limit = f"{self.minutes:.0f} minutes at most" if self.minutes < float("inf") else "no time limit"
        return (
            f"{self.partition}{' (default)' if self.default else ''}: {self.nodes} nodes of {devices}, {self.cores} "
            f"cores and {self.memory_mb // 1000} GB, {limit}"
        )


@dataclass(frozen=True)
class Site:
    """What there is to choose from."""

    kinds: list[Kind]
    """Those with GPUs first, of these the default partition's."""
    accounts: list[str]
    """The user's; empty where Slurm keeps none."""


@dataclass(frozen=True)
class Choice:
    """What the file says besides what Slurm does."""

    kind: Kind
    device: str
    account: str | None
    nodes: int
    price: float
    source: str


def look_at_site() -> Site:
    """Ask sinfo and sacctmgr. Raises OctavoError where there is no Slurm, or no partition that takes jobs."""
    if (listed := output_of(list(SINFO))) is None:
        raise OctavoError("sinfo does not answer", where="PATH", fix="run this where jobs are submitted from")
    kinds = [kind for nodes in parse_sinfo(listed) if nodes.up for kind in _kinds(nodes)]
    if not kinds:
        raise OctavoError("Slurm has no partition that takes jobs", where="sinfo")
    accounts = output_of(
        ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}", "format=account"]
    )
    return Site(
        sorted(kinds, key=lambda kind: (not kind.gpus, not kind.default)),
        sorted({line for line in (accounts or "").splitlines() if line}),
    )


def _kinds(nodes: Nodes) -> list[Kind]:
    found = nodes.gpus or {"": 0}
    return [
        Kind(nodes.partition, nodes.default, name or None, count, nodes.count, nodes.cores, nodes.memory_mb,
             nodes.minutes)
        for name, count in found.items()
    ]  # fmt: skip


def chosen_kind(site: Site, partition: str | None, gpu_type: str | None) -> list[Kind]:
    """The kinds of nodes that were asked for. Raises OctavoError where there are none."""
    if partition is not None and partition not in {kind.partition for kind in site.kinds}:
        raise no_such("partition", partition, sorted({kind.partition for kind in site.kinds}), where="sinfo")
    of = [kind for kind in site.kinds if partition in (None, kind.partition)]
    if gpu_type is not None and gpu_type not in {kind.gpu_type for kind in of}:
        raise no_such("GPU type", gpu_type, sorted({kind.gpu_type for kind in of if kind.gpu_type}), where="sinfo")
    return [kind for kind in of if gpu_type in (None, kind.gpu_type)]


def device_of(gpu_type: str | None, gpus: int, known: list[str]) -> str | None:
    """The file of configs/clusters/devices that a type of Slurm's names (`nvidia_h100_80gb_hbm3`: h100); None: none."""
    if not gpus:
        return "cpu"
    words = re.split(r"[^a-z0-9]+", (gpu_type or "").lower())
    return next((name for name in sorted(known, key=len, reverse=True) if name in words), None)


def cluster_file(name: str, choice: Choice) -> str:
    """The text of a cluster file. Raises OctavoError where its values do not fit one another."""
    kind = choice.kind
    devices = kind.gpus or kind.cores
    image = "cpu" if choice.device == "cpu" else "gpu"
    limit = int(min(kind.minutes, LONGEST_MINUTES))
    container = "apptainer" if shutil.which("apptainer") else "pyxis" if has_pyxis() else "none"
    cuda = _cuda_here() if container == "none" else IMAGE_CUDA
    lines = [
        f"# {kind}. From sinfo and sacctmgr, by `octavo cluster new`.",
        f"description: {name}, nodes of {kind.gpus} {kind.gpu_type or 'GPUs'} under Slurm"
        if kind.gpus
        else f"description: {name}, nodes without GPUs under Slurm",
        f"device: {choice.device}",
        f"devices_per_node: {devices}",
        f"nodes: {choice.nodes}  # that an experiment may use, of {kind.nodes}",
        *([f'cuda: "{cuda}"'] if cuda and choice.device != "cpu" else []),
        "rental:",
        f"  per_device_hour: {choice.price:g}  # what a device-hour costs you",
        f"  source: {_quoted(choice.source)}",
        "slurm:",
        f"  partition: {_quoted(kind.partition)}",
        *([f"  account: {_quoted(choice.account)}"] if choice.account else []),
        *([f"  gpu_type: {_quoted(kind.gpu_type)}"] if kind.gpu_type else []),
        f"  time_limit_minutes: {limit}  # of a job; a run that needs longer goes on in its next one",
        f"  signal_seconds: {min(120, 60 * limit // 4)}  # before that limit a run is told to save and leave",
        f"  cpus_per_device: {max(1, kind.cores // devices)}",
        f"  memory_gb_per_device: {max(1, kind.memory_mb // 1000 // devices)}",
        *(
            ["  container: none  # neither apptainer nor pyxis is there: the Python that runs Octavo"]
            if container == "none"
            else [f"  container: {container}", f"  image: {image}"]
        ),
    ]
    text = "\n".join(lines) + "\n"
    parse_section(parse_yaml(text.encode(), Path(f"{name}.yaml")), Cluster, Path(f"{name}.yaml"))
    return text


def _cuda_here() -> str | None:
    """CUDA of the torch that runs Octavo; None of a build for CPUs."""
    found = (output_of([sys.executable, "-c", "import torch; print(torch.version.cuda or '')"]) or "").strip()
    return found or None


def write_cluster(path: Path, text: str, *, replace: bool) -> None:
    """Write the file. Raises OctavoError where there is one already that is not to be replaced."""
    if path.exists() and not replace:
        raise OctavoError("the cluster file is there already", where=path, fix="name another one, or say --replace")
    write_text(path, text)


def _quoted(text: str | None) -> str:
    return '"' + (text or "").replace("\\", "\\\\").replace('"', '\\"') + '"'
