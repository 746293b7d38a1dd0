"""Text -> token numbers: bytes, a byte-level BPE trained on the training split, or somebody's `tokenizer.json`.

All are `tokenizers.Tokenizer` objects, saved as `tokenizer.json` beside the tokens. Byte-level BPE (Radford et
al. 2019) has a token for every byte, so no text is out of vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from octavo.errors import OctavoError
from octavo.experiment.config import BpeTokenizer, BytesTokenizer, FileTokenizer, Tokenizer
from octavo.layout import repository

END_OF_DOCUMENT = "<|end_of_document|>"


def build_tokenizer(config: Tokenizer, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """The tokenizer that an experiment asks for; `texts` is read only where one is trained.

    Text is plain text to it, also where it spells a special token: only the pipeline ends a document.
    """
    if isinstance(config, FileTokenizer):
        tokenizer = _read_tokenizer(config)
    elif isinstance(config, BytesTokenizer):
        tokenizer = _byte_level({symbol: number for number, symbol in enumerate(_byte_symbols())}, [])
    else:
        tokenizer = _train(config, texts)
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_document(config: Tokenizer) -> str:
    """The token that ends a document, as text."""
    return config.end_of_document if isinstance(config, FileTokenizer) else END_OF_DOCUMENT


def _train(config: BpeTokenizer, texts: Iterator[str]) -> tokenizers.Tokenizer:
    tokenizer = _byte_level({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        special_tokens=[AddedToken(END_OF_DOCUMENT, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != config.vocabulary_size:
        raise OctavoError(
            f"the training text gives a vocabulary of {tokenizer.get_vocab_size()} tokens",
            expected=f"tokenizer.vocabulary_size: {config.vocabulary_size}",
            fix="use more text or a smaller vocabulary",
        )
    return tokenizer


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary:
        tokenizer.add_special_tokens([AddedToken(END_OF_DOCUMENT, special=True)])
    return tokenizer


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE, by the byte's value."""
    probe = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    assert set(symbols.values()) == set(probe.alphabet())
    return [symbols[byte] for byte in range(256)]


def _read_tokenizer(config: FileTokenizer) -> tokenizers.Tokenizer:
    path: Path = repository() / config.path
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise OctavoError(f"the file is not a Hugging Face tokenizer: {error}", where=path) from error
    if tokenizer.token_to_id(config.end_of_document) is None:
        raise OctavoError(
            f"the tokenizer has no token {config.end_of_document!r}",
            where=path,
            expected="the text of one of its tokens",
            fix="name its end-of-document token under tokenizer.end_of_document",
        )
    # truncation and padding belong to those who serve models
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
