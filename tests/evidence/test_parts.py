"""Kept parts of tables: what did not change is not read again, and nothing that changed is taken for what it was."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import OctavoError
from octavo.evidence import aggregate as tables
from octavo.evidence import parts
from octavo.evidence.aggregate import aggregate
from octavo.evidence.row_groups import join
from octavo.layout import ExperimentFolder
from tests.evidence.test_aggregate import SMALL, experiment_of
from tests.synthetic import Truth, write_experiment


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cells of four runs, one of them unfinished, in parts of two; their files count as settled at once."""
    monkeypatch.setattr(tables, "PART", 2)
    monkeypatch.setattr(parts, "SETTLED", -(10**12))
    write(tmp_path)
    kept(tmp_path)
    return tmp_path


def write(root: Path, **arguments: Any) -> ExperimentFolder:
    return write_experiment(root, **{**SMALL, "seeds": (1, 2, 3, 4), "unfinished": {("moe-bf16", 2): 12}, **arguments})


def bytes_of(folder: ExperimentFolder) -> list[bytes]:
    return [path.read_bytes() for path in (folder.runs_table, folder.steps_table, folder.attempts_table)]


def kept(root: Path) -> list[bytes]:
    return bytes_of(aggregate(*experiment_of(root), keep=True))


def whole(root: Path) -> list[bytes]:
    """The same with nothing kept."""
    return bytes_of(aggregate(*experiment_of(root), into=ExperimentFolder(root / "results/beside")))


def files(root: Path) -> dict[Path, tuple[int, int]]:
    """The files of all parts; one that was made again is another."""
    found = [path for path in (root / "results/synthetic/.parts").glob("*/*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def run(root: Path, cell: str = "dense-bf16", seed: int = 1) -> Path:
    return root / f"results/synthetic/runs/{cell}/seed-{seed}"


def change(path: Path, old: str, new: str) -> None:
    """Other bytes, with the size, the inode and the times that a program can set."""
    before, text = path.stat(), path.read_text()
    assert old in text
    assert len(old) == len(new)
    with path.open("r+") as file:
        file.write(text.replace(old, new, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    same = ("st_size", "st_mtime_ns", "st_ino")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]


def test_what_did_not_change_is_not_read_again(root: Path) -> None:
    before = files(root)
    assert len(before) == 2 * 2 * 2
    assert kept(root) == whole(root)
    assert files(root) == before


def test_only_parts_with_a_new_run_are_made(root: Path) -> None:
    before = files(root)
    write(root, seeds=(1, 2, 3, 4, 5), cells=[])
    write(root / "other", seeds=(5,), unfinished={})
    for cell in ("dense-bf16", "moe-bf16"):
        shutil.copytree(run(root / "other", cell, 5), run(root, cell, 5))
    assert kept(root) == whole(root)
    assert before.items() < files(root).items()
    assert len(files(root)) == len(before) + 2 * 2


def test_a_changed_byte_of_a_finished_run_is_an_error(root: Path) -> None:
    change(run(root) / "metrics.jsonl", '"tokens":1024', '"tokens":1025')
    with pytest.raises(OctavoError, match=r"dense-bf16/seed-1: metrics\.jsonl was changed"):
        kept(root)
    change(run(root) / "metrics.jsonl", '"tokens":1025', '"tokens":1024')
    assert kept(root) == whole(root)


def test_a_changed_byte_of_an_unfinished_run_is_in_the_table(root: Path) -> None:
    before = kept(root)
    change(run(root, "moe-bf16", 2) / "metrics.jsonl", '"tokens":1024', '"tokens":1025')
    assert kept(root) == whole(root) != before


def test_a_run_that_goes_on_a_removed_and_a_replaced_one(root: Path) -> None:
    with (run(root, "moe-bf16", 2) / "metrics.jsonl").open("a") as file:
        file.write('{"step":13,"tokens":13312,"time":1.0,"attempt":1,"loss":4.0,"step_seconds":1.0}\n')
    longer = kept(root)
    assert longer == whole(root)
    shutil.rmtree(run(root))
    shorter = kept(root)
    assert shorter == whole(root) != longer
    write(root / "other", truth=Truth(floor=2.0))
    shutil.copytree(run(root / "other"), run(root))
    assert kept(root) == whole(root) != shorter


def test_another_configuration_is_not_hidden_by_what_was_kept(root: Path) -> None:
    path = root / "configs/experiments/synthetic.yaml"
    path.write_text(path.read_text().replace("  steps: 40", "  steps: 41"))
    with pytest.raises(OctavoError, match="another configuration"):
        kept(root)


def test_a_damaged_part_is_made_again(root: Path) -> None:
    tables_of = kept(root)
    for path in files(root):
        for damaged in (path.read_bytes()[:-40], b"", bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]):
            path.write_bytes(damaged)
            before = files(root)
            assert kept(root) == tables_of
            assert files(root) != before, path


CHANGES = st.one_of(
    st.tuples(st.just("run moved away or back"), st.sampled_from(["dense-bf16", "moe-bf16"]), st.integers(1, 4)),
    st.tuples(st.just("attempt"), st.booleans(), st.integers(0, 12)),
    st.tuples(st.just("price"), st.integers(1, 9), st.none()),
    st.tuples(st.just("part damaged"), st.integers(0, 20), st.integers(0, 1 << 20)),
)


def make(root: Path, what: str, first: Any, second: Any) -> None:
    """One change to runs, prices or what was kept of an earlier call."""
    if what == "run moved away or back":
        here, away = run(root, first, second), root / f"{first}-{second}"
        shutil.move(*((here, away) if here.exists() else (away, here)))
    elif what == "attempt" and run(root, "moe-bf16", 2).exists():  # the run that is not finished
        path = run(root, "moe-bf16", 2) / "attempts.jsonl"
        own = [json.loads(line) for line in path.read_text().splitlines()]
        ended = {"end": own[0]["start"], "exit_reason": "failed"} if first else {"end": None, "exit_reason": None}
        line = {**own[0], **ended, "attempt": len(own) + 1, "first_step": second, "last_step": second}
        path.write_text("".join(f"{json.dumps(one)}\n" for one in [*own, line]))
    elif what == "price":
        path = root / "configs/clusters/synthetic.yaml"
        path.write_text(re.sub(r"per_device_hour: .*", f"per_device_hour: {first}", path.read_text()))
    elif what == "part damaged" and (found := sorted(files(root))):
        path = found[first % len(found)]
        content = bytearray(path.read_bytes())
        content[second % len(content)] ^= 1
        path.write_bytes(content)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHANGES, min_size=1, max_size=4))
def test_whatever_changed_tables_are_those_made_from_nothing(root: Path, changes: list[tuple[str, Any, Any]]) -> None:
    """Byte for byte; the folder goes on from example to example."""
    for change_ in changes:
        make(root, *change_)
    assert kept(root) == whole(root)


def test_a_part_of_another_version_is_made_again_and_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables_of, before = kept(root), files(root)
    monkeypatch.setattr(parts, "_code", lambda: "another")
    assert kept(root) == tables_of
    assert not before.keys() & files(root).keys()
    assert len(files(root)) == len(before)


@pytest.mark.parametrize("where", ["between a part and its record", "in the table"])
def test_a_kill_leaves_nothing_that_is_taken_for_whole(root: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*paths: Any) -> None:
        if where == "in the table":
            paths[1].write_bytes(paths[0][0].read_bytes()[:100])
        os.kill(os.getpid(), 9)

    change(run(root, "moe-bf16", 2) / "metrics.jsonl", '"tokens":1024', '"tokens":1025')
    before = bytes_of(ExperimentFolder(root / "results/synthetic"))
    module, name_of = (tables, "join") if where == "in the table" else (parts, "_seal")
    if not (child := os.fork()):
        monkeypatch.setattr(module, name_of, killed)
        try:
            kept(root)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert bytes_of(ExperimentFolder(root / "results/synthetic")) == before
    assert kept(root) == whole(root) != before
    assert len(files(root)) == 2 * 2 * 2  # what was begun is gone


def test_what_was_changed_a_moment_ago_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within the same tick of the clock would leave no other time."""
    monkeypatch.setattr(parts, "SETTLED", 2_000_000_000)
    change(run(root) / "attempts.jsonl", "}", "}")
    assert kept(root) == whole(root)
    assert len([path for path in files(root) if path.suffix == ".json"]) == 3


def test_an_ablation_takes_the_parts_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SETTLED", -(10**12))
    write(tmp_path, ablations=None)
    kept(tmp_path)
    before = files(tmp_path)
    of_one = aggregate(*experiment_of(tmp_path), "no_shared_expert", keep=True)
    assert files(tmp_path) == before
    assert json.loads(next(path for path in before if path.suffix == ".json").read_text().split("\n")[1])["facts"]
    beside = ExperimentFolder(tmp_path / "results/beside")
    assert bytes_of(of_one) == bytes_of(aggregate(*experiment_of(tmp_path), "no_shared_expert", into=beside))


@pytest.mark.parametrize("sizes", [[0], [0, 0], [5, 0, 1000, 3], [20_000, 1], [0, 7], [1] * 40])
def test_files_one_behind_the_other_are_their_tables(sizes: list[int], tmp_path: Path) -> None:
    """Parts without rows, with many row groups, with page indexes; lists and texts among the columns."""
    generator, made, paths = np.random.default_rng(1), [], []
    for number, size in enumerate(sizes):
        loads = [[[float(row)] * (row % 3)] * (row % 2) for row in range(size)]
        columns = {
            "cell": pa.array([f"cell-{number}"] * size, pa.string()),
            "loss": pa.array(generator.standard_normal(size)),
            "load": pa.array(loads, pa.list_(pa.list_(pa.float32()))),
        }
        made.append(pa.table(columns).replace_schema_metadata({"octavo_table": "steps"}))
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(
            made[-1], paths[-1], row_group_size=500, write_page_checksum=True, write_page_index=bool(number % 2)
        )
    join(paths, tmp_path / "all.parquet")
    found = pq.read_table(tmp_path / "all.parquet", page_checksum_verification=True)
    assert found.equals(pa.concat_tables(made))
    assert found.schema.metadata == made[0].schema.metadata
    about = pq.read_metadata(tmp_path / "all.parquet")
    assert about.num_rows == sum(sizes)
    assert about.num_row_groups == sum(max(1, -(-size // 500)) for size in sizes)  # of no rows there is one, too


def test_a_folder_that_cannot_be_written_is_named(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(OctavoError, match="could not be written"):
        aggregate(*experiment_of(root), into=ExperimentFolder(root / "file" / "folder"))
