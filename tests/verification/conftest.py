"""An experiment whose runs cost nothing: written by `synthetic`, with tables, verdicts and a data set of two files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from synthetic import ABLATIONS, hashes, write_experiment
from typer.testing import CliRunner

from octavo.cli import app
from octavo.experiment.load import load_experiment
from octavo.experiment.run import data_identifier
from octavo.files import sha256
from octavo.layout import ExperimentFolder, data_folder
from octavo.verification.bundle import write_bundle
from tests.tiny import REPOSITORY, copy_configs, copy_workflow, made_once


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a finished experiment `synthetic`: two seeds of four cells and an ablation, with reports."""
    return made_once(tmp_path_factory, "whole", _make_whole)


def _make_whole(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_ROOT", str(root))
        patch.chdir(root)
        folder = write_experiment(root, seeds=(1, 2), steps=40, ablations={"few_experts": ABLATIONS["few_experts"]})
        copy_configs(root)
        copy_workflow(root)
        shutil.copy(REPOSITORY / "configs/experiments/h100-node.yaml", root / "configs/experiments")  # claim 8's plan
        shutil.copy(REPOSITORY / "requirements.lock", root)
        experiment = load_experiment("synthetic")
        data = root / data_folder(data_identifier(experiment.file.data, experiment.file.tokenizer))
        write_data(data)
        digest = sha256(data / "manifest.json")
        for run in folder.run_folders():
            for path in (run.provenance, run.result):
                value = json.loads(path.read_text())
                value["data_manifest_sha256"] = digest
                if path == run.result:
                    value["files_sha256"] = hashes(run)
                path.write_text(json.dumps(value, indent=2))
        verbs = [["plan", "results/synthetic"]]
        for ablation in ([], ["--ablation", "few_experts"]):
            verbs += [[verb, "results/synthetic", *ablation] for verb in ("aggregate", "claims", "figures", "report")]
        for verb in verbs:
            done = CliRunner().invoke(app, verb)
            assert done.exit_code == 0, done.exception


def write_data(folder: Path) -> None:
    """A data set that has its manifest's hashes."""
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(bytes(range(200)))
    (folder / "train.idx").write_bytes(b"index")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in ("train.bin", "train.idx")
    }
    counts = {"text": {"documents": 1, "tokens": 100, "bytes": 200}}
    manifest = {
        "schema_version": 1,
        "identifier": folder.name,
        "sources": [{"name": "text", "kind": "files", "license": None, "sha256": {}, "documents": 1}],
        "splits": {"train": counts, "validation": counts},
        "vocabulary_size": 257,
        "end_of_document": 256,
        "token_type": "uint16",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def root(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkout, which is also the working directory."""
    copy = tmp_path / "checkout"
    shutil.copytree(whole, copy)
    monkeypatch.setenv("OCTAVO_ROOT", str(copy))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def folder(root: Path) -> ExperimentFolder:
    """The experiment's results, relative to the working directory as on the command line."""
    return ExperimentFolder(Path("results/synthetic"))


@pytest.fixture(scope="session")
def bundle(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment as an archive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_ROOT", str(whole))
        patch.chdir(whole)
        return write_bundle(
            ExperimentFolder(Path("results/synthetic")), tmp_path_factory.mktemp("bundle") / "bundle.zip"
        )
