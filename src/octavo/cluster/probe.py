"""Looking at nodes before runs do: one short job with a task for each device, and what is made of what they found.

The tasks start as ranks of a run do (`octavo.cluster.container`); what each of them looks at is in
`octavo.cluster.node`. A device that is slower than the median by more than SLOWER is named, with its node.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from octavo.cluster.container import before, task
from octavo.cluster.image import read_image
from octavo.cluster.queue import ANSWER_SECONDS, answer, ask, queue
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device, Slurm, gpu_option
from octavo.experiment.doctor import Finding
from octavo.files import write_json
from octavo.layout import probe_file, probe_folder
from octavo.records import ClusterProbe, DeviceProbe, read_record

SLOWER = 0.05
MINUTES = 10
"""The job's time limit."""
POLL_SECONDS = 2.0
SHOWN_SECONDS = 30.0
"""How long the shared file system may take to show what the nodes wrote."""


def probe(
    name: str, cluster: Cluster, device: Device, root: Path, nodes: int, say: Callable[[str], None]
) -> list[Finding]:
    """Submit the job and wait for it: what is to be said of what its tasks wrote below `results/probes`.

    `say` is told what the job waits for. Raises OctavoError where Slurm refuses the job. An interrupt cancels it.
    """
    slurm = cluster.slurm
    assert slurm is not None
    folder = root / probe_folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number = _submit(name, cluster, device, slurm, root, folder, nodes)
    try:
        listed = _wait(name, number, root, say)
    except BaseException:
        ask("scancel", str(number))
        raise
    end = time.monotonic() + SHOWN_SECONDS
    while len(records := read_devices(folder)) < nodes * cluster.devices_per_node and time.monotonic() < end:
        if "error" in _last_line(folder / "job.log"):
            break
        time.sleep(1)
    return findings(name, cluster, nodes, records, listed, folder / "job.log")


def _submit(name: str, cluster: Cluster, device: Device, slurm: Slurm, root: Path, folder: Path, nodes: int) -> int:
    per_node = cluster.devices_per_node
    options = [
        f"--nodes={nodes}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={slurm.cpus_per_device}",
        f"--mem={slurm.memory_gb_per_device * 1000 * per_node}M",
        *([gpus] if (gpus := gpu_option(cluster, device, per_node)) else []),
        *([f"--exclude={','.join(slurm.exclude)}"] if slurm.exclude else []),
    ]
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos, "constraint": slurm.constraint}
    image = read_image(root, slurm.image, slurm.container) if slurm.image else None
    started = task(slurm, root, image, ["probe-node", name, str(folder), str(nodes * per_node)])
    lines = ["#!/bin/bash --login" if slurm.modules else "#!/bin/bash", *before(slurm, image)]
    lines.append(f"exec srun --kill-on-bad-exit=0 --mem=0 {shlex.join(slurm.srun)} {started}")
    command = [
        "sbatch",
        "--parsable",
        "--job-name=octavo-probe",
        f"--comment={comment(name)}",
        f"--chdir={root}",
        f"--output={folder / 'job.log'}",
        f"--time={MINUTES}",
        "--no-requeue",
        *(f"--{key}={value}" for key, value in named.items() if value is not None),
        *options,
        *slurm.extra,
    ]
    try:
        done = answer(*command, seconds=ANSWER_SECONDS, stdin="\n".join(lines) + "\n")
    except OSError as error:
        raise OctavoError(f"the probe could not be submitted: {error.strerror}", where=shlex.join(command)) from None
    number = done.stdout.strip().split(";")[0]
    if done.returncode or not number.isdigit():
        raise OctavoError(
            f"Slurm refuses the probe's job: {(done.stderr or done.stdout).strip()}",
            where=f"configs/clusters/{name}.yaml slurm",
            fix=f"octavo doctor --cluster {name}, without --probe, says which of its values Slurm does not know",
        )
    return int(number)


def comment(name: str) -> str:
    """The comment of a cluster's probe."""
    return f"octavo_probe_{name}"


def _wait(name: str, number: int, root: Path, say: Callable[[str], None]) -> str:
    """Wait until the job has left the queue; the nodes that it was on, as Slurm lists them."""
    told, nodes = "", ""
    say(f"probe: job {number} was submitted")
    while True:
        here = [job for job in queue(root).get(comment(name), []) if job.number == number]
        if not here:
            return nodes
        nodes = here[0].nodes or nodes
        if (now := f"{here[0].state} {here[0].reason}") != told:
            told = now
            say(f"probe: {here[0]}")
        time.sleep(POLL_SECONDS)


def read_devices(folder: Path) -> list[DeviceProbe]:
    """What the tasks of a probe wrote, by rank."""
    files = folder.glob("rank-*.json")
    records = [read_record(path, DeviceProbe, made_by="octavo doctor --probe") for path in files]
    return sorted(records, key=lambda record: record.rank)


def record_probe(name: str, root: Path, probed: bool) -> None:
    """Write `results/probes/<cluster>.json`: the pipeline submits runs when it is there."""
    devices = read_devices(root / probe_folder(name)) if probed else []
    record = ClusterProbe(cluster=name, time=datetime.now(UTC), devices=devices)
    write_json(root / probe_file(name), record.model_dump(mode="json"))


def findings(
    name: str, cluster: Cluster, nodes: int, records: list[DeviceProbe], listed: str, log: Path
) -> list[Finding]:
    """What a probe of so many nodes (`listed`: their names) says, from what its tasks wrote."""
    found = [
        Finding(f"{record.node}: {one.what}", "note" if one.warns else "missing", one.found)
        for record in records
        for one in record.findings
    ]
    expected = nodes * cluster.devices_per_node
    if len(records) < expected:
        seen = {record.node for record in records}
        silent = [node for node in _hostnames(listed) if node not in seen]
        which = f"nothing from {', '.join(silent)}" if silent else f"on {listed or 'no node'}"
        said = f"{len(records)} of {expected} tasks came to their end, {which}: {_last_line(log) or 'no word left'}"
        found.append(Finding("probe", "missing", said, f"see {log}"))
    for what, unit, values in (
        ("products of matrices", "TFLOPS", [(record, record.gemm_tflops) for record in records]),
        ("all-reduce", "GB/s", [(record, record.allreduce_gb_per_second) for record in records]),
    ):
        measured = [(record, value) for record, value in values if value]
        if measured:
            found += _speeds(what, unit, measured)
    if not any(one.state == "missing" for one in found):
        on = ", ".join(sorted({record.node for record in records}))
        found.append(Finding("probe", "ok", f"{expected} devices of {on}"))
    return [Finding(f"{name}: {one.what}", one.state, one.found, one.fix) for one in found]


def _speeds(what: str, unit: str, measured: list[tuple[DeviceProbe, float]]) -> Iterator[Finding]:
    middle = median(value for _, value in measured)
    slow = [(record, value) for record, value in measured if value < (1 - SLOWER) * middle]
    for record, value in slow:
        found = f"{value:.3g} {unit}, {1 - value / middle:.0%} slower than the median of {len(measured)}"
        yield Finding(f"{record.node}, rank {record.rank}: {what}", "note", found, f"slurm.exclude: [{record.node}]")
    if not slow:
        yield Finding(what, "ok", f"{middle:.3g} {unit}")


def _hostnames(listed: str) -> list[str]:
    return ask("scontrol", "show", "hostnames", listed).split() if listed else []


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.lower().startswith("error")), lines[-1] if lines else "")
