"""YAML files -> pydantic models, with errors that name file, line, key path, value and what is allowed.

Every section of every configuration file is a `Section`: unknown keys are refused and values are immutable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from octavo.errors import OctavoError


class Section(BaseModel):
    """One section of a configuration file: unknown keys are refused, values are immutable and what they say.

    `steps: "5"` and `learning_rate: true` are no numbers, and neither are .inf and .nan; 5 is a learning rate, too.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


SectionType = TypeVar("SectionType", bound=Section)
Keys = tuple[str | int, ...]


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
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
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


def parse_section(value: Any, section: type[SectionType], path: Path, *, at: Keys = ()) -> SectionType:
    """Validate `value`, which stands in `path` under the keys `at`, as a `section`; all problems in one error."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        raise section_error(error, value, section, path, lambda keys: (*at, *keys)) from None


def section_error(
    error: ValidationError, value: Any, section: type[Section], path: Path, in_file: Callable[[Keys], Keys]
) -> OctavoError:
    """All that is wrong with a `value` that was to be a `section`, as one error.

    `in_file` turns the keys of a value into those that it stands under in the file.
    """
    lines = key_lines(path)
    problems = [_problem(item, value, path, lines, section, in_file) for item in error.errors()]
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(str(problem) for problem in problems)
    return OctavoError(f"{len(problems)} values are wrong\n{listed}", where=path)


def key_lines(path: Path) -> dict[Keys, int]:
    """The line (from 1) of every key path in a YAML file; empty when the file cannot be parsed."""
    lines: dict[Keys, int] = {}

    def walk(node: yaml.Node | None, at: Keys) -> None:
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


def place(path: Path, keys: Keys) -> str:
    """`file:line key.path`, for error messages about one key of a YAML file."""
    lines = key_lines(path)
    known = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    return f"{path}{f':{known}' if known else ''} {dotted(keys)}"


def dotted(keys: Keys) -> str:
    """('training', 'steps') -> 'training.steps'."""
    return ".".join(str(key) for key in keys)


def _problem(
    item: Any, value: Any, path: Path, lines: dict[Keys, int], section: type[Section], in_file: Callable[[Keys], Keys]
) -> OctavoError:
    kind = str(item.get("ctx", {}).get("discriminator", "")).strip("'")  # the key that says which section it is
    keys = in_file(_keys_of(item["loc"], value, missing=item["type"] == "missing"))
    keys = (*keys, kind) if item["type"] in ("union_tag_invalid", "union_tag_not_found") else keys
    known = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    where = f"{path}{f':{known}' if known else ''} {dotted(keys)}".rstrip()
    if item["type"] == "extra_forbidden":
        allowed = _fields(section, item["loc"][:-1])
        expected = f"one of {', '.join(allowed)}" if allowed else None
        return OctavoError(f"unknown key {keys[-1]!r}", where=where, expected=expected, fix="remove or rename it")
    if item["type"] == "union_tag_invalid":
        expected = f"one of {item['ctx']['expected_tags']}"
        return OctavoError(f"wrong value: {item['ctx']['tag']!r}", where=where, expected=expected)
    if item["type"] in ("missing", "union_tag_not_found"):
        return OctavoError(f"key {keys[-1]!r} is missing", where=where, fix="add it")
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = "" if isinstance(item["input"], dict | Section) else f": {item['input']!r}"
    return OctavoError(f"wrong value{shown}", where=where, expected=message[0].lower() + message[1:])


def _keys_of(loc: Keys, value: Any, *, missing: bool) -> Keys:
    """The keys of a pydantic location: without its marks (a union's member, a key itself), which stand in no file."""
    keys: Keys = ()
    for part in loc:
        held: Any = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(held, dict) and part in held:
            keys, value = (*keys, part), held[part]
    return (*keys, loc[-1]) if missing else keys


def _fields(section: type[Section], loc: Keys) -> list[str]:
    """The keys allowed where a pydantic location points to; empty where sections of several kinds may stand."""
    options = [section]
    for part in loc:
        if kinds := [one for one in options if "kind" in one.model_fields and one.model_fields["kind"].default == part]:
            options = kinds
        elif fields := [one.model_fields[str(part)] for one in options if part in one.model_fields]:
            options = [inner for field in fields for inner in _sections(field.annotation)]
    return sorted(options[0].model_fields) if len(options) == 1 else []


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field may hold, those in lists, mappings and unions included."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _neighbours(path: Path) -> str:
    there = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return f"in {path.parent} there are: {', '.join(there)}" if there else f"{path.parent} holds no {path.suffix} files"
