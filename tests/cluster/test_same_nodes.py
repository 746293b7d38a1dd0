"""All runs of an experiment on the same nodes: which those are, and what is refused. No Slurm is needed."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.cluster import job
from octavo.cluster.job import allocation_command, nodes_of_runs, resources, same_nodes
from octavo.cluster.launch import Launch
from octavo.errors import OctavoError
from octavo.experiment.cluster import Slurm
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment
from octavo.layout import ConfigFolders
from octavo.records import AttemptRecord, read_lines
from tests.synthetic import write_experiment


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Two cells, trained each with one seed, on nodes of 8 H100."""
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_experiment(
        tmp_path, cells=["dense-bf16", "moe-bf16"], seeds=(1,), precisions=("bf16",), ablations={}, device="gpu"
    )
    loaded = load_experiment("synthetic", ConfigFolders(tmp_path / "configs"))
    slurm = Slurm(partition="gpu", gpu_type="h100", exclude=["gpu07"], extra=["--exclusive"], same_nodes=True)
    return replace(loaded, cluster=loaded.cluster.model_copy(update={"slurm": slurm}))


def trained(monkeypatch: pytest.MonkeyPatch, **nodes: str) -> None:
    """Runs that were on these nodes."""
    monkeypatch.setattr(job, "nodes_of_runs", lambda _: {run: frozenset(on.split()) for run, on in nodes.items()})


@pytest.mark.parametrize(
    ("earlier", "count", "chosen"),
    [
        ({}, 1, ["a"]),  # the allocation has a, b, c and d
        ({}, 2, ["a", "b"]),
        ({"x": "c"}, 1, ["c"]),
        ({"x": "c"}, 2, ["c", "a"]),  # with what others were on
        ({"x": "b c"}, 1, ["b"]),  # of what others were on
        ({"x": "b c", "y": "c"}, 1, ["c"]),
        ({"x": "b c d", "y": "d"}, 2, ["d", "b"]),  # between the two
        ({"x": "b c", "y": "b c"}, 2, ["b", "c"]),
    ],
)
def test_the_nodes_of_a_run(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, earlier: dict[str, str], count: int, chosen: list[str]
) -> None:
    trained(monkeypatch, **earlier)
    assert same_nodes(experiment, ["a", "b", "c", "d"], count) == chosen


@pytest.mark.parametrize(
    ("earlier", "count", "said"),
    [
        ({"x": "e"}, 1, "other runs were on e, and this allocation has not e"),
        ({"x": "a b"}, 2, None),
        ({"x": "a e"}, 2, "other runs were on a,e, and this allocation has not e"),
        ({"x": "a", "y": "b"}, 1, "runs were on different nodes already: y, was on b, others on a"),
        ({"x": "a b", "y": "c"}, 2, "runs were on different nodes already: y, was on c, others on a,b"),
    ],
)
def test_other_nodes_are_refused(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, earlier: dict[str, str], count: int, said: str | None
) -> None:
    trained(monkeypatch, **earlier)
    if said is None:
        same_nodes(experiment, ["a", "b", "c", "d"], count)
        return
    with pytest.raises(OctavoError) as raised:
        same_nodes(experiment, ["a", "b", "c", "d"], count)
    assert raised.value.found == said


def test_the_nodes_that_runs_were_on_are_those_of_attempts_that_trained(experiment: Experiment) -> None:
    """tests/synthetic.py has every run on node0. One that made no step, or was configured otherwise, counts nothing."""
    path = experiment.folder.run("moe-bf16", 1).attempts
    (attempt,) = read_lines(path, AttemptRecord)
    others: list[dict[str, Any]] = [
        {"nodes": ["node[3-4]"]},
        {"nodes": ["node8"], "last_step": 0},
        {"nodes": ["node9"], "run_fingerprint": "f" * 64},
    ]
    lines = [attempt.model_copy(update={"attempt": number, **other}) for number, other in enumerate(others, 2)]
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in (attempt, *lines)))
    assert nodes_of_runs(experiment) == {
        "dense-bf16/seed-1, attempt 1": {"node0"},
        "moe-bf16/seed-1, attempt 1": {"node0"},
        "moe-bf16/seed-1, attempt 2": {"node3", "node4"},
    }


def test_jobs_of_their_own_are_refused_with_the_call_of_one_allocation(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OctavoError) as raised:
        resources(experiment, experiment.cells["dense-bf16"])
    assert allocation_command(experiment) in (raised.value.fix or "")
    # one GPU a run: 1 x 64 GB, 8 cores, an hour, 120 s before it the signal (the defaults of the section)
    assert shlex.split(allocation_command(experiment)) == [
        "sbatch", "--partition=gpu", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=64000",
        "--gres=gpu:h100:1", "--time=60", "--signal=USR1@120", "--exclude=gpu07", "--nodelist=node0", "--exclusive",
        "--wrap=snakemake --profile workflow/profiles/allocation results/synthetic/report.pdf",
    ]  # fmt: skip
    trained(monkeypatch)
    assert "--nodelist" not in allocation_command(experiment)


def test_in_an_allocation_a_run_holds_all_of_it_and_its_ranks_are_on_the_nodes(experiment: Experiment) -> None:
    asked = resources(experiment, experiment.cells["dense-bf16"], has=8)
    assert asked[job.cap_name(experiment.file.cluster)] == 8
    planned = Launch(experiment, experiment.run("dense-bf16", 1), ("train", "x"), Path("/x"), None, nodes=("c", "a"))
    assert "--ntasks-per-node=1 --nodelist=c,a --gres=gpu:h100:1" in planned.script()
