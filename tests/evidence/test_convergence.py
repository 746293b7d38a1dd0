"""Convergence against a reference, as MLPerf Training's rules have it.

The numbers are those of the appendix "RCP Examples" of mlcommons/training_policies, training_rules.adoc: benchmark A
asks for 5 runs and has reference points at batch sizes 128 and 256. The reference points of DeepSeek-V3 are those of
mlcommons/logging; their limits are worked out here by hand.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from octavo.configuration import read_section
from octavo.errors import OctavoError
from octavo.evidence.convergence import Reference, ReferencePoint, convergence, judge, limit_at, limits, read_reference
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import write_table

SMALL = ReferencePoint(batch_size=128, samples=[16, 14, 16, 17, 16, 16, 15, 16, 15, 16])
LARGE = ReferencePoint(batch_size=256, samples=[20, 21, 21, 20, 22, 22, 21, 21, 20, 20])
FASTER = "faster than the reference by more than chance"


def reference(*points: ReferencePoint) -> Reference:
    return Reference(
        source="appendix", validation="a", target_loss=3.0, sequence_length=16, runs=5, points=list(points)
    )


A = reference(SMALL, LARGE)


def test_mean_spread_and_least_mean_of_a_reference_point() -> None:
    small, large = limits(A)
    assert (small.mean, small.spread) == (15.75, pytest.approx(0.43, abs=0.005))
    assert (large.mean, large.spread) == (20.75, pytest.approx(0.66, abs=0.005))
    assert small.least(5) == pytest.approx(15.21, abs=0.005)
    assert large.least(5) == pytest.approx(19.93, abs=0.005)


@pytest.mark.parametrize(
    ("batch_size", "samples", "outcome"),
    [
        (128, [15, 15, 15, 16, 16], "not faster than the reference"),  # S1: 15.33 > 15.21
        (256, [19, 19, 19, 20, 21], FASTER),  # S2: 19.33 < 19.93
        (192, [17, 18, 18, 18, 20], "not faster than the reference"),  # S3: 18 > 18.25 / 1.0368
        (512, [25, 25, 25, 25, 25], "no reference point"),  # S4
        (64, [15, 16, 16, 16, 16], "not faster than the reference"),  # S5: not even at batch size 128
        (64, [12, 12, 12, 12, 12], "no reference point"),  # S6
        (128, [15, 15, 15, 16, math.inf], "not faster than the reference"),  # one may fail: it is the worst
        (128, [15, 15, 15, math.inf, math.inf], "not converged"),
        (128, [15, 15, 15, 16], "too few runs"),
    ],
)
def test_runs_are_judged_as_in_the_rules_examples(batch_size: int, samples: list[float], outcome: str) -> None:
    assert judge("a", batch_size, samples, A).outcome == outcome


def test_between_batch_sizes_mean_and_spread_are_interpolated() -> None:
    between = limit_at(limits(A), 192, 5)
    assert between is not None
    assert (between.mean, between.spread) == (18.25, pytest.approx(0.547, abs=0.001))
    assert between.mean / between.least(5) == pytest.approx(1.0368, abs=0.0002)


def test_a_point_slower_than_the_line_between_its_neighbours_is_pruned() -> None:
    """Rules: points at 10, 20, 20 epochs for batch sizes 128, 256, 512: the one at 256 goes (15 is on the line)."""
    points = [ReferencePoint(batch_size=size, samples=[mean] * 4) for size, mean in ((128, 10), (256, 20), (512, 20))]
    assert [limit.batch_size for limit in limits(reference(*points))] == [128, 512]


def test_points_at_smaller_batches_than_the_fastest_are_pruned() -> None:
    points = [ReferencePoint(batch_size=size, samples=[mean] * 4) for size, mean in ((64, 12), (128, 10), (256, 20))]
    assert [limit.batch_size for limit in limits(reference(*points))] == [128, 256]


def test_where_mlperfs_checker_accepts_what_the_rules_do_not_that_is_said() -> None:
    """Of all ten runs at batch 128 the spread is 0.78: 15.75 - 1.833 x 0.78 x sqrt(1/8 + 1/3) = 14.78 < 15 < 15.21."""
    judged = judge("a", 128, [15, 15, 15, 15, 15], A)
    assert judged.outcome == FASTER
    assert "checker" in judged.note
    assert not judge("a", 128, [14, 14, 14, 14, 14], A).note


def test_the_published_points_of_deepseek_v3(repository: Path) -> None:
    """Batch 15,360: without 691,200 and a 737,280 the mean is (3 x 721,920 + 737,280) / 4 = 725,760 and the spread
    15,360 sqrt(3) / 4 = 6,651; with 4 + 1 - 2 degrees of freedom t is 2.353, and the least mean of three runs
    725,760 - 2.353 x 6,651 x sqrt(1/4 + 1) = 708,262."""
    held = read_section(repository / "configs/published/convergence/deepseekv3_671b.yaml", Reference)
    first, second, third = limits(held)
    assert [limit.batch_size for limit in (first, second, third)] == [15360, 16384, 18432]
    assert (first.mean, first.spread) == (725_760, pytest.approx(6651, abs=1))
    assert first.least(3) == pytest.approx(708_262, abs=5)
    assert (second.mean, third.mean) == (765_952, 861_696)
    assert judge("a", 15360, [721_920, 721_920, 721_920], held).outcome == "not faster than the reference"
    assert judge("a", 15360, [706_560, 706_560, 706_560], held).outcome == FASTER


# --- from tables ----------------------------------------------------------------------------------------------------


def tables(folder: ExperimentFolder, runs: dict[int, list[float]], *, validation: str | None = "a") -> ExperimentFolder:
    """Runs of one cell with 128 sequences of 16 tokens a step and these validation losses after each step."""
    rows = [
        {"experiment": "e", "cell": "moe-bf16", "seed": seed, "step": i, "tokens": i * 2048, "validation_loss": loss}
        for seed, losses in runs.items()
        for i, loss in enumerate(losses, 1)
    ]
    write_table(folder.steps_table, pd.DataFrame(rows), "steps")
    run = {
        "experiment": "e", "cell": "moe-bf16", "architecture": "moe", "precision": "bf16", "status": "completed",
        "emulated": False, "attempts": 0, "validation": validation,
    }  # fmt: skip
    of_runs = [
        {**run, "seed": seed, "steps": len(one), "tokens": len(one) * 2048, "validation_loss": one[-1]}
        for seed, one in runs.items()
    ]
    write_table(folder.runs_table, pd.DataFrame(of_runs), "runs")
    return folder


def test_samples_to_the_target_are_read_from_the_tables(tmp_path: Path) -> None:
    """Three sequences of losses that first reach 3.0 after 2, 3 and 4 steps of 128 sequences."""
    runs = {1: [3.5, 3.0, 3.1], 2: [3.5, 3.2, 2.9], 3: [3.5, 3.4, 3.3, 2.9], 4: [3.5, 3.4], 5: [3.5, 3.3, 2.8]}
    (found,) = convergence(tables(ExperimentFolder(tmp_path / "e"), runs), A)
    assert found.batch_size == 128
    assert found.samples == [256, 384, 512, math.inf, 384]


def test_losses_of_another_text_are_refused(tmp_path: Path) -> None:
    folder = tables(ExperimentFolder(tmp_path / "e"), {1: [3.5, 3.0]}, validation="b")
    with pytest.raises(OctavoError, match="are of 'b'"):
        convergence(folder, A)


def test_the_reference_is_found_by_what_the_runs_validate_on(tmp_path: Path, repository: Path) -> None:
    folder = tables(ExperimentFolder(tmp_path / "e"), {1: [3.5, 3.0]}, validation="mlperf/deepseekv3_671b")
    configs = ConfigFolders(repository / "configs")
    assert read_reference(None, folder, configs).target_loss == 3.6
    with pytest.raises(OctavoError, match="no reference 'gpt5'"):
        read_reference("gpt5", folder, configs)
    other = tables(ExperimentFolder(tmp_path / "f"), {1: [3.5, 3.0]}, validation=None)
    with pytest.raises(OctavoError, match="not stated"):
        read_reference(None, other, configs)
