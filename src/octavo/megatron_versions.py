"""Where Megatron-Core 0.16 and 0.19 differ in what Octavo asks of them, and the same call does not do for both.

Nothing else asks which of the two it has; names and arguments that only one has are accepted where they occur.

0.16.1 is the newest that Python 3.11 can have, 0.19.2 is what the locks name from Python 3.12 on. What Megatron-Core
must be told where there is no CUDA is in `octavo.cpu.backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version
from torch import Tensor

from octavo.errors import OctavoError

INSTALLED = version("megatron-core")

_SINCE_0_17 = Version(INSTALLED) >= Version("0.17")


def load_checkpoint(
    state: dict[str, Any], folder: str, strategy: Any, read_common: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Fill a sharded state from a checkpoint folder; `strategy` reads its shards.

    What is the same on all ranks lies in `common.pt` in 0.16, which torch reads as data. In 0.19 it is a value among
    the shards (`COMMON`), which Megatron-Core would unpickle, with whatever code it names: `read_common` reads it
    instead. 0.19 reads the checkpoints of 0.16.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import serialization

    if not _SINCE_0_17:
        from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy

        return dist_checkpointing.load(state, folder, strategy, TorchCommonLoadStrategy())  # type: ignore[return-value]
    theirs: Any = serialization.load_common_state_dict

    def plainly(folder: str) -> Any:
        kept_apart: Any = serialization._legacy_common_state_exists  # type: ignore[attr-defined]
        return theirs(folder) if kept_apart(folder) else read_common(folder)

    serialization.load_common_state_dict = plainly
    try:
        return dist_checkpointing.load(state, folder, strategy)  # type: ignore[return-value]
    finally:
        serialization.load_common_state_dict = theirs


def check_readable(folder: Path, saved_by: str | None) -> None:
    """Raise an OctavoError for a checkpoint that the installed version cannot read: 0.16 of what a newer one saved.

    0.16 does not look among the shards for what all ranks share.
    """
    if _SINCE_0_17 or (folder / "common.pt").exists():
        return
    other = saved_by or "newer than 0.16"
    raise OctavoError(
        f"the checkpoint is of Megatron-Core {other}, which the installed {INSTALLED} cannot read",
        where=folder,
        expected=f"Megatron-Core {INSTALLED} or older",
        fix=f"go on with Megatron-Core {other} (Python 3.12 or newer); or move {folder.parents[1]} away, and the run "
        "begins anew",
    )


COMMON = "common_state/shard_0_1"
"""The key under which 0.19 keeps the values that are the same on all ranks."""


def load_balancing_loss() -> Tensor | None:
    """The auxiliary loss of each layer, summed over micro-batches since the last call; None where there was none."""
    noted = _noted().get("load_balancing_loss")
    if not noted:
        return None
    values: Tensor = noted.values if _SINCE_0_17 else noted["values"]
    loss = values.clone()
    values.zero_()
    return loss


def forget_layers() -> None:
    """Forget what routers noted: it has as many layers as the model that noted it, and the next may have more."""
    _noted().clear()


def _noted() -> dict[str, Any]:
    """What routers noted, by name: a dictionary each in 0.16, an object in 0.19.

    0.19 still has 0.16's function, but its answer there is a copy.
    """
    if _SINCE_0_17:
        from megatron.core.transformer.moe.moe_utils import get_moe_metrics_tracker  # type: ignore[attr-defined]

        return get_moe_metrics_tracker().metrics
    from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

    return get_moe_layer_wise_logging_tracker()


def latent_attention() -> type:
    """Multi-head latent attention made of the modules that its spec names.

    Where queries are not compressed 0.19 puts a second norm before them (`mla_qk_norm_config.py`), which no published
    model has, and fails where norm and projection are two modules.
    """
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    class LatentAttention(MLASelfAttention):
        def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:  # of 0.19 alone
            resolved = ("linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "q_layernorm", "kv_layernorm")
            return {name: getattr(submodules, name) for name in resolved}

    return LatentAttention if _SINCE_0_17 else MLASelfAttention


def grouped_experts(module: type) -> Any:
    """What a `BackendSpecProvider` answers where all experts of a layer are one module without parts of its own."""
    return module if _SINCE_0_17 else (module, None)
