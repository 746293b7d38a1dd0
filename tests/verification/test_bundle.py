"""A bundle says what it is, tells no more than it should, and its report can be made again, bit for bit."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import hashes

from octavo.errors import OctavoError
from octavo.files import sha256
from octavo.layout import ExperimentFolder
from octavo.privacy import leak, redact
from octavo.verification.archive import unpack
from octavo.verification.bundle import _check_secrets, _label_hosts, verify_bundle, write_bundle
from tests.tiny import octavo

CONTEXT: dict[str, Any] = {
    # the terms of the RO-Crate 1.1 and Workflow Run Crate contexts that are not schema.org's own names, as
    # https://w3id.org/ro/crate/1.1/context and https://w3id.org/ro/terms/workflow-run/context define them
    "@vocab": "http://schema.org/",
    "File": "http://schema.org/MediaObject",
    "path": "http://schema.org/contentUrl",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "ComputerLanguage": "http://schema.org/ComputerLanguage",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
}


@pytest.fixture(scope="module")
def alone(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment as an archive, without the report of its ablation: half as much to make again."""
    root = tmp_path_factory.mktemp("alone") / "checkout"
    shutil.copytree(whole, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_ROOT", str(root))
        patch.chdir(root)
        folder = ExperimentFolder(Path("results/synthetic"))
        shutil.rmtree(folder.path / "ablations")
        return write_bundle(folder, root / "bundle.zip")


def rewrite(archive: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """The archive with other contents for some members."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
    return target


def test_tables_figures_and_pdf_are_made_again_to_the_last_bit(bundle: Path, tmp_path: Path) -> None:
    """In an empty folder, by the command that a reader would type."""
    done = octavo(tmp_path, "verify", "--bundle", str(bundle))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("made again from the runs, are the same bytes") == 2
    assert "synthetic/few_experts" in done.stdout


def test_a_report_older_than_its_verification_is_not_packed(folder: ExperimentFolder, root: Path) -> None:
    """The report has a page about the verification: made again from the archive it would be other bytes."""
    (folder.figures / ".snakemake_timestamp").touch()
    assert octavo(root, "verify", "results/synthetic", "--sample", "0").returncode == 0
    done = octavo(root, "bundle", "results/synthetic")
    assert done.returncode == 1
    assert "report.html, report.pdf would be other bytes" in done.stderr
    assert not (folder.path / "bundle.zip").exists()
    assert octavo(root, "report", "results/synthetic").returncode == 0
    done = octavo(root, "bundle", "results/synthetic")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder.path / "bundle.zip") as packed:
        assert not [name for name in packed.namelist() if "/." in name]


def test_seeds_that_were_changed_and_looks_are_packed(folder: ExperimentFolder, root: Path, tmp_path: Path) -> None:
    """The report says that its seeds were changed: without the earlier plan it would be other bytes."""
    shutil.rmtree(folder.path / "ablations")
    folder.seed_plans.write_text(json.dumps({"schema_version": 1, "plans": [[1, 2, 3], [1, 2]]}))
    folder.look(2).parent.mkdir()
    folder.look(2).write_text(json.dumps({"schema_version": 1, "after": 2, "cells": []}))
    for verb in ("claims", "figures", "report"):
        assert octavo(root, verb, "results/synthetic").returncode == 0
    archive = write_bundle(folder, tmp_path / "bundle.zip")
    with zipfile.ZipFile(archive) as packed:
        assert {"results/synthetic/seeds.json", "results/synthetic/looks/2.json"} <= set(packed.namelist())
    assert not [one for one in verify_bundle(archive) if one.status in ("damaged", "different")]


def test_the_same_results_make_the_same_archive(bundle: Path, folder: ExperimentFolder, tmp_path: Path) -> None:
    assert write_bundle(folder, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_what_was_changed_in_an_archive_is_named(alone: Path, tmp_path: Path) -> None:
    name = "results/synthetic/figures/loss.csv"
    with zipfile.ZipFile(alone) as packed:
        content = packed.read(name)
    changed = rewrite(alone, tmp_path / "changed.zip", {name: content.replace(b"1", b"2", 1)})
    found = {(one.run, one.status): one.note for one in verify_bundle(changed)}
    assert found["bundle", "damaged"] == f"{name} is not what ro-crate-metadata.json describes"
    assert found["figures/loss.csv", "different"] == "made again it has other bytes"


def test_an_unzipped_bundle_is_made_again_like_the_archive(alone: Path, tmp_path: Path) -> None:
    """From the folder alone, in which nothing is changed; other bytes and missing files are named."""
    unzipped = tmp_path / "unzipped"
    with zipfile.ZipFile(alone) as packed:
        packed.extractall(unzipped)
    before = {path: path.read_bytes() for path in unzipped.rglob("*") if path.is_file()}
    done = octavo(tmp_path, "verify-bundle", "unzipped")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("made again from the runs, are the same bytes") == 1
    assert {path: path.read_bytes() for path in unzipped.rglob("*") if path.is_file()} == before
    data = unzipped / "results/synthetic/figures/loss.csv"
    data.write_bytes(data.read_bytes().replace(b"1", b"2", 1))
    found = {(one.run, one.status): one.note for one in verify_bundle(unzipped)}
    name = "results/synthetic/figures/loss.csv"
    assert found["bundle", "damaged"] == f"{name} is not what ro-crate-metadata.json describes"
    data.unlink()
    with pytest.raises(OctavoError, match=f"the folder lacks '{name}', which its metadata describes"):
        verify_bundle(unzipped)
    with pytest.raises(OctavoError, match=r"the folder has no ro-crate-metadata\.json"):
        verify_bundle(unzipped / "results")


def test_what_is_outdated_is_named_and_not_packed(folder: ExperimentFolder, root: Path) -> None:
    """A claim that the verdicts were made without."""
    claims = root / "configs" / "claims"
    (claims / "13-new.yaml").write_text(
        (claims / "02-fp8-loss-error.yaml").read_text().replace("number: 2", "number: 13")
    )
    done = octavo(root, "bundle", "results/synthetic")
    assert done.returncode == 1
    assert "the results are outdated: tables: claims.json is of before" in done.stderr
    assert not (folder.path / "bundle.zip").exists()


def test_it_is_a_workflow_run_crate(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the RO-Crate validator, every check that the profile requires. Contexts come from here: no network."""
    from rdflib.plugins.shared.jsonld import context as jsonld
    from rocrate_validator import models, services

    monkeypatch.setattr(jsonld.Context, "_fetch_context", lambda *_: {"@context": CONTEXT})
    crate = tmp_path / "crate"
    unpack(bundle, crate)
    settings = services.ValidationSettings(
        rocrate_uri=str(crate),  # type: ignore[arg-type]
        profile_identifier="workflow-run-crate-0.5",
        requirement_severity=models.Severity.REQUIRED,
        skip_checks=["ro-crate-1.1_3.1", "ro-crate-1.1_3.2"],  # that the contexts can be fetched
    )
    result = services.validate(settings)
    assert [f"{issue.check.identifier}: {issue.message}" for issue in result.get_issues()] == []
    assert result.passed()


def test_no_home_and_no_checkout_is_in_it(bundle: Path, whole: Path) -> None:
    with zipfile.ZipFile(bundle) as packed:
        everything = b"".join(packed.read(name) for name in packed.namelist())
    assert f"{whole}/".encode() not in everything
    assert f"{Path.home()}/".encode() not in everything


def test_what_the_attempts_say_of_an_error_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    said = f"no such file: {tmp_path}/results/x, {Path.home()}/y, /home/else/z, /root/w, /Users/else/v; HF_TOKEN=hf_123"
    assert redact(said) == "no such file: results/x, ~/y, ~/z, ~/w, ~/v; HF_TOKEN=..."
    assert leak(said) is not None
    assert leak(redact(said)) is None


def with_text(folder: ExperimentFolder, text: str) -> None:
    """The text as an error in the attempts, with all hashes made to fit."""
    run = folder.run("moe-bf16", 1)
    value = json.loads(run.attempts.read_text())
    run.attempts.write_text(json.dumps({**value, "error": text}) + "\n")
    result = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**result, "files_sha256": hashes(run)}))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cannot open /home/somebody/.netrc", "somebody's home folder: /home/somebody"),
        ("cannot open /root/.netrc", "/root"),  # this machine's, or somebody's
        ("cannot open /Users/somebody/x", "somebody's home folder: /Users/somebody"),
        ("WANDB_API_KEY=0123 is refused", "named like a secret: WANDB_API_KEY="),
    ],
)
def test_other_peoples_homes_and_secrets_are_refused(
    folder: ExperimentFolder, tmp_path: Path, text: str, named: str
) -> None:
    with_text(folder, text)
    with pytest.raises(OctavoError, match=named) as refused:
        write_bundle(folder, tmp_path / "bundle.zip")
    assert refused.value.where == "results/synthetic/runs/moe-bf16/seed-1/attempts.jsonl"
    assert not (tmp_path / "bundle.zip").exists()


def test_a_home_in_a_table_is_refused(tmp_path: Path) -> None:
    """A table is compressed: its bytes do not show what it says."""
    path = tmp_path / "attempts.parquet"
    frame = pd.DataFrame({"nodes": [f"/home/somebody/{n}" for n in range(50)]})
    frame.to_parquet(path, compression="zstd", use_dictionary=False)
    assert b"/home/somebody/49" not in path.read_bytes()
    with pytest.raises(OctavoError, match="/home/somebody"):
        _check_secrets(tmp_path)


def test_what_is_damaged_is_not_packed(folder: ExperimentFolder, root: Path) -> None:
    folder.report_pdf.write_bytes(folder.report_pdf.read_bytes() + b" ")
    done = octavo(root, "bundle", "results/synthetic")
    assert done.returncode == 1
    assert "report: report.pdf is not what was made" in done.stderr
    assert not list(folder.path.glob("*bundle.zip*"))


def test_a_variable_outside_the_allow_list_is_refused(folder: ExperimentFolder, tmp_path: Path) -> None:
    path = folder.run("moe-bf16", 1).provenance
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "environment": {"AWS_SECRET_ACCESS_KEY": "x"}}))
    result = folder.run("moe-bf16", 1).result
    files = {**json.loads(result.read_text())["files_sha256"], path.name: sha256(path)}
    result.write_text(json.dumps({**json.loads(result.read_text()), "files_sha256": files}))
    with pytest.raises(OctavoError, match="AWS_SECRET_ACCESS_KEY"):
        write_bundle(folder, tmp_path / "bundle.zip")


def test_no_checkpoint_and_no_text_is_in_it(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as packed:
        names = packed.namelist()
    assert not [name for name in names if "checkpoints" in name or name.endswith((".bin", ".idx"))]


def test_computers_have_labels_instead_of_their_names(folder: ExperimentFolder, tmp_path: Path) -> None:
    """`node0` in every attempt and error becomes `node-1`, and the tables are what `octavo aggregate` makes of that."""
    with_text(folder, "node0: cannot reach node0.cluster:29500")

    def said(archive: Path) -> str:
        unpack(archive, tmp_path / archive.stem)
        results = tmp_path / archive.stem / "results" / "synthetic"
        attempts = "".join(path.read_text() for path in results.rglob("attempts.jsonl"))
        return attempts + str(pd.read_parquet(results / "attempts.parquet")["nodes"].unique())

    labelled = said(write_bundle(folder, tmp_path / "labelled.zip"))
    assert "node0" not in labelled
    assert '"node-1: cannot reach node-1.cluster:29500"' in labelled
    assert "['node-1']" in labelled
    assert "['node0']" in said(write_bundle(folder, tmp_path / "named.zip", host_names=True))


def test_the_nodes_of_ranks_have_the_labels_of_the_attempt(tmp_path: Path) -> None:
    attempt = {"start": "2026-01-01T00:00:00Z", "host": "gpu1", "nodes": ["gpu[1-2]"]}
    attempt |= {"ranks": [{"rank": 0, "node": "gpu1"}, {"rank": 1, "node": "gpu2"}]}
    (tmp_path / "attempts.jsonl").write_text(f"{json.dumps(attempt)}\n")
    _label_hosts(tmp_path, ExperimentFolder(tmp_path / "results" / "x"))
    labelled = json.loads((tmp_path / "attempts.jsonl").read_text())
    assert labelled["nodes"] == ["node-1,node-2"]
    assert [rank["node"] for rank in labelled["ranks"]] == ["node-1", "node-2"]
