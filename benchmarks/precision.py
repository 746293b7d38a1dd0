"""What emulating FP8 costs, on one thread, in one run: rounding, the laptop models' linear layers, peers.

    .venv/bin/python benchmarks/precision.py [--repeat 15] [--peers FOLDER] [--json FILE]

Bars: rounding at half the speed of a memory copy that moves the same bytes; a forward and backward pass of all linear
layers of a laptop model in FP8 at most 1.3 times that in BF16 for tensorwise and blockwise, 1.5 for the others (short
accumulators are told, without a bar); at least twice as fast as torchao's emulation, and as microxcaling's, where they
do the same thing, the values being the same. Medians of processor time over interleaved repeats. The compiled loops are
measured against torch.compile of the torch operators that do the same, too.

FOLDER holds the peers: `pip install --no-deps --target FOLDER torchao==0.18.0`, and microxcaling, which is on GitHub
alone, cloned into it. Peers that are not there are said to be missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import Parameter

warnings.simplefilter("ignore")

from octavo.cpu import library  # noqa: E402
from octavo.cpu.formats import E4M3, E5M2, Format  # noqa: E402
from octavo.cpu.rounding import largest_magnitude, round_blocks, round_scaled, tensor_scale  # noqa: E402
from octavo.models.catalogue import read_architecture  # noqa: E402
from octavo.precision.config import Precision  # noqa: E402
from octavo.precision.history import AmaxHistory  # noqa: E402
from octavo.precision.products import Numerics, grouped_linear, linear  # noqa: E402
from octavo.precision.recipes import quantised_recipes  # noqa: E402
from octavo.training.process import keep_memory  # noqa: E402

TOKENS = 1024
BLOCKS = {"1x128": (1, 128), "128x128": (128, 128), "128x1": (128, 1), "1x32": (1, 32), "32x1": (32, 1)}
STEP_BARS = {"fp8_tensorwise": 1.3, "fp8_blockwise": 1.3, "fp8_delayed": 1.5, "fp8_mxfp8": 1.5}
Row = dict[str, Any]


def medians(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median processor seconds of each, taken in turn so that all see the same weather."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 2):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn >= 2:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def row(what: str, value: float, bar: float | None, *, at_least: bool = False) -> Row:
    """A line of the results, held against its bar if it has one."""
    passed = None if bar is None else (value >= bar if at_least else value <= bar)
    return {"what": what, "value": value, "bar": bar, "at_least": at_least, "passed": passed}


# --- rounding ---------------------------------------------------------------------------------------------------------


def tensorwise(values: Tensor, format: Format, out: Tensor) -> None:
    """Both passes: the largest magnitude, then the rounding."""
    round_scaled(values, tensor_scale(largest_magnitude(values), format), format, out)


def rounding_rows(repeat: int) -> list[Row]:
    """Reads BF16 and writes it: 4 bytes an element, as does a copy of 2 bytes an element. Of a size that training has,
    and of one that no cache holds.
    """
    rows = []
    for tokens, features in ((TOKENS, 288), (8192, 4096)):
        values = torch.randn(tokens, features).bfloat16()
        out, source = torch.empty_like(values), torch.randn(values.shape).bfloat16()
        target = torch.empty_like(source)
        inner = max(1, 4_000_000 // values.numel())

        def many(run: Callable[[], Any], inner: int = inner) -> Callable[[], None]:
            def repeated() -> None:
                for _ in range(inner):
                    run()

            return repeated

        runs = {
            "copy": many(lambda target=target, source=source: target.copy_(source)),
            "tensorwise e4m3": many(lambda values=values, out=out: tensorwise(values, E4M3, out)),
            "tensorwise e5m2": many(lambda values=values, out=out: tensorwise(values, E5M2, out)),
        } | {
            f"blocks {name}": many(lambda values=values, out=out, block=block: round_blocks(values, E4M3, block, out))
            for name, block in BLOCKS.items()
        }
        times = medians(runs, repeat)
        rows += [
            row(f"rounding {name}, {tokens} x {features}: speed of a copy", times["copy"] / seconds, 0.5, at_least=True)
            for name, seconds in times.items()
            if name != "copy"
        ]
    return rows


def compile_rows(repeat: int) -> list[Row]:
    """torch.compile of rounding's torch operators, against its compiled loops: the same bits, and how fast."""
    if library.COMPILED is None:
        print("compiled loops: not built")
        return []
    rows = []
    for tokens, features in ((TOKENS, 288), (8192, 4096)):
        values = torch.randn(tokens, features).bfloat16()
        runs: dict[str, Callable[[Tensor], None]] = {
            "tensorwise": lambda out, values=values: round_scaled(values, 3.7, E4M3, out),
            "blocks 1x128": lambda out, values=values: round_blocks(values, E4M3, (1, 128), out),
            "blocks 128x128": lambda out, values=values: round_blocks(values, E4M3, (128, 128), out),
        }
        for name, run in runs.items():
            torch.compiler.reset()
            compiled, ours, theirs = torch.compile(run), torch.empty_like(values), torch.empty_like(values)

            def with_torch(compiled: Callable[[Tensor], None] = compiled, theirs: Tensor = theirs) -> None:
                with patch.object(library, "COMPILED", None):
                    compiled(theirs)

            def in_c(run: Callable[[Tensor], None] = run, ours: Tensor = ours) -> None:
                run(ours)

            with_torch()
            in_c()
            assert torch.equal(ours, theirs), "torch.compile gives other bits"
            times = medians({"C": in_c, "torch.compile": with_torch}, repeat)
            what = f"rounding {name}, {tokens} x {features}: torch.compile's time over the compiled loops'"
            rows.append(row(what, times["torch.compile"] / times["C"], None))
    return rows


# --- linear layers ----------------------------------------------------------------------------------------------------


class Layers:
    """All linear layers of a laptop model, with the gradients that their outputs get; `step` runs both passes."""

    def __init__(self, model: str, numerics: Numerics) -> None:
        architecture = read_architecture(model)
        hidden = architecture.hidden_size
        torch.manual_seed(1)
        shapes: list[tuple[int, int, list[int]]] = [(3 * hidden, hidden, [TOKENS]), (hidden, hidden, [TOKENS])]
        if experts := architecture.experts:
            tokens = torch.multinomial(torch.rand(experts.count) + 0.2, TOKENS * experts.top_k, replacement=True)
            counts = tokens.bincount(minlength=experts.count).tolist()
            shapes += [(2 * experts.size, hidden, counts), (hidden, experts.size, counts)]
        else:
            width = architecture.feed_forward_size or 0
            shapes += [(2 * width, hidden, [TOKENS]), (hidden, width, [TOKENS])]
        self.layers = []
        for out, into, counts in shapes * architecture.layers:
            weight: Any = Parameter((torch.randn(len(counts), out, into) * 0.02).bfloat16())
            weight.main_grad = torch.zeros(weight.shape)
            x = torch.randn(sum(counts), into).bfloat16().requires_grad_()
            gradient = (torch.randn(sum(counts), out) * 1e-4).bfloat16()
            delayed = numerics.recipe.scaling == "delayed"
            history = AmaxHistory(numerics.amax_history, len(counts)) if delayed else None
            self.layers.append((x, weight, counts, gradient, history))
        self.numerics = numerics

    def step(self) -> None:
        """Forward and backward through every layer."""
        for x, weight, counts, gradient, history in self.layers:
            grouped_linear(x, weight, None, counts, self.numerics, history).backward(gradient)


def step_rows(repeat: int) -> list[Row]:
    """Forward, input gradient and weight gradient of every linear layer, against BF16 of the same code."""
    rows = []
    for model in ("laptop-dense", "laptop-moe"):
        cases = {name: Precision(recipe=name) for name in ("bf16", *quantised_recipes()) if name != "nvfp4"}
        for how in ("fp14", "promoted"):
            cases[f"fp8_blockwise {how}"] = Precision(recipe="fp8_blockwise", accumulation=how)
        layers = {name: Layers(model, Numerics.of(precision)) for name, precision in cases.items()}
        times = medians({name: one.step for name, one in layers.items()}, repeat)
        print(f"{model}: linear layers in BF16 take {times['bf16'] * 1e3:.1f} ms")
        rows += [
            row(f"{model}, linear layers in {name}: times BF16", times[name] / times["bf16"], STEP_BARS.get(name))
            for name in cases
            if name != "bf16"
        ]
    return rows


# --- peers ------------------------------------------------------------------------------------------------------------


def torchao_rows(repeat: int) -> list[Row]:
    """Its emulated tensorwise linear layer, and its MX with the scales of NVIDIA's GPUs."""
    try:
        from torchao.float8 import Float8LinearConfig  # type: ignore[import-not-found]
        from torchao.float8.float8_linear import Float8Linear  # type: ignore[import-not-found]
        from torchao.prototype.mx_formats.mx_tensor import (  # type: ignore[import-not-found]
            ScaleCalculationMode,
            to_dtype,
            to_mx,
        )
    except ImportError as error:
        print(f"torchao: not installed ({error})")
        return []
    torch.manual_seed(2)
    into, out = 96, 288
    plain = torch.nn.Linear(into, out, bias=False).bfloat16()
    theirs = Float8Linear.from_float(plain, Float8LinearConfig(emulate=True))
    weight, numerics = Parameter(plain.weight.detach().clone()), Numerics.of(Precision(recipe="fp8_tensorwise"))
    x, gradient = torch.randn(TOKENS, into).bfloat16(), (torch.randn(TOKENS, out) * 1e-4).bfloat16()
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()

    def ours() -> Tensor:
        y = linear(ours_x, weight, None, numerics)
        y.backward(gradient)
        return y

    def peer() -> Tensor:
        y = theirs(theirs_x)
        y.backward(gradient)
        return y

    same_values(ours(), peer())
    same_values(ours_x.grad, theirs_x.grad)
    same_values(weight.grad, theirs.weight.grad)
    times = medians({"ours": ours, "torchao": peer}, repeat)
    rows = [
        row("tensorwise linear step: times faster than torchao", times["torchao"] / times["ours"], 2, at_least=True)
    ]

    values = torch.randn(TOKENS, 288).bfloat16()
    rounded = torch.empty(values.shape)

    def mx() -> Tensor:
        scales, codes = to_mx(values, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
        return to_dtype(codes, scales, torch.float8_e4m3fn, 32, torch.float32)

    def ours_mx() -> Tensor:
        round_blocks(values, E4M3, (1, 32), rounded)
        return rounded

    assert torch.equal(mx(), ours_mx()), "torchao's MX values differ"
    times = medians({"ours": ours_mx, "torchao": mx}, repeat)
    rows.append(row("MX rounding: times faster than torchao", times["torchao"] / times["ours"], 2, at_least=True))
    return rows


def same_values(ours: Tensor | None, theirs: Tensor | None) -> None:
    """The same but for the order of FP32's sums and of two multiplications: a BF16 step in few places."""
    assert ours is not None
    assert theirs is not None
    a, b = ours.detach().float(), theirs.detach().float()
    assert ((a - b).abs() <= a.abs() * 2**-7 + a.abs().max() * 2**-18).all(), "torchao's values differ"
    assert (a == b).float().mean() > 0.98, "torchao's values differ"


def microxcaling_rows(repeat: int) -> list[Row]:
    """Its scales are rounded down: the same values where no block's largest is beyond 1.75 times a power of two."""
    try:
        from mx.mx_ops import _quantize_mx  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"microxcaling: not installed ({error})")
        return []
    torch.manual_seed(3)
    values = torch.randn(TOKENS, 288).clamp(-1.75, 1.75).bfloat16()
    blocks = values.float().unflatten(1, (-1, 32))
    fits = torch.frexp(blocks.abs().amax(-1)).mantissa * 2 <= 1.75
    out = torch.empty(values.shape)

    def ours() -> Tensor:
        round_blocks(values, E4M3, (1, 32), out)
        return out

    def peer() -> Tensor:
        return _quantize_mx(values.float(), 8, "fp8_e4m3", axes=[1], block_size=32, round="even")

    agree = (ours().unflatten(1, (-1, 32)) == peer().unflatten(1, (-1, 32))).all(-1)
    assert fits.float().mean() > 0.5
    assert agree[fits].all(), "microxcaling's values differ"
    times = medians({"ours": ours, "microxcaling": peer}, repeat)
    ratio = times["microxcaling"] / times["ours"]
    return [row("MX rounding: times faster than microxcaling", ratio, 2, at_least=True)]


def show(rows: Sequence[Row]) -> None:
    """Print what was measured."""
    for one in rows:
        bar = "" if one["bar"] is None else f"  bar {'>=' if one['at_least'] else '<='} {one['bar']}"
        verdict = "" if one["passed"] is None else ("" if one["passed"] else "  MISSED")
        print(f"{one['value']:8.2f}  {one['what']}{bar}{verdict}")


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.insert(0, str(arguments.peers.resolve()))
    torch.set_num_threads(1)
    keep_memory()  # as in training
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, "
          f"{'compiled rounding' if library.COMPILED else 'rounding in torch'}")  # fmt: skip
    rows: list[Row] = []
    for part in (rounding_rows, compile_rows, step_rows, torchao_rows, microxcaling_rows):
        rows += part(arguments.repeat)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([{**one, "value": round(one["value"], 3)} for one in rows], indent=2))


if __name__ == "__main__":
    main()
