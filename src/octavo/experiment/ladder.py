"""`ladder:` in an experiment: one family of models at several sizes, expanded into ordinary models and overrides.

A rung is a dense model and a mixture of experts with equal active parameters, trained on equally many tokens. From rung
to rung the dense model's training takes `compute_factor` times the model FLOPs; tokens are in proportion to active
parameters (Hoffmann et al. 2022, arXiv 2203.15556), so that a rung has about the root of that factor times the
parameters of the one below. Of all depths and widths whose compute fits, a rung has the one whose proportions are
nearest to the family's. Learning rate and batch are power laws of the active parameters, as in Porian et al. 2024
(arXiv 2406.19146) and OLMo-core's ladders.

`expanded` turns the rule into `models`, `overrides` and `match` of the experiment file. After that a rung's models are
models like any others: each run's `config.yaml` holds the sizes, steps, rate and batch that were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from octavo.configuration import Section
from octavo.errors import OctavoError
from octavo.models.architecture import Architecture, Even, Experts, GroupedQueryAttention, Router
from octavo.models.flops import flops_per_token
from octavo.models.matched import matched_quantity
from octavo.precision.config import RecipeName

Kind = Literal["dense", "moe"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_LAYERS = 256
WIDER = 2.0
"""Widths are tried up to this factor above and below the family's proportion."""


class LadderExperts(Section):
    """The routed experts of a family's mixtures; their width follows from the dense partner's."""

    count: Annotated[int, Field(ge=2, le=4096)]
    """Routed experts per layer, on every rung."""
    top_k: PositiveInt
    """Routed experts per token."""
    shared: Annotated[int, Field(ge=0, le=64)] = 0
    """Width of the shared expert, in widths of a routed one; 0: none."""
    router: Router = Router()
    """How tokens choose experts."""

    @model_validator(mode="after")
    def _top_k(self) -> Self:
        if self.top_k > self.count:
            raise ValueError(f"top_k must be at most count: {self.top_k} of {self.count} experts")
        return self


class Family(Section):
    """What the models of all rungs have in common."""

    hidden_per_layer: PositiveFloat | None = None
    """Width of the residual stream over the number of layers, about: deeper as it is wider."""
    layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] | None = None
    """In its place: one depth for all rungs, where sizes are so small that a layer more is a leap."""
    head_size: Even
    """Width of an attention head; the hidden size is a multiple of it, with as many heads."""
    feed_forward: PositiveFloat
    """Width of the dense SwiGLU over the hidden size, about."""
    multiple: PositiveInt = 8
    """Widths of feed-forwards and experts are multiples of it."""
    experts: LadderExperts
    """The mixtures' experts."""

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if (self.layers is None) == (self.hidden_per_layer is None):
            raise ValueError("give either hidden_per_layer or layers")
        return self


class PowerLaw(Section):
    """A setting that changes with active parameters N: value x (N / at) ^ exponent."""

    value: PositiveFloat
    """Its value at that size."""
    at: PositiveInt
    """Active parameters of the size where it is known."""
    exponent: Annotated[float, Field(ge=-2, le=2)]
    """0: the same on every rung."""

    def of(self, parameters: float) -> float:
        """Its value at another size."""
        return self.value * (parameters / self.at) ** self.exponent


class LadderRates(Section):
    """Learning rates: a power law for each architecture, and where its numbers come from."""

    dense: PowerLaw
    """Of the dense models."""
    moe: PowerLaw
    """Of the mixtures; found with the same care."""
    source: str
    """How the numbers were found, as the report prints it: on which rungs, on seeds that are not reported."""


class Ladder(Section):
    """A family of matched pairs, dense and mixture of experts, one pair a rung."""

    rungs: Annotated[int, Field(ge=2, le=12)]
    """How many sizes."""
    active_parameters: Annotated[int, Field(ge=1000)]
    """Active parameters of the smallest rung, about (the output head counted, the input embedding not)."""
    compute_factor: Annotated[float, Field(ge=2, le=1000)] = 4.0
    """Model FLOPs of a rung's training over those of the rung below."""
    tokens_per_parameter: PositiveFloat
    """Training tokens per active parameter."""
    tolerance: Annotated[float, Field(gt=0, le=0.2)] = 0.02
    """Largest relative difference of a pair's active parameters, and of a rung's compute from the rule's."""
    family: Family
    """What all rungs have in common."""
    learning_rate: LadderRates
    """How rates change with size."""
    batch: PowerLaw | None = None
    """Sequences per step, rounded to what the devices can share; None: training.global_batch_size on every rung."""
    only: dict[RecipeName, Annotated[list[PositiveInt], Field(min_length=1)]] = {}
    """Recipe -> the rungs (1: the smallest) that are trained in it; the others are trained in the rest alone."""
    published: str | None = None
    """An experiment of configs/experiments at published scale, dense and mixture: its cluster and layouts give the time
    side of what the ladder says about losses."""

    @model_validator(mode="after")
    def _rungs(self) -> Self:
        for recipe, rungs in self.only.items():
            for rung in rungs:
                if rung > self.rungs:
                    raise ValueError(f"only: {recipe} on rung {rung}, but there are {self.rungs} rungs")
        return self


@dataclass(frozen=True)
class Rung:
    """A matched pair of models and how they are trained."""

    number: int
    """From 1, the smallest."""
    models: dict[Kind, Architecture]
    tokens: int
    """Of each run."""
    steps: int
    batch: int
    """Sequences per step."""
    learning_rates: dict[Kind, float]
    active: dict[Kind, int]
    """Active parameters."""
    flops: dict[Kind, float]
    """Model FLOPs of one run."""

    @property
    def size(self) -> str:
        """The dense model's active parameters in short, as names of models have it: `71k`, `1.1M`."""
        return short(self.active["dense"])

    def role(self, kind: Kind) -> str:
        """The name of one of its models in the experiment: `moe_71k`."""
        return f"{kind}_{self.size}"


def short(parameters: float) -> str:
    """A number of parameters with two digits: `71k`, `1.1M`, `12B`."""
    exact = float(f"{parameters:.2g}")
    unit, letter = next((one for one in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if exact >= one[0]), (1.0, ""))
    return f"{exact / unit:.2g}" + letter if exact / unit < 100 else f"{exact / unit:.0f}{letter}"


@dataclass(frozen=True)
class Setting:
    """What a rule needs of the rest of the experiment."""

    vocabulary_size: int
    sequence_length: int
    batch: int
    """Sequences per step where the ladder has no rule for them."""
    batch_multiple: int
    """Micro batch x data-parallel ranks, which divides a batch."""


def rungs(ladder: Ladder, setting: Setting, where: str = "ladder") -> tuple[Rung, ...]:
    """The rungs, from the smallest. Raises OctavoError where no shape of the family comes near enough to a rung."""
    return _rungs(ladder.model_dump_json(), setting, where)


@cache
def _rungs(ladder_json: str, setting: Setting, where: str) -> tuple[Rung, ...]:
    ladder = Ladder.model_validate_json(ladder_json)
    found: list[Rung] = []
    for number in range(1, ladder.rungs + 1):
        if not found:
            wanted, of_pair = float(ladder.active_parameters), _active
            what = "active parameters"
        else:
            wanted, of_pair = found[0].flops["dense"] * ladder.compute_factor ** (number - 1), _compute(ladder, setting)
            what = "model FLOPs of a dense run"
        shape = _nearest(ladder, setting, wanted, of_pair)
        if shape is None:
            raise OctavoError(
                f"no shape of the family has {wanted:.3g} {what} (rung {number}) within {ladder.tolerance:.1%}",
                where=where,
                expected="a dense model and a mixture with equal active parameters",
                fix="give a smaller family.multiple or head_size, other proportions, another size of the smallest "
                "rung, or a wider tolerance",
            )
        found.append(_rung(ladder, setting, number, shape))
    for one, other in pairwise(found):
        if one.size == other.size:
            raise OctavoError(f"rungs {one.number} and {other.number} are both {one.size}", where=where)
    return tuple(found)


Pair = dict[Kind, Architecture]


def _active(pair: Pair) -> float:
    return matched_quantity(pair["dense"], "active_parameters", 1)


def _compute(ladder: Ladder, setting: Setting) -> Callable[[Pair], float]:
    """Model FLOPs of the dense model's training, its tokens in proportion to its parameters."""

    def of(pair: Pair) -> float:
        return flops_per_token(pair["dense"], setting.sequence_length) * ladder.tokens_per_parameter * _active(pair)

    return of


def _nearest(ladder: Ladder, setting: Setting, wanted: float, of_pair: Callable[[Pair], float]) -> Pair | None:
    """Of the pairs that have what is wanted within the tolerance, the one with the family's proportions."""
    family, best, nearest = ladder.family, None, math.inf
    # a parameter takes 6 FLOPs a token at least
    parameters = of_pair is _active
    most = wanted if parameters else math.sqrt(wanted / 6 / ladder.tokens_per_parameter)
    for apart, layers, hidden in _shapes(family, most * (1 + ladder.tolerance)):
        if apart >= nearest:
            break
        for size in _sizes(ladder, setting, layers, hidden, wanted, parameters):
            ratio = _active_width(family, size) / hidden / family.feed_forward
            distance = apart + math.log(ratio) ** 2
            if distance < nearest:
                pair = _pair(family, setting, layers, hidden, size)
                if _fits(ladder, pair, of_pair(pair), wanted):
                    best, nearest = pair, distance
    return best


def _shapes(family: Family, most_parameters: float) -> list[tuple[float, int, int]]:
    """Depths and hidden sizes, with how far their proportion is from the family's; the nearest first."""
    found = []
    for layers in [family.layers] if family.layers else range(1, MOST_LAYERS + 1):
        about = (family.hidden_per_layer or 0.0) * layers
        least = max(1, math.ceil(about / WIDER / family.head_size))
        for heads in count(least):
            hidden = heads * family.head_size
            # enough: the attention's weights alone are too many, or the model is too wide for its depth
            if layers * 4 * hidden**2 > most_parameters or (about and heads > least and hidden > WIDER * about):
                break
            found.append((math.log(hidden / about) ** 2 if about else 0.0, layers, hidden))
    return sorted(found)


def _sizes(
    ladder: Ladder,
    setting: Setting,
    layers: int,
    hidden: int,
    wanted: float,
    parameters: bool,
) -> Iterator[int]:
    """The two widths of a routed expert between which lies what is wanted: active parameters, or compute.

    The dense model of width w has a + b w active parameters and c + 6 b w FLOPs per token (`octavo.models.flops`); what
    is found so is counted exactly before it is taken.
    """
    family, head = ladder.family, setting.vocabulary_size * hidden
    a, b = layers * (4 * hidden**2 + 2 * hidden) + hidden + head, 3 * hidden * layers
    c = 6 * (layers * 4 * hidden**2 + head + layers * hidden * setting.sequence_length)
    if parameters:
        width = (wanted - a) / b
    else:  # (a + b w) (c + 6 b w) x tokens per parameter = what is wanted
        linear, constant = b * (6 * a + c), a * c - wanted / ladder.tokens_per_parameter
        width = (math.sqrt(max(0.0, linear**2 - 24 * b**2 * constant)) - linear) / (12 * b**2)
    experts = family.experts
    steps = math.floor((width - experts.count / 3) / (experts.top_k + experts.shared) / family.multiple)
    yield from (family.multiple * one for one in (steps, steps + 1) if one > 0)


def _active_width(family: Family, size: int) -> float:
    """Width of the dense SwiGLU with as many parameters as a token meets in the mixture's layer.

    A router is a matrix of hidden x count, as many parameters as count / 3 more of SwiGLU's width.
    """
    return (family.experts.top_k + family.experts.shared) * size + family.experts.count / 3


def _fits(ladder: Ladder, pair: Pair, found: float, wanted: float) -> bool:
    sizes = [matched_quantity(one, "active_parameters", 1) for one in pair.values()]
    return abs(found / wanted - 1) <= ladder.tolerance and max(sizes) / min(sizes) - 1 <= ladder.tolerance


def _pair(family: Family, setting: Setting, layers: int, hidden: int, size: int) -> Pair:
    """The mixture whose routed experts have this width, and the dense model that has as many active parameters."""
    heads, experts = hidden // family.head_size, family.experts
    common: dict[str, Any] = {
        "source": "the experiment's ladder",
        "layers": layers,
        "hidden_size": hidden,
        "attention": GroupedQueryAttention(heads=heads, kv_heads=heads, head_size=family.head_size),
        "vocabulary_size": setting.vocabulary_size,
    }
    return {
        "dense": Architecture(
            name="dense",
            feed_forward_size=max(1, round(_active_width(family, size) / family.multiple)) * family.multiple,
            **common,
        ),
        "moe": Architecture(
            name="moe",
            experts=Experts(
                count=experts.count, top_k=experts.top_k, size=size, shared_size=experts.shared * size,
                router=experts.router,
            ),
            **common,
        ),
    }  # fmt: skip


def _rung(ladder: Ladder, setting: Setting, number: int, pair: Pair) -> Rung:
    active: dict[Kind, int] = {
        kind: int(matched_quantity(model, "active_parameters", 1)) for kind, model in pair.items()
    }
    size = active["dense"]
    batch = setting.batch
    if ladder.batch is not None:
        multiple = setting.batch_multiple
        batch = max(1, round(ladder.batch.of(size) / multiple)) * multiple
    tokens_per_step = batch * setting.sequence_length
    steps = max(1, round(ladder.tokens_per_parameter * size / tokens_per_step))
    tokens = steps * tokens_per_step
    rates = {"dense": ladder.learning_rate.dense, "moe": ladder.learning_rate.moe}
    return Rung(
        number=number,
        models=pair,
        tokens=tokens,
        steps=steps,
        batch=batch,
        learning_rates={kind: float(f"{rates[kind].of(size):.3g}") for kind in KINDS},
        active=active,
        flops={kind: flops_per_token(model, setting.sequence_length) * tokens for kind, model in pair.items()},
    )


def models(rung: Rung) -> dict[str, dict[str, Any]]:
    """A rung's two models as an experiment file writes them out."""
    written = {}
    for kind, model in rung.models.items():
        value = model.model_dump(mode="json", exclude_defaults=True, exclude={"name", "source", "vocabulary_size"})
        # the kind is a default, but must be said
        written[rung.role(kind)] = {**value, "attention": {"kind": "gqa", **value["attention"]}}
    return written


def overrides(rung: Rung, smallest: Rung, intervals: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What a rung's runs are trained with. `intervals` (key path -> steps) are those of the smallest rung: a larger one
    is validated and saved as often over its length."""
    longer = {key: max(1, round(steps * rung.steps / smallest.steps)) for key, steps in intervals.items()}
    return {
        rung.role(kind): {
            "training.steps": rung.steps,
            "training.global_batch_size": rung.batch,
            "training.optimizer.learning_rate": rung.learning_rates[kind],
            **longer,
        }
        for kind in KINDS
    }
