"""Checkpoints by megatron.core.dist_checkpointing: one folder per step, whole or not there.

All ranks save into a folder whose name begins with a dot; when all are done the leading rank flushes it to disk and
renames it, so that every `step-<n>` there is, is whole. It holds the model, the FP32 main parameters, the optimizer's
state and the schedule. Nothing that a checkpoint holds is executed (`octavo.training.plain_reading`).

Unless the experiment forbids it, a run of another layout can go on from it. Its tensors are then known by the names of
parameters and their places in them, the optimizer's too (Megatron's `fully_reshardable`). Whatever else an optimizer
has (groups of parameters, rates, lists as long as this rank's share) belongs to a layout and follows from the
configuration and the schedule: each rank keeps its own, and of the checkpoint it takes the number of steps alone.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedTensor,
)
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from octavo.errors import OctavoError
from octavo.experiment.run import RunIdentity
from octavo.files import flush, unwritable
from octavo.megatron_versions import check_readable, load_checkpoint
from octavo.precision.megatron import know_loaded_magnitudes
from octavo.records import LayoutSince
from octavo.training.assembly import unwrapped
from octavo.training.plain_reading import (
    PlainPlanner,
    PlainReader,
    check_scaling_state,
    checked_scaling_state,
    read_common,
)
from octavo.training.seal import read_seal, saved_steps, seal, step_of


class Checkpointer:
    """Saves and loads the state of one run."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_always: list[int],
        chunks: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        *,
        leads: bool,
        identity: RunIdentity,
        layouts: list[LayoutSince],
        data_manifest_sha256: str,
    ) -> None:
        self.folder, self.keep, self.keep_always, self.leads = folder, keep, keep_always, leads
        self.identity, self.layouts, self.data_manifest_sha256 = identity, layouts, data_manifest_sha256
        self.chunks, self.optimizer, self.scheduler = chunks, optimizer, scheduler

    def save(self, step: int) -> None:
        """Save after `step` steps; keep the newest few, and those that other runs begin from."""
        partial, whole = self.folder / f".step-{step}", self._of(step)
        if self.leads:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            except OSError as error:
                raise unwritable(partial, error) from error
        torch.distributed.barrier()
        try:
            state = self._state(reshardable=self.identity.reshards, is_loading=False)
            if self.identity.reshards:
                optimizer = state.pop("optimizer")
                state |= {"optimizer": dict(enumerate(_sharded(optimizer))), "counts": _counts(optimizer)}
            dist_checkpointing.save(state, str(partial), sharded_strategy=_InProcess())
        except (OSError, CheckpointException) as error:
            refused = next((one for one in _reasons(error) if isinstance(one, OSError)), None)
            if refused is not None:
                raise unwritable(partial, refused) from error
            raise OctavoError(f"the checkpoint cannot be written: {_last_line(error)}", where=partial) from error
        torch.distributed.barrier()
        if self.leads:
            try:
                seal(partial, step, self.identity, self.data_manifest_sha256, self.layouts)
                for path in (*partial.rglob("*"), partial):
                    flush(path)
                shutil.rmtree(whole, ignore_errors=True)
                partial.rename(whole)
                flush(self.folder)
            except OSError as error:
                raise unwritable(whole, error) from error
            for old in [one for one in saved_steps(self.folder) if one not in self.keep_always][: -self.keep]:
                shutil.rmtree(self._of(old), ignore_errors=True)

    def load_newest(self, of_trunk: Path | None = None) -> int:
        """Load the newest checkpoint or, where there is none, the trunk's; the steps done, 0 if there is neither."""
        steps = saved_steps(self.folder)
        path = self._of(steps[-1]) if steps else of_trunk
        if path is None:
            return 0
        check_readable(path, read_seal(path).megatron_core)
        try:
            state = self._load(path)
            for name, _ in self._models():
                check_scaling_state(state[name])
        except (*_UNREADABLE, CheckpointException) as error:
            raise OctavoError(
                f"the checkpoint cannot be read: {_last_line(error)}",
                where=path,
                fix=f"remove it ({'the one before is used' if len(steps) > 1 else 'the run begins anew'})"
                if steps
                else f"train the trunk again: move {path.parents[1]} away",
            ) from error
        for name, model in self._models():
            with checked_scaling_state():
                model.load_state_dict(state[name])
            know_loaded_magnitudes(model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return step_of(path)

    def _load(self, path: Path) -> dict[str, Any]:
        reshardable = read_seal(path).reshardable
        state = self._state(reshardable=reshardable, is_loading=True)
        if not reshardable:
            return load_checkpoint(state, str(path), _PlainlyRead(), read_common)
        optimizer = state.pop("optimizer")
        asked = {**state, "optimizer": dict(enumerate(_sharded(optimizer)))}
        loaded = load_checkpoint(asked, str(path), _PlainlyRead(), read_common)
        return {**loaded, "optimizer": _filled(optimizer, loaded["optimizer"], loaded["counts"])}

    def remove_partial(self) -> None:
        """Remove what a killed save left."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _models(self) -> list[tuple[str, GPTModel]]:
        """The model's chunks by name; Megatron keys their tensors by layer, so that chunks of other stages fit in."""
        return [(f"model{index}", unwrapped(chunk)) for index, chunk in enumerate(self.chunks)]

    def _state(self, *, reshardable: bool, is_loading: bool) -> dict[str, Any]:
        # where multi-token prediction is on another stage than the embedding, Megatron asks for this group itself
        described: dict[str, Any] = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        described["reshardable"] = reshardable  # for our own modules
        described["distrib_optim_sharding_type"] = "fully_reshardable" if reshardable else "dp_reshardable"
        # names without the number of the optimizer: there is one more where experts are spread over ranks
        described["chained_optim_avoid_prefix"] = reshardable
        models = {name: model.sharded_state_dict(metadata=described) for name, model in self._models()}
        flat = models["model0"] if len(models) == 1 else models
        return {
            **models,
            "optimizer": self.optimizer.sharded_state_dict(flat, is_loading=is_loading, metadata=described),
            "scheduler": self.scheduler.state_dict(),
        }


def _sharded(optimizer: Any) -> list[Any]:
    """The tensors of an optimizer's state, each with its name and place, in the order in which they stand there."""
    return [leaf for leaf in nested_values(optimizer) if isinstance(leaf, ShardedBase)]


def _counts(optimizer: Any) -> dict[str, Any]:
    """How many steps an optimizer counts: torch's AdamW for all parameters, Transformer Engine's by group."""
    counts: dict[str, Any] = {}
    for inner in _inner(optimizer):
        if (common := inner.get("state", {}).get("common_step")) is not None:
            counts["parameters"] = common
        if of_groups := [group["step"] for group in inner["param_groups"] if group.get("step") is not None]:
            counts["groups"] = of_groups[0]
    return counts


def _filled(optimizer: Any, tensors: dict[int, Any], counts: dict[str, Any]) -> Any:
    """An optimizer's state with what was loaded in its places, and everything else as it was."""
    loaded = iter(range(len(tensors)))

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, ShardedBase):
            return tensors[next(loaded)]
        return leaf.unwrap() if isinstance(leaf, LocalNonpersistentObject) else leaf

    filled = dict_list_map_outplace(fill, optimizer)
    for inner in _inner(filled):
        if "parameters" in counts:
            inner["state"]["common_step"] = counts["parameters"]
        if "groups" in counts:
            for group in inner["param_groups"]:
                group["step"] = counts["groups"]
    return filled


def _inner(optimizer: Any) -> list[dict[str, Any]]:
    """The state of each of Megatron's optimizers: experts spread over ranks have one of their own."""
    return [one["optimizer"] for one in ([optimizer] if "optimizer" in optimizer else optimizer.values())]


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

    def load(self, sharded_state_dict: Any, checkpoint_dir: str | Path, async_strategy: str = "") -> Any:  # noqa: ARG002
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
