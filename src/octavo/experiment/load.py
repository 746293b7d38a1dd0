"""An experiment file and the files that it names -> cells and runs, each with every value resolved and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from octavo.configuration import Keys, Section, parse_section, place, read_section, read_yaml, section_error
from octavo.errors import OctavoError, asked_by, shown
from octavo.experiment import ladder as ladders
from octavo.experiment.checks import check_experiment
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.config import FILE_NAME, Data, ExperimentFile, FileTokenizer, Match, Tokenizer
from octavo.experiment.ladder import Rung
from octavo.experiment.run import CellConfig, Experiment, data_identifier
from octavo.files import parse_json, read_bytes
from octavo.layout import ConfigFolders, configs, repository
from octavo.models.architecture import Architecture
from octavo.precision.config import Precision


def load_experiment(name: str, folders: ConfigFolders | None = None) -> Experiment:
    """Read `configs/experiments/<name>.yaml`, resolve its cells and check that they can be trained as they say."""
    folders = folders or configs()
    path = folders.experiments / f"{name}.yaml"
    value, data_path = _with_data(read_yaml(path), path, folders)
    file = parse_section(_with_length(value, path), ExperimentFile, path)
    file, rungs = _expanded(file, path, folders)
    cluster, device = load_cluster(file.cluster, folders, asked_by=place(path, ("cluster",)))
    models = {role: _model(role, value, path, folders) for role, value in file.models.items()}
    for role in file.overrides:
        if role not in models:
            raise OctavoError(
                f"overrides for an unknown model {role!r}",
                where=place(path, ("overrides", role)),
                expected=f"one of {', '.join(models)}",
            )
    cells: dict[str, CellConfig] = {}
    for role, model in models.items():
        for index, value in enumerate(file.precisions):
            precision = value if isinstance(value, Precision) else Precision(recipe=value)
            if not _trained_in(file, rungs, role, precision):
                continue
            cell = _cell(name, path, file, role, model, precision)
            if cell.cell in cells:
                raise OctavoError(
                    f"the cell {cell.cell} is there twice",
                    where=place(path, ("precisions", index)),
                    fix="make the second an ablation of the first",
                )
            cells[cell.cell] = cell
    for ablation, section in file.ablations.items():
        for base in section.cells:
            if base not in cells or cells[base].ablation:
                raise OctavoError(
                    f"the ablation's cell {base!r} is not in the grid",
                    where=place(path, ("ablations", ablation, "cells")),
                    expected=f"one of {', '.join(name for name, cell in cells.items() if not cell.ablation)}",
                )
            changed = _change(cells[base], section.change, path, ("ablations", ablation, "change"))
            name_of_cell = f"{base}+{ablation}"
            cells[name_of_cell] = changed.model_copy(update={"cell": name_of_cell, "ablation": ablation})
    cells = {name: cell.in_steps() if cell.training.shorter_horizons else cell for name, cell in cells.items()}
    cells |= {shorter.cell: shorter for cell in list(cells.values()) for shorter in cell.shorter()}
    experiment = Experiment(name, path, file, cluster, device, data_path, cells, rungs)
    check_experiment(experiment)
    return experiment


def _with_length(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """An experiment file's keys. A ladder says how long its runs are: until then another length stands in its place."""
    training = value.get("training")
    if "ladder" not in value or not isinstance(training, dict):
        return value
    for key in ("steps", "tokens"):
        if key in training:
            raise OctavoError(
                f"training.{key} beside a ladder",
                where=place(path, ("training", key)),
                fix="leave it out: ladder.tokens_per_parameter says how long the runs of each rung are",
            )
    return {**value, "training": {**training, "steps": 1_000_000}}


def _expanded(file: ExperimentFile, path: Path, folders: ConfigFolders) -> tuple[ExperimentFile, tuple[Rung, ...]]:
    """The file with the models and overrides that its ladder makes, and the rungs; as it is without a ladder."""
    if file.ladder is None:
        return file, ()
    if file.ladder.published is not None:
        _file(folders.experiments, file.ladder.published, "experiment", lambda: place(path, ("ladder", "published")))
    with asked_by(lambda *keys: place(path, keys), "tokenizer"):
        vocabulary = vocabulary_size(file.tokenizer)
    training = file.training
    setting = ladders.Setting(
        vocabulary_size=vocabulary,
        sequence_length=training.sequence_length,
        batch=training.global_batch_size,
        batch_multiple=training.micro_batch_size * file.parallelism.data,
    )
    made = ladders.rungs(file.ladder, setting, place(path, ("ladder",)))
    intervals = {
        "training.evaluation.interval": training.evaluation.interval,
        "training.checkpoints.interval": training.checkpoints.interval,
    }
    models, overrides = {}, {}
    for rung in made:
        models |= ladders.models(rung)
        for role, change in ladders.overrides(rung, made[0], intervals).items():
            family = role.partition("_")[0]
            overrides[role] = {**change, **file.overrides.get(family, {}), **file.overrides.get(role, {})}
    for role in file.overrides:
        if role not in {*ladders.KINDS, *models}:
            raise OctavoError(
                f"overrides for an unknown model {role!r}",
                where=place(path, ("overrides", role)),
                expected=f"one of {', '.join([*ladders.KINDS, *models])}",
            )
    match = file.match or Match(by="active_parameters", tolerance=file.ladder.tolerance)
    training = training.model_copy(update={"steps": made[-1].steps})
    updated = {"models": models, "overrides": overrides, "match": match, "training": training}
    return file.model_copy(update=updated), made


def _trained_in(file: ExperimentFile, rungs: tuple[Rung, ...], role: str, precision: Precision) -> bool:
    """Whether a model is trained in a precision: of a ladder's recipes some are for some rungs only."""
    only = file.ladder.only.get(precision.recipe) if file.ladder else None
    return only is None or any(role in map(rung.role, rung.models) for rung in rungs if rung.number in only)


def load_cluster(name: str, folders: ConfigFolders, asked_by: str | None = None) -> tuple[Cluster, Device]:
    """A cluster file and its device file."""
    path = _file(folders.clusters, name, "cluster", lambda: asked_by or str(folders.clusters))
    cluster = read_section(path, Cluster)
    device_path = _file(folders.clusters / "devices", cluster.device, "device", lambda: place(path, ("device",)))
    return cluster, read_section(device_path, Device)


def _file(folder: Path, name: str, what: str, where: Callable[[], str]) -> Path:
    """The YAML file of this name in a folder of configs/; `where` is the place of the key that names it."""
    path = folder / f"{name}.yaml"
    if not FILE_NAME.fullmatch(name) or not path.exists():
        there = sorted(p.stem for p in folder.glob("*.yaml"))
        raise OctavoError(
            f"there is no {what} {shown(name)} in {folder}",
            where=where(),
            expected=f"one of {', '.join(there) or '(there is none)'}",
        )
    return path


class _DataSections(Section):
    data: Data
    tokenizer: Tokenizer

    @property
    def identifier(self) -> str:
        return data_identifier(self.data, self.tokenizer)


def experiment_with_data(identifier: str, folders: ConfigFolders | None = None) -> str:
    """The name of an experiment whose data and tokenizer have this identifier (see `data_identifier`)."""
    folders = folders or configs()
    for path in sorted(folders.experiments.glob("*.yaml")):
        with suppress(OctavoError, ValidationError):  # another experiment's mistakes are not this one's
            value, _ = _with_data(read_yaml(path), path, folders)
            sections = {key: value[key] for key in ("data", "tokenizer") if key in value}
            if _DataSections.model_validate(sections).identifier == identifier:
                return path.stem
    raise OctavoError(f"no experiment asks for the data set {identifier}", where=folders.experiments)


def _with_data(value: dict[str, Any], path: Path, folders: ConfigFolders) -> tuple[dict[str, Any], Path]:
    """An experiment file's keys, with the data section that it names in its place; the file that the section is in."""
    name = value.get("data")
    if not isinstance(name, str):
        return value, path
    data_path = _file(folders.data, name, "text", lambda: place(path, ("data",)))
    return {**value, "data": read_section(data_path, Data)}, data_path


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Tokens that a tokenizer has, the end-of-document token included."""
    if isinstance(tokenizer, FileTokenizer):
        path = repository() / tokenizer.path
        try:
            value = parse_json(read_bytes(path))
            vocabulary = value["model"]["vocab"]  # token -> number; of a Unigram model the tokens by number
            numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
            return max([*numbers, *(token["id"] for token in value["added_tokens"])]) + 1
        except OSError as error:
            raise OctavoError(f"the tokenizer's file cannot be read: {error.strerror}", where=path) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OctavoError(
                "the file is not a Hugging Face tokenizer", where=path, expected="a tokenizer.json with model.vocab"
            ) from error
    return 257 if tokenizer.kind == "bytes" else tokenizer.vocabulary_size


def _model(role: str, value: str | dict[str, Any], path: Path, folders: ConfigFolders) -> Architecture:
    if isinstance(value, dict):
        named = {"name": role, "source": f"configs/experiments/{path.name}", **value}
        return parse_section(named, Architecture, path, at=("models", role))
    model_path = _file(folders.models, value, "model", lambda: place(path, ("models", role)))
    return parse_section({"name": value, **read_yaml(model_path)}, Architecture, model_path)


def _cell(
    name: str, path: Path, file: ExperimentFile, role: str, model: Architecture, precision: Precision
) -> CellConfig:
    with asked_by(lambda *keys: place(path, keys), "tokenizer"):
        vocabulary = vocabulary_size(file.tokenizer)
    if model.vocabulary_size is None:
        model = model.model_copy(update={"vocabulary_size": vocabulary})
    elif model.vocabulary_size < vocabulary:
        raise OctavoError(
            f"the model's vocabulary is smaller than the tokenizer's: {model.vocabulary_size} < {vocabulary}",
            where=place(path, ("models", role)),
            expected=f"vocabulary_size of {vocabulary} or more",
            fix="leave vocabulary_size out of the model, or choose another tokenizer",
        )
    cell = CellConfig(
        experiment=name,
        cell=f"{role}-{precision.recipe}",
        architecture=role,
        ablation=None,
        cluster=file.cluster,
        model=model,
        precision=precision,
        data=file.data,
        tokenizer=file.tokenizer,
        training=file.training,
        parallelism=file.parallelism,
    )
    return _change(cell, file.overrides.get(role, {}), path, ("overrides", role))


def _check_apart(change: dict[str, Any], path: Path, at: tuple[str, ...]) -> None:
    """Refuse a key path that lies within another: which of the two counts would depend on their order."""
    for inner in change:
        keys = inner.split(".")
        for outer in (".".join(keys[:length]) for length in range(1, len(keys))):
            if outer in change:
                raise OctavoError(
                    f"{shown(outer)} and {shown(inner)} change the same value",
                    where=place(path, (*at, inner)),
                    fix="write one change of both",
                )


CHANGEABLE = ("model", "precision", "training", "parallelism")


def _change(cell: CellConfig, change: dict[str, Any], path: Path, at: tuple[str, ...]) -> CellConfig:
    """The cell with the values at some key paths (`model.experts.shared_size`) replaced."""
    if not change:
        return cell
    _check_apart(change, path, at)
    value = copy.deepcopy(cell.model_dump(mode="json"))
    for dotted_path, new in change.items():
        *parents, last = keys = dotted_path.split(".")
        target: Any = value
        if keys[0] in CHANGEABLE:
            for key in parents:
                target = target.get(key) if isinstance(target, dict) else None
        else:
            target = None
        if not isinstance(target, dict) or last not in target:
            allowed = sorted(target) if isinstance(target, dict) and len(keys) > 1 else CHANGEABLE
            prefix = ".".join(parents) + "." if isinstance(target, dict) and parents else ""
            raise OctavoError(
                f"there is no key {dotted_path!r} to change",
                where=place(path, (*at, dotted_path)),
                expected=f"one of {', '.join(prefix + key for key in allowed)}",
            )
        target[last] = new
    try:
        return CellConfig.model_validate(value)
    except ValidationError as error:

        def in_file(keys: Keys) -> Keys:
            """The ablation's key path that changed the value at `keys`, or a value above or below it."""
            for dotted_path in change:
                changed = tuple(dotted_path.split("."))
                if changed[: len(keys)] == keys[: len(changed)]:
                    return (*at, dotted_path, *keys[len(changed) :])
            return at

        raise section_error(error, value, CellConfig, path, in_file) from None
