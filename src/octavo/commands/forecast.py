"""`octavo plan`, `forecast`, `published`: what an experiment will cost, and what others' runs did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from octavo.accounting.money import OLD_MONTHS
from octavo.commands.named import ExperimentArgument, enter_trained
from octavo.errors import no_such
from octavo.layout import split_horizon

if TYPE_CHECKING:
    from octavo.forecast.matching import MatchedQuantity
    from octavo.forecast.published import Derived

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(plan)
    app.command()(forecast)
    app.command()(published)
    app.command()(match)
    app.command()(scale)
    app.command()(calibrate)


def plan(
    experiment: ExperimentArgument,
    as_json: AsJson = False,
) -> None:
    """Forecast parameters, memory, speed, device-hours and cost of every cell; stop if it exceeds the budget.

    Writes plan.csv, plan.pdf and what they were made from, plan.json.
    """
    from octavo.experiment.load import load_experiment
    from octavo.forecast.document import write_plan
    from octavo.forecast.measured import forecast_cells, write_steps
    from octavo.forecast.plan import check_budget, plan_frame, plan_record

    folder = enter_trained(experiment)
    loaded = load_experiment(folder.name)
    steps = forecast_cells(loaded)
    frame = plan_frame(loaded, steps)
    check_budget(loaded, frame)
    record = plan_record(loaded, frame, steps)
    write_steps(folder.plan_steps, steps)
    write_plan(folder, frame, record)
    typer.echo(json.dumps(record, indent=2) if as_json else f"{_plan_text(record)}\n{folder.plan_pdf}")


def _plan_text(record: dict[str, Any]) -> str:
    """A line per cell, and what the speeds rest on."""
    device = "GPU" if record["device_kind"] == "gpu" else "core"
    width = max(len(cell["cell"]) for cell in record["cells"])
    lines = []
    for cell in record["cells"]:
        rate, low, high = (f"{cell[f'tokens_per_second_{end}']:,.0f}" for end in ("per_device", "low", "high"))
        fits = "fits" if cell["memory_fits"] else "does not fit"
        error = cell["median_absolute_error"]
        off = "" if error is None else f", median error {100 * error:.0f} % on models left out of the fit"
        lines.append(
            f"{cell['cell']:<{width}}  {rate} tokens/s/{device} ({100 * cell['interval']:.0f} % interval {low} to "
            f"{high}){off}; {cell['device_hours']:,.4g} {record['hours_are']}, {cell['cost']:,.4g} "
            f"{record['currency']} ({cell['cost_low']:,.4g} to {cell['cost_high']:,.4g}); "
            f"{cell['memory_bytes_per_device'] / 2**30:,.3g} GiB: {fits}; "
            f"{cell['tokens_seen'] / cell['active_parameters']:,.3g} tokens per active parameter"
        )
    if planned := next((cell["cell"] for cell in record["cells"] if split_horizon(cell["cell"])[1]), None):
        trunk, steps = split_horizon(planned)
        lines.append(
            f"{planned}: runs of {trunk} planned for {steps} steps, which begin from a checkpoint of a longer run"
        )
    totals = record["totals"]
    lines.append(
        f"{'all':<{width}}  {totals['device_hours']:,.4g} {record['hours_are']} ({totals['device_hours_low']:,.4g} to "
        f"{totals['device_hours_high']:,.4g}), {totals['cost']:,.4g} {record['currency']} "
        f"({totals['cost_low']:,.4g} to {totals['cost_high']:,.4g}: both ends of speed and price)"
    )
    return "\n".join([*lines, f"Speed: {record['basis']}", *_price_lines(record), *record["remarks"]])


def _price_lines(record: dict[str, Any]) -> Iterator[str]:
    """Every rent with its age, and what owning costs beside it."""
    unit = f"{record['currency']} per {record['hours_are'].removesuffix('s')}"
    today = str(date.today())
    for rent in record["rents"]:
        age = ""
        if rent["old_from"] is None:
            age = "; it has no date, so whether it still holds is not known"
        elif rent["old_from"] <= today:
            age = f"; older than {OLD_MONTHS} months"
        ratio, even = rent["owned_over_rented"], rent["break_even_use"]
        owning = (
            ""
            if ratio is None
            else "; owning costs {value:.2f} times as much ({low:.2f} to {high:.2f})".format(**ratio)
        )
        owning += "" if even is None else f", and is {_from_use(even)}"
        yield (
            f"Rent, {rent['commitment']}, {rent['date'] or 'no date'}: {rent['middle']:,.3g} {unit} "
            f"({rent['low']:,.3g} to {rent['high']:,.3g}){age}{owning}"
        )
    if owned := record["owned"]:
        yield (
            f"Owned, used {owned['use']:.0%} of all hours: {owned['value']:,.3g} {unit} ({owned['low']:,.3g} to "
            f"{owned['high']:,.3g})"
        ).replace("%", " %")


def _from_use(even: dict[str, float]) -> str:
    """`cheaper from 58 % use on (40 to 83 %)`, or `never cheaper`."""
    low, value, high = (100 * even[end] for end in ("low", "value", "high"))
    if value > 100:
        return f"never cheaper (that would take a use of {value:.0f} %)"
    return f"cheaper from {value:.0f} % use on ({low:.0f} to {high:.0f} %; more than 100 % is never)"


def forecast(
    model: Annotated[str, typer.Option(help="A file in configs/models, without .yaml.")],
    gpu: Annotated[str, typer.Option(help="A file in configs/clusters/devices, without .yaml.")],
    n_gpus: Annotated[int, typer.Option(min=1, help="GPUs in all.")],
    precision: Annotated[str, typer.Option(help="bf16, fp8_delayed, fp8_tensorwise, fp8_blockwise, fp8_mxfp8, nvfp4.")],
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")],
    gbs: Annotated[int, typer.Option(min=1, help="Sequences in a step, over all GPUs.")],
    mbs: Annotated[int, typer.Option(min=1, help="Sequences in a forward pass.")] = 1,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    cp: Annotated[int, typer.Option(min=1, help="Context-parallel ranks.")] = 1,
    vp: Annotated[int, typer.Option(min=1, help="Model chunks per pipeline stage.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert-parallel ranks.")] = 1,
    release: Annotated[
        str | None, typer.Option(help="NVIDIA's release of the software that the forecast is for; 26.04.01 if none is.")
    ] = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Parameters shared out over data-parallel ranks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forecast the speed and memory of training a model in one layout on so many GPUs."""
    from typing import get_args

    from octavo.forecast.layouts import LayoutRequest, forecast_layout
    from octavo.precision.config import RecipeName

    if precision not in get_args(RecipeName):
        raise no_such("precision", precision, get_args(RecipeName), where="--precision")
    recipe = cast(RecipeName, precision)
    asked = LayoutRequest(model, gpu, n_gpus, recipe, seq_length, gbs, mbs, tp, pp, cp, vp, ep, release, fsdp)
    record = forecast_layout(asked)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        _print_forecast(record)


def _print_forecast(record: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{record['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU[/] ({record['interval']:.0%} interval "
        f"{record['low']:,.0f} to {record['high']:,.0f}), {record['model_tflops_per_gpu']:,.0f} model TFLOP/s/GPU"
    )
    fits = "fits" if record["memory_fits"] else "[red]does not fit without recomputation or sharding[/]"
    console.print(f"{record['memory_bytes_per_gpu'] / 2**30:,.1f} GiB per GPU: {fits}")
    console.print(f"{record['device_hours_per_trillion_tokens']:,.0f} GPU-hours per trillion tokens")
    for part, seconds in sorted(record["breakdown"].items(), key=lambda item: -item[1]):
        if seconds:
            console.print(f"  {part:<18} {seconds:>10.4g} s  {seconds / record['step_seconds']:>6.1%}")
    if record["published"]:
        console.print(f"published: {record['published']}")
    console.print(f"[dim]{record['basis']}[/]")


def published(as_json: AsJson = False) -> None:
    """Recompute every number that follows from published training runs, and say which hold."""
    from dataclasses import asdict

    from octavo.forecast.published import SCHEMA_VERSION, derived

    numbers = derived()
    if as_json:
        record = {"schema_version": SCHEMA_VERSION, "derived": [asdict(number) for number in numbers]}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print_published(numbers)


def _print_published(numbers: list[Derived]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("statement", "recomputed", "printed", "holds", "assuming"):
        table.add_column(heading, justify="right" if heading in ("recomputed", "printed") else "left")
    for one in numbers:
        printed = "" if one.published_value is None else f"{one.published_value:,.4g}"
        holds = {True: "[green]yes[/]", False: "[red]no[/]", None: "[dim]not printed[/]"}[one.holds]
        table.add_row(one.text, f"{one.value:,.4g} {one.unit}", printed, holds, one.assumption)
    Console().print(table)


def match(
    model: Annotated[str, typer.Argument(help="A file in configs/models, without .yaml.")],
    by: Annotated[
        str, typer.Option(help="active_parameters, flops_per_token, total_parameters or memory_per_device.")
    ] = "active_parameters",
    multiple: Annotated[int, typer.Option(min=1, help="Widths are multiples of it.")] = 64,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Routed experts of a mixture; searched if not given.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of them, per token; searched if not given.")] = None,
    shared: Annotated[int, typer.Option(min=0, help="Shared experts, each as wide as a routed one.")] = 2,
    layers: Annotated[int | None, typer.Option(min=1, help="Depth of the partner; searched if not given.")] = None,
    leading_dense_layers: Annotated[
        int | None, typer.Option(min=0, help="First layers of a mixture that are dense; searched if not given.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Mismatch, as a share, that is no refusal.")] = 0.02,
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 4096,
    write: Annotated[str | None, typer.Option(help="Write the partner to configs/models/NAME.yaml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the dense or mixture-of-experts partner of a model that is equal on one axis, and what is left unequal."""
    from octavo.forecast.matching import MATCHED_QUANTITIES, Rules, describe, quantity, write_partner
    from octavo.forecast.matching import match as find
    from octavo.models.catalogue import read_architecture, with_vocabulary

    if by not in MATCHED_QUANTITIES:
        raise no_such("axis", by, MATCHED_QUANTITIES, where="--by")
    axis = cast("MatchedQuantity", by)
    own = read_architecture(model)
    rules = Rules(multiple, experts, top_k, shared, leading_dense_layers, layers, tolerance)
    pair = find(with_vocabulary(own), axis, rules, seq_length)
    # what both take from their experiment's tokenizer stays open in the file
    partner = pair.partner.model_copy(update={"vocabulary_size": own.vocabulary_size})
    if write is not None:
        write_partner(replace(pair, partner=partner), write)
    sides = {
        one: [quantity(architecture, one, seq_length) for architecture in (pair.model, pair.partner)]
        for one in MATCHED_QUANTITIES
    }
    record = {
        "schema_version": 1,
        "model": model,
        "by": axis,
        "mismatch": pair.mismatch,
        "partner": partner.model_dump(mode="json", exclude={"name", "published"}),
        "quantities": {one: {"model": a, "partner": b} for one, (a, b) in sides.items()},
    }
    typer.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else _match_text(record, describe(partner)))


def _match_text(record: dict[str, Any], shape: str) -> str:
    lines = [f"{record['model']}: {shape}", f"residual mismatch in {record['by']}: {record['mismatch']:+.3%}"]
    for name, sides in record["quantities"].items():
        ratio = sides["partner"] / sides["model"]
        lines.append(f"  {name:<18} {sides['model']:>20,.0f} {sides['partner']:>20,.0f}  {ratio:7.3f} x")
    return "\n".join(lines)


def scale(
    experiment: ExperimentArgument,
    cell: Annotated[str, typer.Option(help="A cell of the experiment.")],
    to: Annotated[str | None, typer.Option(help="A published run (configs/published/runs): its tokens, GPUs.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, help="Tokens to carry it to.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs to carry it to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Carry a measured or forecast cell to a published scale: GPU-hours, days and cost, with an interval."""
    from octavo.experiment.load import load_experiment
    from octavo.forecast.scaling import carry

    folder = enter_trained(experiment)
    record = carry(load_experiment(folder.name), folder, cell, published=to, tokens=tokens, gpus=gpus)
    typer.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else _scale_text(record))


def _scale_text(record: dict[str, Any]) -> str:
    hours, days, cost = record["gpu_hours"], record["days"], record["cost"]

    def span(ends: dict[str, float | None], name: str = "", places: int = 0) -> str:
        if ends["low"] is None or ends["high"] is None:
            return "(one run: no interval)"
        return f"({name}{ends['low']:,.{places}f} to {ends['high']:,.{places}f})"

    level = f"{record['interval']:.0%} interval "
    lines = [
        f"{record['cell']} ({record['basis']}), {record['tokens']:,.4g} tokens on {record['gpus']:,} {record['gpu']}:",
        f"  {hours['value']:,.0f} GPU-hours {span(hours, level)}",
        f"  {days['value']:,.1f} days {span(days, places=1)}",
        f"  {cost['value']:,.0f} {record['currency']} {span(cost)}, at {record['price_per_gpu_hour']:,.3g} a GPU-hour "
        f"({record['price_low']:,.3g} to {record['price_high']:,.3g})",
    ]
    if not record["memory_fits"]:
        lines.append(
            "  the layout does not fit the GPU's memory by the forecast: these are figures of a run that cannot be made"
        )
    if published := record["published"]:
        lines.append(
            f"  published: {published['gpu_hours']:,.0f} GPU-hours, {published['stages']}: {published['cost']:,.0f} "
            f"{record['currency']} at the same price ({published['source']})"
        )
    return "\n".join([*lines, "assuming", *(f"  - {one}" for one in record["assumptions"])])


def calibrate(as_json: AsJson = False) -> None:
    """Measure how fast this machine trains, in seconds: plans of experiments on it rest on that.

    Writes results/probes/machine-<identity>.json. Measure while nothing else runs.
    """
    from octavo.forecast.machine import calibrate as measure

    found = measure()
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    busy = f"; {found.load:.1f} processes wanted a core before: measure again when nothing else runs"
    typer.echo(f"{found.processes} processes side by side{busy if found.load >= found.processes else ''}")
    for step in found.steps:
        work = step.work
        experts = (
            f", {work['scores']:,.0f} experts' scores, {work['copied']:,.0f} values copied" if work["scores"] else ""
        )
        short = f", {work['short_sums']:,.0f} products in short sums" if work["short_sums"] else ""
        typer.echo(
            f"  {step.kind:<8} {step.recipe:<15} {1 / step.seconds_per_token:9,.0f} tokens/s/core (80 % of the steps "
            f"within {step.spread:+.0%}), {work['flops'] / 1e6:.2f} M FLOPs a token{experts}{short}"
        )
