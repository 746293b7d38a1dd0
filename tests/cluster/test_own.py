"""The pipeline inside an allocation of one's own: runs are steps side by side, and hours are the steps'."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from octavo.cluster.own import OwnAllocation, parse_job
from octavo.privacy import expand
from tests.cluster.conftest import Checkout, make_checkout
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster
from tests.cluster.test_faults import hold, run, wait_for
from tests.cluster.test_slurm_pipeline import steps_logged

SHOWN = (
    "JobId=4 JobName=interactive UserId=a(1) JobState=RUNNING Reason=None EndTime=2026-11-30T14:14:42 "
    "NodeList=node[1-2] NumNodes=2 NumCPUs=8 ReqTRES=cpu=4 {tres} TresPerNode={per_node}"
)
"""As Slurm 22.05 prints it (TRES=), and newer ones (AllocTRES=)."""


@pytest.mark.parametrize("key", ["TRES", "AllocTRES"])
@pytest.mark.parametrize(
    ("tres", "per_node", "gpus"),
    [
        ("cpu=8,mem=16000M,node=2,billing=8,gres/gpu=4,gres/gpu:h100=4", "gres:gpu:h100:2", 4),
        ("cpu=8,mem=16000M,node=2,billing=8", "gres:gpu:h100:3", 6),  # gres/gpu is not in AccountingStorageTRES
        ("cpu=8,mem=16000M,node=2,billing=8", "gres/gpu:2", 4),
        ("cpu=8,mem=16000M,node=2,billing=8", "(null)", 0),
    ],
)
def test_what_an_allocation_has(key: str, tres: str, per_node: str, gpus: int) -> None:
    found = parse_job("4", SHOWN.format(tres=f"{key}={tres}", per_node=per_node))
    end = datetime(2026, 11, 30, 14, 14, 42)
    assert found == OwnAllocation("4", nodes=("node1", "node2"), cores=8, memory_mb=16000, gpus=gpus, end=end)


def test_an_allocation_that_is_over_is_none() -> None:
    assert parse_job("4", "JobId=4 JobState=COMPLETING NumNodes=2 NumCPUs=8") is None
    assert parse_job("4", "slurm_load_jobs error: Invalid job id specified") is None


# --- on a real Slurm ------------------------------------------------------------------------------------------------

RUNS = {cell: f"results/tiny/runs/{cell}/seed-1/result.json" for cell in ("moe-bf16", "dense-bf16")}
TABLES = "results/tiny/attempts.parquet"


@pytest.fixture(scope="module")
def checkout(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make_checkout(tmp_path_factory.mktemp("own") / "octavo")
    made.configure(time_limit_minutes=20)
    return made


def inside(checkout: Checkout, *targets: str, gpus: int, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The pipeline in an allocation of so many nodes of one GPU each."""
    pipeline = ("snakemake", "--profile", "workflow/profiles/allocation", "--latency-wait", "10", "--", *targets)
    asked = (f"--account={ACCOUNT}", "--partition=gpu", f"--nodes={gpus}", "--gres=gpu:h100:1", "--mem=8000")
    return checkout.start("salloc", *asked, "--time=30", *options, *pipeline)


def ledger(checkout: Checkout) -> pd.DataFrame:
    return pd.read_parquet(checkout.root / TABLES).sort_values("start")


def sacct(job: str) -> tuple[str, int, int]:
    """State, seconds and GPUs of a step."""
    (line,) = run("sacct", "-nP", f"--jobs={job}", "--format=State,ElapsedRaw,AllocTRES").splitlines()
    state, elapsed, tres = line.split("|")
    return state, int(elapsed), int(dict(part.split("=") for part in tres.split(","))["gres/gpu"])


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_runs_are_steps_side_by_side_that_go_on_in_the_next_allocation(checkout: Checkout) -> None:
    cell = "moe-bf16"
    pipeline = inside(checkout, RUNS[cell], gpus=1)
    wait_for(lambda: steps_logged(checkout.run("tiny", cell)) >= 50, pipeline)
    hold(cell)
    (first,) = checkout.attempts("tiny", cell)
    run("scancel", first["slurm_job_id"].split(".")[0])  # as at its time limit: the ranks are told, and save
    pipeline.communicate(timeout=1800)

    checkout.finish(inside(checkout, *RUNS.values(), TABLES, gpus=3))
    rows = ledger(checkout)
    assert rows["state"].tolist() == ["signalled", "completed", "completed"]
    assert rows["source"].tolist() == ["sacct"] * 3
    for row in rows.to_dict("records"):
        _, elapsed, gpus = sacct(row["job"])
        assert row["devices"] == gpus == (2 if row["cell"] == "dense-bf16" else 1)
        assert row["device_hours"] * 3600 == pytest.approx(elapsed * gpus)
    begun, resumed, dense = (rows[rows["cell"] == one].iloc[which] for one, which in
                             ((cell, 0), (cell, 1), ("dense-bf16", 0)))  # fmt: skip
    assert resumed["first_step"] == begun["last_step"] >= 50
    assert resumed["job"].split(".")[0] == dense["job"].split(".")[0]
    assert max(resumed["start"], dense["start"]) < min(resumed["end"], dense["end"])  # side by side
    assert "3 attempts compared" in checkout.octavo("reconcile", "tiny")


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_an_allocation_that_is_too_small_is_one_message(checkout: Checkout) -> None:
    (checkout.root / RUNS["dense-bf16"]).unlink()
    printed, _ = (pipeline := inside(checkout, RUNS["dense-bf16"], gpus=1)).communicate(timeout=1800)
    assert pipeline.returncode != 0
    assert printed.count("a run of dense-bf16 takes 2 devices, and this allocation has 1") == 1


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_all_runs_are_on_the_same_nodes_or_are_not_started(slurm: SlurmCluster, tmp_path: Path) -> None:
    """By the call of sbatch that is printed. The dense model takes two nodes, the mixture of experts one of them."""
    checkout = make_checkout(tmp_path / "octavo")
    checkout.configure(same_nodes=True, partition="gpu", time_limit_minutes=20)
    printed, _ = (refused := checkout.snakemake(TABLES)).communicate(timeout=1800)
    assert refused.returncode == 1
    assert "Traceback" not in printed
    (call,) = (line.strip() for line in printed.splitlines() if line.strip().startswith("sbatch "))
    assert call in checkout.octavo("show", "tiny", "moe-bf16/seed-1")
    call = call.replace("results/tiny/report.pdf", TABLES)  # which is enough here
    checkout.finish(checkout.start("sh", "-c", f"{call} --wait --output=pipeline.log"))

    rows = ledger(checkout).set_index("cell")
    assert rows["state"].tolist() == ["completed"] * 2
    first, second = (expand(run("sacct", "-nPj", job, "--format=NodeList").strip()) for job in rows["job"])
    dense, moe = (first, second) if rows.index[0] == "dense-bf16" else (second, first)
    assert len(dense) == 2
    assert len(moe) == 1
    assert set(moe) < set(dense)
    assert rows["end"].iloc[0] <= rows["start"].iloc[1]

    other = next(node for node in slurm.nodes if node not in dense)
    (checkout.root / RUNS["moe-bf16"]).unlink()
    elsewhere = inside(checkout, RUNS["moe-bf16"], gpus=1, options=(f"--nodelist={other}",))
    printed, _ = elsewhere.communicate(timeout=1800)
    assert printed.count(f"other runs were on {moe[0]}, and this allocation has not {moe[0]}") == 1
    assert len(checkout.attempts("tiny", "moe-bf16")) == 1
