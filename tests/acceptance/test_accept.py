"""`octavo accept` from the command to its page, on the stand-in: its steps run, and none passes for a GPU's.

Octavo's GPU branch, Transformer Engine's Python, Megatron-Core, processes and checkpoints are real; what Transformer
Engine compiles, and the GPU, are `tests/transformer_engine_cpu`; NCCL is gloo.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pypdf import PdfReader

from octavo.acceptance.trainings import same_bits
from octavo.layout import RunFolder, accept_file
from octavo.records import Acceptance, AcceptanceCheck, read_record
from tests.tiny import octavo

if TYPE_CHECKING:
    from tests.acceptance.conftest import Accepted

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.timeout(3600)

NUMBERS = ("losses", "determinism", "kill and resume")


@pytest.fixture(scope="module")
def record(accepted: Accepted) -> Acceptance:
    path = accepted.root / accept_file("h100-node")
    assert path.exists(), accepted.errors
    return read_record(path, Acceptance, made_by="octavo accept")


def of(record: Acceptance, part: str) -> list[AcceptanceCheck]:
    return [one for one in record.checks if one.part == part]


@pytest.mark.parametrize("part", NUMBERS)
def test_numbers_of_a_dense_model_and_a_mixture_are_compared(record: Acceptance, part: str) -> None:
    found = of(record, part)
    assert [one.verdict for one in found] == ["passed"] * 2, found
    assert all(f"{model}-fp8_delayed" in one.name for model, one in zip(("dense", "moe"), found, strict=True))


def test_losses_are_those_of_the_emulation_but_not_the_same_run(record: Acceptance) -> None:
    """A run compared with itself would be 0 apart; the emulation of a dense model has the same weights and text."""
    dense = of(record, "losses")[0]
    (apart,) = re.findall(r"([\d.]+)% apart in the mean", dense.found)
    assert 0 < float(apart) < 0.2


def test_a_killed_run_was_killed_and_went_on(accepted: Accepted, record: Acceptance) -> None:
    trained = accepted.root / "results/probes/h100-node/accept/checkout/results/numerics"
    for cell in ("dense-fp8_delayed", "moe-fp8_delayed"):
        lines = (trained / "killed" / cell / "seed-1" / "attempts.jsonl").read_text().splitlines()
        assert [json.loads(line)["exit_reason"] for line in lines] == ["killed", "completed"]
        assert json.loads(lines[1])["first_step"] >= 5
    assert record.devices == 2


@pytest.mark.parametrize("part", ["products", "messages", "state", "speed"])
def test_what_only_a_gpu_can_say_is_not_measured(record: Acceptance, part: str) -> None:
    """Two shapes, three kinds of message, two devices, two models: gone through without an error, and no pass."""
    found = of(record, part)
    assert len(found) == {"products": 2, "messages": 3, "state": 2, "speed": 2}[part]
    assert {one.verdict for one in found} == {"not measured"}, found
    assert not any("failed" in one.found for one in found)


def test_speed_was_trained_on_both_devices(accepted: Accepted, record: Acceptance) -> None:
    assert all("12 steps were trained on the stand-in" in one.found for one in of(record, "speed"))
    runs = accepted.root / "results/probes/h100-node/accept/checkout/results/speed_dense_moe/runs"
    for cell in ("dense-fp8_delayed", "moe-fp8_delayed"):
        assert json.loads((runs / cell / "seed-1" / "result.json").read_text())["device_count"] == 2


def test_record_and_page_say_that_no_gpu_was_measured(accepted: Accepted, record: Acceptance) -> None:
    assert (record.stand_in, record.factors) == (True, {})
    assert "On the stand-in: no GPU was measured" in accepted.printed
    page = PdfReader((accepted.root / accept_file("h100-node")).with_suffix(".pdf"))
    text = " ".join(page.pages[0].extract_text().split())
    assert "On the stand-in: no GPU was measured" in text
    assert "Nothing follows for a plan" in text


def test_the_status_says_whether_anything_fell_short(accepted: Accepted, record: Acceptance) -> None:
    """What a small machine lacks (space on its disk, say) is a finding of the doctor's, and falls short like any."""
    assert {one.part for one in record.fell_short} <= {"doctor"}, record.fell_short
    assert accepted.status == (1 if record.fell_short else 0)


def test_a_run_that_differs_in_one_bit_falls_short(accepted: Accepted, tmp_path: Path) -> None:
    original = RunFolder(
        accepted.root / "results/probes/h100-node/accept/checkout/results/numerics/runs/dense-fp8_delayed/seed-1"
    )
    again = RunFolder(tmp_path / "again")
    shutil.copytree(original.path, again.path)
    assert same_bits(original, again)[1] == "passed"
    lines = again.metrics.read_text().splitlines(keepends=True)
    value = json.loads(lines[2])
    value["loss"] += 2**-40
    lines[2] = json.dumps(value) + "\n"
    again.metrics.write_text("".join(lines))
    assert same_bits(original, again) == ("step 3 is the first that differs, in loss", "fell short")
    shutil.copy(original.metrics, again.metrics)
    result = json.loads(again.result.read_text())
    again.result.write_text(json.dumps(result | {"parameters_sha256": "0" * 64}))
    found, verdict = same_bits(original, again)
    assert verdict == "fell short"
    assert "the final parameters differ" in found


def test_a_machine_without_a_gpu_is_told_so(checkout: Path) -> None:
    done = octavo(checkout, "accept", "h100-node")
    assert done.returncode == 1
    assert "CUDA shows no GPU on this machine" in done.stderr


def test_so_is_one_that_is_asked_for_gpus_that_it_does_not_have(checkout: Path) -> None:
    done = octavo(checkout, "accept", "h100-node", "--gpus", "2")
    assert done.returncode == 1
    assert "CUDA shows no GPU on this machine" in done.stderr


def test_a_cluster_of_cpus_and_a_recipe_that_the_gpu_lacks_are_refused(checkout: Path) -> None:
    done = octavo(checkout, "accept", "laptop")
    assert done.returncode == 1
    assert "the devices of laptop are CPUs" in done.stderr
    done = octavo(checkout, "accept", "h100-node", "--recipe", "nvfp4")
    assert done.returncode == 1
    assert "there is no recipe of H100 'nvfp4'" in done.stderr
