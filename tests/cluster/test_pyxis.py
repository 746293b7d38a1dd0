"""Runs in what pyxis starts, on a real Slurm with a stand-in for its plugin: what a rank sees there, and a whole run.

The stand-in (`pyxis_stand_in.c`) gives a task the image as its root, and the mounts that srun's options name; enroot,
its hooks and user namespaces are not tested by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cluster.container import ENVIRONMENT
from octavo.cluster.launch import plan_launch
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, image_file, image_record
from tests.cluster.conftest import checkout_with_image, make_checkout
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

PROGRAMS = ("bash", "sh", "env", "sed", "touch")
LOOK = """
env | sed 's/=.*//;s/^/variable /'
for path in {root}/forbidden {root}/results/rank-$SLURM_PROCID /forbidden; do
    touch $path 2>/dev/null && echo writes $path
done
for path in {home} {root}/configs {shared} /in-the-image /etc/passwd; do [ -e $path ] && echo sees $path; done
exit 0
"""


@pytest.fixture(scope="module", autouse=True)
def runtime_path(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stand-in in srun and on every node; the folder that it wants on a node."""
    library = tmp_path_factory.mktemp("plugin") / "pyxis_stand_in.so"
    source = Path(__file__).with_name("pyxis_stand_in.c")
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    plugins = slurm.folder / "plugstack.conf"
    runtime = tmp_path_factory.mktemp("runtime")
    plugins.write_text(f"required {library} {runtime}\n")
    yield runtime
    plugins.write_text("")


def squashfs(folder: Path, image: Path) -> None:
    """An image of a few programs of this machine, with the file that Apptainer makes of %environment."""
    files: set[tuple[Path, str]] = set()
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program is not None
        files.add((Path(program).resolve(), f"/usr/bin/{name}"))
        words = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split()
        files |= {(Path(word).resolve(), word) for word in words if word.startswith("/")}
    for source, inside in files:
        target = folder / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    environment = folder / ENVIRONMENT.lstrip("/")
    environment.parent.mkdir(parents=True)
    environment.write_text("export PATH=/opt/venv/bin:$PATH\n")
    (folder / "bin").symlink_to("usr/bin")  # enroot starts what it starts by /bin/sh
    (folder / "in-the-image").touch()
    image.parent.mkdir(parents=True)
    subprocess.run(["mksquashfs", folder, image, "-quiet", "-no-progress"], check=True)


def test_a_rank_sees_what_is_mounted_and_set_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Apptainer: its place, the cluster file's variables, the node's /dev/shm; results alone are writable."""
    checkout = make_checkout(tmp_path / "octavo")
    checkout.configure(container="pyxis", image="cpu")
    image = checkout.root / image_file("cpu", "pyxis")
    squashfs(tmp_path / "system", image)
    image_record(image).write_text('{"digest": "sha256:abc"}')
    monkeypatch.setenv("OCTAVO_ROOT", str(checkout.root))
    experiment = load_experiment("tiny", ConfigFolders(checkout.root / "configs"))
    script = plan_launch(experiment, experiment.run("dense-bf16", 1), Path("x")).script()
    look = checkout.root / "results/look.sh"
    asked = [f"--account={ACCOUNT}", "--partition=gpu", "--nodes=2", "--gres=gpu:h100:1", "--mem=4000"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home, tempfile.NamedTemporaryFile(dir="/dev/shm") as shared:
        look.write_text(LOOK.format(root=checkout.root, home=home, shared=shared.name))
        ranks = ["bash", "-c", script.replace("octavo train x", f"sh {look}")]
        environment = {**os.environ, "HOME": home, "SECRET": "1"}
        done = subprocess.run(
            ["salloc", "--quiet", *asked, *ranks],
            cwd=checkout.root, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        seen = sorted(line.removeprefix("sees ") for line in done.stdout.splitlines() if line.startswith("sees "))
        assert seen == sorted([f"{checkout.root}/configs", shared.name, "/in-the-image"] * 2)  # by two ranks
    written = sorted(line for line in done.stdout.splitlines() if line.startswith("writes "))
    assert written == [f"writes {checkout.root}/results/rank-{rank}" for rank in (0, 1)]
    variables = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("variable ")}
    assert {"SLURM_PROCID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"} <= variables
    assert {"GLOO_SOCKET_IFNAME", "OCTAVO_IMAGE_DIGEST", "PATH"} <= variables
    assert not {"SECRET", "HOME", "SLURM_CONF"} & variables


def test_a_run_whose_ranks_the_plugin_does_not_start_has_failed_though_srun_ends_with_0(
    tmp_path: Path, runtime_path: Path
) -> None:
    """What pyxis did on a node whose slurmd was older than its line in plugstack.conf."""
    checkout = make_checkout(tmp_path / "octavo")
    checkout.configure(container="pyxis", image="cpu")
    image = checkout.root / image_file("cpu", "pyxis")
    squashfs(tmp_path / "system", image)
    image_record(image).write_text('{"digest": "sha256:abc"}')
    run = checkout.run("tiny", "dense-bf16")
    asked = ["--quiet", f"--account={ACCOUNT}", "--partition=gpu", "--nodes=2", "--gres=gpu:h100:1", "--mem=4000"]
    runtime_path.rmdir()
    try:
        process = checkout.start("salloc", *asked, "octavo", "train", str(run))
        printed, _ = process.communicate(timeout=300)
    finally:
        runtime_path.mkdir()
    assert process.returncode == 1, printed
    assert "launch failed: Plugin initialization failed" in printed
    assert "error: srun ended with status 0, but no rank of the run was started" in printed
    attempt = json.loads((run / "attempts.jsonl").read_text())
    assert (attempt["exit_reason"], attempt["device_count"]) == ("failed", 2)


@pytest.mark.container
def test_a_run_on_two_nodes_trains_in_the_file_system_of_the_image_and_names_it(tmp_path: Path) -> None:
    """The pipeline takes it out of the .sif that is there."""
    checkout = checkout_with_image(tmp_path / "octavo", "cpu")
    checkout.configure(container="pyxis", image="cpu")
    assert "srun has --container-image" in checkout.octavo("doctor", "--cluster", "fake")
    checkout.finish(checkout.snakemake("results/tiny/runs/dense-bf16/seed-1/result.json"))
    image, run = checkout.root / image_file("cpu", "pyxis"), checkout.run("tiny", "dense-bf16")
    with image.open("rb") as file:
        assert file.read(4) == b"hsqs"  # the magic number of squashfs
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    record = json.loads(image_record(image).read_text())
    whole = json.loads(image_record(checkout.root / image_file("cpu")).read_text())
    assert (record["digest"], record["sif_digest"]) == (digest, whole["digest"])
    provenance = json.loads((run / "provenance.json").read_text())
    assert (provenance["image_digest"], provenance["lock_sha256"]) == (digest, whole["lock_sha256"])
    attempt = json.loads((run / "attempts.jsonl").read_text())
    assert (attempt["exit_reason"], attempt["device_count"]) == ("completed", 2)
