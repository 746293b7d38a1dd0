"""The gates: files that are whole, and a sample of the runs made again beside the originals, never over them.

- *Repeatability*: a run made again is the same to the last bit, in every logged number and in the final parameters. A
  run that began from its trunk's checkpoint is made again from the first step on.
- *Restart replay*: so is a run that was killed at a random step and went on from its checkpoint.
- *Baseline equivalence*: under another layout (data, expert and tensor parallelism, threads: each in turn) the order of
  sums is another, and the bits may be. The loss may then differ by no more than it does between two seeds
  (`octavo.verification.tolerance`; the spread is pooled over the cells that have two seeds or more). How close the
  first steps are, before training multiplies what differs, stands beside it.

The first two are the contract that Megatron-LM's determinism effort states for one environment. Where the environment
is another than the original's (processor, GPU, versions), bits may differ for good reason: the note says what is
different, and the third gate's tolerance applies. So it does where the original was resharded, that is, went on from a
checkpoint of another layout, or was trained under another layout than the experiment has now.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from statistics import fmean
from typing import Any

from octavo.errors import OctavoError
from octavo.experiment.checks import check_experiment
from octavo.experiment.config import Parallelism
from octavo.experiment.load import load_experiment
from octavo.experiment.run import Experiment, RunConfig
from octavo.files import write_json
from octavo.layout import ExperimentFolder, RunFolder
from octavo.records import (
    AttemptRecord,
    Gate,
    Provenance,
    Result,
    VerificationCheck,
    VerificationFile,
    laid_out,
    read_lines,
    read_record,
)
from octavo.verification import rerun
from octavo.verification.compare import (
    Difference,
    counted_metrics,
    different_tensors,
    environment_differences,
    first_difference,
)
from octavo.verification.integrity import check_files, unpacked_bundle
from octavo.verification.tolerance import seed_spread

LAYOUTS = ("data", "expert", "tensor", "threads")
"""What the third gate changes, one at a time: from one to two, or from more to half as many."""
FIRST = 8
"""Steps that begin a run."""


def verify(
    folder: ExperimentFolder, *, sample: int, gates: list[str], seed: int, steps: int | None = None
) -> VerificationFile:
    """Verify an experiment and write verification.json, but in an unpacked bundle."""
    experiment = load_experiment(folder.name)
    checks = check_files(experiment, folder)
    broken = {one.run for one in checks if one.status == "damaged"}
    runs = [
        experiment.run(cell.cell, number)
        for cell, number in experiment.runs()
        if folder.run(cell.cell, number).result.exists() and f"{cell.cell}/seed-{number}" not in broken
    ]
    if steps is not None:  # of a run that begins from its trunk's checkpoint after them there is nothing to compare
        runs = [run for run in runs if run.begins_after < steps]
    if sample and unpacked_bundle():
        note = "an unpacked bundle has no text to train on: its report is made again by octavo verify-bundle"
        said = {"run": "all", "status": "not testable here", "note": note}
        checks += [VerificationCheck.model_validate({"gate": gate, **said}) for gate in gates]
    elif sample and runs and "data" not in broken:
        checks += _Gates(experiment, folder, runs, seed, steps).run(sample, gates)
    failed = any(one.status in ("damaged", "different") for one in checks)
    found = VerificationFile(
        experiment=experiment.name, passed=not failed, sample=sample, seed=seed, steps=steps, checks=checks
    )
    if not unpacked_bundle():  # what a bundle holds stays what its metadata describe
        write_json(folder.verification, found.model_dump(mode="json"))
    return found


class _Gates:
    def __init__(
        self, experiment: Experiment, folder: ExperimentFolder, runs: list[RunConfig], seed: int, steps: int | None
    ) -> None:
        self.experiment, self.folder, self.runs, self.seed = experiment, folder, runs, seed
        self.steps = steps

    def run(self, sample: int, gates: list[str]) -> Iterator[VerificationCheck]:
        """Draw a sample for each gate and make it again, as many runs at a time as there are cores for.

        A run that cannot be made again is one that differs: it is said, and ends nothing.
        """
        jobs: list[tuple[RunConfig, Callable[[], VerificationCheck]]] = []
        for gate in gates:
            draw = random.Random(f"{self.seed} {gate}")  # each gate its own: more of the runs are looked at
            if gate == "baseline":
                for layout in LAYOUTS:
                    fitting = list(islice(self._relaid(layout, draw), sample))
                    jobs += [
                        (other, partial(self._checked, gate, run, partial(self._relayout, run, other, layout)))
                        for run, other in fitting
                    ]
                    if not fitting:
                        note = "no run's model and batch, and nothing of this cluster, allows another number"
                        yield VerificationCheck(gate="baseline", run=layout, status="not testable here", note=note)
            else:
                remake = self._repeat if gate == "repeatability" else self._restart
                drawn = self._drawn(draw)[:sample]
                jobs += [(run, partial(self._checked, gate, run, partial(remake, run, draw))) for run in drawn]
        yield from self._all(jobs)

    def _checked(self, gate: Any, run: RunConfig, job: Callable[[], VerificationCheck]) -> VerificationCheck:
        try:
            return job()
        except (OctavoError, OSError) as error:
            where = f" ({error.where})" if isinstance(error, OctavoError) and error.where else ""
            return _check(gate, run, "different", f"it cannot be made again: {str(error).splitlines()[0]}{where}")

    def _drawn(self, draw: random.Random) -> list[RunConfig]:
        return draw.sample(self.runs, len(self.runs))

    def _relaid(self, layout: str, draw: random.Random) -> Iterator[tuple[RunConfig, RunConfig]]:
        """Pairs of a run and the same run under another parallel layout, in random order; some runs allow none."""
        fits = cache(lambda cell: relaid(self.experiment, first[cell], layout) is not None)
        first = {run.cell: run for run in self.runs}
        for run in self._drawn(draw):
            if fits(run.cell) and (other := relaid(self.experiment, run, layout)):
                yield run, other

    def _all(self, jobs: list[tuple[RunConfig, Callable[[], VerificationCheck]]]) -> Iterator[VerificationCheck]:
        """Those that need as many cores side by side, the small ones first; on GPUs one after the other."""
        by_cores: dict[int, list[Callable[[], VerificationCheck]]] = {}
        for run, job in jobs:
            by_cores.setdefault(run.parallelism.world_size * run.training.threads, []).append(job)
        for cores, alike in sorted(by_cores.items()):
            at_once = max(1, len(os.sched_getaffinity(0)) // cores) if self.experiment.device.kind == "cpu" else 1
            with ThreadPoolExecutor(at_once) as pool:
                yield from pool.map(lambda job: job(), alike)

    # --- gates --------------------------------------------------------------------------------------------------------

    def _repeat(self, run: RunConfig, _: random.Random) -> VerificationCheck:
        again = self.folder.rerun("repeatability", run.cell, run.seed)
        rerun.train(again, rerun.begin(again, run.by_itself()), stop_at=self._stop(run))
        return self._bitwise("repeatability", run, again, "made again")

    def _restart(self, run: RunConfig, draw: random.Random) -> VerificationCheck:
        """Kill it after its first checkpoint, at a step drawn at random; let it go on."""
        again = self.folder.rerun("restart", run.cell, run.seed)
        last, interval = self._stop(run) or run.training.total_steps, run.training.checkpoints.interval
        first = interval + 1
        if first >= last:
            note = f"no checkpoint is due before step {last}, to go on from (training.checkpoints.interval: {interval})"
            return _check("restart", run, "not testable here", note)
        kill_at = draw.randint(first, last - 1)
        for _ in range(3):  # a fast run may be over before it is seen at a late step
            config = rerun.begin(again, run.by_itself())
            if rerun.train(again, config, kill_at=kill_at, stop_at=self._stop(run)):
                break
            kill_at = max(first, kill_at // 2)
        else:
            note = "the run was over before it could be killed"
            return _check("restart", run, "not testable here", note)
        killed_at = rerun.last_step(again.metrics)
        rerun.train(again, config, stop_at=self._stop(run))
        resumed_from = read_lines(again.attempts, AttemptRecord)[-1].first_step
        return self._bitwise("restart", run, again, f"killed after step {killed_at}, went on from step {resumed_from}")

    def _relayout(self, run: RunConfig, other: RunConfig, layout: str) -> VerificationCheck:
        again = self.folder.rerun(f"baseline/{layout}", run.cell, run.seed)
        rerun.train(again, rerun.begin(again, other.by_itself()), stop_at=self._stop(run))
        what = _changes(run, other)
        difference = self._first_difference(run, again)
        if laid := self._laid_otherwise(run):
            return self._within_tolerance("baseline", run, again, difference, f"{what}; {laid}")
        if difference is None and self._same_parameters(run, again) is not False:
            shutil.rmtree(again.checkpoints, ignore_errors=True)  # they are the original's
            return _check("baseline", run, "identical", f"{what}: every bit is the same{self._up_to(run)}")
        return self._within_tolerance("baseline", run, again, difference, what)

    # --- comparing ----------------------------------------------------------------------------------------------------

    def _stop(self, run: RunConfig) -> int | None:
        return self.steps if self.steps is not None and self.steps < run.training.total_steps else None

    def _up_to(self, run: RunConfig) -> str:
        stop = self._stop(run)
        return f" up to step {stop}, where it was stopped" if stop else ""

    def _original(self, run: RunConfig) -> RunFolder:
        return self.folder.run(run.cell, run.seed)

    def _first_difference(self, run: RunConfig, again: RunFolder) -> Difference | None:
        until = self._stop(run)
        made = counted_metrics(again.metrics)  # the trunk's part with it, where the original began from its checkpoint
        own = {step: line for step, line in made.items() if step > run.begins_after}
        return first_difference(counted_metrics(self._original(run).metrics), own, until)

    def _same_parameters(self, run: RunConfig, again: RunFolder) -> bool | None:
        """Whether the final parameters are the same bits; None where a run was stopped before its end."""
        if self._stop(run) is not None:
            return None
        return _result(self._original(run)).parameters_sha256 == _result(again).parameters_sha256

    def _bitwise(self, gate: Gate, run: RunConfig, again: RunFolder, what: str) -> VerificationCheck:
        difference, parameters = self._first_difference(run, again), self._same_parameters(run, again)
        original = self._original(run)
        if laid := self._laid_otherwise(run):
            return self._within_tolerance(gate, run, again, difference, f"{what} under {run.layout}; {laid}")
        if difference is None and parameters is not False:
            shutil.rmtree(again.checkpoints, ignore_errors=True)  # they are the original's
            final = ", final parameters" if parameters else ""
            return _check(
                gate, run, "identical", f"{what}: losses, gradient norms{final} are the same bits{self._up_to(run)}"
            )
        other = environment_differences(original.provenance, again.provenance)
        if other:
            return self._within_tolerance(gate, run, again, difference, f"{what} where {', '.join(other)} differ")
        tensors = different_tensors(original, again)
        step = difference.step if difference else run.training.total_steps
        fields = difference.fields if difference else ["parameters_sha256"]
        shown = ", ".join([*fields, *tensors][:6])
        note = f"{what}: step {step} is the first that differs, in {shown}{_commits(original, again)}"
        return _check(gate, run, "different", note, first_step=step, differs=[*fields, *tensors])

    def _laid_otherwise(self, run: RunConfig) -> str | None:
        """Why the original is not compared to the bit with what is trained under the run's layout; None: it is."""
        result = _result(self._original(run))
        if result.made_under(run.run_fingerprint):
            return None
        how = "resharded" if result.resharded else "trained under another layout"
        return f"the original was {how} ({laid_out(result.layouts)}), and is not compared to the bit"

    def _within_tolerance(
        self, gate: Gate, run: RunConfig, again: RunFolder, first: Difference | None, what: str
    ) -> VerificationCheck:
        """The loss against the original's, held to what two seeds differ by; `first`: where the two part."""
        at = self._stop(run)
        original, found = self._loss(self._original(run), at), self._loss(again, at)
        differs = {"first_step": first.step, "differs": first.fields} if first else {}
        spread = seed_spread((one.cell, self._loss(self._original(one), at)) for one in self.runs)
        if original is None or found is None:
            same = original is found
            note = f"{what}: {'both diverged' if same else 'one of them diverged'}"
            return _check(gate, run, "equal within tolerance" if same else "different", note, **differs)
        difference = abs(found / original - 1)
        said = f"{what}: {self._beginning(run, again)}the loss differs by {difference:.3%}"
        if spread is None:
            note = f"{said}; no cell has two seeds, so that there is no spread to hold it against"
            return _check(gate, run, "not testable here", note, difference=difference, **differs)
        tolerance = spread.tolerance()
        status = "equal within tolerance" if difference <= tolerance else "different"
        note = f"{said}, two seeds by up to {tolerance:.3%}{self._up_to(run)}"
        return _check(gate, run, status, note, difference=difference, tolerance=tolerance, **differs)

    def _loss(self, folder: RunFolder, until: int | None) -> float | None:
        """The final validation loss; of a run stopped at a step, the mean training loss of the tenth before it."""
        if until is None:
            return _result(folder).validation_loss
        losses = [
            value["loss"]
            for step, value in counted_metrics(folder.metrics).items()
            if until * 0.9 < step <= until and "loss" in value
        ]
        return fmean(losses) if losses else None

    def _beginning(self, run: RunConfig, again: RunFolder) -> str:
        """How far the training losses of the first steps are apart: before training multiplies what differs."""
        before, after = counted_metrics(self._original(run).metrics), counted_metrics(again.metrics)
        pairs = [(before.get(step, {}).get("loss"), after.get(step, {}).get("loss")) for step in range(1, FIRST + 1)]
        apart = [abs(found / original - 1) for original, found in pairs if original and found]
        if not apart:
            return ""
        return f"in the first {len(apart)} steps the training loss differs by at most {max(apart):.4%}; "


def relaid(experiment: Experiment, run: RunConfig, layout: str) -> RunConfig | None:
    """The run with one of `LAYOUTS` changed; None where the model, the batch or the machine does not allow it.

    Expert-parallel ranks are data-parallel ones too. The micro-batch is made smaller where more ranks need it; the
    global batch, and so the gradient, stays. No more GPUs are taken than by the largest cell: those are what a job that
    verifies holds.
    """

    def other(degree: int) -> int:
        return degree // 2 or 2

    ranks, training = run.parallelism, run.training
    degree = other(training.threads if layout == "threads" else getattr(ranks, layout))
    change: dict[str, Any] = {}
    if layout == "threads":
        training = training.model_copy(update={"threads": degree})
    elif layout == "data":
        change = {"data": degree, "expert": min(ranks.expert, degree)}
    elif layout == "expert":
        change = {"data": max(ranks.data, degree), "expert": degree}
    else:
        change = {"tensor": degree, "sequence": ranks.sequence and degree > 1}
    try:
        ranks = Parallelism.model_validate({**ranks.model_dump(), **change})
        share = training.global_batch_size // ranks.data
        if share and share % training.micro_batch_size:
            training = training.model_copy(update={"micro_batch_size": share})
        changed = run.model_copy(update={"parallelism": ranks, "training": training})
        check_experiment(replace(experiment, cells={**experiment.cells, changed.cell: changed}))
    except (OctavoError, ValueError):
        return None
    held = max(cell.parallelism.world_size for cell in experiment.cells.values())  # workflow/rules/verify.smk
    return changed if experiment.device.kind == "cpu" or ranks.world_size <= held else None


def _changes(run: RunConfig, other: RunConfig) -> str:
    """What is changed: `data 2 and expert 2 instead of 1 and 1`."""
    before, after = (
        {**one.parallelism.model_dump(), "threads": one.training.threads, "micro-batch": one.training.micro_batch_size}
        for one in (run, other)
    )
    changed = [name for name in before if before[name] != after[name]]
    said = " and ".join(f"{name} {after[name]}" for name in changed)
    return f"{said} instead of {' and '.join(str(before[name]) for name in changed)}"


def _result(folder: RunFolder) -> Result:
    return read_record(folder.result, Result, made_by=f"octavo train {folder.path}")


def _check(gate: Gate, run: RunConfig, status: Any, note: str, **more: Any) -> VerificationCheck:
    return VerificationCheck(gate=gate, run=f"{run.cell}/seed-{run.seed}", status=status, note=note, **more)


def _commits(original: RunFolder, again: RunFolder) -> str:
    """Names the commits where they differ: other code may be why bits do."""
    made_by = "octavo train"
    commits = [read_record(one.provenance, Provenance, made_by=made_by).git_commit for one in (original, again)]
    if commits[0] == commits[1]:
        return ""
    return f"; made by commit {(commits[0] or 'unknown')[:12]}, again by {(commits[1] or 'unknown')[:12]}"
