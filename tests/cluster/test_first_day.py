"""A first-time user on a real Slurm: a cluster file is written, nodes are looked at, a plan made, the grid run.

And what a wrong cluster file does to the pipeline: one message, and no job.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from octavo.cluster.new import Kind, device_of
from octavo.cluster.queue import queue
from octavo.experiment.cluster import Cluster
from tests.cluster.conftest import EXPERIMENT, PROGRAMS, make_checkout
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster
from tests.cluster.test_faults import hold, run, wait_for
from tests.cluster.test_slurm_pipeline import steps_logged

KNOWN = ["a100", "b200", "cpu", "gb200", "h100", "l40s"]


@pytest.mark.parametrize(
    ("gpu_type", "device"),
    [("h100", "h100"), ("nvidia_h100_80gb_hbm3", "h100"), ("A100-SXM4-80GB", "a100"), ("gb200", "gb200"),
     ("NVIDIA L40S", "l40s"), ("v100", None), (None, None)],
)  # fmt: skip
def test_the_device_that_a_type_of_slurms_names(gpu_type: str | None, device: str | None) -> None:
    assert device_of(gpu_type, 8, KNOWN) == device
    assert device_of(gpu_type, 0, KNOWN) == "cpu"


def test_nodes_are_offered_in_words() -> None:
    kind = Kind("gpu", True, "h100", 8, 4, 96, 1_031_000, 720.0)
    assert str(kind) == "gpu (default): 4 nodes of 8 x h100, 96 cores and 1031 GB, 720 minutes at most"


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_from_a_login_prompt_to_a_running_grid(slurm: SlurmCluster, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "octavo")
    path = checkout.root / "configs/clusters/mine.yaml"
    new = ("cluster", "new", "mine", "--partition", "gpu", "--account", ACCOUNT, "--price", "2.5", "--source", "test")
    refused = checkout.start("octavo", *new[:-4])
    said, _ = refused.communicate(timeout=600)
    assert (refused.returncode, "Traceback" in said, path.exists()) == (1, False, False)
    assert "--price" in said

    checkout.octavo(*new, "--device", "cpu")  # its GPUs are like /dev/null
    written = Cluster.model_validate(yaml.safe_load(path.read_text()))
    assert written.slurm is not None
    # as slurm_cluster.py configures it: one GPU, 16 cores and 64,000 MB a node, MaxTime 60
    assert (written.devices_per_node, written.nodes, written.slurm.cpus_per_device) == (1, len(slurm.nodes), 16)
    assert (written.slurm.memory_gb_per_device, written.slurm.time_limit_minutes) == (64, 60)
    assert (written.slurm.partition, written.slurm.account, written.slurm.gpu_type) == ("gpu", ACCOUNT, "h100")

    checkout.write("experiments/tiny", {**EXPERIMENT, "cluster": "mine"})
    target = "results/tiny/runs/moe-bf16/seed-1/result.json"
    path.write_text(path.read_text().replace('partition: "gpu"', 'partition: "gpus"'))
    printed, _ = (pipeline := checkout.snakemake(target)).communicate(timeout=1800)
    assert pipeline.returncode != 0
    told = "FAILED look at mine: mine: partition: there is no 'gpus' -> slurm.partition: one of gpu, spot"
    assert printed.count(told) == 1  # it is tried once
    assert run("sacct", "-nX", "-S", "now-1hour", "--partition=gpus") == ""
    path.write_text(path.read_text().replace('partition: "gpus"', 'partition: "gpu"'))

    seen = checkout.octavo("doctor", "--cluster", "mine", "--probe", "--nodes", "2")
    assert "2 devices of" in seen
    checkout.finish(checkout.start("snakemake", "--profile", "workflow/profiles/local", "--", "results/tiny/plan.pdf"))
    printed = checkout.finish(checkout.snakemake(target))
    assert printed.index("done   look at mine") < printed.index("submit train moe-bf16 seed 1")
    probed = json.loads((checkout.root / "results/probes/mine.json").read_text())
    (device,) = probed["devices"]  # the pipeline's own, on one node
    assert device["gemm_tflops"] > 0
    assert device["findings"] == []
    again = checkout.finish(
        checkout.snakemake("results/tiny/runs/dense-bf16/seed-1/result.json", options=("--dry-run",))
    )
    assert "rule probe" not in again  # once a day

    # a job that waits since an earlier pipeline was killed is gone on with, and not submitted again
    dense = "results/tiny/runs/dense-bf16/seed-1/result.json"
    blocks = run("sbatch", "--parsable", f"--account={ACCOUNT}", "--partition=gpu", f"--nodes={len(slurm.nodes)}",
                 "--gres=gpu:h100:1", "--output=/dev/null", "--wrap=sleep 600").strip()  # fmt: skip
    comment = "rule_train_wildcards_tiny_dense-bf16_1"
    killed = checkout.snakemake(dense)
    wait_for(lambda: comment in queue(checkout.root), killed)
    killed.kill()
    killed.communicate()
    (waiting,) = queue(checkout.root)[comment]
    unlock = ("snakemake", "--profile", "workflow/profiles/slurm", "--unlock", "--", dense)
    checkout.finish(checkout.start(*unlock))
    name = run("squeue", "-h", "-o", "%j", f"--jobs={waiting.number}")
    second = checkout.snakemake(dense)
    wait_for(lambda: run("squeue", "-h", "-o", "%j", f"--jobs={waiting.number}") != name, second)
    run("scancel", blocks)

    # Ctrl-C while it trains: it saves, and the same command goes on
    wait_for(lambda: steps_logged(checkout.run("tiny", "dense-bf16")) >= 20, second)
    hold("dense-bf16")
    second.send_signal(signal.SIGINT)  # Slurm sends SIGCONT with its SIGTERM
    printed, _ = second.communicate(timeout=1800)
    assert f"job {waiting.number} waiting" in printed
    assert printed.count("what trains saves and leaves; the same command goes on from there") == 1
    wait_for(lambda: comment not in queue(checkout.root))
    (stopped,) = checkout.attempts("tiny", "dense-bf16")
    assert (stopped["slurm_job_id"], stopped["exit_reason"]) == (str(waiting.number), "signalled")
    checkout.finish(checkout.snakemake(dense))
    _, resumed = checkout.attempts("tiny", "dense-bf16")
    assert (resumed["first_step"], resumed["exit_reason"]) == (stopped["last_step"], "completed")


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_another_users_job_of_a_run_is_named_and_left_alone(slurm: SlurmCluster, tmp_path: Path) -> None:
    """`root` submits; the launcher of `nobody`, whose squeue shows all users' jobs, finds it."""
    comment = "rule_train_wildcards_tiny_moe-bf16_1"
    options = ("--parsable", f"--account={ACCOUNT}", f"--chdir={tmp_path}", f"--comment={comment}", "--hold")
    job = run("sbatch", *options, "--output=/dev/null", "--wrap=true").strip()
    try:
        program = (
            "import getpass; getpass.getuser = lambda: 'nobody'\n"
            "from octavo.cluster.launch import _end_orphans\nfrom octavo.errors import OctavoError\n"
            f"try: _end_orphans({comment!r}, '{int(job) + 1}', 5)\nexcept OctavoError as error: print(error.found)\n"
        )
        done = subprocess.run(
            [str(PROGRAMS / "python"), "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert done.stdout.startswith(f"job {job} held: JobHeldUser, of root, trains this run")
        assert run("squeue", "-h", "-o", "%A", f"--jobs={job}").strip() == job
    finally:
        subprocess.run(["scancel", job], check=True)
