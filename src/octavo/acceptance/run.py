"""`octavo accept`: parts one after the other, and what they add up to.

The first two take what they take; parts with runs have shares of the time. One whose time is up leaves the rest of its
checks as not measured, which is no pass. What a part did not use the later ones have.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import octavo
from octavo.acceptance import expected as expectations
from octavo.acceptance.checks import at_least, check
from octavo.acceptance.trainings import Trainings
from octavo.acceptance.workshop import SMALL, WHOLE, Workshop
from octavo.cluster.node import of_nvml
from octavo.cluster.probe import findings, read_devices
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.doctor import Finding, examine
from octavo.layout import probe_folder
from octavo.precision.config import Precision, RecipeName
from octavo.records import (
    Acceptance,
    AcceptanceCheck,
    AcceptanceVerdict,
    DeviceMeasures,
    DeviceProbe,
    MeasuredMessage,
    MeasuredProduct,
    read_record,
)
from octavo.training.launch import STOPS, find_process, start_ranks, started_together
from octavo.training.provenance import checkout_commit

SHARES = {"losses": 6, "determinism": 4, "kill and resume": 5, "speed": 8}
"""Part with runs -> minutes of thirty."""
BEFORE = 7
"""Of thirty, reckoned for the two parts before them, which no clock ends."""
PARTS = 2 + len(SHARES)
VISIBLE = "CUDA_VISIBLE_DEVICES"
SHOWN_SECONDS = 60.0
"""How long the shared file system may take to show what other nodes' tasks wrote."""
LEAST_CLOCK = 0.6
"""Share of the highest clock that a GPU is to keep under load: a judgement; power limits cost some of it."""


def accept(
    name: str,
    cluster: Cluster,
    device: Device,
    root: Path,
    recipes: list[RecipeName],
    gpus: int,
    minutes: float,
    say: Callable[[str], None],
) -> Acceptance | None:
    """Measure, and hold against what is expected.

    `gpus`: those of this node that are to train, and, where no srun started a task for each, that are measured. Under
    srun as many tasks as there are GPUs on all nodes call it. The leading one returns the record, the others None once
    their device is measured.
    """
    began = time.monotonic()
    folder = root / probe_folder(name) / "accept"
    tasks = started_together()
    process = find_process(tasks) if tasks > 1 else None
    leads = process is None or process.leads
    devices = tasks if process else gpus
    probed, measured = folder / "probe", folder / "devices"
    for place in (probed, measured):
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("rank-*.json") if leads else ():  # new ones are written once this task has met the others
            old.unlink()
    if leads:
        say(f"1 of {PARTS}: this machine")
    _start(["probe-node", name, str(probed), str(devices)], devices, together=process is not None)
    if leads:
        say(f"2 of {PARTS}: its devices")
    _start(["accept-device", str(measured), str(devices), *recipes], devices, together=process is not None)
    if not leads:
        return None
    ends = _ends(began, minutes)
    found = _measures(measured, devices)
    stand_in = any(one.stand_in for one in found)
    nodes = sorted({one.node for one in found})
    checks = [*_doctor(name, cluster, probed, len(nodes), devices, stand_in)]
    checks += [*_products(found, recipes, device, stand_in), *_messages(found, cluster, device, stand_in)]
    checks += _states(found)
    here = sum(one.node == found[0].node for one in found)
    factors: dict[str, float] = {}
    try:
        shutil.rmtree(folder / "checkout", ignore_errors=True)
        workshop = Workshop(folder / "checkout", name, SMALL if stand_in else WHOLE, recipes)
        # a task that Slurm shows its own GPU alone can start runs on that one
        trainings = Trainings(workshop, min(here, gpus), stand_in)
        checks += _trained(trainings, ends, say)
        factors = trainings.factors()
    except OctavoError as error:  # what was measured before it stays
        checks.append(_broken_off("trainings", error))
    commit, _ = checkout_commit()
    return Acceptance(
        cluster=name,
        time=datetime.now(UTC),
        octavo_version=octavo.__version__,
        git_commit=commit,
        device=found[0].device,
        devices=devices,
        nodes=nodes,
        stand_in=stand_in,
        seconds=time.monotonic() - began,
        factors=factors,
        checks=checks,
    )


def _trained(trainings: Trainings, ends: dict[str, float], say: Callable[[str], None]) -> Iterator[AcceptanceCheck]:
    """What the parts with runs show. One that breaks off keeps no other from being made."""
    parts: dict[str, Callable[[float], Iterable[AcceptanceCheck]]] = {
        "losses": trainings.against_emulation,
        "determinism": trainings.determinism,
        "kill and resume": trainings.resume,
        "speed": trainings.speed,
    }
    for number, (part, measure) in enumerate(parts.items(), PARTS - len(parts) + 1):
        say(f"{number} of {PARTS}: {part}")
        try:
            yield from measure(ends[part])
        except OctavoError as error:
            yield _broken_off(part, error)


def _broken_off(part: str, error: OctavoError) -> AcceptanceCheck:
    return check(part, part, "that it comes to its end", "docs/accept.md", str(error), "fell short")


def _ends(began: float, minutes: float) -> dict[str, float]:
    """Part with runs -> when it must be over, on the monotonic clock."""
    ends, passed = {}, BEFORE
    for part, share in SHARES.items():
        passed += share
        ends[part] = began + 60 * minutes * passed / (BEFORE + sum(SHARES.values()))
    return ends


def _start(arguments: Sequence[str], devices: int, *, together: bool) -> None:
    """Run a verb as a task of every device: this one's, where all were started together, or all of this machine's."""
    if together or devices == 1:
        status = subprocess.run([sys.executable, "-m", "octavo", *arguments], check=False).returncode
    else:
        handlers = {number: signal.getsignal(number) for number in STOPS}
        status = start_ranks(devices, arguments, grace_seconds=10)
        for number, handler in handlers.items():  # which passed signals on to the ranks
            signal.signal(number, handler)
    if status:
        raise OctavoError(
            f"looking at the devices failed with status {status}",
            where=f"octavo {' '.join(arguments)}",
            fix="what it printed above says why; `octavo doctor` says what is missing",
        )


def _measures(folder: Path, devices: int) -> list[DeviceMeasures]:
    """What all tasks wrote, by rank."""
    end = time.monotonic() + SHOWN_SECONDS
    while len(files := list(folder.glob("rank-*.json"))) < devices:
        if time.monotonic() > end:
            raise OctavoError(f"{len(files)} of {devices} tasks wrote what they measured", where=folder)
        time.sleep(1)
    records = [read_record(path, DeviceMeasures, made_by="octavo accept") for path in files]
    return sorted(records, key=lambda one: one.rank)


# --- this machine and its devices -------------------------------------------------------------------------------------


def _doctor(
    name: str, cluster: Cluster, folder: Path, nodes: int, devices: int, stand_in: bool
) -> Iterator[AcceptanceCheck]:
    """What `octavo doctor`, and its look at nodes, say: but for how NVML finds the GPUs, of which `_states` says more.

    A note is no fault, but for that on a device slower than the others.
    """
    for one in examine():
        yield _finding(one, "fell short" if one.state == "missing" else "passed")
    found = read_devices(folder)
    for rank in found:
        for warned in rank.findings:
            if warned.warns and not of_nvml(warned):
                yield _finding(Finding(f"{name}: {rank.node}: {warned.what}", "note", warned.found), "passed")
    seen = cluster.model_copy(update={"devices_per_node": devices // nodes})
    for one in findings(name, seen, nodes, [_faults(rank) for rank in found], "", folder / "job.log"):
        if stand_in and one.state != "missing":  # speeds
            yield _finding(one, "not measured")
        else:
            yield _finding(one, "passed" if one.state == "ok" else "fell short")


def _faults(rank: DeviceProbe) -> DeviceProbe:
    """What a task found, with what keeps runs from going well alone."""
    kept = [one for one in rank.findings if not one.warns and not of_nvml(one)]
    return rank.model_copy(update={"findings": kept})


def _finding(one: Finding, verdict: AcceptanceVerdict) -> AcceptanceCheck:
    found = f"{one.found}; {one.fix}" if one.fix else one.found
    return check("doctor", one.what, "nothing that runs need is missing", "docs/cluster.md", found, verdict)


def _products(
    found: Sequence[DeviceMeasures], recipes: Sequence[RecipeName], device: Device, stand_in: bool
) -> Iterator[AcceptanceCheck]:
    """Products of each recipe and shape: the slowest device's."""
    for recipe in recipes:
        precision = Precision(recipe=recipe)
        for alike in zip(*([one for one in rank.products if one.recipe == recipe] for rank in found), strict=True):
            middle, least = expectations.product_tflops(alike[0], precision, device)
            peak = expectations.peak_tflops(precision, device)
            expected = f"at least {least:,.0f} TFLOP/s; forecast {middle:,.0f}, data sheet {peak:,.0f}"
            yield _slowest(
                "products", f"{recipe}, {_shape(alike[0])}", expected, f"{device.name}'s file; docs/forecast.md",
                [(one.tflops, one.error) for one in alike], least, lambda value, peak=peak:
                f"{value:,.0f} TFLOP/s, {value / peak:.0%} of the data sheet's", stand_in,
            )  # fmt: skip


def _shape(one: MeasuredProduct) -> str:
    shape = f"{one.rows} x {one.inner} x {one.columns}"
    return f"{one.matrices} experts of {shape}" if one.matrices > 1 else shape


def _messages(
    found: Sequence[DeviceMeasures], cluster: Cluster, device: Device, stand_in: bool
) -> Iterator[AcceptanceCheck]:
    """Bandwidth between devices: the slowest one's."""
    if len(found) == 1:
        for kind in ("all-reduce", "all-to-all", "point-to-point"):
            expected = f"{expectations.LEAST_OF_LINK:.0%} of {device.link_gb_per_second:,.0f} GB/s"
            found_here = "there is one GPU, and nobody to send to"
            yield check("messages", kind, expected, f"{device.name}'s file", found_here, "not measured")
    nodes = len({rank.node for rank in found})
    for alike in zip(*(rank.messages for rank in found), strict=True):
        one: MeasuredMessage = alike[0]
        sheet, way = expectations.message_gb_per_second(one, cluster, device, nodes)
        least = expectations.LEAST_OF_LINK * sheet
        yield _slowest(
            "messages", f"{one.kind} of {one.bytes / 2**20:,.0f} MiB over {one.ranks} GPUs",
            f"at least {least:,.0f} GB/s a GPU, {expectations.LEAST_OF_LINK:.0%} of {sheet:,.0f} over {way}",
            f"{device.name}'s file; the share is a judgement", [(same.gb_per_second, same.error) for same in alike],
            least, lambda value, sheet=sheet: f"{value:,.0f} GB/s, {value / sheet:.0%} of the data sheet's", stand_in,
        )  # fmt: skip


def _slowest(
    part: str,
    name: str,
    expected: str,
    source: str,
    figures: Sequence[tuple[float | None, str | None]],
    least: float,
    said: Callable[[float], str],
    stand_in: bool,
) -> AcceptanceCheck:
    """The slowest of all devices' figures, or why there is none."""
    errors = [error for _, error in figures if error]
    values = [value for value, _ in figures if value is not None]
    if errors:
        return check(part, name, expected, source, f"it failed: {errors[0]}", "fell short")
    if not values:
        why = "it was computed on the stand-in, whose times say nothing" if stand_in else "it has no time"
        return check(part, name, expected, source, why, "not measured")
    where = f"rank {values.index(min(values))} of {len(values)}: " if len(values) > 1 else ""
    return at_least(part, name, expected, source, f"{where}{said(min(values))}", min(values), least)


def _states(found: Sequence[DeviceMeasures]) -> Iterator[AcceptanceCheck]:
    """Memory errors and clocks of every device, right after its products."""
    part, source = "state", "NVML (nvmlDeviceGetTotalEccErrors, clocks event reasons)"
    for one in found:
        name, state = f"{one.node}, rank {one.rank}", one.state
        expected = f"no uncorrected ECC error; clocks not slowed, at least {LEAST_CLOCK:.0%} of the highest under load"
        if state is None:
            yield check(part, name, expected, source, "NVML does not say how it is", "not measured")
            continue
        errors = state.uncorrected_ecc_errors
        clock = f"{state.clock_mhz} of {state.maximum_clock_mhz} MHz"
        slowed = f", slowed: {', '.join(state.slowed)}" if state.slowed else ""
        counted = "ECC errors are not counted" if errors is None else f"{errors} uncorrected ECC errors"
        slow = bool(state.slowed) or state.clock_mhz < LEAST_CLOCK * state.maximum_clock_mhz
        wrong = bool(errors) or slow
        verdict = "fell short" if wrong else "not measured" if errors is None else "passed"
        yield check(part, name, expected, source, f"{counted}; {clock}{slowed}", verdict)


def gpus_here(cluster: Cluster, asked: int | None) -> int:
    """As many GPUs of this machine as `asked` for; else all that CUDA shows, up to a node's by the cluster's file.

    Raises OctavoError where CUDA shows none, or fewer than are asked for: two ranks would share one.
    """
    visible = _visible_gpus()
    if asked and asked > visible:
        raise OctavoError(f"{visible} GPUs are visible, --gpus asks for {asked}", where=_visible())
    return asked or min(visible, cluster.devices_per_node)


def _visible() -> str:
    return f"{VISIBLE}={os.environ.get(VISIBLE, '(unset)')}"


def _visible_gpus() -> int:
    """The GPUs of this machine that CUDA shows. Raises OctavoError where there is none, or torch is not installed."""
    try:
        import torch
    except ImportError:
        raise OctavoError("torch is not installed", fix="make setup, or use the GPU image") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise OctavoError(
            "CUDA shows no GPU on this machine",
            where=f"torch {torch.__version__}, {_visible()}",
            expected="a node with GPUs, in the Python or image that trains",
            fix="`octavo doctor` says what is missing",
        )
    return count
