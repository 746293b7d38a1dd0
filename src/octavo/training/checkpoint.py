"""Checkpoints by megatron.core.dist_checkpointing: one folder per step, whole or not there.

All ranks save into a folder whose name begins with a dot; when all are done the leading rank flushes it to disk and
renames it, so that every `step-<n>` there is, is whole. It holds the model, the FP32 main parameters, the optimizer's
state and the schedule. Nothing that a checkpoint holds is executed (`octavo.training.plain_reading`).
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from octavo.errors import OctavoError
from octavo.files import flush, unwritable
from octavo.training.assembly import unwrapped
from octavo.training.plain_reading import PlainPlanner, PlainReader, check_scaling_state
from octavo.training.seal import saved_steps, seal


class Checkpointer:
    """Saves and loads the state of one run."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        chunks: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        *,
        leads: bool,
        run_fingerprint: str,
        data_manifest_sha256: str,
    ) -> None:
        self.folder, self.keep, self.leads = folder, keep, leads
        self.run_fingerprint, self.data_manifest_sha256 = run_fingerprint, data_manifest_sha256
        self.chunks, self.optimizer, self.scheduler = chunks, optimizer, scheduler

    def save(self, step: int) -> None:
        """Save after `step` steps; keep the newest few."""
        partial, whole = self.folder / f".step-{step}", self._of(step)
        if self.leads:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            except OSError as error:
                raise unwritable(partial, error) from error
        torch.distributed.barrier()
        try:
            dist_checkpointing.save(self._state(is_loading=False), str(partial), sharded_strategy=_InProcess())
        except (OSError, CheckpointException) as error:
            refused = next((one for one in _reasons(error) if isinstance(one, OSError)), None)
            if refused is not None:
                raise unwritable(partial, refused) from error
            raise OctavoError(f"the checkpoint cannot be written: {_last_line(error)}", where=partial) from error
        torch.distributed.barrier()
        if self.leads:
            try:
                seal(partial, step, self.run_fingerprint, self.data_manifest_sha256)
                for path in (*partial.rglob("*"), partial):
                    flush(path)
                shutil.rmtree(whole, ignore_errors=True)
                partial.rename(whole)
                flush(self.folder)
            except OSError as error:
                raise unwritable(whole, error) from error
            for old in saved_steps(self.folder)[: -self.keep]:
                shutil.rmtree(self._of(old), ignore_errors=True)

    def load_newest(self) -> int:
        """Load the newest checkpoint; the steps done, 0 if there is none."""
        steps = saved_steps(self.folder)
        if not steps:
            return 0
        path = self._of(steps[-1])
        try:
            state: Any = dist_checkpointing.load(
                self._state(is_loading=True), str(path), _PlainlyRead(), TorchCommonLoadStrategy()
            )
            for name, _ in self._models():
                check_scaling_state(state[name])
        except (*_UNREADABLE, CheckpointException) as error:
            raise OctavoError(
                f"the checkpoint cannot be read: {_last_line(error)}",
                where=path,
                fix=f"remove it ({'the one before is used' if len(steps) > 1 else 'the run begins anew'})",
            ) from error
        for name, model in self._models():
            model.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return steps[-1]

    def remove_partial(self) -> None:
        """Remove what a killed save left."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _models(self) -> list[tuple[str, GPTModel]]:
        """The model's chunks by name; Megatron keys their tensors by layer, so that chunks of other stages fit in."""
        return [(f"model{index}", unwrapped(chunk)) for index, chunk in enumerate(self.chunks)]

    def _state(self, *, is_loading: bool) -> dict[str, Any]:
        # where multi-token prediction is on another stage than the embedding, Megatron asks for this group itself
        described = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        models = {name: model.sharded_state_dict(metadata=described) for name, model in self._models()}
        flat = models["model0"] if len(models) == 1 else models
        return {
            **models,
            "optimizer": self.optimizer.sharded_state_dict(flat, is_loading=is_loading),
            "scheduler": self.scheduler.state_dict(),
        }


_UNREADABLE = (
    OSError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, ValueError, pickle.UnpicklingError,
    dist_checkpointing.core.CheckpointingException,
)  # fmt: skip


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it; torch's CheckpointException holds one error of every rank that failed."""
    yield error
    if isinstance(error, CheckpointException):
        for one, _ in error.failures.values():
            yield from _reasons(one)
    earlier = error.__cause__ or error.__context__
    if earlier is not None:
        yield from _reasons(earlier)


def _last_line(error: BaseException) -> str:
    """What an error says, without the traceback that torch puts into its text."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


class _InProcess(torch_strategy.TorchDistSaveShardedStrategy):
    """Megatron's torch_dist format, written by this process.

    Megatron's own writer starts a process for a queue and two more for every save, which takes longer than most runs'
    steps between saves; the files are the same.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards."""
        by_key, _, _ = torch_strategy._replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        save_shards(
            torch_strategy.mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=False),
            planner=torch_strategy.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


class _PlainlyRead(torch_strategy.TorchDistLoadShardedStrategy):
    """The same format, read without executing anything: Megatron's own strategy knows but one reader and planner."""

    def load(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> Any:
        """This rank's shards, in the places of the tensors that describe them."""
        by_key, places, names = torch_strategy._replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        state = torch_strategy.mcore_to_pyt_state_dict(by_key, True)
        tensors = [one for one in nested_values(sharded_state_dict) if isinstance(one, ShardedTensor)]
        planner = PlainPlanner(shapes_validation_sharded_tensors=tensors)
        load_shards(state, PlainReader(checkpoint_dir), planner=planner)
        loaded = {name: torch_strategy._unwrap_pyt_sharded_tensor(value) for name, value in state.items()}
        restored = torch_strategy._replace_sharded_keys_with_state_dict_keys(loaded, places, names)
        torch_strategy._restore_dict_types(restored, sharded_state_dict)
        return restored
