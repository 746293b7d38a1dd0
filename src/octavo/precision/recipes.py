"""The precision recipes, by Transformer Engine's names: what each one is, where it runs, how it is asked for.

A recipe says in which 8-bit format (OCP OFP8: e4m3, e5m2) the operands of a linear layer's three matrix products are,
how they are scaled into its range, and how many elements share a scale. The three products are

    forward          y  = x w^T     x: tokens x in, w: out x in      kinds: input, weight
    input gradient   gx = g w       g: tokens x out                  kinds: gradient, weight
    weight gradient  gw = g^T x                                      kinds: gradient, input

On GPUs Transformer Engine computes them (`transformer_config` holds what Megatron-Core is told); elsewhere
`octavo.precision.products` does, with the same formats, scales and blocks. Sources: Transformer Engine 2.20
(`transformer_engine/common/recipe`), OCP OFP8 v1.0, OCP Microscaling Formats (MX) v1.0, FP8 formats for deep learning
(arXiv 2209.05433), DeepSeek-V3 (arXiv 2412.19437, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from octavo.cpu.formats import E2M1, E4M3, E5M2, Format
from octavo.precision.config import Precision, RecipeName
from octavo.records import Product, TensorKind

Scaling = Literal["none", "delayed", "tensor", "block"]


@dataclass(frozen=True)
class Recipe:
    """One recipe: formats and scales, the devices that have it, its settings, its source."""

    name: RecipeName
    summary: str
    """A line for the report."""
    source: str
    scaling: Scaling
    formats: dict[TensorKind, Format] = field(default_factory=dict)
    blocks: dict[TensorKind, tuple[int, int]] = field(default_factory=dict)
    """Elements that share a scale: (across, along) the summed dimension; empty: one scale per tensor."""
    scale: str = "none"
    """The scales' own format."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities of the GPUs that have it; empty: every GPU."""
    minimum_cuda: str | None = None
    """The oldest CUDA that has it, where that is newer than what every recipe needs."""
    emulated: bool = True
    transformer_config: dict[str, Any] = field(default_factory=dict)
    """Fields of megatron.core's TransformerConfig that ask Transformer Engine for it."""

    @property
    def quantised(self) -> bool:
        """Whether any operand has fewer bits than BF16."""
        return self.scaling != "none"

    @property
    def exact_scales(self) -> bool:
        """Whether scales are powers of two, so that taking them out again rounds nothing."""
        return self.scale in (POWER_OF_TWO, "E8M0")


POWER_OF_TWO = "power of two (FP32)"
SCALES = {"power_of_two": POWER_OF_TWO, "fp32": "FP32"}
"""An experiment's `scales` -> the scales' own format."""
FORMATS = {"e4m3": E4M3, "e5m2": E5M2}
SCALE_VARIABLES: dict[RecipeName, tuple[str, str]] = {
    "fp8_tensorwise": ("NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES", "use_power_2_scales"),
    "fp8_blockwise": ("NVTE_FP8_BLOCK_SCALING_FP32_SCALES", "use_f32_scales"),
}
"""Recipes whose scales can be others -> the variable that Transformer Engine reads for that when it is imported, and
the field of its recipe that then says so."""

_E4M3_ONLY: dict[TensorKind, Format] = {"input": E4M3, "weight": E4M3, "gradient": E4M3}
_HYBRID: dict[TensorKind, Format] = {"input": E4M3, "weight": E4M3, "gradient": E5M2}
_TE = "Transformer Engine 2.20, transformer_engine.common.recipe."

RECIPES: MappingProxyType[RecipeName, Recipe] = MappingProxyType(
    {
        "bf16": Recipe(
            name="bf16",
            summary="BF16 operands, FP32 sums; the reference",
            source="arXiv 1905.12322; main parameters and gradients in FP32 as in Megatron-LM",
            scaling="none",
        ),
        "fp8_delayed": Recipe(
            name="fp8_delayed",
            summary="e4m3 forward, e5m2 gradients; one scale per tensor from the largest magnitude of past steps",
            source=f"{_TE}DelayedScaling; arXiv 2209.05433",
            scaling="delayed",
            formats=_HYBRID,
            scale="FP32",
            capabilities=("8.9", "9.0", "10.0", "10.3", "12.0"),
            transformer_config={"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_compute_algo": "max"},
        ),
        "fp8_tensorwise": Recipe(
            name="fp8_tensorwise",
            summary="e4m3 forward, e5m2 gradients; one scale per tensor from its own largest magnitude",
            source=f"{_TE}Float8CurrentScaling",
            scaling="tensor",
            formats=_HYBRID,
            scale="FP32",
            capabilities=("8.9", "9.0", "10.0", "10.3", "12.0"),
            transformer_config={"fp8": "hybrid", "fp8_recipe": "tensorwise"},
        ),
        "fp8_blockwise": Recipe(
            name="fp8_blockwise",
            summary="e4m3 everywhere; activations and gradients scaled in 1x128 blocks, weights in 128x128",
            source=f"DeepSeek-V3, arXiv 2412.19437, section 3.3.2; {_TE}Float8BlockScaling",
            scaling="block",
            formats=_E4M3_ONLY,
            blocks={"input": (1, 128), "weight": (128, 128), "gradient": (1, 128)},
            scale=POWER_OF_TWO,
            capabilities=("9.0", "10.0", "10.3", "12.0"),
            minimum_cuda="12.9",
            transformer_config={"fp8": "e4m3", "fp8_recipe": "blockwise"},
        ),
        "fp8_mxfp8": Recipe(
            name="fp8_mxfp8",
            summary="e4m3 everywhere; every 32 elements along the sum share a power of two (OCP MX)",
            source=f"OCP Microscaling Formats (MX) v1.0; {_TE}MXFP8BlockScaling",
            scaling="block",
            formats=_E4M3_ONLY,
            blocks={"input": (1, 32), "weight": (1, 32), "gradient": (1, 32)},
            scale="E8M0",
            capabilities=("10.0", "10.3"),
            transformer_config={"fp8": "e4m3", "fp8_recipe": "mxfp8"},
        ),
        "nvfp4": Recipe(
            name="nvfp4",
            summary="e2m1 with an e4m3 scale per 16 elements and an FP32 scale per tensor; GPUs only",
            source=f"{_TE}NVFP4BlockScaling; arXiv 2509.25149",
            scaling="block",
            formats={"input": E2M1, "weight": E2M1, "gradient": E2M1},
            blocks={"input": (1, 16), "weight": (16, 16), "gradient": (1, 16)},
            scale="e4m3, and FP32 per tensor",
            capabilities=("10.0", "10.3", "12.0"),
            emulated=False,  # its stochastic rounding and random Hadamard transforms are the GPU's own
            transformer_config={"fp4": "e2m1", "fp4_recipe": "nvfp4"},
        ),
    }
)

ALL_PRODUCTS: tuple[Product, ...] = get_args(Product)


def recipe_of(precision: Precision) -> Recipe:
    """A precision's recipe, with the formats and scales that the experiment gives it."""
    recipe = RECIPES[precision.recipe]
    if precision.formats:
        formats = recipe.formats | {kind: FORMATS[name] for kind, name in precision.formats.items()}
        # Transformer Engine's: e4m3 everywhere, or "hybrid", with gradients in e5m2
        named = {"fp8": "e4m3" if formats["gradient"] == E4M3 else "hybrid"}
        recipe = replace(recipe, formats=formats, transformer_config=recipe.transformer_config | named)
    return replace(recipe, scale=SCALES[precision.scales]) if precision.scales else recipe


def changes_of(recipe: Recipe) -> list[str]:
    """What of a recipe is not as its name says: `gradient e5m2`, `scales FP32`."""
    own = RECIPES[recipe.name]
    changed = [f"{kind} {format.name}" for kind, format in recipe.formats.items() if format != own.formats[kind]]
    return changed + [f"scales {recipe.scale}"] * (recipe.scale != own.scale)


def quantised_recipes() -> list[RecipeName]:
    """The recipes below BF16."""
    return [name for name, recipe in RECIPES.items() if recipe.quantised]


def recipes_of(compute_capability: str | None) -> list[RecipeName]:
    """The recipes that GPUs of a compute capability have (CUDA versions left aside)."""
    return [name for name, one in RECIPES.items() if not one.capabilities or compute_capability in one.capabilities]


def column_multiple(recipe: RecipeName) -> int:
    """What the widths of a recipe's operands must be multiples of."""
    return 32 if recipe == "fp8_mxfp8" else 16
