"""What must hold before anything is trained: matched pairs, sizes that divide, recipes that the devices can do.

Each check raises an OctavoError that names the file, the key, both numbers and the way out.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.configuration import place
from octavo.errors import OctavoError, shown
from octavo.experiment.config import Parallelism
from octavo.experiment.precision_checks import check_recipe, check_sizes
from octavo.experiment.run import CellConfig, Experiment
from octavo.models.architecture import Architecture
from octavo.models.matched import matched_quantity
from octavo.models.stages import splits


def check_experiment(experiment: Experiment) -> None:
    """All checks of an experiment."""
    _check_claims(experiment)
    _check_ablations(experiment)
    _check_match(experiment)
    # once: finding the line parses the file, and a grid may have thousands of cells
    precisions = place(experiment.path, ("precisions",))
    for cell in experiment.cells.values():
        _check_batch(experiment, cell)
        _check_layout(experiment, cell)
        _check_recipe(experiment, cell, precisions)


def _check_claims(experiment: Experiment) -> None:
    folder = experiment.configs.claims
    for index, name in enumerate(experiment.file.claims or []):
        if not (folder / f"{name}.yaml").is_file():
            there = sorted(path.stem for path in folder.glob("*.yaml"))
            raise OctavoError(
                f"there is no claim {shown(name)} in {folder}",
                where=place(experiment.path, ("claims", index)),
                expected=f"one of {', '.join(there)}",
            )


def _check_ablations(experiment: Experiment) -> None:
    """An ablation that trains what its cell trains would be reported as one that makes no difference."""
    for name, section in experiment.file.ablations.items():
        for base in section.cells:
            if experiment.cells[f"{base}+{name}"].fingerprint == experiment.cells[base].fingerprint:
                raise OctavoError(
                    f"the ablation {name} changes nothing that {base} is trained with",
                    where=place(experiment.path, ("ablations", name, "change")),
                    fix="give another value than the cell has, or leave the ablation out",
                )


def _check_match(experiment: Experiment) -> None:
    match = experiment.file.match
    if match is None:
        return
    cells = {cell.architecture: cell for cell in experiment.grid}
    sizes = {
        role: matched_quantity(cell.model, match.by, cell.training.sequence_length) for role, cell in cells.items()
    }
    low, high = min(sizes, key=lambda role: sizes[role]), max(sizes, key=lambda role: sizes[role])
    difference = sizes[high] / sizes[low] - 1
    if difference > match.tolerance:
        raise OctavoError(
            f"the models are not matched in {match.by}: {low} has {sizes[low]:,.0f}, {high} has {sizes[high]:,.0f}, "
            f"{difference:.1%} more",
            where=place(experiment.path, ("match",)),
            expected=f"a difference of at most {match.tolerance:.1%}",
            fix="`octavo match` finds a partner; or change the models, the tolerance or the axis",
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


def _check_layout(experiment: Experiment, cell: CellConfig) -> None:
    model, layout = cell.model, cell.parallelism

    def where(axis: str) -> str:
        return place(experiment.path, ("parallelism", axis))

    check_layout(model, layout, cell.training.sequence_length, where, subject=f"{cell.cell}: ")
    if not splits(model.layers, layout.pipeline, layout.virtual_pipeline):
        raise OctavoError(
            f"{cell.cell}: pipeline parallelism {layout.pipeline} (x {layout.virtual_pipeline} virtual stages) does "
            f"not split the layers: {model.layers}",
            where=where("pipeline"),
            expected="a divisor of them; without virtual stages, stages of which only the last holds fewer layers",
        )
    if layout.world_size > experiment.cluster.devices:
        raise OctavoError(
            f"{cell.cell} asks for {layout.world_size} devices (tensor x pipeline x context x data)",
            where=place(experiment.path, ("parallelism",)),
            expected=f"at most the {experiment.cluster.devices} of cluster {experiment.file.cluster}",
        )


def check_layout(
    model: Architecture, layout: Parallelism, sequence_length: int, where: Callable[[str], str], subject: str = ""
) -> None:
    """Raise an OctavoError where a layout does not divide the model, whoever asks for it.

    `where` names the place of an axis of Parallelism for the message. How layers are split over stages is left to the
    caller: Megatron-Core splits them evenly, but others' published layouts are made by hand.
    """
    experts = model.experts.count if model.experts else layout.expert
    kv_heads = model.attention.kv_heads if model.attention.kind == "gqa" else model.attention.heads
    for name, size, what, total in (
        ("tensor", layout.tensor, "the attention heads", model.attention.heads),
        ("tensor", layout.tensor, "the key and value heads", kv_heads),
        ("tensor", layout.tensor, "the vocabulary", model.vocabulary_size or layout.tensor),
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
    if layout.pipeline * layout.virtual_pipeline > model.layers:
        raise OctavoError(
            f"{subject}pipeline parallelism {layout.pipeline} (x {layout.virtual_pipeline} virtual stages) is more "
            f"than the layers: {model.layers}",
            where=where("pipeline"),
            expected=f"at most {model.layers} in all",
        )
    if model.experts is None and layout.expert > 1:
        raise OctavoError(
            f"{subject}expert parallelism {layout.expert} for a model without experts",
            where=where("expert"),
            fix="ask for it for a mixture of experts alone (in an experiment: under overrides)",
        )


def _check_recipe(experiment: Experiment, cell: CellConfig, where: str) -> None:

    check_recipe(
        cell.precision,
        layers=cell.model.layers,
        device=experiment.device,
        cuda=experiment.cluster.cuda,
        where=where,
    )
    check_sizes(cell, experiment.device, where)
