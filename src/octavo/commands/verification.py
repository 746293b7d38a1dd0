"""`octavo verify`, `octavo trace`, `octavo bundle`: are results whole, made again the same, and where are they from?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from octavo.commands.named import ExperimentArgument, enter
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.records import VerificationCheck

GATES = ("repeatability", "restart", "baseline")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(verify)
    app.command()(trace)
    app.command()(bundle)


def verify(
    context: typer.Context,
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="EXPERIMENT", help="laptop, results/laptop or configs/experiments/laptop.yaml."),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Runs to make again per gate; 0: look at the files alone.")] = 1,
    gates: Annotated[str, typer.Option(help="Which: any of repeatability,restart,baseline.")] = ",".join(GATES),
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Make runs again up to this step only.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Instead: make a bundle's report again, without training.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Instead: compare with results/reference/EXPERIMENT.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Instead: print what verification.json holds.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Leave with status 0 also when something differs; --check tells it later.")
    ] = False,
) -> None:
    """Check the files, then train a sample of the runs again beside them; status 1 when something differs.

    Writes verification.json. A run made again up to a step is the same run, told to stop there: its schedule is not
    shortened.
    """
    _check_options(context)
    if bundle is not None:
        from octavo.verification.bundle import verify_bundle

        _end(verify_bundle(bundle), str(bundle))
    if experiment is None:
        raise OctavoError("no experiment is named", where="octavo verify", expected="EXPERIMENT, or --bundle FILE")
    against = against and against.absolute()
    folder = enter(experiment)
    if against is not None:
        from octavo.verification.reference import compare

        _end(compare(folder, against), str(against))
    if check:
        from octavo.records import VerificationFile, read_record

        found = read_record(folder.verification, VerificationFile, made_by=f"octavo verify {folder.path}")
        _end(found.checks, str(folder.verification))
    from octavo.verification.verify import verify as verify_results

    chosen = list(dict.fromkeys(gate.strip() for gate in gates.split(",") if gate.strip()))
    if unknown := sorted(set(chosen) - set(GATES)):
        raise OctavoError(f"there is no gate {unknown[0]!r}", where="--gates", expected=f"any of {', '.join(GATES)}")
    found = verify_results(folder, sample=sample, gates=chosen, seed=seed, steps=steps)
    _end(found.checks, str(folder.verification), record=record)


ALONE = {"bundle": "--bundle", "against": "--against", "check": "--check"}
"""What `octavo verify` does instead of looking at files and training again: it has no other options then."""


def _check_options(context: typer.Context) -> None:
    """Refuse an option that another one leaves without a meaning."""
    given = [
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    for instead in (name for name in ALONE if name in given):
        allowed = {instead} if instead == "bundle" else {instead, "experiment"}
        if others := [name for name in given if name not in allowed]:
            shown = "EXPERIMENT" if others[0] == "experiment" else f"--{others[0]}"
            raise OctavoError(
                f"{shown} has no meaning beside {ALONE[instead]}", where="octavo verify", fix="leave one of them out"
            )


def trace(
    number: Annotated[
        str,
        typer.Argument(
            help="cells.<cell>.<column>, comparisons.<cell>/<baseline>.<axis>.<key>, claims.2.effect, "
            "runs.<run>.<column>, attempts.<run>/<attempt>.<column>, steps.<run>/<step>.<column>, plan.<cell>.<column>"
        ),
    ],
    results: Annotated[Path, typer.Option(help="The experiment: its name, results folder or YAML file.")] = Path(
        "laptop"
    ),
    ablation: Annotated[str | None, typer.Option(help="In the tables and verdicts of this ablation's report.")] = None,
) -> None:
    """Follow a number of the report to its runs, attempts, steps, configuration, data, image, lock and commit."""
    from octavo.verification.trace import trace as follow

    for line in follow(enter(results), number, ablation):
        typer.echo(line)


def bundle(
    experiment: ExperimentArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: results/EXPERIMENT/bundle.zip")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="Instead: write results/reference/EXPERIMENT, to be published.")
    ] = False,
) -> None:
    """Pack the runs without checkpoints, and what was made of them, as an RO-Crate that makes the same again."""
    output = output and output.absolute()
    folder = enter(experiment)
    if reference:
        from octavo.verification.reference import write_reference

        typer.echo(write_reference(folder, output or folder.path.parent / "reference" / folder.name))
        return
    from octavo.files import atomic_path
    from octavo.verification.bundle import verify_bundle, write_bundle

    archive = output or folder.path / "bundle.zip"
    with atomic_path(archive) as temporary:  # an archive is one only when its report could be made again from it
        write_bundle(folder, temporary)
        different = [one.run for one in verify_bundle(temporary) if one.status != "identical"]
        if different:
            raise OctavoError(
                f"made again from the runs, {', '.join(different)} would be other bytes: it is old, or was changed",
                where=folder.path,
                expected="a report that was made of these results by this Octavo",
                fix=f"snakemake --profile workflow/profiles/local --forcerun aggregate -- {folder.report_pdf}",
            )
    typer.echo(archive)


def _end(checks: Sequence[VerificationCheck], what: str, *, record: bool = False) -> NoReturn:
    """Print the checks and leave: status 1 when one of them failed, unless that is only to be recorded."""
    for one in checks:
        typer.echo(f"{one.gate:<14} {one.run:<34} {one.status:<24} {one.note}")
    passed = not any(one.status in ("damaged", "different") for one in checks)
    typer.echo(f"{'passed' if passed else 'FAILED'}: {what}")
    raise typer.Exit(0 if passed or record else 1)
