"""What others published of their training runs, and what follows from it.

`configs/published/runs` holds tokens, devices, hours and prices as printed, each with its place; `statements.yaml`
holds sentences with a number in them, `other_runs.yaml` what was printed of models without a file. `derived`
recomputes every such number, and those that nobody printed (cost per trillion tokens, days, share of peak) in the same
way for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from octavo.configuration import Section, place, read_section
from octavo.errors import OctavoError, shown
from octavo.experiment.cluster import Device
from octavo.layout import configs
from octavo.models.catalogue import model_names, read_architecture
from octavo.models.flops import flops_per_token
from octavo.precision.config import RecipeName

SCHEMA_VERSION = 1
TRILLION = 1e12
ABOUT = 0.1
"""How far off, as a share, a number may be of which somebody said "about" or "roughly": a judgement."""
REFERENCE_PRICE = 2.0
"""USD per GPU-hour at which all runs are compared: the price that DeepSeek-V3's report assumes (its table 1)."""


class PublishedRun(Section):
    """One published training run."""

    model: str
    """A file in configs/models. The run's file has its name, or its name and what tells runs of one model apart:
    `<model>.yaml`, `<model>-<words>.yaml`."""
    device: str | None = None
    """A file in configs/clusters/devices; None where the hours on it were not published."""
    devices: PositiveInt | None = None
    precision: RecipeName | None = None
    sequence_length: PositiveInt | None = None
    tokens: PositiveFloat | None = None
    tokens_per_step: PositiveFloat | None = None
    device_hours: dict[str, PositiveFloat] = {}
    """By stage; `all` where stages are not told apart."""
    hours_caveat: str | None = None
    """What else the hours may hold, so that a utilisation that follows from them is too low."""
    device_hours_per_trillion_tokens: PositiveFloat | None = None
    price_per_device_hour: PositiveFloat | None = None
    tflops_per_4k_tokens: PositiveFloat | None = None
    """Forward and backward, as the authors count them."""
    sources: Annotated[dict[str, str], Field(min_length=1)]

    @property
    def device_name(self) -> str:
        """As the device's file has it, which is named after it; empty where no device is published."""
        return (self.device or "").upper()

    @property
    def hours(self) -> float:
        """Device-hours of all stages."""
        return sum(self.device_hours.values())

    @property
    def pre_training_hours(self) -> float:
        """Device-hours that the tokens took."""
        return self.device_hours.get("pre_training", self.hours)

    @property
    def hours_per_trillion_tokens(self) -> float | None:
        """As printed, or from hours and tokens; None where neither is published."""
        if self.device_hours_per_trillion_tokens is not None:
            return self.device_hours_per_trillion_tokens
        return self.pre_training_hours / self.tokens * TRILLION if self.tokens and self.device_hours else None


class Statement(Section):
    """A sentence with a number."""

    text: str
    value: PositiveFloat
    unit: str
    last_digit: PositiveFloat | None = None
    """What one unit of the last printed digit is; a recomputed number may be half of it off and is still the same."""
    about: bool = False
    """The sentence says "about" or "roughly": the number may be ABOUT off."""
    at_most: bool = False
    """The sentence says "less than"."""
    divided_runs: list[str] = []
    """The two runs whose hours it divides: so it is a ratio of costs only where an hour of both costs the same."""
    assumption: str
    source: str

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if [self.last_digit is not None, self.about, self.at_most].count(True) != 1:
            raise ValueError("how far the number may be off is not clear: one of last_digit, about, at_most")
        return self

    def holds(self, value: float) -> bool:
        """Whether a recomputed number is what was printed."""
        if self.at_most:
            return value <= self.value
        return abs(value - self.value) <= self.margin * (1 + 1e-9)

    @property
    def margin(self) -> float:
        """How far a recomputed number may be off."""
        return ABOUT * self.value if self.about else (self.last_digit or 0.0) / 2

    @property
    def allowance(self) -> str:
        """The same in words."""
        if self.at_most:
            return "at most what is printed"
        if self.about:
            return f"within {100 * ABOUT:g} %, for “about”"
        return f"within half of the last printed digit, {self.margin:,.4g}"


class Research(Section):
    """What a model took before and besides its final runs; one of the two shares, as printed."""

    text: str
    development_over_final: PositiveFloat | None = None
    """Over what the final runs took."""
    development_share_of_total: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Over all that was taken."""
    measured: str
    """What was counted: GPU-hours, energy."""
    source: str

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.development_over_final is None) == (self.development_share_of_total is None):
            raise ValueError("one of development_over_final and development_share_of_total is wanted")
        return self

    @property
    def all_in_over_final(self) -> float:
        """All that was taken over what the final runs took."""
        if self.development_share_of_total is not None:
            return 1 / (1 - self.development_share_of_total)
        return 1 + (self.development_over_final or 0.0)


class OtherRun(Section):
    """A published run of a model that has no file in configs/models."""

    text: str
    active_parameters: PositiveFloat | None = None
    """Per token, as printed; None where that is another run's."""
    tokens: PositiveFloat | None = None
    """Of pre-training."""
    device: str | None = None
    devices: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    """That they took."""
    device_hours: PositiveFloat | None = None
    """As printed; None where they follow from devices and minutes, or are not published."""
    hours_hold: str = ""
    """What the hours hold."""
    undisturbed_tokens_per_second: PositiveFloat | None = None
    """Of one device while nothing goes wrong."""
    source: str

    @property
    def hours(self) -> float | None:
        """Device-hours; None where they are not published."""
        if self.device_hours is None and self.devices and self.minutes:
            return self.devices * self.minutes / 60
        return self.device_hours


class OtherRuns(Section):
    """`configs/published/other_runs.yaml`."""

    runs: dict[str, OtherRun]


class ResearchFile(Section):
    """`configs/published/research.yaml`."""

    research: dict[str, Research]


class Statements(Section):
    """`configs/published/statements.yaml`."""

    statements: dict[str, Statement]


@dataclass(frozen=True)
class Derived:
    """One recomputed number."""

    name: str
    text: str
    value: float
    unit: str
    published_value: float | None
    """As printed; None: nobody printed it."""
    holds: bool | None
    """Whether the recomputed number is the printed one within what rounding and words allow; None: none was printed."""
    assumption: str
    """With what was allowed, where a number was printed."""
    source: str
    margin: float = 0.0
    """How far the number may be off from the printed one."""
    divided_runs: Sequence[str] = ()
    """The runs whose hours it divides."""


@dataclass(frozen=True)
class PricedRun:
    """What a run's hours cost at one price of an hour."""

    run: str
    basis: str
    price: float
    cost: float


def published_research() -> dict[str, Research]:
    """What is in configs/published/research.yaml; nothing where there is no such file."""
    path = configs().published / "research.yaml"
    return read_section(path, ResearchFile).research if path.exists() else {}


def priced(runs: Sequence[str], prices: Mapping[str, float]) -> list[PricedRun]:
    """The hours of published runs at each price of an hour, by what the price is."""
    known = published_runs()
    return [
        PricedRun(name, basis, price, price * _hours(known[name])) for name in runs for basis, price in prices.items()
    ]


def published_runs() -> Runs:
    """All runs in configs/published/runs, by name."""
    return Runs({path.stem: _read_run(path) for path in sorted((configs().published / "runs").glob("*.yaml"))})


def runs_beside(runs: Runs, model: str, device: Device, recipe: RecipeName) -> Iterator[str]:
    """Those of some published runs that are of a model on a kind of device in a recipe, in words: the hours, the tokens
    and the rate that follows."""
    for name, run in runs.items():
        asked = (run.model, run.device_name, run.precision) == (model, device.name, recipe)
        if not asked or not (run.device_hours and run.tokens):
            continue
        hours = run.pre_training_hours
        yield (
            f"{run.tokens / hours / 3600:,.0f} tokens/s per {device.name} ({hours:,.0f} hours of all devices for "
            f"{run.tokens / TRILLION:g} T tokens; configs/published/runs/{name}.yaml)"
        )


def _read_run(path: Path) -> PublishedRun:
    run = read_section(path, PublishedRun)
    if run.model not in model_names() or not (path.stem == run.model or path.stem.startswith(f"{run.model}-")):
        raise OctavoError(
            f"the run {path.stem} is of the model {shown(run.model)}",
            where=place(path, ("model",)),
            expected="a file in configs/models that the run's file is named after",
        )
    return run


def derived() -> list[Derived]:
    """Every number that follows from what was published: those somebody printed first."""
    runs = published_runs()
    statements = read_section(configs().published / "statements.yaml", Statements).statements
    if unknown := sorted(statements.keys() - FORMULAS.keys()):
        raise OctavoError(
            f"the statement {shown(unknown[0])} has no formula",
            where=configs().published / "statements.yaml",
            expected=f"one of {', '.join(FORMULAS)}",
        )
    stated = [_stated(name, one, FORMULAS[name](runs)) for name, one in statements.items()]
    path = configs().published / "other_runs.yaml"
    others = read_section(path, OtherRuns).runs if path.exists() else {}
    return [
        *stated,
        *(number for name, run in runs.items() for number in _of_run(name, run)),
        _bought(runs),
        *(number for name, run in others.items() for number in _of_other(name, run)),
    ]


def _stated(name: str, statement: Statement, value: float) -> Derived:
    return Derived(
        name,
        statement.text,
        value,
        statement.unit,
        statement.value,
        statement.holds(value),
        f"{statement.assumption}; {statement.allowance}",
        statement.source,
        statement.margin,
        tuple(statement.divided_runs),
    )


class Runs(dict[str, PublishedRun]):
    """Runs by name."""

    def __missing__(self, name: str) -> PublishedRun:
        raise OctavoError(f"the published run {name} is missing", where=configs().published / "runs" / f"{name}.yaml")


def _known(value: float | None, run: PublishedRun, key: str) -> float:
    if not value:
        raise OctavoError(
            f"the published run of {run.model} does not say {key}",
            where=configs().published / "runs",
            fix="add it: a number of statements.yaml is worked out of it",
        )
    return value


def _hours(run: PublishedRun) -> float:
    return _known(run.hours, run, "device_hours")


def _cost(run: PublishedRun) -> float:
    return run.hours * (run.price_per_device_hour or REFERENCE_PRICE)


def _per_trillion(run: PublishedRun) -> float:
    return _known(run.hours_per_trillion_tokens, run, "device_hours")


def _days(hours: float, run: PublishedRun) -> float:
    return hours / _known(run.devices, run, "devices") / 24


def _tflops(run: PublishedRun) -> float:
    return _known(run.tflops_per_4k_tokens, run, "tflops_per_4k_tokens")


def _flops(model: str, sequence_length: int) -> float:
    return flops_per_token(read_architecture(model), sequence_length)


def _total_flops(run: PublishedRun, *, prediction: bool = True) -> float:
    length = int(_known(run.sequence_length, run, "sequence_length"))
    model = read_architecture(run.model)
    if not prediction:
        model = model.model_copy(update={"multi_token_prediction_layers": 0})
    return _known(run.tokens, run, "tokens") * flops_per_token(model, length)


def _step_seconds(run: PublishedRun) -> float:
    """Time of a step of `tokens_per_step`, all devices at work."""
    hours = _per_trillion(run) * _known(run.tokens_per_step, run, "tokens_per_step") / TRILLION
    return 3600 * hours / _known(run.devices, run, "devices")


def utilisation(run: PublishedRun, *, prediction: bool = True) -> float:
    """Model FLOPs over what the devices could have done in BF16 in the hours that the tokens took (MFU); without
    `prediction` those of multi-token-prediction layers are left out."""
    device = read_section(configs().clusters / "devices" / f"{run.device}.yaml", Device)
    hours = _per_trillion(run) * _known(run.tokens, run, "tokens") / TRILLION
    return _total_flops(run, prediction=prediction) / (
        hours * 3600 * _known(device.peak_tflops.get("bf16"), run, "a device with a peak in BF16") * 1e12
    )


FORMULAS: dict[str, Callable[[Runs], float]] = {
    "six_million_dollars": lambda runs: _cost(runs["deepseek-v3"]),
    "final_run_cost": lambda runs: _cost(runs["deepseek-v3"]),
    "one_tenth": lambda runs: runs["deepseek-v3"].hours / _hours(runs["llama-3.1-405b"]),
    "deepseek_chips": lambda runs: float(runs["deepseek-v3"].devices or 0),
    "meta_chips": lambda runs: float(runs["llama-3.1-405b"].devices or 0),
    "hours_per_trillion_tokens": lambda runs: _per_trillion(runs["deepseek-v3"]),
    "days_per_trillion_tokens": lambda runs: _days(_per_trillion(runs["deepseek-v3"]), runs["deepseek-v3"]),
    "two_months": lambda runs: _days(runs["deepseek-v3"].pre_training_hours, runs["deepseek-v3"]),
    "mixture_saves": lambda runs: 1 - _per_trillion(runs["deepseek-v2"]) / _per_trillion(runs["deepseek-67b"]),
    "deepseekmoe_compute": lambda runs: _tflops(runs["deepseekmoe-16b"]) / _tflops(runs["deepseek-7b"]),
    "deepseekmoe_compute_counted": lambda _: _flops("deepseekmoe-16b", 4096) / _flops("deepseek-7b", 4096),
    "deepseek_v3_mfu": lambda runs: utilisation(runs["deepseek-v3"], prediction=False),
    "deepseek_v3_step": lambda runs: _step_seconds(runs["deepseek-v3"]),
    "llama_405b_flops": lambda runs: _total_flops(runs["llama-3.1-405b"]),
    "llama_405b_mfu": lambda runs: utilisation(runs["llama-3.1-405b"]),
}
"""Name of a statement -> how its number is recomputed."""


def files_behind(statement: str) -> list[Path]:
    """The files of `configs/published` that a statement's number is recomputed from, the statement's own first."""
    read: dict[str, None] = {}

    class Noting(Runs):
        def __getitem__(self, name: str) -> PublishedRun:
            read[name] = None
            return super().__getitem__(name)

    FORMULAS[statement](Noting(published_runs()))
    folder = configs().published
    return [folder / "statements.yaml", *(folder / "runs" / f"{name}.yaml" for name in read)]


def _of_run(name: str, run: PublishedRun) -> list[Derived]:
    """What was not printed, for each run that has what it takes."""
    price = run.price_per_device_hour or REFERENCE_PRICE
    gpu = run.device_name
    at = f"{price:g} USD per {gpu} GPU-hour, rented" + (
        "" if run.price_per_device_hour else "; DeepSeek-V3's assumption for its H800, applied to this run"
    )
    source = "; ".join(run.sources.values())

    def number(what: str, text: str, value: float, unit: str, assumption: str) -> Derived:
        return Derived(f"{name}.{what}", text, value, unit, None, None, assumption, source)

    found = []
    if run.device_hours:
        found.append(number("cost", f"Cost of {name}", run.hours * price, "USD", at))
    if (hours := run.hours_per_trillion_tokens) is not None:
        found.append(number("hours_per_trillion", f"Hours of {name} per trillion tokens", hours, "GPU-hours", ""))
        found.append(number("cost_per_trillion", f"Cost of {name} per trillion tokens", hours * price, "USD", at))
    if run.device_hours and run.devices:
        days, all_the_time = _days(run.pre_training_hours, run), f"all {run.devices:,} GPUs all the time"
        found.append(number("days", f"Days of {name}", days, "days", all_the_time))
    if run.tokens and run.sequence_length and hours is not None:
        peak = f"of the dense BF16 peak of {gpu}"
        if run.precision not in (None, "bf16"):
            peak += ", although most products were in FP8"
        caveat = f"; {run.hours_caveat}" if run.hours_caveat else ""
        text = f"Model FLOPs utilisation of {name}"
        if read_architecture(run.model).multi_token_prediction_layers:
            without = utilisation(run, prediction=False)
            found.append(
                number("mfu_without_prediction", f"{text}, multi-token prediction left out", without, "ratio", peak)
            )
            text += ", multi-token prediction counted"
        found.append(number("mfu", text, utilisation(run), "ratio", peak + caveat))
    return found


def _bought(runs: Runs) -> Derived:
    run = runs["deepseek-v3"]
    price = 40_000.0
    return Derived(
        "deepseek-v3.bought",
        "What the chips of DeepSeek-V3's cluster would cost to buy",
        price * (run.devices or 0),
        "USD",
        None,
        None,
        "The article's “around $40,000” for one GPU, which is said of an H100. These were H800: eight in a server "
        "cost 2.3 million yuan before October 2023, about 39,000 USD each at 7.3 yuan, host included. Network and "
        "building are left out",
        "The article; arXiv 2412.19437v2, section 3.1; Caixin, October 2023 (caihuicloud.com/news/info/10879.html)",
    )


def _of_other(name: str, run: OtherRun) -> Iterator[Derived]:
    """What follows from what is known of a run whose model has no file."""

    def number(what: str, text: str, value: float, unit: str, assumption: str) -> Derived:
        return Derived(f"{name}.{what}", f"{text}: {run.text}", value, unit, None, None, assumption, run.source)

    if run.active_parameters and run.tokens:
        billions, trillions = run.active_parameters / 1e9, run.tokens / TRILLION
        counted = f"6 for each of {billions:g} billion active parameters and of {trillions:g} trillion tokens"
        flops = 6 * run.active_parameters * run.tokens
        yield number("flops", "FLOPs of pre-training", flops, "FLOPs", f"{counted}; attention's scores left out")
    if run.device_hours is None and run.hours is not None:
        yield number("hours", "Hours", run.hours, "GPU-hours", run.hours_hold)
    if run.hours is None or run.tokens is None:
        return
    at = f"{REFERENCE_PRICE:g} USD per {run.device} GPU-hour, rented; DeepSeek-V3's assumption for its H800"
    yield number("cost", "Cost", run.hours * REFERENCE_PRICE, "USD", f"{at}; {run.hours_hold}")
    per_trillion = run.hours / run.tokens * TRILLION
    yield number("hours_per_trillion", "Hours per trillion tokens", per_trillion, "GPU-hours", run.hours_hold)
    if speed := run.undisturbed_tokens_per_second:
        ratio = run.hours / (run.tokens / speed / 3600)
        assumption = f"{speed:,.0f} tokens/s a GPU where nothing is in the way; {run.hours_hold}"
        yield number("over_undisturbed", "Hours over those of an undisturbed run", ratio, "ratio", assumption)
