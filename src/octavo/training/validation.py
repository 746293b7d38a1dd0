"""The loss on held-out sequences, the same ones for every run, in nats per token and bits per byte, by domain."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from octavo.data.sampling import PreparedData
from octavo.experiment.run import RunConfig
from octavo.precision.megatron import share_newest_magnitudes
from octavo.training.routing import RouterProbe
from octavo.training.step import Stepper

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Validation:
    """Losses on held-out sequences."""

    loss: float
    """Nats per token."""
    bits_per_byte: float | None
    """None where the data set does not know its bytes (it came tokenised)."""
    loss_by_domain: dict[str, float]
    domains: list[str]
    """Of each sequence."""
    tokens: Tensor | None = None
    """Served by [mixture-of-experts layer, sequence, expert], where that was asked for."""

    def routing_table(self, layers: list[int]) -> pd.DataFrame:
        """Which experts served which sequence (`octavo.records`, table "routing"); pairs that never met left out."""
        import pandas as pd

        assert self.tokens is not None
        layer, sequence, expert = self.tokens.nonzero(as_tuple=True)
        return pd.DataFrame(
            {
                "sequence": sequence.numpy(),
                "domain": [self.domains[index] for index in sequence.tolist()],
                "layer": [layers[row] for row in layer.tolist()],
                "expert": expert.numpy(),
                "tokens": self.tokens[layer, sequence, expert].numpy(),
            }
        )


class Validator:
    """Evaluates a run's model."""

    def __init__(
        self, run: RunConfig, data: PreparedData, chunks: list[DistributedDataParallel], stepper: Stepper
    ) -> None:
        self._run, self._data, self._chunks, self._stepper = run, data, chunks, stepper
        self._sequences = cache(partial(data.validation_sequences, run.training.sequence_length))
        """Of a number; a run asks for two."""

    def validate(self, count: int, probe: RouterProbe | None = None) -> Validation:
        """Evaluate on `count` sequences; with a probe, also count which experts served each."""
        sequences = self._sequences(count)
        domains = [domain for domain, _ in sequences]
        size, ranks = self._run.training.micro_batch_size, self._run.parallelism.data
        padded = math.ceil(len(sequences) / (size * ranks)) * size * ranks
        rank = parallel_state.get_data_parallel_rank()
        own = [
            index + offset for index in range(rank * size, padded, size * ranks) for offset in range(size)
        ]  # past the end, the first sequences once more: every micro-batch has one shape, and their losses are left out
        items = [item(sequences[index % len(sequences)][1]) for index in own]
        batches = [self._stepper.batch(items[start : start + size]) for start in range(0, len(items), size)]
        if probe:
            probe.switch(True)
        for chunk in self._chunks:
            chunk.eval()
        with torch.no_grad():
            losses = self._stepper.run_schedule(batches, forward_only=True)
        for chunk in self._chunks:
            chunk.train()
            share_newest_magnitudes(chunk)
        sums = self._over_ranks(losses, own, padded)[: len(sequences)]
        tokens = probe.tokens(padded, own)[:, : len(domains)].round().long().cpu() if probe else None
        return self._summary(domains, sums, tokens)

    def _over_ranks(self, losses: list[dict[str, Tensor]], own: list[int], padded: int) -> list[float]:
        """Every sequence's summed loss, from the ranks that have it."""
        device: Any = torch.cuda.current_device()
        sums = torch.zeros(padded, dtype=torch.float64, device=device)
        if losses:
            sums[torch.tensor(own, device=device)] = torch.cat([one["sums"] for one in losses]).double()
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(sums)
        # tensor-parallel ranks have the same losses, context-parallel ranks parts of them
        return (sums / parallel_state.get_tensor_model_parallel_world_size()).tolist()

    def _summary(self, domains: list[str], sums: list[float], tokens: Tensor | None) -> Validation:
        length = self._run.training.sequence_length
        by_domain: dict[str, list[float]] = defaultdict(list)
        for domain, total in zip(domains, sums, strict=True):
            by_domain[domain].append(total)
        read = sum(len(totals) * length * self._data.bytes_per_token[domain] for domain, totals in by_domain.items())
        return Validation(
            loss=sum(sums) / (len(sums) * length),
            bits_per_byte=sum(sums) / math.log(2) / read if read else None,
            loss_by_domain={name: sum(totals) / (len(totals) * length) for name, totals in sorted(by_domain.items())},
            domains=domains,
            tokens=tokens,
        )


def item(sequence: Tensor) -> dict[str, Tensor]:
    """A sequence with the token after it, as the model takes it."""
    tokens, labels = sequence[:-1].long(), sequence[1:].long()
    return {
        "tokens": tokens,
        "labels": labels,
        "loss_mask": torch.ones(len(tokens), dtype=torch.float32),
        "position_ids": torch.arange(len(tokens)),
    }
