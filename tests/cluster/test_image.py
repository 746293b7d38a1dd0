"""The CPU image, built for real by a real Apptainer, and a run on two nodes inside it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from octavo.layout import image_file
from tests.cluster.conftest import Checkout, checkout_with_image, other_packages
from tests.cluster.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]


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
