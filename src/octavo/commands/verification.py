"""Are results whole, made again the same, and where are they from?

`octavo verify` looks and trains again, `octavo verification` tells what it found, `octavo compare` holds results
against published ones, `octavo verify-bundle` makes a bundle's report again, `octavo trace` follows a number,
`octavo bundle` packs, `octavo index` puts experiments and bundles side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer
from typer.core import TyperCommand

from octavo.commands.named import ExperimentArgument, ablation_name, enter, enter_trained
from octavo.errors import OctavoError, no_such

if TYPE_CHECKING:
    from octavo.records import VerificationCheck

GATES = ("repeatability", "restart", "baseline")


class FormerSpellings(TyperCommand):
    """`octavo verify`, which also takes the words that other verbs had when they were options of this one."""

    VERBS: ClassVar[dict[str, str]] = {"--against": "compare", "--check": "verification", "--bundle": "verify-bundle"}

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Become the verb of a former option; what that verb does not know, it refuses itself."""
        parts = [part for one in args for part in (one.split("=", 1) if one.startswith(tuple(self.VERBS)) else [one])]
        for option, verb in self.VERBS.items():
            if option in parts:
                at = parts.index(option)
                positional = [*parts[:at], *parts[at + 2 :], *parts[at + 1 : at + 2]]  # the option's value comes last
                return parent.command.commands[verb].make_context(verb, positional, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(cls=FormerSpellings)(verify)
    app.command()(verification)
    app.command()(compare)
    app.command()(verify_bundle)
    app.command()(trace)
    app.command()(bundle)
    app.command()(index)


def verify(
    experiment: ExperimentArgument,
    sample: Annotated[int, typer.Option(min=0, help="Runs to make again per gate; 0: look at the files alone.")] = 1,
    gates: Annotated[str, typer.Option(help="Which: any of repeatability,restart,baseline.")] = ",".join(GATES),
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Make runs again up to this step only.")] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Leave with status 0 also when something differs; `octavo verification` tells it later."
        ),
    ] = False,
) -> None:
    """Check the files, then train a sample of the runs again beside them; status 1 when something differs.

    Writes verification.json, but in an unzipped bundle, of which nothing is changed. A run made again up to a step is
    the same run, told to stop there: its schedule is not shortened.
    """
    from octavo.verification.verify import verify as verify_results

    folder = enter_trained(experiment)
    chosen = list(dict.fromkeys(gate.strip() for gate in gates.split(",") if gate.strip()))
    if unknown := sorted(set(chosen) - set(GATES)):
        raise no_such("gate", unknown[0], GATES, where="--gates")
    found = verify_results(folder, sample=sample, gates=chosen, seed=seed, steps=steps)
    written = folder.verification if folder.verification.exists() else folder.path  # nothing is, in a bundle
    _end(found.checks, str(written), record=record)


def verification(experiment: ExperimentArgument) -> None:
    """Print what the last `octavo verify` found, without looking again; status 1 when something differed."""
    from octavo.records import VerificationFile, read_record

    folder = enter_trained(experiment)
    found = read_record(folder.verification, VerificationFile, made_by=f"octavo verify {folder.path}")
    _end(found.checks, str(folder.verification))


def compare(
    experiment: ExperimentArgument,
    reference: Annotated[Path, typer.Argument(help="Published results: results/reference/EXPERIMENT.")],
) -> None:
    """Compare results with published ones: losses bit by bit, verdicts, hours, cost; status 1 when something differs.

    On another machine, what rests on time, hours or money is shown and not compared.
    """
    from octavo.verification.reference import compare as compare_results

    reference = reference.absolute()
    found = compare_results(enter_trained(experiment), reference)
    _end(found.checks, f"{reference}: {found.counts}")


def verify_bundle(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="What `octavo bundle` wrote, or the folder it was unzipped into.")
    ],
) -> None:
    """Make the tables, figures and reports in a bundle again, without training; status 1 where a byte differs."""
    from octavo.verification.bundle import verify_bundle as verify_file

    _end(verify_file(bundle), str(bundle))


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
    ablation: Annotated[
        str | None, typer.Option(callback=ablation_name, help="In the tables and verdicts of this ablation's report.")
    ] = None,
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
    host_names: Annotated[
        bool, typer.Option("--host-names", help="Keep the names of computers: else they are node-1, node-2, ...")
    ] = False,
) -> None:
    """Pack the runs without checkpoints, and what was made of them, as an RO-Crate that makes the same again."""
    output = output and output.absolute()
    folder = enter_trained(experiment)
    if reference:
        from octavo.verification.reference import write_reference

        typer.echo(write_reference(folder, output or folder.path.parent / "reference" / folder.name))
        return
    from octavo.files import atomic_path
    from octavo.verification.bundle import verify_bundle, write_bundle

    archive = output or folder.path / "bundle.zip"
    with atomic_path(archive) as temporary:  # an archive is one only when its report could be made again from it
        write_bundle(folder, temporary, host_names=host_names)
        different = [one.run for one in verify_bundle(temporary) if one.status != "identical"]
        if different:
            raise OctavoError(
                f"made again from the runs, {', '.join(different)} would be other bytes: it is old, or was changed",
                where=folder.path,
                expected="a report that was made of these results by this Octavo",
                fix=f"snakemake --profile workflow/profiles/local --forcerun aggregate -- {folder.report_pdf}",
            )
    typer.echo(archive)


def index(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="Others' bundles, shown beside your own results."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: results/index.html")] = None,
) -> None:
    """Write results/index.html: all experiments of results/, and bundles, side by side.

    A bundle's report is made again first: its row says whether every byte is the same.
    """
    from octavo.layout import repository
    from octavo.verification.board import write_index

    others, page = [bundle.absolute() for bundle in bundles or []], output and output.absolute()
    os.chdir(repository())
    results = Path("results")
    typer.echo(write_index(results, others, page or results / "index.html"))


def _end(checks: Sequence[VerificationCheck], what: str, *, record: bool = False) -> NoReturn:
    """Print the checks and leave: status 1 when one of them failed, unless that is only to be recorded."""
    for one in checks:
        typer.echo(f"{one.gate:<14} {one.run:<34} {one.status:<24} {one.note}")
    passed = not any(one.status in ("damaged", "different") for one in checks)
    if outdated := sum(one.status == "outdated" for one in checks):
        typer.echo(f"{outdated} outdated: the pipeline makes them again from the same runs")
    typer.echo(f"{'passed' if passed else 'FAILED'}: {what}")
    raise typer.Exit(0 if passed or record else 1)
