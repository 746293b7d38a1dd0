"""`docs/configuration.md`: every key of every configuration file, from the classes that read them."""

from __future__ import annotations

import json
from typing import Any

from octavo.configuration import Section

HEAD = """# Configuration

Every key of every file in `configs/`, and of the files that `octavo import` reads, as the classes say that read them
(`octavo schema --markdown`). A key without a default must be given. Other keys are refused.
"""


def markdown(kinds: dict[str, tuple[str, type[Section]]]) -> str:
    """The reference: for each kind of file where it lies, and a table for each of its sections."""
    parts, told = [HEAD], set[str]()
    for kind, (place, section) in kinds.items():
        schema = section.model_json_schema()
        parts.append(f"## {kind.capitalize()} file\n`{place}`. {_line(schema.get('description', ''))}\n")
        parts.append(_table(schema))
        definitions = schema.get("$defs", {})
        for name in sorted(_used(schema, definitions)):
            if "properties" in definitions[name] and name not in told:
                told.add(name)
                parts.append(f"### {name}\n{_line(definitions[name].get('description', ''))}\n")
                parts.append(_table(definitions[name]))
    return "\n".join(parts)


def _used(schema: Any, definitions: dict[str, Any], seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of the definitions that a schema leads to."""
    found: set[str] = set()
    if isinstance(schema, dict):
        if isinstance(name := schema.get("$ref"), str):
            name = name.rpartition("/")[2]
            if name not in seen:
                found |= {name} | _used(definitions[name], definitions, seen | {name})
        for key, value in schema.items():
            if key != "$defs":
                found |= _used(value, definitions, seen)
    elif isinstance(schema, list):
        for value in schema:
            found |= _used(value, definitions, seen)
    return found


def _table(schema: dict[str, Any]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in schema["properties"].items():
        default = f"`{json.dumps(value['default'], ensure_ascii=False)}`" if "default" in value else ""
        cells = (f"`{key}`", _values(value), default, _line(value.get("description", "")))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _values(schema: dict[str, Any]) -> str:
    """What a key may be, in words."""
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_values(one) for one in several))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('items', {}))}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {_values(values)}" if isinstance(values, dict) and values else "mapping"
    limits = ", ".join(f"{word} {schema[name]:,}" for name, word in LIMITS.items() if name in schema)
    return f"{TYPES.get(schema.get('type', ''), 'anything')} {limits}".strip()


TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
LIMITS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


def _line(text: str) -> str:
    return " ".join(text.split())
