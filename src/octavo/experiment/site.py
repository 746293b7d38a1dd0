"""Does a cluster file fit the cluster? Every value of its `slurm` section against what Slurm says of this site.

`sinfo` prints a line for every partition and kind of node in it: a partition has as many lines as it has kinds. Formats
are those of `man sinfo`, `man sacctmgr` and `man slurm.conf`.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

from octavo.experiment.cluster import Cluster, Device, Slurm, gives_gpus
from octavo.experiment.doctor import Finding, output_of

SINFO = ("sinfo", "--noheader", "--format", "%P|%a|%l|%D|%c|%m|%f|%G")
"""Partition (`*`: the default), up or down, time limit, nodes, cores, MB, features, gres."""


GPU_SETUP = "make setup GPU=1 (docs/sites/none.md), or slurm.container: apptainer or pyxis"


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind in one partition."""

    partition: str
    default: bool
    up: bool
    minutes: float
    """The partition's time limit; infinity: none."""
    count: int
    cores: int
    memory_mb: int
    features: frozenset[str]
    gpus: dict[str, int]
    """Type (empty: none is given) -> GPUs per node."""

    def gpus_of(self, wanted: str | None) -> int:
        """GPUs per node of a type; None: of any."""
        return sum(self.gpus.values()) if wanted is None else self.gpus.get(wanted, 0)


def examine_cluster(name: str, cluster: Cluster, device: Device) -> Iterator[Finding]:
    """Hold a cluster file against what Slurm says of this cluster."""
    slurm = cluster.slurm
    if slurm is None:
        yield Finding(name, "ok", "runs on this machine: it has no section slurm")
        return
    if (listed := output_of(list(SINFO))) is None:
        yield Finding(name, "missing", "sinfo does not answer", "run on a node that reaches the Slurm controller")
        return
    for finding in _findings(cluster, device, slurm, parse_sinfo(listed)):
        yield Finding(f"{name}: {finding.what}", finding.state, finding.found, finding.fix)


def _findings(cluster: Cluster, device: Device, slurm: Slurm, everywhere: list[Nodes]) -> Iterator[Finding]:
    gpus = gives_gpus(cluster, device)
    wanted = slurm.partition.split(",") if slurm.partition else [one.partition for one in everywhere if one.default][:1]
    nodes = [one for one in everywhere if one.partition in wanted]
    partition = _partition(wanted, nodes, everywhere)
    yield partition
    if partition.state == "ok":
        yield _time_limit(slurm, nodes)
        if gpus and slurm.gpus_by != "none":
            nodes, finding = _with_gpus(cluster, slurm, nodes)
            yield finding
        if slurm.constraint is not None:
            nodes, finding = _with_features(slurm.constraint, nodes)
            yield finding
        yield from _size(cluster, slurm, nodes)
    settings = dict(re.findall(r"^(\w+) *= (.*)$", output_of(["scontrol", "show", "config"]) or "", re.MULTILINE))
    yield from _associations(slurm, enforced=settings.get("AccountingStorageEnforce", "none") != "none")
    if gpus:
        yield _counted(settings)
    if slurm.container == "pyxis":
        yield _pyxis_here()
    if device.kind == "gpu" and slurm.image is None:
        yield from _packages_here()


def parse_sinfo(text: str) -> list[Nodes]:
    """What SINFO prints."""
    rows = []
    for line in text.splitlines():
        if not line.strip():
            continue
        partition, state, limit, count, cores, memory, features, gres = line.strip().split("|", 7)
        rows.append(
            Nodes(
                partition.rstrip("*"),
                partition.endswith("*"),
                state == "up",
                minutes(limit),
                int(count),
                int(cores.rstrip("+")),  # 16+: the smallest of nodes that differ
                int(memory.rstrip("+")),
                frozenset() if features == "(null)" else frozenset(features.split(",")),
                gpus_in(gres),
            )
        )
    return rows


def gpus_in(gres: str) -> dict[str, int]:
    """`gpu:h100:8(S:0-1),nvme:1` -> {"h100": 8}; a GPU without a type has an empty one."""
    found: dict[str, int] = {}
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *rest = one.split(":")
        if kind == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
            found[":".join(rest)] = found.get(":".join(rest), 0) + count
    return found


def minutes(limit: str) -> float:
    """`infinite`, `30:00`, `12:00:00` or `7-00:00:00` as minutes."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return float("inf")  # infinite, UNLIMITED, n/a
    hours, minute, second = (int(part) for part in ["0"] * (3 - len(parts)) + parts)
    return int(days or 0) * 1440 + hours * 60 + minute + second / 60


def _partition(wanted: list[str], nodes: list[Nodes], everywhere: list[Nodes]) -> Finding:
    there = sorted({one.partition for one in everywhere})
    fix = f"slurm.partition: one of {', '.join(there)}"
    if not wanted:
        return Finding("partition", "missing", "none is named, and Slurm has no default one", fix)
    if unknown := sorted(set(wanted) - set(there)):
        return Finding("partition", "missing", f"there is no {', '.join(map(repr, unknown))}", fix)
    if down := sorted({one.partition for one in nodes if not one.up}):
        return Finding("partition", "missing", f"{', '.join(down)} takes no jobs: it is not up", fix)
    return Finding("partition", "ok", ", ".join(wanted))


def _time_limit(slurm: Slurm, nodes: list[Nodes]) -> Finding:
    longest = min(one.minutes for one in nodes)
    found = f"{slurm.time_limit_minutes} minutes of {longest:.0f}"
    if slurm.time_limit_minutes > longest:
        return Finding("time limit", "missing", found, f"slurm.time_limit_minutes: at most {longest:.0f}")
    return Finding("time limit", "ok", found)


def _with_gpus(cluster: Cluster, slurm: Slurm, nodes: list[Nodes]) -> tuple[list[Nodes], Finding]:
    """The nodes that have the GPUs that a whole node is to have."""
    what = f"gpu:{slurm.gpu_type}" if slurm.gpu_type else "gpu"
    most = max(one.gpus_of(slurm.gpu_type) for one in nodes)
    types = sorted(
        {f"{kind or 'without a type'} ({count} per node)" for one in nodes for kind, count in one.gpus.items()}
    )
    there = ", ".join(types) or "no GPUs"
    if most == 0:
        return [], Finding(what, "missing", there, "slurm.gpu_type: a type that sinfo lists in this partition")
    if most < cluster.devices_per_node:
        fix = f"devices_per_node: at most {most}, not {cluster.devices_per_node}"
        return [], Finding(what, "missing", there, fix)
    return [one for one in nodes if one.gpus_of(slurm.gpu_type) >= cluster.devices_per_node], Finding(what, "ok", there)


def _with_features(constraint: str, nodes: list[Nodes]) -> tuple[list[Nodes], Finding]:
    """The nodes that meet a constraint of names, `&` and `|`; of any other only the names are looked up."""
    features = frozenset[str]().union(*(one.features for one in nodes))
    fix = f"slurm.constraint: of {', '.join(sorted(features)) or 'nothing, these nodes have no features'}"
    names = re.findall(r"[A-Za-z_][\w.-]*", constraint)
    if unknown := sorted(set(names) - features):
        return [], Finding("constraint", "missing", f"no such node has {', '.join(unknown)}", fix)
    if re.search(r"[^\w.&|-]", constraint):
        return nodes, Finding("constraint", "note", f"{constraint}: its names are there; the rest is Slurm's to judge")
    ways = [set(way.split("&")) for way in constraint.split("|")]
    suited = [one for one in nodes if any(way <= one.features for way in ways)]
    if not suited:
        return [], Finding("constraint", "missing", f"no such node has all of {constraint}", fix)
    return suited, Finding("constraint", "ok", constraint)


def _size(cluster: Cluster, slurm: Slurm, nodes: list[Nodes]) -> Iterator[Finding]:
    """Cores and memory of a whole node's devices, and how many nodes there are of that kind."""
    if not nodes:
        return
    cores = slurm.cpus_per_device * cluster.devices_per_node
    memory = slurm.memory_gb_per_device * 1000 * cluster.devices_per_node
    most_cores, most_memory = max(one.cores for one in nodes), max(one.memory_mb for one in nodes)
    for what, asked, there, key in (
        ("cores", cores, most_cores, "slurm.cpus_per_device"),
        ("memory", memory // 1000, most_memory // 1000, "slurm.memory_gb_per_device"),
    ):
        unit = " GB" if what == "memory" else ""
        found = f"{asked}{unit} for {cluster.devices_per_node} devices, a node has {there}{unit}"
        fix = "" if asked <= there else f"{key}: at most {there // cluster.devices_per_node}"
        yield Finding(what, "ok" if asked <= there else "missing", found, fix)
    count = sum(one.count for one in nodes if one.cores >= cores and one.memory_mb >= memory)
    if count < cluster.nodes:
        yield Finding("nodes", "missing", f"{count} of that kind", f"nodes: at most {count}, not {cluster.nodes}")
    else:
        yield Finding("nodes", "ok", f"{cluster.nodes} of {count}")


def _associations(slurm: Slurm, *, enforced: bool) -> Iterator[Finding]:
    """Whether this user may use the account and the QoS: no more than a note where Slurm does not enforce that."""
    user = getpass.getuser()
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account,qos"]
    if (listed := output_of(command)) is None:
        yield Finding("account", "note", "sacctmgr does not answer: account and QoS are not looked at")
        return
    wrong = "missing" if enforced else "note"
    rows = [line.split("|") for line in listed.splitlines() if "|" in line]
    accounts = sorted({account for account, _ in rows})
    if slurm.account is not None:
        if slurm.account not in accounts:
            fix = f"slurm.account: one of {', '.join(accounts)}" if accounts else f"have an account given to {user}"
            yield Finding("account", wrong, f"{user} may not use {slurm.account!r}", fix)
            return
        yield Finding("account", "ok", f"{user} may use {slurm.account}")
    if slurm.qos is not None:
        own = [qos for account, qos in rows if slurm.account in (None, account)]
        allowed = sorted({one for qos in own for one in qos.split(",") if one})
        if slurm.qos not in allowed:
            fix = f"slurm.qos: one of {', '.join(allowed)}" if allowed else "leave slurm.qos out"
            yield Finding("QoS", wrong, f"{user} may not use {slurm.qos!r}", fix)
            return
        yield _wall_of(slurm, slurm.qos)


def _wall_of(slurm: Slurm, qos: str) -> Finding:
    """A QoS may have a shorter time limit than the partition."""
    shown = output_of(["sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, "format=maxwall"]) or ""
    longest = minutes(shown.strip() or "UNLIMITED")
    if slurm.time_limit_minutes > longest:
        found = f"{qos} allows {longest:.0f} minutes, {slurm.time_limit_minutes} are asked for"
        return Finding("QoS", "missing", found, f"slurm.time_limit_minutes: at most {longest:.0f}")
    return Finding("QoS", "ok", qos)


def has_pyxis() -> bool:
    """Whether this site's srun has the options of pyxis."""
    return "--container-image" in (output_of(["srun", "--help"]) or "")


def _pyxis_here() -> Finding:
    if has_pyxis():
        return Finding("pyxis", "ok", "srun has --container-image")
    return Finding("pyxis", "missing", "srun has no --container-image", "slurm.container: apptainer, or none")


def _packages_here() -> Iterator[Finding]:
    """Without an image the nodes' torch and Transformer Engine are this Python's."""
    torch, engine = _installed("torch"), _installed("transformer-engine-torch")
    if torch is None or torch.endswith("+cpu"):
        found = f"{torch} is a build for CPUs" if torch else "not installed"
        yield Finding("torch", "missing", f"{found}, and there is no container", GPU_SETUP)
        return
    yield Finding("torch", "ok", torch)
    if engine is None:
        yield Finding("transformer-engine", "note", "not installed: no run in FP8 can start", GPU_SETUP)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _counted(settings: dict[str, str]) -> Finding:
    """Whether Slurm counts GPUs: the ledger then has its numbers."""
    tracked = settings.get("AccountingStorageTRES", "").lower().split(",")
    if any(one.startswith("gres/gpu") for one in tracked):
        return Finding("accounting", "ok", "counts GPUs")
    return Finding(
        "accounting", "note", "Slurm counts no GPUs: device-hours will be its seconds x the trainer's GPUs",
        "ask for gres/gpu in slurm.conf's AccountingStorageTRES",
    )  # fmt: skip
