"""The tests' tiny experiment, a checkout to run it in, and `octavo` and `snakemake` started in it as a user does."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"

LIMIT = 1800
"""Seconds that a process may take: far more than on a slow and busy machine, so that only one that hangs is stopped."""

HEEDS_CTRL_C = ("/usr/bin/env", "--default-signal=INT")
"""What starts a command that is told to stop by SIGINT: a shell lets tests in the background ignore it."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""Tiny models gain nothing from threads, and threads that spin while they wait starve the other tests."""

SIZES: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 32,
    "attention": {"kind": "gqa", "heads": 2, "kv_heads": 2, "head_size": 16},
    "vocabulary_size": 320,  # the tokenizer's 257, and even
}
TINY: dict[str, Any] = {
    "description": "Tiny models that take milliseconds a step.",
    "models": {
        "dense": {**SIZES, "feed_forward_size": 64},
        "moe": {
            **SIZES,
            "experts": {"count": 4, "top_k": 2, "size": 32, "router": {"balance": "aux_loss", "aux_loss_weight": 0.01}},
        },
    },
    "precisions": ["bf16", "fp8_blockwise"],
    "seeds": [1],
    "data": {"sources": [{"kind": "files", "path": "text", "held_out": ["*-0.txt"]}]},
    "tokenizer": {"kind": "bytes"},
    "training": {
        "steps": 40,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "sequence_length": 32,
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"interval": 10, "sequences": 4, "final_sequences": 8},
        "checkpoints": {"interval": 10},
    },
    "cluster": "laptop",
}


def changed(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of `value` with the values at dotted paths replaced or added; ... (Ellipsis) removes a key."""
    copy = json.loads(json.dumps(value))
    for path, new in changes.items():
        *parents, last = path.split(".")
        target = copy
        for key in parents:
            target = target.setdefault(key, {})
        if new is ...:
            del target[last]
        else:
            target[last] = json.loads(json.dumps(new))  # a copy: later changes are not those of the caller
    return copy


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the session's processes makes and all of them read."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose base is a folder of the session's
        shared = shared.parent
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def write_text(folder: Path) -> None:
    """Twelve documents of about 2,000 bytes, `document-0.txt` to `document-11.txt`."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 7))) for _ in range(60)]
    folder.mkdir()
    for document in range(12):
        text = " ".join(generator.choices(words, weights=range(60, 0, -1), k=400))
        (folder / f"document-{document}.txt").write_text(text)


def copy_configs(root: Path, parts: Iterable[str] = ("claims", "clusters", "data", "models", "published")) -> None:
    """Copy parts of this repository's configs/ into a checkout, beside what it has of them."""
    for part in parts:
        shutil.copytree(REPOSITORY / "configs" / part, root / "configs" / part, dirs_exist_ok=True)


def copy_workflow(root: Path) -> None:
    """Copy the rules and their profiles into a checkout."""
    shutil.copytree(REPOSITORY / "workflow", root / "workflow")
    shutil.copy(REPOSITORY / "Snakefile", root)


def environment(root: Path) -> dict[str, str]:
    """Of a process that works in a checkout."""
    return {**os.environ, **ONE_THREAD, "OCTAVO_ROOT": str(root)}


def octavo(root: Path, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A verb in a process of its own, started in `folder` (the checkout, unless it says another)."""
    return subprocess.run(
        [sys.executable, "-m", "octavo", *arguments],
        cwd=folder or root, env=environment(root), capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip


class Checkout:
    """A checkout with the tiny experiment, and the commands that a user types in it."""

    def __init__(self, root: Path, experiment: dict[str, Any] = TINY) -> None:
        self.root = root
        if not (root / "configs").exists():
            copy_configs(root)
            copy_workflow(root)
            write_text(root / "text")
            self.write(experiment)

    def write(self, experiment: dict[str, Any], name: str = "tiny") -> None:
        """Write an experiment's file."""
        path = self.root / "configs" / "experiments" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(experiment, sort_keys=False))

    def octavo(self, *arguments: str) -> str:
        """Run a verb that must succeed; what it printed."""
        done = octavo(self.root, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, target: str, *options: str) -> subprocess.Popen[str]:
        """Start the pipeline, in a process group of its own and without .venv/bin on its PATH."""
        return subprocess.Popen(
            [*HEEDS_CTRL_C, str(SNAKEMAKE), "--profile", "workflow/profiles/local", "--cores", "2", *options, target],
            cwd=self.root, env={**environment(self.root), "PATH": "/usr/bin:/bin"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def snakemake(self, target: str, *options: str, status: int = 0) -> str:
        """Run the pipeline to its end; what it printed."""
        process = self.start(target, *options)
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == status, output
        return output
