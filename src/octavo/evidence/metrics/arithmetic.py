"""Claims that follow from settings, prices and published figures: arithmetic, where no seed is involved.

A part of such a claim is supported where the number that comes out is on the side that the claim says, and refuted
where it is not. What the number rests on is in its note.
"""

from __future__ import annotations

from octavo.accounting.money import hour_price
from octavo.configuration import Section
from octavo.evidence.grid import Grid
from octavo.evidence.metrics.base import Expectation, Measurement, NoParameters
from octavo.evidence.metrics.pairs import pair_label
from octavo.experiment.run import Experiment
from octavo.records import Estimate, Part, Verdict
from octavo.statistics import Relation


class Figures(Section):
    """Published figures, by their names in configs/published."""

    figures: list[str]


def holds(value: float, relation: Relation, margin: float) -> Verdict:
    """Whether a number without uncertainty is where a claim says."""
    inside = {"below": value < margin, "above": value > margin, "within": abs(value) < margin}[relation]
    return "supported" if inside else "refuted"


def traffic_between_devices(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """Bytes that one device sends per token: a mixture of experts over a dense model, and FP8 over BF16, as computed
    from model and parallel layout (`octavo.forecast.communication`)."""
    from octavo.forecast.communication import traffic

    del parameters
    if grid.experiment is None:
        return Measurement(missing="the model and the parallel layout of each cell, which imported runs do not say")
    computed = {name: traffic(grid.experiment.cells[name]) for name in grid.cells if name in grid.experiment.cells}
    if not any(one.total_bytes_per_token for one in computed.values()):
        return Measurement(
            missing="runs on several devices: here every run has one, and nothing travels between devices"
        )
    arithmetic = []
    for pair in [*grid.pairs("architecture"), *grid.pairs("precision")]:
        one, other = (computed[cell.name].total_bytes_per_token for cell in (pair.cell, pair.against))
        if not other:
            continue
        part = Part(
            label=f"{pair_label(pair)} against {pair.against.label}",
            effect=Estimate(value=one / other, n=0, unit="ratio"),
            verdict=holds(one / other, expectation.relation, expectation.margin),
            note="computed from model and parallel layout, not measured",
        )
        sentence = f"{pair.cell.label} sends {one / other:.2f} times the bytes per token of {pair.against.label}"
        arithmetic.append((part, sentence))
    if not arithmetic:
        return Measurement(missing="pairs of cells whose devices exchange anything")
    shares = {name: _share_of_step(grid.experiment, name) for name in computed}
    data = {
        "cell": list(computed),
        "all_to_all_bytes_per_token": [one.all_to_all_bytes_per_token for one in computed.values()],
        "all_reduce_bytes_per_token": [one.all_reduce_bytes_per_token for one in computed.values()],
        "all_gather_bytes_per_token": [one.all_gather_bytes_per_token for one in computed.values()],
        "point_to_point_bytes_per_token": [one.point_to_point_bytes_per_token for one in computed.values()],
        "share_of_step_time": list(shares.values()),
    }
    told = [f"{share:.0%} in {grid.cells[name].label}" for name, share in shares.items() if share is not None]
    remark = f"The forecast step waits for it: {', '.join(told)}." if told else ""
    return Measurement(arithmetic=arithmetic, data=data, remark=remark.replace("%", " %"))


def _share_of_step(experiment: Experiment, cell: str) -> float | None:
    """Share of the forecast step time in which devices wait for one another's data; None on CPUs, where it is not
    forecast."""
    from octavo.forecast.plan import STEP_GROUPS
    from octavo.forecast.steps import forecast_step

    if experiment.device.kind == "cpu":
        return None
    step = forecast_step(experiment.cells[cell], experiment.cluster, experiment.device)
    return sum(step.breakdown.get(part, 0.0) for part in STEP_GROUPS["messages"]) / step.seconds


def published_figures(grid: Grid, parameters: Figures, expectation: Expectation) -> Measurement:
    """Figures as printed, recomputed from what else was published (`octavo.forecast.published`)."""
    from octavo.errors import no_such
    from octavo.forecast.published import derived

    del grid, expectation
    known = {one.name: one for one in derived() if one.published_value is not None}
    absent = [name for name in parameters.figures if name not in known]
    if absent:
        raise no_such("published figure", absent[0], known, where="configs/claims: comparison.figures")
    figures = [known[name] for name in parameters.figures]
    arithmetic = []
    for one in figures:
        part = Part(
            label=one.text, effect=Estimate(value=one.value, n=0, unit=one.unit),
            verdict="supported" if one.holds else "refuted", note=f"{one.assumption} ({one.source})",
        )  # fmt: skip
        sentence = f"“{one.text}”: {_figure(one.value)} {one.unit} recomputed, {_figure(one.published_value)} printed"
        arithmetic.append((part, sentence))
    columns = ("name", "text", "value", "unit", "published_value", "holds", "assumption", "source")
    return Measurement(arithmetic=arithmetic, data={name: [getattr(one, name) for one in figures] for name in columns})


def own_or_rent(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """A device-hour owned, electricity included, over one rented, at the prices of the experiment's cluster file."""
    del parameters
    if grid.experiment is None:
        return Measurement(missing="a cluster file with rental and ownership")
    cluster, device = grid.experiment.cluster, grid.experiment.device
    if cluster.rental is None or cluster.ownership is None:
        return Measurement(missing="a cluster file with both rental and ownership")
    rented, owned = (hour_price(cluster, device, basis) for basis in ("rental", "ownership"))
    if not rented.total:
        return Measurement(missing="a rent above zero in the cluster file")
    ratio, unit = owned.total / rented.total, cluster.currency
    terms = cluster.ownership
    sentence = (
        f"an hour of {device.name} owned costs {owned.total:.2f} {unit} ({owned.electricity:.2f} of it electricity), "
        f"rented {rented.total:.2f} {unit}, {ratio:.2f} times as much, at {terms.price_per_device:,.0f} {unit} per "
        f"device used {terms.utilisation:.0%} of {terms.years:g} years"
    )
    part = Part(
        label=device.name,
        effect=Estimate(value=ratio, n=0, unit="ratio"),
        verdict=holds(ratio, expectation.relation, expectation.margin),
        note="; ".join([cluster.rental.source, *terms.sources.values()]),
    )
    data = {
        "basis": ["owned", "rented"],
        "capital": [owned.capital, rented.capital],
        "electricity": [owned.electricity, rented.electricity],
        "total": [owned.total, rented.total],
        "unit": [f"{unit} per device-hour"] * 2,
    }
    return Measurement(arithmetic=[(part, sentence)], data=data)


def _figure(value: float | None) -> str:
    if value is None:
        return "nothing"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
