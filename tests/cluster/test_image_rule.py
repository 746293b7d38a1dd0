"""When the image is built again, with a stand-in for Apptainer that writes a few bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.layout import image_file, image_record
from tests.cluster.conftest import Checkout, make_checkout

TARGET = str(image_file("cpu"))
STAND_IN = """#!/bin/sh
case "$1" in
  --version) echo "apptainer version 0" ;;
  build) for last; do image=$before; before=$last; done; echo built > "$image"; echo >> "$0.builds" ;;
  exec) echo package==1.0 ;;
  sif) if [ $2 = dump ]; then echo "partition $3 of" $(cat $4); else cat "$0.list"; fi ;;
esac
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("image")
    (folder / "bin").mkdir()
    (folder / "bin/apptainer").write_text(STAND_IN)
    (folder / "bin/apptainer").chmod(0o755)
    made = make_checkout(folder / "octavo", folder / "bin")
    made.finish(local(made))
    return made


def local(checkout: Checkout, *options: str, target: str = TARGET):
    return checkout.start("snakemake", "--profile", "workflow/profiles/local", *options, "--", target)


def planned(checkout: Checkout) -> bool:
    """Whether the image would be built."""
    return "rule image" in checkout.finish(local(checkout, "--dry-run"))


def test_it_is_recorded(checkout: Checkout) -> None:
    record = json.loads((checkout.root / TARGET).with_suffix(".json").read_text())
    assert record["packages"] == {"pip": ["package==1.0"], "debian": ["package==1.0"]}
    # echo built | sha256sum
    assert record["digest"] == "sha256:56f6e6304d02d413bb7d5d463ac5cdc58551266dc7269b467fc385815f39b913"


def test_what_pyxis_starts_is_taken_out_of_the_image_that_is_there(checkout: Checkout) -> None:
    """`apptainer sif list` of a built image; nothing is built for it."""
    apptainer = checkout.programs[1] / "apptainer"
    apptainer.with_name("apptainer.list").write_text(
        "ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE\n"
        "1    |1       |NONE    |32176-32393               |Def.FILE\n"
        "2    |1       |NONE    |32393-33430               |JSON.Generic\n"
        "4    |1       |NONE    |36864-2199552             |FS (Squashfs/*System/amd64)\n"
    )
    before = apptainer.with_name("apptainer.builds").read_text()
    checkout.finish(local(checkout, target=str(image_file("cpu", "pyxis"))))
    assert (checkout.root / image_file("cpu", "pyxis")).read_text() == "partition 4 of built\n"
    assert apptainer.with_name("apptainer.builds").read_text() == before
    record, whole = (
        json.loads(image_record(checkout.root / image_file("cpu", one)).read_text()) for one in ("pyxis", "apptainer")
    )
    assert record["sif_digest"] == whole["digest"] != record["digest"]


def test_touched_files_and_other_changes_build_nothing(checkout: Checkout) -> None:
    (checkout.root / "container.def").touch()
    (checkout.root / "requirements.lock").touch()
    (checkout.root / "src/octavo/__init__.py").write_text("# changed\n")
    assert not planned(checkout)


@pytest.mark.parametrize("name", ["container.def", "requirements.lock"])
def test_a_changed_definition_or_lock_builds_it_again(checkout: Checkout, name: str) -> None:
    path: Path = checkout.root / name
    text = path.read_text()
    try:
        path.write_text(text + "# changed\n")
        assert planned(checkout)
    finally:
        path.write_text(text)


def test_the_other_variants_lock_builds_nothing(checkout: Checkout) -> None:
    path = checkout.root / "requirements-gpu.lock"
    path.write_text(path.read_text() + "# changed\n")
    assert not planned(checkout)
