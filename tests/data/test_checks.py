"""Text and tokenizers that do not fit the experiment are told by `octavo check` and `octavo data`, before any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models

from octavo.data import checks
from octavo.data.checks import check_text, shares
from octavo.experiment.load import load_experiment
from tests.tiny import TINY, Checkout, changed, octavo

HELD_OUT = 320
"""Bytes of the held-out document. With its end 321 tokens: ten sequences of 32, and the token that follows the last."""


def checkout(root: Path, changes: dict[str, Any] | None = None) -> Checkout:
    found = Checkout(root, changed(TINY, changes or {}))
    (root / "text" / "document-0.txt").write_text("abcdefgh" * (HELD_OUT // 8))
    return found


def refused(root: Path, verb: str) -> str:
    """What a verb says on its way out: one message."""
    done = octavo(root, verb, "tiny")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


SHORT = "domain 'text' has 10 held-out sequences of 32 tokens"


def test_text_too_short_for_the_validation_asked_for(tmp_path: Path) -> None:
    """Counted where it is read byte by byte, asked of the manifest where it is prepared: the data set stays."""
    place = checkout(tmp_path, {"training.evaluation.final_sequences": 11})
    for verb in ("check", "data", "check"):
        said = refused(tmp_path, verb)
        assert SHORT in said
        assert "training.evaluation.final_sequences: 11" in said
        assert "configs/experiments/tiny.yaml:" in said
    assert list(tmp_path.glob("results/data/*/manifest.json"))
    assert not (tmp_path / "results" / "tiny").exists()
    place.write(changed(TINY, {"training.evaluation.final_sequences": 10}))
    place.octavo("check", "tiny")
    place.octavo("data", "tiny")


def test_only_tokenising_tells_how_long_text_is_to_a_trained_tokenizer(tmp_path: Path) -> None:
    """It makes at most as many tokens as bytes, so fewer than the eleven sequences asked for."""
    place = checkout(
        tmp_path,
        {"tokenizer": {"kind": "bpe", "vocabulary_size": 260}, "training.evaluation.final_sequences": 11},
    )
    place.octavo("check", "tiny")
    for verb in ("data", "check"):
        assert "held-out sequences of 32 tokens" in refused(tmp_path, verb)


def test_cells_that_differ_in_length_are_each_asked(tmp_path: Path) -> None:
    checkout(tmp_path, {"ablations": {"long": {"description": "Longer.", "cells": ["moe-bf16"],
                                               "change": {"training.sequence_length": 64}}}})  # fmt: skip
    said = refused(tmp_path, "check")
    assert "has 5 held-out sequences of 64 tokens" in said
    assert "(cell moe-bf16+long)" in said


@pytest.mark.parametrize("verb", ["check", "data"])
def test_a_text_key_that_is_not_there(tmp_path: Path, verb: str) -> None:
    checkout(tmp_path, {"data.sources": [{"kind": "files", "path": "lines", "text_key": "content"}]})
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text("".join(f"{json.dumps({'text': 'words'})}\n" for _ in range(9)))
    said = refused(tmp_path, verb)
    assert "there is no text under 'content'" in said
    assert "lines/a.jsonl:1" in said
    assert "data.sources.0" in said
    assert not list(tmp_path.glob("results/data/*"))


@pytest.mark.parametrize("verb", ["check", "data"])
def test_a_tokenizer_without_the_end_of_a_document(tmp_path: Path, verb: str) -> None:
    tokenizer = {"kind": "file", "path": "tokenizer.json", "end_of_document": "</s>"}
    tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    checkout(tmp_path, {"tokenizer": tokenizer})
    said = refused(tmp_path, verb)
    assert "the tokenizer has no token '</s>'" in said
    assert "tokenizer.end_of_document" in said
    assert not list(tmp_path.glob("results/data/*"))


def test_much_text_is_not_counted_before_it_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path, {"training.evaluation.final_sequences": 11})
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "COUNTED_BYTES", HELD_OUT)
    check_text(load_experiment("tiny"))


def test_sequences_are_dealt_to_the_domains_in_order() -> None:
    """Five to two domains: three and two."""
    assert shares({"prose": 0, "code": 0}, 5) == {"code": 3, "prose": 2}
