"""An allocation of one's own (`salloc`, or a batch job) in which the pipeline runs: what it has, and until when.

Its runs are steps inside it (`man srun`, --exact), side by side where they fit. Fields are those of
`scontrol show job`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime

from octavo.cluster.queue import ask
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device, Slurm, gives_gpus
from octavo.privacy import expand
from octavo.training.launch import ALLOCATION

UNITS_MB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


@dataclass(frozen=True)
class OwnAllocation:
    """What an allocation has, over all of its nodes."""

    job: str
    nodes: tuple[str, ...]
    cores: int
    memory_mb: float | None
    """None where Slurm does not count memory."""
    gpus: int
    """0 where Slurm names none."""
    end: datetime | None
    """Its time limit, in local time; None: none."""

    def devices(self, cluster: Cluster, device: Device, slurm: Slurm) -> int:
        """Runs' devices that it holds at once."""
        return self.gpus if gives_gpus(cluster, device) else self.cores // slurm.cpus_per_device


def own_allocation() -> OwnAllocation | None:
    """The allocation that the pipeline was started in; None where it was started in none.

    Raises OctavoError where the allocation is over.
    """
    job = os.environ.get(ALLOCATION)
    if not job:
        return None
    shown = ask("scontrol", "show", "job", "--oneliner", job)
    found = parse_job(job, shown)
    if found is None:
        raise OctavoError(
            f"allocation {job} is over",
            where=f"scontrol show job {job}",
            fix="take another one (salloc, sbatch) and run the same command in it: runs go on from their checkpoints",
        )
    return found


def parse_job(job: str, shown: str) -> OwnAllocation | None:
    """What `scontrol show job --oneliner` prints of a running job; None of any other."""
    values = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    if values.get("JobState") != "RUNNING":
        return None
    tres = dict(
        part.split("=", 1) for part in (values.get("AllocTRES") or values.get("TRES") or "").split(",") if "=" in part
    )
    nodes, end = tuple(expand(values["NodeList"])), values.get("EndTime", "Unknown")
    return OwnAllocation(
        job=job,
        nodes=nodes,
        cores=int(values["NumCPUs"]),
        memory_mb=_megabytes(tres["mem"]) if "mem" in tres else None,
        gpus=int(tres["gres/gpu"]) if "gres/gpu" in tres else _asked_gpus(values, len(nodes)),
        end=_instant(end),
    )


def _asked_gpus(values: dict[str, str], nodes: int) -> int:
    """GPUs as they were asked for, where AccountingStorageTRES does not list gres/gpu."""
    for key, times in (("TresPerNode", nodes), ("TresPerJob", 1)):
        if found := re.search(r"gpu(?:[:=][^:=,]+)??[:=](\d+)(?:,|$)", values.get(key, "")):
            return int(found[1]) * times
    return 0


def _megabytes(text: str) -> float:
    return float(text.rstrip("KMGT")) * UNITS_MB.get(text[-1], 1.0)


def _instant(text: str) -> datetime | None:
    """Seconds since 1970 (SLURM_TIME_FORMAT), or the time of day that older versions print all the same."""
    if text.isdigit():
        return datetime.fromtimestamp(int(text))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
