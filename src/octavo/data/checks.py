"""Whether an experiment's text suffices: asked of what is prepared or quickly counted, before any run starts.

`octavo check` asks before the text is prepared, as far as that can be told without tokenising it, and after; `octavo
data` when it has prepared it; a run before its first step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np

from octavo.data.documents import is_held_out, read_source, source_files
from octavo.data.manifest import Split, data_set_folder, read_manifest
from octavo.data.tokenizers import build_tokenizer
from octavo.errors import OctavoError, asked_by
from octavo.experiment.config import BytesTokenizer, Data, FileSource, FileTokenizer, PackageSource, Tokenizer, Training
from octavo.experiment.run import Experiment

COUNTED_BYTES = 64 << 20
"""Of text, the most that is read to count its tokens: about a second's work."""

Tokens = Mapping[Split, Mapping[str, int]]
"""Split -> domain -> tokens, ends of documents included."""


def check_text(experiment: Experiment) -> None:
    """Check the text and the tokenizer of an experiment; packages are not fetched.

    Raises OctavoError for local text that is missing, whose first document cannot be read, or that is too short for the
    training or the evaluation of a cell; and for a tokenizer's file that does not fit. How long text is can be told
    where it is prepared, and where it is local, at most `COUNTED_BYTES` and its tokens are bytes.
    """
    data, tokenizer = experiment.file.data, experiment.file.tokenizer
    for number, source in enumerate(data.sources):
        if not isinstance(source, PackageSource):
            with asked_by(experiment.place, "data", "sources", number):
                source_files(source)
                next(read_source(number, source), None)
    if isinstance(tokenizer, FileTokenizer):
        with asked_by(experiment.place, "tokenizer"):
            build_tokenizer(tokenizer, iter(()))
    if (data_set_folder(data, tokenizer) / "manifest.json").exists():
        check_prepared(experiment)
    elif tokens := _counted(data, tokenizer, experiment.place):
        check_domains({(split, domain) for split, domains in tokens.items() for domain in domains}, experiment.place)
        _check_cells(experiment, tokens)


def check_prepared(experiment: Experiment) -> None:
    """Refuse text that was prepared and is too short for the training or the evaluation of a cell."""
    manifest = read_manifest(data_set_folder(experiment.file.data, experiment.file.tokenizer))
    _check_cells(
        experiment,
        {
            split: {domain: count.tokens for domain, count in domains.items()}
            for split, domains in manifest.splits.items()
        },
    )


def _check_cells(experiment: Experiment, tokens: Tokens) -> None:
    for cell in experiment.cells.values():
        with asked_by(lambda *keys, cell=cell: f"{experiment.place(*keys)} (cell {cell.cell})", "training"):
            check_training(sum(tokens["train"].values()), cell.training)
            check_evaluation(tokens["validation"], cell.training)


def _counted(data: Data, tokenizer: Tokenizer, place: Callable[..., str]) -> Tokens | None:
    """The tokens of local text whose tokens are bytes; None of other text, and of more than `COUNTED_BYTES`."""
    if not isinstance(tokenizer, BytesTokenizer):
        return None
    counts: dict[Split, Counter[str]] = {"train": Counter(), "validation": Counter()}
    left = COUNTED_BYTES
    for number, source in enumerate(data.sources):
        if not isinstance(source, FileSource):
            return None
        with asked_by(place, "data", "sources", number):
            for document in read_source(number, source):
                split = counts["validation" if is_held_out(document, data) else "train"]
                split[document.domain] += 1  # its end
                for piece in document.pieces:
                    assert not isinstance(piece, np.ndarray), "text is not tokenised"
                    size = len(piece.encode("utf-8"))
                    split[document.domain] += size
                    left -= size
                    if left < 0:
                        return None
    return counts


def check_domains(found: Collection[tuple[Split, str]], place: Callable[..., str]) -> None:
    """Refuse a domain that has documents in one split alone; `found` are the (split, domain) that have some."""
    for domain in sorted({domain for _, domain in found}):
        for split in ("train", "validation"):
            if (split, domain) not in found:
                raise OctavoError(
                    f"domain {domain!r} has no documents for {split}",
                    where=place("data"),
                    expected="at least one document of every domain in each split",
                    fix="name documents under held_out, or change data.validation_fraction or data.split_seed",
                )


def check_training(tokens: int, training: Training) -> None:
    """Refuse a training split that is not one sequence long."""
    if tokens <= training.sequence_length:
        raise OctavoError(
            f"the training split has {tokens:,} tokens",
            where=f"training.sequence_length: {training.sequence_length}",
            expected=f"more than one sequence of {training.sequence_length:,}",
            fix="train on more text, or on shorter sequences",
        )


def check_evaluation(tokens: Mapping[str, int], training: Training) -> None:
    """Refuse to evaluate on more text than is held out; `tokens` are the held-out ones of each domain."""
    evaluation = training.evaluation
    for key, count in (("sequences", evaluation.sequences), ("final_sequences", evaluation.final_sequences)):
        for domain, wanted in shares(tokens, count).items():
            if (whole := whole_sequences(tokens[domain], training.sequence_length)) < wanted:
                raise OctavoError(
                    f"domain {domain!r} has {whole} held-out sequences of {training.sequence_length:,} tokens",
                    where=f"training.evaluation.{key}: {count}",
                    expected=f"at least {wanted}, the domain's share of them",
                    fix="ask for fewer, or hold out more text",
                )


def shares(domains: Collection[str], count: int) -> dict[str, int]:
    """`count` sequences dealt to the domains."""
    return {domain: count // len(domains) + (at < count % len(domains)) for at, domain in enumerate(sorted(domains))}


def whole_sequences(tokens: int, sequence_length: int) -> int:
    """Sequences, each with the token that follows it, that do not overlap but for that one."""
    return (tokens - 1) // sequence_length
