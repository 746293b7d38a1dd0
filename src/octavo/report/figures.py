"""The report's charts, each made from the tables and verdicts. A chart whose data an experiment lacks is left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from octavo.evidence.curves import averaged
from octavo.evidence.names import ARCHITECTURES, PRECISIONS, words
from octavo.evidence.statistics import t_interval
from octavo.records import Comparison, Losses
from octavo.report.charts import Axis, Bars, Chart, Curves, Heat, Intervals
from octavo.report.inputs import Inputs

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
    )
    return {chart.name: chart for chart in made if chart is not None and len(chart.frame)}


def loss_curves(inputs: Inputs) -> Chart | None:
    """Loss against tokens, model FLOPs and device-hours, or against steps where an import knows none of them."""
    axes = {
        "tokens": ("tokens", Axis("tokens", log=True, engineering=True)),
        "FLOPs": ("model_flops", Axis("model FLOPs", log=True, engineering=False)),
        "hours": ("device_hours", Axis(f"{inputs.hours} of training steps", log=True)),
        "steps": ("step", Axis("step", log=True)),
    }
    steps = _loss_points(inputs, [column for column, _ in axes.values()])
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
    titles = {"hours": "FP8 time is emulated"} if inputs.emulated else {}
    return Curves("loss", frame, present, Axis(f"{inputs.losses} loss (nats per token)"), titles)


def _loss_points(inputs: Inputs, resources: list[str]) -> pd.DataFrame:
    """Measured validation losses (`y`) with what was spent; of imports without any, windows of training losses."""
    steps = _grid(inputs, inputs.steps)
    if inputs.losses == "validation":
        return steps.dropna(subset=["validation_loss"]).rename(columns={"validation_loss": "y"})
    rows = []
    for (cell, seed), own in steps.dropna(subset=["loss"]).groupby(["cell", "seed"], sort=False):
        columns = {name: own[name].to_numpy(dtype=float, na_value=np.nan) for name in (*resources, "loss")}
        windows = {name: averaged(columns[name], columns["loss"])[0] for name in columns}
        rows.append(pd.DataFrame(windows).rename(columns={"loss": "y"}).assign(cell=cell, seed=seed))
    return pd.concat(rows) if rows else pd.DataFrame(columns=["cell", "seed", "y", *resources])


def final_loss(inputs: Inputs) -> Chart | None:
    """Final loss of every cell: seeds, mean and 95 % interval."""
    runs = inputs.complete
    column, unit = f"{inputs.losses}_loss", "nats per token"
    if inputs.losses == "validation" and runs["validation_bits_per_byte"].notna().any():
        column, unit = "validation_bits_per_byte", "bits per byte"
    runs = _grid(inputs, runs).dropna(subset=[column])
    if runs.empty:
        return None
    rows: list[dict[str, object]] = []
    for cell, own in runs.groupby("cell", sort=False):
        common = {"panel": "loss", "row": inputs.label(str(cell)), "series": cell}
        interval = t_interval(own[column].to_numpy())
        rows += [{**common, "value": value, "role": "seed"} for value in own[column]]
        rows.append(
            {**common, "value": interval.estimate, "low": interval.low, "high": interval.high, "role": "estimate"}
        )
    frame = pd.DataFrame(rows, columns=["panel", "row", "series", "value", "low", "high", "role"])
    axis = {"loss": Axis(f"final {inputs.losses} loss ({unit})")}
    return Intervals("final_loss", frame, axis, list(dict.fromkeys(frame["row"])))


def fair_axes(inputs: Inputs) -> Chart | None:
    """Every pair on every axis: loss difference, and resource ratio at equal loss."""
    compared = [one for one in inputs.comparisons.comparisons if one.kind != "ablation"]
    panels = {
        "difference": Axis("loss difference (%)"),
        "ratio": Axis("resource ratio at equal loss"),
    }
    rows: list[dict[str, object]] = []
    for one in compared:
        row = f"{pair_name(inputs, one)}, {AXIS_NAMES[one.axis]}"
        for panel, estimate in (("difference", one.loss_difference), ("ratio", one.resource_ratio)):
            rows.append(
                {
                    "panel": panel,
                    "row": row,
                    "series": one.cell,
                    "value": estimate.value if estimate else np.nan,
                    "low": estimate.low if estimate else None,
                    "high": estimate.high if estimate else None,
                    "role": "estimate",
                }
            )
    frame = pd.DataFrame(rows, columns=["panel", "row", "series", "value", "low", "high", "role"])
    if frame["value"].isna().all():
        return None
    used = [row for row in dict.fromkeys(frame["row"]) if frame.loc[frame["row"] == row, "value"].notna().any()]
    frame = frame[frame["row"].isin(used)].dropna(subset=["value"])
    present = {panel: axis for panel, axis in panels.items() if (frame["panel"] == panel).any()}
    return Intervals("fair_axes", frame, present, used, zero={"difference": 0.0, "ratio": 1.0})


def loss_error(inputs: Inputs) -> Chart | None:
    """FP8's relative loss error against BF16 and the margin that it is held against."""
    claim = next((claim for claim in inputs.claims.claims if claim.name.endswith("fp8-loss-error")), None)
    compared = [
        one
        for one in inputs.comparisons.comparisons
        if one.kind == "precision" and one.axis == "tokens" and one.loss_difference
    ]
    if not compared:
        return None
    rows: list[dict[str, object]] = []
    for one in compared:
        assert one.loss_difference is not None
        common = {"panel": "error", "row": pair_name(inputs, one), "series": one.cell}
        rows += [{**common, "value": value, "role": "seed"} for value in _paired_error(inputs, one.cell, one.against)]
        estimate = one.loss_difference
        rows.append({**common, "value": estimate.value, "low": estimate.low, "high": estimate.high, "role": "estimate"})
    frame = pd.DataFrame(rows, columns=["panel", "row", "series", "value", "low", "high", "role"])
    margin = claim.data.get("margin") if claim else None
    band = {"error": (-float(margin), float(margin))} if margin else {"error": (-0.25, 0.25)}
    axis = {"error": Axis(f"{losses_of(compared)} loss, FP8 against BF16 at equal tokens (%)")}
    return Intervals("loss_error", frame, axis, list(dict.fromkeys(frame["row"])), zero={"error": 0.0}, band=band)


_KINDS = {"input": "inputs", "weight": "weights", "gradient": "gradients"}
_PRODUCTS = {"forward": "forward", "input_gradient": "input gradient", "weight_gradient": "weight gradient"}


def fp8_underflow(inputs: Inputs) -> Chart | None:
    """Values that FP8 turns to zero, by kind of tensor."""
    panels = {f"fp8_underflow_{kind}": name for kind, name in _KINDS.items()}
    return _fp8_curves(inputs, "fp8_underflow", panels, Axis("turned to zero (%)"), factor=100)


def fp8_overflow(inputs: Inputs) -> Chart | None:
    """Values that saturate, by kind of tensor; None where none does, as with scales that leave nothing over."""
    panels = {f"fp8_overflow_{kind}": name for kind, name in _KINDS.items()}
    chart = _fp8_curves(inputs, "fp8_overflow", panels, Axis("saturated (%)"), factor=100)
    return chart if chart is not None and chart.frame["y"].any() else None


def fp8_amax(inputs: Inputs) -> Chart | None:
    """The largest magnitudes that are scaled into FP8's range, by kind of tensor."""
    panels = {f"fp8_amax_{kind}": name for kind, name in _KINDS.items()}
    return _fp8_curves(inputs, "fp8_amax", panels, Axis("largest magnitude", log=True))


def fp8_errors(inputs: Inputs) -> Chart | None:
    """The error of each FP8 product against the BF16 one."""
    panels = {f"fp8_product_error_{product}": name for product, name in _PRODUCTS.items()}
    return _fp8_curves(inputs, "fp8_errors", panels, Axis("relative error (%)"), factor=100)


def _fp8_curves(inputs: Inputs, name: str, titles: dict[str, str], y: Axis, factor: float = 1.0) -> Chart | None:
    """A column of the logged steps over steps in each panel."""
    steps = inputs.steps
    frames = [
        steps.assign(panel=panel, series=steps["cell"], x=steps["step"], y=factor * steps[panel])[
            ["panel", "series", "seed", "x", "y"]
        ]
        for panel in titles
    ]
    frame = pd.concat(frames).dropna()
    present = [panel for panel in titles if (frame["panel"] == panel).any()]
    if not present:
        return None
    return Curves(name, frame, dict.fromkeys(present, Axis("step")), y, titles, shared=False)


def throughput(inputs: Inputs) -> Chart | None:
    """Tokens per second and device of every cell, the median step of each seed."""
    steps = _grid(inputs, inputs.steps).dropna(subset=["step_seconds", "tokens"])
    if steps.empty:
        return None
    steps = steps.sort_values("step")
    run = [steps["cell"], steps["seed"]]
    since = steps.groupby(run)[["tokens", "step"]].diff()  # an import may have logged one step in several
    per_step = (since["tokens"] / since["step"]).groupby(run).median()
    seconds = steps.groupby(run)["step_seconds"].median()
    devices = inputs.runs.set_index(["cell", "seed"])["device_count"]
    rate = (per_step / seconds / devices.reindex(seconds.index)).dropna().rename("value").reset_index()
    rows: list[dict[str, object]] = []
    for cell, own in rate.groupby("cell", sort=False):
        common = {"panel": "rate", "row": inputs.label(str(cell)), "series": cell}
        interval = t_interval(own["value"].to_numpy())
        rows += [{**common, "value": value, "role": "seed"} for value in own["value"]]
        rows.append({**common, "value": interval.estimate, "low": interval.low, "high": interval.high,
                     "role": "estimate"})  # fmt: skip
    frame = _in_order(inputs, pd.DataFrame(rows, columns=["panel", "row", "series", "value", "low", "high", "role"]))
    axis = {"rate": Axis("training tokens per second and device (median step)")}
    return Intervals("throughput", frame, axis, list(dict.fromkeys(frame["row"])))


def expert_load(inputs: Inputs) -> Chart | None:
    """Share of tokens of each expert at the end of training, over an even share."""
    rows: list[dict[str, object]] = []
    with_load = _grid(inputs, inputs.steps).dropna(subset=["expert_load"])
    for cell, own in with_load.groupby("cell", sort=False):
        last = own.sort_values("step").groupby("seed").tail(1)
        loads = np.mean([np.array([list(layer) for layer in one]) for one in last["expert_load"]], axis=0)
        for layer, load in enumerate(loads):
            # experts have no names: sorted by load, so that seeds and layers compare
            rows += [
                {"panel": inputs.label(str(cell)), "row": layer + 1, "column": rank + 1, "value": share * len(load)}
                for rank, share in enumerate(np.sort(load)[::-1])
            ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return Heat(
        "expert_load", frame, list(dict.fromkeys(frame["panel"])), Axis("MoE layer"),
        Axis("expert, by load"), Axis("load over an even share"), middle=1.0,
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
        "specialisation", frame, list(dict.fromkeys(frame["panel"])), Axis("domain"), Axis("expert"),
        Axis("log₂ preference"), middle=0.0,
    )  # fmt: skip


def ablations(inputs: Inputs) -> Chart | None:
    """Every ablation against its baseline at equal tokens."""
    compared = [
        one
        for one in inputs.comparisons.comparisons
        if one.kind == "ablation" and one.axis == "tokens" and one.loss_difference
    ]
    rows: list[dict[str, object]] = []
    for one in compared:
        assert one.loss_difference is not None
        common = {"panel": "error", "row": pair_name(inputs, one), "series": one.cell}
        estimate = one.loss_difference
        rows += [{**common, "value": value, "role": "seed"} for value in _paired_error(inputs, one.cell, one.against)]
        rows.append({**common, "value": estimate.value, "low": estimate.low, "high": estimate.high, "role": "estimate"})
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["panel", "row", "series", "value", "low", "high", "role"])
    axis = {"error": Axis(f"{losses_of(compared)} loss against the baseline at equal tokens (%)")}
    return Intervals("ablations", frame, axis, list(dict.fromkeys(frame["row"])), zero={"error": 0.0})


def ledger(inputs: Inputs) -> Chart | None:
    """Device-hours and cost by cell: those that the final results rest on, and the rest (of which imports know not)."""
    parts = ("training steps",) if inputs.imported else ("final runs", "lost, repeated and superseded work")
    rows = []
    for panel, column in (("hours", "device_hours"), ("cost", "cost")):
        columns = [f"{column}_final", f"{column}_all_in"][: len(parts)]
        known = inputs.runs.dropna(subset=columns)
        for cell, sums in known.groupby("cell", sort=False)[columns].sum().iterrows():
            values = (sums.iloc[0], *(max(0.0, everything - sums.iloc[0]) for everything in sums.iloc[1:]))
            for part, value in zip(parts, values, strict=True):
                rows.append({"panel": panel, "series": cell, "part": part, "value": value})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    panels = {"hours": Axis(f"{inputs.hours}, all seeds"), "cost": Axis(f"cost ({inputs.currency}), all seeds")}
    return Bars("ledger", frame, {name: axis for name, axis in panels.items() if name in set(frame["panel"])}, parts)


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
        return (
            f"{ARCHITECTURES.get(new.architecture, new.architecture)} against "
            f"{str(ARCHITECTURES.get(old.architecture, old.architecture)).lower()} "
            f"({PRECISIONS.get(new.precision, new.precision)})"
        )
    if one.kind == "precision":
        return (
            f"{PRECISIONS.get(new.precision, new.precision)} against {PRECISIONS.get(old.precision, old.precision)} "
            f"({ARCHITECTURES.get(new.architecture, new.architecture)})"
        )
    return f"{inputs.label(one.against)}: {words(str(new.ablation))}"


def _paired_error(inputs: Inputs, cell: str, against: str) -> Iterator[float]:
    """Relative difference of the final losses seed by seed, in %; of training losses where there are no others."""
    columns = ["validation_loss", "training_loss"]
    one, other = (
        inputs.complete.loc[inputs.complete["cell"] == name].set_index("seed")[columns] for name in (cell, against)
    )
    found = (one / other - 1) * 100
    yield from found["validation_loss"].fillna(found["training_loss"]).dropna()


def _grid(inputs: Inputs, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the grid's cells; of all cells in an ablation's report."""
    if inputs.ablation:
        return frame
    grid = inputs.runs.loc[inputs.runs["ablation"].isna(), "cell"]
    return frame[frame["cell"].isin(grid)]


def _in_order(inputs: Inputs, frame: pd.DataFrame) -> pd.DataFrame:
    order = {name: place for place, name in enumerate(inputs.styles)}
    return frame.sort_values("series", key=lambda series: series.map(order), kind="stable")
