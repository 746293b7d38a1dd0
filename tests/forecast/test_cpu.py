"""The forecast of steps on a CPU: this machine's measured steps, else a table of others'."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.experiment.load import load_cluster, load_experiment
from octavo.files import fingerprint
from octavo.forecast import cpu, machine
from octavo.forecast.calibration import Kind, cpu_calibration
from octavo.forecast.cpu import OUTSIDE, SAME_MACHINE, WIDER, CpuSpeed, cpu_speed
from octavo.forecast.steps import forecast_step
from octavo.forecast.work import Work, work_of
from octavo.layout import configs, machine_file
from octavo.precision.config import RecipeName
from octavo.records import MachineSpeed, TimedStep, read_record


@pytest.fixture
def checkout(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configurations, and nothing measured."""
    (tmp_path / "configs").symlink_to(repository / "configs")
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    return tmp_path


def speed() -> CpuSpeed:
    return cpu_speed(*load_cluster("laptop", configs()))


Write = Callable[..., None]


COST = {"flops": 20e-12, "copied": 3e-9, "scores": 10e-9, "short_sums": 0.5e-9}
"""Seconds of what the made-up machine does."""
MODELS: dict[Kind, list[Work]] = {
    "dense": [Work(2e5), Work(1e6), Work(2e5, short_sums=5e4)],
    "experts": [Work(2e5, 256, 32), Work(1e6, 1152, 48), Work(4e5, 2048, 256), Work(4e5, 512, 256)],
}


def takes(work: Work, slower: float = 1.0) -> float:
    """Seconds of a token: 10 us, and what its work costs."""
    return slower * (10e-6 + sum(COST[name] * count for name, count in work._asdict().items()))


@pytest.fixture
def measured(checkout: Path) -> Write:
    """Write what a machine was measured to take that takes 1.5 times as long for mixtures, and more in FP8."""

    def write(identity: dict[str, str | int | float | None] | None = None, spread: float = 0.1) -> None:
        kinds: tuple[tuple[Kind, float], ...] = (("dense", 1.0), ("experts", 1.5))
        steps = [
            TimedStep(
                kind=kind, recipe=recipe, work=work._asdict(), seconds_per_token=takes(work, slower), spread=spread
            )
            for kind, factor in kinds
            for recipe, slower in (("bf16", factor), ("fp8_tensorwise", factor * 1.1), ("fp8_blockwise", factor * 1.2))
            for work in MODELS[kind]
            if recipe == "fp8_blockwise" or not work.short_sums
        ]
        of = identity or machine.identity()
        found = MachineSpeed(machine=of, time=datetime.now(UTC), processes=2, load=0.2, steps=steps)
        path = checkout / machine_file(fingerprint(of)[:12])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found.model_dump_json())

    return write


def test_a_step_costs_what_its_work_was_measured_to_cost(measured: Write) -> None:
    """Also of models that were not timed: three times the copies of any, 128 experts, another size."""
    measured()
    found = speed()
    for work in (Work(2e5), Work(6e5), Work(2e6)):
        assert found.seconds_per_token("dense", "bf16", work) == pytest.approx(takes(work))
    for work in (*MODELS["experts"], Work(7e5, 6144, 256), Work(3e5, 100, 8)):
        assert found.seconds_per_token("experts", "fp8_tensorwise", work) == pytest.approx(takes(work, 1.5 * 1.1))
    many, few = Work(5e5, 4096, 256), Work(5e5, 128, 8)  # 3,968 copies more and 248 scores, 1.5 times as dear
    slower = found.seconds_per_token("experts", "bf16", many) - found.seconds_per_token("experts", "bf16", few)
    assert slower == pytest.approx(1.5 * (3968 * 3e-9 + 248 * 10e-9))


def test_a_recipe_that_was_not_timed_is_as_slow_as_the_slowest(measured: Write) -> None:
    measured()
    assert speed().seconds_per_token("dense", "fp8_mxfp8", Work(1e6)) == pytest.approx(takes(Work(1e6), 1.2))


def test_short_sums_cost_what_they_cost_where_they_were_timed(measured: Write) -> None:
    """They were timed in one recipe of dense models: 0.5 ns, 1.2 times as dear there."""
    measured()
    found = speed()
    timed: tuple[tuple[Kind, RecipeName], ...] = (
        ("dense", "fp8_tensorwise"),
        ("dense", "fp8_blockwise"),
        ("experts", "fp8_blockwise"),
    )
    for kind, recipe in timed:
        plain, short = (found.seconds_per_token(kind, recipe, Work(5e5, short_sums=sums)) for sums in (0.0, 3e5))
        assert short - plain == pytest.approx(1.2 * 0.5e-9 * 3e5)


def test_work_far_from_what_was_measured_has_a_wider_interval(measured: Write) -> None:
    measured()
    found, wider = speed(), WIDER * SAME_MACHINE
    assert found.half_width_at("dense", Work(1e6 * OUTSIDE)) == found.half_width == SAME_MACHINE
    assert found.half_width_at("dense", Work(1.01e6 * OUTSIDE)) == wider
    assert found.half_width_at("dense", Work(1.9e5 / OUTSIDE)) == wider
    assert found.half_width_at("experts", Work(4e5, 2048 * OUTSIDE, 256 * OUTSIDE)) == SAME_MACHINE
    assert found.half_width_at("experts", Work(4e5, 2048, 257 * OUTSIDE)) == wider
    assert found.half_width_at("experts", Work(4e5, 2048, 256, short_sums=1)) == wider  # never timed with experts


def test_short_sums_are_counted_by_whole_columns() -> None:
    """A dense layer of hidden size 64, two heads of 32, width 192: 64 x 192 + 64 x 64 + 64 x 384 + 192 x 64 forward
    products, all columns multiples of 64, and as many for each gradient; two layers. Summed in FP32 none. Of hidden
    size 32 the gradients' 32 columns take as long as 64."""
    cell = load_experiment("laptop").cells["dense-fp8_blockwise+short_sums"]
    layer = 64 * 192 + 64 * 64 + 64 * 384 + 192 * 64
    assert work_of(cell).short_sums == 2 * 3 * layer
    assert work_of(load_experiment("laptop").cells["dense-fp8_blockwise"]).short_sums == 0
    attention = cell.model.attention.model_copy(update={"heads": 1, "kv_heads": 1})
    small = cell.model.model_copy(update={"hidden_size": 32, "attention": attention})
    forward = 32 * 128 + 32 * 64 + 32 * 384 + 192 * 64  # 96 and 32 columns take 128 and 64
    gradients = 96 * 64 + 32 * 64 + 384 * 64 + 32 * 192
    assert work_of(cell.model_copy(update={"model": small})).short_sums == 2 * (forward + 2 * gradients)


def test_the_work_of_a_mixture() -> None:
    """Two layers of 128 experts, 32 a token, hidden size 64: 2 x 32 x 64 values copied, 2 x 128 scores."""
    work = work_of(load_experiment("laptop").cells["moe-bf16+many_small_experts"])
    assert (work.copied, work.scores) == (4096, 256)


def test_steps_that_were_spread_make_the_interval_as_wide(measured: Write) -> None:
    measured(spread=0.5)
    assert speed().half_width == 0.5
    assert "as wide as the measured steps were spread" in " ".join(speed().notes)


def test_the_parts_of_a_step_add_up_and_none_is_negative(measured: Write) -> None:
    measured()
    experiment = load_experiment("laptop")
    for cell in experiment.cells.values():
        step = forecast_step(cell, experiment.cluster, experiment.device)
        assert sum(step.breakdown.values()) == pytest.approx(step.seconds)
        assert min(step.breakdown.values()) >= 0
        assert (step.breakdown["experts on CPUs"] > 0) == (cell.architecture == "moe")
        assert (step.breakdown["FP8 emulation"] > 0) == (cell.precision.recipe != "bf16")


def test_another_machines_file_is_not_this_ones(measured: Write) -> None:
    measured({**machine.identity(), "cores": 1000})
    assert speed().half_width == pytest.approx(math.log(cpu_calibration().spread))
    assert "this one was not measured" in " ".join(speed().notes)


def test_a_cluster_of_other_machines_does_not_take_this_ones_rates(measured: Write) -> None:
    measured()
    cluster, device = load_cluster("laptop", configs())
    slurm = load_cluster("h100-node", configs())[0].slurm
    assert slurm is not None
    assert machine.speed_files(cluster, device) != []
    others = cluster.model_copy(update={"slurm": slurm})
    assert machine.speed_files(others, device) == []
    # what the configuration says alone, a plan forecasts again when it is checked
    assert cpu_speed(cluster, device).measured
    assert not cpu_speed(others, device).measured


def test_a_file_that_is_cut_short_says_how_to_make_it_again(measured: Write, checkout: Path) -> None:
    measured()
    path = checkout / machine_file(fingerprint(machine.identity())[:12])
    path.write_text(path.read_text()[:100])
    with pytest.raises(OctavoError, match="octavo calibrate"):
        speed()


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(("slower", "flags"), [(1.0, "avx512_bf16"), (2.2, "avx2 fma")])
def test_the_table_has_a_step_for_every_cost(monkeypatch: pytest.MonkeyPatch, slower: float, flags: str) -> None:
    """So that what it says of the steps that it rests on is what they took, with BF16 instructions or without."""
    monkeypatch.setattr(cpu, "processor", lambda: {"cpu_flags": flags})
    found, table = speed(), cpu_calibration()
    assert table.without_bf16 == 2.2
    for step in table.steps:
        seconds = found.seconds_per_token(step.kind, step.recipe, Work(**step.work))
        assert seconds == pytest.approx(slower * step.seconds_per_token, rel=0.02)
    for kind in ("dense", "experts"):
        for recipe in ("bf16", "fp8_blockwise"):
            costs = found.costs[kind, recipe]
            needed = [True, True, kind == "experts", kind == "experts", True]
            assert [cost > 0 for cost, counts in zip(costs, needed, strict=True) if counts] == [True] * sum(needed)


def test_this_machine_is_measured_by_steps_of_real_models(checkout: Path) -> None:
    """The file holds all that was timed, and the larger models, those of `quickstart`, are forecast so."""
    done = CliRunner().invoke(app, ["calibrate"])
    assert done.exit_code == 0, done.output
    path = checkout / machine_file(fingerprint(machine.identity())[:12])
    found = read_record(path, MachineSpeed, made_by=machine.MADE_BY)
    assert len(found.steps) == len(machine.anchors()) == len(done.stdout.splitlines()) - 1
    experiment = load_experiment("quickstart")
    for name, kind in (("dense-bf16", "dense"), ("moe-fp8_tensorwise", "experts")):
        cell = experiment.cells[name]
        (own,) = (
            one.seconds_per_token
            for one in found.steps
            if one.kind == kind and one.recipe == cell.precision.recipe and one.work == work_of(cell)._asdict()
        )
        step = forecast_step(cell, experiment.cluster, experiment.device)
        assert step.seconds == pytest.approx(own * cell.training.tokens_per_step, rel=0.2)  # costs fit all steps
        assert 1e-3 < step.seconds < 10
    small, large = sorted(
        (one for one in found.steps if (one.kind, one.recipe) == ("dense", "bf16")), key=lambda one: one.work["flops"]
    )
    assert small.seconds_per_token < large.seconds_per_token


def test_without_the_models_there_is_no_measurement(checkout: Path, repository: Path) -> None:
    """Without the experiment whose models are trained there is nothing to measure; no file is left."""
    (checkout / "configs").unlink()
    shutil.copytree(repository / "configs", checkout / "configs")
    (checkout / "configs/experiments/quickstart.yaml").unlink()
    failed = CliRunner().invoke(app, ["calibrate"])
    assert isinstance(failed.exception, OctavoError)
    assert "quickstart" in str(failed.exception)
    assert not (checkout / "results").exists()
