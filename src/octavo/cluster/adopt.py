"""Jobs that a killed pipeline left in Slurm's queue are gone on with, and not submitted a second time.

Snakemake's executor (snakemake-executor-plugin-slurm 2.8) submits by running a command that prints the job's number,
and finds its jobs by their name, which is the same for all of one pipeline. So the command of a run whose job is there
gives that job this pipeline's name and prints its number. The queue is read once, before the first submission: what an
earlier pipeline left is there by then. A job that has ended since cannot be given a name, and the run is submitted.
"""

from __future__ import annotations

import getpass
import shlex
from pathlib import Path
from typing import Any

from octavo.cluster.queue import Job, queue
from octavo.errors import OctavoError
from octavo.experiment.load import load_experiment
from octavo.layout import parse_run
from octavo.records import AttemptRecord, read_lines


def adopt_jobs(said: Any) -> None:
    """Let the executor of this process go on with jobs that are there. `said` is told of each."""
    import snakemake_executor_plugin_slurm as executor

    submits, left = executor.get_submit_command, LeftJobs()

    def adopting(job: Any, params: Any, *rest: Any, **named: Any) -> str:
        submit = submits(job, params, *rest, **named)
        found = None if job.is_group() or job.rule.name != "train" else left.take(params["comment_str"], job.wildcards)
        if found is None:
            return submit
        said(f"{found}: an earlier pipeline submitted it; this one goes on with it")
        rename = shlex.join(["scontrol", "update", f"JobId={found.number}", f"JobName={params['run_uuid']}"])
        # what the executor adds to the command falls to $@
        return shlex.join(["sh", "-c", f'{rename} >&2 && echo {found.number} || exec {submit} "$@"', "adopted"])

    executor.get_submit_command = adopting  # type: ignore[assignment]


class LeftJobs:
    """This user's jobs that were in the queue before this pipeline submitted any."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] | None = None

    def take(self, comment: str, wildcards: Any) -> Job | None:
        """A run's job, if it trains what is to be trained; it is given once. None where Slurm does not answer."""
        try:
            if self._jobs is None:
                self._jobs = queue(Path.cwd())
            jobs = [job for job in self._jobs.pop(comment, []) if job.user == getpass.getuser()]
            newest = jobs[-1] if jobs else None
            if newest is None or newest.state not in ("waiting", "held", "running"):
                return None
            return newest if newest.state != "running" or _as_configured(wildcards) else None
        except OctavoError:
            return None


def _as_configured(wildcards: Any) -> bool:
    """Whether a run's last attempt, which a running job makes, is under the configuration that it has now."""
    named = parse_run(f"{wildcards.cell}/seed-{wildcards.seed}")
    assert named is not None, "rules admit no other names"
    experiment = load_experiment(wildcards.experiment)
    attempts = read_lines(experiment.folder.run(*named).attempts, AttemptRecord)
    return not attempts or attempts[-1].run_fingerprint == experiment.run(*named).run_fingerprint
