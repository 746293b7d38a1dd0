"""`octavo explain`: which part of a step is slower than forecast, and where the rest of a run's time went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from octavo.commands.named import ExperimentArgument, enter_trained

TIMES = {
    "start_up": "start, up to the first step",
    "steps": "training steps",
    "trained_again": "steps trained again after a restart",
    "validation": "validation",
    "checkpoints": "checkpoints",
    "between": "between steps, writing metrics",
    "end": "end, after the last line of metrics",
}
"""What is printed of a run's time."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(explain)


def explain(
    experiment: ExperimentArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say which part of a step is slower or faster than forecast, and where the rest of the runs' time went."""
    from json import dumps

    from octavo.errors import OctavoError
    from octavo.experiment.load import load_experiment
    from octavo.forecast.explain import explain as explained

    folder = enter_trained(experiment)
    record = explained(load_experiment(folder.name))
    if not record["cells"]:
        raise OctavoError(
            "no run is finished, so that there is nothing to hold against the forecast",
            where=folder.runs,
            expected="a finished run of the experiment as it is configured now",
            fix=f"octavo status {folder.name} says how far the runs are; snakemake {folder.report_pdf} trains them",
        )
    typer.echo(dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(record)))


def _lines(record: dict[str, Any]) -> Iterator[str]:
    for cell in record["cells"]:
        yield from (*_step(cell), *_run(cell), "")
    if record["without_runs"]:
        yield f"No finished run: {', '.join(record['without_runs'])}"
    for one in record["fell_short"]:
        short = "" if one["short_by"] is None else f", {_percent(one['short_by'])} short"
        yield f"octavo accept, {one['part']}: {one['name']} was {one['found']}, expected {one['expected']}{short}"
    yield from record["not_known"]


def _step(cell: dict[str, Any]) -> Iterator[str]:
    """A sentence on the step, and its parts as a table."""
    step = cell["step_seconds"]
    runs = f"{len(cell['seeds'])} run{'s' if len(cell['seeds']) > 1 else ''}"
    where = "inside" if cell["inside"] else "outside"
    whose = "the plan's forecast" if cell["forecast_is_the_plans"] else "a forecast made now, without the cell's runs"
    yield (
        f"{cell['cell']} ({runs}): a step took {_seconds(step['measured'])}, {cell['times_as_fast']:.2f} times as fast "
        f"as {whose} of {_seconds(step['forecast'])}, {where} its {_percent(cell['interval'])} interval "
        f"({_seconds(step['low'])} to {_seconds(step['high'])})"
    )
    rows = [(one["part"], one["forecast"], one["measured"]) for one in cell["parts"]]
    rows.append(("the mean step", step["forecast"], step["measured"]))
    width = max(len(name) for name, *_ in rows)
    yield f"  {'part of a step':<{width}}  {'forecast ms':>12}  {'measured ms':>12}  {'difference':>11}"
    for name, forecast, measured in rows:
        off = 1000 * (measured - forecast)
        yield f"  {name:<{width}}  {1000 * forecast:>12,.2f}  {1000 * measured:>12,.2f}  {off:>+11,.2f}"
    word = "slower" if step["measured"] > step["forecast"] else "faster"
    if cell["difference_made_by"]:
        yield f"  {word.capitalize()} than forecast, most of all by: {'; '.join(cell['difference_made_by'])}."
    else:
        yield "  As forecast."
    for one in cell["stragglers"]:
        yield (
            f"  Seed {one['seed']}, attempt {one['attempt']}: {one['in_words']}; all ranks wait for it, "
            f"{_seconds(one['seconds'])} of each step ({_percent(one['seconds'] / step['measured'])})."
        )
    if len(cell["forecast_parts"]) > 1:
        whole = sum(cell["forecast_parts"].values())
        shares = (f"{part} {_percent(seconds / whole)}" for part, seconds in cell["forecast_parts"].items())
        yield f"  Of the forecast step: {', '.join(shares)}."
    if cell["fullest_expert_rank"]:
        yield (
            f"  The fullest expert-parallel rank got {cell['fullest_expert_rank']:.2f} times the mean rank's tokens; "
            "the forecast takes all for equally full."
        )
    if cell["published"]:
        yield f"  Published for the model: {cell['published']}."


def _run(cell: dict[str, Any]) -> Iterator[str]:
    """Where a run's time went; the forecast is of the steps alone."""
    run = cell["run_seconds"]
    whole = sum(run[name] for name in TIMES)
    width = max(map(len, TIMES.values()))
    yield f"  {'time of a run':<{width}}  {'seconds':>10}  {'share':>6}"
    for name, words in TIMES.items():
        if run[name] or name == "steps":
            forecast = f"  (forecast {run['forecast_steps']:,.1f})" if name == "steps" else ""
            yield f"  {words:<{width}}  {run[name]:>10,.1f}  {_percent(run[name] / whole):>6}{forecast}"


def _seconds(value: float) -> str:
    return f"{1000 * value:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
