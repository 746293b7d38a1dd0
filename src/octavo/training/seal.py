"""What a checkpoint is known by: `hashes.json` in it, with the run and the data set it belongs to and the hash of every
file.

Sealed before the rename that calls it whole, and looked at before a run goes on from it: one that is half-written,
rotten, another run's or of other text is not gone on from. Imports nothing heavy: verification reads seals without
torch.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from octavo.errors import OctavoError
from octavo.files import read_json, sha256, write_json

SEAL = "hashes.json"


def seal(checkpoint: Path, step: int, run_fingerprint: str, data_manifest_sha256: str) -> None:
    """Write the seal of a checkpoint folder, whose name need not be its last one yet."""
    of = {"run_fingerprint": run_fingerprint, "data_manifest_sha256": data_manifest_sha256, "step": step}
    write_json(checkpoint / SEAL, {**of, "files": _hashes(checkpoint)})


def problems(checkpoint: Path, run_fingerprint: str, data_manifest_sha256: str) -> list[str]:
    """What is wrong with a checkpoint, one sentence each; nothing where it is what was sealed."""
    try:
        found = read_json(checkpoint / SEAL, made_by="octavo train")
        of_run, of_data, step = (found[key] for key in ("run_fingerprint", "data_manifest_sha256", "step"))
        files = dict(found["files"])
    except (OctavoError, KeyError, TypeError, ValueError):
        return [f"{checkpoint.name} has no whole {SEAL}: it is half-written, or another version's"]
    if of_run != run_fingerprint or checkpoint.name != f"step-{step}":
        return [f"{checkpoint.name} is another run's or another step's: it was swapped"]
    if of_data != data_manifest_sha256:
        return [f"{checkpoint.name} was trained on another data set ({of_data[:12]})"]
    there = _hashes(checkpoint)
    return [
        f"{checkpoint.name}/{name} is {'missing' if name not in there else 'not what was saved'}"
        for name in sorted(there.keys() | files.keys())
        if there.get(name) != files.get(name)
    ]


def discard_unsound(checkpoints: Path, run_fingerprint: str, data_manifest_sha256: str) -> list[str]:
    """Remove the checkpoints that a run must not go on from; what was wrong with them."""
    discarded: list[str] = []
    for checkpoint in sorted(checkpoints.glob("step-*")):
        if wrong := problems(checkpoint, run_fingerprint, data_manifest_sha256):
            discarded += wrong
            shutil.rmtree(checkpoint)
    return discarded


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints there are, the earliest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))


def _hashes(checkpoint: Path) -> dict[str, str]:
    """File name -> SHA-256; several files at a time, as hashing holds no lock."""
    paths = sorted(path for path in checkpoint.iterdir() if path.name != SEAL and path.is_file())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))
