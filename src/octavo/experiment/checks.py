"""What must hold before anything is trained: matched pairs, sizes that divide, recipes that the devices can do.

Each check raises an OctavoError that names the file, the key, both numbers and the way out.
"""

from __future__ import annotations

from octavo.configuration import place
from octavo.errors import OctavoError, shown
from octavo.experiment.layout_checks import check_cell_layout
from octavo.experiment.precision_checks import check_parameters, check_recipe, check_sizes
from octavo.experiment.run import CellConfig, Experiment
from octavo.models.matched import matched_quantity


def check_experiment(experiment: Experiment) -> None:
    """All checks of an experiment."""
    _check_claims(experiment)
    _check_ablations(experiment)
    _check_match(experiment)
    # once: finding the line parses the file, and a grid may have thousands of cells
    precisions = place(experiment.path, ("precisions",))
    for cell in experiment.cells.values():
        check_cell_layout(experiment, cell)
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
    for roles in experiment.matched:
        sizes = {
            role: matched_quantity(cells[role].model, match.by, cells[role].training.sequence_length) for role in roles
        }
        low, high = min(sizes, key=lambda role: sizes[role]), max(sizes, key=lambda role: sizes[role])
        difference = sizes[high] / sizes[low] - 1
        if difference > match.tolerance:
            raise OctavoError(
                f"the models are not matched in {match.by}: {low} has {sizes[low]:,.0f}, {high} has "
                f"{sizes[high]:,.0f}, {difference:.1%} more",
                where=place(experiment.path, ("match",)),
                expected=f"a difference of at most {match.tolerance:.1%}",
                fix="`octavo match` finds a partner; or change the models, the tolerance or the axis",
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
    check_parameters(cell, where)
