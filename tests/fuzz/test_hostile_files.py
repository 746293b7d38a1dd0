"""Mutants of everything that Octavo reads are taken or refused: no traceback, no "unexpected", no crash, no hang.

Each mutant is one file changed, seeded by its number, and one verb on it in a process of its own. By default a few of
each kind; `OCTAVO_FUZZ=5000 pytest tests/fuzz` tries that many in all, and `OCTAVO_FUZZ_FROM` is the first number.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from synthetic import ABLATIONS, write_experiment

from octavo.layout import ExperimentFolder, RunFolder
from tests.fuzz import mutants
from tests.imports.test_imports import MEGATRON, TORCHTITAN
from tests.tiny import Checkout, copy_configs

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["tests.fuzz.test_hostile_files", "octavo.cli", "octavo.evidence.verdicts", "octavo.imports.runs", "pandas",
     "pyarrow.parquet", "pyarrow.json", "octavo.verification.archive"]
)  # fmt: skip
CPU_SECONDS = 60
"""A verb on these files takes one. CPU time does not depend on what else the machine does."""
MEMORY = 8 << 30
DEFAULT = 120
"""Mutants of all kinds."""
SHARES = {"configuration": 0.3, "run": 0.3, "table": 0.1, "bundle": 0.15, "import": 0.15}

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A file to change, and the verb that reads it."""

    path: Path
    mutate: Mutate
    command: tuple[str, ...]


def numbers(kind: str) -> range:
    count = round(SHARES[kind] * int(os.environ.get("OCTAVO_FUZZ", DEFAULT)))
    first = int(os.environ.get("OCTAVO_FUZZ_FROM", "0"))
    return range(first, first + count)


def run(root: Path, command: tuple[str, ...], said: Path) -> None:
    """In a process of its own: a verb, what it says into a file."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    os.environ["OCTAVO_ROOT"] = str(root)
    from octavo import cli

    if command[0] == "unpack":
        from octavo.errors import OctavoError
        from octavo.verification.archive import unpack

        try:
            unpack(Path(command[1]), Path(command[2]))
        except OctavoError as error:
            cli.fail(error)
        return
    sys.argv = ["octavo", *command]
    cli.main()


def outcome(root: Path, command: tuple[str, ...], said: Path) -> str:
    """`taken`, `refused`, or what went wrong."""
    process = PROCESSES.Process(target=run, args=(root, command, said))
    process.start()
    process.join(20 * CPU_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hangs"
    text = said.read_text(errors="replace") if said.exists() else ""
    if process.exitcode < 0:
        return f"ends by signal {-process.exitcode}"
    if "this is a bug" in text or "Traceback" in text or process.exitcode not in (0, 1):
        return f"says: {text[-2000:]}"
    if process.exitcode and not text.startswith("error: ") and "\nerror: " not in text:
        return f"fails without a word: {text[-2000:]}"
    return "refused" if process.exitcode else "taken"


def campaign(kind: str, root: Path, targets: list[Target], scratch: Path) -> None:
    """Every mutant of a kind; all that went wrong in one message, with the numbers that make it again."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    for number in numbers(kind):
        dice = random.Random(f"{kind} {number}")
        target = dice.choice(targets)
        content = target.path.read_bytes()
        mutant = target.mutate(content, dice)
        target.path.write_bytes(mutant)
        try:
            found = outcome(root, target.command, scratch / "said.txt")
        finally:
            target.path.write_bytes(content)
            shutil.rmtree(scratch / "unpacked", ignore_errors=True)
        counts[found if found in ("taken", "refused") else "wrong"] += 1
        if found not in ("taken", "refused"):
            (scratch / f"{kind}-{number}").write_bytes(mutant)
            wrong.append(f"{kind} {number}: {target.path.relative_to(root)}: octavo {' '.join(target.command)} {found}")
    print(f"{kind}: {dict(counts)}")
    assert not wrong, "\n\n".join(wrong[:20])
    assert counts["refused"] > counts.total() / 10, "mutants that are hardly ever refused test nothing"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with runs, tables and verdicts of a synthetic experiment."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_ROOT", str(root))
        patch.chdir(root)
        write_experiment(root, seeds=(1, 2), steps=20, ablations={"few_experts": ABLATIONS["few_experts"]})
        copy_configs(root)
        said = root / "said.txt"
        for verb in ("aggregate", "claims"):
            assert outcome(root, (verb, "results/synthetic"), said) == "taken", said.read_text()
        said.unlink()
    return root


def test_configurations(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    configs = checkout.root / "configs"
    targets = [Target(configs / "experiments" / "tiny.yaml", mutants.mutant_of_yaml, ("check", "tiny"))] * 4
    targets += [Target(configs / "clusters" / "laptop.yaml", mutants.mutant_of_yaml, ("check", "tiny"))]
    targets += [Target(configs / "clusters" / "devices" / "cpu.yaml", mutants.mutant_of_yaml, ("check", "tiny"))]
    targets += [
        Target(path, mutants.mutant_of_yaml, command)
        for path, command in (
            (configs / "experiments" / "tiny.yaml", ("plan", "results/tiny")),
            (configs / "models" / "deepseek-v3.yaml", ("models",)),
            (configs / "published" / "statements.yaml", ("published",)),
            (configs / "published" / "runs" / "deepseek-v3.yaml", ("published",)),
        )
    ]
    assert outcome(checkout.root, ("check", "tiny"), tmp_path / "said.txt") == "taken"
    campaign("configuration", checkout.root, targets, tmp_path)


def test_run_files(finished: Path, tmp_path: Path) -> None:
    folder = ExperimentFolder(finished / "results" / "synthetic")
    run: RunFolder = folder.run("moe-bf16", 1)
    aggregate, status = ("aggregate", "results/synthetic"), ("status", "results/synthetic")
    targets = [
        Target(path, mutants.mutant_of_json, command)
        for path in (run.metrics, run.attempts, run.provenance, run.result)
        for command in (aggregate, aggregate, status)
    ]
    targets += [Target(run.routing, mutants.mutant_of_bytes, ("claims", "results/synthetic"))]
    campaign("run", finished, targets, tmp_path)


def test_tables(finished: Path, tmp_path: Path) -> None:
    folder = ExperimentFolder(finished / "results" / "synthetic")
    claims = ("claims", "results/synthetic")
    tables = (folder.runs_table, folder.steps_table, folder.attempts_table)
    targets = [Target(path, mutants.mutant_of_bytes, claims) for path in tables]
    trace = ("trace", "claims.2.effect", "--results", "results/synthetic")
    targets += [Target(path, mutants.mutant_of_json, trace) for path in (folder.claims, folder.comparisons)]
    claim = finished / "configs" / "claims" / "02-fp8-loss-error.yaml"
    targets += [Target(claim, mutants.mutant_of_yaml, claims)]
    campaign("table", finished, targets, tmp_path)


def test_bundles(finished: Path, tmp_path: Path) -> None:
    """The way into the archive; `tests/verification` makes the reports of whole ones."""
    import json
    import zipfile

    from octavo.verification.archive import allowed

    paths = [path for path in finished.rglob("*") if path.is_file()]
    files = {name: path.read_bytes() for path in paths if allowed(name := path.relative_to(finished).as_posix())}
    graph = [{"@id": name, "sha256": "0", "contentSize": str(len(content))} for name, content in files.items()]
    root = tmp_path / "bundles"
    root.mkdir()
    archive = root / "bundle.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in {**files, "ro-crate-metadata.json": json.dumps({"@graph": graph}).encode()}.items():
            packed.writestr(zipfile.ZipInfo(name), content)
    command = ("unpack", str(archive), str(tmp_path / "unpacked"))
    assert outcome(root, command, tmp_path / "said.txt") == "taken", (tmp_path / "said.txt").read_text()
    shutil.rmtree(tmp_path / "unpacked")
    campaign("bundle", root, [Target(archive, mutants.mutant_of_zip, command)], tmp_path)


def test_imports(tmp_path: Path) -> None:
    root = Checkout(tmp_path / "checkout").root
    targets: list[Target] = []
    csv = "step,tokens,loss\n" + "".join(f"{step},{step * 10},{9 - step / 100}\n" for step in range(1, 40))
    for name, log in (("megatron_log", MEGATRON), ("torchtitan_log", TORCHTITAN), ("csv", csv)):
        folder = root / name
        folder.mkdir()
        (folder / "a.log").write_text(log)
        (folder / "b.log").write_text(log.replace("9.5", "9.4").replace("8.9", "8.8"))  # no log is two runs'
        cell = {"sequence_length": 4096, "devices": 8, "device_kind": "H100"}
        value = {
            "description": "d", "format": name,
            "cells": [
                {"architecture": "dense", "precision": "bf16", "runs": {"1": "a.log"}, **cell},
                {"architecture": "moe", "precision": "bf16", "runs": {"1": "b.log"}, **cell},
            ],
        }  # fmt: skip
        if name == "csv":
            value["columns"] = {"step": "step", "tokens": "tokens", "loss": "loss"}
        file = folder / "theirs.yaml"
        file.write_text(yaml.safe_dump(value, sort_keys=False))
        command = ("import", f"results/{name}", str(file))
        assert outcome(root, command, tmp_path / "said.txt") == "taken", (tmp_path / "said.txt").read_text()
        targets += [Target(file, mutants.mutant_of_yaml, command)]
        targets += [Target(folder / "a.log", mutants.mutant_of_log, command)]
    campaign("import", root, targets, tmp_path)
