"""An experiment as one archive that says what it is, and from which its report can be made again without training.

An RO-Crate (https://w3id.org/ro/crate/1.1) of the Workflow Run Crate profile 0.5 (arXiv 2312.07852): the pipeline is
the workflow, and making the report from the runs the action. Inside, files lie where they lie in a checkout: unpacked,
the archive is one, as far as a report needs. The same results give the same bytes.

No checkpoint is in it, no text, no variable outside the trainer's allow-list, and nothing that `octavo.privacy` finds:
no path of a home folder or of the checkout, no secret's value, and no computer's name. What is damaged
or outdated is not packed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import octavo
from octavo.errors import OctavoError, shown
from octavo.evidence.verdicts import named_plans, read_claims
from octavo.experiment.config import FileTokenizer
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment, data_identifier
from octavo.files import atomic_path, sha256, write_json
from octavo.layout import ExperimentFolder, RunFolder, data_folder, repository
from octavo.privacy import Labels, leak, own_path
from octavo.records import AttemptRecord, Provenance, VerificationCheck, read_lines, read_record
from octavo.training.provenance import ALLOWED_ENVIRONMENT
from octavo.verification.archive import METADATA, TOKENIZER, allowed, described_hashes, unpack
from octavo.verification.integrity import check_files, scopes

PROFILES = (
    "https://w3id.org/ro/wfrun/process/0.5",
    "https://w3id.org/ro/wfrun/workflow/0.5",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
)
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can hold: all of its members have it."""

MADE = (
    "runs.parquet",
    "steps.parquet",
    "attempts.parquet",
    "claims.json",
    "comparisons.json",
    "report.hashes.json",
    "report.html",
    "report.pdf",
)
"""What is made of the runs, beside the figures, of an experiment and of each ablation that has a report."""
LADDER = ("ladder.csv", "leverage.json")
"""What is made besides of an experiment with a ladder of sizes."""


def write_bundle(folder: ExperimentFolder, target: Path, *, host_names: bool = False) -> Path:
    """Write the archive. Raises OctavoError where something is missing or damaged, or tells what it must not.

    Unless `host_names`, the computers that runs were on are `node-1`, `node-2`, ... in it.
    """
    experiment = load_experiment(folder.name)
    root = repository()
    files = dict(sorted(_files(experiment, folder, root)))
    made = [*MADE, *(LADDER if experiment.rungs else ())]
    missing = [name for name in made if f"results/{folder.name}/{name}" not in files]
    if missing or not folder.figures.is_dir():
        raise OctavoError(
            f"the experiment has no {missing[0] if missing else 'figures'} yet",
            where=folder.path,
            fix=f"snakemake {folder.report_pdf}",
        )
    checks = check_files(experiment, folder)
    if damaged := [one for one in checks if one.status == "damaged"]:
        raise OctavoError(
            f"{damaged[0].run}: {damaged[0].note}",
            where=folder.path,
            expected="results that are whole",
            fix=f"see all that is damaged: octavo verify {folder.path} --sample 0",
        )
    if outdated := [f"{one.run}: {one.note}" for one in checks if one.status == "outdated"]:
        raise OctavoError(
            f"the results are outdated: {'; '.join(outdated)}",
            where=folder.path,
            expected="results that were made with the configuration that is packed with them",
            fix="make them again from the same runs: "
            f"snakemake --profile workflow/profiles/local -- {folder.plan_csv} {folder.report_pdf}",
        )
    with tempfile.TemporaryDirectory() as name:
        crate = Path(name) / "crate"
        for place, path in files.items():
            (crate / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, crate / place)
        if not host_names:
            staged = ExperimentFolder(crate / "results" / folder.name)
            _label_hosts(crate, staged)
            for _, ablation in _reported(folder):
                _run("aggregate", crate, folder.name, ablation)
            shutil.rmtree(staged.parts, ignore_errors=True)
        _check_secrets(crate)
        _describe(crate, experiment, sorted(files))
        _zip(crate, target)
    return target


def verify_bundle(archive: Path) -> list[VerificationCheck]:
    """Make tables, verdicts, figures and report again from what is in the archive, and compare them byte for byte.

    A folder that a bundle was unzipped into is packed first, and goes the way of an archive: nothing in it is changed.
    """
    with tempfile.TemporaryDirectory() as name:
        if archive.is_dir():
            archive = _packed_again(archive, Path(name) / "bundle.zip")
        root = Path(name) / "bundle"
        experiment = unpack(archive, root)
        checks = [
            _check("bundle", f"{name} is not what {METADATA} describes", "damaged")
            for name, digest in described_hashes(root).items()
            if sha256(root / name) != digest
        ]
        for scope, ablation in scopes(ExperimentFolder(root / "results" / experiment)):
            checks += _make_again(root, experiment, scope.path, ablation)
        return checks


def _make_again(root: Path, experiment: str, folder: Path, ablation: str | None) -> Iterator[VerificationCheck]:
    """The report of an experiment, or of one ablation, from the runs in an unpacked archive against what was there."""
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name) / "kept"
        shutil.copytree(folder, kept)
        ladder = [name for name in LADDER if (kept / name).exists()]
        files = [*MADE, *ladder]
        for made in [*files, "figures"]:
            shutil.rmtree(folder / made) if (folder / made).is_dir() else (folder / made).unlink(missing_ok=True)
        for verb in ("aggregate", *(("ladder",) if ladder else ()), "claims", "figures", "report"):
            _run(verb, root, experiment, ablation)
        figures = sorted({f"figures/{path.name}" for path in [*kept.glob("figures/*"), *folder.glob("figures/*")]})
        what = f"{experiment}/{ablation}" if ablation else experiment
        different = [
            made
            for made in [*files, *figures]
            if not (kept / made).exists()
            or not (folder / made).exists()
            or (kept / made).read_bytes() != (folder / made).read_bytes()
        ]
        for made in different:
            place = f"ablations/{ablation}/{made}" if ablation else made
            yield _check(place, "made again it has other bytes", "different")
        if not different:
            note = f"{len(files)} files and {len(figures)} of figures, made again from the runs, are the same bytes"
            yield _check(what, note, "identical")


# --- what goes in ---------------------------------------------------------------------------------------------------


def _files(experiment: Experiment, folder: ExperimentFolder, root: Path) -> Iterator[tuple[str, Path]]:
    """(place in the archive, file)."""
    results = f"results/{folder.name}"
    tokenizer = experiment.file.tokenizer
    data = data_folder(data_identifier(experiment.file.data, tokenizer)) / "manifest.json"
    published = (
        [experiment.file.ladder.published] if experiment.file.ladder and experiment.file.ladder.published else []
    )
    planned = named_plans(read_claims(experiment.configs, experiment), experiment.configs)
    names = dict.fromkeys((experiment.name, *published, *planned))
    wanted = [root / "configs" / "experiments" / f"{name}.yaml" for name in names]
    wanted += [root / data, root / "requirements.lock"]
    wanted += [root / "Snakefile", *(path for path in (root / "workflow").rglob("*"))]
    for part in ("models", "data", "clusters", "claims", "published"):
        wanted += (root / "configs" / part).rglob("*")
    for path in wanted:
        if path.is_file() and allowed(name := path.relative_to(root).as_posix()):
            yield name, path
    if isinstance(tokenizer, FileTokenizer):
        if not TOKENIZER.fullmatch(tokenizer.path):
            raise OctavoError(
                f"the tokenizer is in {shown(tokenizer.path)}",
                where=experiment.path,
                expected="a .json file by its path from the checkout: others find it nowhere else",
            )
        yield tokenizer.path, root / tokenizer.path
    made = [
        path
        for scope, _ in _reported(folder)
        for path in [
            *(scope.path / one for one in (*MADE, *LADDER)),
            scope.seed_plans,
            *scope.path.glob("looks/*.json"),
            *scope.figures.glob("[!.]*"),  # Snakemake's timestamp is hidden
        ]
    ]
    for path in [
        folder.plan_csv,
        folder.plan_pdf,
        folder.plan_steps,
        folder.prediction,
        folder.verification,
        folder.sacct,
        *made,
    ]:
        if path.exists():
            yield f"{results}/{path.relative_to(folder.path).as_posix()}", path
    for run in folder.run_folders():
        for place in [run, *(RunFolder(path) for path in run.superseded.glob("*"))]:
            for path in (place.config, place.metrics, place.attempts, place.provenance, place.routing, place.result):
                if path.exists():
                    yield f"{results}/{path.relative_to(folder.path).as_posix()}", path


def _reported(folder: ExperimentFolder) -> list[tuple[ExperimentFolder, str | None]]:
    """The experiment, and its ablations that have a report of their own."""
    return [(scope, ablation) for scope, ablation in scopes(folder) if ablation is None or scope.report_pdf.exists()]


def _label_hosts(crate: Path, folder: ExperimentFolder) -> None:
    """Give computers labels in the attempts that a bundle holds, in the order in which runs began on them.

    A result holds the hash of its attempts, so it is made to fit.
    """
    labels = Labels()
    attempts = {
        path: [json.loads(line) for line in _whole_lines(path)] for path in sorted(crate.rglob("attempts.jsonl"))
    }
    for attempt in sorted((one for lines in attempts.values() for one in lines), key=lambda one: str(one["start"])):
        attempt["nodes"] = [labels.of(nodes) for nodes in attempt["nodes"]]
        attempt["host"] = labels.of(attempt["host"])
        for rank in attempt.get("ranks", []):
            rank["node"] = labels.of(rank["node"])
    for path, lines in attempts.items():
        for attempt in lines:
            attempt["error"] = attempt.get("error") and labels.within(attempt["error"])
        path.write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
        result = RunFolder(path.parent).result
        if result.exists():
            value = json.loads(result.read_bytes())
            value["files_sha256"][path.name] = sha256(path)
            write_json(result, value)
    if folder.sacct.exists():
        value = json.loads(folder.sacct.read_bytes())
        for row in value["rows"]:
            row["nodes"] = labels.of(row["nodes"])
        write_json(folder.sacct, value)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without a last one that its writer did not finish."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _check_secrets(crate: Path) -> None:
    for path in sorted(path for path in crate.rglob("*") if path.is_file()):
        name = path.relative_to(crate).as_posix()
        if found := _leak(path):
            raise OctavoError(
                f"the file names {found}",
                where=name,
                expected="nothing that is this machine's or somebody's own",
                fix="use paths relative to the checkout, then make the results again",
            )
        if path.name == "provenance.json":
            recorded = read_record(path, Provenance, made_by="octavo train")
            if unknown := sorted(set(recorded.environment) - set(ALLOWED_ENVIRONMENT)):
                raise OctavoError(
                    f"the provenance holds the environment variable {unknown[0]}",
                    where=name,
                    expected=f"only {', '.join(ALLOWED_ENVIRONMENT)}",
                )


def _leak(path: Path) -> str | None:
    """What a file tells that it must not. Of packed ones, in which chance makes short patterns, places and tables."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    if path.suffix not in (".pdf", ".png", ".parquet"):
        return leak(text)
    texts = _texts(path) if path.suffix == ".parquet" else iter(())
    return own_path(text) or next((found for one in texts if (found := leak(one))), None)


def _texts(path: Path) -> Iterator[str]:
    """Every text in a table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    yield str(table.schema.metadata)
    for column in table.columns:
        if pa.types.is_string(column.type):
            yield "\n".join(str(one) for one in pc.unique(column).to_pylist())


# --- the crate ------------------------------------------------------------------------------------------------------


def _describe(crate: Path, experiment: Experiment, names: list[str]) -> None:
    """Write ro-crate-metadata.json."""
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    results = f"results/{experiment.name}"
    folder = ExperimentFolder(crate / results)
    ended = _last_end(folder)
    described = ROCrate(version="1.1")
    described.name = f"Octavo: {experiment.name}"
    described.description = experiment.file.description
    described.datePublished = ended
    described.license = "Apache-2.0"
    described.root_dataset["conformsTo"] = [
        described.add(ContextEntity(described, uri, {"@type": "CreativeWork", "name": uri, "version": uri[-3:]}))
        for uri in PROFILES
    ]
    software = {"@type": "SoftwareApplication", "name": "Octavo", "softwareVersion": octavo.__version__}
    agent = described.add(ContextEntity(described, "#octavo", software))
    files: dict[str, Any] = {}
    for name in names:
        path = crate / name
        properties = {
            "name": name,
            "contentSize": str(path.stat().st_size),
            "encodingFormat": FORMATS.get(path.suffix, "text/plain"),
            "sha256": sha256(path),
        }
        if name == "Snakefile":
            files[name] = described.add_workflow(path, name, main=True, lang="snakemake", properties=properties)
            continue
        files[name] = described.add_file(path, name, properties=properties)
    made = [
        entity
        for name, entity in files.items()
        if Path(name).name in MADE or name.startswith((f"{results}/figures/", f"{results}/ablations/"))
    ]
    read = [
        entity
        for name, entity in files.items()
        if name.startswith((f"{results}/runs/", "configs/", "results/data/")) or name == "requirements.lock"
    ]
    action = described.add_action(
        files["Snakefile"],
        identifier="#report",
        object=read,
        result=made,
        properties={
            "name": f"Making {results}/report.pdf",
            "description": f"snakemake {results}/report.pdf",
            "startTime": _first_start(folder).isoformat(),
            "endTime": ended.isoformat(),
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
    )
    action["agent"] = agent
    described.root_dataset["mentions"] = [action]
    described.metadata.extra_contexts.append("https://w3id.org/ro/terms/workflow-run/context")  # sha256
    described.metadata.write(crate)


FORMATS = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".csv": "text/csv",
    ".pdf": "application/pdf",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".html": "text/html",
    ".parquet": "application/vnd.apache.parquet",
}


def _attempts(folder: ExperimentFolder) -> list[AttemptRecord]:
    return [one for run in folder.run_folders() for one in read_lines(run.attempts, AttemptRecord)]


def _first_start(folder: ExperimentFolder) -> datetime:
    return min((one.start for one in _attempts(folder)), default=datetime(1970, 1, 1, tzinfo=UTC))


def _last_end(folder: ExperimentFolder) -> datetime:
    ends = [one.end for one in _attempts(folder) if one.end]
    return max(ends, default=datetime(1970, 1, 1, tzinfo=UTC))


def _zip(crate: Path, target: Path) -> None:
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(path for path in crate.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(path.relative_to(crate).as_posix(), EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            packed.writestr(member, path.read_bytes())


def _packed_again(unzipped: Path, target: Path) -> Path:
    """The files of an unzipped bundle that its metadata describe, as an archive; later files are not the bundle's."""
    if not (unzipped / METADATA).is_file():
        raise OctavoError(
            f"the folder has no {METADATA}",
            where=unzipped,
            expected="what `octavo bundle` wrote, or the folder that it was unzipped into",
        )
    described = described_hashes(unzipped)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in [METADATA, *sorted(described)]:
            path = unzipped / name
            if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(unzipped.resolve()):
                raise OctavoError(
                    f"the folder lacks {shown(name)}, which its metadata describes",
                    where=unzipped,
                    expected="a bundle's files, all of them",
                    fix="unzip the archive again",
                )
            packed.write(path, name)
    return target


MOST_SECONDS = 3600
MOST_MEMORY = 32 << 30
"""Of addresses, a verb: several times what 10,000 runs of 1,000 steps take."""

OWN_CODE = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MOST_MEMORY}, {MOST_MEMORY}))
sys.path.insert(0, sys.argv.pop(1))
from octavo.cli import main
main()
"""
"""A verb of the very Octavo that runs this, whatever the working directory and the environment have to offer."""


def _run(verb: str, root: Path, name: str, ablation: str | None) -> None:
    """One verb on an unpacked archive, by this Octavo's code and templates alone.

    Python is isolated (-I): it looks for modules neither in the working directory nor where environment variables or
    the user's own folders point to.
    """
    source = str(Path(octavo.__file__).resolve().parents[1])
    verb_and_arguments = [verb, f"results/{name}", *(["--ablation", ablation] if ablation else [])]
    environment = {key: value for key, value in os.environ.items() if key != "OCTAVO_TRACEBACK"}
    with subprocess.Popen(
        [sys.executable, "-I", "-c", OWN_CODE, source, *verb_and_arguments],
        cwd=root,
        env={**environment, "OCTAVO_ROOT": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # to end it with all that it started
    ) as done:
        try:
            said = done.communicate(timeout=MOST_SECONDS)[1].strip().removeprefix("error: ")
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)
            said = f"it took longer than {MOST_SECONDS:,} s"
        except BaseException:
            os.killpg(done.pid, signal.SIGKILL)
            raise
    if not done.returncode:
        return
    said = said or f"it was ended by {signal.Signals(-done.returncode).name}"
    raise OctavoError(
        f"octavo {verb} refuses what is in the archive: {said}",
        where=f"results/{name}",
        expected="results that a report can be made of",
    )


def _check(run: str, note: str, status: Any) -> VerificationCheck:
    return VerificationCheck(gate="integrity", run=run, status=status, note=note)
