"""One code base for two versions of Megatron-Core: the same bits, and no code in a checkpoint of either runs."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import run_alone
from tests.training.test_determinism import assert_same
from tests.training.test_plain_reading import Payload, newest, plant, put_back, reseal

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)
Trained = Callable[[str], "Run"]
Versions = dict[str, dict[str, str]]
OLDER, NEWER = "0.16.1", "0.19.2"


@pytest.fixture(scope="session")
def versions(other_megatron: Path) -> Versions:
    """Version -> the variables of the environment of processes that have it."""
    from octavo.megatron_versions import INSTALLED

    other = NEWER if INSTALLED == OLDER else OLDER
    return {INSTALLED: {}, other: {"PYTHONPATH": str(other_megatron)}}


def used(run: Run) -> str:
    """The version that a run's last attempt had."""
    return json.loads((run.path / "provenance.json").read_text())["packages"]["megatron-core"]


@pytest.mark.parametrize(
    ("cell", "begins_with", "goes_on_with"),
    [
        ("dense-fp8_tensorwise", NEWER, NEWER),
        ("moe-bf16", NEWER, NEWER),
        ("moe-fp8_delayed", NEWER, NEWER),
        ("moe-fp8_delayed", OLDER, NEWER),
    ],
)
def test_both_versions_train_the_same_bits(
    workshop: Workshop, uninterrupted: Trained, versions: Versions, cell: str, begins_with: str, goes_on_with: str
) -> None:
    """Also where 0.19 goes on from its own checkpoint, which has what all ranks share among the shards, or from 0.16's,
    which has it in a file of its own."""
    name = f"begun_with_{begins_with.replace('.', '_')}"
    workshop.experiment(name)
    killed = workshop.run(cell, name, variables=versions[begins_with])
    status, _ = killed.interrupt(signal.SIGKILL, after_step=25)
    assert status == -signal.SIGKILL
    assert used(killed) == begins_with
    checkpoints = list((killed.path / "checkpoints").glob("step-*"))
    assert [(one / "common.pt").exists() for one in checkpoints] == [begins_with == OLDER] * len(checkpoints) != []
    run = workshop.run(cell, name, variables=versions[goes_on_with])
    run.train()
    assert used(run) == goes_on_with
    assert run.attempts()[1]["first_step"] >= 20
    assert_same(run, uninterrupted(cell))


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("latent-bf16", {"pipeline": 2}),
    ("latent-bf16", {"tensor": 2, "sequence": True}),
    ("mixed-fp8_delayed", {"data": 2, "expert": 2}),
]


@pytest.fixture(scope="module")
def on_ranks(workshop: Workshop, versions: Versions) -> dict[str, dict[str, Any]]:
    """What runs of 0.19 come to, on two ranks and on one."""
    from tests.training.test_every_layout import write_layout

    asked = [*((cell, {}) for cell in sorted({cell for cell, _ in LAYOUTS})), *LAYOUTS]
    names = {str(one): write_layout(workshop, *one, name=f"newer_{index}") for index, one in enumerate(asked)}
    found = workshop.train_layouts(list(names.values()), ranks=2, **versions[NEWER])
    return {one: found[name] for one, name in names.items()}


@pytest.mark.parametrize(("cell", "layout"), LAYOUTS)
def test_two_ranks_of_the_newer_version_train_what_one_does(
    on_ranks: dict[str, dict[str, Any]], cell: str, layout: dict[str, Any]
) -> None:
    """MLA with multi-token prediction over two stages and over two tensor-parallel ranks, and experts over two ranks.
    Sums in another order: see `test_every_layout.py`."""
    from tests.training.test_every_layout import CLOSE

    one, two = on_ranks[str((cell, {}))], on_ranks[str((cell, layout))]
    assert one["megatron_core"] == two["megatron_core"] == NEWER
    assert one["losses"][-1] < one["losses"][0]
    assert two["losses"] == pytest.approx(one["losses"], rel=CLOSE)
    assert two["grad_norms"] == pytest.approx(one["grad_norms"], rel=10 * CLOSE)
    assert two["validation"] == pytest.approx(one["validation"], rel=CLOSE)
    assert one["resumed"]
    assert two["resumed"]


@pytest.mark.parametrize("version", ["installed", "other"])
def test_models_of_more_and_fewer_layers_are_timed_in_turns(
    workshop: Workshop, other_megatron: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """What routers note has as many layers as the model before had."""
    monkeypatch.setenv("OCTAVO_ROOT", str(workshop.root))
    if version == "other":
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(other_megatron), os.environ.get("PYTHONPATH", "")]))
    said = run_alone("""
from octavo.cpu.backend import install; install()
from octavo.experiment.load import load_experiment
from octavo.megatron_versions import INSTALLED
from octavo.training.speed import time_steps
two = load_experiment("tiny").run("moe-bf16", 1)
three = two.model_copy(update={"model": two.model.model_copy(update={"layers": 3})})
seconds = time_steps([two, three], 2, 1, lambda: None)
print(INSTALLED, [len(own) for own in seconds])
""")
    from octavo.megatron_versions import INSTALLED

    expected = INSTALLED if version == "installed" else NEWER if INSTALLED == OLDER else OLDER
    assert said == f"{expected} [2, 2]"


@pytest.fixture(scope="module")
def of_newer(workshop: Workshop, versions: Versions) -> Run:
    """A run with a checkpoint of 0.19 to go on from."""
    workshop.experiment("shared", {"training.steps": 2000, "training.checkpoints.interval": 1000})
    run = workshop.run("dense-bf16", "shared", variables=versions[NEWER])
    run.interrupt(signal.SIGTERM, after_step=4)
    return run


@pytest.fixture
def stopped(of_newer: Run, tmp_path: Path) -> Iterator[Run]:
    """That run, for one test to break."""
    yield from put_back(of_newer, tmp_path / "kept")


@pytest.mark.parametrize("part", ["the index", "a value"])
def test_code_in_what_all_ranks_share_does_not_run(stopped: Run, tmp_path: Path, part: str) -> None:
    """0.19 has it among the shards, and would unpickle both by itself."""
    from octavo.megatron_versions import COMMON

    checkpoint, owned = newest(stopped), tmp_path / "owned"
    if part == "the index":
        (checkpoint / ".metadata").write_bytes(pickle.dumps(Payload(owned)))
    else:
        plant(checkpoint, COMMON, [Payload(owned)])
    reseal(stopped, checkpoint)
    assert "the checkpoint cannot be read" in stopped.train(expected_status=1)
    assert not owned.exists()


def test_a_checkpoint_of_the_newer_version_is_refused_by_the_older(
    workshop: Workshop, stopped: Run, versions: Versions
) -> None:
    """One message, with both versions; and the checkpoint is still there."""
    run = workshop.run("dense-bf16", "shared", variables=versions[OLDER])
    said = run.train(expected_status=1)
    assert f"the checkpoint is of Megatron-Core {NEWER}, which the installed {OLDER} cannot read" in said
    assert (
        f"go on with Megatron-Core {NEWER} (Python 3.12 or newer); or move {run.path.relative_to(workshop.root)} away"
        in said
    )
    assert "Traceback" not in said
    assert newest(run).exists()
