"""The report's charts, each made from the tables and verdicts. A chart whose data an experiment lacks is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from octavo.evidence.curves import smooth
from octavo.evidence.lengths import planned_ends
from octavo.evidence.names import ARCHITECTURES, PRECISIONS, architecture_name, listed, words
from octavo.records import Comparison, Estimate, Losses
from octavo.report.charts import NO_CELL, Bars, Chart, ChartAxis, Curves, Fits, Heat, Intervals
from octavo.report.inputs import SPENT, Inputs
from octavo.report.style import DASHES, HUES, MARKERS, CellStyle, time_unit
from octavo.scaling.ladder import rungs
from octavo.statistics import t_interval

COLUMNS = ["panel", "row", "series", "value", "low", "high", "role"]
"""Of an `Intervals` chart."""
MARGIN = 0.25
"""%, of FP8's loss error (DeepSeek-V3, arXiv 2412.19437, section 3.3)."""
MOST_SEEDS = 100
"""Dots that one row has."""
MOST_PAIRS = 12
"""Pairs that figures and sentences name one by one; of more they tell the range, and a table has each."""
TIMED = ("device_hours", "cost")
"""Axes that rest on the time of steps."""
MOST_SWINGS = 10
"""Inputs that a tornado has."""
OWNING_INPUTS = {
    "rent": "rent of an hour",
    "utilisation": "use, share of all hours",
    "price_per_device": "price of a device",
    "server_and_network_factor": "that price with host and network, times",
    "years": "years in use",
    "cost_of_capital": "cost of capital a year",
    "maintenance_share": "maintenance a year, share of the price",
    "staff_per_engineer": "an engineer a year",
    "devices_per_engineer": "devices an engineer looks after",
    "residual_share": "sold at the end for, share of the price",
    "hosting_per_kw_month": "hosting, a kW and month",
    "electricity_per_kwh": "electricity, a kWh",
    "idle_power_share": "power when idle, share of full",
}
"""How the figure names the inputs of owning; others by their keys."""
MOST_LIFT = 3
"""Preferences are drawn up to 2 to this power."""
AXIS_NAMES = {
    "tokens": "equal tokens",
    "model_flops": "equal model FLOPs",
    "active_parameters": "equal active parameters",
    "total_parameters": "equal total parameters",
    "device_hours": "equal device-hours",
    "cost": "equal money",
}


def charts(inputs: Inputs) -> dict[str, Chart]:
    """Every chart that this experiment has data for, by name, in the report's order."""
    made = (
        answer(inputs),
        loss_differences(inputs),
        loss_curves(inputs),
        final_loss(inputs),
        fair_axes(inputs),
        loss_error(inputs),
        fp8_underflow(inputs),
        fp8_overflow(inputs),
        fp8_errors(inputs),
        fp8_amax(inputs),
        throughput(inputs),
        expert_load(inputs),
        specialisation(inputs),
        ablations(inputs),
        ledger(inputs),
        owning(inputs),
        scale(inputs),
    )
    return {chart.name: chart for chart in made if chart is not None and len(chart.frame)}


def answer(inputs: Inputs) -> Chart | None:
    """What a mixture needs for the dense model's loss, and how FP8 changes the loss: page one's figure.

    A ladder's is `scale`.
    """
    if inputs.leverage is not None:
        return None
    needs = {"tokens": "tokens", "model_flops": "model FLOPs", "device_hours": inputs.hours, "cost": "money"}
    architectures = inputs.runs.drop_duplicates("cell").set_index("cell")["architecture"]
    compared = inputs.compared("architecture")
    against = {one.against: architecture_name(str(architectures.get(one.against, one.against))) for one in compared}
    several = len(set(against.values())) > 1  # dense models: each has rows of its own
    frames: list[pd.DataFrame] = []
    for axis, need in needs.items():
        of_axis = [one for one in compared if one.axis == axis]
        if many(compared):
            known = [one for one in of_axis if one.resource_ratio]
            emulated = axis in TIMED and any(one.emulated for one in known)
            ratios = [one.resource_ratio for one in known]
            frames.append(_pairs_as_dots("needs", f"{need}, {len(known)} pairs", ratios, emulated=emulated))
        else:
            frames += [
                _dots("needs", f"{need}, against {against[one.against]}" if several else need, one.cell,
                      one.resource_ratios, one.resource_ratio, emulated=one.emulated and axis in TIMED)
                for one in of_axis
            ]  # fmt: skip
    precisions = [one for one in inputs.compared("precision") if one.axis == "tokens"]
    if many(precisions):
        for name, found in families(inputs, precisions).items():
            row = f"{name.partition(' against ')[0]}, {len(found)} pairs"
            frames.append(_pairs_as_dots("loss", row, [one.loss_difference for one in found]))
    else:
        frames += [
            _dots("loss", architecture_name(str(architectures[one.cell])), one.cell, one.loss_differences,
                  one.loss_difference)
            for one in precisions
            if one.cell in architectures
        ]  # fmt: skip
    panels = {
        "needs": ChartAxis("a mixture's need for the same loss (dense: 1)", log=True),
        "loss": ChartAxis("change of the loss by FP8 (%)"),
    }
    return _intervals(
        "answer", frames, panels, zero={"needs": 1.0, "loss": 0.0}, band={"loss": (-MARGIN, MARGIN)},
        sides={"needs": ("← cheaper", "dearer →")}, alone=True,
    )  # fmt: skip


def _time_axis(inputs: Inputs, hours: pd.Series, suffix: str = "", *, log: bool = False) -> tuple[ChartAxis, float]:
    """An axis of device-hours, in minutes or seconds where they are few, and its units an hour."""
    unit, factor = time_unit(float(hours.max()))
    return ChartAxis(f"{inputs.hours.removesuffix('hours')}{unit}{suffix}", log=log), factor


def loss_differences(inputs: Inputs) -> Chart | None:
    """How far each cell's loss is from the first dense cell's, at equal tokens and at equal device-hours.

    Not of a ladder, whose cells are of several sizes.
    """
    if inputs.leverage is not None:
        return None
    base = next((one.against for one in inputs.compared("architecture")), None)
    of_ends = bool(inputs.horizons)
    points = _planned_points(inputs) if of_ends else _loss_points(inputs)
    hours, an_hour = _time_axis(inputs, points["device_hours"], log=True)
    points["device_hours"] *= an_hour
    axes = {"tokens": ChartAxis("tokens", log=True, engineering=True), "time": hours}
    rows = []
    for panel, column in zip(axes, ("tokens", "device_hours"), strict=True):
        curves = {
            (str(cell), int(seed)): smooth(own[column].to_numpy(float), own["y"].to_numpy(float), of_ends=of_ends)
            for (cell, seed), own in points.groupby(["cell", "seed"], sort=False)
        }
        cells: dict[str, list[pd.DataFrame]] = {}
        for (cell, seed), curve in curves.items():
            baseline = curves.get((str(base), seed))
            if cell != base and curve is not None and baseline is not None:
                x = curve.resource
                if of_ends:  # few: where the dense model's runs end, the mixture's curve is read
                    x = np.union1d(x, baseline.resource)
                    x = x[(x >= curve.start) & (x <= curve.end)]
                common = (x >= baseline.start) & (x <= baseline.end)
                y = [100 * (curve.at(at) / baseline.at(at) - 1) if inside else np.nan
                     for at, inside in zip(x, common, strict=True)]  # fmt: skip
                one = {"panel": panel, "series": cell, "seed": seed, "x": x, "y": y}
                cells.setdefault(cell, []).append(pd.DataFrame(one))
        for own in cells.values():
            known = pd.concat([one["y"] for one in own], axis=1).notna().all(axis=1)  # of every seed
            rows += [one[known.reindex(one.index, fill_value=False)] for one in own]
    if not rows:
        return None
    frame = pd.concat(rows, ignore_index=True)
    present = {panel: axis for panel, axis in axes.items() if (frame["panel"] == panel).any()}
    y = ChartAxis(f"loss against\n{inputs.label(str(base))} (%)")
    titles = {"time": "FP8 time is emulated"} if inputs.emulated else {}
    return Curves("loss_differences", frame, present, y, titles, ends=True)


def loss_curves(inputs: Inputs) -> Chart | None:
    """Loss against tokens, model FLOPs and device-hours, or against steps where an import knows none of them."""
    steps = _loss_points(inputs)
    hours, an_hour = _time_axis(inputs, steps["device_hours"], " of training steps", log=True)
    steps["device_hours"] *= an_hour
    axes = {
        "tokens": ("tokens", ChartAxis("tokens", log=True, engineering=True)),
        "FLOPs": ("model_flops", ChartAxis("model FLOPs", log=True, engineering=True)),
        "time": ("device_hours", hours),
        "steps": ("step", ChartAxis("step", log=True)),
    }
    frames = [
        steps.assign(panel=panel, series=steps["cell"], x=steps[column].where(steps[column] > 0))
        for panel, (column, _) in axes.items()
    ]
    frame = pd.concat(frames)[["panel", "series", "seed", "x", "y"]].dropna()
    spent = frame["panel"] != "steps"
    frame = frame[spent] if spent.any() else frame
    present = {panel: axis for panel, (_, axis) in axes.items() if (frame["panel"] == panel).any()}
    if not present:
        return None
    titles = {"time": "FP8 time is emulated"} if inputs.emulated else {}
    return Curves("loss", frame, present, ChartAxis(f"{inputs.losses} loss (nats per token)"), titles)


def _planned_points(inputs: Inputs) -> pd.DataFrame:
    """Losses (`y`) at the ends of runs planned for their lengths, with what was spent."""
    return _grid(inputs, planned_ends(inputs.folder)).rename(columns={"validation_loss": "y"})


def _loss_points(inputs: Inputs) -> pd.DataFrame:
    """Measured validation losses (`y`) with what was spent; of imports without any, windows of training losses."""
    if inputs.losses == "validation":
        return _grid(inputs, inputs.steps).dropna(subset=["validation_loss"]).rename(columns={"validation_loss": "y"})
    rows = [
        pd.DataFrame(one.windows).rename(columns={"loss": "y"}).assign(cell=one.cell, seed=one.seed)
        for one in inputs.of_steps
    ]
    return _grid(inputs, pd.concat(rows)) if rows else pd.DataFrame(columns=["cell", "seed", "y", *SPENT])


def final_loss(inputs: Inputs) -> Chart | None:
    """Final loss of every cell: seeds, mean and 95 % interval."""
    runs = inputs.complete
    column, unit = f"{inputs.losses}_loss", "nats per token"
    if inputs.losses == "validation" and runs["validation_bits_per_byte"].notna().any():
        column, unit = "validation_bits_per_byte", "bits per byte"
    runs = _grid(inputs, runs).dropna(subset=[column])
    frames = [_cell_dots(inputs, "loss", str(cell), own[column]) for cell, own in runs.groupby("cell", sort=False)]
    axis = {"loss": ChartAxis(f"final {inputs.losses} loss ({unit})")}
    return _intervals("final_loss", frames, axis)


def fair_axes(inputs: Inputs) -> Chart | None:
    """Every pair on every axis: loss difference, and resource ratio at equal loss.

    What rests on time, which scatters far more, is in a block with a scale of its own.
    """
    panels = {
        "difference": ChartAxis("loss difference (%)"),
        "ratio": ChartAxis("resource ratio at equal loss", log=True),
    }
    frames: list[pd.DataFrame] = []
    blocks: dict[bool, list[str]] = {False: [], True: []}  # by whether they rest on time
    held = list(held_equal(inputs))
    if many([one for _, one in held]):
        for (family, axis), found in _families_by_axis(inputs, [one for _, one in held]).items():
            row = f"{family}, {axis} ({len(found)} pairs)"
            blocks[found[0].axis in TIMED].append(row)
            emulated = found[0].axis in TIMED and any(one.emulated for one in found)
            frames += [
                _pairs_as_dots("difference", row, [one.loss_difference for one in found], emulated=emulated),
                _pairs_as_dots("ratio", row, [one.resource_ratio for one in found], emulated=emulated),
            ]
    else:
        for equal, one in held:
            row = f"{pair_name(inputs, one)}, {equal}"
            blocks[one.axis in TIMED].append(row)
            emulated = one.emulated and one.axis in TIMED
            frames += [
                _dots("difference", row, one.cell, one.loss_differences, one.loss_difference, emulated=emulated),
                _dots("ratio", row, one.cell, one.resource_ratios, one.resource_ratio, emulated=emulated),
            ]
    chart = _intervals("fair_axes", frames, panels, zero={"difference": 0.0, "ratio": 1.0})
    if chart is None:
        return None
    drawn = set(chart.frame["row"])
    kept = [[row for row in rows if row in drawn] for rows in blocks.values()]
    return replace(chart, blocks=[rows for rows in kept if rows])


def loss_error(inputs: Inputs) -> Chart | None:
    """FP8's relative loss error against BF16 and the margin of DeepSeek-V3's authors."""
    compared = [one for one in inputs.compared("precision") if one.axis == "tokens"]
    axis = {"error": ChartAxis(f"{losses_of(compared)} loss, FP8 against BF16 at equal tokens (%)")}
    if many(compared):
        frames = [
            _pairs_as_dots("error", f"{name} ({len(found)} pairs)", [one.loss_difference for one in found])
            for name, found in families(inputs, compared).items()
        ]
    else:
        frames = [_of_pair(inputs, one) for one in compared]
    return _intervals("loss_error", frames, axis, zero={"error": 0.0}, band={"error": (-MARGIN, MARGIN)})


_KINDS = {"input": "inputs", "weight": "weights", "gradient": "gradients"}
_PRODUCTS = {"forward": "forward", "input_gradient": "input gradient", "weight_gradient": "weight gradient"}


def fp8_underflow(inputs: Inputs) -> Chart | None:
    """Values that FP8 turns to zero, by kind of tensor."""
    panels = {f"fp8_underflow_{kind}": name for kind, name in _KINDS.items()}
    return _fp8_curves(inputs, "fp8_underflow", panels, ChartAxis("turned to zero (%)"), factor=100)


def fp8_overflow(inputs: Inputs) -> Chart | None:
    """Values that saturate, by kind of tensor; None where none does, as with scales that leave nothing over."""
    panels = {f"fp8_overflow_{kind}": name for kind, name in _KINDS.items()}
    chart = _fp8_curves(inputs, "fp8_overflow", panels, ChartAxis("saturated (%)"), factor=100)
    return chart if chart is not None and chart.frame["y"].any() else None


def fp8_amax(inputs: Inputs) -> Chart | None:
    """The largest magnitudes that are scaled into FP8's range, by kind of tensor."""
    panels = {f"fp8_amax_{kind}": name for kind, name in _KINDS.items()}
    return _fp8_curves(inputs, "fp8_amax", panels, ChartAxis("largest magnitude", log=True))


def fp8_errors(inputs: Inputs) -> Chart | None:
    """The error of each FP8 product against the BF16 one."""
    panels = {f"fp8_product_error_{product}": name for product, name in _PRODUCTS.items()}
    return _fp8_curves(inputs, "fp8_errors", panels, ChartAxis("relative error (%)"), factor=100)


def _fp8_curves(inputs: Inputs, name: str, titles: dict[str, str], y: ChartAxis, factor: float = 1.0) -> Chart | None:
    """A column of the logged steps over steps in each panel; what was looked at once has no course."""
    steps = inputs.steps
    frames = [
        steps.assign(panel=panel, series=steps["cell"], x=steps["step"], y=factor * steps[panel])[
            ["panel", "series", "seed", "x", "y"]
        ]
        for panel in titles
    ]
    frame = pd.concat(frames).dropna()
    present = [panel for panel in titles if frame.loc[frame["panel"] == panel, "x"].nunique() > 1]
    frame = frame[frame["panel"].isin(present)]
    if not present:
        return None
    return Curves(name, frame, dict.fromkeys(present, ChartAxis("step")), y, titles, shared=False)


def rates(inputs: Inputs) -> pd.DataFrame:
    """Tokens per second and device of every run's median step, which a pause does not move: cell, seed, rate."""
    rows = [(one.cell, one.seed, one.tokens / one.device_seconds) for one in inputs.of_steps if one.device_seconds > 0]
    return pd.DataFrame(rows, columns=["cell", "seed", "rate"]).dropna()


def throughput(inputs: Inputs) -> Chart | None:
    """Tokens per second and device of every cell, the median step of each seed."""
    measured = dict(iter(_grid(inputs, rates(inputs)).groupby("cell")))
    frames = [_cell_dots(inputs, "rate", cell, measured[cell]["rate"]) for cell in inputs.styles if cell in measured]
    return _intervals("throughput", frames, {"rate": ChartAxis("training tokens per second and device (median step)")})


def expert_load(inputs: Inputs) -> Chart | None:
    """Share of tokens of each expert at the end of training, over an even share."""
    rows: list[dict[str, object]] = []
    loads: dict[str, list[np.ndarray]] = {}
    complete = set(zip(inputs.complete["cell"], inputs.complete["seed"], strict=True))
    for one in inputs.of_steps:
        if one.load is not None and (one.cell, one.seed) in complete:
            loads.setdefault(one.cell, []).append(one.load)
    for cell in _grid(inputs, inputs.runs)["cell"].unique():
        for layer, load in enumerate(np.mean(loads[cell], axis=0) if cell in loads else ()):
            # experts have no names: sorted by load, so that seeds and layers compare
            rows += [
                {"panel": inputs.label(cell), "row": layer + 1, "column": rank + 1, "value": share * len(load)}
                for rank, share in enumerate(np.sort(load)[::-1])
            ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return Heat(
        "expert_load", frame, list(dict.fromkeys(frame["panel"])), ChartAxis("MoE layer"),
        ChartAxis("expert, by load"), ChartAxis("load over an even share"), middle=1.0,
    )  # fmt: skip


def specialisation(inputs: Inputs) -> Chart | None:
    """Which experts serve which domain, in one run: share of a domain's tokens over the expert's mean share."""
    claim = next((claim for claim in inputs.claims.claims if claim.data.get("heat")), None)
    if claim is None:
        return None
    heat = pd.DataFrame(claim.data["heat"])
    if heat.empty:
        return None
    mean = heat.groupby(["layer", "expert"])["share"].transform("mean")
    lift = (heat["share"] / mean).clip(lower=2.0**-MOST_LIFT, upper=2.0**MOST_LIFT).fillna(1.0)
    frame = pd.DataFrame(
        {
            "panel": [f"layer {layer + 1}" for layer in heat["layer"]],
            "row": heat["domain"],
            "column": heat["expert"] + 1,
            "value": np.log2(lift),
        }
    )
    return Heat(
        "specialisation", frame, list(dict.fromkeys(frame["panel"])), ChartAxis("domain"), ChartAxis("expert"),
        ChartAxis("log₂ preference"), middle=0.0,
    )  # fmt: skip


def ablations(inputs: Inputs) -> Chart | None:
    """Every ablation against its baseline at equal tokens."""
    compared = [one for one in inputs.compared("ablation") if one.axis == "tokens"]
    axis = {"error": ChartAxis(f"{losses_of(compared)} loss against the baseline at equal tokens (%)")}
    return _intervals("ablations", [_of_pair(inputs, one) for one in compared], axis, zero={"error": 0.0})


def ledger(inputs: Inputs) -> Chart | None:
    """Device-hours and cost by cell: those that the final results rest on, and the rest (of which imports know not)."""
    rest = "lost, repeated and superseded work" + (", shorter horizons" if inputs.horizons else "")
    parts = ("training steps",) if inputs.imported else ("final runs", rest)
    rows = []
    for panel, column in (("time", "device_hours"), ("cost", "cost")):
        columns = [f"{column}_final", f"{column}_all_in"][: len(parts)]
        known = inputs.runs.dropna(subset=columns)
        for cell, sums in known.groupby("cell", sort=False)[columns].sum().iterrows():
            values = (sums.iloc[0], *(max(0.0, everything - sums.iloc[0]) for everything in sums.iloc[1:]))
            for part, value in zip(parts, values, strict=True):
                rows.append({"panel": panel, "series": cell, "part": part, "value": value})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    of_time, of_cost = (frame["panel"] == panel for panel in ("time", "cost"))
    whole = frame.groupby(["panel", "series"])["value"].sum()
    time, an_hour = _time_axis(inputs, whole.get("time", pd.Series([0.0])), ", all seeds")
    frame.loc[of_time, "value"] *= an_hour
    in_cents = inputs.currency in ("USD", "EUR") and whole.get("cost", pd.Series([1.0])).max() < 1
    frame.loc[of_cost, "value"] *= 100 if in_cents else 1
    panels = {"time": time, "cost": ChartAxis(f"cost ({'cents' if in_cents else inputs.currency}), all seeds")}
    return Bars("ledger", frame, {name: axis for name, axis in panels.items() if name in set(frame["panel"])}, parts)


def owning(inputs: Inputs) -> Chart | None:
    """What each input does to the ratio of owned to rented: a tornado, the widest first."""
    claim = next((claim for claim in inputs.claims.claims if claim.data.get("tornado")), None)
    if claim is None:
        return None
    swings = claim.data["tornado"][:MOST_SWINGS]
    names = [OWNING_INPUTS.get(one["input"], words(one["input"])) for one in swings]
    rows = [f"{name}: {one['low']:,g} to {one['high']:,g}" for name, one in zip(names, swings, strict=True)]
    frame = pd.DataFrame(
        {
            "panel": "ratio", "series": NO_CELL, "row": rows, "value": claim.data["middle"], "role": "estimate",
            "low": [min(one["at_low"], one["at_high"]) for one in swings],
            "high": [max(one["at_low"], one["at_high"]) for one in swings],
        }
    )  # fmt: skip
    axis = ChartAxis("an hour owned over one rented")
    sides = {"ratio": ("owning is cheaper", "renting is cheaper")}
    return Intervals("owning", frame, {"ratio": axis}, [rows], zero={"ratio": 1.0}, sides=sides)


def leverage_axes(hours: str) -> dict[str, str]:
    """Axes of leverage -> their words, the one that a reader asks about last."""
    return {"flops": "model FLOPs", "device_hours": hours, "cost": "money"}


def scale(inputs: Inputs) -> Chart | None:
    """Loss against compute of a ladder's two architectures, and the leverage of the mixture against compute."""
    found = inputs.leverage
    if found is None:
        return None
    rows: list[dict[str, Any]] = []

    def add(panel: str, series: str, role: str, x: float, values: Sequence[float | None]) -> None:
        y, low, high = values
        rows.append({"panel": panel, "series": series, "role": role, "x": x, "y": y, "low": low, "high": high})

    for architecture in ("dense", "moe"):
        ladder = rungs(inputs.ends, architecture)
        for one in found["extrapolation"]:
            if one["architecture"] == architecture and one["determined"]:
                add("loss", architecture, "fit", one["flops"], [one["loss"], one["low"], one["high"]])
        for rung in ladder:
            losses = np.exp(rung.log_losses)
            add("loss", architecture, "measured", np.exp(rung.log_flops), [losses.mean(), losses.min(), losses.max()])
        for one in (inputs.prediction or {}).get("expected", []):
            if one["architecture"] == architecture and (said := one["loss"]) is not None:
                add("loss", architecture, "foretold", one["flops"], [said["value"], said["low"], said["high"]])
    moe = rungs(inputs.ends, "moe")
    losses = np.array([rung.log_losses.mean() for rung in moe])
    order = np.argsort(losses)
    for one in found["leverage"]:
        # where the mixture's own planned ends have that loss
        at = np.interp(np.log(one["loss"]), losses[order], np.array([rung.log_flops for rung in moe])[order])
        add("leverage", one["axis"], "fit", float(np.exp(at)), [one["value"], one["low"], one["high"]])
    frame = pd.DataFrame(rows).sort_values(["panel", "series", "role", "x"], kind="stable", ignore_index=True)
    names = {"dense": ARCHITECTURES["dense"], "moe": ARCHITECTURES["moe"],
             **leverage_axes(inputs.hours)}  # fmt: skip
    looks = zip(names.items(), (0, 1, 2, 3, 0), (0, 0, 0, 0, 2), strict=True)
    series = {
        name: CellStyle(name, label, HUES[hue][shade], DASHES[hue % len(DASHES)], MARKERS[hue])
        for (name, label), hue, shade in looks
    }
    flops = "model FLOPs of a run"
    panels = {
        "loss": (ChartAxis(flops, log=True), ChartAxis("validation loss (nats per token)", log=True)),
        "leverage": (
            ChartAxis("model FLOPs of the mixture's run", log=True),
            ChartAxis("dense over MoE, for the same loss", log=True),
        ),
    }
    return Fits(
        "scale",
        frame,
        {name: axes for name, axes in panels.items() if name in set(frame["panel"])},
        series,
        {"leverage": 1.0},
    )


def losses_of(compared: list[Comparison]) -> Losses:
    """Which losses some comparisons are of."""
    kinds: set[Losses] = {one.losses for one in compared}
    return kinds.pop() if len(kinds) == 1 else "validation and training"


def pair_name(inputs: Inputs, one: Comparison) -> str:
    """`MoE against dense (BF16)`, `FP8 blockwise against BF16 (MoE)`, `MoE BF16: no shared expert`."""
    cells = {row.cell: row for row in inputs.runs.drop_duplicates("cell").itertuples()}
    new, old = cells.get(one.cell), cells.get(one.against)
    if new is None or old is None:
        return f"{one.cell} against {one.against}"
    if one.kind == "architecture":
        name = architecture_name(old.architecture)
        return (
            f"{architecture_name(new.architecture)} against {name[:1].lower()}{name[1:]} "
            f"({PRECISIONS.get(new.precision, new.precision)})"
        )
    if one.kind == "precision":
        return (
            f"{PRECISIONS.get(new.precision, new.precision)} against {PRECISIONS.get(old.precision, old.precision)} "
            f"({architecture_name(new.architecture)})"
        )
    return f"{inputs.label(one.against)}: {words(str(new.ablation))}"


def many(compared: Sequence[Comparison]) -> bool:
    """Whether there are more pairs than are named one by one."""
    return len({(one.cell, one.against) for one in compared}) > MOST_PAIRS


def families(inputs: Inputs, compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Pairs that differ in the same: `FP8 blockwise against BF16`, of all architectures; `MoE against dense`, in all
    precisions."""
    found: dict[str, list[Comparison]] = {}
    for one in compared:
        found.setdefault(pair_name(inputs, one).rpartition(" (")[0] or pair_name(inputs, one), []).append(one)
    return found


def _families_by_axis(inputs: Inputs, compared: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    return {
        (family, AXIS_NAMES[axis].replace("device-hours", inputs.hours)): of_axis
        for family, own in families(inputs, compared).items()
        for axis in AXIS_NAMES
        if (of_axis := [one for one in own if one.axis == axis])
    }


def axis_name(inputs: Inputs, one: Comparison) -> str:
    """`equal device-hours (emulated)`."""
    name = AXIS_NAMES[one.axis].replace("device-hours", inputs.hours)
    return f"{name} (emulated)" if one.emulated and one.axis in TIMED else name


def held_equal(inputs: Inputs) -> Iterator[tuple[str, Comparison]]:
    """Every pair on every axis with the axis's name; axes on which all numbers are the same are one.

    `equal tokens and active parameters`
    """
    same: dict[str, list[Comparison]] = {}
    for one in (one for one in inputs.comparisons.comparisons if one.kind != "ablation"):
        same.setdefault(one.model_dump_json(exclude={"axis", "mismatch"}), []).append(one)
    for first, *others in same.values():
        names = [axis_name(inputs, first), *(axis_name(inputs, one).removeprefix("equal ") for one in others)]
        yield listed(names).replace("active parameters and total", "active and total"), first


def _of_pair(inputs: Inputs, one: Comparison) -> pd.DataFrame:
    """The loss differences of a pair."""
    return _dots("error", pair_name(inputs, one), one.cell, one.loss_differences, one.loss_difference)


def _cell_dots(inputs: Inputs, panel: str, cell: str, values: pd.Series) -> pd.DataFrame:
    """A number of each of a cell's runs, and their mean."""
    found = t_interval(values.to_numpy())
    mean = Estimate(value=found.estimate, low=found.low, high=found.high, n=found.n, unit="")
    return _dots(panel, inputs.label(cell), cell, values.tolist(), mean)


def _dots(
    panel: str, row: str, cell: str, seeds: Sequence[float], estimate: Estimate | None, *, emulated: bool = False
) -> pd.DataFrame:
    """Rows of an `Intervals` chart: the single seeds, then the estimate; none where there is no estimate."""
    if estimate is None:
        return pd.DataFrame(columns=COLUMNS)
    values = [*_shown(seeds), estimate.value]
    nothing = [None] * (len(values) - 1)
    return pd.DataFrame(
        {
            "panel": panel, "row": row, "series": cell, "value": values, "low": [*nothing, estimate.low],
            "high": [*nothing, estimate.high],
            "role": [*["seed"] * len(nothing), "emulated" if emulated else "estimate"],
        }
    )  # fmt: skip


def _pairs_as_dots(panel: str, row: str, found: Sequence[Estimate | None], *, emulated: bool = False) -> pd.DataFrame:
    """Rows of an `Intervals` chart of many pairs: what each shows, and their median."""
    values = [one.value for one in found if one is not None]
    if not values:
        return pd.DataFrame(columns=COLUMNS)
    shown = [*_shown(values), float(np.median(values))]
    return pd.DataFrame(
        {
            "panel": panel, "row": row, "series": NO_CELL, "value": shown, "low": None, "high": None,
            "role": [*["pair"] * (len(shown) - 1), "emulated" if emulated else "estimate"],
        }
    )  # fmt: skip


def _shown(values: Sequence[float]) -> Sequence[float]:
    """Values that are drawn one by one; of more than MOST_SEEDS so many quantiles, from the lowest to the highest."""
    return values if len(values) <= MOST_SEEDS else np.quantile(values, np.linspace(0, 1, MOST_SEEDS)).tolist()


def _intervals(name: str, frames: list[pd.DataFrame], panels: dict[str, ChartAxis], **options: Any) -> Intervals | None:
    """A chart with all rows in one block; None without any."""
    kept = [frame for frame in frames if len(frame)]
    if not kept:
        return None
    frame = pd.concat(kept, ignore_index=True).astype({"low": float, "high": float})
    present = {panel: axis for panel, axis in panels.items() if (frame["panel"] == panel).any()}
    return Intervals(name, frame, present, [list(dict.fromkeys(frame["row"]))], **options)


def _grid(inputs: Inputs, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the grid's cells; of all cells in an ablation's report."""
    if inputs.ablation:
        return frame
    grid = inputs.runs.loc[inputs.runs["ablation"].isna(), "cell"]
    return frame[frame["cell"].isin(grid)]
