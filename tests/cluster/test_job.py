"""What a run asks of Slurm and starts inside its job, as text: no Slurm is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake_executor_plugin_slurm.utils import get_job_wildcards

from octavo.cluster import queue as queues
from octavo.cluster.image import Image
from octavo.cluster.job import allocation, caps, check_comments, most_retries, resources, sbatch_command
from octavo.cluster.launch import Launch, check_useful, in_allocation, made_steps, refuse_hopeless, stood_still
from octavo.errors import OctavoError
from octavo.experiment.cluster import Slurm
from octavo.experiment.config import Parallelism
from octavo.experiment.load import load_experiment
from octavo.experiment.run import CellConfig, Experiment, data_identifier
from octavo.layout import ConfigFolders, RunFolder, data_folder
from octavo.records import AttemptRecord
from tests.synthetic import write_experiment

Ask = Callable[..., tuple[Experiment, CellConfig]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """An experiment on 16 nodes of 8 H100 and a cell of it on so many GPUs, with a `slurm` section."""
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    write_experiment(tmp_path, cells=[], seeds=(1,), precisions=("bf16",), ablations={}, device="gpu")
    loaded = load_experiment("synthetic", ConfigFolders(tmp_path / "configs"))

    def make(world: int, **slurm: Any) -> tuple[Experiment, CellConfig]:
        section = Slurm(**{"partition": "gpu", "account": "lab", "gpu_type": "h100", **slurm})
        cluster = loaded.cluster.model_copy(update={"slurm": section, "nodes": 16})
        cell = loaded.cells["dense-bf16"].model_copy(update={"parallelism": Parallelism(data=world)})
        return replace(loaded, cluster=cluster), cell

    return make


def launch(experiment: Experiment, cell: CellConfig, image: Image | None = None) -> str:
    run = experiment.run("dense-bf16", 1).model_copy(update={"parallelism": cell.parallelism})
    return Launch(experiment, run, ("train", "results/x"), Path("/shared/octavo"), image).script()


@pytest.mark.parametrize(("devices", "nodes", "per_node"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (16, 2, 8), (128, 16, 8)])
def test_one_task_per_device_on_whole_nodes(ask: Ask, devices: int, nodes: int, per_node: int) -> None:
    shape = allocation(*ask(devices))
    assert (shape.nodes, shape.tasks_per_node, shape.gpus) == (nodes, per_node, f"--gres=gpu:h100:{per_node}")


def test_devices_that_do_not_fill_their_nodes_are_refused(ask: Ask) -> None:
    with pytest.raises(OctavoError, match="9 processes, which 2 nodes cannot share evenly"):
        allocation(*ask(9))


def test_memory_and_cores_are_those_of_the_devices(ask: Ask) -> None:
    """8 devices on a node: 8 x 64 GB; 8 cores each."""
    asked = resources(*ask(16))
    assert (asked["mem_mb"], asked["cpus_per_task"], asked["runtime"]) == (512_000, 8, 60)


def test_what_the_cluster_file_leaves_out_is_not_asked_for(ask: Ask) -> None:
    asked = resources(*ask(8, account=None, gpu_type=None))
    assert (asked["slurm_account"], asked["qos"], asked["constraint"], asked["gres"]) == (None, None, None, "gpu:8")


def test_the_submitted_command(ask: Ask) -> None:
    asked = ask(16, qos="high", constraint="ib", extra=["--exclusive"], signal_seconds=90)
    command = sbatch_command(*asked, 1, requeue=True)
    for option in (
        *("--requeue", "--wrap=", "--target-jobs 'train:experiment=synthetic,cell=dense-bf16,seed=1'"),
        *("-p gpu", "-A lab", "--qos=high", "-C ib", "-t 60", "--mem 512000", "--nodes=2", "--ntasks-per-node=8"),
        *(
            "--gres=gpu:h100:8",
            "--signal=USR1@90",
            "--exclusive",
            "--comment rule_train_wildcards_synthetic_dense-bf16_1",
        ),
    ):
        assert option in command
    assert "--ntasks-per-gpu" not in command


def test_a_run_of_a_shorter_horizon_is_submitted_as_the_rule_names_it(ask: Ask) -> None:
    """Its wildcard `seed` is 1/horizon-40, and the executor writes a slash as an underscore."""
    experiment, cell = ask(8)
    shorter = cell.model_copy(update={"cell": "dense-bf16@40", "trunk": "dense-bf16"})
    command = sbatch_command(experiment, shorter, 1, requeue=True)
    assert "--target-jobs 'train:experiment=synthetic,cell=dense-bf16,seed=1/horizon-40'" in command
    assert "--comment rule_train_wildcards_synthetic_dense-bf16_1_horizon-40" in command
    assert get_job_wildcards(SimpleNamespace(wildcards=["synthetic", "dense-bf16", "1/horizon-40"])) in command


def test_gpus_can_be_asked_for_otherwise_and_nodes_left_out(ask: Ask) -> None:
    asked = ask(16, gpus_by="gpus_per_node", exclude=["gpu03", "gpu[07-09]"])
    command = sbatch_command(*asked, 1, requeue=True)
    assert "--gres" not in command
    assert " --gpus-per-node=h100:8" in command
    assert "--ntasks=16" in command
    assert "--exclude=gpu03,gpu[07-09]" in command
    assert "--gpus-per-node=h100:8" in launch(*asked)
    whole = ask(16, gpus_by="none", extra=["--exclusive"])
    assert "gpu:h100" not in (command := sbatch_command(*whole, 1, requeue=True))
    assert "--exclusive" in command
    assert "h100" not in launch(*whole)


def test_srun_has_options_of_its_own(ask: Ask) -> None:
    asked = ask(16, srun=["--mpi=pmix", "--cpu-bind=cores"])
    assert "--mpi=pmix --cpu-bind=cores env OCTAVO_ROOT" in launch(*asked)
    assert "--mpi" not in sbatch_command(*asked, 1, requeue=True)


def test_requeueing_can_be_forbidden(ask: Ask) -> None:
    """The last of the two options counts, and what the cluster file asks for comes after the profile's."""
    command = sbatch_command(*ask(8, requeue=False), 1, requeue=True)
    assert command.index(" --no-requeue") > command.index(" --requeue")


def test_without_an_image_ranks_run_in_the_python_that_runs_octavo(ask: Ask) -> None:
    script = launch(*ask(16, environment={"NCCL_DEBUG": "WARN"}))
    assert script.startswith("exec srun --nodes=2 --ntasks=16 --ntasks-per-node=8")
    assert "env NCCL_DEBUG=WARN OCTAVO_ROOT=/shared/octavo" in script
    assert "apptainer" not in script


def test_in_an_image_a_rank_sees_what_is_bound_and_set_and_no_home(ask: Ask) -> None:
    image = Image("gpu", Path("results/images/gpu.sif"), "sha256:abc")
    script = launch(*ask(8, environment={"NCCL_DEBUG": "WARN"}, modules=["slurm", "nccl/2"]), image)
    for part in (
        *("--contain --cleanenv --no-home --nv", "--bind /shared/octavo:/shared/octavo:ro", "NCCL_DEBUG=WARN"),
        *("--bind /dev:/dev ", "--bind /tmp:/tmp "),
        *("OCTAVO_IMAGE_DIGEST=sha256:abc", "APPTAINERENV_$name", "/shared/octavo/results/images/gpu.sif octavo train"),
    ):
        assert part in script
    assert script.startswith("module load slurm nccl/2\n")


def test_pyxis_is_told_the_same_as_apptainer(ask: Ask) -> None:
    """The bind's two options have a comma between them in Apptainer's form, and a plus in pyxis's."""
    image = Image("gpu", Path("results/images/gpu.sqsh"), "sha256:abc")
    given: dict[str, Any] = {"environment": {"NCCL_DEBUG": "WARN"}, "binds": ["/opt/site", "/a:/b:ro,private"]}
    script = launch(*ask(8, container="pyxis", **given), image)
    driver, step = script.split("\n")
    assert driver == "export NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    words = shlex.split(step)
    options = dict(
        word.removeprefix("--").split("=", 1) for word in words if word.startswith("--container-") and "=" in word
    )
    assert options["container-image"] == "/shared/octavo/results/images/gpu.sqsh"
    assert options["container-workdir"] == "/shared/octavo"
    assert options["container-mounts"].split(",") == [
        "/dev:/dev", "/tmp:/tmp", "/shared/octavo:/shared/octavo:ro", "/shared/octavo/results:/shared/octavo/results",
        "/opt/site:/opt/site", "/a:/b:ro+private",
    ]  # fmt: skip
    assert {"--no-container-mount-home", "--container-readonly"} <= set(words)
    assert "exec env -i" in words[-1]
    for part in ("NCCL_DEBUG=WARN", "OCTAVO_IMAGE_DIGEST=sha256:abc", "exec octavo train results/x"):
        assert part in words[-1]
    assert "NVIDIA_VISIBLE" not in launch(*ask(8, container="pyxis"), replace(image, variant="cpu"))


@pytest.mark.parametrize(
    ("given", "container", "image"),
    [({}, "apptainer", "gpu"), ({"image": None}, "none", None), ({"container": "none"}, "none", None),
     ({"container": "pyxis", "image": "cpu"}, "pyxis", "cpu")],
)  # fmt: skip
def test_no_container_and_no_image_are_one(given: dict[str, Any], container: str, image: str | None) -> None:
    slurm = Slurm(**given)
    assert (slurm.container, slurm.image) == (container, image)
    assert Slurm(**slurm.model_dump()) == slurm


@pytest.mark.parametrize("given", [{"container": "none", "image": "gpu"}, {"container": "pyxis", "image": None}])
def test_a_container_without_an_image_and_the_reverse_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contradict each other"):
        Slurm(**given)


def test_the_cluster_file_adds_binds(ask: Ask) -> None:
    image = Image("gpu", Path("results/images/gpu.sif"), "sha256:abc")
    assert "--bind /opt/site:/opt/site:ro " in launch(*ask(8, binds=["/opt/site:/opt/site:ro"]), image)


def test_the_cpu_image_asks_for_no_driver(ask: Ask) -> None:
    assert "--nv" not in launch(*ask(8), Image("cpu", Path("results/images/cpu.sif"), "sha256:abc"))


def test_data_are_staged_to_scratch_once_per_node_and_bound_in_their_place(ask: Ask) -> None:
    image = Image("gpu", Path("results/images/gpu.sif"), "sha256:abc")
    stage, step = launch(*ask(16, scratch="/local"), image).split("\n", 1)
    assert "--ntasks=2 --ntasks-per-node=1" in stage
    assert "cp -r /shared/octavo/results/data/" in stage
    assert "--bind /local/octavo-data-" in step


def test_data_prepared_anew_are_staged_anew(ask: Ask, tmp_path: Path) -> None:
    """The configuration, and with it the folder below results/data, is the same."""
    asked, image = ask(8, scratch="/local"), Image("gpu", Path("results/images/gpu.sif"), "sha256:abc")
    run = asked[0].run("dense-bf16", 1)
    folder = tmp_path / data_folder(data_identifier(run.data, run.tokenizer))
    folder.mkdir(parents=True)
    staged = set()
    for text in ("{}", '{"documents": 7}'):
        (folder / "manifest.json").write_text(text)
        binds = Launch(asked[0], run, ("train", "results/x"), tmp_path, image).script()
        staged |= set(re.findall(r"--bind (/local/octavo-data-[^:\s]+):", binds))
    # echo -n '{}' | sha256sum: 44136fa355b3678a...
    assert len(staged) == 2
    assert f"/local/octavo-data-{folder.name}-44136fa355b3678a" in staged


def test_scratch_without_an_image_is_refused(ask: Ask) -> None:
    with pytest.raises(ValueError, match="scratch needs an image"):
        ask(8, scratch="/local", image=None)


@pytest.mark.parametrize(
    "body",
    ["exec sleep 9", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"],
)
def test_a_controller_that_is_down_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(queues, "ANSWER_SECONDS", 0.2)
    with pytest.raises(OctavoError, match="Slurm's controller cannot be reached") as error:
        queues.ask("squeue", "--me")
    assert "scontrol ping" in str(error.value)


def test_caps_are_the_cluster_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    clusters = tmp_path / "configs" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "h100-node.yaml").write_text("slurm: {max_concurrent_devices: 64}\n")
    (clusters / "laptop.yaml").write_text("device: cpu\n")
    assert caps() == {"devices_h100_node": 64}


def test_a_run_that_takes_more_than_the_cap_is_refused_with_both_numbers(ask: Ask) -> None:
    resources(*ask(8, max_concurrent_devices=8))
    with pytest.raises(OctavoError) as error:
        resources(*ask(16, max_concurrent_devices=8))
    for said in ("takes 16 devices", "may hold 8", "configs/clusters/", "slurm.max_concurrent_devices"):
        assert said in str(error.value)


def test_experiments_whose_jobs_have_the_same_comments_are_refused(ask: Ask, tmp_path: Path) -> None:
    """(synthetic, tall_dense-bf16) and (synthetic_tall, dense-bf16): both ..._synthetic_tall_dense-bf16_1."""
    experiments = tmp_path / "configs/experiments"
    text = (experiments / "synthetic.yaml").read_text()
    (experiments / "synthetic_tall.yaml").write_text(text)
    check_comments(load_experiment("synthetic_tall", ConfigFolders(tmp_path / "configs")))  # names apart so far
    models = yaml.safe_load(text)
    models["models"]["tall_dense"] = models["models"]["dense"]
    (experiments / "synthetic.yaml").write_text(yaml.safe_dump(models, sort_keys=False))
    for name in ("synthetic", "synthetic_tall"):
        with pytest.raises(OctavoError, match="both have jobs named synthetic_tall_dense-bf16"):
            check_comments(load_experiment(name, ConfigFolders(tmp_path / "configs")))


def test_a_rule_has_the_most_retries_of_any_cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    clusters = tmp_path / "configs" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "patient.yaml").write_text("slurm: {retries: 9}\n")
    (clusters / "h100-node.yaml").write_text("slurm: {partition: gpu}\n")  # 3, as octavo schema cluster says
    (clusters / "laptop.yaml").write_text("device: cpu\n")
    assert most_retries() == 9


@pytest.mark.parametrize(
    ("signalled", "expected"), [("TERM", (75, True)), ("USR1", (75, False)), ("KILL", (128 + 9, False))]
)
def test_a_job_that_is_told_to_stop_while_data_are_staged_stops(
    tmp_path: Path, signalled: str, expected: tuple[int, bool]
) -> None:
    """The shell waits for a command of its own then. Signals come to this process, SIGKILL to the command's shell."""
    script = f"kill -{signalled} {'$$' if signalled == 'KILL' else '$PPID'}; sleep 60; touch {tmp_path}/trained"
    call = f"run_script({script!r}, {str(tmp_path)!r}, login=False)"
    program = f"from octavo.cluster.launch import run_script; print({call})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"{expected}\n", done.stderr
    assert not (tmp_path / "trained").exists()


def test_after_its_own_requeue_a_job_leaves_when_slurm_ends_it(tmp_path: Path) -> None:
    """Slurm's SIGTERM, here sent by what stands for scontrol: nothing sleeps on after it."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\nkill -TERM $PPID\n")
    (tmp_path / "scontrol").chmod(0o755)
    program = "from octavo.cluster import launch; launch.ENDED_SECONDS = 5000; launch._requeue('7'); print('left')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout == "saved; back into the queue\nleft\n", done.stderr


def test_a_job_whose_time_goes_into_starting_does_not_go_back_into_the_queue(tmp_path: Path) -> None:
    """5 steps of 0.5 s in a job of 30 s are 8 % of it; of a job of 25 s they are 10 %."""
    folder = RunFolder(tmp_path / "run")
    write_attempts(folder, "x", ("signalled", None, 50, 55))
    lines = [{"step": step, "tokens": 1, "time": 0.0, "attempt": 1, "loss": 1.0, "step_seconds": 0.5}
             for step in range(51, 56)]  # fmt: skip
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    slurm = Slurm(time_limit_minutes=1, signal_seconds=30)
    check_useful(folder, slurm, "mine", 25.0)
    with pytest.raises(
        OctavoError, match=r"held its devices for 30 s and trained for 2\.5 s of them \(5 steps\)"
    ) as error:
        check_useful(folder, slurm, "mine", 30.0)
    for said in ("30 s before it is told to leave", "slurm.time_limit_minutes", "signal_seconds (30"):
        assert said in str(error.value)


def test_a_batch_step_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not in_allocation()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert in_allocation()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not in_allocation()


def write_attempts(folder: RunFolder, fingerprint: str, *ends: tuple[str, str | None, int, int]) -> None:
    """Attempts by (exit reason, error, first step, last step)."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    folder.path.mkdir(parents=True, exist_ok=True)
    records = [
        AttemptRecord(
            attempt=number, start=start, end=start + timedelta(seconds=9), host="n", nodes=["n"], device_kind="H100",
            device_count=8, exit_reason=reason, error=error, first_step=first, last_step=last,  # type: ignore[arg-type]
            run_fingerprint=fingerprint,
        )
        for number, (reason, error, first, last) in enumerate(ends, 1)
    ]  # fmt: skip
    folder.attempts.write_text("".join(record.model_dump_json() + "\n" for record in records))


def test_a_run_that_fails_the_same_way_twice_without_a_step_is_not_tried_again(ask: Ask, tmp_path: Path) -> None:
    run, folder = ask(8)[0].run("dense-bf16", 1), RunFolder(tmp_path / "run")
    write_attempts(
        folder, run.run_fingerprint, ("failed", "no such kernel", 50, 50), ("failed", "no such kernel", 50, 50)
    )
    with pytest.raises(OctavoError, match="failed the same way twice without a step made: failed: no such kernel"):
        refuse_hopeless(folder, run, tries=3, retries=3)


def test_numbers_in_an_error_do_not_make_it_another_one(ask: Ask, tmp_path: Path) -> None:
    run, folder = ask(8)[0].run("dense-bf16", 1), RunFolder(tmp_path / "run")
    ends = [("failed", f"[10.0.0.{host}]:{port}: connection refused", 0, 0) for host, port in ((7, 23456), (12, 31234))]
    write_attempts(folder, run.run_fingerprint, *ends)
    with pytest.raises(OctavoError, match="failed the same way twice"):
        refuse_hopeless(folder, run, tries=3, retries=3)


@pytest.mark.parametrize(
    "second", [("failed", "no such kernel", 50, 51), ("failed", "out of disk", 50, 50), ("signalled", None, 50, 50)]
)
def test_a_run_that_got_further_or_failed_otherwise_is(
    ask: Ask, tmp_path: Path, second: tuple[str, str | None, int, int]
) -> None:
    run, folder = ask(8)[0].run("dense-bf16", 1), RunFolder(tmp_path / "run")
    write_attempts(folder, run.run_fingerprint, ("failed", "no such kernel", 50, 50), second)
    refuse_hopeless(folder, run, tries=3, retries=3)


def test_a_user_who_starts_the_pipeline_again_is_not_held_to_earlier_failures(ask: Ask, tmp_path: Path) -> None:
    run, folder = ask(8)[0].run("dense-bf16", 1), RunFolder(tmp_path / "run")
    write_attempts(folder, run.run_fingerprint, ("failed", "no disk", 0, 0), ("failed", "no disk", 0, 0))
    refuse_hopeless(folder, run, tries=1, retries=3)


def test_tries_are_bounded_and_the_last_error_is_told(ask: Ask, tmp_path: Path) -> None:
    run, folder = ask(8)[0].run("dense-bf16", 1), RunFolder(tmp_path / "run")
    write_attempts(folder, run.run_fingerprint, ("killed", None, 0, 7), ("out_of_memory", "80 GiB", 7, 9))
    refuse_hopeless(folder, run, tries=3, retries=2)
    with pytest.raises(OctavoError, match="tried 3 times without a result: out_of_memory: 80 GiB"):
        refuse_hopeless(folder, run, tries=4, retries=2)


def test_only_a_run_that_made_steps_goes_back_into_the_queue(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not made_steps(folder)
    write_attempts(folder, "x", ("signalled", None, 50, 50))
    folder.checkpoint(50).mkdir(parents=True)
    assert not made_steps(folder)
    write_attempts(folder, "x", ("stalled", "rank 1 has stood still", 50, 59))  # that nothing saved
    assert not made_steps(folder)
    write_attempts(folder, "x", ("signalled", None, 50, 51))
    folder.checkpoint(51).mkdir()
    assert made_steps(folder)


def test_an_attempt_that_stood_still_is_told_from_an_earlier_one_and_needs_no_share_of_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_attempts(folder, "x", ("stalled", "rank 1 has stood still", 50, 59))
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    assert stood_still(folder, begun)
    assert not stood_still(folder, begun + timedelta(seconds=1))
    check_useful(folder, Slurm(), "mine", 1e6)
