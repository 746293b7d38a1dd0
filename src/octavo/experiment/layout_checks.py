"""Whether a parallel layout can train a cell: what Megatron-LM's arguments check, and Megatron-Core takes as given.

Megatron-LM (megatron/training/arguments.py) and Megatron-Bridge (training/config.py) check a layout before they build
anything; whoever builds on Megatron-Core alone passes both files by. `docs/training.md` has their checks one by one.
What CPUs cannot do over gloo is refused here too, so that `octavo check` says it and not the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from octavo.configuration import place
from octavo.errors import OctavoError
from octavo.experiment.cluster import Device
from octavo.experiment.config import Parallelism
from octavo.experiment.run import CellConfig, Experiment
from octavo.models.architecture import Architecture
from octavo.models.stages import splits


def check_cell_layout(experiment: Experiment, cell: CellConfig) -> None:
    """Raise an OctavoError where a cell's layout, batch and evaluation do not fit its model or its devices."""
    layout, training = cell.parallelism, cell.training

    def where(axis: str) -> str:
        return place(experiment.path, ("parallelism", axis))

    _check_batch(experiment, cell)
    check_layout(cell.model, layout, training.sequence_length, where, subject=f"{cell.cell}: ")
    _check_sequence(cell, where)
    _check_stages(experiment, cell, where)
    check_devices_can(cell, experiment.device, lambda *keys: place(experiment.path, keys))
    if layout.world_size > experiment.cluster.devices:
        raise OctavoError(
            f"{cell.cell} asks for {layout.world_size} devices (tensor x pipeline x context x data)",
            where=place(experiment.path, ("parallelism",)),
            expected=f"at most the {experiment.cluster.devices} of cluster {experiment.file.cluster}",
        )


def _check_batch(experiment: Experiment, cell: CellConfig) -> None:
    training, data = cell.training, cell.parallelism.data
    if training.global_batch_size % (training.micro_batch_size * data):
        raise OctavoError(
            f"{cell.cell}: micro_batch_size x data = {training.micro_batch_size} x {data} does not divide "
            f"global_batch_size {training.global_batch_size}",
            where=place(experiment.path, ("training", "global_batch_size")),
            expected=f"a multiple of {training.micro_batch_size * data}",
        )


def _check_sequence(cell: CellConfig, where: Callable[[str], str]) -> None:
    """Sequence parallelism: Megatron-Core divides the length without looking at the rest, and experts need it."""
    layout, length = cell.parallelism, cell.training.sequence_length
    if layout.sequence and length // layout.context % layout.tensor:
        raise OctavoError(
            f"{cell.cell}: tensor parallelism {layout.tensor} with sequence: true does not divide the sequence of a "
            f"context-parallel rank: {length // layout.context}",
            where=where("sequence"),
            expected=f"a sequence_length that is a multiple of {layout.tensor * layout.context}",
        )
    if cell.model.experts is not None and layout.tensor > 1 and not layout.sequence:
        raise OctavoError(
            f"{cell.cell}: tensor parallelism {layout.tensor} with experts and sequence: false, which Megatron-Core "
            "does not train",
            where=where("tensor"),
            fix="set sequence: true, or leave tensor at 1 for the mixture (under overrides)",
        )


def _check_stages(experiment: Experiment, cell: CellConfig, where: Callable[[str], str]) -> None:
    model, layout = cell.model, cell.parallelism
    if not splits(model.layers, layout.pipeline, layout.virtual_pipeline):
        raise OctavoError(
            f"{cell.cell}: pipeline parallelism {layout.pipeline} (x {layout.virtual_pipeline} virtual stages) does "
            f"not split the layers: {model.layers}",
            where=where("pipeline"),
            expected="a divisor of them; without virtual stages, stages of which only the last holds fewer layers",
        )
    if layout.virtual_pipeline == 1:
        return
    # the interleaved schedule hands micro-batches on in groups of as many as there are stages
    training, evaluation = cell.training, cell.training.evaluation
    step = training.micro_batch_size * layout.data
    for keys, sequences in (
        (("global_batch_size",), training.global_batch_size),
        (("evaluation", "sequences"), evaluation.sequences),
        (("evaluation", "final_sequences"), evaluation.final_sequences),
    ):
        micro_batches = math.ceil(sequences / step)
        if micro_batches % layout.pipeline:
            raise OctavoError(
                f"{cell.cell}: {sequences} sequences are {micro_batches} micro-batches of a data-parallel rank "
                f"(micro_batch_size {training.micro_batch_size} x data {layout.data}), which virtual pipeline stages "
                "cannot take",
                where=place(experiment.path, ("training", *keys)),
                expected=f"a multiple of the {layout.pipeline} pipeline stages: "
                f"{math.ceil(micro_batches / layout.pipeline) * layout.pipeline * step} sequences",
                fix="change the number, micro_batch_size or data, or leave virtual_pipeline at 1",
            )


def check_devices_can(cell: CellConfig, device: Device, where: Callable[..., str]) -> None:
    """Raise an OctavoError for what a kind of device cannot train, or not to the same bits, however it is laid out.

    `where` names the place of a key, given as its path, for the message.
    """
    layout, moe = cell.parallelism, cell.model.experts is not None
    sends_once = layout.sends_once and moe
    refused = {
        "context parallelism: Megatron-Core has it in Transformer Engine's attention alone": (
            layout.context > 1,
            ("parallelism", "context"),
        ),
        "tensor parallelism with experts: Megatron-Core wants sequence parallelism with it, which fails over gloo": (
            layout.tensor > 1 and moe,
            ("parallelism", "tensor"),
        ),
        f"the dispatcher {layout.dispatcher}: its kernels are CUDA's": (sends_once, ("parallelism", "dispatcher")),
        "the distributed optimizer: its checkpoints do not resume to the last bit over gloo": (
            cell.training.optimizer.distributed,
            ("training", "optimizer", "distributed"),
        ),
        "recomputation: it saves a GPU's memory": (bool(cell.training.recompute), ("training", "recompute")),
    }
    for reason, (asked, keys) in refused.items() if device.kind == "cpu" else ():
        if asked:
            raise OctavoError(
                f"{cell.cell}: on CPUs a run cannot have {reason}",
                where=where(*keys),
                fix="leave it out of the experiment, or run it on a GPU cluster",
            )
    if sends_once and layout.tensor * layout.expert == 1:
        raise OctavoError(
            f"{cell.cell}: the dispatcher {layout.dispatcher} with tensor x expert = 1 has nobody to send to",
            where=where("parallelism", "dispatcher"),
            fix="use dispatcher: alltoall, or set expert",
        )
    if sends_once and cell.training.deterministic:
        raise OctavoError(
            f"{cell.cell}: the dispatcher {layout.dispatcher} in deterministic mode: the order in which its tokens "
            "arrive differs from run to run (github.com/deepseek-ai/DeepEP/pull/753)",
            where=where("parallelism", "dispatcher"),
            fix="use dispatcher: alltoall, or set training.deterministic: false",
        )


def check_layout(
    model: Architecture, layout: Parallelism, sequence_length: int, where: Callable[[str], str], subject: str = ""
) -> None:
    """Raise an OctavoError where a layout does not divide the model, whoever asks for it.

    `where` names the place of an axis of Parallelism for the message. How layers are split over stages is left to the
    caller: Megatron-Core splits them evenly, but others' published layouts are made by hand.
    """
    experts = model.experts.count if model.experts else layout.expert
    feed_forward = (model.feed_forward_size or 0) if model.dense_layers else 0
    kv_heads = model.attention.kv_heads if model.attention.kind == "gqa" else model.attention.heads
    for name, size, what, total in (
        ("tensor", layout.tensor, "the attention heads", model.attention.heads),
        ("tensor", layout.tensor, "the key and value heads", kv_heads),
        ("tensor", layout.tensor, "the vocabulary", model.vocabulary_size or layout.tensor),
        ("tensor", layout.tensor, "the dense layers' feed-forward size", feed_forward),
        ("tensor", layout.tensor, "the shared experts' size", model.experts.shared_size if model.experts else 0),
        ("expert", layout.expert, "the experts", experts),
        ("context", layout.context * 2 if layout.context > 1 else 1, "the sequence", sequence_length),
    ):
        if total % size:
            twice = " (two chunks of the sequence a rank)" if name == "context" else ""
            raise OctavoError(
                f"{subject}{name} parallelism {size}{twice} does not divide {what}: {total}",
                where=where(name),
                expected=f"a divisor of {total}",
            )
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        raise OctavoError(
            f"{subject}{layout.virtual_pipeline} virtual stages without pipeline parallelism",
            where=where("virtual_pipeline"),
            expected="more than one pipeline stage, or no virtual ones",
        )
    if layout.pipeline * layout.virtual_pipeline > model.layers + 2:  # embedding and output head may be chunks
        raise OctavoError(
            f"{subject}pipeline parallelism {layout.pipeline} (x {layout.virtual_pipeline} virtual stages) is more "
            f"than the layers: {model.layers}",
            where=where("pipeline"),
            expected=f"at most {model.layers} in all, or two more with embedding and output head as chunks",
        )
    if model.experts is None and layout.expert > 1:
        raise OctavoError(
            f"{subject}expert parallelism {layout.expert} for a model without experts",
            where=where("expert"),
            fix="ask for it for a mixture of experts alone (in an experiment: under overrides)",
        )
