"""Seeds: a list, or a design that adds them until decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.files import write_json
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import Look
from tests.synthetic import write_experiment


def experiment(root: Path, seeds: Any) -> Experiment:
    write_experiment(root, cells=[], ablations={}, precisions=("bf16",), changes={"seeds": seeds})
    return load_experiment("synthetic", ConfigFolders(root / "configs"))


def test_a_list_stays_as_it_is(tmp_path: Path) -> None:
    found = experiment(tmp_path, [7, 3])
    assert found.file.all_seeds == found.file.first_seeds == [7, 3]
    assert len(list(found.runs())) == 2 * 2


def test_a_design_asks_for_its_first_seeds_and_then_for_what_looks_ask_for(tmp_path: Path) -> None:
    found = experiment(tmp_path, {"from": 3, "to": 8})
    folder = ExperimentFolder(tmp_path / "results" / "synthetic")
    assert found.file.all_seeds == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.seeds_of("moe-bf16", folder) == [1, 2, 3]
    write_json(folder.look(3), Look(after=3, cells=["moe-bf16"]).model_dump(mode="json"))
    write_json(folder.look(4), Look(after=4, cells=[]).model_dump(mode="json"))
    assert found.seeds_of("moe-bf16", folder) == [1, 2, 3, 4]
    assert found.seeds_of("dense-bf16", folder) == [1, 2, 3]
    assert found.run("moe-bf16", 8).seed == 8


@pytest.mark.parametrize(
    "seeds", [{"from": 3, "to": 3}, {"from": 1, "to": 4}, {"from": 3}, {"from": 3, "to": 8, "by": 1}, []]
)
def test_a_wrong_design_is_an_error_of_its_line(tmp_path: Path, seeds: Any) -> None:
    with pytest.raises(OctavoError) as caught:
        experiment(tmp_path, seeds)
    text = yaml.safe_load((tmp_path / "configs" / "experiments" / "synthetic.yaml").read_text())
    assert text["seeds"] == seeds
    assert "seeds" in f"{caught.value.where} {caught.value}"
