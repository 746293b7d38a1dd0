"""An experiment file becomes cells and runs; every mistake names file, key, value and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.experiment.config import BpeTokenizer, BytesTokenizer, Data, FileSource, FileTokenizer, Parallelism
from octavo.experiment.load import experiment_with_data, load_experiment, vocabulary_size
from octavo.experiment.run import Experiment, data_identifier, read_run_config
from octavo.layout import ConfigFolders
from octavo.models.parameters import count_parameters

Load = Callable[..., Experiment]


def error_of(load: Load, changes: dict[str, Any] | None = None, **files: dict[str, Any]) -> str:
    with pytest.raises(OctavoError) as caught:
        load(changes, **files)
    return str(caught.value)


def test_the_grid_is_architecture_by_precision_and_then_the_ablations(load: Load) -> None:
    experiment = load()
    assert list(experiment.cells) == [
        "dense-bf16", "dense-fp8_blockwise", "moe-bf16", "moe-fp8_blockwise", "moe-bf16+shared",
    ]  # fmt: skip
    assert len(list(experiment.runs())) == 5 * 2
    assert [cell.cell for cell in experiment.ablation_cells("shared")] == ["moe-bf16", "moe-bf16+shared"]


def test_an_ablation_changes_what_it_names_and_nothing_else(load: Load) -> None:
    cells = load().cells
    base, ablated = cells["moe-bf16"], cells["moe-bf16+shared"]
    assert ablated.model.experts is not None
    assert ablated.model.experts.shared_size == 64
    restored = ablated.model.model_copy(update={"experts": base.model.experts})
    assert restored == base.model
    assert ablated.training == base.training


def test_the_vocabulary_is_the_tokenizers(load: Load) -> None:
    assert load().cells["dense-bf16"].model.vocabulary_size == 257  # 256 bytes and the end of a document


def test_a_run_config_reads_back_as_it_was_written(load: Load, tmp_path: Path) -> None:
    run = load().run("moe-fp8_blockwise", 2)
    path = tmp_path / "config.yaml"
    path.write_text(run.to_yaml())
    again = read_run_config(path)
    assert again == run
    assert again.run_fingerprint == run.run_fingerprint


def test_a_changed_cell_changes_its_own_fingerprints_alone(load: Load) -> None:
    before = {name: cell.fingerprint for name, cell in load().cells.items()}
    after = {
        name: cell.fingerprint
        for name, cell in load({"overrides": {"moe": {"training.optimizer.learning_rate": 2e-3}}}).cells.items()
    }
    assert {name for name in before if before[name] != after[name]} == {
        "moe-bf16",
        "moe-fp8_blockwise",
        "moe-bf16+shared",
    }


def test_how_often_a_run_is_saved_does_not_change_what_it_is(load: Load) -> None:
    a, b = load().run("dense-bf16", 1), load({"training.checkpoints.interval": 2}).run("dense-bf16", 1)
    assert a.run_fingerprint == b.run_fingerprint


@pytest.mark.parametrize(
    ("cell", "changes", "same"),
    [
        ("dense-bf16", {"parallelism.data": 2}, True),
        ("dense-bf16", {"parallelism.pipeline": 2, "training.recompute": ["norms"]}, True),
        ("dense-bf16", {"training.micro_batch_size": 1}, True),
        ("moe-bf16", {"overrides": {"moe": {"parallelism.data": 2, "parallelism.expert": 2}}}, True),
        ("moe-bf16", {"training.micro_batch_size": 1}, True),  # its auxiliary loss has no weight
        ("moe-bf16", {"training.micro_batch_size": 1, "models.moe.experts.router": {"aux_loss_weight": 0.01}}, False),
        ("dense-bf16", {"training.global_batch_size": 8}, False),
        ("dense-bf16", {"training.threads": 2}, False),
        ("dense-bf16", {"training.optimizer.distributed": True}, False),
    ],
)
def test_a_layout_changes_bits_and_not_what_is_computed(
    load: Load, cell: str, changes: dict[str, Any], same: bool
) -> None:
    router = {one: value for one, value in changes.items() if one.startswith("models.")}
    before, after = load(router).run(cell, 1), load(changes).run(cell, 1)
    assert before.run_fingerprint != after.run_fingerprint
    made: Any = SimpleNamespace(
        run_fingerprint=before.run_fingerprint, computation_fingerprint=before.own_identity.computation_fingerprint
    )
    assert after.own_identity.holds(made) == same
    strict = load({**changes, "training.checkpoints.resharding": "forbid"}).run(cell, 1)
    assert strict.run_fingerprint == after.run_fingerprint
    assert not strict.own_identity.holds(made)
    made.computation_fingerprint = None  # of a file from before it was recorded
    assert not after.own_identity.holds(made)
    assert before.own_identity.holds(made)


def test_a_layout_in_words(load: Load) -> None:
    assert load().cells["dense-bf16"].layout == "data 1, micro-batch 2"
    cell = load({"training.recompute": ["norms"]}).cells["dense-bf16"]
    other = cell.model_copy(update={"parallelism": Parallelism(tensor=2, pipeline=2, sequence=True, data=4)})
    assert other.layout == "tensor 2, pipeline 2, sequence parallel, data 4, micro-batch 2, recomputed: norms"


def test_seeds_have_fingerprints_of_their_own(load: Load) -> None:
    experiment = load()
    assert experiment.run("dense-bf16", 1).run_fingerprint != experiment.run("dense-bf16", 2).run_fingerprint


def test_runs_are_longer_with_more_parameters_more_tokens_and_emulated_eight_bits(load: Load) -> None:
    few = {"description": "fewer steps", "cells": ["dense-bf16"], "change": {"training.steps": 5}}
    of = load({"ablations": {"short": few}})
    dense, moe = (count_parameters(of.cells[f"{name}-bf16"].model).total for name in ("dense", "moe"))
    lengths = of.relative_lengths
    assert max(lengths.values()) == 100
    assert lengths["dense-bf16"] / lengths["moe-bf16"] == pytest.approx(dense / moe, abs=0.01)
    steps = of.cells["dense-bf16"].training.total_steps
    assert lengths["dense-bf16+short"] / lengths["dense-bf16"] == pytest.approx(5 / steps, abs=0.02)
    assert lengths["moe-fp8_blockwise"] == lengths["moe-bf16"]  # the experiment's device is a GPU
    laptop = load_experiment("laptop")
    assert laptop.relative_lengths["moe-bf16"] == round(100 / 1.1)


def test_tokens_become_whole_steps(load: Load) -> None:
    """4 sequences x 32 tokens = 128 a step; 1,000 tokens are 7 whole steps."""
    cell = load({"training.steps": ..., "training.tokens": 1000}).cells["dense-bf16"]
    assert cell.training.total_steps == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.stepz": 1}, ["unknown key 'stepz'", "training.stepz", "steps"]),
        ({"training.tokens": 5000}, ["steps or tokens"]),
        ({"training.steps": "ten"}, ["'ten'", "training.steps", "integer"]),
        ({"precisions": ["fp8"]}, ["'fp8'", "precisions", "fp8_blockwise"]),
        ({"precisions": ["bf16", "bf16"]}, ["dense-bf16 is there twice", "precisions.1"]),
        ({"seeds": []}, ["seeds", "at least 1"]),
        ({"seeds": [1, 2, 1]}, ["seeds", "1 is there twice"]),
        ({"seeds": [2**32]}, ["seeds.0", "less than 4294967296"]),
        ({"ablations.shared.cells": ["moe-bf16", "moe-bf16"]}, ["ablations.shared.cells", "'moe-bf16' is there twice"]),
        ({"models": {"my-model": "x"}}, ["my-model"]),
        ({"models": {"dense": "absent"}}, ["no model 'absent'", "models.dense"]),
        ({"models.moe.experts.top_k": 9}, ["top_k", "9 of 8"]),
        ({"models.dense.attention.head_size": 15}, ["models.dense.attention.head_size", "15", "multiple of 2"]),
        ({"training.optimizer.learning_rate": float("inf")}, ["training.optimizer.learning_rate", "inf", "finite"]),
        ({"training.optimizer.beta1": 1.0}, ["training.optimizer.beta1", "less than 1"]),
        ({"training.schedule": {"warmup_fraction": 1.0}}, ["training.schedule.warmup_fraction", "less than 1"]),
        ({"models.dense.feed_forward_size": ...}, ["feed_forward_size is missing"]),
        ({"models.dense.vocabulary_size": 100}, ["vocabulary", "100 < 257", "models.dense"]),
        ({"cluster": "two"}, ["no cluster 'two'", "one of one"]),
        ({"training.global_batch_size": 3}, ["does not divide", "global_batch_size 3", "multiple of 2"]),
        ({"parallelism": {"tensor": 3}}, ["tensor parallelism 3", "heads: 4"]),
        ({"parallelism": {"pipeline": 4}}, ["pipeline parallelism 4", "layers: 2"]),
        ({"parallelism": {"data": 2, "expert": 2}}, ["dense", "without experts", "overrides"]),
        ({"parallelism": {"expert": 2}}, ["expert: 2 must divide"]),
        ({"parallelism": {"sequence": True}}, ["sequence: true needs tensor > 1"]),
        ({"overrides": {"mow": {"training.steps": 2}}}, ["unknown model 'mow'", "dense, moe"]),
        ({"ablations.shared.cells": ["moe-fp4"]}, ["'moe-fp4' is not in the grid", "moe-bf16"]),
        (
            {"ablations.shared.change": {"model.experts.shred": 1}},
            ["'model.experts.shred'", "model.experts.shared_size"],
        ),
        (
            {"models.dense.attention.hed_size": 3},
            ["unknown key 'hed_size'", "models.dense.attention.hed_size", "one of head_size, heads, kind"],
        ),
        ({"models.dense.attention.kv_heads": 3}, ["models.dense.attention\n", "3 does not divide 4"]),
        ({"models.dense.attention.kind": "mqa"}, ["'mqa'", "models.dense.attention.kind", "one of 'gqa', 'mla'"]),
        ({"data.sources": [{"path": "text"}]}, ["key 'kind' is missing", "data.sources.0.kind"]),
        ({"models.dense": 3}, ["wrong value: 3", "models.dense\n"]),
        ({"models.dense.layers": 10**9}, ["models.dense.layers", "less than or equal to 10000"]),
        (
            {"overrides": {"moe": {"training.optimizer.learning_rate": "x"}}},
            ["'x'", "overrides.moe.training.optimizer.learning_rate"],
        ),
        (
            {"overrides": {"moe": {"training.optimizer": {"learning_rate": 1e-3, "bta1": 0.9}}}},
            ["unknown key 'bta1'", "overrides.moe.training.optimizer.bta1", "beta1"],
        ),
        ({"ablations.shared.change": {"data.split_seed": 1}}, ["'data.split_seed'", "model, precision"]),
        (
            {"ablations.shared.change": {"model.experts.top_k": 99}},
            ["99 of 8", "ablations.shared.change.model.experts.top_k"],
        ),
        (
            {"match": {"by": "active_parameters", "tolerance": 0.02}, "models.dense.feed_forward_size": 256},
            # 2 x (4 x 64 x 64 + 3 x 64 x 256 + 2 x 64) + 64 + 257 x 64; and with 2 of 8 experts of 64 and a router
            ["not matched in active_parameters", "dense has 147,840", "moe has 99,712", "at most 2.0%"],
        ),
        ({"match": {"by": "luck", "tolerance": 0.02}}, ["'luck'", "match.by", "active_parameters"]),
    ],
)
def test_bad_experiments_are_refused(load: Load, changes: dict[str, Any], words: list[str]) -> None:
    message = error_of(load, changes)
    assert "small.yaml" in message
    for word in words:
        assert word in message
    for tag in ("gqa", "dict[", "literal[", "Precision", "[key]"):
        assert f".{tag}" not in message, "no file holds it"


def test_more_devices_than_the_cluster_has(load: Load) -> None:
    message = error_of(load, {"parallelism": {"data": 16}, "training.global_batch_size": 32})
    assert "asks for 16 devices" in message
    assert "at most the 8" in message


def test_a_recipe_that_the_device_cannot_do(load: Load) -> None:
    message = error_of(load, device={"compute_capability": "8.0"})
    assert "fp8_blockwise" in message
    assert "8.0" in message


def test_a_price_that_is_not_given(load: Load) -> None:
    assert "price: ownership needs the section ownership" in error_of(load, cluster={"price": "ownership"})


def test_an_unknown_experiment_lists_those_there(load: Load, tmp_path: Path) -> None:
    load()
    with pytest.raises(OctavoError, match="missing") as caught:
        load_experiment("smal", ConfigFolders(tmp_path))
    assert "there are: small" in str(caught.value)


def test_a_missing_tokenizer_names_the_line_that_asks_for_it(load: Load) -> None:
    message = error_of(load, {"tokenizer": {"kind": "file", "path": "gone.json", "end_of_document": "<eod>"}})
    assert "the tokenizer's file cannot be read: No such file" in message
    assert re.search(r"asked by: .*small\.yaml:\d+ tokenizer", message)


def test_vocabulary_sizes(tmp_path: Path) -> None:
    assert vocabulary_size(BytesTokenizer()) == 257
    assert vocabulary_size(BpeTokenizer(vocabulary_size=512)) == 512
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 7, "content": "<eod>"}]}))
    assert vocabulary_size(FileTokenizer(path=str(path), end_of_document="<eod>")) == 8
    path.write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []}))  # Unigram
    assert vocabulary_size(FileTokenizer(path=str(path), end_of_document="b")) == 2
    path.write_text("{}")
    with pytest.raises(OctavoError, match="not a Hugging Face tokenizer"):
        vocabulary_size(FileTokenizer(path=str(path), end_of_document="<eod>"))


def test_text_that_experiments_share_is_a_file_that_they_name(load: Load, tmp_path: Path) -> None:
    written_out = load()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shared.yaml").write_text("sources:\n- {kind: files, path: text}\n")
    named = load({"data": "shared"})
    assert named.file == written_out.file
    assert named.run("dense-bf16", 1).run_fingerprint == written_out.run("dense-bf16", 1).run_fingerprint
    identifier = data_identifier(named.file.data, named.file.tokenizer)
    assert experiment_with_data(identifier, ConfigFolders(tmp_path)) == "small"


def test_errors_of_shared_text_name_its_own_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shared.yaml").write_text("sources:\n- {kind: files, paht: text}\n")
    assert "shared.yaml:2 sources.0.paht" in error_of(load, {"data": "shared"})
    said = error_of(load, {"data": "sharde"})
    assert "no text 'sharde'" in said
    assert "small.yaml:" in said
    assert "one of shared" in said


def test_a_data_set_is_found_beside_broken_experiments(load: Load, tmp_path: Path) -> None:
    identifier = data_identifier(load().file.data, load().file.tokenizer)
    (tmp_path / "experiments" / "broken.yaml").write_text("data: [")
    assert experiment_with_data(identifier, ConfigFolders(tmp_path)) == "small"


def test_data_sets_are_shared_by_what_they_are() -> None:
    data = Data(sources=[FileSource(path="text")])
    assert data_identifier(data, BytesTokenizer()) == data_identifier(data.model_copy(), BytesTokenizer())
    assert data_identifier(data, BytesTokenizer()) != data_identifier(data, BpeTokenizer(vocabulary_size=512))
