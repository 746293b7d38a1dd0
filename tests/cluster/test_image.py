"""The CPU image, built for real by a real Apptainer, and a run on two nodes inside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from octavo.cluster.image import Image
from octavo.cluster.launch import Launch
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, image_file
from tests.cluster.conftest import Checkout, checkout_with_image, other_packages
from tests.cluster.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.container, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = checkout_with_image(tmp_path_factory.mktemp("image") / "octavo", "cpu")
    made.configure(image="cpu")
    return made


def test_the_record_names_the_image_by_its_digest_and_lists_its_packages(checkout: Checkout) -> None:
    image = checkout.root / image_file("cpu")
    record = json.loads(image.with_suffix(".json").read_text())
    with image.open("rb") as file:
        assert record["digest"] == f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    assert record["definition"] == (checkout.root / "container.def").read_text()
    lock = (checkout.root / "requirements.lock").read_text()
    (torch,) = [line.split()[0] for line in lock.splitlines() if line.startswith("torch==")]
    assert any(package.split("+")[0] == torch for package in record["packages"]["pip"])


def test_every_package_is_the_locks(checkout: Checkout) -> None:
    record = json.loads((checkout.root / image_file("cpu")).with_suffix(".json").read_text())
    assert other_packages(record["packages"]["pip"], checkout.root / "requirements.lock") == set()


def test_a_rank_sees_the_shared_memory_and_the_devices_of_its_node(checkout: Checkout) -> None:
    """Where NCCL looks for its neighbours: the host's /dev/shm, and all of its /dev (InfiniBand is a folder there)."""
    experiment = load_experiment("tiny", ConfigFolders(checkout.root / "configs"))
    image = Image("cpu", image_file("cpu"), "sha256:0")
    script = Launch(experiment, experiment.run("moe-bf16", 1), ("train", "x"), checkout.root, image).script()
    task = script[script.index("bash -c ") :].replace("octavo train x", "ls /dev /dev/shm")
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        environment = {"PATH": f"{checkout.programs[1]}:{os.environ['PATH']}"}
        listed = subprocess.run(["bash", "-c", task], check=True, capture_output=True, text=True, env=environment)
        devices, shared = listed.stdout.split("/dev/shm:\n")
    assert set(devices.split()[1:]) == {path.name for path in Path("/dev").iterdir()}
    assert Path(file.name).name in shared.split()


@pytest.mark.cluster
def test_a_run_on_two_nodes_trains_inside_the_image_and_names_it(
    checkout: Checkout, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """On data staged to a scratch folder, which here is the same on both nodes."""
    assert len(slurm.nodes) > 1
    checkout.configure(image="cpu", scratch=str(tmp_path))
    result = "results/tiny/runs/dense-bf16/seed-1/result.json"
    checkout.finish(checkout.snakemake(result))
    run = checkout.run("tiny", "dense-bf16")
    provenance = json.loads((run / "provenance.json").read_text())
    record = json.loads((checkout.root / image_file("cpu")).with_suffix(".json").read_text())
    assert provenance["image_digest"] == record["digest"]
    inside = ["apptainer", "exec", "--contain", str(checkout.root / image_file("cpu")), "python3", "-V"]
    version = subprocess.run(
        [str(checkout.programs[1] / inside[0]), *inside[1:]], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    assert provenance["python"] == version
    attempt = json.loads((run / "attempts.jsonl").read_text())
    assert (attempt["exit_reason"], attempt["device_count"]) == ("completed", 2)
    (staged,) = tmp_path.iterdir()
    assert (staged / "manifest.json").exists()
