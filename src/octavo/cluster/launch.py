"""Starting the ranks of a run inside its Slurm job, with or without a container, and what follows from how they end.

The batch step calls this once; `srun` then starts one task per device on the job's nodes. Each task is `octavo train`
again, which finds its rank in Slurm's variables. In a container it sees what is bound and set here and nothing else:

- the checkout read-only at its own path (configurations, the code that the commit in the provenance names), its
  `results/` writable, the prepared data from node-local scratch where the cluster file asks for that;
- no home, no variables but Slurm's place of the rank, the visible GPUs, and what the cluster file sets;
- the node's /dev and process numbers, though: ranks of one node are containers of their own, and NCCL meets its
  neighbours through /dev/shm and other nodes through /dev/infiniband; without them it says nothing and talks TCP. So
  Apptainer's `--contain` and not `--containall`, and /dev as a whole: over its own small one it binds no /dev/shm.

Exit status 75 says that the run was told to stop and saved: the job is put back into the queue and goes on from there.
So is one that was ended because a rank of it stood still, if it saved on the way.
A try in which no rank came as far as its journal (srun failed, a package is missing) is entered as an attempt here.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from octavo.cluster.container import before, task
from octavo.cluster.image import Image, read_image
from octavo.cluster.job import Allocation, allocation, comment, same_nodes, slurm_section
from octavo.cluster.own import OwnAllocation, own_allocation
from octavo.cluster.probe import SHOWN_SECONDS
from octavo.cluster.queue import ask, queue
from octavo.errors import OctavoError
from octavo.experiment.cluster import Slurm
from octavo.experiment.run import Experiment, RunConfig, data_identifier
from octavo.files import sha256
from octavo.layout import RunFolder, data_folder, repository
from octavo.privacy import expand
from octavo.records import AttemptRecord, MetricsRecord, read_last_lines, read_lines
from octavo.training import journal
from octavo.training.launch import ALLOCATION, RESTART
from octavo.training.seal import saved_steps

ENDED_SECONDS = 300
"""How long Slurm may take to end a job that it put back into the queue."""

RECENT = 50
"""Lines of `metrics.jsonl` whose median is the time of a step."""

HOPELESS = ("failed", "out_of_memory", "killed", "stalled")
"""How attempts end that may end so again."""

LEAST_USEFUL = 0.1
"""Share of a job's time in which it must have trained, to go back into the queue for more of the same."""

STEP_DEFAULTS = (
    "SLURM_CPUS_PER_TASK", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TRES_PER_TASK",
)  # fmt: skip
"""What an allocation of one's own was asked for with: srun would take it for what a step is to have."""


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
    own: OwnAllocation | None = None
    """The allocation in which this run is a step beside others; None: the job is this run's alone."""
    nodes: tuple[str, ...] = ()
    """Those that it is to be on, as all others are; empty: any of them."""

    @property
    def shape(self) -> Allocation:
        """Nodes and tasks."""
        return allocation(self.experiment, self.run)

    def script(self) -> str:
        """The shell commands that the batch step runs."""
        slurm = slurm_section(self.experiment)
        lines = before(slurm, self.image)
        if self.own:
            lines.append(f"unset {' '.join(STEP_DEFAULTS)}")
        if self.image and slurm.scratch:
            lines.append(f"srun {self._staging()} bash -c {shlex.quote(self._stage())}")
        lines.append(f"exec srun {self._geometry()} {self._task()}")
        return "\n".join(lines)

    def _geometry(self) -> str:
        """Options of the run's srun."""
        shape = self.shape
        options = [
            f"--nodes={shape.nodes}",
            f"--ntasks={shape.tasks}",
            f"--ntasks-per-node={shape.tasks_per_node}",
            *([f"--nodelist={','.join(self.nodes)}"] if self.nodes else []),
            *([shape.gpus] if shape.gpus else []),
            *self._share(),
            # not at once: a rank that has saved and left must not end another that is about to
            "--kill-on-bad-exit=0",
            f"--wait={self.run.training.checkpoints.grace_seconds}",
            *map(shlex.quote, slurm_section(self.experiment).srun),
        ]
        return " ".join(options)

    def _share(self) -> list[str]:
        """Cores and memory: all of the job's or, in an allocation of one's own, what its devices have a part in."""
        shape = self.shape
        if self.own is None:
            return [f"--cpus-per-task={shape.cpus_per_task}", "--mem=0"]
        cluster, device = self.experiment.cluster, self.experiment.device
        devices = max(1, self.own.devices(cluster, device, slurm_section(self.experiment)))
        cores = max(1, min(shape.cpus_per_task, self.own.cores // devices))
        options = [f"--cpus-per-task={cores}", "--exact"]
        if self.own.memory_mb is not None:
            part = self.own.memory_mb / devices * shape.tasks_per_node
            options.append(f"--mem={int(min(shape.memory_mb, part))}M")
        return options

    def _staging(self) -> str:
        """Options of the srun that copies data: a task a node, beside whatever runs in an allocation of one's own."""
        nodes = len(self.own.nodes) if self.own else self.shape.nodes
        options = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--mem=0"]
        return " ".join([*options, *(["--overlap"] if self.own else [])])

    def _task(self) -> str:
        variables = {ALLOCATION: self.own.job} if self.own else {}
        slurm = slurm_section(self.experiment)
        binds = [f"{self._staged()}:{self.root / self._data()}:ro"] if slurm.scratch else []
        return task(slurm, self.root, self.image, self.arguments, variables=variables, binds=binds)

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
    """The command of a run. Raises OctavoError where the cluster file asks for an image that is not built, or for nodes
    that the job has not."""
    slurm, root = slurm_section(experiment), repository()
    image = read_image(root, slurm.image, slurm.container) if slurm.image else None
    planned = Launch(experiment, run, ("train", str(folder), *arguments), root, image, own_allocation())
    if not slurm.same_nodes:
        return planned
    has = planned.own.nodes if planned.own else expand(os.environ["SLURM_JOB_NODELIST"])
    return replace(planned, nodes=tuple(same_nodes(experiment, has, planned.shape.nodes)))


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
    if planned.own:
        _check_time(planned, planned.own)
    stale = _version(folder.result)
    status, ending = run_script(planned.script(), planned.root, login=bool(slurm.modules))
    if not status and not _shown(folder.result, stale):
        journal.enter_unbegun(folder, _unbegun(planned, job, began, status))
        raise OctavoError(
            "srun ended with status 0, but no rank of the run was started",
            where=f"job {job}",
            fix="srun's words are above; where they name a plugin, such as pyxis, the nodes' slurmd.log says more",
        )
    if status:
        journal.enter_unbegun(folder, _unbegun(planned, job, began, status))
        status = RESTART if stood_still(folder, began) else status
    if status == RESTART and not ending and tries and slurm.requeue and not planned.own and made_steps(folder):
        check_useful(folder, slurm, experiment.file.cluster, (datetime.now(UTC) - began).total_seconds())
        _requeue(job)
    return status


def _check_time(planned: Launch, own: OwnAllocation) -> None:
    """Refuse a run for which an allocation of one's own has no time left."""
    slurm = slurm_section(planned.experiment)
    left = (own.end - datetime.now()).total_seconds() if own.end else float("inf")
    if left < slurm.signal_seconds:
        raise OctavoError(
            f"allocation {own.job} ends in {max(0.0, left):.0f} s",
            where=f"configs/clusters/{planned.experiment.file.cluster}.yaml slurm.signal_seconds",
            expected=f"at least {slurm.signal_seconds} s, in which a run can save",
            fix="take another one and run the same command in it: runs go on from their checkpoints",
        )


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


def _version(path: Path) -> tuple[int, int] | None:
    """What tells a file from one written in its place; None where there is none."""
    with suppress(FileNotFoundError):
        state = path.stat()
        return state.st_ino, state.st_mtime_ns
    return None


def _shown(result: Path, stale: tuple[int, int] | None) -> bool:
    """Whether a rank wrote a result, which another node's may be seen late.

    srun's status does not say: it is 0 where a plugin of the site failed on the nodes and no task was started.
    """
    end = time.monotonic() + SHOWN_SECONDS
    while (version := _version(result)) in (None, stale) and time.monotonic() < end:
        time.sleep(1)
    return version not in (None, stale)


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
        slurm_job_id=None if planned.own else job,  # of which step is not known
        run_fingerprint=planned.run.run_fingerprint,
        computation_fingerprint=planned.run.own_identity.computation_fingerprint,
        layout=planned.run.layout,
    )


def stood_still(folder: RunFolder, began: datetime) -> bool:
    """Whether the attempt that began after `began` was ended because a rank stood still.

    srun's status does not say: it is that of the rank, which had to be killed.
    """
    attempts = read_lines(folder.attempts, AttemptRecord)
    return bool(attempts) and attempts[-1].exit_reason == "stalled" and attempts[-1].start >= began


def made_steps(folder: RunFolder) -> bool:
    """Whether the last attempt saved any further: one that does not must not be put into the queue for ever."""
    attempts = read_lines(folder.attempts, AttemptRecord)
    return bool(attempts) and max(saved_steps(folder.checkpoints), default=0) > attempts[-1].first_step


def check_useful(folder: RunFolder, slurm: Slurm, cluster: str, held: float) -> None:
    """Refuse to go back into the queue where a job of `held` seconds trained for next to nothing of them.

    Raises OctavoError with the figures: the next job would be no better, and the one after it neither. A job in which a
    rank stood still lost its time to that.
    """
    attempt = read_lines(folder.attempts, AttemptRecord)[-1]
    if attempt.exit_reason == "stalled":
        return
    recent = [line for line in read_last_lines(folder.metrics, MetricsRecord, RECENT) if line.trained]
    lines = [line for line in recent if line.attempt == attempt.attempt]
    seconds = [line.step_seconds for line in lines if line.step_seconds]
    steps = (attempt.last_step or 0) - attempt.first_step
    # whichever is longer: a job whose processes stood still between two steps was not short of time
    passed = lines[-1].time - lines[0].time if lines else 0.0
    trained = max(median(seconds) * steps if seconds else 0.0, passed)
    if trained >= LEAST_USEFUL * held:
        return
    raise OctavoError(
        f"the job held its devices for {held:.0f} s and trained for {trained:.1f} s of them ({steps} steps): starting "
        f"takes the rest of the {60 * slurm.time_limit_minutes - slurm.signal_seconds} s before it is told to leave",
        where=f"configs/clusters/{cluster}.yaml slurm.time_limit_minutes, slurm.signal_seconds",
        expected=f"at least {LEAST_USEFUL:.0%} of a job's time for training",
        fix=f"raise time_limit_minutes ({slurm.time_limit_minutes}) or lower signal_seconds ({slurm.signal_seconds}; "
        f"a checkpoint took {attempt.save_seconds or 0:.1f} s); the run goes on from its checkpoint",
    )


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
        if attempt.exit_reason in HOPELESS and attempt.last_step == attempt.first_step
    ]
    if tries > 2 and len(ends) == 2 and ends[0] == ends[1]:
        raise OctavoError(
            f"the run failed the same way twice without a step made{last}",
            where=folder.path,
            fix="see its log, mend the cause, then run the same command again",
        )


def _end_orphans(named: str, job: str, save_seconds: int) -> None:
    """End the older jobs of this run from this checkout, which a killed pipeline left; leave it to a newer one.

    Raises OctavoError where another user's job trains the run: it cannot be told to leave.
    """
    others = [other for other in queue(Path.cwd()).get(named, []) if other.number != int(job)]
    if newer := [other for other in others if other.number > int(job)]:
        raise OctavoError(
            f"job {newer[-1].number} of {newer[-1].user} trains this run",
            where=f"job {job}",
            fix="nothing: this one was left behind",
        )
    if theirs := [other for other in others if other.user != getpass.getuser()]:
        raise OctavoError(
            f"{theirs[-1]}, of {theirs[-1].user}, trains this run",
            where=f"job {job}",
            fix=f"wait for it, or have {theirs[-1].user} cancel it; then run the same command again",
        )
    older = [str(other.number) for other in others]
    if not older:
        return
    print(f"an earlier pipeline left job {', '.join(older)} of this run: it is told to save and leave", flush=True)
    # the ranks save and leave; after a plain scancel they would have no more than Slurm's KillWait
    ask("scancel", "--signal=USR1", *older)
    end = time.monotonic() + save_seconds
    while _left(older, "--states=running") and time.monotonic() < end:
        time.sleep(1)
    ask("scancel", *older)
    while _left(older):
        time.sleep(1)


def _left(jobs: list[str], *options: str) -> bool:
    """Whether any of these jobs is still in the queue."""
    return bool(ask("squeue", "--me", "--noheader", "--format=%A", f"--jobs={','.join(jobs)}", *options))


def _requeue(job: str) -> None:
    """Put this job back into the queue, and wait until Slurm ends it (SIGTERM)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    asked = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    if asked.returncode:
        print(f"the job could not be requeued, its pipeline tries again: {asked.stderr.strip()}", flush=True)
        return
    print("saved; back into the queue", flush=True)
    signal.sigtimedwait({signal.SIGTERM}, ENDED_SECONDS)
