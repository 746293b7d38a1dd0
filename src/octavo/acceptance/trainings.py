"""What short runs show: losses against the emulation's, the same bits again, bits after a kill, speed.

Every run is `octavo train` in processes of its own, watched as verification watches its own
(`octavo.verification.rerun`). Small runs take one device each, as many at a time as there are devices.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from statistics import fmean, median
from typing import Any, cast

from octavo.acceptance.checks import at_least, check
from octavo.acceptance.workshop import CHECKPOINT_STEPS, FIRST_TIMED, NODE_MODELS, STEPS, Workshop
from octavo.errors import OctavoError
from octavo.experiment.run import CellConfig, Experiment, RunConfig
from octavo.forecast.memory import fits, memory
from octavo.forecast.rows import fastest_published, published_beside
from octavo.forecast.steps import forecast_step
from octavo.layout import RunFolder
from octavo.models.catalogue import read_architecture
from octavo.precision.config import RecipeName
from octavo.precision.recipes import RECIPES
from octavo.records import AcceptanceCheck, AcceptanceVerdict, Result, read_metrics, read_record
from octavo.verification import rerun
from octavo.verification.compare import counted_metrics, first_difference
from octavo.verification.tolerance import SeedSpread, seed_spread

MOST_CORES = 16
"""Emulated runs at a time."""
KILL_AFTER = CHECKPOINT_STEPS + 2
LEAST_SECONDS = 30.0
"""A run that has less time left is not begun."""
PUBLISHED = {"dense": "llama-3.1-8b", "moe": "qwen3-30b-a3b"}
"""Models of published throughput that a node trains."""
GIB = 2**30


@dataclass
class Trainings:
    """Runs on a cluster's devices, and what they show."""

    workshop: Workshop
    devices: int
    stand_in: bool
    numerics: Experiment = field(init=False)
    speeds: dict[str, list[float]] = field(default_factory=dict)
    """Recipe -> measured over forecast tokens/s of each model."""

    def __post_init__(self) -> None:
        self.numerics = self.workshop.small_models()
        self.workshop.prepare(self.numerics)
        visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or "").split(",")
        named = visible if visible != [""] else [str(number) for number in range(self.devices)]
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for name in [None] if self.stand_in else named[: self.devices]:
            self._free.put(name)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def against_emulation(self, end: float) -> Iterator[AcceptanceCheck]:
        """The mean loss of the first steps of each cell, held against that of its emulation on this node's CPU."""
        part = "losses"
        recipes: list[RecipeName] = [one for one in self.workshop.recipes if RECIPES[one].emulated]
        if "bf16" not in recipes and len(recipes) < len(self.workshop.recipes):
            recipes = ["bf16", *recipes]
        first = recipes[0]
        emulated = self.workshop.emulated(recipes)
        runs = [
            emulated.run(cell, seed)
            for cell in emulated.cells
            for seed in (emulated.file.all_seeds if cell.endswith(f"-{first}") else emulated.file.all_seeds[:1])
        ]
        cores = min(MOST_CORES, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(cores) as cpu:
            others = [cpu.submit(self._attempt, run, self._folder(run), end, on_gpu=False) for run in runs]
            own = dict(zip(self.numerics.cells, self._on_devices(self._first, self.numerics.cells, end), strict=True))
            failed = {(run.cell, run.seed): job.result() for run, job in zip(runs, others, strict=True)}
        losses = {
            (run.cell, run.seed): self._losses(self._folder(run)) for run in runs if failed[run.cell, run.seed] is None
        }
        scattered = ((name, fmean(found)) for (name, _), found in losses.items() if name.endswith(f"-{first}"))
        spread = seed_spread(scattered)
        for cell, error in own.items():
            architecture, _, recipe = cell.partition("-")
            twin = cell if RECIPES[cast(RecipeName, recipe)].emulated else f"{architecture}-bf16"
            what = f"{STEPS} steps of {cell}"
            expected = f"the mean loss of {twin} emulated on the CPU, within what two seeds differ by"
            source = "docs/precision.md; docs/verification.md (95 % of two seeds' differences)"
            if error is not None:
                yield self._failed(part, what, expected, source, error)
            elif (theirs := losses.get((twin, 1))) is None or spread is None:
                said = failed[twin, 1] or OctavoError("the emulation has no two seeds")
                yield check(part, what, expected, source, f"the emulation has no loss: {said.found}", "not measured")
            else:
                yield self._compared(part, what, expected, source, self._losses(self._own(cell)), theirs, spread)

    def _compared(
        self,
        part: str,
        what: str,
        expected: str,
        source: str,
        own: list[float],
        theirs: list[float],
        spread: SeedSpread,
    ) -> AcceptanceCheck:
        if len(own) < len(theirs):
            return check(part, what, expected, source, f"it ended after step {len(own)}", "fell short")
        tolerance = spread.tolerance()
        apart = abs(fmean(own) / fmean(theirs) - 1) if all(map(math.isfinite, own)) else math.inf
        most = max(abs(one / other - 1) for one, other in zip(own, theirs, strict=True))
        found = f"{apart:.3%} apart in the mean, {most:.3%} at most in a step; two seeds by up to {tolerance:.3%}"
        if apart <= tolerance:
            return check(part, what, expected, source, found, "passed")
        return check(part, what, expected, source, found, "fell short")

    def determinism(self, end: float) -> Iterator[AcceptanceCheck]:
        """Every cell's run made again."""
        yield from self._on_devices(self._again, self.numerics.cells, end)

    def _again(self, cell: str, end: float) -> AcceptanceCheck:
        what = f"{cell}, the same run twice"
        expected = "the same losses, gradient norms and parameters, to the last bit"
        folder = self.workshop.folder(self.numerics, cell, 1, "again")
        return self._bits("determinism", what, expected, cell, folder, self._attempt(self._run(cell), folder, end))

    def resume(self, end: float) -> Iterator[AcceptanceCheck]:
        """Every cell's run killed on the way, and gone on with."""
        yield from self._on_devices(self._killed, self.numerics.cells, end)

    def _killed(self, cell: str, end: float) -> AcceptanceCheck:
        part, what = "kill and resume", f"{cell}, killed after step {KILL_AFTER} and started again"
        expected = "the same losses, gradient norms and parameters as undisturbed, to the last bit"
        folder = self.workshop.folder(self.numerics, cell, 1, "killed")
        error = self._attempt(self._run(cell), folder, end, kill_at=KILL_AFTER)
        if error is None and folder.result.exists():
            found = "the run was over before it could be killed"
            return check(part, what, expected, "docs/training.md", found, "not measured")
        error = error or self._attempt(self._run(cell), folder, end, goes_on=True)
        return self._bits(part, what, expected, cell, folder, error)

    def _bits(
        self, part: str, what: str, expected: str, cell: str, again: RunFolder, error: OctavoError | None
    ) -> AcceptanceCheck:
        original, source = self._own(cell), "docs/training.md"
        if not original.result.exists():
            return check(part, what, expected, source, "the first run has no result to compare with", "not measured")
        if error is not None:
            return self._failed(part, what, expected, source, error)
        found, verdict = same_bits(original, again)
        return check(part, what, expected, source, found, verdict)

    # --- speed --------------------------------------------------------------------------------------------------------

    def speed(self, end: float) -> Iterator[AcceptanceCheck]:
        """Tokens/s and MFU of the models that experiments on a node train, against the forecast; then of published ones
        against what was published."""
        own = self.workshop.speed(self.devices)
        for cell in own.cells.values():
            yield from self._timed(own, cell, end, published=False)
        if self.stand_in:
            return
        for role, name in PUBLISHED.items():
            other = self.workshop.speed(self.devices, {role: name})
            for cell in other.cells.values():
                if fastest_published(read_architecture(name), other.device, cell.precision.recipe):
                    yield from self._timed(other, cell, end, published=True)

    def _timed(
        self, experiment: Experiment, cell: CellConfig, end: float, *, published: bool
    ) -> Iterator[AcceptanceCheck]:
        part, device = "speed", experiment.device
        forecast = forecast_step(cell, experiment.cluster, device)
        what = f"{cell.model.name} in {cell.precision.recipe} on {self.devices} GPUs"
        peak = device.peak_tflops["bf16"]
        expected = (
            f"at least {forecast.low:,.0f} tokens/s a GPU, the lower end of the forecast of "
            f"{forecast.tokens_per_second_per_device:,.0f} ({forecast.model_tflops_per_device / peak:.1%} MFU, of "
            "BF16's peak)"
        )
        source = f"docs/forecast.md, {forecast.interval:.0%} interval"
        needed = memory(cell.model, cell.training, cell.parallelism, cell.precision, device).total
        if not fits(needed, device):
            found = f"it needs {needed / GIB:.0f} GiB a GPU, and a GPU has {device.memory_gib:.0f}"
            yield check(part, what, expected, source, found, "not measured")
            return
        folder = self.workshop.folder(experiment, cell.cell, 1)
        error = self._attempt(experiment.run(cell.cell, 1), folder, end, every_device=True)
        if error is not None:
            yield self._failed(part, what, expected, source, error)
            return
        if self.stand_in:
            found = f"{len(self._losses(folder))} steps were trained on the stand-in, whose times say nothing"
            yield check(part, what, expected, source, found, "not measured")
            return
        seconds = [
            line.step_seconds
            for line in read_metrics(folder.metrics).values()
            if line.step_seconds and line.step >= FIRST_TIMED
        ]
        rate = cell.training.tokens_per_step / median(seconds) / self.devices
        found = f"{rate:,.0f} tokens/s a GPU ({rate * forecast.flops_per_token / 1e12 / peak:.1%} MFU)"
        if not published:
            self.speeds.setdefault(cell.precision.recipe, []).append(rate / forecast.tokens_per_second_per_device)
        yield at_least(part, what, expected, source, found, rate, forecast.low)
        row = fastest_published(cell.model, device, cell.precision.recipe)
        if row is not None:
            least = row.tokens_per_second_per_device * forecast.low_factor
            expected = f"at least {least:,.0f} tokens/s a GPU, {forecast.low_factor:.0%} of what was published"
            named = f"{published_beside(cell.model, device, cell.precision.recipe)}; another layout and batch"
            yield at_least(part, f"{what}, against what was published", expected, named, found, rate, least)

    def factors(self) -> dict[str, float]:
        """Recipe -> measured over forecast tokens/s, the geometric mean of the models; where every model was timed."""
        return {
            recipe: math.exp(fmean(map(math.log, found)))
            for recipe, found in self.speeds.items()
            if len(found) == len(NODE_MODELS)
        }

    # --- running ------------------------------------------------------------------------------------------------------

    def _first(self, cell: str, end: float) -> OctavoError | None:
        return self._attempt(self._run(cell), self._own(cell), end)

    def _on_devices(self, job: Callable[[str, float], Any], cells: Iterable[str], end: float) -> list[Any]:
        with ThreadPoolExecutor(self._free.qsize()) as pool:
            return list(pool.map(lambda cell: job(cell, end), cells))

    def _attempt(
        self,
        run: RunConfig,
        folder: RunFolder,
        end: float,
        *,
        on_gpu: bool = True,
        every_device: bool = False,
        goes_on: bool = False,
        kill_at: int | None = None,
    ) -> OctavoError | None:
        """Train a run, on one device or on all; what it failed with, or that time was up."""
        device = self._free.get() if on_gpu and not every_device else None
        try:
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                return _TooLateError("no time was left for it")
            config = folder.path.with_name(f"{folder.path.name}.yaml") if goes_on else rerun.begin(folder, run)
            environment = self.workshop.environment(on_gpu=on_gpu, device=device)
            rerun.train(folder, config, kill_at=kill_at, environment=environment, seconds=left)
        except OctavoError as error:  # cut off by the clock it says nothing of the devices
            return _TooLateError(error.found, where=error.where) if time.monotonic() >= end else error
        finally:
            if on_gpu and not every_device:
                self._free.put(device)
        return None

    def _failed(self, part: str, what: str, expected: str, source: str, error: OctavoError) -> AcceptanceCheck:
        verdict: AcceptanceVerdict = "not measured" if isinstance(error, _TooLateError) else "fell short"
        return check(
            part, what, expected, source, f"{error.found}{f' ({error.where})' if error.where else ''}", verdict
        )

    def _run(self, cell: str) -> RunConfig:
        return self.numerics.run(cell, 1)

    def _own(self, cell: str) -> RunFolder:
        return self.workshop.folder(self.numerics, cell, 1)

    def _folder(self, run: RunConfig) -> RunFolder:
        """Of an emulated run."""
        return RunFolder(self.workshop.root / "results" / run.experiment / "runs" / run.cell / f"seed-{run.seed}")

    def _losses(self, folder: RunFolder) -> list[float]:
        return [line.loss if line.loss is not None else math.nan
                for line in read_metrics(folder.metrics).values() if line.trained]  # fmt: skip


class _TooLateError(OctavoError):
    """A run that was not begun, or was ended: its part's time was up."""


def same_bits(original: RunFolder, again: RunFolder) -> tuple[str, AcceptanceVerdict]:
    """Whether two complete runs are one: every logged number and the final parameters."""
    difference = first_difference(counted_metrics(original.metrics), counted_metrics(again.metrics))
    if difference is not None:
        return f"step {difference.step} is the first that differs, in {', '.join(difference.fields)}", "fell short"
    first, second = (read_record(one.result, Result, made_by="octavo accept") for one in (original, again))
    if first.parameters_sha256 != second.parameters_sha256:
        return f"{second.steps} steps with the same bits, but the final parameters differ", "fell short"
    return f"{second.steps} steps with the same bits, and the same final parameters", "passed"
