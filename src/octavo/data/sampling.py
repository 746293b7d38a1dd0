"""A prepared data set -> training and validation sequences.

Training sequences are those of megatron.core.datasets.GPTDataset: documents shuffled, laid end to end, cut into
sequences of one length, the sequences shuffled; as many epochs as the run needs. Their order depends on the seed alone,
so that runs of different cells with the same seed see the same sequences in the same order. Validation sequences are
cut from the held-out documents in order, the same for all runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch import Tensor

from octavo.data.checks import check_evaluation, check_training, shares, whole_sequences
from octavo.data.manifest import Manifest, check_files, check_files_once, read_manifest
from octavo.experiment.config import Training
from octavo.experiment.run import RunConfig
from octavo.files import sha256


@dataclass(frozen=True)
class PreparedData:
    """A data set that matches its manifest."""

    folder: Path
    manifest: Manifest

    @cached_property
    def manifest_sha256(self) -> str:
        """What the data set is known by: the manifest holds the hashes of everything else."""
        return sha256(self.folder / "manifest.json")

    @cached_property
    def bytes_per_token(self) -> dict[str, float]:
        """Domain -> UTF-8 bytes per token of its held-out documents, ends of documents counted as tokens.

        0 where the source was already tokenised: bits per byte are then not known.
        """
        return {
            domain: (count.bytes or 0) / count.tokens for domain, count in self.manifest.splits["validation"].items()
        }

    def training_sequences(self, run: RunConfig) -> GPTDataset:
        """The run's training sequences in order: steps x global batch items of tokens, labels, loss_mask, position_ids.

        Each is one-dimensional with `sequence_length` entries; labels are the tokens that follow.
        """
        training = run.training
        documents = IndexedDataset(str(self.folder / "train"), mmap=True)
        tokens = sum(count.tokens for count in self.manifest.splits["train"].values())
        check_training(tokens, training)
        config = GPTDatasetConfig(
            random_seed=run.seed,
            sequence_length=training.sequence_length,
            split="1,0,0",
            blend=([str(self.folder / "train")], None),
            # built in memory, by every rank: runs side by side must not write each other's files
            path_to_cache="",
            tokenizer=_tokenizer(self.manifest),  # type: ignore[arg-type]
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        indices = np.arange(documents.document_indices.shape[0] - 1, dtype=np.int32)
        samples = training.trunk_steps * training.global_batch_size  # the order depends on it where text repeats
        return GPTDataset(documents, None, indices, samples, Split.train, config)

    @cached_property
    def _held_out(self) -> dict[str, int]:
        """Domain -> tokens that are held out."""
        return {domain: count.tokens for domain, count in self.manifest.splits["validation"].items()}

    def check_evaluation(self, training: Training) -> None:
        """Refuse to evaluate on more text than is held out; asks the manifest alone, so it is told before any step."""
        check_evaluation(self._held_out, training)

    def validation_sequences(self, sequence_length: int, count: int) -> list[tuple[str, Tensor]]:
        """`count` (domain, tokens) pairs, spread evenly over the domains and over each domain's held-out text.

        Tokens are `sequence_length` + 1 int64 numbers: inputs and, one further, labels. Sequences do not overlap.
        """
        return [
            (domain, tokens)
            for domain, wanted in shares(self._held_out, count).items()
            for tokens in self._cut(domain, sequence_length, wanted)
        ]

    def _cut(self, domain: str, sequence_length: int, count: int) -> list[Tensor]:
        # documents lie end to end in the file; of a memory map only what is cut out is read
        tokens = np.memmap(self.folder / f"validation-{domain}.bin", self.manifest.token_type, mode="r")
        whole = whole_sequences(self._held_out[domain], sequence_length)
        starts = [(index * whole // count) * sequence_length for index in range(count)]
        return [torch.from_numpy(tokens[start : start + sequence_length + 1].astype(np.int64)) for start in starts]


def open_dataset(folder: Path, *, hashes: bool = True) -> PreparedData:
    """Open a prepared data set. Raises OctavoError where it is missing or does not match its manifest.

    Hashing reads all of it: of the ranks of a node one does it, the others compare sizes; and once for all attempts at
    all runs on the node, while nothing was written to the files (`octavo data` hashes them whenever it is asked).
    """
    manifest = read_manifest(folder)
    if hashes:
        check_files_once(folder, manifest)
    else:
        check_files(folder, manifest, hashes=False)
    return PreparedData(folder, manifest)


def _tokenizer(manifest: Manifest) -> SimpleNamespace:
    """What GPTDataset asks of a tokenizer; tokens are there already."""
    return SimpleNamespace(
        vocab_size=manifest.vocabulary_size,
        eod=manifest.end_of_document,
        pad=manifest.end_of_document,
        unique_identifiers={},
    )
