"""Whether a device can train in the precision that a cell asks for: looked at before anything is built.

A recipe needs a device and a CUDA that have it, and sizes that Transformer Engine's low-precision products take.
Transformer Engine 2.20 asserts them in the first forward pass, minutes into a job: operands' rows are multiples of 8
and columns of 16 (`assert_dim_for_fp8_exec`), for MX both of 32 and for NVFP4 of 16 (`make_empty` of their quantisers).
Inputs that sequence parallelism gathers in block formats must hold whole blocks before it does
(`assert_dim_for_all_gather`). Megatron-Core pads experts' tokens itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from octavo.configuration import read_section
from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.config import Parallelism
from octavo.experiment.run import CellConfig
from octavo.layout import configs
from octavo.models.architecture import Architecture
from octavo.models.weights import layers_alike, prediction_projection
from octavo.precision.config import Precision, RecipeName
from octavo.precision.recipes import (
    ALL_PRODUCTS,
    RECIPES,
    SCALE_VARIABLES,
    SCALES,
    Recipe,
    column_multiple,
    quantised_recipes,
    recipes_of,
)

_ROWS: dict[RecipeName, int] = {"fp8_mxfp8": 32, "nvfp4": 16}
_GATHERED: dict[RecipeName, int] = {"fp8_blockwise": 128, "fp8_mxfp8": 32, "nvfp4": 16}


def check_recipe(precision: Precision, *, layers: int, device: Device, cuda: str | None, where: str) -> None:
    """Raise an OctavoError if `device` (with that CUDA version) cannot train a model of `layers` in `precision`.

    `where` names the file and key for the message.
    """
    recipe = RECIPES[precision.recipe]
    _check_options(precision, recipe, where)
    if precision.first_last_layers_bf16 and layers <= 2:
        raise OctavoError(
            f"first_last_layers_bf16 leaves no layer in {recipe.name}: the model has {layers}",
            where=where,
            expected="a model of 3 layers or more",
            fix="leave first_last_layers_bf16 out, or use recipe bf16",
        )
    if device.kind == "cpu" or precision.emulate:
        _check_emulation(precision, recipe, device, where)
    else:
        _check_gpu(precision, recipe, device, cuda, where)


def _check_options(precision: Precision, recipe: Recipe, where: str) -> None:
    """What holds on every device."""
    if not recipe.quantised:
        defaults = Precision(recipe=recipe.name)
        for name in (
            "products",
            "accumulation",
            "formats",
            "scales",
            "first_last_layers_bf16",
            "output_head",
            "fp8_parameters",
            "emulate",
        ):
            if getattr(precision, name) != getattr(defaults, name):
                raise OctavoError(
                    f"recipe {recipe.name} has no {name}: it is about FP8",
                    where=where,
                    fix=f"leave {name} out, or choose one of {', '.join(quantised_recipes())}",
                )
    if precision.amax_history != Precision().amax_history and recipe.scaling != "delayed":
        raise OctavoError(
            f"amax_history {precision.amax_history} for {recipe.name}, whose scales have no history",
            where=where,
            fix="leave amax_history out, or choose fp8_delayed",
        )
    if not precision.products and recipe.quantised:
        raise OctavoError(
            f"recipe {recipe.name} with no product in FP8 is bf16", where=where, fix="use recipe bf16, or name products"
        )
    if precision.block_size is not None and not recipe.blocks:
        with_blocks = [name for name, other in RECIPES.items() if other.blocks and other.emulated]
        raise OctavoError(
            f"block_size {precision.block_size} for {recipe.name}, which has no blocks",
            where=where,
            expected=f"block_size with one of {', '.join(with_blocks)} (emulated)",
        )
    _check_formats(precision, recipe, where)
    if precision.first_last_layers_bf16 and recipe.scaling == "delayed":
        raise OctavoError(
            f"first_last_layers_bf16 with {recipe.name}: Megatron-Core refuses it, since leaving FP8 between layers "
            "breaks the reduction of amax histories",
            where=where,
            fix="choose another recipe or keep all layers in FP8",
        )


def _check_formats(precision: Precision, recipe: Recipe, where: str) -> None:
    """Formats and scales that the recipe does not have, or has anyway: an ablation would change nothing."""
    for kind, name in precision.formats.items():
        own = recipe.formats[kind].name
        if recipe.name == "nvfp4" or own == name:
            eight = f"another format of eight bits than the recipe's own ({recipe.name} has {own})"
            raise OctavoError(
                f"formats: {{{kind}: {name}}} for {recipe.name}",
                where=where,
                expected="a recipe of eight bits" if recipe.name == "nvfp4" else eight,
                fix=f"leave formats.{kind} out",
            )
    if precision.scales is None:
        return
    if recipe.name not in SCALE_VARIABLES or SCALES[precision.scales] == recipe.scale:
        raise OctavoError(
            f"scales: {precision.scales} for {recipe.name}, whose scales are {recipe.scale}",
            where=where,
            expected="scales: power_of_two with fp8_tensorwise, or scales: fp32 with fp8_blockwise",
            fix="leave scales out",
        )
    if precision.accumulation != "fp32" and recipe.blocks:
        raise OctavoError(
            f"scales: {precision.scales} with accumulation {precision.accumulation}: short sums are of codes whose "
            "scales are powers of two",
            where=where,
            fix="leave one of the two out",
        )


def _check_emulation(precision: Precision, recipe: Recipe, device: Device, where: str) -> None:
    if not recipe.emulated:
        has_it = device.kind == "gpu" and device.compute_capability in recipe.capabilities
        raise OctavoError(
            f"recipe {recipe.name} has no emulation",
            where=where,
            expected=f"one of {', '.join(name for name, other in RECIPES.items() if other.emulated)}, "
            f"or a GPU of {_devices_that_can(recipe)}",
            fix=f"leave emulate out: {device.name} has the recipe itself" if has_it else None,
        )
    if precision.fp8_parameters:
        raise OctavoError(
            "fp8_parameters needs Transformer Engine: the emulation keeps parameters in BF16",
            where=where,
            fix="leave fp8_parameters out, or run on GPUs without emulate: true",
        )


def _check_gpu(precision: Precision, recipe: Recipe, device: Device, cuda: str | None, where: str) -> None:
    for name, changed in (
        ("accumulation", precision.accumulation != "fp32"),
        ("block_size", precision.block_size is not None),
        # its recipes have one format for input and weight, e4m3, and one for gradients
        ("formats", bool(precision.formats.keys() - {"gradient"})),
        ("output_head", precision.output_head),
        # Megatron-Core's fp8_wgrad becomes override_linear_precision, which Transformer Engine 2 ignores
        ("products", set(precision.products) != set(ALL_PRODUCTS)),
    ):
        if changed:
            raise OctavoError(
                f"{name} {getattr(precision, name)!r} cannot be asked of Transformer Engine with {recipe.name}",
                where=where,
                fix=f"set emulate: true (slow: it says nothing about speed), or leave {name} as it is in the recipe",
            )
    if recipe.capabilities and device.compute_capability not in recipe.capabilities:
        raise OctavoError(
            f"{device.name} (compute capability {device.compute_capability}) does not have recipe {recipe.name}",
            where=where,
            expected=f"a GPU of {_devices_that_can(recipe)}",
            fix=f"choose {', '.join(recipes_of(device.compute_capability))}; or set emulate: true",
        )
    if recipe.name == "fp8_blockwise" and precision.scales == "fp32" and device.compute_capability != "9.0":
        raise OctavoError(
            f"scales: fp32 on {device.name} (compute capability {device.compute_capability}), which multiplies blocks "
            "as MX, with scales that are powers of two",
            where=where,
            expected="a GPU of compute capability 9.0",
            fix="leave scales out, or set emulate: true",
        )
    needed = recipe.minimum_cuda
    if needed and (cuda is None or version(cuda) < version(needed)):
        raise OctavoError(
            f"recipe {recipe.name} on {device.name} needs CUDA {needed}; the cluster file says {cuda or 'nothing'}",
            where=where,
            expected=f"cuda: {needed} or newer in the cluster file",
        )


def _devices_that_can(recipe: Recipe) -> str:
    """`compute capability 10.0 (B200, GB200)`, with the names that configs/clusters/devices has for it."""
    names: dict[str, list[str]] = {}
    for path in sorted((configs().clusters / "devices").glob("*.yaml")):
        device = read_section(path, Device)
        if device.compute_capability:
            names.setdefault(device.compute_capability, []).append(device.name)
    return "compute capability " + _join(
        f"{capability} ({', '.join(names[capability])})" if capability in names else capability
        for capability in recipe.capabilities
    )


def _join(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} or {last}" if most else last


def version(text: str) -> tuple[int, ...]:
    """`12.10` as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


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


def check_parameters(cell: CellConfig, where: str) -> None:
    """Raise an OctavoError where a cell's parameters cannot be kept in FP8.

    Megatron-LM and Megatron-Bridge ask for the distributed optimizer, which alone makes FP32 main weights of the values
    from before rounding, and for MX for a reused gradient buffer, which Octavo does not have.
    """
    if not cell.precision.fp8_parameters:
        return
    if not cell.training.optimizer.distributed:
        raise OctavoError(
            f"{cell.cell}: fp8_parameters without the distributed optimizer, whose main weights would be made of "
            "rounded ones",
            where=where,
            fix="set training.optimizer.distributed: true, or leave fp8_parameters out",
        )
    if cell.precision.recipe in ("fp8_mxfp8", "nvfp4"):
        raise OctavoError(
            f"{cell.cell}: fp8_parameters with {cell.precision.recipe}: Megatron-Core needs a gradient buffer that is "
            "reused for it, which Octavo does not set up",
            where=where,
            expected="fp8_parameters with fp8_delayed, fp8_tensorwise or fp8_blockwise",
            fix="leave fp8_parameters out",
        )


def widths(model: Architecture, layout: Parallelism) -> Iterator[tuple[str, int]]:
    """What goes into or comes out of the linear layers of one tensor-parallel rank, the output head left out."""
    kinds = [weights for _, weights in layers_alike(model)]
    if model.multi_token_prediction_layers:
        kinds.append([prediction_projection(model)])
    for weight in (weight for weights in kinds for weight in weights if weight.kind == "linear"):
        inputs, outputs = weight.shape(layout.tensor)
        yield weight.inputs[0], int(inputs)
        yield weight.outputs[0], int(outputs)
