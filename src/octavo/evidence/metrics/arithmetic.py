"""Claims that follow from settings, prices and published figures: arithmetic, where no seed is involved.

A part of such a claim is supported where the number that comes out is on the side that the claim says, and refuted
where it is not. Where the number has a range (of prices, say) that lies on both sides, it is inconclusive. What the
number rests on is in its note.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat

from octavo.accounting.money import hour_price, price_source, rent_rows, rental_of
from octavo.accounting.ownership import (
    QUANTILES,
    RENT,
    OwnOrRent,
    Span,
    against_rent,
    inputs,
    over_rent,
    tornado,
)
from octavo.configuration import Section
from octavo.evidence.grid import Grid, InGrid, compared
from octavo.evidence.metrics.base import Expectation, Measurement
from octavo.evidence.names import cell_label, ends, listed
from octavo.experiment.cluster import Cluster, Device, Range
from octavo.experiment.config import FileName
from octavo.experiment.run import CellConfig, Experiment
from octavo.records import Estimate, Part, Verdict
from octavo.statistics import Relation

if TYPE_CHECKING:
    from octavo.forecast.published import Derived


class Figures(Section):
    """Published figures, by their names in configs/published."""

    figures: list[str]
    cluster: FileName | None = None
    """The cluster file whose prices a figure that divides two runs' hours is held against, too."""


class Chip(Section):
    """A chip that a claim is about."""

    price_per_device: PositiveFloat | None = None
    """Its price as the claim says it; None: the cluster file's alone."""
    cluster: FileName | None = None
    """The cluster file that is asked where the experiment's own has not both rental and ownership."""


class Layouts(Section):
    """Whose devices a claim is about."""

    experiment: FileName | None = None
    """The experiment whose plan is asked where the runs at hand have one device each, or do not say their layouts."""


def holds(value: float, relation: Relation, margin: float) -> Verdict:
    """Whether a number without uncertainty is where a claim says."""
    inside = {"below": value < margin, "above": value > margin, "within": abs(value) < margin}[relation]
    return "supported" if inside else "refuted"


def traffic_between_devices(grid: Grid, parameters: Layouts, expectation: Expectation) -> Measurement:
    """Bytes that one device sends per token: a mixture of experts over a dense model, and FP8 over BF16, as computed
    from model and parallel layout (`octavo.forecast.communication`).

    The cells are the grid's own, or where those exchange nothing the grid of the experiment that the claim names, of
    which no run is needed.
    """
    from octavo.forecast.communication import traffic

    experiment, computed_for = grid.experiment, ""
    cells = [experiment.cells[name] for name in grid.cells if name in experiment.cells] if experiment else []
    computed = {one.cell: traffic(one) for one in cells}
    if not any(one.total_bytes_per_token for one in computed.values()) and (named := _experiment(parameters)):
        experiment, cells = named, named.grid
        computed = {one.cell: traffic(one) for one in cells}
        devices = max(cell.parallelism.world_size for cell in cells)
        computed_for = f"in the plan of {named.name} ({devices} {named.device.name})"
    if experiment is None:
        return Measurement(missing="the model and the parallel layout of each cell, which imported runs do not say")
    if not any(one.total_bytes_per_token for one in computed.values()):
        return Measurement(
            missing="runs on several devices: here every run has one, and nothing travels between devices"
        )
    labels = {one.cell: _label(one, experiment) for one in cells}
    parts: list[Part] = []
    alike: dict[str, list[tuple[str, str]]] = {}  # by what the sentence says of them
    said: list[str] = []
    for cell, against in _pairs(cells, experiment):
        one, other = (computed[name].total_bytes_per_token for name in (cell, against))
        if not other:
            continue
        part = Part(
            label=f"{labels[cell]} against {labels[against]}",
            effect=Estimate(value=one / other, n=0, unit="ratio"),
            verdict=holds(one / other, expectation.relation, expectation.margin),
            note="computed from model and parallel layout, not measured",
        )
        parts.append(part)
        said.append(f"{one / other:.2f}")
        alike.setdefault(said[-1], []).append((labels[cell], labels[against]))
    if not parts:
        return Measurement(missing="pairs of cells whose devices exchange anything")
    shares = {name: _share_of_step(experiment, name) for name in computed}
    data = {
        "cell": list(computed),
        "label": list(labels.values()),
        "all_to_all_bytes_per_token": [one.all_to_all_bytes_per_token for one in computed.values()],
        "all_reduce_bytes_per_token": [one.all_reduce_bytes_per_token for one in computed.values()],
        "all_gather_bytes_per_token": [one.all_gather_bytes_per_token for one in computed.values()],
        "point_to_point_bytes_per_token": [one.point_to_point_bytes_per_token for one in computed.values()],
        "share_of_step_time": list(shares.values()),
    }
    told = {labels[name]: share for name, share in shares.items() if share is not None}
    remark = f"Of the forecast step, waiting for these bytes takes {_least_and_most(told)}." if told else ""
    sentences = [_times_the_bytes(times, alike.pop(times, [])) for times in said]  # each once, with all pairs it is of
    arithmetic = list(zip(parts, sentences, strict=True))
    return Measurement(arithmetic=arithmetic, data=data, remark=remark.replace("%", " %"), computed_for=computed_for)


def _times_the_bytes(times: str, pairs: list[tuple[str, str]]) -> str:
    """`A sends 2 times the bytes per token of B (the same: C of D)`: pairs of the same ratio; nothing without any."""
    if not pairs:
        return ""
    (cell, against), *others = pairs
    alike = f" (the same: {listed([f'{one} of {two}' for one, two in others])})" if others else ""
    if float(times) == 1:
        return f"{cell} sends as many bytes per token as {against}{alike}"
    return f"{cell} sends {float(times):.3g} times the bytes per token of {against}{alike}"


def _least_and_most(shares: dict[str, float]) -> str:
    """`18 % in Dense BF16 to 56 % in MoE BF16`; `18 % in Dense BF16` of one alone."""
    return " to ".join(dict.fromkeys(f"{shares[name]:.0%} in {name}" for name in ends(shares)))


def _pairs(cells: list[CellConfig], experiment: Experiment) -> list[tuple[str, str]]:
    """The names of cells that are held against one another."""
    grid = [
        InGrid(
            one.cell,
            one.architecture,
            one.precision.recipe,
            one.model.experts is not None,
            experiment.rung(one.architecture),
        )
        for one in cells
        if one.ablation is None
    ]
    return [*compared("architecture", grid), *compared("precision", grid)]


def _label(cell: CellConfig, experiment: Experiment) -> str:
    emulated = cell.precision.emulated(on_gpu=experiment.device.kind == "gpu")
    return cell_label(cell.architecture, cell.precision.recipe, cell.ablation, emulated=emulated)


def _experiment(named: Layouts) -> Experiment | None:
    """The experiment that a claim names; None where there is no such file."""
    from octavo.experiment.load import load_experiment
    from octavo.layout import configs

    if named.experiment is None or not (configs().experiments / f"{named.experiment}.yaml").exists():
        return None
    return load_experiment(named.experiment)


def _share_of_step(experiment: Experiment, cell: str) -> float | None:
    """Share of the forecast step time in which devices wait for one another's data; None on CPUs, where it is not
    forecast."""
    from octavo.forecast.plan import STEP_GROUPS
    from octavo.forecast.steps import forecast_step

    if experiment.device.kind == "cpu":
        return None
    step = forecast_step(experiment.cells[cell], experiment.cluster, experiment.device)
    return sum(step.breakdown.get(part, 0.0) for part in STEP_GROUPS["messages"]) / step.seconds


def holds_in_range(found: Span, relation: Relation, margin: float) -> Verdict:
    """Whether a number is where a claim says in all of its range, or nowhere in it."""
    verdict = holds(found.value, relation, margin)
    return (
        verdict if all(holds(end, relation, margin) == verdict for end in (found.low, found.high)) else "inconclusive"
    )


def published_figures(grid: Grid, parameters: Figures, expectation: Expectation) -> Measurement:
    """Figures as printed, recomputed from what else was published (`octavo.forecast.published`).

    A figure that divides two runs' hours is one of money on the condition that an hour of both costs the same: where it
    does not hold at every price in the cluster file as well, it is inconclusive.
    """
    from octavo.errors import no_such
    from octavo.forecast.published import derived

    del grid, expectation
    known = {one.name: one for one in derived() if one.published_value is not None}
    absent = [name for name in parameters.figures if name not in known]
    if absent:
        raise no_such("published figure", absent[0], known, where="configs/claims: comparison.figures")
    figures = [known[name] for name in parameters.figures]
    arithmetic, prices, conditions = [], [], []
    for one in figures:
        effect = Estimate(value=one.value, n=0, unit=one.unit)
        verdict: Verdict = "supported" if one.holds else "refuted"
        unit = "" if one.unit == "ratio" else f" {one.unit}"
        held = "holds" if one.holds else "does not hold"
        figures_of = f"{_figure(one.value)}{unit} recomputed, {_figure(one.published_value)} printed"
        sentence = f"“{one.text}” {held}: {figures_of}"
        note = f"{one.assumption} ({one.source})"
        if one.divided_runs and (priced := _at_other_prices(one, parameters.cluster)):
            rows, found = priced
            prices += rows
            effect = Estimate(value=one.value, low=found.low, high=found.high, confidence=1.0, n=0, unit=one.unit)
            near = {_near(end, one) for end in (found.value, found.low, found.high)}
            verdict = "inconclusive" if len(near) > 1 else verdict
            inside = one.margin - abs(one.value - (one.published_value or 0.0))
            allowed = f" (by {inside:.4f}, as “about” is read)" if one.holds else ""
            sentence = (
                f"“{one.text}” {held}{allowed} if an hour of both runs costs the same: {figures_of}; if each has "
                f"another of {parameters.cluster}.yaml's prices it is {_figure(found.low)} to {_figure(found.high)}"
            )
            conditions.append(f"“{one.text}” holds on the condition that a GPU-hour of either run costs the same")
        arithmetic.append((Part(label=one.text, effect=effect, verdict=verdict, note=note), sentence))
    columns = ("name", "text", "value", "unit", "published_value", "holds", "assumption", "source")
    data = {name: [getattr(one, name) for one in figures] for name in columns}
    undecided = any(part.verdict == "inconclusive" for part, _ in arithmetic)
    return Measurement(
        arithmetic=arithmetic,
        data={**data, **({"prices": prices} if prices else {})},
        undecided=". ".join(conditions) + "." if undecided and conditions else "",
    )


def _near(value: float, figure: Derived) -> bool:
    """Whether a number is what was printed, as far as the sentence allows."""
    return abs(value - (figure.published_value or 0.0)) <= figure.margin * (1 + 1e-9)


def _at_other_prices(figure: Derived, name: str | None) -> tuple[list[dict[str, Any]], Span] | None:
    """What the two runs of a figure cost at each price of the cluster file, and between what their ratio lies if each
    has another of these prices; None where there is no such file."""
    from octavo.forecast.published import REFERENCE_PRICE, priced

    found = _cluster(name)
    if found is None:
        return None
    cluster, device = found
    prices = {f"{REFERENCE_PRICE:g} USD, DeepSeek-V3's assumption": REFERENCE_PRICE}
    if cluster.rental is not None:
        prices[f"{device.name} rented"] = hour_price(cluster, device, "rental").total
    if cluster.ownership is not None:
        prices[f"{device.name} owned"] = hour_price(cluster, device, "ownership").total
    rows = priced(figure.divided_runs, prices)
    one, other = ([row.cost for row in rows if row.run == run] for run in figure.divided_runs)
    ratios = [a / b for a in one for b in other]
    return [asdict(row) for row in rows], Span(figure.value, min(ratios), max(ratios))


def _cluster(name: str | None) -> tuple[Cluster, Device] | None:
    """A cluster file and its device's, by name; None where there is no such file."""
    from octavo.experiment.load import load_cluster
    from octavo.layout import configs

    if name is None or not (configs().clusters / f"{name}.yaml").exists():
        return None
    return load_cluster(name, configs())


def own_or_rent(grid: Grid, parameters: Chip, expectation: Expectation) -> Measurement:
    """An hour of a device owned (`octavo.accounting.ownership`) over one rented: at the price that the claim names, for
    the chip with its share of host and network and for the chip alone, and at the cluster file's own prices.

    The prices are those of the experiment's cluster file, or of the one that the claim names.
    """
    own = (grid.experiment.cluster, grid.experiment.device) if grid.experiment else None
    named = _cluster(parameters.cluster)
    found = next((one for one in (own, named) if one and one[0].rental and one[0].ownership), None)
    if found is None:
        return Measurement(missing="a cluster file with both rental and ownership")
    cluster, device = found
    elsewhere = f"at the prices of {parameters.cluster} ({device.name})" if found is not own else ""
    rental = rental_of(cluster)
    if cluster.ownership is None or not rental.per_device_hour.low:
        return Measurement(missing="a rent above zero in the cluster file")
    ranges = inputs(cluster, cluster.ownership, device)
    readings = {f"{device.name} at the prices of its cluster file": ranges}
    if parameters.price_per_device is not None:
        chip, price = {**ranges, "price_per_device": _exactly(parameters.price_per_device)}, parameters.price_per_device
        said = f"{price:,.0f} {cluster.currency} for the chip"
        whole = {**chip, "server_and_network_factor": _exactly(1.0)}
        readings = {f"{said} with its share of host and network": whole, f"{said} alone": chip, **readings}
    committed = rental.commitment == "one_year"
    held = {label: against_rent(of, rental.per_device_hour, committed=committed) for label, of in readings.items()}
    sources = [price_source(cluster, "rental"), price_source(cluster, "ownership")]
    arithmetic = []
    for label, one in held.items():
        effect = Estimate(
            value=one.ratio.value, low=one.ratio.low, high=one.ratio.high, confidence=QUANTILES[1] - QUANTILES[0], n=0,
            unit="ratio",
        )  # fmt: skip
        verdict = holds_in_range(one.ratio, expectation.relation, expectation.margin)
        part = Part(label=label, effect=effect, verdict=verdict, note="; ".join(sources))
        arithmetic.append((part, _owning(label, one, cluster)))
    rent = rental.per_device_hour
    unit = f"{cluster.currency} per {device.name}-hour"
    undecided = any(part.verdict == "inconclusive" for part, _ in arithmetic)
    swings = tornado({**ranges, RENT: rent}, partial(over_rent, committed=committed))
    return Measurement(
        arithmetic=arithmetic,
        computed_for=elsewhere,
        undecided="It depends on the prices and on how much of the time the devices are used." if undecided else "",
        remark=(
            f"Rented {rent.middle:.2f} {unit} ({rent.low:.2f} to {rent.high:.2f}); owned devices are taken to be used "
            f"{100 * cluster.ownership.utilisation.middle:.0f} % of all hours. Ranges hold 90 % of 10,000 draws of all "
            "inputs together."
        ),
        data={
            "unit": unit,
            "owning": [{"reading": label, **asdict(one)} for label, one in held.items()],
            "rents": rent_rows(cluster, device),
            "tornado": [
                {
                    "input": one.name, "low": one.input.low, "high": one.input.high, "at_low": one.at_low,
                    "at_high": one.at_high,
                }
                for one in swings
            ],
            "middle": held[f"{device.name} at the prices of its cluster file"].ratio.value,
            "cluster": cluster.description,
        },
    )  # fmt: skip


def _owning(label: str, one: OwnOrRent, cluster: Cluster) -> str:
    """What an hour owned costs, and from which use on it is cheaper, as a clause."""
    cost = f"{one.owned.value:.2f} ({one.owned.low:.2f} to {one.owned.high:.2f}) {cluster.currency}"
    said = f"{label}: an hour owned costs {cost}, {one.ratio.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
    said += " times the rent"
    if one.break_even is None:
        return said
    low, value, high = (100 * end for end in (one.break_even.low, one.break_even.value, one.break_even.high))
    return f"{said}, less than it from {value:.0f} % use on ({low:.0f} to {high:.0f} %)"


def _exactly(value: float) -> Range:
    return Range(low=value, middle=value, high=value)


def _figure(value: float | None) -> str:
    if value is None:
        return "nothing"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
