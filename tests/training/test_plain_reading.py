"""A checkpoint is data: code that somebody put into one is refused, and does not run."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import OctavoError
from octavo.experiment.run import RunIdentity
from octavo.layout import RunFolder
from octavo.training.seal import read_seal, seal

if TYPE_CHECKING:
    from tests.training.conftest import Run, Workshop

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(3600)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, owned: Path) -> None:
        self.owned = owned

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.owned),)


@pytest.fixture(scope="module")
def interrupted(workshop: Workshop) -> Run:
    """A run with a checkpoint to go on from."""
    workshop.experiment("payload", {"training.steps": 2000, "training.checkpoints.interval": 1000})
    run = workshop.run("moe-fp8_delayed", "payload")
    run.interrupt(signal.SIGTERM, after_step=4)
    return run


@pytest.fixture
def stopped(interrupted: Run, tmp_path: Path) -> Iterator[Run]:
    """That run, for one test to break."""
    yield from put_back(interrupted, tmp_path / "kept")


def put_back(run: Run, kept: Path) -> Iterator[Run]:
    """A run, which is as it was when the test that has it is over."""
    shutil.copytree(run.path, kept)
    yield run
    shutil.rmtree(run.path)
    shutil.copytree(kept, run.path)


def newest(run: Run) -> Path:
    """Its only checkpoint: it was told to stop before the first interval was over."""
    (checkpoint,) = (run.path / "checkpoints").glob("step-*")
    return checkpoint


def reseal(run: Run, checkpoint: Path) -> None:
    """Whoever swaps a file can write its hash, too."""
    found = read_seal(checkpoint)
    identity = RunIdentity(found.run_fingerprint, found.computation_fingerprint or "", reshards=True)
    seal(checkpoint, found.step, identity, found.data_manifest_sha256, found.layouts)


def plant(checkpoint: Path, named: str, value: Any) -> None:
    """Put a value in the place of the first whose key has `named` in it: at the end of its shard, as `torch.save`
    writes it."""
    from octavo.training.plain_reading import PlainReader

    index = PlainReader(checkpoint).index
    stored = next(one for key, one in index.storage_data.items() if named in key.fqn)
    code = io.BytesIO()
    torch.save(value, code)
    shard = checkpoint / stored.relative_path
    stored.offset, stored.length = shard.stat().st_size, len(code.getvalue())
    with shard.open("ab") as file:
        file.write(code.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def test_code_in_the_index_does_not_run(stopped: Run, tmp_path: Path) -> None:
    from octavo.verification.compare import different_tensors

    checkpoint, owned = newest(stopped), tmp_path / "owned"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Payload(owned)))
    reseal(stopped, checkpoint)
    said = stopped.train(expected_status=1)
    assert "the checkpoint cannot be read: it names posix.mkdir, which no checkpoint of Octavo's does" in said
    assert "remove it (the run begins anew)" in said
    assert "Traceback" not in said
    with pytest.raises(OctavoError, match=r"it names posix\.mkdir"):
        different_tensors(RunFolder(stopped.path), RunFolder(stopped.path))
    assert not owned.exists()


def test_code_in_a_value_beside_the_tensors_does_not_run(stopped: Run, tmp_path: Path) -> None:
    """The layers' extra states are `torch.save` files inside a shard."""
    checkpoint, owned = newest(stopped), tmp_path / "owned"
    plant(checkpoint, "_extra_state", Payload(owned))
    reseal(stopped, checkpoint)
    assert "the checkpoint cannot be read" in stopped.train(expected_status=1)
    assert not owned.exists()


def test_an_index_that_python_3_11_2_wrote(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enumerations of Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) pickle members as getattr(class, name)."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from octavo.training.plain_reading import PlainReader

    checkpoint = newest(stopped)
    index = PlainReader(checkpoint).index
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    assert b"getattr" in (checkpoint / ".metadata").read_bytes()
    assert PlainReader(checkpoint).index.state_dict_metadata == index.state_dict_metadata


@pytest.mark.parametrize("attribute", ["__class__", "mro", "mro.__self__"])
def test_an_attribute_that_is_no_member_is_refused(stopped: Run, attribute: str) -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    from octavo.training.plain_reading import PlainReader

    class Attribute:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (_MEM_FORMAT_ENCODING, attribute)

    checkpoint = newest(stopped)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(pickle.UnpicklingError, match="no member of an enumeration"):
        PlainReader(checkpoint)


def test_an_index_cannot_name_a_file_outside(stopped: Run) -> None:
    from octavo.training.plain_reading import PlainReader

    checkpoint = newest(stopped)
    index = PlainReader(checkpoint).index
    next(iter(index.storage_data.values())).relative_path = "../../other/shard"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(pickle.UnpicklingError, match="not in its folder"):
        PlainReader(checkpoint)


@pytest.mark.parametrize("key", ["layer._extra_state", "layer.mlp.experts.linear_fc1._extra_state13"])
def test_code_in_transformer_engines_state_does_not_run(tmp_path: Path, key: str) -> None:
    """It is a pickle in a byte tensor; the values in it are `torch.save` files again. Each grouped expert has one."""
    from octavo.training.plain_reading import check_scaling_state

    def state(value: Any) -> dict[str, Any]:
        return {key: torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)}

    class Inside:
        def __reduce__(self) -> tuple[Any, ...]:
            code = io.BytesIO()
            torch.save(Payload(owned), code)
            return torch.storage._load_from_bytes, (code.getvalue(),)

    owned = tmp_path / "owned"
    check_scaling_state(state({"scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1}}))
    check_scaling_state({key: torch.empty(0, dtype=torch.uint8)})  # no FP8
    with pytest.raises(pickle.UnpicklingError, match="BytesIO, and not the bytes of a state"):
        check_scaling_state({key: io.BytesIO(b"a file that torch.load would unpickle")})
    for value in (Payload(owned), Inside()):
        with pytest.raises(pickle.UnpicklingError):
            check_scaling_state(state({"scale_fwd": value}))
    assert not owned.exists()
