"""Where a run of a shorter horizon begins: at a checkpoint of the longest run of its cell and seed, the trunk.

With a warm-up, stable, decay schedule (arXiv 2404.06395, 2405.18392) runs of all lengths are the same up to the first
decay. The trunk trains the whole length and keeps a checkpoint where each shorter run leaves it; the shorter run loads
it and trains its decay alone. What comes of it is, to the last bit, what the whole run would have come to. It never
trains the trunk's part itself: the plan does not count that, so where the checkpoint is gone the run does not start.
"""

from __future__ import annotations

from pathlib import Path

from octavo.errors import OctavoError
from octavo.experiment.run import RunConfig
from octavo.layout import RunFolder
from octavo.records import Result, read_record
from octavo.training import seal


def trunk_checkpoint(run: RunConfig, folder: RunFolder) -> Path | None:
    """The checkpoint that a run begins from; None where it begins by itself, or its trunk diverged before it."""
    if run.trunk is None:
        return None
    return None if diverged_early(run, folder) else _trunk_folder(run, folder).checkpoint(run.begins_after)


def check_trunk(run: RunConfig, folder: RunFolder, manifest_sha256: str) -> None:
    """Raise an OctavoError where a run cannot begin: its trunk's checkpoint is gone, damaged, or another run's."""
    checkpoint = trunk_checkpoint(run, folder)
    if checkpoint is None or seal.saved_steps(folder.checkpoints):
        return
    again = f"train the trunk again, which keeps it: move {checkpoint.parents[1]} away and give the same command"
    if not checkpoint.is_dir():
        raise OctavoError(
            f"the trunk's checkpoint is not there, from which the run of {run.training.total_steps} steps begins",
            where=checkpoint,
            expected=f"the checkpoint of {run.trunk}/seed-{run.seed} after step {run.begins_after}",
            fix=f"where the trunk is not trained yet, train it first; where it is, {again}",
        )
    if wrong := seal.problems(checkpoint, run.trunk_run().own_identity, manifest_sha256):
        raise OctavoError(
            f"the run cannot begin from the trunk's checkpoint: {'; '.join(wrong)}", where=checkpoint, fix=again
        )


def diverged_early(run: RunConfig, folder: RunFolder) -> bool:
    """Whether a run has diverged before it begins: its trunk did, in the part of it that is also this run's."""
    if run.trunk is None or not (trunk := _trunk_folder(run, folder)).result.exists():
        return False
    result = read_record(trunk.result, Result, made_by=f"octavo train {trunk.path}")
    ours = run.trunk_run().own_identity.holds(result)
    return ours and result.status == "diverged" and result.steps <= run.begins_after


def _trunk_folder(run: RunConfig, folder: RunFolder) -> RunFolder:
    if folder.trunk is None:
        raise OctavoError(
            "the run begins from a checkpoint, and its folder is not in its trunk's",
            where=folder.path,
            expected=f"a folder horizon-{run.training.total_steps} in the folder of {run.trunk}/seed-{run.seed}",
        )
    return folder.trunk
