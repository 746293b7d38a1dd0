"""A bundle says what it is, tells no more than it should, and its report can be made again, bit for bit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from verbs import octavo

from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder
from octavo.verification.bundle import unpack, verify_bundle, write_bundle

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


@pytest.fixture
def bundle(folder: ExperimentFolder, tmp_path: Path) -> Path:
    return write_bundle(folder, tmp_path / "bundle.zip")


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


def test_the_same_results_make_the_same_archive(bundle: Path, folder: ExperimentFolder, tmp_path: Path) -> None:
    assert write_bundle(folder, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_what_was_changed_in_an_archive_is_named(bundle: Path, tmp_path: Path) -> None:
    name = "results/synthetic/figures/loss.csv"
    with zipfile.ZipFile(bundle) as packed:
        content = packed.read(name)
    changed = rewrite(bundle, tmp_path / "changed.zip", {name: content.replace(b"1", b"2", 1)})
    found = {(one.run, one.status): one.note for one in verify_bundle(changed)}
    assert found["bundle", "damaged"] == f"{name} is not what ro-crate-metadata.json describes"
    assert found["figures/loss.csv", "different"] == "made again it has other bytes"


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


def test_no_home_and_no_checkout_is_in_it(bundle: Path, folder: ExperimentFolder, root: Path, tmp_path: Path) -> None:
    run = folder.run("moe-bf16", 1)
    text = run.attempts.read_text().replace('"error":null', f'"error":"no such file: {root}/x and {Path.home()}/y"')
    run.attempts.write_text(text)
    again = write_bundle(folder, tmp_path / "again.zip")
    with zipfile.ZipFile(again) as packed:
        everything = b"".join(packed.read(name) for name in packed.namelist())
    assert b"no such file: ~/x and ~/y" in everything
    assert f"{root}/".encode() not in everything
    assert f"{Path.home()}/".encode() not in everything


def test_a_file_that_names_the_home_folder_is_refused(folder: ExperimentFolder, tmp_path: Path) -> None:
    path = folder.path / "plan.csv"
    path.write_text(f"cell\n{Path.home()}/secret\n")
    with pytest.raises(OctavoError, match="names a place of this machine"):
        write_bundle(folder, tmp_path / "bundle.zip")


def test_a_variable_outside_the_allow_list_is_refused(folder: ExperimentFolder, tmp_path: Path) -> None:
    path = folder.run("moe-bf16", 1).provenance
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "environment": {"AWS_SECRET_ACCESS_KEY": "x"}}))
    with pytest.raises(OctavoError, match="AWS_SECRET_ACCESS_KEY"):
        write_bundle(folder, tmp_path / "bundle.zip")


def test_no_checkpoint_and_no_text_is_in_it(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as packed:
        names = packed.namelist()
    assert not [name for name in names if "checkpoints" in name or name.endswith((".bin", ".idx"))]


@pytest.mark.parametrize("name", ["../outside", "/outside", "results/../../outside"])
def test_an_archive_cannot_write_outside(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(name, "x")
    with pytest.raises(OctavoError, match="which no bundle does"):
        unpack(archive, tmp_path / "inside/deep")
    assert not list(tmp_path.rglob("outside"))


def test_an_archive_cannot_hold_a_link(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        packed.writestr(member, "/etc/passwd")
    with pytest.raises(OctavoError, match="which no bundle does"):
        unpack(archive, tmp_path / "inside")
