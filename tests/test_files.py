"""Files between stages are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from octavo.errors import OctavoError
from octavo.files import atomic_path, fingerprint, open_plain, read_bytes, read_json, sha256, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"half of it {1 / 0}")
    assert read_json(path, made_by="octavo") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(OctavoError, match="No space left on device") as caught, atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_says_how_to_make_it_again(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(OctavoError, match="not whole JSON") as caught:
        read_json(path, made_by="octavo claims results/x")
    assert "octavo claims results/x" in str(caught.value)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_sha256_of_abc(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_without_a_size_is_read_whole() -> None:
    """The kernel makes up what is in it as it is read."""
    path = Path("/proc/self/cmdline")
    assert path.stat().st_size == 0
    assert len(read_bytes(path)) > 1
    with pytest.raises(OctavoError, match="too large"):
        read_bytes(path, most=1)


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_path_that_no_file_can_have_is_one_clear_message(name: str) -> None:
    """A zero byte, and half of a surrogate pair, which UTF-8 has no bytes for."""
    with pytest.raises(OctavoError, match="the file cannot be read"), open_plain(Path(name)):
        pass
