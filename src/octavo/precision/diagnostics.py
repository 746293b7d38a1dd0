"""What FP8 does to the numbers of a step: values lost to zero, values saturated, magnitudes, errors of products.

    with diagnose() as found:
        ...  # a training step
    found.fields()  # the fp8_* fields of a MetricsRecord

While it is on, every quantised operand and every product of `octavo.precision.products` is looked at as it is made, and
each product is computed a second time from the BF16 operands; a step takes about twice as long (docs/precision.md has
the figures). When it is off the cost is one comparison with None per layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from octavo.cpu.formats import Format
from octavo.records import Product, TensorKind

_KINDS: tuple[TensorKind, ...] = get_args(TensorKind)
_PRODUCTS: tuple[Product, ...] = get_args(Product)


class Diagnostics:
    """Counts and sums over the layers, experts and micro-batches seen so far, on this rank."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(_KINDS, 0)
        self._saturated = dict.fromkeys(_KINDS, 0)
        self._nonzero = dict.fromkeys(_KINDS, 0)
        self._zeroed = dict.fromkeys(_KINDS, 0)
        self._amax = dict.fromkeys(_KINDS, 0.0)
        self._errors = dict.fromkeys(_PRODUCTS, 0.0)
        self._compared = dict.fromkeys(_PRODUCTS, 0)

    def see_operand(self, kind: TensorKind, before: Tensor, after: Tensor, scale: float | None, format: Format) -> None:
        """Note one tensor before quantising and after it, multiplied by `scale` in between.

        None: scales per block, which leave room for every block's largest magnitude, so that nothing saturates.
        """
        if not before.numel():
            return
        magnitudes = before.float().abs()
        nonzero = magnitudes > 0
        self._values[kind] += magnitudes.numel()
        self._nonzero[kind] += int(nonzero.sum())
        self._zeroed[kind] += int((nonzero & (after == 0)).sum())
        amax = magnitudes.max().item()
        self._amax[kind] = max(self._amax[kind], math.inf if math.isnan(amax) else amax)  # max(0.0, NaN) is 0.0
        if scale is not None:
            self._saturated[kind] += int((magnitudes * scale > format.overflow).sum())

    def see_product(self, product: Product, got: Tensor, exact: Tensor) -> None:
        """Note one layer's product, of all its experts, and the same from BF16 operands."""
        error, norm = (got - exact).square().sum().item(), exact.square().sum().item()
        if norm != 0:  # NaN too: it must not vanish
            self._errors[product] += (error / norm) ** 0.5
            self._compared[product] += 1

    def fields(self) -> dict[str, Any]:
        """`fp8_underflow`, `fp8_overflow`, `fp8_amax`, `fp8_product_error`, over all ranks (a collective call).

        Kinds that were nowhere quantised and products that were not compared are left out; None: all of them. A number
        that is infinite or none is None, as losses are.
        """
        sums = (self._values, self._saturated, self._nonzero, self._zeroed, self._errors, self._compared)
        values, saturated, nonzero, zeroed, errors, compared = _over_ranks(sums, torch.distributed.ReduceOp.SUM)
        (amax,) = _over_ranks((self._amax,), torch.distributed.ReduceOp.MAX)
        return {
            "fp8_underflow": _ratios(zeroed, nonzero),
            "fp8_overflow": _ratios(saturated, values),
            "fp8_amax": {kind: _finite(amax[kind]) for kind, count in values.items() if count} or None,
            "fp8_product_error": _ratios(errors, compared),
        }


def _ratios(parts: Mapping[Any, float], wholes: Mapping[Any, float]) -> dict[Any, float | None] | None:
    return {key: _finite(parts[key] / whole) for key, whole in wholes.items() if whole} or None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _over_ranks(tables: Sequence[Mapping[Any, float]], operation: Any) -> Sequence[Mapping[Any, float]]:
    """The tables with every number reduced over all ranks; the tables themselves where there is one."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tables
    device: Any = torch.cuda.current_device()
    flat = [float(value) for table in tables for value in table.values()]
    reduced = torch.tensor(flat, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(reduced, operation)
    values = iter(reduced.tolist())
    return [{key: next(values) for key in table} for table in tables]


_current: Diagnostics | None = None


def current() -> Diagnostics | None:
    """What the products report to; None: diagnostics are off."""
    return _current


@contextmanager
def diagnose() -> Iterator[Diagnostics]:
    """Look at the operands and products of everything that is computed inside."""
    global _current  # noqa: PLW0603  (autograd runs backward passes in threads of its own on GPUs: no context variable)
    found = _current = Diagnostics()
    try:
        yield found
    finally:
        _current = None
