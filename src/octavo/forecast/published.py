"""What others published of their training runs, and what follows from it.

`configs/published/runs` holds tokens, devices, hours and prices as printed, each with its place; `statements.yaml`
holds sentences with a number in them. `derived` recomputes every such number, and those that nobody printed (cost per
trillion tokens, days, share of peak) in the same way for every run.
"""

from __future__ import annotations

from collections.abc import Callable
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
    device_hours: dict[str, PositiveFloat] = {}
    """By stage; `all` where stages are not told apart."""
    device_hours_per_trillion_tokens: PositiveFloat | None = None
    price_per_device_hour: PositiveFloat | None = None
    tflops_per_4k_tokens: PositiveFloat | None = None
    """Forward and backward, as the authors count them."""
    sources: Annotated[dict[str, str], Field(min_length=1)]

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


def published_runs() -> Runs:
    """All runs in configs/published/runs, by name."""
    return Runs({path.stem: _read_run(path) for path in sorted((configs().published / "runs").glob("*.yaml"))})


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
    return [*stated, *(number for name, run in runs.items() for number in _of_run(name, run)), _bought(runs)]


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


def _total_flops(run: PublishedRun) -> float:
    length = int(_known(run.sequence_length, run, "sequence_length"))
    return _known(run.tokens, run, "tokens") * _flops(run.model, length)


def utilisation(run: PublishedRun) -> float:
    """Model FLOPs over what the devices could have done in BF16 in the hours that the tokens took (MFU)."""
    device = read_section(configs().clusters / "devices" / f"{run.device}.yaml", Device)
    hours = _per_trillion(run) * _known(run.tokens, run, "tokens") / TRILLION
    return _total_flops(run) / (
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
    gpu = (run.device or "").upper()
    at = f"{price:g} USD per {gpu} GPU-hour, rented" + (
        "" if run.price_per_device_hour else "; DeepSeek-V3's assumption, applied to this run"
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
        found.append(number("mfu", f"Model FLOPs utilisation of {name}", utilisation(run), "ratio", peak))
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
        'The article\'s "around $40,000" for one GPU; host, network and building left out',
        "The article; arXiv 2412.19437v2, section 3.1",
    )
