"""The precision section of an experiment file: a recipe by its name, and what of it an experiment may change."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from octavo.configuration import Section

RecipeName = Literal["bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8", "nvfp4"]

SHORT_SUM_COLUMNS = 64
"""Columns that the compiled sums of fewer bits (`octavo.precision.accumulators`) take at once."""


class Precision(Section):
    """A recipe and what of it an experiment may change. `octavo.precision` knows what each recipe is."""

    recipe: RecipeName = "bf16"
    """The recipe's name."""
    products: list[Literal["forward", "input_gradient", "weight_gradient"]] = [
        "forward",
        "input_gradient",
        "weight_gradient",
    ]
    """The products of each linear layer that are in FP8; the others stay in BF16."""
    accumulation: Literal["fp32", "fp14", "promoted"] = "fp32"
    """How products are summed: FP32; about 14 bits as Hopper's tensor cores; those promoted to FP32 every 128
    elements (arXiv 2412.19437, section 3.3.2). Other than fp32: emulated only."""
    block_size: PositiveInt | None = None
    """Elements that share a scale, for recipes with blocks; None: the recipe's own."""
    formats: dict[Literal["input", "weight", "gradient"], Literal["e4m3", "e5m2"]] = {}
    """Eight-bit formats in place of the recipe's own, by kind of tensor; with Transformer Engine gradients' alone."""
    scales: Literal["power_of_two", "fp32"] | None = None
    """What scales of `fp8_tensorwise` and `fp8_blockwise` are rounded to; None: the recipe's own. FP32 scales of blocks
    are Hopper's alone."""
    first_last_layers_bf16: bool = False
    """Keep the first and the last layer in BF16."""
    output_head: bool = False
    """The output head in FP8 too; recipes leave it in BF16."""
    fp8_parameters: bool = False
    """Keep the parameters themselves in FP8 (Transformer Engine only)."""
    amax_history: PositiveInt = 1024
    """Steps that `fp8_delayed` looks back."""
    emulate: bool = False
    """Emulate on a GPU too (for recipes that it lacks); on CPUs FP8 is always emulated."""

    def emulated(self, *, on_gpu: bool) -> bool:
        """Whether operands below BF16 are emulated, so that times say nothing about them."""
        return self.recipe != "bf16" and (self.emulate or not on_gpu)
