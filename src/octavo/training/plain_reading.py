"""Reading a checkpoint without executing anything that it holds.

torch's index of a checkpoint (`.metadata`) is a pickle, its values beside tensors are `torch.save` files, and
Transformer Engine's scaling state is a pickle in a byte tensor. A pickle runs whatever callable it names, so each is
read, or looked through before it is handed on, with the few names that it needs and no others.
"""

from __future__ import annotations

import enum
import io
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict as load_shards

from octavo.megatron_versions import COMMON

_DTYPES = {("torch", str(one).removeprefix("torch.")) for one in vars(torch).values() if isinstance(one, torch.dtype)}
_CHECKPOINT = "torch.distributed.checkpoint"
INDEX_NAMES = {
    *_DTYPES,
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    *(
        (f"{_CHECKPOINT}.metadata", name)
        for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
                     "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")
    ),
}  # fmt: skip
"""What an index names: (module, name)."""

SCALING_NAMES = {
    *_DTYPES,
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    # of a tensor's values; read with weights_only here
    ("torch.storage", "_load_from_bytes"),
    ("megatron.core.safe_globals", "safe_load_from_bytes"),  # Megatron-Core 0.19 puts it in the place of torch's
    ("collections", "OrderedDict"),
    *(
        ("transformer_engine.common.recipe", name)
        for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling",
                     "NVFP4BlockScaling", "Format", "_FormatHelper", "MMParams", "QParams")
    ),
    ("megatron.core.extensions.transformer_engine", "TEDelayedScaling"),  # of DelayedScaling, and nothing more
}  # fmt: skip
"""What Transformer Engine's state of a layer names."""


_EXTRA_STATE = re.compile(r"_extra_state\d*$")


class _Unpickler(pickle.Unpickler):
    """Knows the names that it is given, and refuses all others before anything is made of them."""

    def __init__(self, file: Any, names: set[tuple[str, str]]) -> None:
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of a name."""
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of Octavo's does")
        if name in ("_load_from_bytes", "safe_load_from_bytes"):
            return lambda content: torch.load(io.BytesIO(content), weights_only=True)
        return super().find_class(module, name)


def _member(of: object, name: str) -> enum.Enum:
    """A member of an enumeration: Python 3.11.0 to 3.11.3 pickle it as getattr(class, name)."""
    if isinstance(of, type) and issubclass(of, enum.Enum) and name in of.__members__:
        return of.__members__[name]
    raise pickle.UnpicklingError(f"it names the attribute {name!r} of {of!r}, which is no member of an enumeration")


class PlainReader(FileSystemReader):
    """torch's reader of checkpoint folders, for an index that is data alone."""

    def __init__(self, path: str | Path) -> None:
        """Reads the index. Raises UnpicklingError where it names what is no data, or a file outside the checkpoint."""
        super().__init__(path)
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as file:
            index = _Unpickler(file, INDEX_NAMES).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError("its index is none")
        for stored in (index.storage_data or {}).values():
            if PurePosixPath(stored.relative_path).name != stored.relative_path:
                raise pickle.UnpicklingError(f"its index names {stored.relative_path!r}, which is not in its folder")
        index.storage_meta = index.storage_meta or StorageMeta()
        self.index = index

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index."""
        assert self.index.storage_meta is not None
        self.index.storage_meta.load_id = self.load_id
        return self.index


class PlainPlanner(torch_strategy.MCoreLoadPlanner):
    """Megatron's planner, which takes tensors and plain values and nothing else from `torch.save` files."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put one value beside the tensors in its place."""
        plain = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


def read_common(folder: str) -> dict[str, Any]:
    """What is the same on all ranks, from a checkpoint that has it among its shards (Megatron-Core 0.19)."""
    state: dict[str, Any] = {COMMON: io.BytesIO()}
    load_shards(state, PlainReader(folder), planner=PlainPlanner(), no_dist=True)
    (common,) = state[COMMON]
    return common


def check_scaling_state(state: Mapping[str, Any]) -> None:
    """Look through the states that Transformer Engine is going to unpickle. Raises UnpicklingError.

    A layer has one, `..._extra_state`; grouped experts have one each, `..._extra_state`, `..._extra_state1` and so on.
    """
    for name, value in state.items():
        if not _EXTRA_STATE.search(name) or value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise pickle.UnpicklingError(f"{name} is a {type(value).__name__}, and not the bytes of a state")
        if value.numel():
            _Unpickler(io.BytesIO(value.detach().cpu().numpy().tobytes()), SCALING_NAMES).load()


@contextmanager
def checked_scaling_state() -> Iterator[None]:
    """Within it, Transformer Engine unpickles the states of delayed scaling: `check_scaling_state` looked through them.

    By itself it refuses to, as a pickle may run code.
    """
    allowed = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
    before = os.environ.get(allowed)
    os.environ[allowed] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[allowed]
        else:
            os.environ[allowed] = before
