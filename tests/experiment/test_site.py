"""A cluster file against a site, whose Slurm answers in the formats of a real one (22.05)."""

from __future__ import annotations

import getpass
import importlib.metadata
import stat
from pathlib import Path
from typing import Any

import pytest

from octavo.experiment.cluster import Cluster
from octavo.experiment.load import load_cluster
from octavo.experiment.site import examine_cluster, gpus_in, minutes
from octavo.layout import configs

# `sinfo --noheader --format %P|%a|%l|%D|%c|%m|%f|%G`: a partition has a line for every kind of node
SINFO = """\
batch*|up|1-00:00:00|12|96|1031000|ib,hopper|gpu:h100:8(S:0-1)
batch*|up|1-00:00:00|20|64|1031000|ib,ampere|gpu:a100:4(S:0,1),nvme:1
batch*|up|1-00:00:00|2|16+|64000|(null)|(null)
mixed|up|12:00:00|4|96|1031000|ib,hopper|gpu:h100l:8
mixed|up|12:00:00|4|96|1031000|hopper|gpu:h100:4,gpu:1g.10gb:7
plain|up|infinite|6|96|1031000|(null)|gpu:8
cpu|up|infinite|40|64|257000|(null)|(null)
old|inact|infinite|6|96|1031000|(null)|gpu:h100:8
"""
CONFIG = """\
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageTRES   = cpu,mem,energy,node,billing,fs/disk,vmem,pages,gres/gpu,gres/gpu:h100
AccountingStorageType   = accounting_storage/slurmdbd
"""
ASSOCIATIONS = "lab|normal,high\nteaching|normal\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, and a file for each with its answer."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answers = {"sinfo": SINFO, "scontrol": CONFIG, "sacctmgr-associations": ASSOCIATIONS, "sacctmgr-qos": "02:00:00\n"}
    for name, text in answers.items():
        (tmp_path / f"{name}.txt").write_text(text)
    for name, file in (("sinfo", "sinfo"), ("scontrol", "scontrol"), ("sacctmgr", "sacctmgr-$4")):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat {tmp_path}/{file}.txt\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def found(slurm: dict[str, Any], device: str = "h100", nodes: int = 12) -> dict[str, str]:
    """What -> state, what was found, and what to do."""
    cluster = Cluster.model_validate(
        {"description": "test", "device": device, "devices_per_node": 8, "nodes": nodes, "slurm": slurm,
         "rental": {"per_device_hour": 2.0, "source": "test"}}
    )  # fmt: skip
    _, kind = load_cluster("h100-node" if device == "h100" else "laptop", configs())
    return {
        one.what.removeprefix("x: "): f"{one.state} {one.found} -> {one.fix}".removesuffix(" -> ")
        for one in examine_cluster("x", cluster, kind)
    }


GOOD = {"partition": "batch", "gpu_type": "h100", "account": "lab", "qos": "high", "constraint": "ib&hopper"}


def test_a_file_that_fits(site: Path) -> None:
    assert found({**GOOD, "time_limit_minutes": 120}) == {
        "partition": "ok batch",
        "time limit": "ok 120 minutes of 1440",
        "gpu:h100": "ok a100 (4 per node), h100 (8 per node)",
        "constraint": "ok ib&hopper",
        "cores": "ok 64 for 8 devices, a node has 96",
        "memory": "ok 512 GB for 8 devices, a node has 1031 GB",
        "nodes": "ok 12 of 12",
        "account": f"ok {getpass.getuser()} may use lab",
        "QoS": "ok high",
        "accounting": "ok counts GPUs",
    }


@pytest.mark.parametrize(
    ("changes", "what", "says"),
    [
        ({"partition": "gpu"}, "partition", "missing there is no 'gpu' -> slurm.partition: one of batch, cpu, mixed"),
        ({"partition": "old"}, "partition", "missing old takes no jobs: it is not up"),
        ({"partition": None}, "partition", "ok batch"),  # the default one
        ({"time_limit_minutes": 1441}, "time limit", "missing 1441 minutes of 1440 -> slurm.time_limit_minutes: at"),
        ({"time_limit_minutes": 121}, "QoS", "missing high allows 120 minutes, 121 are asked for"),
        # h100l is another type than h100, and of that a node has 4
        ({"partition": "mixed", "constraint": None}, "gpu:h100", "missing 1g.10gb (7 per node), h100 (4 per node), h1"),
        ({"gpu_type": "a100"}, "gpu:a100", "missing a100 (4 per node), h100 (8 per node) -> devices_per_node: "),
        ({"gpu_type": "b200"}, "gpu:b200", "missing a100 (4 per node), h100 (8 per node) -> slurm.gpu_type"),
        ({"partition": "cpu"}, "gpu:h100", "missing no GPUs"),
        ({"partition": "plain", "constraint": None}, "gpu:h100", "missing without a type (8 per node)"),
        ({"partition": "plain", "gpu_type": None, "constraint": None}, "gpu", "ok without a type (8 per node)"),
        ({"constraint": "ib&blackwell"}, "constraint", "missing no such node has blackwell -> slurm.constraint: of "),
        ({"constraint": "hopper|ib"}, "constraint", "ok hopper|ib"),
        ({"constraint": "[ib|hopper]"}, "constraint", "note [ib|hopper]: its names are there"),
        ({"cpus_per_device": 13}, "cores", "missing 104 for 8 devices, a node has 96 -> slurm.cpus_per_device: at"),
        ({"memory_gb_per_device": 129}, "memory", "missing 1032 GB for 8 devices, a node has 1031 GB"),
        ({"account": "other"}, "account", "missing"),
        ({"account": "teaching"}, "QoS", "missing"),  # has normal alone
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_what_would(site: Path, changes: dict[str, Any], what: str, says: str) -> None:
    assert found({**GOOD, "time_limit_minutes": 120, **changes})[what].startswith(says)


@pytest.mark.parametrize(("build", "state"), [("2.13.0+cpu", "missing"), ("2.13.0", "ok"), ("2.13.0+cu130", "ok")])
def test_without_an_image_torch_must_be_a_build_for_gpus(
    site: Path, monkeypatch: pytest.MonkeyPatch, build: str, state: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: build)
    assert found({**GOOD, "image": None})["torch"].startswith(f"{state} {build}")
    assert "torch" not in found(GOOD)


def test_without_transformer_engine_a_node_can_train_but_not_in_fp8(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package != "torch":
            raise importlib.metadata.PackageNotFoundError(package)
        return "2.13.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    said = found({**GOOD, "container": "none"})
    assert (said["torch"], said["transformer-engine"].split()[0]) == ("ok 2.13.0", "note")


@pytest.mark.parametrize(("option", "state"), [("--container-image=PATH", "ok"), ("--container=PATH", "missing")])
def test_pyxis_is_there_where_srun_says_so(site: Path, option: str, state: str) -> None:
    (site / "srun").write_text(f"#!/bin/sh\necho '      {option}  [pyxis] the image'\n")
    (site / "srun").chmod(0o755)
    assert found({**GOOD, "container": "pyxis"})["pyxis"].split()[0] == state


def test_gpus_that_no_option_asks_for_are_not_looked_for(site: Path) -> None:
    said = found({"partition": "cpu", "account": "lab", "gpus_by": "none"})
    assert not any(what.startswith("gpu") for what in said)


def test_fewer_nodes_than_the_file_says(site: Path) -> None:
    """Of batch's 34 nodes 12 have 8 H100."""
    assert found(GOOD, nodes=13)["nodes"] == "missing 12 of that kind -> nodes: at most 12, not 13"


def test_a_cluster_of_cpus_asks_for_no_gpus(site: Path) -> None:
    """40 nodes of 64 cores, no gres: 8 cores for each of 8 devices."""
    answers = found({"partition": "cpu", "memory_gb_per_device": 4}, device="cpu", nodes=40)
    assert answers["nodes"] == "ok 40 of 40"
    assert not [what for what in answers if "gpu" in what or what == "accounting"]
    assert not [answer for answer in answers.values() if not answer.startswith("ok")]


def test_where_slurm_enforces_no_associations_a_missing_one_is_a_note(site: Path) -> None:
    (site / "scontrol.txt").write_text(CONFIG.replace("associations,limits,qos,safe", "none"))
    (site / "sacctmgr-associations.txt").write_text("")
    answer = found(GOOD)["account"]
    assert answer == f"note {getpass.getuser()} may not use 'lab' -> have an account given to {getpass.getuser()}"


def test_a_site_that_counts_no_gpus_is_told(site: Path) -> None:
    (site / "scontrol.txt").write_text(CONFIG.replace(",gres/gpu,gres/gpu:h100", ""))
    assert found(GOOD)["accounting"].startswith("note Slurm counts no GPUs")


def test_without_a_default_partition_one_must_be_named(site: Path) -> None:
    (site / "sinfo.txt").write_text(SINFO.replace("*", ""))
    assert found({"gpu_type": "h100"})["partition"].startswith("missing none is named, and Slurm has no default one")


def test_a_site_that_does_not_answer(site: Path) -> None:
    (site / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    assert found(GOOD) == {"x": "missing sinfo does not answer -> run on a node that reaches the Slurm controller"}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30:00", 30), ("1:00:00", 60), ("7-00:00:00", 10080), ("infinite", float("inf")), ("n/a", float("inf"))],
)
def test_time_limits(limit: str, expected: float) -> None:
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("gres", "expected"),
    [("(null)", {}), ("gpu:8", {"": 8}), ("gpu", {"": 1}), ("gpu:h100:2(S:0),gpu:h100:2(S:1)", {"h100": 4}),
     ("gpu:h100", {"h100": 1}), ("shard:h100:8", {})],
)  # fmt: skip
def test_gres(gres: str, expected: dict[str, int]) -> None:
    assert gpus_in(gres) == expected
