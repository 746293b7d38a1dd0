"""`octavo match`: the dense or mixture-of-experts partner of a model, equal on one axis.

The partner keeps what both kinds have: hidden size, attention, vocabulary, and layers unless another depth is asked
for. A dense partner differs in its feed-forward width; a mixture in the width of its experts, with the number of
experts, those per token and the shared width (a multiple of an expert's) as asked. Widths are multiples of a stated
number, so that a mismatch is left; it is printed, and the nearest width is found by halving since every axis grows with
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from octavo.errors import OctavoError
from octavo.files import write_text
from octavo.models.architecture import Architecture, Experts
from octavo.models.parameters import matched_quantity

Axis = Literal["active_parameters", "flops_per_token", "total_parameters", "memory_per_device"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Rules:
    """What the partner must be."""

    multiple: int
    """Widths are multiples of it."""
    experts: int = 64
    """Routed experts of a mixture."""
    top_k: int = 6
    """Of them, per token."""
    shared: int = 2
    """Width of the shared expert, in widths of a routed one."""
    leading_dense_layers: int = 0
    layers: int | None = None
    """Depth of the partner; None: the model's."""


@dataclass(frozen=True)
class Pair:
    """A model, its partner, and how far they are from equal."""

    model: Architecture
    partner: Architecture
    axis: Axis
    wanted: float
    found: float

    @property
    def mismatch(self) -> float:
        """Partner over model, less one."""
        return self.found / self.wanted - 1


def quantity(architecture: Architecture, axis: Axis, sequence_length: int) -> float:
    """What is held equal. Memory is that of training on one device, a sequence at a time, in BF16."""
    if axis != "memory_per_device":
        return matched_quantity(architecture, axis, sequence_length)
    from octavo.experiment.config import Precision
    from octavo.forecast.fitting import plain_layout, plain_training, read_device
    from octavo.forecast.memory import memory

    training, layout = plain_training(1, 1, sequence_length), plain_layout(1, 1, 1, 1, 1, 1)
    return memory(architecture, training, layout, Precision(), read_device("h100")).total


def match(model: Architecture, axis: Axis, rules: Rules, sequence_length: int) -> Pair:
    """The partner nearest to the model on the axis: a mixture for a dense model, a dense model for a mixture.

    Raises OctavoError where even the narrowest partner is more than the model.
    """
    partner_of = _mixture(model, rules) if model.experts is None else _dense(model, rules)
    wanted = quantity(model, axis, sequence_length)

    def of_width(steps: int) -> float:
        return quantity(partner_of(steps * rules.multiple), axis, sequence_length)

    high = 1
    while of_width(high) < wanted:
        high *= 2
    low = high // 2  # below what is wanted; 0: even one step is above it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of_width(middle) < wanted else (low, middle)
    steps = min((one for one in (low, high) if one), key=lambda one: abs(of_width(one) - wanted))
    pair = Pair(model, partner_of(steps * rules.multiple), axis, wanted, of_width(steps))
    if low == 0 and pair.mismatch > 1:
        raise OctavoError(
            f"no partner of {model.name} is equal in {axis}: the narrowest has {pair.found:,.0f}, it has {wanted:,.0f}",
            where=f"--by {axis}",
            fix="ask for fewer experts, fewer of them per token, fewer --layers, or a smaller --multiple",
        )
    return pair


def write_partner(pair: Pair, path: Path) -> None:
    """Write the partner as a file of configs/models; an existing file is refused."""
    if path.exists():
        raise OctavoError("the file is there already", where=path, fix="choose another name, or remove it")
    value = pair.partner.model_dump(mode="json", exclude_defaults=True, exclude={"name", "published"})
    # a field with the same value as its default is left out, but which kind of attention it is must be said
    value["attention"] = {"kind": pair.partner.attention.kind, **value["attention"]}
    text = yaml.safe_dump(value, sort_keys=False, width=118, allow_unicode=True)
    write_text(path, text)


def _dense(model: Architecture, rules: Rules) -> Callable[[int], Architecture]:
    def of_width(width: int) -> Architecture:
        return _partner(model, rules, {"experts": None, "feed_forward_size": width})

    return of_width


def _mixture(model: Architecture, rules: Rules) -> Callable[[int], Architecture]:
    if rules.top_k > rules.experts:
        raise OctavoError(f"{rules.top_k} of {rules.experts} experts per token", where="--top-k", expected="fewer")

    def of_width(width: int) -> Architecture:
        experts = Experts(
            count=rules.experts,
            top_k=rules.top_k,
            size=width,
            shared_size=rules.shared * width,
            leading_dense_layers=rules.leading_dense_layers,
        )
        dense = model.feed_forward_size if rules.leading_dense_layers else None
        return _partner(model, rules, {"experts": experts, "feed_forward_size": dense})

    return of_width


def _partner(model: Architecture, rules: Rules, changed: dict[str, Any]) -> Architecture:
    kind = "dense" if changed["experts"] is None else "mixture-of-experts"
    return model.model_copy(
        update={
            **changed,
            "layers": rules.layers or model.layers,
            "name": f"{model.name}-partner",
            "source": f"Octavo: the {kind} partner of {model.name}, found by octavo match",
            "published": None,
        }
    )
