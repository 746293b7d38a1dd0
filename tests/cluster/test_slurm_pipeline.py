"""The pipeline on a real Slurm: pre-empted, killed, capped, locked, and with books that agree with Slurm's.

One story in order, on one cluster: every test looks at another side of it, the later ones go on from the earlier.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.conftest import ABLATION, CLUSTER, Checkout, make_checkout
from tests.cluster.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CELLS = ("dense-bf16", "moe-bf16")


@dataclass
class Story:
    """What happened: the checkout, and what the pipelines printed."""

    checkout: Checkout
    printed: str
    second: subprocess.CompletedProcess[str]
    """A second snakemake on the same experiment."""


def test_both_runs_finish_although_one_was_preempted_and_the_other_killed(story: Story) -> None:
    reasons = {cell: [one["exit_reason"] for one in attempts(story, "tiny", cell)] for cell in CELLS}
    assert reasons == {"dense-bf16": ["signalled", "completed"], "moe-bf16": ["killed", "completed"]}
    states = {cell: [row.state for row in books(story).query(f"cell == '{cell}'").itertuples()] for cell in CELLS}
    assert states == {"dense-bf16": ["preempted", "completed"], "moe-bf16": ["killed", "completed"]}


def test_they_went_on_from_their_newest_checkpoint(story: Story) -> None:
    for cell in CELLS:
        first, second = attempts(story, "tiny", cell)
        assert second["first_step"] >= 40
        assert second["first_step"] <= first["last_step"]


@pytest.mark.parametrize("cell", CELLS)
def test_losses_are_those_of_the_undisturbed_run_to_the_last_bit(story: Story, cell: str) -> None:
    disturbed, undisturbed = losses(story, "tiny", cell), losses(story, "undisturbed", cell)
    assert len(disturbed) == 200 + 1 + 1  # steps, and validations on the way and at the end
    assert disturbed == undisturbed
    assert len(attempts(story, "undisturbed", cell)) == 1


def test_a_run_on_two_nodes_has_a_rank_on_each(story: Story) -> None:
    (attempt,) = attempts(story, "undisturbed", "dense-bf16")
    assert attempt["device_count"] == 2
    (row,) = sacct(story, "rule_train_wildcards_undisturbed_dense-bf16_1")
    assert row["node"] == 2


def test_device_hours_are_slurms(story: Story) -> None:
    """GPUs allocated x elapsed, over every row of sacct, earlier rows of a requeued job included."""
    assert set(books(story)["source"]) == {"sacct"}
    for cell in CELLS:
        seconds = sum(row["gpu"] * row["elapsed"] for row in sacct(story, f"rule_train_wildcards_tiny_{cell}_1"))
        ours = books(story).query(f"cell == '{cell}'")["device_hours"].sum() * 3600
        assert ours == pytest.approx(seconds, abs=1e-6)
    assert "0 differences" in story.checkout.octavo("reconcile", "results/tiny")


def test_lost_attempts_are_in_the_all_in_cost_alone(story: Story) -> None:
    runs = pd.read_parquet(story.checkout.root / "results/tiny/runs.parquet").set_index("cell")
    assert (runs["attempts"] == 2).all()
    killed = books(story).query("cell == 'moe-bf16' and state == 'killed'")["device_hours"].iloc[0]
    lost = runs.loc["moe-bf16", "device_hours_all_in"] - runs.loc["moe-bf16", "device_hours_final"]
    assert 0 < lost <= killed  # its steps up to the checkpoint count, those after it do not
    whole = pd.read_parquet(story.checkout.root / "results/undisturbed/runs.parquet")
    assert (whole["device_hours_all_in"] == whole["device_hours_final"]).all()


def test_runs_never_held_more_devices_than_the_cap(story: Story) -> None:
    rows = [
        row for name in ("tiny", "undisturbed") for cell in CELLS for row in sacct(story, f"{name}_{cell}_1", part=True)
    ]
    held = [sum(row["gpu"] for row in rows if row["start"] <= at["start"] < row["end"]) for at in rows]
    assert max(held) <= CLUSTER["slurm"]["max_concurrent_devices"]


def test_a_second_pipeline_says_so_and_leaves(story: Story) -> None:
    assert story.second.returncode != 0
    assert "locked" in story.second.stdout.lower()


def test_the_reports_books_can_be_made_again_without_slurm(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    before = books(story)
    nowhere = Checkout(story.checkout.root, (without_sacct(story.checkout),))
    monkeypatch.setenv("PATH", "")
    nowhere.octavo("aggregate", "results/tiny")
    assert books(story).equals(before)


def test_an_ablation_added_afterwards_trains_its_own_run_alone(story: Story) -> None:
    """Its baseline is there already."""
    story.checkout.configure(ablations={"shared": ABLATION})
    target = "results/tiny/ablations/shared/runs.parquet"
    planned = story.checkout.finish(story.checkout.snakemake(target, options=("--dry-run",)))
    assert planned.count("rule train:") == 1
    assert "cell=moe-bf16+shared," in planned
    last = max(row["job"] for row in sacct(story, "rule_train", part=True))
    story.checkout.finish(story.checkout.snakemake(target))
    new = [row["comment"] for row in sacct(story, "rule_train", part=True) if row["job"] > last]
    assert new == ["rule_train_wildcards_tiny_moe-bf16+shared_1"]


def test_overhead_per_job(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """From the allocation of an undisturbed job to its first step: what the pipeline costs the devices."""
    seconds = []
    for cell in CELLS:
        (row,) = sacct(story, f"rule_train_wildcards_undisturbed_{cell}_1")
        first = json.loads((story.checkout.run("undisturbed", cell) / "metrics.jsonl").open().readline())
        seconds.append(first["time"] - row["start"])
    with capsys.disabled():
        print(
            "\npipeline overhead per job, from its start to its first step: "
            f"{seconds[0]:.0f} s (two nodes), {seconds[1]:.0f} s (one)"
        )
    assert min(seconds) > 0


def test_show_prints_what_was_submitted(story: Story) -> None:
    shown = story.checkout.octavo("show", "tiny", "dense-bf16/seed-1")
    (submitted,) = {row["line"] for row in sacct(story, "rule_train_wildcards_tiny_dense-bf16_1")}
    for option in (
        "-A lab",
        "-p spot",
        "-t 5",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gres=gpu:h100:1",
        "--cpus-per-task=1",
    ):
        assert option in shown
        assert option in submitted
    assert "exec srun --nodes=2 --ntasks=2" in shown


def test_the_doctor_finds_what_the_cluster_file_asks_for(story: Story) -> None:
    found = story.checkout.octavo("doctor", "--cluster", "fake")
    for what in ("fake: partition", "fake: gpu:h100", "fake: account"):
        assert what in found


# --- the story ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    checkout = make_checkout(tmp_path_factory.mktemp("cluster") / "octavo")
    tables = [f"results/{name}/runs.parquet" for name in ("tiny", "undisturbed")]
    pipeline = checkout.snakemake(*tables)
    try:
        disturb(checkout, pipeline, {"dense-bf16": preempt, "moe-bf16": kill})
        second = checkout.snakemake(tables[0])
        said, _ = second.communicate(timeout=60)
        printed = checkout.finish(pipeline)
    except BaseException:
        pipeline.kill()
        raise
    return Story(checkout, printed, subprocess.CompletedProcess([], second.returncode, said))


def disturb(checkout: Checkout, pipeline: subprocess.Popen[str], how: dict[str, Callable[[str], None]]) -> None:
    """Do to the runs of `tiny` what is to be done, each ten steps after its first checkpoint."""
    left, end = dict(how), time.monotonic() + 200
    while left:
        for cell in [cell for cell in left if steps_logged(checkout.run("tiny", cell)) >= 50]:
            left.pop(cell)(f"tiny_{cell}_1")
        if pipeline.poll() is not None:
            pytest.fail(f"the pipeline ended: {pipeline.communicate()[0]}")
        assert time.monotonic() < end, f"no steps of {', '.join(left)}"
        time.sleep(0.05)


def steps_logged(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"loss":') if metrics.exists() else 0


def preempt(comment: str) -> None:
    """A job of the partition that comes first wants one of the run's nodes."""
    _, nodes = running(comment)
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True)
    urgent = ["sbatch", "--account=lab", "--partition=gpu", f"--nodelist={listed.stdout.split()[-1]}"]
    subprocess.run([*urgent, "--gres=gpu:h100:1", "--output=/dev/null", "--wrap=sleep 1"], check=True)


def kill(comment: str) -> None:
    """SIGKILL to the run's ranks."""
    job, _ = running(comment)
    subprocess.run(["scancel", "--signal=KILL", f"{job}.0"], check=True)


def running(comment: str) -> tuple[str, str]:
    """Number and nodes of the running job of a run."""
    shown = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%A|%k|%N"], check=True, capture_output=True, text=True)
    rows = [line.split("|") for line in shown.stdout.splitlines()]
    return next((job, nodes) for job, named, nodes in rows if named.endswith(comment))


# --- what there is to see -------------------------------------------------------------------------------------------


def attempts(story: Story, experiment: str, cell: str) -> list[dict]:
    text = (story.checkout.run(experiment, cell) / "attempts.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(story: Story, experiment: str, cell: str) -> dict[tuple[int, str], float]:
    """By step and kind: the last line of a step is the one that counts."""
    text = (story.checkout.run(experiment, cell) / "metrics.jsonl").read_text()
    found = {}
    for line in map(json.loads, text.splitlines()):
        for kind in ("loss", "validation_loss"):
            if line.get(kind) is not None:
                found[line["step"], kind] = line[kind]
    return found


def books(story: Story) -> pd.DataFrame:
    frame = pd.read_parquet(story.checkout.root / "results/tiny/attempts.parquet")
    return frame.sort_values(["cell", "start"]).reset_index(drop=True)


def sacct(story: Story, comment: str, *, part: bool = False) -> list[dict]:
    """Slurm's rows of the jobs with a comment (or with it in their comment), read here without Octavo's help."""
    fields = "JobIDRaw,WorkDir,Comment,State,ElapsedRaw,AllocTRES,Start,End,SubmitLine"
    asked = subprocess.run(
        ["sacct", "-D", "-X", "-n", "-P", "-S", "now-1day", f"--format={fields}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = []
    for line in asked.stdout.splitlines():
        job, folder, named, state, elapsed, tres, start, end, submitted = line.split("|", 8)
        if folder != str(story.checkout.root) or start == "Unknown":
            continue
        if not (comment in named if part else named == comment):
            continue
        counts = dict(item.split("=") for item in tres.split(","))
        rows.append(
            {"job": int(job), "comment": named, "state": state, "elapsed": int(elapsed), "line": submitted,
             "gpu": int(counts["gres/gpu"]), "node": int(counts["node"]),
             "start": datetime.fromisoformat(start).timestamp(), "end": datetime.fromisoformat(end).timestamp()}
        )  # fmt: skip
    return rows


def without_sacct(checkout: Checkout) -> Path:
    """A folder for PATH that holds what `octavo` is started by and nothing of Slurm's."""
    folder = checkout.root / "elsewhere"
    folder.mkdir(exist_ok=True)
    (folder / "octavo").symlink_to(checkout.programs[0] / "octavo")
    return folder
