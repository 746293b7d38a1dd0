"""A command of `octavo` as a task of srun: in the cluster file's container, or in the Python that runs Octavo.

Apptainer and pyxis are told the same: which paths the container sees, no home, and which variables. Pyxis hands on all
variables of the job; what is not to be seen is taken away inside, and what Apptainer makes of the definition's
%environment is read there. Options are those of `srun --help` with pyxis 0.11 or newer.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from octavo.cluster.image import Image
from octavo.experiment.cluster import Slurm
from octavo.training.provenance import commit_as_named

TASK_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_LOCALID",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURMD_NODENAME",
)
"""What a rank must know of its place; they differ by task, so the task's shell passes them on."""

ENVIRONMENT = "/.singularity.d/env/90-environment.sh"
"""Where Apptainer writes the definition's %environment."""


def task(
    slurm: Slurm,
    root: Path,
    image: Image | None,
    arguments: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    binds: Sequence[str] = (),
) -> str:
    """The words that follow srun and its options, to run `octavo <arguments>`.

    `root` is the checkout; `variables` and `binds` are given besides the cluster file's.
    """
    settings = _variables(slurm, root, image) | dict(variables or {})
    command = ["octavo", *arguments]
    if image is None:
        return shlex.join(["env", *_assigned(settings), sys.executable, "-m", *command])
    seen = [*_binds(root), *binds, *slurm.binds]
    start = _pyxis if slurm.container == "pyxis" else _apptainer
    return start(root, image, seen, settings, command)


def before(slurm: Slurm, image: Image | None) -> list[str]:
    """The lines of a job's script that come before its first srun."""
    lines = [f"module load {shlex.join(slurm.modules)}"] if slurm.modules else []
    if image and image.variant == "gpu" and slurm.container == "pyxis":
        # enroot's hook gives the driver to an image that asks for it, or to a job that does
        lines.append("export NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    return lines


def _apptainer(root: Path, image: Image, binds: list[str], settings: Mapping[str, str], command: list[str]) -> str:
    passed = (
        f"for name in {' '.join(TASK_VARIABLES)}; do "
        'if [ -n "${!name+set}" ]; then export "APPTAINERENV_$name=${!name}"; fi; done'
    )
    containers = [
        "exec",
        "--contain",
        "--cleanenv",
        "--no-home",
        *(["--nv"] if image.variant == "gpu" else []),
        *(part for bind in binds for part in ("--bind", bind)),
        *(part for setting in _assigned(settings) for part in ("--env", setting)),
        "--pwd",
        str(root),
        str(root / image.path),
    ]
    return f"bash -c {shlex.quote(f'{passed}; exec apptainer {shlex.join([*containers, *command])}')}"


def _pyxis(root: Path, image: Image, binds: list[str], settings: Mapping[str, str], command: list[str]) -> str:
    options = [
        f"--container-image={root / image.path}",
        f"--container-mounts={','.join(map(_mount, binds))}",
        f"--container-workdir={root}",
        "--no-container-mount-home",
        "--no-container-remap-root",
        "--container-readonly",
    ]
    kept = (
        f"kept=(); for name in {' '.join(TASK_VARIABLES)}; do "
        'if [ -n "${!name+set}" ]; then kept+=("$name=${!name}"); fi; done'
    )
    inside = shlex.join(["bash", "-c", f". {ENVIRONMENT}; exec {shlex.join(command)}"])
    return shlex.join(
        [*options, "bash", "-c", f'{kept}; exec env -i "${{kept[@]}}" {shlex.join(_assigned(settings))} {inside}']
    )


def _mount(bind: str) -> str:
    """A bind as pyxis writes it: commas are between mounts, so options have a plus between them."""
    source, *rest = bind.split(":", 2)
    target = rest[0] if rest else source
    return ":".join([source, target, *(options.replace(",", "+") for options in rest[1:])])


def _assigned(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def _variables(slurm: Slurm, root: Path, image: Image | None) -> dict[str, str]:
    variables = dict(slurm.environment) | {"OCTAVO_ROOT": str(root)}
    if image:
        variables |= {
            # the checkout's code, which the provenance's commit names; the image holds all that it needs
            "PYTHONPATH": str(root / "src"),
            "OCTAVO_IMAGE_DIGEST": image.digest,
            "OCTAVO_COMMIT": commit_as_named(),
        }
    return variables


def _binds(root: Path) -> list[str]:
    results = root / "results"
    # in this order: a checkout below /tmp is read-only, too
    return ["/dev:/dev", "/tmp:/tmp", f"{root}:{root}:ro", f"{results}:{results}"]
