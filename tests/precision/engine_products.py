"""The products of a grouped linear layer by Transformer Engine's Python and by Octavo's emulation, as a program.

Both get the same tokens, weights and gradients for three steps of two micro-batches, with a pass of validation between
steps: four experts of which one has no tokens. One JSON line for each recipe on standard output: which operands of
which product differ (empty, if all is well), the formats and blocks of the quantisers, the largest difference of a
result in steps of BF16.
"""

from __future__ import annotations

import json
from typing import Any

import transformer_engine_cpu

transformer_engine_cpu.install("10.0")

import torch  # noqa: E402
import transformer_engine.pytorch as te  # type: ignore[import-not-found]  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import Parameter  # noqa: E402
from transformer_engine.common import recipe as engine_recipes  # type: ignore[import-not-found]  # noqa: E402
from transformer_engine_cpu import extension  # noqa: E402

from octavo.precision.config import Precision, RecipeName  # noqa: E402
from octavo.precision.history import AmaxHistory  # noqa: E402
from octavo.precision.products import Numerics, Quantiser, grouped_linear  # noqa: E402
from octavo.precision.recipes import RECIPES, recipe_of  # noqa: E402
from octavo.records import TensorKind  # noqa: E402
from octavo.training import step_proof  # noqa: E402

IN, OUT, HISTORY = 256, 128, 3
COUNTS = [[128, 0, 160, 96], [0, 192, 160, 32]]
"""Tokens of each expert in the micro-batches of a step: an expert may be without tokens in one of them, or in both."""
ENGINE: dict[str, Any] = {
    "fp8_delayed": lambda **options: engine_recipes.DelayedScaling(
        amax_history_len=HISTORY, amax_compute_algo="max", **options
    ),
    "fp8_tensorwise": engine_recipes.Float8CurrentScaling,
    "fp8_blockwise": engine_recipes.Float8BlockScaling,
    "fp8_mxfp8": engine_recipes.MXFP8BlockScaling,
}
HYBRID, E4M3_ONLY = engine_recipes.Format.HYBRID, engine_recipes.Format.E4M3
CHANGED: list[tuple[RecipeName, dict[str, Any], dict[str, Any]]] = [
    # recipe, what an experiment changes in it, what Transformer Engine's recipe then is
    ("fp8_delayed", {"formats": {"gradient": "e4m3"}}, {"fp8_format": E4M3_ONLY}),
    ("fp8_tensorwise", {"formats": {"gradient": "e4m3"}, "scales": "power_of_two"}, {"fp8_format": E4M3_ONLY}),
    ("fp8_blockwise", {"formats": {"gradient": "e5m2"}}, {"fp8_format": HYBRID}),
    ("fp8_blockwise", {"scales": "fp32"}, {}),
    ("fp8_mxfp8", {"formats": {"gradient": "e5m2"}}, {"fp8_format": HYBRID}),
]
PRODUCTS = {(True, False): "forward", (False, False): "input_gradient", (False, True): "weight_gradient"}
"""By which of cuBLAS's operands are turned."""

Seen = dict[str, list[tuple[Tensor, Tensor, float]]]
"""Product -> left and right operand of each call and expert, as rounded, and what their sums are multiplied by."""


def watch_engine(seen: Seen) -> None:
    """Note the operands of every product of the stand-in."""
    product: Any = extension._product

    def noted(a: Any, turn_a: bool, b: Any, turn_b: bool) -> Tensor:
        left, right = extension._values(b, by_row=not turn_b), extension._values(a, by_row=turn_a)
        factor = float(extension._factor(a, by_row=turn_a) * extension._factor(b, by_row=not turn_b))
        seen.setdefault(PRODUCTS[turn_a, turn_b], []).append((left, right, factor))
        return product(a, turn_a, b, turn_b)

    extension._product = noted


def watch_emulation(seen: Seen) -> None:
    """Note the operands of every product of the emulation."""
    multiply: Any = Quantiser.multiply

    def noted(self: Quantiser, product: str, left: Any, right: Any, out: Tensor, *, add: bool = False) -> None:
        for count, *parts in zip(left.counts, left.parts, right.parts, left.factors, right.factors, strict=True):
            if count:
                one, other, factor, other_factor = parts
                factors = (torch.tensor(factor) * torch.tensor(other_factor)).item()
                seen.setdefault(product, []).append((one.double(), other.double(), factors))
        multiply(self, product, left, right, out, add=add)

    Quantiser.multiply = noted  # type: ignore[method-assign]


def numbers(*shape: int, seed: int, scale: float) -> Tensor:
    """BF16 numbers of many magnitudes, whole blocks of zeros, and outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator) * torch.randn(*shape, generator=generator).mul(2).exp() * scale
    values[: shape[0] // 8, : shape[1] // 4] = 0
    values[-1, -1] = 300 * scale
    return values.bfloat16()


KINDS: tuple[tuple[str, int, TensorKind], ...] = (
    ("scaling_fwd", 0, "input"),
    ("scaling_fwd", 1, "weight"),
    ("scaling_bwd", 0, "gradient"),
)
"""Where a layer of Transformer Engine has the quantiser of its only tensor of each kind."""


def quantisers(layer: Any) -> dict[str, Any]:
    """The format of each kind of tensor, and the block."""
    found = {}
    for key, index, kind in KINDS:
        quantiser = layer.quantizers[key][index]
        block = getattr(quantiser, "block_len", 32 if "MXFP8" in type(quantiser).__name__ else None)
        across = block if getattr(quantiser, "block_scaling_dim", 1) == 2 else 1
        found[kind] = [quantiser.dtype.name.removeprefix("kFloat8").lower(), [across, block] if block else None]
    return found


def engine_recipe(precision: Precision, options: dict[str, Any]) -> Any:
    """Transformer Engine's recipe; with other scales, it is what its variable of the environment makes of it."""
    recipe = ENGINE[precision.recipe](**options)
    if precision.scales:
        scales = engine_recipes.QParams(power_2_scale=precision.scales == "power_of_two")
        recipe.fp8_quant_fwd_inp = recipe.fp8_quant_fwd_weight = recipe.fp8_quant_bwd_grad = scales
    return recipe


def described(layer: Any, precision: Precision) -> dict[str, list[str]]:
    """What the proof of a step says of a tensor of each kind, and what it asks for."""
    found = {}
    for key, index, kind in KINDS:
        quantiser = layer.quantizers[key][index]
        quantiser.set_usage(rowwise=True, columnwise=True)
        tensor = quantiser(torch.ones(128, 256).bfloat16())
        found[kind] = [f"{kind} {step_proof._describe(tensor)}", step_proof._asked(recipe_of(precision), kind)]
    return found


def compare(
    name: RecipeName, changes: dict[str, Any], options: dict[str, Any], engine_seen: Seen, emulation_seen: Seen
) -> dict[str, Any]:
    """Train a layer both ways and hold every operand and result against the other's."""
    precision = Precision(recipe=name, amax_history=HISTORY if name == "fp8_delayed" else 1024, **changes)
    recipe, experts = engine_recipe(precision, options), len(COUNTS[0])
    layer = te.GroupedLinear(experts, IN, OUT, bias=False, params_dtype=torch.bfloat16, device="cpu")
    start = torch.stack([numbers(OUT, IN, seed=expert, scale=0.02) for expert in range(experts)])
    mine, history = Parameter(start.clone()), AmaxHistory(HISTORY, experts) if name == "fp8_delayed" else None
    numerics = Numerics.of(precision)
    with torch.no_grad():
        for expert in range(experts):
            getattr(layer, f"weight{expert}").copy_(start[expert])
    different: list[str] = []
    largest = 0.0
    for step in range(3):
        if history:
            history.begin_step()
        for index, counts in enumerate(COUNTS):
            x = numbers(sum(counts), IN, seed=100 + 10 * step + index, scale=1.0 + step)
            g = numbers(sum(counts), OUT, seed=200 + 10 * step + index, scale=1e-4 / (1 + step))
            engine_seen.clear()
            emulation_seen.clear()
            one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
            layer.zero_grad()
            mine.grad = None
            with te.fp8_autocast(enabled=True, fp8_recipe=recipe):
                y = layer(one, counts, is_first_microbatch=index == 0)
            y.backward(g)
            z = grouped_linear(other, mine, None, counts, numerics, history)
            z.backward(g)
            for product, calls in engine_seen.items():
                pairs = zip(calls, emulation_seen[product], strict=True)
                for (left, right, factor), (my_left, my_right, my_factor) in pairs:
                    for side, theirs, ours in (("left", left, my_left), ("right", right, my_right)):
                        # codes times FP32 scales, which FP64 holds and FP32 rounds once
                        if not torch.equal(theirs.float(), ours.float()):
                            different.append(f"step {step}, micro-batch {index}: {product}, {side}")
                    if factor != my_factor:
                        different.append(f"step {step}, micro-batch {index}: {product}, scales")
            assert one.grad is not None
            assert other.grad is not None
            assert mine.grad is not None
            gradients = torch.stack([getattr(layer, f"weight{expert}").grad for expert in range(experts)])
            for theirs, ours in ((y, z), (one.grad, other.grad), (gradients, mine.grad)):
                a, b = theirs.float(), ours.float()
                step_size = a.abs() * 2**-7 + a.square().mean().sqrt() * 1e-5  # of BF16; and what sums in FP32 lose
                largest = max(largest, ((a - b).abs() / step_size).max().item())
        with torch.no_grad(), te.fp8_autocast(enabled=True, fp8_recipe=recipe):  # validation
            x = numbers(sum(COUNTS[0]), IN, seed=300 + step, scale=20.0)
            y = layer(x, COUNTS[0], is_first_microbatch=True)
            z = grouped_linear(x, mine, None, COUNTS[0], numerics, history)
            if not torch.allclose(y, z, rtol=2**-7, atol=2**-7 * y.float().square().mean().sqrt().item()):
                different.append(f"validation after step {step}")
            for expert in range(experts):
                getattr(layer, f"weight{expert}").mul_(1.5)
            mine.mul_(1.5)
    return {
        "recipe": name,
        "changes": changes,
        "asked": {kind: format.name for kind, format in recipe_of(precision).formats.items()},
        "described": described(layer, precision),
        "different": different,
        "quantisers": quantisers(layer),
        "largest_difference": largest,
        "products": sorted(engine_seen),
    }


def extremes(name: str) -> dict[str, Any]:
    """2^-12 everywhere, but for an infinity that begins row 0, and a NaN that begins row 1: the first two numbers of
    both rows, and the last, as each side rounds them."""
    x = torch.full((128, 256), 2.0**-12).bfloat16()
    x[0, 0], x[1, 0] = torch.inf, torch.nan
    layer = te.GroupedLinear(1, 256, 128, bias=False, params_dtype=torch.bfloat16, device="cpu")
    with torch.no_grad(), te.fp8_autocast(enabled=True, fp8_recipe=ENGINE[name]()):
        layer(torch.zeros_like(x), [128])
    quantiser = layer.quantizers["scaling_fwd"][0].copy()
    quantiser.internal, quantiser.optimize_for_gemm = False, False
    quantiser.set_usage(rowwise=True, columnwise=False)
    numerics = Numerics.of(Precision(recipe=name))  # type: ignore[arg-type]
    operand, _ = Quantiser(numerics, [128]).operands(x, "input", training=False)
    both = {"engine": quantiser(x).dequantize(), "emulation": operand.values.float() * operand.factors[0]}
    return {side: [values[row, [0, 1, 255]].tolist() for row in (0, 1)] for side, values in both.items()}


def main() -> None:
    engine_seen: Seen = {}
    emulation_seen: Seen = {}
    watch_engine(engine_seen)
    watch_emulation(emulation_seen)
    cases = [(name, {}, {}) for name, recipe in RECIPES.items() if recipe.quantised and recipe.emulated]
    for name, changes, options in [*cases, *CHANGED]:
        compared = compare(name, changes, options, engine_seen, emulation_seen)
        if name != "fp8_delayed" and not changes:  # delayed scaling's scale is of the passes before
            compared["extremes"] = extremes(name)
        print(json.dumps(compared), flush=True)
        transformer_engine_cpu.forget_layers()


if __name__ == "__main__":
    main()
