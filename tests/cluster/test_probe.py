"""What a probe makes of what its tasks found; nodes themselves are looked at in test_first_day."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cluster import probe
from octavo.cluster.node import probe_here
from octavo.errors import OctavoError
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.doctor import Finding
from octavo.experiment.load import load_cluster
from octavo.layout import ConfigFolders
from octavo.records import DeviceProbe, NodeFinding
from tests.cluster.conftest import CLUSTER
from tests.tiny import REPOSITORY


@pytest.fixture
def described() -> tuple[Cluster, Device]:
    _, device = load_cluster("laptop", ConfigFolders(REPOSITORY / "configs"))
    return Cluster.model_validate(CLUSTER), device


def record(node: str, rank: int, tflops: float, *found: NodeFinding) -> DeviceProbe:
    return DeviceProbe(
        node=node, rank=rank, python="3.11", image_digest=None, gemm_tflops=tflops, allreduce_gb_per_second=10.0,
        findings=list(found),
    )  # fmt: skip


def said(cluster: Cluster, records: list[DeviceProbe], log: Path, nodes: str = "") -> list[Finding]:
    return probe.findings("fake", cluster, 4, records, nodes, log)


def test_a_device_more_than_5_percent_slower_than_the_median_is_named(
    described: tuple[Cluster, Device], tmp_path: Path
) -> None:
    """Median of 100, 100, 96 and 94: 98; 5 % less is 93.1. Of 100, 100, 100, 94: 95."""
    near = [record(f"n{rank}", rank, speed) for rank, speed in enumerate((100, 100, 96, 94))]
    assert [one.state for one in said(described[0], near, tmp_path / "log")] == ["ok", "ok", "ok"]
    far = [record(f"n{rank}", rank, speed) for rank, speed in enumerate((100, 100, 100, 94))]
    (slow,) = (one for one in said(described[0], far, tmp_path / "log") if one.state == "note")
    assert slow.what == "fake: n3, rank 3: products of matrices"
    assert slow.found == "94 TFLOPS, 6% slower than the median of 4"


def test_nodes_that_say_nothing_and_what_is_wrong_on_others_are_named(
    described: tuple[Cluster, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_hostnames", lambda listed: listed.split())
    (tmp_path / "log").write_text("srun: hello\nerror: no such package\nsrun: error: task 1 exited\n")
    broken = NodeFinding(what="clock", found="+9 s from that of the file system")
    found = said(described[0], [record("n0", 0, 1, broken), record("n1", 1, 1)], tmp_path / "log", "n0 n1 n2 n3")
    wrong = [(one.what, one.found) for one in found if one.state == "missing"]
    assert wrong == [
        ("fake: n0: clock", "+9 s from that of the file system"),
        ("fake: probe", "2 of 4 tasks came to their end, nothing from n2, n3: error: no such package"),
    ]
    assert not any(one.what == "fake: probe" and one.state == "ok" for one in found)


def test_a_task_measures_products_and_tells_a_torch_without_gpus(
    described: tuple[Cluster, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.cluster.node.GEMM_SECONDS", 0.1)
    cluster, device = described
    probe_here(cluster, device, tmp_path, 1)
    (own,) = probe.read_devices(tmp_path)
    assert own.findings == []
    assert own.gemm_tflops is not None
    assert own.gemm_tflops > 0
    probe_here(cluster, device.model_copy(update={"kind": "gpu"}), tmp_path, 1)
    (own,) = probe.read_devices(tmp_path)
    assert own.gemm_tflops is None
    assert [one.what for one in own.findings] in (["torch"], ["GPU"])  # a build for CPUs, or no driver


def test_a_job_that_slurm_refuses_is_one_message(
    described: tuple[Cluster, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OctavoError, match="Slurm refuses the probe's job: sbatch: error: invalid partition"):
        probe.probe("fake", *described, tmp_path, 1, print)
