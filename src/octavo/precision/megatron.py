"""The precision of a Megatron-Core model: which modules its layers are built of, and the proof of what was built.

Megatron-Core asks a `BackendSpecProvider` for the classes of its linear layers, experts and norms. On GPUs it gets
Transformer Engine's, with the recipe in the TransformerConfig; without CUDA, or where an experiment asks for emulation,
it gets ours: Megatron's own tensor-parallel layers with the matrix products replaced (`octavo.precision.products`).

Without Transformer Engine, megatron-core enters an empty context in place of FP8: a run that asked for FP8 would
train in BF16 and say nothing. So nothing is believed here: `verify_built` walks the modules before the first step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch.distributed
from megatron.core import fp8_utils, parallel_state
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from torch import Tensor, nn

from octavo.errors import OctavoError
from octavo.megatron_versions import grouped_experts
from octavo.precision.config import Precision
from octavo.precision.experts import GroupedExperts
from octavo.precision.history import AmaxHistory
from octavo.precision.products import BF16, Numerics, linear
from octavo.precision.recipes import (
    ALL_PRODUCTS,
    RECIPES,
    SCALE_VARIABLES,
    Recipe,
    changes_of,
    column_multiple,
    recipe_of,
)


def spec_provider(precision: Precision, *, on_gpu: bool) -> BackendSpecProvider:
    """Where Megatron-Core gets the classes of a model's layers from."""
    if on_gpu and not precision.emulate:
        return _transformer_engine()
    return _OwnSpecProvider(Numerics.of(precision))


def transformer_config_options(precision: Precision, *, on_gpu: bool) -> dict[str, Any]:
    """What Megatron-Core's TransformerConfig is told about the precision. Emulation needs no telling."""
    if not on_gpu or precision.emulate:
        return {}
    options = dict(recipe_of(precision).transformer_config)
    if not options:
        return {}
    if precision.recipe == "fp8_delayed":
        options["fp8_amax_history_len"] = precision.amax_history
    parameters = "fp4_param" if "fp4" in options else "fp8_param"
    return {**options, parameters: precision.fp8_parameters, "first_last_layers_bf16": precision.first_last_layers_bf16}


def finish_model(model: nn.Module, precision: Precision, *, on_gpu: bool) -> None:
    """Give a GPTModel's output head and, if asked for, its first and last layers their precision.

    Megatron-Core builds the head without asking the spec provider. Call it on the model before it is wrapped for data
    parallelism. With Transformer Engine its layers are told to add weight gradients to the FP32 main gradients
    themselves, without rounding them to BF16 first. (Megatron-Core's `gradient_accumulation_fusion` would say so, but
    of its own output head too, which has that kernel only with NVIDIA's Apex.)
    """
    if on_gpu and not precision.emulate:
        for module in model.modules():
            if isinstance(module, _engine_linears()):
                engine: Any = module
                engine.fuse_wgrad_accumulation = True
        return
    numerics = Numerics.of(precision)
    if isinstance(getattr(model, "output_layer", None), ColumnParallelLinear):
        head: Any = model.output_layer
        head.__class__ = _ColumnLinear
        head.numerics = numerics if precision.output_head else BF16
        head.history = _history(head.numerics)
    for module in _kept_in_bf16(model, precision):
        module.numerics = BF16


def _kept_in_bf16(model: nn.Module, precision: Precision) -> list[Any]:
    """The linear layers and experts of ours in the decoder's first and last layers, if those are to stay in BF16."""
    layers: Any = model.decoder.layers if precision.first_last_layers_bf16 else ()  # type: ignore[union-attr]
    ends = [layer for layer in layers if layer.layer_number in (1, layer.config.num_layers)]
    return [module for layer in ends for module in layer.modules() if isinstance(module, _OWN)]


def verify_built(model: nn.Module, precision: Precision, *, on_gpu: bool) -> dict[str, int]:
    """Linear layers of a chunk by implementation; an OctavoError if one of them is not what it should be.

    Experts count as two layers each (all experts of a layer and rank are one group).
    """
    if on_gpu and not precision.emulate:
        return _verify_transformer_engine(model, precision)
    return _verify_own(model, precision)


def verify_stages(built: Mapping[str, int], precision: Precision, *, on_gpu: bool) -> dict[str, int]:
    """The linear layers of all pipeline stages, of this rank's `built`: the proof for `provenance.json`.

    A collective call. Some of a model's layers must be in the recipe, or it is an OctavoError; a stage by itself may
    have none, where first and last layers stay in BF16.
    """
    counts, stages = Counter[str](), parallel_state.get_pipeline_model_parallel_world_size()
    of_stages: list[Mapping[str, int]] = [built] * stages
    if stages > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        torch.distributed.all_gather_object(of_stages, dict(built), group=group)
    for stage in of_stages:
        counts.update(stage)
    emulated = not on_gpu or precision.emulate
    wanted = _own_name(Numerics.of(precision)) if emulated else _engine_name(recipe_of(precision))
    if RECIPES[precision.recipe].quantised and not counts[wanted]:
        raise OctavoError(
            f"no linear layer of the model computes in {precision.recipe}: {dict(counts)}",
            expected=f"layers of {wanted}",
            fix="this is a bug in Octavo: the run was stopped before it could pass for what it is not",
        )
    return dict(sorted(counts.items()))


# --- without Transformer Engine ---------------------------------------------------------------------------------------


class _OwnProducts:
    """A Megatron parallel linear layer whose products are ours; communication stays Megatron's."""

    numerics: Numerics = BF16
    history: AmaxHistory | None  # no default: a class attribute would hide the module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.history = _history(self.numerics)

    def _forward_impl(
        self,
        input: Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **_: Any,
    ) -> Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        return linear(input, weight, bias, self.numerics, self.history)


def _history(numerics: Numerics) -> AmaxHistory | None:
    return AmaxHistory(numerics.amax_history, experts=1) if numerics.recipe.scaling == "delayed" else None


class _ColumnLinear(_OwnProducts, ColumnParallelLinear):
    """Weights split by output feature."""


class _RowLinear(_OwnProducts, RowParallelLinear):
    """Weights split by input feature."""


_OWN = (_ColumnLinear, _RowLinear, GroupedExperts)
_EMULATED, _ENGINE = "emulated", "Transformer Engine"


class _OwnSpecProvider(LocalSpecProvider):
    """Megatron-Core's local modules with our products in one numerics."""

    def __init__(self, numerics: Numerics) -> None:
        named = f"[{numerics.recipe.name}]"
        self._column, self._row, self._experts = (
            type(f"{kind.__name__.strip('_')}{named}", (kind,), {"numerics": numerics}) for kind in _OWN
        )

    def column_parallel_linear(self) -> type:
        """Weights split by output feature."""
        return self._column

    def row_parallel_linear(self) -> type:
        """Weights split by input feature."""
        return self._row

    def linear(self) -> type:
        """MLA's down projections: Megatron's local specification makes them column-parallel."""
        return self._column

    def layer_norm(self, *_: bool, **__: bool) -> type:
        """LayerNorm or RMSNorm of torch, as the TransformerConfig says."""
        return WrappedTorchNorm

    def grouped_mlp_modules(self, *_: bool, **__: bool) -> Any:
        """All experts of a layer in one module, however they were asked for."""
        return grouped_experts(self._experts)


def _verify_own(model: nn.Module, precision: Precision) -> dict[str, int]:
    numerics, counts = Numerics.of(precision), Counter[str]()
    exempt = {id(module) for module in _kept_in_bf16(model, precision)}
    for name, module in model.named_modules():
        if isinstance(module, _OWN):
            layers = 2 if isinstance(module, GroupedExperts) else 1
            in_bf16 = id(module) in exempt or (_is_head(name) and not precision.output_head)
            if module.numerics != (BF16 if in_bf16 else numerics):
                raise _not_built(name, module, precision)
            counts[_own_name(module.numerics)] += layers
        elif isinstance(module, ColumnParallelLinear | RowParallelLinear | nn.Linear):
            raise _not_built(name, module, precision)
    return dict(counts)


def _own_name(numerics: Numerics) -> str:
    """`fp8_blockwise (emulated)`, and what of it is not the recipe's own: products, sums, blocks."""
    if not numerics.recipe.quantised:
        return f"{numerics.recipe.name} (FP32 sums of BF16 products)"
    said = [_EMULATED, *changes_of(numerics.recipe)]
    if numerics.products != frozenset(ALL_PRODUCTS):
        said.append(f"{' and '.join(one for one in ALL_PRODUCTS if one in numerics.products)} alone")
    if numerics.accumulation != "fp32":
        said.append(f"sums {numerics.accumulation}")
    if numerics.block_size is not None:
        said.append(f"blocks of {numerics.block_size}")
    return f"{numerics.recipe.name} ({', '.join(said)})"


def _engine_name(recipe: Recipe) -> str:
    """`fp8_blockwise (Transformer Engine)`, and what of it is not the recipe's own: formats, scales."""
    return f"{recipe.name} ({', '.join([_ENGINE, *changes_of(recipe)])})"


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == "output_layer"


def _not_built(name: str, module: nn.Module, precision: Precision) -> OctavoError:
    return OctavoError(
        f"{name} was built as {type(module).__name__}, which does not compute in {precision.recipe}",
        expected="every linear layer in the precision that was asked for",
        fix="this is a bug in Octavo: the run was stopped before it could pass for what it is not",
    )


# --- with Transformer Engine ------------------------------------------------------------------------------------------


def _transformer_engine() -> BackendSpecProvider:
    if not fp8_utils.HAVE_TE:
        raise OctavoError(
            "Transformer Engine cannot be imported",
            expected="transformer-engine 2.20.2 beside torch, as in container.def",
            fix="run inside the image, install the extra `gpu`, or set emulate: true",
        )
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    return TESpecProvider()


def _engine_linears() -> tuple[type, ...]:
    """Transformer Engine's linear layers, as Megatron-Core has them."""
    from megatron.core.extensions import transformer_engine as te

    return te.TELinear, te.TELayerNormColumnParallelLinear, te.TEGroupedLinear


def _verify_transformer_engine(model: nn.Module, precision: Precision) -> dict[str, int]:
    """Every linear layer but the output head is Transformer Engine's, and Megatron enters the recipe asked for."""
    _transformer_engine()
    recipe = recipe_of(precision)
    config: Any = model.config
    try:
        entered_recipe = _entered_recipe(config)
    except AssertionError as error:
        raise OctavoError(
            f"Transformer Engine refuses the recipe: {error}",
            where="the environment",
            fix=f"unset {', '.join(_CHANGES)}",
        ) from error
    entered = _class_of(entered_recipe)
    if entered != _ENTERED[precision.recipe]:
        raise OctavoError(
            f"Megatron-Core enters {entered or 'no FP8 context'} where {precision.recipe} was asked for",
            expected=_ENTERED[precision.recipe] or "no FP8 context",
            fix="this is a bug in Octavo or in the versions installed: compare them with container.def",
        )
    _check_unchanged(entered_recipe, recipe)
    exempt = _left_in_bf16(model, config)
    counts = Counter[str]()
    for name, module in model.named_modules():
        if isinstance(module, _engine_linears()):
            in_bf16 = not recipe.quantised or id(module) in exempt
            counts[_engine_name(RECIPES["bf16"] if in_bf16 else recipe)] += 1
            if not in_bf16:
                _check_sizes(name, module, precision)
        elif isinstance(module, ColumnParallelLinear) and _is_head(name):
            counts["bf16 (Megatron-Core)"] += 1
        elif isinstance(module, ColumnParallelLinear | RowParallelLinear | nn.Linear):
            raise _not_built(name, module, precision)
    return dict(counts)


def share_newest_magnitudes(model: nn.Module) -> None:
    """Give all ranks the largest of the magnitudes that delayed scaling noted in a validation. A collective call.

    Transformer Engine takes them over ranks with the next pass of training; a checkpoint that is saved before keeps
    those of one data-parallel rank alone, and a run that goes on from it would scale otherwise.
    """
    if torch.distributed.get_world_size() == 1:
        return
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    for module in model.modules():
        state = getattr(module, "fp8_meta", {}).get("scaling_fwd")
        if state is not None and hasattr(state, "amax_history"):
            torch.distributed.all_reduce(state.amax_history[0], torch.distributed.ReduceOp.MAX, group=group)


def know_loaded_magnitudes(model: Any) -> None:
    """Tell Transformer Engine of the states of delayed scaling that a checkpoint left in a chunk's layers.

    It comes to know a layer at its first pass, and takes the newest magnitudes of all that it knows whenever an FP8
    context ends. Multi-token prediction has contexts of its own, after the decoder's: in a run that goes on, what its
    layers noted in a validation would be taken later than in one that was not interrupted.
    """
    if not model.config.fp8 or model.config.fp8_recipe != "delayed":
        return
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager  # type: ignore[import-not-found]

    with torch.no_grad(), fp8_utils.get_fp8_context(model.config):  # without gradients its end takes no magnitudes
        for module in model.modules():
            meta = getattr(module, "fp8_meta", {})
            if hasattr(meta.get("scaling_fwd"), "amax_history"):
                meta["recipe"] = FP8GlobalStateManager.get_fp8_recipe()
                meta["fp8_group"] = FP8GlobalStateManager.get_fp8_group()
                FP8GlobalStateManager.add_fp8_tensors_to_global_buffer(meta)


def quantised_linears(model: Any, precision: Precision) -> list[nn.Module]:
    """Transformer Engine's linear layers of a chunk that compute below BF16."""
    if not RECIPES[precision.recipe].quantised:
        return []
    left = _left_in_bf16(model, model.config)
    return [one for one in model.modules() if isinstance(one, _engine_linears()) and id(one) not in left]


def _left_in_bf16(model: Any, config: Any) -> set[int]:
    """The modules (by id) around which Megatron-Core enters no FP8 or FP4 context, though a recipe was asked for.

    These are the decoder's first and last layers, if asked for, by their numbers over all pipeline stages, and with FP4
    the multi-token prediction (Megatron-Core 0.16 and 0.19, `MultiTokenPredictionLayer._proj_and_transformer_layer`).
    """
    left: list[nn.Module] = [
        layer for layer in model.decoder.layers if fp8_utils.is_first_last_bf16_layer(config, layer.layer_number - 1)
    ]
    if config.fp4 and (prediction := getattr(model, "mtp", None)) is not None:
        left.append(prediction)
    return {id(module) for part in left for module in part.modules()}


_CHANGES: dict[str, tuple[str, Any]] = {
    **{variable: (field, False) for variable, field in SCALE_VARIABLES.values()},
    "NVTE_BACKWARD_OVERRIDE": ("backward_override", None),
    "NVTE_NVFP4_DISABLE_RHT": ("disable_rht", False),
    "NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING": ("disable_stochastic_rounding", False),
    "NVTE_NVFP4_DISABLE_2D_QUANTIZATION": ("disable_2d_quantization", False),
    "NVTE_NVFP4_ROW_SCALED_ACTIVATION": ("row_scaled_activation", False),
    "NVTE_NVFP4_4OVER6": ("nvfp4_4over6", "none"),
}
"""Variable of the environment -> the field of Transformer Engine's recipes that it sets, and what that must be."""


def _check_unchanged(entered: Any, recipe: Recipe) -> None:
    """Transformer Engine's environment variables must have made the recipe asked for, and no other."""
    asked = SCALE_VARIABLES.get(recipe.name, ("", ""))[0] if recipe.scale != RECIPES[recipe.name].scale else ""
    for variable, (field, unchanged) in _CHANGES.items():
        value = True if variable == asked else unchanged
        if getattr(entered, field, value) != value:
            raise OctavoError(
                f"{variable} makes another recipe of {type(entered).__name__}",
                where="the environment",
                fix=f"set {variable}=1" if variable == asked else f"unset {variable}",
            )


def _check_sizes(name: str, module: nn.Module, precision: Precision) -> None:
    """Transformer Engine asserts these in the first forward pass, minutes into a job."""
    multiple = column_multiple(precision.recipe)
    for key, weight in module.named_parameters(recurse=False):
        if key.startswith("weight") and weight.dim() == 2 and any(size % multiple for size in weight.shape):
            raise OctavoError(
                f"{name} is {weight.shape[0]} x {weight.shape[1]}, which {precision.recipe} cannot multiply",
                expected=f"multiples of {multiple} in both dimensions, on every tensor-parallel rank",
                fix="change the model's sizes or the tensor parallelism, or use recipe bf16",
            )


_ENTERED: dict[str, str | None] = {
    "bf16": None,
    "fp8_delayed": "DelayedScaling",
    "fp8_tensorwise": "Float8CurrentScaling",
    "fp8_blockwise": "Float8BlockScaling",
    "fp8_mxfp8": "MXFP8BlockScaling",
    "nvfp4": "NVFP4BlockScaling",
}


def _entered_recipe(config: Any) -> Any:
    """The Transformer Engine recipe that Megatron-Core enters for a TransformerConfig; None where it enters none."""
    if config.fp8:
        return fp8_utils.get_fp8_recipe(config)
    if config.fp4:
        from megatron.core.fp4_utils import get_fp4_recipe

        return get_fp4_recipe(config)
    return None


def _class_of(recipe: Any) -> str | None:
    """The name of a recipe's class, or of Transformer Engine's that it is made of."""
    if recipe is None:
        return None
    return next((one.__name__ for one in type(recipe).__mro__ if one.__name__ in _ENTERED.values()), str(recipe))
