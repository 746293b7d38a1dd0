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
from pydantic.fields import FieldInfo

from octavo.errors import OctavoError, shown
from octavo.files import read_bytes


class Section(BaseModel):
    """One section of a configuration file: unknown keys are refused, values are immutable and what they say.

    `steps: "5"` and `learning_rate: true` are no numbers, and neither are .inf and .nan; 5 is a learning rate, too.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


SectionType = TypeVar("SectionType", bound=Section)
Keys = tuple[str | int, ...]


MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
"""Values in a file, where those that an alias repeats count each time."""
MOST_LEVELS = 50
MOST_PROBLEMS = 20
"""Problems that are told at once."""


class _Loader(yaml.SafeLoader):
    """YAML as configuration needs it, for files from anybody: JSON's types, and no more than a person would write.

    Scalars are those of YAML 1.2's core schema (1e-3 is a number, 1:30 and 2026-01-31 are text), with YAML 1.1's
    underscores in numbers and its words for true and false. Keys are text, each once. Whatever is wrong is a
    MarkedYAMLError, which knows its line.
    """

    yaml_constructors: dict[Any, Any] = {}
    yaml_implicit_resolvers: dict[Any, Any] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _error(f"nested deeper than {MOST_LEVELS} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._sizes:
            raise _error("an alias inside of what it stands for", event.start_mark)
        if node is not None and node not in self._sizes:
            parts = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
            self._sizes[node] = 1 + sum(self._sizes[one] for one in parts if isinstance(one, yaml.Node))
            if self._sizes[node] > MOST_VALUES:
                raise _error(f"more than {MOST_VALUES:,} values, aliases written out", node.start_mark)
        return node


def _error(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if odd := next((one for one in text if (one < " " and one not in "\n\t") or "\ud800" <= one <= "\udfff"), None):
        raise _error(f"text with the character {odd!a}", node.start_mark)
    return text


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if not _INTEGER.fullmatch(text):
        raise _error(f"{shown(text)} is no whole number", node.start_mark)
    if (
        len(text) > 30
        or abs(value := int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in ("0x", "0o") else 10)) >= 2**63
    ):
        raise _error(f"{shown(text)} is too large a number", node.start_mark)
    return value


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    if not _FLOAT.fullmatch(text):
        raise _error(f"{shown(text)} is no number", node.start_mark)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _truth(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if not _BOOLEAN.fullmatch(text):
        raise _error(f"{shown(text)} is neither true nor false", node.start_mark)
    return text in ("true", "yes", "on")


def _list(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int")
"""What a key may be; a whole number (a seed of an import file) is read as its digits."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _error(f"a {node.id}, not a mapping of keys to values", node.start_mark)
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag not in _KEYS:
            what = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else f"a {key_node.id}"
            raise _error(f"a key that is not text: {what} (in quotes it is)", key_node.start_mark)
        key = _text(loader, key_node)
        if key in seen:
            raise _error(f"key {shown(key)} is given twice (first in line {seen[key]})", key_node.start_mark)
        seen[key] = key_node.start_mark.line + 1
    return {_text(loader, key): loader.construct_object(value, deep=True) for key, value in node.value}


def _unknown(_: _Loader, node: yaml.Node) -> Any:
    raise _error(f"the tag {shown(node.tag)} has no meaning here", node.start_mark)


_INTEGER = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEAN = re.compile(
    "|".join(
        form for word in ("true", "false", "yes", "no", "on", "off") for form in (word, word.title(), word.upper())
    )
)
_CONSTRUCTORS: dict[Any, Callable[[Any, Any], Any]] = {
    "tag:yaml.org,2002:bool": _truth,
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:null": lambda _loader, _node: None,
    "tag:yaml.org,2002:str": _text,
    "tag:yaml.org,2002:seq": _list,
    "tag:yaml.org,2002:map": _mapping,
    None: _unknown,
}
for _tag, _constructor in _CONSTRUCTORS.items():
    _Loader.add_constructor(_tag, _constructor)
for _kind, _pattern, _first in (  # the first that fits
    ("bool", _BOOLEAN, "tTfFyYnNoO"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern.pattern})$"), list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises OctavoError for a missing file, a syntax error or a key given twice."""
    try:
        content = read_bytes(path, most=MOST_BYTES)
    except FileNotFoundError:
        raise OctavoError("a configuration file is missing", where=path, fix=_neighbours(path)) from None
    return parse_yaml(content, path)


def parse_yaml(content: bytes, path: Path) -> dict[str, Any]:
    """The mapping in the content of a YAML file. Raises OctavoError as `read_yaml` does."""
    try:
        value = yaml.load(content.decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise OctavoError("the file is not UTF-8 text", where=path, expected="a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise OctavoError(f"the file is not valid YAML: {error.problem}", where=line) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise OctavoError(f"the file is not valid YAML: {str(error).splitlines()[0]}", where=path) from error
    if not isinstance(value, dict):
        found = "the file is empty" if value is None else f"the file holds a {type(value).__name__}"
        raise OctavoError(found, where=path, expected="a mapping of keys to values")
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
    found = error.errors()
    problems = [_problem(item, value, path, lines, section, in_file) for item in found[:MOST_PROBLEMS]]
    if len(problems) == 1:
        return problems[0]
    listed = "\n".join(str(problem) for problem in problems)
    more = f"\n... and {len(found) - len(problems):,} more" if len(found) > len(problems) else ""
    return OctavoError(f"{len(found):,} values are wrong\n{listed}{more}", where=path)


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
        walk(yaml.compose(read_bytes(path, most=MOST_BYTES).decode("utf-8"), Loader=_Loader), ())
    except (OctavoError, OSError, UnicodeDecodeError, yaml.YAMLError):
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
        return OctavoError(f"unknown key {shown(keys[-1])}", where=where, expected=expected, fix="remove or rename it")
    if item["type"] == "union_tag_invalid":
        expected = f"one of {item['ctx']['expected_tags']}"
        return OctavoError(f"wrong value: {shown(item['ctx']['tag'])}", where=where, expected=expected)
    if item["type"] in ("missing", "union_tag_not_found"):
        return OctavoError(f"key {keys[-1]!r} is missing", where=where, fix="add it")
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = "" if isinstance(item["input"], dict | Section) else f": {shown(item['input'])}"
    return OctavoError(f"wrong value{value}", where=where, expected=message[0].lower() + message[1:])


def _keys_of(loc: Keys, value: Any, *, missing: bool) -> Keys:
    """The keys in the file that a pydantic error location names.

    pydantic adds parts that are no keys of the file (the member of a union, the mark of a mapping's key): left out.
    """
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
        elif fields := [keys[str(part)] for keys in map(_named, options) if part in keys]:
            options = [inner for field in fields for inner in _sections(field.annotation)]
    return sorted(_named(options[0])) if len(options) == 1 else []


def _named(section: type[Section]) -> dict[str, FieldInfo]:
    """A section's fields by their keys in the file."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field may hold, those in lists, mappings and unions included."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _neighbours(path: Path) -> str:
    there = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return f"in {path.parent} there are: {', '.join(there)}" if there else f"{path.parent} holds no {path.suffix} files"
