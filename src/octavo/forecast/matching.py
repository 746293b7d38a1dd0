"""`octavo match`: the dense or mixture-of-experts partner of a model, equal on one axis.

The partner keeps what both kinds have: hidden size, attention, vocabulary. What is asked for is kept too; the rest is
searched: depth within an eighth of the model's; for a mixture 8 to 256 routed experts (powers of two, so that 8
devices can share them), 1 to 16 of them per token, at most one leading dense layer. Widths are multiples of a stated
number, a shared expert of so many routed ones' widths. For each such shape the nearest width is found by halving, since
every axis grows with it.

Shapes are tried from the usual one on: the model's depth, and DeepSeekMoE's 64 experts, 6 per token, none of the layers
dense (arXiv 2401.06066). The first that comes within the tolerance is the partner; where none does, the nearest is in
the error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from octavo.errors import OctavoError
from octavo.files import write_text
from octavo.forecast.memory import memory
from octavo.forecast.setting import plain_layout, plain_training, read_device
from octavo.layout import configs
from octavo.models.architecture import Architecture, Experts
from octavo.models.matched import matched_quantity
from octavo.precision.config import Precision

MatchedQuantity = Literal["active_parameters", "flops_per_token", "total_parameters", "memory_per_device"]
MATCHED_QUANTITIES: tuple[MatchedQuantity, ...] = get_args(MatchedQuantity)


TOLERANCE = 0.02
EXPERTS = (64, 32, 128, 16, 256, 8)
"""Numbers of routed experts, the most usual first."""
TOP_K = (6, 8, 4, 2, 1, 12, 16)


@dataclass(frozen=True)
class Rules:
    """What the partner must be; None: searched."""

    multiple: int
    """Widths are multiples of it."""
    experts: int | None = None
    """Routed experts of a mixture."""
    top_k: int | None = None
    """Of them, per token."""
    shared: int = 2
    """Width of the shared expert, in widths of a routed one."""
    leading_dense_layers: int | None = None
    layers: int | None = None
    """Depth of the partner."""
    tolerance: float = TOLERANCE
    """Mismatch, as a share, that a partner may have."""


@dataclass(frozen=True)
class Shape:
    """A partner but for its width."""

    layers: int
    experts: int = 0
    """0: a dense partner."""
    top_k: int = 0
    leading_dense_layers: int = 0


@dataclass(frozen=True)
class MatchedPair:
    """A model, its partner, and how far they are from equal."""

    model: Architecture
    partner: Architecture
    axis: MatchedQuantity
    wanted: float
    found: float

    @property
    def mismatch(self) -> float:
        """Partner over model, less one."""
        return self.found / self.wanted - 1


def quantity(architecture: Architecture, axis: MatchedQuantity, sequence_length: int) -> float:
    """What is held equal. Memory is that of training on one device, a sequence at a time, in BF16."""
    if axis != "memory_per_device":
        return matched_quantity(architecture, axis, sequence_length)
    training, layout = plain_training(1, 1, sequence_length), plain_layout(1, 1, 1, 1, 1, 1)
    return memory(architecture, training, layout, Precision(), read_device("h100")).total


def match(model: Architecture, axis: MatchedQuantity, rules: Rules, sequence_length: int) -> MatchedPair:
    """The partner equal to the model on the axis: a mixture for a dense model, a dense model for a mixture.

    Raises OctavoError where no shape comes within the tolerance, with the nearest that was found.
    """
    best: MatchedPair | None = None
    for shape in shapes(model, rules):
        pair = _nearest(model, axis, shape, rules, sequence_length)
        if abs(pair.mismatch) <= rules.tolerance:
            return pair
        if best is None or abs(pair.mismatch) < abs(best.mismatch):
            best = pair
    assert best is not None, "there is always a shape"
    raise OctavoError(
        f"no partner of {model.name} is within {rules.tolerance:.1%} in {axis}; the nearest is {best.mismatch:+.1%} "
        f"off: {describe(best.partner)}",
        where=f"--by {axis}",
        fix="leave more to the search (--experts, --top-k, --layers, --leading-dense-layers), or a smaller --multiple "
        "or --shared, or a wider --tolerance",
    )


def shapes(model: Architecture, rules: Rules) -> list[Shape]:
    """All shapes that the rules allow, the usual ones first: those that change the depth come last."""
    reach = model.layers // 8
    near = sorted(range(model.layers - reach, model.layers + reach + 1), key=lambda depth: abs(depth - model.layers))
    depths = [rules.layers] if rules.layers else near
    if model.experts is not None:
        return [Shape(layers) for layers in depths]
    if rules.experts and rules.top_k and rules.top_k > rules.experts:
        raise OctavoError(f"{rules.top_k} of {rules.experts} experts per token", where="--top-k", expected="fewer")
    leading = [0, 1] if rules.leading_dense_layers is None else [rules.leading_dense_layers]
    counts = [rules.experts] if rules.experts else EXPERTS
    chosen = [rules.top_k] if rules.top_k else TOP_K
    found = [
        Shape(layers, count, top_k, dense)
        for layers in depths
        for dense in leading
        for count in counts
        for top_k in chosen
        if top_k <= count and dense < layers
    ]
    if not found:
        raise OctavoError(
            "no shape is left by what was asked for", where="--leading-dense-layers", expected="fewer than the layers"
        )
    return found


def _nearest(
    model: Architecture, axis: MatchedQuantity, shape: Shape, rules: Rules, sequence_length: int
) -> MatchedPair:
    """The width of a shape that comes nearest."""
    wanted = quantity(model, axis, sequence_length)

    def of_width(steps: int) -> float:
        return quantity(_partner(model, shape, steps * rules.multiple, rules.shared), axis, sequence_length)

    high = 1
    while of_width(high) < wanted:
        high *= 2
    low = high // 2  # below what is wanted; 0: even one step is above it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of_width(middle) < wanted else (low, middle)
    steps = min((one for one in (low, high) if one), key=lambda one: abs(of_width(one) - wanted))
    return MatchedPair(
        model, _partner(model, shape, steps * rules.multiple, rules.shared), axis, wanted, of_width(steps)
    )


def describe(partner: Architecture) -> str:
    """Its shape in a line."""
    experts = partner.experts
    if experts is None:
        return f"dense, feed_forward_size {partner.feed_forward_size:,}, {partner.layers} layers"
    return (
        f"{experts.count} experts of {experts.size:,}, top_k {experts.top_k}, shared {experts.shared_size:,}, "
        f"{partner.layers} layers, {experts.leading_dense_layers} of them dense"
    )


def write_partner(pair: MatchedPair, name: str) -> Path:
    """Write the partner as configs/models/<name>.yaml; an existing file and a name that is a path are refused."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise OctavoError(
            f"{name!r} is no name of a model", where="--write", expected="letters, digits, dots and dashes, no path"
        )
    path = configs().models / f"{name}.yaml"
    if path.exists():
        raise OctavoError("the file is there already", where=path, fix="choose another name, or remove it")
    value = pair.partner.model_dump(mode="json", exclude_defaults=True, exclude={"name", "published"})
    # a field with the same value as its default is left out, but which kind of attention it is must be said
    value["attention"] = {"kind": pair.partner.attention.kind, **value["attention"]}
    text = yaml.safe_dump(value, sort_keys=False, width=118, allow_unicode=True)
    write_text(path, text)
    return path


def _partner(model: Architecture, shape: Shape, width: int, shared: int) -> Architecture:
    experts = None
    if shape.experts:
        experts = Experts(
            count=shape.experts,
            top_k=shape.top_k,
            size=width,
            shared_size=shared * width,
            leading_dense_layers=shape.leading_dense_layers,
        )
    kind = "mixture-of-experts" if experts else "dense"
    own_width = model.feed_forward_size if shape.leading_dense_layers else None  # of a mixture's dense layers
    return model.model_copy(
        update={
            "experts": experts,
            "feed_forward_size": own_width if experts else width,
            "layers": shape.layers,
            "name": f"{model.name}-partner",
            "source": f"Octavo: the {kind} partner of {model.name}, found by octavo match",
            "published": None,
        }
    )
