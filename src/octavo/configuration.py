"""YAML files -> pydantic models, with errors that name file, line, key path, value and what is allowed.

Every section of every configuration file is a `Section`: unknown keys are refused and values are immutable.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from octavo.errors import OctavoError


class Section(BaseModel):
    """One section of a configuration file: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SectionType = TypeVar("SectionType", bound=Section)


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice and reads 1e-3 as a number (YAML 1.2)."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice (first in line {seen[key]})", key_node.start_mark
            )
        seen[key] = key_node.start_mark.line + 1
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises OctavoError for a missing file, a syntax error or a key given twice."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise OctavoError("a configuration file is missing", where=path, fix=_neighbours(path)) from None
    except UnicodeDecodeError as error:
        raise OctavoError("the file is not UTF-8 text", where=path, expected="a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise OctavoError(f"the file is not valid YAML: {error.problem}", where=line) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise OctavoError(f"the file is not valid YAML: {str(error).splitlines()[0]}", where=path) from error
    except OSError as error:
        raise OctavoError(f"the file cannot be read: {error.strerror}", where=path) from error
    if not isinstance(value, dict):
        raise OctavoError(f"the file holds {type(value).__name__}", where=path, expected="a mapping of keys to values")
    return value


def read_section(path: Path, section: type[SectionType]) -> SectionType:
    """Read a YAML file into `section`."""
    return parse_section(read_yaml(path), section, path)


def parse_section(value: Any, section: type[SectionType], path: Path, *, at: tuple[str | int, ...] = ()) -> SectionType:
    """Validate `value`, which stands in `path` under the keys `at`, as a `section`; all problems in one error."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        lines = key_lines(path)
        problems = [_problem(item, path, lines, at, section) for item in error.errors()]
        if len(problems) == 1:
            raise problems[0] from None
        raise OctavoError(
            f"{len(problems)} values are wrong\n" + "\n".join(str(problem) for problem in problems), where=path
        ) from None


def key_lines(path: Path) -> dict[tuple[str | int, ...], int]:
    """The line (from 1) of every key path in a YAML file; empty when the file cannot be parsed."""
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node | None, at: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*at, key.value)] = key.start_mark.line + 1
                walk(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*at, index)] = value.start_mark.line + 1
                walk(value, (*at, index))

    try:
        walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return lines


def place(path: Path, keys: tuple[str | int, ...]) -> str:
    """`file:line key.path`, for error messages about one key of a YAML file."""
    lines = key_lines(path)
    known = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    return f"{path}{f':{known}' if known else ''} {dotted(keys)}"


def dotted(keys: tuple[str | int, ...]) -> str:
    """('training', 'steps') -> 'training.steps'."""
    return ".".join(str(key) for key in keys)


def _problem(
    item: Any, path: Path, lines: dict[tuple[str | int, ...], int], at: tuple[str | int, ...], section: type[Section]
) -> OctavoError:
    keys = _keys_in_file(item["loc"], at, lines)
    known = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    where = f"{path}{f':{known}' if known else ''} {dotted(keys)}".rstrip()
    if item["type"] == "extra_forbidden":
        allowed = _fields(section, item["loc"][:-1])
        expected = f"one of {', '.join(allowed)}" if allowed else None
        return OctavoError(f"unknown key {keys[-1]!r}", where=where, expected=expected, fix="remove or rename it")
    if item["type"] == "missing":
        return OctavoError(f"key {keys[-1]!r} is missing", where=where, fix="add it")
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = "" if isinstance(item["input"], dict) else f": {item['input']!r}"
    return OctavoError(f"wrong value{value}", where=where, expected=message[0].lower() + message[1:])


def _keys_in_file(
    loc: tuple[Any, ...], at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> tuple[str | int, ...]:
    """The key path of a pydantic location: without the tags of union members, which stand in no file."""
    keys = at
    for index, part in enumerate(loc):
        last = index == len(loc) - 1  # always shown: it is the key that is missing, unknown or wrong
        if last or (*keys, part) in lines:
            keys = (*keys, part)
    return keys


def _fields(section: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys allowed where `loc` points to, as far as plain nested sections go."""
    for part in loc:
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((one for one in options if hasattr(one, "model_fields")), None)
    return sorted(getattr(section, "model_fields", {}))


def _neighbours(path: Path) -> str:
    there = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return f"in {path.parent} there are: {', '.join(there)}" if there else f"{path.parent} holds no {path.suffix} files"
