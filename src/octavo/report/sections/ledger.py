"""Cost, published figures recomputed, and the forecast against what was measured."""

from __future__ import annotations

import pandas as pd

from octavo.accounting.money import hour_price, price_source
from octavo.experiment.cluster import Cluster, Device
from octavo.report.charts import Chart
from octavo.report.document import Block, Picture, ReportSection, Table, Text
from octavo.report.inputs import Inputs
from octavo.report.sections.phrases import capitalised, provisional_ledger
from octavo.report.style import MISSING, duration, energy, money, number, percent


def ledger(inputs: Inputs, charts: dict[str, Chart]) -> ReportSection:
    """Final against all-in, and what the difference is made of."""
    if inputs.imported:
        return _imported_ledger(inputs, charts)
    runs, attempts = inputs.runs, inputs.attempts
    if runs["device_hours_all_in"].isna().all():
        return ReportSection("Cost", [])
    final, everything = runs["device_hours_final"].sum(), runs["device_hours_all_in"].sum()
    sources = ", ".join(sorted(set(attempts["source"])))
    blocks: list[Block] = [*provisional_ledger(inputs)]
    if "ledger" in charts:
        blocks.append(
            Picture(
                "ledger",
                f"{capitalised(inputs.hours)} and cost by cell. Filled: the attempts that the final results rest on, "
                "start-up and validation included. Hatched: work that was lost, repeated or superseded.",
                "Stacked bars of device-hours and cost by cell, final and everything else.",
            )
        )
    all_in = money(runs["cost_all_in"].sum(min_count=1), inputs.currency)
    blocks.append(
        Text(
            f"The final runs took {duration(3600 * final)} of {inputs.device_time}; with every attempt they took "
            f"{duration(3600 * everything)}, {number(everything / final) if final else MISSING} times as much, "
            f"and cost {all_in}. "
            f"The ledger is from {sources}. It does not count runs that octavo verify makes again."
        )
    )
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
    sources_of_energy = ", ".join(sorted(set(attempts["energy_source"].dropna())))
    blocks.append(
        Table(
            ["attempts that ended", "number", inputs.device_time, "energy", "cost"], rows,
            "lrrrr", f"Every attempt. Energy: {sources_of_energy or 'not known'}.",
        )
    )  # fmt: skip
    if inputs.experiment:
        blocks.append(_price_table(inputs, inputs.experiment.cluster, inputs.experiment.device))
    return ReportSection("Cost", blocks)


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
    rows = []
    for basis in ("rental", "ownership"):
        if getattr(cluster, basis) is None:
            continue
        price = hour_price(cluster, device, basis)
        total = inputs.attempts["device_hours"].sum() * price.total
        used = "reported" if basis == cluster.price else "for comparison"
        rows.append(
            [basis, money(price.total, cluster.currency), money(price.electricity, cluster.currency),
             money(total, cluster.currency), used, price_source(cluster, basis)]
        )  # fmt: skip
    return Table(
        ["basis", "per device-hour", "of it electricity", "this experiment", "", "source"], rows,
        "lrrrll", "Prices.", [1, 1.2, 1.2, 1.3, 1.2, 4], small=True,
    )  # fmt: skip


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
        for one in pd.DataFrame(claim.data).to_dict("records")
    ]
    header = ["as printed", "recomputed", "printed", "", "assumption", "source"]
    table = Table(header, rows, "lrrlll", "Recomputed from what else was published.", [2, 1.7, 1, 1.2, 3, 2.6], True)
    return ReportSection("Published figures, recomputed", [Text(claim.sentence), table])


def forecast(inputs: Inputs) -> ReportSection:
    """Plan against actual."""
    plan = inputs.plan
    if plan.empty or "tokens_per_second_per_device" not in plan:
        return ReportSection("Forecast and measurement", [])
    rows, inside, compared = [], 0, 0
    for planned in plan.to_dict("records"):
        own = inputs.complete[inputs.complete["cell"] == planned["cell"]]
        if own.empty:
            continue
        actual = float((own["tokens"] / own["training_seconds"] / own["device_count"]).mean())
        compared += 1
        inside += planned["tokens_per_second_low"] <= actual <= planned["tokens_per_second_high"]
        hours = own["device_hours_all_in"].sum(min_count=1)
        span = f"{number(planned['tokens_per_second_low'])} to {number(planned['tokens_per_second_high'])}"
        rows.append(
            [inputs.label(planned["cell"]), number(planned["tokens_per_second_per_device"]), span, number(actual),
             percent(100 * (actual / planned["tokens_per_second_per_device"] - 1), 0),
             duration(3600 * planned["device_hours"]), duration(3600 * hours)]
        )  # fmt: skip
    level = f"{100 * plan['interval'].iloc[0]:.0f} % interval"  # one for all cells
    header = ["cell", "forecast tokens/s", level, "measured", "difference", f"{inputs.device_time}, forecast",
              f"{inputs.device_time}, all-in"]  # fmt: skip
    caption = "Throughput per device (mean over all steps) and time: forecast and measured."
    table = Table(header, rows, "l" + "r" * 6, caption, [2.2, 1.4, 1.4, 1, 1, 1.4, 1.4], small=True)
    said = f"Of {compared} cells, {inside} ran within the forecast's {level}."
    return ReportSection("Forecast and measurement", [Text(said), table] if rows else [])
