"""The sizes that Transformer Engine's low-precision products take, asked of a configuration before anything is built.

Transformer Engine 2.11 asserts them in the first forward pass, minutes into a job: operands' rows are multiples of 8
and columns of 16 (`assert_dim_for_fp8_exec`), for MX both of 32 and for NVFP4 of 16 (`make_empty` of their quantisers).
Inputs that sequence parallelism gathers in block formats must hold whole blocks before it does
(`assert_dim_for_all_gather`). Megatron-Core pads experts' tokens itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.config import Parallelism, RecipeName
from octavo.experiment.run import CellConfig
from octavo.models.architecture import Architecture
from octavo.precision.recipes import RECIPES

_ROWS: dict[RecipeName, int] = {"fp8_mxfp8": 32, "nvfp4": 16}
_GATHERED: dict[RecipeName, int] = {"fp8_blockwise": 128, "fp8_mxfp8": 32, "nvfp4": 16}


def check_sizes(cell: CellConfig, device: Device, where: str) -> None:
    """Raise an OctavoError where a cell's widths or tokens do not fit the products of its recipe on GPUs."""
    recipe = RECIPES[cell.precision.recipe]
    if not recipe.quantised or device.kind == "cpu" or cell.precision.emulate:
        return
    columns = column_multiple(recipe.name)
    for what, width in widths(cell.model, cell.parallelism):
        if width % columns:
            raise OctavoError(
                f"{cell.cell}: {what} is {width} on a rank, which {recipe.name} cannot multiply",
                where=where,
                expected=f"a multiple of {columns}",
                fix="change the model's sizes or the tensor parallelism, or use recipe bf16",
            )
    layout, training = cell.parallelism, cell.training
    tokens, rows = training.micro_batch_size * training.sequence_length // layout.context, _ROWS.get(recipe.name, 8)
    if layout.sequence:
        tokens, rows = tokens // layout.tensor, max(rows, _GATHERED.get(recipe.name, 0))
        block = _GATHERED.get(recipe.name, columns)
        if cell.model.hidden_size % block:
            raise OctavoError(
                f"{cell.cell}: hidden_size {cell.model.hidden_size} is not whole blocks of {recipe.name}, which "
                "sequence parallelism gathers",
                where=where,
                expected=f"a multiple of {block}",
                fix="change the model's width, or set parallelism.sequence: false",
            )
    if tokens % rows:
        raise OctavoError(
            f"{cell.cell}: a micro-batch is {tokens} tokens on a rank, which {recipe.name} cannot multiply",
            where=where,
            expected=f"a multiple of {rows}",
            fix="change training.micro_batch_size or training.sequence_length, or use recipe bf16",
        )


def column_multiple(recipe: RecipeName) -> int:
    """What the widths of a recipe's operands must be multiples of."""
    return 32 if recipe == "fp8_mxfp8" else 16


def widths(model: Architecture, layout: Parallelism) -> Iterator[tuple[str, int]]:
    """What goes into or comes out of the linear layers of one tensor-parallel rank, the output head left out."""
    attention, tensor = model.attention, layout.tensor
    yield "hidden_size", model.hidden_size
    if attention.kind == "gqa":
        yield (
            "the width of queries, keys and values",
            ((attention.heads + 2 * attention.kv_heads) * attention.head_size // tensor),
        )
        yield "heads x head_size", attention.heads * attention.head_size // tensor
    else:
        yield "q_lora_rank", attention.q_lora_rank or 0
        yield "kv_lora_rank", attention.kv_lora_rank
        yield "kv_lora_rank + qk_rope_head_size", attention.kv_lora_rank + attention.qk_rope_head_size
        for what, size in (
            ("queries", attention.qk_head_size + attention.qk_rope_head_size),
            ("keys and values", attention.qk_head_size + attention.v_head_size),
            ("values", attention.v_head_size),
        ):
            yield f"the width of {what}", attention.heads * size // tensor
    if model.dense_layers and model.feed_forward_size:
        yield "feed_forward_size", model.feed_forward_size // tensor
    if model.experts is not None:
        yield "experts.size", model.experts.size  # expert tensor parallelism is 1
        yield "experts.shared_size", model.experts.shared_size // tensor
    if model.multi_token_prediction_layers:
        yield "hidden_size of multi-token prediction", model.hidden_size // tensor
