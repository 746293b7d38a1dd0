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
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from octavo.errors import OctavoError
from octavo.experiment.run import RunIdentity
from octavo.files import read_json, sha256, write_json
from octavo.records import LayoutSince, Record, laid_out

SEAL = "hashes.json"


class Seal(Record):
    """`hashes.json` of a checkpoint."""

    run_fingerprint: str
    computation_fingerprint: str | None = None
    """Null in checkpoints from before it was recorded, which no other layout goes on from."""
    data_manifest_sha256: str
    step: int
    layouts: list[LayoutSince] = []
    """The layouts that its steps were trained under; empty in checkpoints from before they were recorded: the run's."""
    reshardable: bool = False
    """Whether it is in the form that another layout can go on from."""
    megatron_core: str | None = None
    """The version that saved it; null in checkpoints from before that was noted."""
    files: dict[str, str]
    """Name -> SHA-256 of the checkpoint's files."""


def seal(
    checkpoint: Path, step: int, identity: RunIdentity, data_manifest_sha256: str, layouts: list[LayoutSince]
) -> None:
    """Write the seal of a checkpoint folder, whose name need not be its last one yet."""
    made = Seal(
        run_fingerprint=identity.run_fingerprint,
        computation_fingerprint=identity.computation_fingerprint,
        data_manifest_sha256=data_manifest_sha256,
        step=step,
        layouts=layouts,
        reshardable=identity.reshards,
        megatron_core=version("megatron-core"),
        files=_hashes(checkpoint),
    )
    write_json(checkpoint / SEAL, made.model_dump())


def read_seal(checkpoint: Path) -> Seal:
    """A checkpoint's seal. Raises OctavoError where there is none, or it is cut short."""
    path = checkpoint / SEAL
    try:
        return Seal.model_validate(read_json(path, made_by="octavo train"))
    except ValidationError:
        raise OctavoError("the file is not a checkpoint's seal", where=path, fix=f"remove {checkpoint}") from None


def problems(checkpoint: Path, identity: RunIdentity, data_manifest_sha256: str) -> list[str]:
    """What is wrong with a checkpoint, one sentence each; nothing where it is what was sealed."""
    try:
        found = read_seal(checkpoint)
    except OctavoError:
        return [f"{checkpoint.name} has no whole {SEAL}: it is half-written, or another version's"]
    if other := _of_another(found, checkpoint.name, identity):
        return [f"{checkpoint.name} {other}"]
    if found.data_manifest_sha256 != data_manifest_sha256:
        return [f"{checkpoint.name} was trained on another data set ({found.data_manifest_sha256[:12]})"]
    files, there = found.files, _hashes(checkpoint)
    return [
        f"{checkpoint.name}/{name} is {'missing' if name not in there else 'not what was saved'}"
        for name in sorted(there.keys() | files.keys())
        if there.get(name) != files.get(name)
    ]


def _of_another(found: Seal, name: str, identity: RunIdentity) -> str | None:
    """Why a run cannot go on from a checkpoint with this seal, whatever its files are; None: it can."""
    if name == f"step-{found.step}" and identity.holds(found):
        if found.reshardable or found.run_fingerprint == identity.run_fingerprint:
            return None
        return f"was saved where resharding was forbidden, in a form for {laid_out(found.layouts)} alone"
    if name == f"step-{found.step}" and found.computation_fingerprint == identity.computation_fingerprint:
        return (
            f"was trained under another layout ({laid_out(found.layouts)}), and training.checkpoints.resharding "
            "forbids to go on from it"
        )
    return "is another run's or another step's: it was swapped"


def discard_unsound(checkpoints: Path, identity: RunIdentity, data_manifest_sha256: str) -> list[str]:
    """Remove the checkpoints that a run must not go on from; what was wrong with them."""
    discarded: list[str] = []
    for checkpoint in sorted(checkpoints.glob("step-*")):
        if wrong := problems(checkpoint, identity, data_manifest_sha256):
            discarded += wrong
            shutil.rmtree(checkpoint)
    return discarded


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints there are, the earliest first."""
    return sorted(step_of(path) for path in checkpoints.glob("step-*"))


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def _hashes(checkpoint: Path) -> dict[str, str]:
    """File name -> SHA-256; several files at a time, as hashing holds no lock."""
    paths = sorted(path for path in checkpoint.iterdir() if path.name != SEAL and path.is_file())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))
