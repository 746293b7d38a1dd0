"""Errors of configuration files name the file, the line, the key path, the value and what is allowed."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from octavo.configuration import Section, read_section, read_yaml
from octavo.errors import OctavoError


class Inner(Section):
    size: int
    kind: Literal["a", "b"] = "a"


class Outer(Section):
    rate: float = Field(gt=0)
    inner: Inner
    several: list[Inner] = []


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(OctavoError) as caught:
        read_section(path, Outer)
    return str(caught.value)


def test_a_right_file_is_read(tmp_path: Path) -> None:
    assert read_section(write(tmp_path, "rate: 1e-3\ninner: {size: 2}\n"), Outer) == Outer(
        rate=0.001, inner=Inner(size=2)
    )


def test_unknown_key_names_line_path_and_allowed_keys(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: 1\ninner:\n  size: 2\n  sise: 3\n"))
    assert "unknown key 'sise'" in message
    assert "file.yaml:4 inner.sise" in message
    assert "one of kind, size" in message


def test_allowed_keys_are_those_of_the_file_where_a_field_has_another_name(tmp_path: Path) -> None:
    class Renamed(Section):
        first: int = Field(alias="from")

    with pytest.raises(OctavoError, match="expected: one of from"):
        read_section(write(tmp_path, "from: 1\nfirst: 2\n"), Renamed)


def test_wrong_type_names_value_and_expectation(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: 1\ninner:\n  size: many\n"))
    assert "'many'" in message
    assert "file.yaml:3 inner.size" in message
    assert "valid integer" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rate: 1\ninner: {size: '5'}", "'5'"),
        ("rate: 1\ninner: {size: 5.0}", "5.0"),
        ("rate: 1\ninner: {size: true}", "True"),
        ("rate: true\ninner: {size: 5}", "True"),
        ("rate: '4e-3'\ninner: {size: 5}", "'4e-3'"),
        ("rate: .inf\ninner: {size: 5}", "inf"),
        ("rate: .nan\ninner: {size: 5}", "nan"),
    ],
)
def test_a_value_is_not_turned_into_what_is_expected(tmp_path: Path, text: str, value: str) -> None:
    assert f"wrong value: {value}" in error_of(write(tmp_path, text))


@pytest.mark.parametrize("text", ["4e-3", "4.e-3", ".4e-2", "0.004", "+4E-3"])
def test_every_way_to_write_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    assert read_section(write(tmp_path, f"rate: {text}\ninner: {{size: 1}}"), Outer).rate == 0.004


def test_a_whole_number_is_a_rate(tmp_path: Path) -> None:
    assert read_section(write(tmp_path, "rate: 1\ninner: {size: 1}"), Outer).rate == 1.0


def test_value_outside_the_allowed_names_them(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: 1\ninner: {size: 1, kind: c}\n"))
    assert "'c'" in message
    assert "'a' or 'b'" in message


def test_missing_key_is_named_where_it_should_stand(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: 1\ninner:\n  kind: a\n"))
    assert "key 'size' is missing" in message
    assert "file.yaml:2 inner.size" in message


def test_items_of_lists_are_named_by_index(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: 1\ninner: {size: 1}\nseveral:\n  - size: 1\n  - size: x\n"))
    assert "file.yaml:5 several.1.size" in message


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "rate: -1\ninner: {size: x}\n"))
    assert "2 values are wrong" in message
    assert "rate" in message
    assert "inner.size" in message


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"'rate' is given twice \(first in line 1\)") as caught:
        read_yaml(write(tmp_path, "rate: 1\ninner: {size: 1}\nrate: 2\n"))
    assert "file.yaml:3" in str(caught.value)


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="not valid YAML") as caught:
        read_yaml(write(tmp_path, "rate: 1\ninner: [1\n"))
    assert "file.yaml:" in str(caught.value)


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "rate: 1")
    with pytest.raises(OctavoError, match="missing") as caught:
        read_yaml(tmp_path / "fil.yaml")
    assert "there are: file" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just text"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(OctavoError, match=r"the file (is empty|holds)"):
        read_yaml(write(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OctavoError, match="UTF-8"):
        read_yaml(path)


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_numbers_in_exponent_form_are_numbers(value: float) -> None:
    """YAML 1.1 reads 7e-3 as text; learning rates are written that way."""
    with tempfile.TemporaryDirectory() as folder:
        assert read_yaml(write(Path(folder), f"rate: {value:.17e}")) == {"rate": value}


def test_python_tags_are_not_executed(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="not valid YAML"):
        read_yaml(write(tmp_path, "rate: !!python/object/apply:os.system ['true']\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!int abc", "'abc' is no whole number"),
        ("a: " + "9" * 5000, "too large a number"),
        ("a:\n  - 99999999999999999999", "file.yaml:2"),
        ("? [1, 2]\n: 3", "a key that is not text: a sequence"),
        ("1.5: 2", "a key that is not text: '1.5'"),
        ("a: " + "[" * 5000, "nested deeper than 50 levels"),
        ("a: &x [*x]", "an alias inside of what it stands for"),
        ("a: !!python/object/apply:os.system [x]", "has no meaning here"),
        ("a: !!timestamp 2001-01-01", "has no meaning here"),
        ('a: "\\0"', "text with the character"),
        ('a: "\\ud800"', "text with the character"),
        ("a: " + "x" * (1 << 20), "too large"),
    ],
)
def test_what_no_configuration_holds_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(OctavoError, match=r"^") as refused:
        read_yaml(write(tmp_path, text))
    assert said in str(refused.value)
    assert "file.yaml" in str(refused.value)


def test_aliases_that_multiply_are_refused_before_they_do(tmp_path: Path) -> None:
    """Nine lists of ten, each of the one before: 10^9 values in 600 bytes."""
    letters = "abcdefghij"
    lines = [f"{letters[0]}: &{letters[0]} [{', '.join('1' * 10)}]"]
    for before, letter in itertools.pairwise(letters):
        lines.append(f"{letter}: &{letter} [{', '.join([f'*{before}'] * 10)}]")
    with pytest.raises(OctavoError, match="more than 100,000 values, aliases written out"):
        read_yaml(write(tmp_path, "\n".join(lines)))
    assert read_yaml(write(tmp_path, "a: &a [1, 2]\nb: *a\n")) == {"a": [1, 2], "b": [1, 2]}


def test_dates_times_and_words_are_text(tmp_path: Path) -> None:
    """YAML 1.1 reads a date, a number to the base 60 and an octal number here."""
    read = read_yaml(write(tmp_path, "a: 2001-99-99\nb: 1:30\nc: 010\nd: 0x1f\ne: 40_000\nf: 0x_\n"))
    assert read == {"a": "2001-99-99", "b": "1:30", "c": 10, "d": 31, "e": 40_000, "f": "0x_"}


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path):
        with pytest.raises(OctavoError, match=r"no file|directory"):
            read_yaml(path)


def test_long_values_are_cut_and_many_problems_counted(tmp_path: Path) -> None:
    unknown = "\n".join(f"key{number}: 1" for number in range(1000))
    message = error_of(write(tmp_path, f"rate: {'x' * 100_000}\ninner: {{size: 2}}\n{unknown}\n"))
    assert "1,001 values are wrong" in message
    assert "\n... and 981 more\n" in message
    assert len(message) < 5000


def test_a_message_holds_no_control_characters() -> None:
    assert str(OctavoError("\x1b[2Jcleared\r", where="a\tb")) == "\\x1b[2Jcleared\\r\n  where:    a\tb"
