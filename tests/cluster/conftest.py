"""One Slurm for all tests of this folder, and a small checkout that uses it."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.cluster.image import Variant, inputs_digest
from octavo.layout import image_file
from tests.cluster import apptainer_tool, slurm_cluster
from tests.cluster.slurm_cluster import SlurmCluster
from tests.tiny import HEEDS_CTRL_C, REPOSITORY, TINY, changed

PROGRAMS = Path(sys.executable).parent
KEPT = REPOSITORY / ".hpc"
"""Apptainer and images that were built, each once for a definition and a lock; git ignores it."""

SUITES: dict[Variant, str] = {"gpu": "trixie", "cpu": "bookworm"}
"""Debian's release below an image. The CPU's is tested on the older one, whose Python (3.11) is that of these tests."""

FAST = (
    "--slurm-init-seconds-before-status-checks",
    "1",
    "--seconds-between-status-checks",
    "1",
    "--latency-wait",
    "10",
)
"""Jobs of seconds are asked after more often than jobs of hours."""

EXPERIMENT = changed(
    TINY,
    {
        "description": "Seconds per run. The dense model is trained on two nodes, the mixture of experts on one.",
        "precisions": ["bf16"],
        "data.sources": [{"kind": "files", "path": "text"}],
        "training.steps": 200,
        "training.optimizer.learning_rate": 1e-3,
        "training.evaluation": {"interval": 100, "sequences": 4, "final_sequences": 4},
        "training.checkpoints": {"interval": 40, "grace_seconds": 20},
        "overrides": {"dense": {"parallelism.data": 2}},
        "cluster": "fake",
    },
)
CLUSTER: dict[str, Any] = {
    "description": "Several nodes on one machine; their GPUs are like /dev/null, so models are trained on the CPU.",
    "device": "cpu",
    "devices_per_node": 1,
    "nodes": 6,
    "rental": {"per_device_hour": 1.0, "source": "test"},
    "slurm": {
        "partition": "spot",
        "account": slurm_cluster.ACCOUNT,
        "gpu_type": "h100",
        "time_limit_minutes": 5,
        "signal_seconds": 30,
        "cpus_per_device": 1,
        "memory_gb_per_device": 4,
        "max_concurrent_devices": 4,
        "retries": 3,
        "environment": {"GLOO_SOCKET_IFNAME": "lo"},
        "image": None,
        "probe": False,
    },
}


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository's pipeline with the small experiment `tiny`."""

    root: Path
    programs: tuple[Path, ...] = (PROGRAMS,)

    def configure(self, **changes: Any) -> None:
        """Write the cluster file, with changes of its slurm section, and the experiment."""
        self.write("clusters/fake", {**CLUSTER, "slurm": {**CLUSTER["slurm"], **changes}})
        self.write("experiments/tiny", EXPERIMENT)

    def snakemake(self, *targets: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start the pipeline with the Slurm profile."""
        command = ["snakemake", "--profile", "workflow/profiles/slurm", *FAST, *options, "--", *targets]
        return self.start(*command)

    def octavo(self, *arguments: str) -> str:
        """Run a verb; what it printed."""
        process = self.start("octavo", *arguments)
        printed, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, printed
        return printed

    def finish(self, process: subprocess.Popen[str], seconds: float = 1800) -> str:
        """Wait for a pipeline to end well; what it printed."""
        printed, _ = process.communicate(timeout=seconds)
        assert process.returncode == 0, printed + self.logs()
        return printed

    def logs(self) -> str:
        """What the rules' jobs printed."""
        return "".join(f"\n--- {path}\n{path.read_text()}" for path in self.root.glob("results/*/logs/*.log"))

    def attempts(self, experiment: str, cell: str) -> list[dict[str, Any]]:
        """The attempts at a run."""
        return _json_lines(self.run(experiment, cell) / "attempts.jsonl")

    def losses(self, experiment: str, cell: str) -> dict[tuple[int, str], float]:
        """The losses of a run by step and kind: the last line of a step is the one that counts."""
        return {
            (line["step"], kind): line[kind]
            for line in _json_lines(self.run(experiment, cell) / "metrics.jsonl")
            for kind in ("loss", "validation_loss", "final_validation_loss")
            if line.get(kind) is not None
        }

    def run(self, experiment: str, cell: str) -> Path:
        """The folder of a run with seed 1."""
        return self.root / "results" / experiment / "runs" / cell / "seed-1"

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in this checkout, with its code and programs."""
        path = ":".join([*(str(folder) for folder in self.programs), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "OCTAVO_ROOT": str(self.root), "PYTHONPATH": str(self.root / "src")}
        return subprocess.Popen(
            [*HEEDS_CTRL_C, *command],
            cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a configuration file."""
        path = self.root / "configs" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_checkout(root: Path, *programs: Path) -> Checkout:
    """Copy what a pipeline needs, and write a text."""
    for name in ("workflow", "configs", "src"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "container.def", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, root)
    for lock in REPOSITORY.glob("requirements*.lock"):
        shutil.copy(lock, root)
    words, generator = ["the", "a", "fox", "dog", "sees", "runs", "over", "under", "lazy", "quick"], random.Random(0)
    (root / "text").mkdir()
    for number in range(40):
        text = " ".join(generator.choice(words) for _ in range(400))
        (root / "text" / f"{number}.txt").write_text(text, encoding="utf-8")
    checkout = Checkout(root, (PROGRAMS, *programs))
    checkout.configure()
    return checkout


def checkout_with_image(root: Path, variant: Variant) -> Checkout:
    """A checkout with the image of its definition and lock, made by the pipeline's rule unless one is kept."""
    if reason := apptainer_tool.obstacle():
        pytest.skip(f"no Apptainer can be set up here: {reason}")
    programs = apptainer_tool.set_up(KEPT / "apptainer")
    made = make_checkout(root, programs)
    kept, target = KEPT / "images" / inputs_digest(made.root, variant), made.root / image_file(variant)
    names = (target.name, target.with_suffix(".json").name)
    if not all((kept / name).exists() for name in names):
        _build_image(made, target, apptainer_tool.base_image(KEPT / "apptainer", programs, SUITES[variant]))
        kept.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.move(target.parent / name, kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target.parent / name).symlink_to(kept / name)
    return made


def other_packages(installed: list[str], lock: Path) -> set[str]:
    """Packages of an image (`name==version`) that its lock does not name, but for Octavo and what Debian's venv has."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    locked = {_spelling(line.split()[0]) for line in lines if "==" in line.split(" ")[0]}
    packages = {_spelling(package) for package in installed}
    return {package for package in packages if not package.startswith(("octavo", "pip", "setuptools"))} - locked


def _spelling(requirement: str) -> str:
    """`Jinja2_X==3.1+cpu` -> `jinja2-x==3.1`: one spelling of names, no build tags."""
    name, _, version = requirement.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version.split('+')[0]}"


def _build_image(checkout: Checkout, image: Path, base: Path) -> None:
    """Build it from a local base, with pip's local wheels where this machine has some."""
    options = ["--mksquashfs-args", "-Xcompression-level 1"]
    arguments = {"bootstrap": "localimage", "base": str(base)}
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        options += ["--bind", f"{wheels}:/mnt"]  # a folder that every base has
        arguments["find_links"] = "/mnt"
    options += [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_IMAGE_OPTIONS", shlex.join(options))
        local = ("snakemake", "--profile", "workflow/profiles/local", "--", str(image.relative_to(checkout.root)))
        checkout.finish(checkout.start(*local), seconds=7200)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A real Slurm: six nodes of one GPU, so that what happens to one run's nodes happens to no other.

    Afterwards nothing of it is left, which is asserted.
    """
    if reason := slurm_cluster.obstacle():
        pytest.skip(f"no Slurm can be brought up here: {reason}")
    slurm_cluster.install_packages()
    with tempfile.TemporaryDirectory(prefix="octavo-slurm-") as name:
        hosts = slurm_cluster.HOSTS.read_text(encoding="utf-8")
        cluster = SlurmCluster(
            Path(name) / "cluster", nodes=6, gpus=1
        )  # short: a socket's path has at most 107 characters
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
        assert cluster.leftovers() == []
        assert not slurm_cluster.CONFIG.exists()
        assert slurm_cluster.HOSTS.read_text(encoding="utf-8") == hosts
        assert not cluster.folder.exists()
