"""Container images: `container.def` and a lock -> `results/images/<variant>.sif`, with a record of what is in it.

What pyxis starts, `<variant>.sqsh`, is the file system inside that file: a SIF holds it as one of its partitions
(https://github.com/apptainer/sif), byte by byte what enroot and the kernel read as squashfs.

The record is what runs rest on: its digest goes into every run's provenance. An image is made again when the
definition or its lock changed, and for no other reason (`inputs_digest` is what the rule watches).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from octavo.errors import OctavoError
from octavo.experiment.cluster import Container
from octavo.files import atomic_path, read_json, sha256, write_json
from octavo.layout import image_file, image_record

Variant = Literal["gpu", "cpu"]

DEFINITION = Path("container.def")
LOCKS: dict[Variant, Path] = {"gpu": Path("requirements-gpu.lock"), "cpu": Path("requirements.lock")}
CUDA_LOCK = Path("requirements-cuda.lock")
"""What torch needs in the CPU image where only PyPI's build of it can be had."""

GPU_PACKAGES = Path("src/octavo/cluster/gpu-packages.sh")
"""How the GPU image's lock is installed."""

BUILD_OPTIONS = "OCTAVO_IMAGE_OPTIONS"
"""Environment variable: further options of `apptainer build`, for sites that cannot reach a registry or PyPI."""


@dataclass(frozen=True)
class Image:
    """A built image."""

    variant: Variant
    path: Path
    """Of the .sif or .sqsh, relative to the checkout."""
    digest: str
    """sha256:<hexadecimal> of the file."""


def read_image(root: Path, variant: Variant, container: Container = "apptainer") -> Image:
    """A built image, as `container` starts it. Raises OctavoError where it is not built."""
    path = image_file(variant, container)
    made_by = f"snakemake --cores 2 {path}"
    record = read_json(image_record(root / path), made_by=made_by)
    if not (root / path).exists():
        raise OctavoError("the image is missing", where=root / path, fix=f"build it: {made_by}")
    return Image(variant, path, record["digest"])


def inputs_digest(root: Path, variant: Variant) -> str:
    """A hash of all that an image is made again for: its definition and its locks."""
    files = [DEFINITION, LOCKS[variant], CUDA_LOCK if variant == "cpu" else GPU_PACKAGES]
    return hashlib.sha256("".join(sha256(root / file) for file in files).encode()).hexdigest()


def build_image(root: Path, variant: Variant) -> Image:
    """Build an image and write its record beside it; the definition's own test runs at the end of the build.

    Raises OctavoError where Apptainer is missing or the build fails.
    """
    apptainer, target = _apptainer(), root / image_file(variant)
    with atomic_path(target) as temporary:
        arguments = {"variant": variant, "lock": str(LOCKS[variant])}
        command = [apptainer, "build", "--force"]
        command += [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        command += [*shlex.split(os.environ.get(BUILD_OPTIONS, "")), str(temporary), str(DEFINITION)]
        if subprocess.run(command, cwd=root, check=False).returncode:
            raise OctavoError(
                "the image could not be built",
                where=root / DEFINITION,
                fix=f"see above; without a registry or PyPI: {BUILD_OPTIONS} (docs/cluster.md)",
            )
        packages = {name: _listed(apptainer, temporary, f"/opt/octavo/{name}.txt") for name in ("pip", "debian")}
        digest = f"sha256:{sha256(temporary)}"
        temporary.chmod(0o755)
    record = {
        "digest": digest,
        "variant": variant,
        "bytes": target.stat().st_size,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "apptainer": subprocess.run(
            [apptainer, "--version"], check=True, capture_output=True, text=True
        ).stdout.strip(),
        "lock_sha256": sha256(root / LOCKS[variant]),
        "inputs": inputs_digest(root, variant),
        "definition": (root / DEFINITION).read_text(encoding="utf-8"),
        "packages": packages,
    }
    write_json(image_record(target), record)
    return Image(variant, image_file(variant), digest)


def build_squashfs(root: Path, variant: Variant) -> Image:
    """Take the file system out of the .sif, which is built first where it is not that of the definition and the lock.

    Raises OctavoError where Apptainer is missing or the build fails.
    """
    apptainer, sif, target = _apptainer(), root / image_file(variant), root / image_file(variant, "pyxis")
    if not _is_current(root, variant):
        build_image(root, variant)
    record = read_json(image_record(sif), made_by="octavo image")
    listed = subprocess.run([apptainer, "sif", "list", str(sif)], check=True, capture_output=True, text=True).stdout
    partitions = re.findall(r"^(\d+)\s*\|.*FS \(Squashfs/", listed, re.MULTILINE)
    if len(partitions) != 1:
        raise OctavoError(
            f"the image has {len(partitions)} squashfs partitions", where=sif, expected="one", fix="build it anew"
        )
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            subprocess.run([apptainer, "sif", "dump", partitions[0], str(sif)], check=True, stdout=file)
        digest = f"sha256:{sha256(temporary)}"
    changes = {"digest": digest, "sif_digest": record["digest"], "bytes": target.stat().st_size}
    write_json(image_record(target), record | changes)
    return Image(variant, image_file(variant, "pyxis"), digest)


def _is_current(root: Path, variant: Variant) -> bool:
    """Whether the .sif is there and was made from the definition and the lock that there are now."""
    sif = root / image_file(variant)
    if not (sif.exists() and image_record(sif).exists()):
        return False
    record = read_json(image_record(sif), made_by="octavo image")
    return record.get("inputs") == inputs_digest(root, variant)


def _apptainer() -> str:
    if (found := shutil.which("apptainer")) is None:
        raise OctavoError(
            "apptainer is not there",
            where="PATH",
            fix="install Apptainer 1.2 or newer (https://apptainer.org), build the image elsewhere and copy it "
            "(docs/sites), or set slurm.container: none in the cluster file",
        )
    return found


def _listed(apptainer: str, image: Path, file: str) -> list[str]:
    command = [apptainer, "exec", "--contain", "--cleanenv", "--no-home", str(image), "cat", file]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
