"""Verdicts, and what they say for a plan, from measurements that are written here."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.acceptance import expected, page, run
from octavo.acceptance.checks import at_least, check
from octavo.acceptance.trainings import PUBLISHED, Trainings
from octavo.acceptance.workshop import SMALL, WHOLE, Workshop
from octavo.cluster import node
from octavo.data.checks import check_text
from octavo.errors import OctavoError
from octavo.experiment.load import load_cluster
from octavo.files import write_json
from octavo.forecast.memory import fits, memory
from octavo.layout import configs
from octavo.precision.config import Precision
from octavo.precision.recipes import RECIPES, recipes_of
from octavo.records import (
    Acceptance,
    AcceptanceCheck,
    DeviceMeasures,
    DeviceProbe,
    DeviceState,
    MeasuredMessage,
    MeasuredProduct,
    NodeFinding,
)
from octavo.training.launch import started_together


def product(matrices: int = 1, recipe: str = "bf16", tflops: float | None = None, **more: Any) -> MeasuredProduct:
    sizes = {"rows": 8192, "inner": 8192, "columns": 8192} if matrices == 1 else {
        "rows": 384, "inner": 2048, "columns": 1024}  # fmt: skip
    return MeasuredProduct(recipe=recipe, matrices=matrices, tflops=tflops, **sizes, **more)


def rank(number: int, **found: Any) -> DeviceMeasures:
    values = {"products": [], "messages": [], "state": None} | found
    return DeviceMeasures(node="n0", rank=number, device="H100", stand_in=False, **values)


def test_a_product_is_expected_below_the_data_sheet_and_faster_in_fewer_bits() -> None:
    """A square of 8,192 on an H100, of 989 and 1,979 TFLOP/s; 64 experts of node-moe's are far from either."""
    device = load_cluster("h100-node", configs())[1]
    bf16, low = expected.product_tflops(product(), Precision(), device)
    fp8, _ = expected.product_tflops(product(), Precision(recipe="fp8_tensorwise"), device)
    grouped, _ = expected.product_tflops(product(64), Precision(recipe="fp8_tensorwise"), device)
    assert 0.5 * 989 < bf16 < 989
    assert 1.2 * bf16 < fp8 < 1979
    assert grouped < fp8 / 2
    assert low < bf16
    assert expected.peak_tflops(Precision(recipe="fp8_tensorwise"), device) == 1979


def test_the_slowest_device_decides_and_is_named() -> None:
    device = load_cluster("h100-node", configs())[1]
    _, least = expected.product_tflops(product(), Precision(), device)
    figures = [least * 1.2, least * 0.9, least * 1.1]
    ranks = [rank(number, products=[product(tflops=one)]) for number, one in enumerate(figures)]
    (found,) = run._products(ranks, ["bf16"], device, stand_in=False)
    assert found.verdict == "fell short"
    assert found.short_by == pytest.approx(0.1)
    assert found.found.startswith("rank 1 of 3: ")
    assert page.verdict(found) == "fell short by 10.0%"
    (found,) = run._products([ranks[0], ranks[2]], ["bf16"], device, stand_in=False)
    assert found.verdict == "passed"


def test_a_product_that_fails_falls_short_and_one_without_a_time_does_not_pass() -> None:
    device = load_cluster("h100-node", configs())[1]
    broken = rank(0, products=[product(error="RuntimeError: no kernel")])
    (found,) = run._products([broken, rank(1, products=[product(tflops=900)])], ["bf16"], device, stand_in=False)
    assert (found.verdict, found.found) == ("fell short", "it failed: RuntimeError: no kernel")
    (found,) = run._products([rank(0, products=[product()])], ["bf16"], device, stand_in=True)
    assert found.verdict == "not measured"


def message(ranks: int, rate: float, kind: Any) -> MeasuredMessage:
    return MeasuredMessage(kind=kind, ranks=ranks, bytes=256 << 20, gb_per_second=rate)


def test_messages_are_held_against_the_way_that_they_take() -> None:
    """An H100's NVLink is 450 GB/s a direction within 8 GPUs, its share of the network 50 GB/s beyond."""
    cluster, device = load_cluster("h100-16node", configs())

    def verdict(ranks: int, rate: float, kind: str = "all-reduce") -> str:
        measured = [rank(number, messages=[message(ranks, rate, kind)]) for number in range(2)]
        (found,) = run._messages(measured, cluster, device, stand_in=False)
        return found.verdict

    assert (verdict(8, 0.71 * 450), verdict(8, 0.69 * 450)) == ("passed", "fell short")
    assert (verdict(16, 36, "point-to-point"), verdict(16, 34, "point-to-point")) == ("passed", "fell short")
    # eight networks at once, 8 x 50 GB/s; and 8 of an all-to-all's 15 parts leave the node, 50 x 15 / 8 GB/s
    assert (verdict(16, 0.71 * 400), verdict(16, 0.69 * 400)) == ("passed", "fell short")
    assert (verdict(16, 0.71 * 93.75, "all-to-all"), verdict(16, 0.69 * 93.75, "all-to-all")) == (
        "passed", "fell short",
    )  # fmt: skip
    alone = list(run._messages([rank(0)], cluster, device, stand_in=False))
    assert [one.verdict for one in alone] == ["not measured"] * 3


def test_tasks_of_a_node_that_has_more_devices_share_a_smaller_link_domain() -> None:
    """Two nodes with four tasks each, of eight H100 a node: all-reduces take four networks of 50 GB/s."""
    cluster, device = load_cluster("h100-16node", configs())
    four, eight = message(4, 0, "all-reduce"), message(8, 0, "all-reduce")
    assert expected.message_gb_per_second(eight, cluster, device, 2)[0] == 4 * 50
    assert expected.message_gb_per_second(eight, cluster, device, 1)[0] == 450
    assert expected.message_gb_per_second(four, cluster, device, 1)[0] == 450
    wide = cluster.model_copy(update={"link_domain": 72, "devices_per_node": 4})
    assert expected.message_gb_per_second(message(72, 0, "all-to-all"), wide, device, 18)[0] == 450


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ((0, [], 1900), "passed"),
        ((1, [], 1900), "fell short"),
        ((0, ["hardware thermal"], 1900), "fell short"),
        ((0, [], 900), "fell short"),  # 45 % of the highest clock
        ((None, [], 1900), "not measured"),
        (None, "not measured"),
    ],
)
def test_memory_errors_and_slow_clocks_fall_short(state: Any, verdict: str) -> None:
    found = state and DeviceState(
        uncorrected_ecc_errors=state[0], slowed=state[1], clock_mhz=state[2], maximum_clock_mhz=1980
    )
    (one,) = run._states([rank(0, state=found)])
    assert one.verdict == verdict


class Nvml(SimpleNamespace):
    """NVIDIA's library at its boundary (nvml.h): one GPU with an ECC error and the clocks of a hot device."""

    NVMLError = RuntimeError
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_CLOCK_SM = 1, 0, 1

    def nvmlDeviceGetTotalEccErrors(self, *_: Any) -> int:  # noqa: N802
        if self.ecc is None:
            raise self.NVMLError("Not Supported")
        return self.ecc


@pytest.mark.parametrize("ecc", [3, None])
def test_the_state_of_a_device_is_nvml_s(monkeypatch: pytest.MonkeyPatch, ecc: int | None) -> None:
    library = Nvml(
        ecc=ecc,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda identity: {"GPU-1": "handle"}[identity],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x40 | 0x01,  # thermal, and idle
        nvmlDeviceGetClockInfo=lambda *_: 1200,
        nvmlDeviceGetMaxClockInfo=lambda *_: 1980,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    state = node.device_state("1")
    assert (state.uncorrected_ecc_errors, state.slowed) == (ecc, ["hardware thermal"])
    assert (state.clock_mhz, state.maximum_clock_mhz) == (1200, 1980)
    said = [one.found for one in node._nvml("1")]
    assert said[0] == "its clocks are slowed: hardware thermal"
    assert said[1] == ("3 uncorrected ECC errors" if ecc else "its memory errors are not counted (ECC)")


def test_parts_share_the_time_and_pass_on_what_they_do_not_use() -> None:
    ends = list(run._ends(100.0, 30).values())
    assert ends[-1] == 100 + 30 * 60
    assert all(before < after for before, after in pairwise([100.0, *ends]))


def probed(number: int, *findings: NodeFinding, tflops: float = 600) -> DeviceProbe:
    return DeviceProbe(
        node="n0", rank=number, python="3.11", image_digest=None, gemm_tflops=tflops, allreduce_gb_per_second=None,
        findings=list(findings),
    )  # fmt: skip


def test_of_the_doctors_notes_only_a_slow_device_falls_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NVML says of a GPU is the part `state`'s."""
    monkeypatch.setattr(run, "examine", list)
    cluster, _ = load_cluster("h100-node", configs())
    space = NodeFinding(what="space in /tmp", found="4.0 GiB free, 5 are comfortable", warns=True)
    uncounted = NodeFinding(what="GPU 1-2", found="its memory errors are not counted (ECC)", warns=True)
    counted = NodeFinding(what="GPU 1-3", found="3 uncorrected ECC errors")
    other = NodeFinding(what="GPU", found="A100 has compute capability 8.0, and H100 9.0")

    def short(*ranks: DeviceProbe) -> list[str]:
        for one in ranks:
            write_json(tmp_path / f"rank-{one.rank}.json", one.model_dump(mode="json"))
        found = list(run._doctor("h100-node", cluster, tmp_path, 1, len(ranks), stand_in=False))
        assert any(one.found.startswith(space.found) and one.verdict == "passed" for one in found)
        assert not any("ECC" in one.found for one in found)
        return [one.found for one in found if one.verdict == "fell short"]

    assert short(probed(0, space, uncounted), probed(1, counted)) == []
    assert short(probed(0, space, other), probed(1)) == [other.found]
    (slow,) = short(probed(0, space), probed(1), probed(2, tflops=500))
    assert "slower than the median" in slow


@pytest.mark.parametrize(("visible", "asked", "count"), [(4, None, 4), (16, None, 8), (4, 2, 2), (4, 8, None)])
def test_no_gpu_is_measured_by_two_ranks(
    monkeypatch: pytest.MonkeyPatch, visible: int, asked: int | None, count: int | None
) -> None:
    """All of a node's, or as many as are asked for and visible."""
    cluster, _ = load_cluster("h100-node", configs())
    monkeypatch.setattr(run, "_visible_gpus", lambda: visible)
    if count is None:
        with pytest.raises(OctavoError, match="4 GPUs are visible, --gpus asks for 8"):
            run.gpus_here(cluster, asked)
    else:
        assert run.gpus_here(cluster, asked) == count


def accepted(monkeypatch: pytest.MonkeyPatch, root: Path, gpus: int) -> Acceptance | None:
    """`octavo accept` in BF16 with devices that need no measuring."""

    def start(arguments: list[str], devices: int, *, together: bool) -> None:
        folder = Path(arguments[2 if arguments[0] == "probe-node" else 1])
        for number in range(devices):
            record = probed(number) if arguments[0] == "probe-node" else rank(number)
            write_json(folder / f"rank-{number}.json", record.model_dump(mode="json"))

    monkeypatch.setattr(run, "_start", start)
    monkeypatch.setattr(run, "examine", list)
    cluster, device = load_cluster("h100-node", configs())
    return run.accept("h100-node", cluster, device, root, ["bf16"], gpus, 30, lambda _: None)


def test_what_devices_showed_stays_where_runs_cannot_be_prepared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepare(*_: Any) -> None:
        raise OctavoError("the text to train on could not be prepared")

    monkeypatch.setattr(Workshop, "prepare", prepare)
    found = accepted(monkeypatch, tmp_path, 1)
    assert found is not None
    assert (found.checks[-1].part, found.checks[-1].verdict) == ("trainings", "fell short")
    assert "could not be prepared" in found.checks[-1].found
    assert "state" in {one.part for one in found.checks}
    assert found.factors == {}


@pytest.mark.parametrize(("seen", "trained"), [(8, 2), (1, 1)])
def test_under_srun_runs_take_the_gpus_that_the_leading_task_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seen: int, trained: int
) -> None:
    """Two tasks on one node; with --gpus-per-task=1 each sees its own."""
    step = {"NUM_TASKS": "2", "ID": "0", "NODELIST": "n0"}
    variables = {f"SLURM_STEP_{key}": value for key, value in step.items()}
    for name, value in {**variables, "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    given = []

    def none(workshop: Workshop, devices: int, stand_in: bool) -> None:
        given.append(devices)
        raise OctavoError("no run is wanted")

    monkeypatch.setattr(run, "Trainings", none)
    found = accepted(monkeypatch, tmp_path, seen)
    assert found is not None
    assert (found.devices, given) == (2, [trained])


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    workshop = Workshop(tmp_path / "checkout", "h100-node", SMALL, ["bf16", "fp8_tensorwise"])
    return Trainings(workshop, 1, stand_in=False)


def test_what_time_does_not_allow_is_not_measured(trainings: Trainings) -> None:
    """Four cells in each part. No run is begun."""
    for part in (trainings.against_emulation, trainings.determinism, trainings.resume, trainings.speed):
        found = list(part(0.0))
        assert {one.verdict for one in found} == {"not measured"}, found
        assert len(found) >= 4
    assert trainings.factors() == {}
    assert not list(trainings.workshop.root.glob("results/*/*/*/seed-*/metrics.jsonl"))


def test_a_run_that_the_clock_ends_is_not_measured_and_one_that_fails_falls_short(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run, which half a second is too short for; and one whose configuration cannot be read."""
    monkeypatch.setattr("octavo.acceptance.trainings.LEAST_SECONDS", 0.0)
    one = trainings._run("dense-bf16")
    folder = trainings._own("dense-bf16")

    def judged(end: float, *, goes_on: bool = False) -> AcceptanceCheck:
        error = trainings._attempt(one, folder, end, goes_on=goes_on)
        assert error is not None
        return trainings._failed("losses", "", "", "", error)

    cut = judged(time.monotonic() + 0.5)
    assert cut.found.startswith("the run was not over after")
    assert cut.verdict == "not measured"
    folder.path.with_name(f"{folder.path.name}.yaml").write_text("{")
    failed = judged(time.monotonic() + 600, goes_on=True)
    assert failed.found.startswith("the run failed with status 1")
    assert failed.verdict == "fell short"


def test_a_factor_is_that_of_every_model(trainings: Trainings) -> None:
    """The dense model's alone is none of the recipe's; 0.9 and 0.4 are 0.6 in the geometric mean."""
    trainings.speeds |= {"bf16": [0.9, 0.4], "fp8_tensorwise": [0.9]}
    assert trainings.factors() == {"bf16": pytest.approx(0.6)}


@pytest.mark.parametrize("cluster", ["h100-node", "b200-node", "l40s-node"])
def test_what_a_node_of_eight_trains_is_checked_and_fits(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the size that a GPU is given: layouts, recipes, and as much text as is trained and held out."""
    described, device = load_cluster(cluster, configs())
    recipes = recipes_of(device.compute_capability)
    workshop = Workshop(tmp_path / "checkout", cluster, WHOLE, recipes)
    monkeypatch.setenv("OCTAVO_ROOT", str(workshop.root))
    speed = workshop.speed(described.devices_per_node)
    emulated = workshop.emulated([one for one in recipes if RECIPES[one].emulated])
    published = [workshop.speed(described.devices_per_node, {role: name}) for role, name in PUBLISHED.items()]
    for experiment in (workshop.small_models(), emulated, speed, *published):
        check_text(experiment)
    assert len(speed.cells) == 2 * len(recipes)
    for cell in speed.cells.values():
        assert cell.model.vocabulary_size == 32768  # of configs/experiments/h100-node.yaml
        assert fits(memory(cell.model, cell.training, cell.parallelism, cell.precision, device).total, device)


def record(checks: list[AcceptanceCheck], factors: dict[str, float]) -> Acceptance:
    return Acceptance(
        cluster="mine", time=datetime(2026, 5, 1, tzinfo=UTC), octavo_version="1", git_commit=None, device="H100",
        devices=8, nodes=["n0"], stand_in=False, seconds=600, factors=factors, checks=checks,
    )  # fmt: skip


def test_the_page_says_what_follows_for_the_plan(tmp_path: Path) -> None:
    """Measured over forecast 0.8: 1 / 0.8 = 1.25 times the hours; FP8 at 0.6 gains 0.75 times what was forecast."""
    checks = [
        at_least("messages", "all-to-all", "", "", "", 90, 100),
        check("kill and resume", "moe-fp8_delayed", "", "", "", "fell short"),
        check("state", "n0, rank 3", "", "", "", "fell short"),
    ]
    found = record(checks, {"bf16": 0.8, "fp8_tensorwise": 0.6})
    said = " ".join(page.meaning(found))
    assert "In bf16 these GPUs reach 80% of the forecast's tokens/s" in said
    assert "`octavo plan` takes this into account from now on" in said
    assert "plans made before are to be multiplied by 1.25" in said
    assert "fp8_tensorwise gains 0.75 times what the forecast has it gain over BF16" in said
    assert "not to be trusted: moe-fp8_delayed" in said
    assert "slower than planned: all-to-all" in said
    assert "n0, rank 3" in said
    assert page.finding(found) == "0 of 3 checks passed, 3 fell short, 0 were not measured"
    data, pdf = page.write(found, tmp_path)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert Acceptance.model_validate_json(data.read_text()) == found


def test_without_a_speed_the_plan_stays_the_forecast() -> None:
    assert "the plan stays the forecast" in " ".join(page.meaning(record([], {})))


@pytest.mark.parametrize(
    ("variables", "tasks"),
    [({}, 1), ({"SLURM_STEP_NUM_TASKS": "16"}, 16), ({"WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1"}, 4)],
)
def test_tasks_that_srun_or_torchrun_started_are_counted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], tasks: int
) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_together() == tasks


def test_what_a_run_is_started_with_says_nothing_of_ranks(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under srun the leading task starts runs of its own; emulated ones see no GPU."""
    for name, value in {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "16", "RANK": "0", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    on_gpu = trainings.workshop.environment(on_gpu=True, device="5")
    assert not [name for name in on_gpu if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE")]
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "5"
    assert trainings.workshop.environment(on_gpu=False)["CUDA_VISIBLE_DEVICES"] == ""
