"""Cost, published figures recomputed, and the forecast against what was measured."""

from __future__ import annotations

from datetime import date
from statistics import median

import pandas as pd

from octavo.accounting.money import (
    ESTIMATED,
    age_words,
    carbon_kg,
    hour_price,
    price_range,
    price_source,
    rent_rows,
)
from octavo.evidence.names import listed
from octavo.experiment.cluster import Cluster, Device
from octavo.layout import split_horizon
from octavo.report.charts import Chart
from octavo.report.document import Block, Picture, ReportSection, Table, Text
from octavo.report.figures import pair_name
from octavo.report.inputs import Inputs
from octavo.report.sections.phrases import capitalised, cost_words, effect_words, nodes_apart, provisional_ledger
from octavo.report.style import MISSING, duration, energy, money, number


def ledger(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Final against all-in, and what the difference is made of."""
    if inputs.imported:
        return _imported_ledger(inputs, charts)
    runs, attempts = inputs.runs, inputs.attempts
    if runs["device_hours_all_in"].isna().all():
        return ReportSection("Cost", [])
    final, everything = runs["device_hours_final"].sum(), runs["device_hours_all_in"].sum()
    sources = ", ".join(sorted(set(attempts["source"])))
    blocks: list[Block] = [*provisional_ledger(inputs), *nodes_apart(inputs)]
    if "ledger" in charts:
        blocks.append(
            Picture(
                "ledger",
                f"{capitalised(inputs.hours)} and cost by cell. Filled: the attempts that the final results rest on, "
                "start-up and validation included. Hatched: work that was lost, repeated or superseded"
                f"{', and runs of shorter horizons' if inputs.horizons else ''}.",
                "Stacked bars of device-hours and cost by cell, final and everything else.",
            )
        )
    all_in = cost_words(inputs, runs["cost_all_in"].sum(min_count=1))
    blocks.append(
        Text(
            f"The final runs took {duration(3600 * final)} of {inputs.device_time}; with every attempt they took "
            f"{duration(3600 * everything)}, {number(everything / final) if final else MISSING} times as much, "
            f"and cost {all_in}. {_shorter(inputs)}"
            f"These times are from {sources}; runs that octavo verify makes again are not counted."
        )
    )
    blocks += [Text(said) for said in (_goodput(inputs), _carbon(inputs)) if said]
    by_state = attempts.assign(state=attempts["state"].where(~attempts["superseded"], "superseded")).groupby("state")
    rows = [
        [state, str(len(own)), duration(3600 * own["device_hours"].sum()), energy(own["energy_kwh"].sum(min_count=1)),
         money(own["cost"].sum(min_count=1), inputs.currency)]
        for state, own in by_state
    ]  # fmt: skip
    rows.append(
        ["all", str(len(attempts)), duration(3600 * attempts["device_hours"].sum()),
         energy(attempts["energy_kwh"].sum(min_count=1)), money(attempts["cost"].sum(min_count=1), inputs.currency)]
    )  # fmt: skip
    scopes = sorted({ENERGY_SCOPES.get(str(one), str(one)) for one in attempts["energy_source"].dropna()})
    blocks.append(
        Table(
            ["attempts that ended", "number", inputs.device_time, "energy", "cost"], rows,
            "lrrrr", f"Every attempt. {_energy_scope(inputs, scopes)}",
        )
    )  # fmt: skip
    if inputs.experiment:
        blocks.append(_price_table(inputs, inputs.experiment.cluster, inputs.experiment.device))
        if inputs.experiment.cluster.rental and (old := age_words(inputs.experiment.cluster.rental, _day(inputs))):
            blocks.append(Text(f"{capitalised(old)}.", "note"))
    if costs := _money_for_the_loss(inputs):
        blocks.append(costs)
    return ReportSection("Cost", blocks)


def _shorter(inputs: Inputs) -> str:
    """What of the whole the runs of shorter horizons took."""
    if not inputs.horizons:
        return ""
    hours, cost = (inputs.shorter[name].sum(min_count=1) for name in ("device_hours_all_in", "cost_all_in"))
    lengths = listed([f"{steps:,}" for steps in inputs.horizons])
    return (
        f"In that are {len(inputs.shorter)} runs planned for {lengths} steps, which begin from checkpoints of the "
        f"others (named {inputs.shorter['cell'].iloc[0]}: after the @ stands the length): {duration(3600 * hours)}, "
        f"{money(cost, inputs.currency)}. "
    )


ENERGY_SCOPES = {
    "slurm": "what Slurm measured of the nodes",
    "nvml": "what NVML measured of the GPUs",
    ESTIMATED: "board power x its average share (nothing was measured)",
}
"""`energy_source` of an attempt -> what its energy was made from."""


def _energy_scope(inputs: Inputs, scopes: list[str]) -> str:
    """Of what energy is, and what of it was measured."""
    energy = inputs.experiment.cluster.energy if inputs.experiment else None
    if energy and not energy.host_watts_per_device.high and energy.pue.high == 1:
        return f"Energy is that of the devices (no host, no building), from {listed(scopes) or 'nothing'}."
    return (
        f"Energy is that at the building's meter, from {listed(scopes) or 'nothing'}; the host's share is added where "
        "it is not in that, and all is multiplied by PUE."
    )


def _day(inputs: Inputs) -> date:
    """When the last attempt ended."""
    return pd.Timestamp(inputs.attempts["end"].max()).date()


def _goodput(inputs: Inputs) -> str:
    """The share of the hours held in which steps were trained that results rest on; shorter horizons left out."""
    runs = inputs.runs[inputs.runs["status"].isin(("completed", "diverged"))]
    of_runs = [split_horizon(str(cell))[1] is None for cell in inputs.attempts["cell"]]
    held = inputs.attempts.loc[of_runs, "device_hours"].sum()
    useful = runs["training_device_hours"].sum()
    if not held or not useful:
        return ""
    return (
        f"Goodput: of the {inputs.hours} that all attempts held, {100 * useful / held:.0f} % trained steps that the "
        "results rest on; the rest was start-up, validation, checkpoints, and work that was lost or repeated."
    )


def _carbon(inputs: Inputs) -> str:
    """Carbon dioxide of the energy, where the cluster file says what a kWh emits."""
    energy_kwh = inputs.attempts["energy_kwh"].sum(min_count=1)
    if inputs.experiment is None or pd.isna(energy_kwh):
        return ""
    cluster = inputs.experiment.cluster
    kilograms = carbon_kg(cluster, energy_kwh)
    if kilograms is None:
        return ""
    return (
        f"Carbon: {number(kilograms)} kg of CO2 at {number(cluster.energy.carbon_kg_per_kwh)} kg per kWh "
        f"({cluster.energy.location}; {cluster.energy.sources['carbon_kg_per_kwh']})."
    )


def _money_for_the_loss(inputs: Inputs) -> Table | None:
    """What a run of either of a pair cost and the loss that it reached, and the ratio of money for one and the same."""
    runs = inputs.complete
    rows = []
    for one in inputs.compared("architecture"):
        if one.axis != "cost":
            continue
        spent = [
            f"{money(own['cost_final'].mean(), inputs.currency)} for {number(own[f'{inputs.losses}_loss'].mean(), 4)}"
            for own in (runs[runs["cell"] == cell] for cell in (one.cell, one.against))
        ]
        emulated = " (emulated)" if one.emulated else ""
        rows.append([pair_name(inputs, one) + emulated, *spent, effect_words(one.resource_ratio)])
    header = ["pair", "a run of the first", "a run of the other", "money for the same loss, first over other"]
    caption = (
        f"Money and the {inputs.losses} loss that it reached, mean over seeds; the ratio is for the higher of the two "
        "losses at the end of the common range."
    )
    return Table(header, rows, "lrrr", caption, [2.6, 1.6, 1.6, 2], small=True) if rows else None


def _imported_ledger(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """What the steps of imported runs took; of other attempts nothing is known."""
    hours, cost = (inputs.runs[name].sum(min_count=1) for name in ("device_hours_final", "cost_final"))
    if pd.isna(hours):
        return ReportSection("Cost", [])
    counted, whole = int(inputs.runs["device_hours_final"].notna().sum()), len(inputs.runs)
    known = "runs" if counted == whole else f"{counted} of {whole} runs, those whose hours are known,"
    price = "" if pd.isna(cost) else f" and cost {money(cost, inputs.currency)}"
    blocks: list[Block] = [
        Text(
            f"The training steps of the {known} took {duration(3600 * hours)} of {inputs.device_time}{price}. "
            "Start-up, validation, and what failed or was repeated are not in an import: all-in figures are not known."
        )
    ]
    if "ledger" in charts:
        caption = (
            f"{capitalised(inputs.hours)} of training steps{' and their cost' if price else ''}, by cell, all seeds."
        )
        blocks.insert(0, Picture("ledger", caption, "Bars of device-hours and cost by cell."))
    return ReportSection("Cost", blocks)


def _price_table(inputs: Inputs, cluster: Cluster, device: Device) -> Table:
    """Every price of the cluster file side by side: rents by commitment, and owning."""
    hours = inputs.attempts["device_hours"].sum()

    def row(basis: str, value: float, low: float, high: float, asked: str, used: bool, source: str) -> list[str]:
        span = MISSING if low == high else f"{money(low, cluster.currency)} to {money(high, cluster.currency)}"
        return [basis, money(value, cluster.currency), span, money(hours * value, cluster.currency), asked,
                "reported" if used else "", source]  # fmt: skip

    rows = [
        row(rent["commitment"], rent["middle"], rent["low"], rent["high"], rent["date"] or "no date",
            cluster.price == "rental" and index == 0,
            f"{rent['source']}. Includes: {rent['includes'] or 'not said'}; {rent['region'] or 'region not said'}")
        for index, rent in enumerate(rent_rows(cluster, device))
    ]  # fmt: skip
    if cluster.ownership is not None:
        price, (low, high) = hour_price(cluster, device, "ownership"), price_range(cluster, device, "ownership")
        use = f"used {100 * cluster.ownership.utilisation.middle:.0f} %"
        rows.append(
            row("owned", price.total, low, high, use, cluster.price == "ownership", price_source(cluster, "ownership"))
        )
    return Table(
        ["basis", "per device-hour", "range", "this experiment", "asked", "", "source"], rows,
        "lrrrlll", "Prices.", [1, 1.1, 1.6, 1.2, 0.9, 0.9, 4], small=True,
    )  # fmt: skip


def owning(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Owning against renting: at which use it is cheaper, and what that rests on."""
    claim = next((claim for claim in inputs.claims.claims if "tornado" in claim.data), None)
    if claim is None:
        return ReportSection("Owning or renting", [])
    data = claim.data
    currency = str(data["unit"]).partition(" ")[0]  # of the cluster that is asked, which need not be the experiment's
    rows = [
        [one["reading"], *(_span(one[key]) for key in ("owned", "ratio")), _use(one["break_even"])]
        for one in data["owning"]
    ]
    header = ["read as", f"an hour owned, {currency}", "over the rent", "cheaper from a use of"]
    blocks: list[Block] = [
        Text(
            f"Claim {claim.number} is {claim.verdict}. What decides it is the share of all hours in which devices are "
            "used, what they cost, and the rent that they are held against."
        ),
        Table(header, rows, "lrrr", "The range of each is that of all inputs together.", [3, 2, 2, 2], small=True),
        Table(
            ["rent", f"an hour, {currency}", "asked", "owned over rented", "cheaper from a use of", "source"],
            [
                [rent["commitment"], _span({**rent, "value": rent["middle"]}), rent["date"] or "no date",
                 _span(rent["owned_over_rented"]), _use(rent["break_even_use"]), rent["source"]]
                for rent in data["rents"]
            ],
            "lrlrrl", f"{data['cluster']}: rents side by side, and owning held against each.",
            [0.9, 1.5, 0.8, 1.5, 1.5, 4], small=True,
        ),
    ]  # fmt: skip
    if "owning" in charts:
        blocks.append(
            Picture(
                "owning",
                "What each input does to the ratio of owned to rented, from its low to its high end with all others at "
                "their middle. Left of one, owning is cheaper.",
                "Tornado chart of the inputs of owning and renting.",
            )
        )
    return ReportSection("Owning or renting", blocks)


def _span(ends: dict[str, float]) -> str:
    """`2.52 (2.08 to 3.57)`."""
    value, low, high = (number(ends[end]) for end in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def _use(even: dict[str, float] | None) -> str:
    """`58 % (40 to 83 %)`."""
    if even is None:
        return "paid for all hours"
    value, low, high = (f"{100 * even[end]:.0f}" for end in ("value", "low", "high"))
    return f"{value} % ({low} to {high} %){'' if even['value'] <= 1 else ', so never'}"


def published(inputs: Inputs) -> ReportSection:
    """The figures that were printed, with their arithmetic."""
    claim = next((claim for claim in inputs.claims.claims if "published_value" in claim.data), None)
    if claim is None:
        return ReportSection("Published figures, recomputed", [])
    rows = [
        [
            one["text"],
            f"{number(one['value'], 4)} {one['unit']}",
            number(one["published_value"], 4),
            "holds" if one["holds"] else "does not hold",
            one["assumption"],
            one["source"],
        ]
        for one in pd.DataFrame({key: value for key, value in claim.data.items() if key != "prices"}).to_dict("records")
    ]
    header = ["as printed", "recomputed", "printed", "", "assumption", "source"]
    table = Table(header, rows, "lrrlll", "Recomputed from what else was published.", [2, 1.7, 1, 1.2, 3, 2.6], True)
    blocks: list[Block] = [Text(claim.sentence), table]
    if prices := claim.data.get("prices"):
        runs, bases = (list(dict.fromkeys(one[key] for one in prices)) for key in ("run", "basis"))
        costs = {(one["run"], one["basis"]): money(one["cost"], "USD") for one in prices}
        at = {one["basis"]: money(one["price"], "USD") for one in prices}
        blocks.append(
            Table(
                ["price of an hour", "", *runs],
                [[basis, at[basis], *(costs[run, basis] for run in runs)] for basis in bases],
                "l" + "r" * (1 + len(runs)), "The hours of both runs at each price: their ratio is one of money where "
                "both are at the same.", small=True,
            )
        )  # fmt: skip
    return ReportSection("Published figures, recomputed", blocks)


def forecast(inputs: Inputs) -> ReportSection:
    """Plan against actual."""
    plan = inputs.plan
    if plan.empty or "tokens_per_second_per_device" not in plan:
        return ReportSection("Was the forecast right?", [])
    rows, inside, ratios, known = [], 0, [], 0
    whole = [split_horizon(cell)[0] for cell in plan["cell"]]
    # of all lengths of a cell, as the hours beside it
    hours_per_seed = (plan["device_hours"] / plan["seeds"]).groupby(whole).sum()
    for planned in plan.to_dict("records"):
        own = inputs.complete[inputs.complete["cell"] == planned["cell"]]
        if inputs.experiment:  # runs of another layout say nothing of the one that was forecast
            own = own[own["layouts"] == inputs.experiment.cells[planned["cell"]].layout]
        if own.empty:
            continue
        actual = float((own["tokens"] / own["training_device_hours"] / 3600).mean())
        if planned.get("measured_runs", 0):  # its plan was made from runs of its own: that is no forecast
            known += 1
            continue
        ratios.append(actual / planned["tokens_per_second_per_device"])
        inside += planned["tokens_per_second_low"] <= actual <= planned["tokens_per_second_high"]
        hours = own["device_hours_all_in"].sum(min_count=1)
        span = f"{number(planned['tokens_per_second_low'])} to {number(planned['tokens_per_second_high'])}"
        rows.append(
            [inputs.label(planned["cell"]), number(planned["tokens_per_second_per_device"]), span, number(actual),
             f"{ratios[-1]:.2f}",
             duration(3600 * hours_per_seed[planned["cell"]] * own["seed"].nunique()), duration(3600 * hours)]
        )  # fmt: skip
    level = f"{100 * plan['interval'].iloc[0]:.0f} % interval"  # one for all cells
    header = ["cell", "forecast tokens/s", level, "measured", "over forecast", f"{inputs.device_time}, forecast",
              f"{inputs.device_time}, all-in"]  # fmt: skip
    caption = "Throughput per device (mean over all steps), and time of as many seeds as ran: forecast and measured."
    blocks: list[Block] = []
    if rows:
        blocks = [
            Text(f"Of {len(rows)} cells, {inside} ran within the forecast's {level}. {_speed(ratios)}"),
            Table(header, rows, "l" + "r" * 6, caption, [2.2, 1.4, 1.4, 1, 1, 1.4, 1.4], small=True),
        ]
    if known:
        blocks.append(Text(f"The plan of {known} cells was made when some of their runs were there: no forecast."))
    return ReportSection("Was the forecast right?", blocks)


def _speed(ratios: list[float]) -> str:
    """`They ran 2.1 times as fast as forecast in the median (1.9 to 2.4 times).`"""
    span = f" ({min(ratios):.2g} to {max(ratios):.2g} times)" if len(ratios) > 1 else ""
    middle = " in the median" if len(ratios) > 1 else ""
    return f"They ran {median(ratios):.2g} times as fast as forecast{middle}{span}."
