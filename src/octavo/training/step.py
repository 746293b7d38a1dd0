"""One optimizer step: micro-batches forward and backward by Megatron-Core's schedule, then AdamW."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from torch import Tensor

from octavo.experiment.run import RunConfig
from octavo.megatron_versions import load_balancing_loss
from octavo.precision.history import AmaxHistory
from octavo.training.initial_values import seed_of

Batch = dict[str, Tensor]
"""tokens, labels, loss_mask and position_ids, each [sequences, length]."""


@dataclass(frozen=True)
class StepResult:
    """What a step came to, over all ranks."""

    loss: float
    """Nats per token, mean over the batch."""
    aux_loss: float | None
    """Weighted as it was added to the loss, summed over layers."""
    multi_token_prediction_loss: float | None
    grad_norm: float
    learning_rate: float
    memory_bytes: int
    stop: bool
    """Whether any rank was signalled to stop."""
    work_seconds: float
    """This rank's alone, up to the reduction of gradients (`_Work`)."""


class _Work:
    """How long this rank works at a step before it waits for all others: up to the reduction of gradients.

    What comes after it takes all ranks as long as the slowest. On a GPU it is the device's time between two events of
    its stream: Python is ahead of the device. There the reduction of what is ready begins in the backward pass, on
    another stream, and a rank that waits in it has a few multiprocessors less meanwhile. Ranks that exchange within a
    pass (tensor, context, expert and pipeline parallelism) wait for one another in it: each takes as long as the
    slowest of them.
    """

    def __init__(self, config: Any, *, on_gpu: bool) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        self._began = self._ended = 0.0
        self._reduce: Callable[..., Any] = config.finalize_model_grads_func
        config.finalize_model_grads_func = self._end

    def begin(self) -> None:
        """The step begins."""
        self._began = time.perf_counter()
        if self._events:
            self._events[0].record()

    def _end(self, *arguments: Any, **named: Any) -> Any:
        self._ended = time.perf_counter()
        if self._events:
            self._events[1].record()
        return self._reduce(*arguments, **named)

    def seconds(self) -> float:
        """Of the step that has ended, on the device as well."""
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._ended - self._began


class Stepper:
    """The model with its optimizer and schedule."""

    def __init__(
        self,
        run: RunConfig,
        chunks: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
    ) -> None:
        self._run, self._chunks, self._optimizer, self._scheduler = run, chunks, optimizer, scheduler
        self._histories = [one for chunk in chunks for one in chunk.modules() if isinstance(one, AmaxHistory)]
        self._schedule: Any = get_forward_backward_func()
        self._on_gpu = torch.cuda.is_available()
        self._work = _Work(chunks[0].config, on_gpu=self._on_gpu)
        experts = run.model.experts
        self._aux_weight = experts.router.aux_loss_weight if experts and experts.router.balance == "aux_loss" else None

    def step(self, step: int, sequences: Any, *, signalled: bool) -> StepResult:
        """Train on a step's sequences (`sequences[i]` is the run's i-th)."""
        self._work.begin()
        if self._on_gpu:  # NVFP4's stochastic rounding draws from it: a run that goes on draws what it would have drawn
            torch.cuda.manual_seed(seed_of(self._run.seed, torch.distributed.get_rank(), step))
        batches = self._micro_batches(step, sequences)
        for history in self._histories:
            history.begin_step()
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        losses = self.run_schedule(batches, forward_only=False)
        self._scheduler.step(1)
        stepped: Any = self._optimizer.step()
        grad_norm = stepped[1]
        return self._result(losses, len(batches), float(grad_norm or 0.0), signalled)

    def run_schedule(self, batches: Sequence[Batch], *, forward_only: bool) -> list[dict[str, Tensor]]:
        """Run the pipeline schedule; `loss` and `sums` ([sequences]) of each micro-batch, on the last stage alone."""
        return self._schedule(
            forward_step_func=partial(_forward_step, context_ranks=self._run.parallelism.context),
            data_iterator=[iter(batches) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(batches),
            seq_length=self._run.training.sequence_length,
            micro_batch_size=batches[0]["tokens"].shape[0],
            forward_only=forward_only,
        )

    def batch(self, items: Sequence[Batch]) -> Batch:
        """Stack sequences into a batch where this rank computes, its part of each under context parallelism."""
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        if self._on_gpu:
            batch = {key: value.cuda(non_blocking=True) for key, value in batch.items()}
        if self._run.parallelism.context > 1:
            from megatron.core.utils import get_batch_on_this_cp_rank

            batch = get_batch_on_this_cp_rank(batch)
        return batch

    def _micro_batches(self, step: int, sequences: Any) -> list[Batch]:
        """This data-parallel rank's share of a step: sequences are dealt in turn, micro-batch by micro-batch."""
        size, ranks = self._run.training.micro_batch_size, self._run.parallelism.data
        first = (step - 1) * self._run.training.global_batch_size
        last = first + self._run.training.global_batch_size
        begin = first + parallel_state.get_data_parallel_rank() * size
        return [
            self.batch([sequences[index] for index in range(start, start + size)])
            for start in range(begin, last, size * ranks)
        ]

    def _result(self, losses: list[dict[str, Tensor]], batches: int, grad_norm: float, signalled: bool) -> StepResult:
        """The step's numbers over all ranks: one collective, one transfer from the device."""
        device: Any = torch.cuda.current_device()
        loss = torch.stack([one["loss"] for one in losses]).mean() if losses else torch.zeros((), device=device)
        aux, prediction = self._side_losses(device)
        plain = torch.tensor(
            [float(bool(losses)), _peak_memory(on_gpu=self._on_gpu), float(signalled)], dtype=torch.float64
        ).to(device)
        own = torch.cat([torch.stack([loss.double(), aux.double(), prediction.double()]), plain])
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            gathered = own.new_empty(ranks * own.numel())
            torch.distributed.all_gather_into_tensor(gathered, own)
            rows = gathered.view(ranks, -1).tolist()
        else:
            rows = [own.tolist()]
        columns = list(zip(*rows, strict=True))
        reporting = sum(columns[3])
        mtp = self._run.model.multi_token_prediction_layers
        return StepResult(
            loss=sum(columns[0]) / reporting,
            # every pipeline stage reports its own layers, every data-parallel rank its own tokens
            aux_loss=sum(columns[1]) / self._run.parallelism.data / batches if self._aux_weight is not None else None,
            multi_token_prediction_loss=sum(columns[2]) / reporting / batches if mtp else None,
            grad_norm=grad_norm,
            learning_rate=next(group["lr"] for group in self._optimizer.param_groups if group["default_config"]),
            memory_bytes=int(max(columns[4])),
            stop=any(columns[5]),
            work_seconds=self._work.seconds(),
        )

    def _side_losses(self, device: Any) -> tuple[Tensor, Tensor]:
        """This rank's auxiliary loss (weighted, over layers) and multi-token-prediction loss; summed over batches."""
        aux = prediction = torch.zeros((), device=device)
        by_layer = load_balancing_loss()
        if by_layer is not None and self._aux_weight is not None:
            aux = by_layer.sum() * self._aux_weight
        if "values" in MTPLossLoggingHelper.tracker:
            prediction = MTPLossLoggingHelper.tracker["values"].mean()
            MTPLossLoggingHelper.tracker["values"].zero_()
        return aux, prediction


def _forward_step(batches: Iterator[Batch], model: Any, *, context_ranks: int) -> tuple[Tensor, Any]:
    batch = next(batches)
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], loss_mask=batch["loss_mask"])
    return losses, partial(_loss, mask=batch["loss_mask"], context_ranks=context_ranks)


def _loss(losses: Tensor, *, mask: Tensor, context_ranks: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The micro-batch's mean loss per token, and each sequence's sum, from losses [sequences, length]."""
    masked = losses.float() * mask
    mean = masked.sum() / mask.sum()
    # the schedule multiplies by the number of context ranks, for losses that are summed over them
    return mean / context_ranks, {"loss": mean.detach(), "sums": masked.detach().sum(1)}


def _peak_memory(*, on_gpu: bool) -> float:
    """Bytes: device memory on GPUs, resident memory on CPUs."""
    if on_gpu:
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
