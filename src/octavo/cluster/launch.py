"""Starting the ranks of a run inside its Slurm job, with or without a container, and what follows from how they end.

The batch step calls this once; `srun` then starts one task per device on the job's nodes. Each task is `octavo train`
again, which finds its rank in Slurm's variables. In a container it sees what is bound and set here and nothing else:

- the checkout read-only at its own path (configurations, the code that the commit in the provenance names), its
  `results/` writable, the prepared data from node-local scratch where the cluster file asks for that;
- no home, no variables but Slurm's place of the rank, the visible GPUs, and what the cluster file sets;
- the node's /dev and process numbers, though: ranks of one node are containers of their own, and NCCL meets its
  neighbours through /dev/shm and other nodes through /dev/infiniband; without them it says nothing and talks TCP. So
  `--contain` and not `--containall`, and /dev as a whole: over its own small one Apptainer binds no /dev/shm.

Exit status 75 says that the run was told to stop and saved: the job is put back into the queue and goes on from there.
A try in which no rank came as far as its journal (srun failed, a package is missing) is entered as an attempt here.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from octavo.cluster.image import Image, read_image
from octavo.cluster.job import Allocation, allocation, comment, slurm_section
from octavo.errors import OctavoError
from octavo.experiment.run import Experiment, RunConfig, data_identifier
from octavo.files import sha256
from octavo.layout import RunFolder, data_folder, repository
from octavo.records import AttemptRecord, read_lines
from octavo.training import journal
from octavo.training.launch import RESTART

TASK_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_LOCALID",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
)
"""What a rank must know of its place; they differ by task, so the task's shell passes them on."""


ANSWER_SECONDS = 60
"""How long Slurm's commands may take; they try to reach the controller for some seconds themselves."""


def in_allocation() -> bool:
    """Whether this process is in a Slurm job, but is no task that srun started for a rank."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_NUM_TASKS" not in os.environ


@dataclass(frozen=True)
class Launch:
    """A run's command inside its allocation."""

    experiment: Experiment
    run: RunConfig
    arguments: tuple[str, ...]
    """Of `octavo`: train and the run's folder."""
    root: Path
    """The checkout."""
    image: Image | None

    @property
    def shape(self) -> Allocation:
        """Nodes and tasks."""
        return allocation(self.experiment, self.run)

    def script(self) -> str:
        """The shell commands that the batch step runs."""
        slurm = slurm_section(self.experiment)
        lines = [f"module load {shlex.join(slurm.modules)}"] if slurm.modules else []
        if self.image and slurm.scratch:
            lines.append(f"srun {self._geometry(per_node=1)} bash -c {shlex.quote(self._stage())}")
        lines.append(f"exec srun {self._geometry()} {self._task()}")
        return "\n".join(lines)

    def _geometry(self, per_node: int | None = None) -> str:
        """Options of srun: of a whole step, or of one task on each node."""
        shape, tasks = self.shape, per_node or self.shape.tasks_per_node
        options = [
            f"--nodes={shape.nodes}",
            f"--ntasks={tasks * shape.nodes}",
            f"--ntasks-per-node={tasks}",
            f"--cpus-per-task={shape.cpus_per_task}",
            *([f"--gres={shape.gres}"] if shape.gres and not per_node else []),
            "--mem=0",  # all of the job's
            # not at once: a rank that has saved and left must not end another that is about to
            "--kill-on-bad-exit=0",
            f"--wait={self.run.training.checkpoints.grace_seconds}",
        ]
        return " ".join(options)

    def _task(self) -> str:
        variables = self._variables()
        command = ["octavo", *self.arguments]
        if self.image is None:
            settings = [f"{name}={value}" for name, value in variables.items()]
            return shlex.join(["env", *settings, sys.executable, "-m", *command])
        passed = (
            f"for name in {' '.join(TASK_VARIABLES)}; do "
            'if [ -n "${!name+set}" ]; then export "APPTAINERENV_$name=${!name}"; fi; done'
        )
        containers = [
            "exec",
            "--contain",
            "--cleanenv",
            "--no-home",
            *(["--nv"] if self.image.variant == "gpu" else []),
            *(part for bind in self._binds() for part in ("--bind", bind)),
            *(part for name, value in variables.items() for part in ("--env", f"{name}={value}")),
            "--pwd",
            str(self.root),
            str(self.root / self.image.path),
        ]
        return f"bash -c {shlex.quote(f'{passed}; exec apptainer {shlex.join([*containers, *command])}')}"

    def _variables(self) -> dict[str, str]:
        variables = dict(slurm_section(self.experiment).environment) | {"OCTAVO_ROOT": str(self.root)}
        if self.image:
            variables |= {
                # the checkout's code, which the provenance's commit names; the image holds all that it needs
                "PYTHONPATH": str(self.root / "src"),
                "OCTAVO_IMAGE_DIGEST": self.image.digest,
                "OCTAVO_COMMIT": _commit(self.root),
            }
        return variables

    def _binds(self) -> list[str]:
        slurm = slurm_section(self.experiment)
        results = self.root / "results"
        binds = [f"{self.root}:{self.root}:ro", f"{results}:{results}", "/dev:/dev", "/tmp:/tmp"]
        if slurm.scratch:
            binds.append(f"{self._staged()}:{self.root / self._data()}:ro")
        return [*binds, *slurm.binds]

    def _data(self) -> Path:
        return data_folder(data_identifier(self.run.data, self.run.tokenizer))

    def _staged(self) -> Path:
        scratch = slurm_section(self.experiment).scratch
        assert scratch is not None
        # by what is in it, too: data prepared anew under the same configuration are not those that lie there
        manifest = self.root / self._data() / "manifest.json"
        version = sha256(manifest)[:16] if manifest.exists() else "not-prepared-yet"
        return Path(scratch) / f"octavo-data-{self._data().name}-{version}"

    def _stage(self) -> str:
        """Copy the data set to a node's scratch, once and whole, also when two jobs do it at the same time."""
        staged, source = shlex.quote(str(self._staged())), shlex.quote(str(self.root / self._data()))
        copy = f"cp -r {source} {staged}.$$ && mv -T {staged}.$$ {staged} 2>/dev/null || rm -rf {staged}.$$"
        return f"test -d {staged} || {{ {copy}; }}; test -d {staged}"


def plan_launch(experiment: Experiment, run: RunConfig, folder: Path, *, arguments: Sequence[str] = ()) -> Launch:
    """The command of a run. Raises OctavoError where the cluster file asks for an image that is not built."""
    slurm, root = slurm_section(experiment), repository()
    image = read_image(root, slurm.image) if slurm.image else None
    return Launch(experiment, run, ("train", str(folder), *arguments), root, image)


def launch(experiment: Experiment, run: RunConfig, folder: RunFolder, arguments: Sequence[str] = ()) -> int:
    """Start the ranks in this job and wait; the exit status of the run.

    Where the pipeline started this job for this run (it says which try it is), a job of the same run that an earlier,
    killed pipeline left behind is told to save and leave first, and a run that was told to stop goes back into the
    queue. Raises OctavoError when the run has been tried as often as the cluster file allows, or fails the same way
    again and again.
    """
    slurm, job, tries = slurm_section(experiment), os.environ["SLURM_JOB_ID"], os.environ.get("OCTAVO_TRY")
    began = datetime.now(UTC)
    if tries:
        refuse_hopeless(folder, run, tries=int(tries), retries=slurm.retries)
        _end_orphans(comment(experiment.name, run.cell, run.seed), job, slurm.signal_seconds)
    planned = plan_launch(experiment, run, folder.path, arguments=arguments)
    status, ending = run_script(planned.script(), planned.root, login=bool(slurm.modules))
    if status:
        journal.enter_unbegun(folder, _unbegun(planned, job, began, status))
    if status == RESTART and not ending and tries and slurm.requeue and made_steps(folder):
        _requeue(job)
    return status


def run_script(script: str, root: Path, *, login: bool) -> tuple[int, bool]:
    """Run a job's commands; their exit status, and whether the job is being ended (pre-empted, cancelled).

    The status is RESTART too where they were told to stop before a rank could save. `login`: in a login shell, of which
    `module` is a function.
    """
    shell = ["bash", *(["--login"] if login else []), "-c", f"set -e\n{script}"]
    told: list[int] = []
    step: subprocess.Popen[bytes] | None = None

    def stop() -> None:
        # srun passes SIGUSR1 on to the ranks, which save and leave; of SIGTERM it would make a SIGKILL. To the group:
        # while data are staged the shell waits for an srun of its own.
        if step is not None and step.poll() is None:
            os.killpg(step.pid, signal.SIGUSR1)

    def receive(number: int, _: object) -> None:
        told.append(number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, receive)
    step = subprocess.Popen(shell, cwd=root, process_group=0)
    if told:
        stop()
    status = step.wait()
    status = 128 - status if status < 0 else status
    stopped = status in (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    # Slurm's warning of a time limit goes to the ranks alone; what comes here ends the job
    return RESTART if stopped else status, any(number != signal.SIGUSR1 for number in told)


def _unbegun(planned: Launch, job: str, began: datetime, status: int) -> AttemptRecord:
    """The attempt of a try that ended before its trainer could say so."""
    device = planned.experiment.device
    stopped = status == RESTART
    return AttemptRecord(
        attempt=1,
        start=began,
        end=datetime.now(UTC),
        host=socket.gethostname(),
        nodes=[os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()],
        device_kind="cpu" if device.kind == "cpu" else device.name,
        device_count=planned.shape.tasks,
        exit_reason="signalled" if stopped else "failed",
        error=None if stopped else f"the job's commands ended with status {status} before training began",
        first_step=0,
        last_step=0,
        slurm_job_id=job,
        run_fingerprint=planned.run.run_fingerprint,
    )


def made_steps(folder: RunFolder) -> bool:
    """Whether the last attempt got any further: one that does not must not be put into the queue for ever."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    return bool(attempts) and (attempts[-1].last_step or 0) > attempts[-1].first_step


def refuse_hopeless(folder: RunFolder, run: RunConfig, *, tries: int, retries: int) -> None:
    """Refuse to try again what cannot be expected to end otherwise. `tries` counts from 1, this one included."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    attempts = [attempt for attempt in attempts if attempt.run_fingerprint == run.run_fingerprint]
    last = f": {attempts[-1].exit_reason}: {attempts[-1].error or 'no word left'}" if attempts else ""
    if tries > retries + 1:
        raise OctavoError(
            f"the run was tried {tries - 1} times without a result{last}",
            where=folder.path,
            fix="see its log, mend the cause, then run the same command again: it goes on from its newest checkpoint",
        )
    ends = [
        # numbers aside: ports, processes and addresses differ from try to try
        (attempt.exit_reason, re.sub(r"\d+", "0", attempt.error or ""), attempt.first_step)
        for attempt in attempts[-2:]
        if attempt.exit_reason in ("failed", "out_of_memory", "killed") and attempt.last_step == attempt.first_step
    ]
    if tries > 2 and len(ends) == 2 and ends[0] == ends[1]:
        raise OctavoError(
            f"the run failed the same way twice without a step made{last}",
            where=folder.path,
            fix="see its log, mend the cause, then run the same command again",
        )


def _end_orphans(named: str, job: str, save_seconds: int) -> None:
    """End the older jobs of this run from this checkout, which a killed pipeline left; leave it to a newer one."""
    shown = _ask("squeue", "--me", "--noheader", "--format=%A|%k|%Z")
    here = str(Path.cwd())
    others = [int(line.split("|")[0]) for line in shown.splitlines() if line.split("|")[1:] == [named, here]]
    if newer := [str(other) for other in others if other > int(job)]:
        raise OctavoError(
            f"job {newer[-1]} trains this run", where=f"job {job}", fix="nothing: this one was left behind"
        )
    older = [str(other) for other in others if other < int(job)]
    if not older:
        return
    print(f"an earlier pipeline left job {', '.join(older)} of this run: it is told to save and leave", flush=True)
    # the ranks save and leave; after a plain scancel they would have no more than Slurm's KillWait
    _ask("scancel", "--signal=USR1", *older)
    end = time.monotonic() + save_seconds
    while _left(older, "--states=running") and time.monotonic() < end:
        time.sleep(1)
    _ask("scancel", *older)
    while _left(older):
        time.sleep(1)


def _left(jobs: list[str], *options: str) -> bool:
    """Whether any of these jobs is still in the queue."""
    return bool(_ask("squeue", "--me", "--noheader", "--format=%A", f"--jobs={','.join(jobs)}", *options))


def _requeue(job: str) -> None:
    """Put this job back into the queue; Slurm then ends it."""
    asked = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    if asked.returncode:
        print(f"the job could not be requeued, its pipeline tries again: {asked.stderr.strip()}", flush=True)
        return
    print("saved; back into the queue", flush=True)
    time.sleep(300)


def _ask(*command: str) -> str:
    """What a command of Slurm's prints, be it an error about a job that is gone.

    Raises OctavoError where the controller does not answer: who else trains this run cannot be known then.
    """
    try:
        asked = subprocess.run(command, check=False, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        silent = f"no answer within {ANSWER_SECONDS} s"
    else:
        if "nable to contact slurm controller" not in asked.stderr:
            return asked.stdout
        silent = asked.stderr.strip()
    raise OctavoError(
        f"Slurm's controller cannot be reached: {silent}",
        where=shlex.join(command),
        fix="wait until `scontrol ping` says UP; the pipeline tries again, or goes on when it is started again",
    )


def _commit(root: Path) -> str:
    """The checkout's commit, and `dirty` where tracked files differ from it; empty outside git."""
    found = [
        subprocess.run(["git", "-C", str(root), *arguments], check=False, capture_output=True, text=True)
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    if found[0].returncode:
        return ""
    return found[0].stdout.strip() + (" dirty" if found[1].stdout.strip() else "")
