"""One run, from its configuration to its result, on one CPU process or many GPUs: the same code.

The order of events is the module: open the run's folder, build the model from its layer specs, its optimizer and
schedule, go on from the newest whole checkpoint, step, validate, save, write the result. What each of these is lives
beside this file; the mathematics and the parallelism are Megatron-Core's.

A run is a function of its configuration: the same seed on the same machine gives the same losses to the last bit,
also when it is killed on the way and started again.
"""

from __future__ import annotations

import gc
import hashlib
import math
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import takewhile
from typing import Any, Literal

import torch
import torch.distributed
from torch.distributed.checkpoint.api import CheckpointException

from octavo.data.manifest import data_set_folder, read_manifest
from octavo.data.sampling import PreparedData, open_dataset
from octavo.errors import OctavoError
from octavo.experiment.load import vocabulary_size
from octavo.experiment.run import RunConfig
from octavo.files import sha256, write_text
from octavo.layout import RunFolder
from octavo.metrics import training_figures
from octavo.models.matched import matched_quantity
from octavo.precision.diagnostics import diagnose
from octavo.records import (
    AttemptRecord,
    ExitReason,
    LayoutSince,
    MetricsRecord,
    Result,
    lines_from_the_end,
    write_table,
)
from octavo.training import journal, provenance, ranks, seal, trunk
from octavo.training.assembly import build_chunks, unwrapped
from octavo.training.checkpoint import Checkpointer
from octavo.training.energy import EnergyMeter
from octavo.training.initial_values import global_names
from octavo.training.kernel_profile import KernelWatch
from octavo.training.launch import RESTART, STARTED, STOPS, Process, nodes, slurm_job
from octavo.training.optimizer import build_optimizer, build_scheduler
from octavo.training.process import set_up_process
from octavo.training.progress import Progress
from octavo.training.requirements import attention_warning, late_to_save
from octavo.training.routing import RouterProbe
from octavo.training.step import Stepper, StepResult
from octavo.training.step_proof import StepWatch, check_step
from octavo.training.validation import Validation, Validator
from octavo.training.watch import Watch

DIVERGED_LOSS = 1.5
DIVERGED_STEPS = 50
"""A loss above DIVERGED_LOSS x ln(vocabulary) for DIVERGED_STEPS steps on end is a run that has diverged."""

Ending = Literal["completed", "diverged", "signalled"]


def train(run: RunConfig, folder: RunFolder, process: Process) -> int:
    """Train a run in its folder; the exit status: 0 when there is a result, RESTART when it was told to stop."""
    with journal.only_trainer(folder) if process.leads else nullcontext():
        try:
            return _Trainer(run, folder, process).train()
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


class _Trainer:
    def __init__(self, run: RunConfig, folder: RunFolder, process: Process) -> None:
        self.run, self.folder, self.process = run, folder, process
        self.training, self.total_steps = run.training, run.training.total_steps
        self.on_gpu = torch.cuda.is_available()
        self.emulated = run.precision.recipe != "bf16" and (not self.on_gpu or run.precision.emulate)
        self.progress = Progress(f"{run.cell}/seed-{run.seed}", self.total_steps)
        self.journal: journal.Journal | None = None
        self.signalled = False
        self.lost = trunk.diverged_early(run, folder)
        """Whether it has diverged before it begins."""
        self.done = 0 if self.lost else run.begins_after
        """Steps done."""
        self.layouts: list[LayoutSince] = []
        """Those that its steps were trained under; the leading rank's, who writes them down."""
        self.save_seconds: float | None = None
        """The longest that a checkpoint took."""
        stage = process.rank * run.parallelism.pipeline // process.world_size  # the outermost of the ranks' dimensions
        self.watch = Watch(folder, process, stage, self.training.checkpoints, self._close_for)

    def train(self) -> int:
        """The story of a run, and of how it may end."""
        for number in STOPS:
            signal.signal(number, self._receive)
        self.watch.start()
        try:
            if self.process.leads:  # first: a try that fails on the way is an attempt, too
                self._open_folder()
            set_up_process(self.run, self.process)
            self.energy = EnergyMeter(torch.cuda.current_device() if self.on_gpu else None)
            torch.distributed.barrier()
            self.watch.met()
            self._build()
            gc.freeze()  # lives to the end: the collector need not look at it, neither between steps nor at the end
            ending = "diverged" if self.lost else self._loop()
            if ending == "signalled":
                self._close(ending)
            else:
                self._write_result(ending)
        except BaseException as error:
            if _may_be_a_connection(error):
                self.watch.settle()
            self._close_failed(error)
            raise
        self.watch.stop(None)
        return RESTART if ending == "signalled" else 0

    def _receive(self, *_: object) -> None:
        """Stop after the step at hand."""
        self.signalled = True

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        run, folder = self.run, self.folder
        journal.close_dangling(folder)  # first: where this start fails, its end is not the last attempt's
        ranks.clear(folder)
        data = data_set_folder(run.data, run.tokenizer)
        read_manifest(data)  # nothing is moved or discarded for a data set that is missing
        manifest = sha256(data / "manifest.json")
        own = bool(seal.saved_steps(folder.checkpoints))
        trunk.check_trunk(run, folder, manifest)  # nor for a trunk that is
        if moved := journal.supersede(folder, run.own_identity, manifest):
            self.progress.say(moved)
        write_text(folder.config, run.to_yaml())
        attempts = journal.read_attempts(folder)
        for wrong in seal.discard_unsound(folder.checkpoints, run.own_identity, manifest):
            self.progress.say(f"not going on from a checkpoint: {wrong}")
        if own:  # of its own there may be none left, and the trunk's was not looked at
            trunk.check_trunk(run, folder, manifest)
        self._take_up_layouts()
        attempt = AttemptRecord(
            attempt=len(attempts) + 1,
            start=STARTED,
            host=socket.gethostname(),
            nodes=nodes(),
            device_kind=torch.cuda.get_device_name() if self.on_gpu else "cpu",
            device_count=self.process.world_size,
            first_step=max(seal.saved_steps(folder.checkpoints), default=self.done),
            slurm_job_id=slurm_job(),
            run_fingerprint=run.run_fingerprint,
            computation_fingerprint=run.own_identity.computation_fingerprint,
            layout=run.layout,
        )
        self.journal = journal.Journal(folder, attempt)

    def _take_up_layouts(self) -> None:
        """The layouts of the checkpoint that the run goes on from, and its own from there on."""
        steps = seal.saved_steps(self.folder.checkpoints)
        newest = self.folder.checkpoint(steps[-1]) if steps else trunk.trunk_checkpoint(self.run, self.folder)
        done = seal.step_of(newest) if newest else 0
        earlier = seal.read_seal(newest).layouts if newest else []
        own = LayoutSince(after_step=done if earlier else 0, layout=self.run.layout, devices=self.process.world_size)
        same = bool(earlier) and earlier[-1].layout == own.layout
        self.layouts = earlier if same else [*earlier, own]
        if earlier and not same:
            self.progress.say(
                f"goes on after step {done} from a checkpoint of {earlier[-1].layout} under {own.layout}: the losses "
                "stay within the tolerance, and are no longer to the last bit those of a run under one layout"
            )

    def _build(self) -> None:
        run = self.run
        self.watch.doing("start", self.done)
        self.data = self._open_data()
        self.watch.doing("start", self.done)
        config, self.chunks, built = build_chunks(run)
        optimizer = build_optimizer(self.chunks, self.training, on_gpu=self.on_gpu)
        scheduler = build_scheduler(optimizer, self.training)
        config.grad_scale_func = optimizer.scale_loss
        self.stepper = Stepper(run, self.chunks, optimizer, scheduler)
        self.validator = Validator(run, self.data, self.chunks, self.stepper)
        self.routers = RouterProbe(self.chunks, config)
        self.checkpoints = Checkpointer(
            self.folder.checkpoints,
            self.training.checkpoints.keep,
            self.training.branch_steps,
            self.chunks,
            optimizer,
            scheduler,
            leads=self.process.leads,
            identity=run.own_identity,
            layouts=self.layouts,
            data_manifest_sha256=self.data.manifest_sha256,
        )
        if self.process.leads:
            if self.on_gpu and (warning := attention_warning(run, torch.backends.cudnn.version())):
                self.progress.say(warning)
            self.checkpoints.remove_partial()
            found = provenance.collect(
                threads=self.training.threads,
                data_manifest_sha256=self.data.manifest_sha256,
                precision_built=built,
                emulated=self.emulated,
                deterministic=self.training.deterministic,
                layouts=self.layouts,
            )
            journal.write_record(self.folder.provenance, found)
            self.provenance = found
        self.done = self.checkpoints.load_newest(trunk.trunk_checkpoint(run, self.folder))
        if self.done and self.process.leads:
            self.progress.say(f"going on from the checkpoint after step {self.done}")
        self.flops_per_token = self._quantity("flops_per_token")
        self.sequences = self.data.training_sequences(run)

    def _open_data(self) -> PreparedData:
        data = open_dataset(data_set_folder(self.run.data, self.run.tokenizer), hashes=self.process.local_rank == 0)
        tokens, vocabulary = vocabulary_size(self.run.tokenizer), self.run.model.vocabulary_size or 0
        if tokens > vocabulary:
            raise OctavoError(
                f"the tokenizer has {tokens} tokens, the model's vocabulary {vocabulary}",
                where=f"{self.folder.config} model.vocabulary_size",
                expected=f"at least {tokens}",
            )
        data.check_evaluation(self.training)
        return data

    def _quantity(self, name: str) -> float:
        return matched_quantity(self.run.model, name, self.training.sequence_length)  # type: ignore[arg-type]

    # --- going --------------------------------------------------------------------------------------------------------

    def _loop(self) -> Ending:
        training = self.training
        limit = DIVERGED_LOSS * math.log(self.run.model.vocabulary_size or 1)
        high = self._steps_above(limit)
        first = self.done + 1
        for step in range(first, self.total_steps + 1):
            self.watch.doing("step", step)
            began = time.perf_counter()
            probes = bool(self.routers.layers) and step % training.logging.expert_load_interval == 0
            self.routers.switch(probes)
            watch = StepWatch() if step == first and self.on_gpu and not self.run.precision.emulate else None
            # the second: in the first, kernels are compiled and ranks meet. Rates are medians, which it does not move
            kernels = KernelWatch() if step == first + 1 and self.on_gpu and self.process.leads else None
            with (
                diagnose() if self._examines(step) else nullcontext() as numbers,
                watch.on() if watch else nullcontext(),
                kernels.on() if kernels else nullcontext(),
            ):
                result = self.stepper.step(step, self.sequences, signalled=self.signalled)
            seconds = time.perf_counter() - began
            self.watch.worked(result.work_seconds)
            if watch:
                self._prove(watch)
            if kernels:
                self._keep(kernels=kernels.shares)
            self.done = step
            self._log_step(
                result, seconds, self._expert_load() if probes else None, numbers.fields() if numbers else {}
            )
            high = high + 1 if result.loss > limit else 0
            if not math.isfinite(result.loss + result.grad_norm) or high >= DIVERGED_STEPS:
                return "diverged"
            if step == self.total_steps:
                break
            if step % training.evaluation.interval == 0:
                self.watch.doing("validation", step)
                self._log_validation(self.validator.validate(training.evaluation.sequences))
            if step % training.checkpoints.interval == 0 or step in training.branch_steps or result.stop:
                self._save(step, seconds)
            if result.stop:
                return "signalled"
        return "completed"

    def _prove(self, watch: StepWatch) -> None:
        """Write what the first step did, and stop the run if that is not what its name says."""
        models: Any = [unwrapped(chunk) for chunk in self.chunks]
        proof = watch.proof(models)
        if self.process.leads:
            self._keep(step_proof=proof)
        batch = self.training.micro_batch_size * self.run.parallelism.data
        batches = self.training.global_batch_size // batch
        check_step(proof, models, self.run.precision, batches, recomputes=bool(self.training.recompute))

    def _keep(self, **found: Any) -> None:
        """Add to the provenance what a step showed."""
        self.provenance = self.provenance.model_copy(update=found)
        journal.write_record(self.folder.provenance, self.provenance)

    def _steps_above(self, limit: float) -> int:
        """Steps on end with a loss above the limit, up to the checkpoint that the run goes on from."""
        high = [0]
        if self.done and self.process.leads:
            high = [sum(1 for _ in takewhile(lambda loss: loss > limit, self._losses_backwards()))]
        if self.process.world_size > 1:
            torch.distributed.broadcast_object_list(high, src=0)
        return high[0]

    def _losses_backwards(self) -> Iterator[float]:
        """The losses of the steps up to the checkpoint that the run goes on from, the last one first.

        Of a step that was trained more than once the last line counts, and that comes first from the end.
        """
        lasting = [(self.folder.metrics, self.done)]
        if self.run.trunk and self.folder.trunk:
            lasting.append((self.folder.trunk.metrics, self.run.begins_after))
        step = self.done
        for path, last in lasting:
            step = min(step, last)
            for line in lines_from_the_end(path, MetricsRecord):
                if line.trained and line.step <= step:
                    yield (line.loss or 0.0) if line.step == step else 0.0
                    step = line.step - 1

    def _save(self, step: int, step_seconds: float) -> None:
        self.watch.doing("checkpoint", step)
        began = time.perf_counter()
        if self.journal:
            self.journal.keep()
        self.checkpoints.save(step)
        seconds = time.perf_counter() - began
        if self.process.leads:
            self.progress.say(f"saved after step {step} in {seconds:.1f} s")
            slower = self.save_seconds is None or seconds > self.save_seconds
            if slower and (warning := late_to_save(self.run, step_seconds + seconds)):
                self.progress.say(warning)
        self.save_seconds = max(seconds, self.save_seconds or 0.0)

    def _examines(self, step: int) -> bool:
        """Whether this step's FP8 numbers are looked at (emulated ones: Transformer Engine does not show its own)."""
        interval = self.training.logging.precision_interval
        return self.emulated and interval > 0 and step % interval == 0

    def _log_step(
        self, result: StepResult, seconds: float, expert_load: list[list[float]] | None, numbers: dict[str, Any]
    ) -> None:
        if self.journal is None:
            return
        rate = self.training.tokens_per_step / seconds
        self.journal.record(
            MetricsRecord(
                **self._now(),
                loss=_finite(result.loss),
                aux_loss=_finite(result.aux_loss),
                multi_token_prediction_loss=_finite(result.multi_token_prediction_loss),
                grad_norm=_finite(result.grad_norm),
                learning_rate=result.learning_rate,
                step_seconds=seconds,
                tokens_per_second=rate,
                model_tflops=rate * self.flops_per_token / 1e12,
                memory_bytes=result.memory_bytes,
                expert_load=expert_load,
                **numbers,
            )
        )
        self.progress.step(self.done, result.loss, rate)

    def _log_validation(self, found: Validation, final: Validation | None = None) -> None:
        if self.journal is None:
            return
        self.journal.record(
            MetricsRecord(
                **self._now(),
                validation_loss=_finite(found.loss),
                validation_bits_per_byte=_finite(found.bits_per_byte),
                validation_loss_by_domain=found.loss_by_domain if math.isfinite(found.loss) else None,
                final_validation_loss=_finite(final.loss) if final else None,
                final_validation_bits_per_byte=_finite(final.bits_per_byte) if final else None,
                final_validation_loss_by_domain=final.loss_by_domain if final and math.isfinite(final.loss) else None,
            )
        )

    def _now(self) -> dict[str, Any]:
        assert self.journal is not None
        return {
            "step": self.done,
            "tokens": self.done * self.training.tokens_per_step,
            "time": time.time(),
            "attempt": self.journal.attempt.attempt,
        }

    def _expert_load(self) -> list[list[float]]:
        """Fraction of routed tokens by [mixture-of-experts layer][expert] in the step just done."""
        seen = self.training.global_batch_size // self.run.parallelism.data
        tokens = self.routers.tokens(seen, list(range(seen))).sum(1)
        return (tokens / tokens.sum(1, keepdim=True)).tolist()

    # --- ending -------------------------------------------------------------------------------------------------------

    def _write_result(self, ending: Ending) -> None:
        """End the attempt, then write the result, which holds the hash of the attempts."""
        run, validation = self.run, None
        self.watch.doing("end", self.done)
        if ending == "completed":
            probe = self.routers if self.routers.layers else None
            evaluation = self.training.evaluation
            curve = self.validator.validate(evaluation.sequences)
            # on more sequences than those before it: no point of their curve, but the result must follow from metrics
            validation = self.validator.validate(evaluation.final_sequences, probe)
            self._log_validation(curve, final=validation)
            if probe and self.process.leads:
                write_table(self.folder.routing, validation.routing_table(probe.layers), "routing")
        parameters = self._parameters_sha256()
        self._close(ending)
        if not self.process.leads:
            return
        files = (self.folder.attempts, self.folder.provenance, self.folder.routing)
        _, training_loss, training_seconds = training_figures(self.folder.metrics, self.total_steps)
        result = Result(
            experiment=run.experiment,
            cell=run.cell,
            architecture=run.architecture,
            precision=run.precision.recipe,
            ablation=run.ablation,
            seed=run.seed,
            run_fingerprint=run.run_fingerprint,
            computation_fingerprint=run.own_identity.computation_fingerprint,
            layouts=self.layouts,
            status="completed" if ending == "completed" else "diverged",
            steps=self.done,
            tokens=self.done * self.training.tokens_per_step,
            training_loss=training_loss if validation else None,
            validation_loss=validation.loss if validation else None,
            validation_bits_per_byte=validation.bits_per_byte if validation else None,
            validation_loss_by_domain=validation.loss_by_domain if validation else {},
            flops_per_token=self.flops_per_token,
            total_parameters=round(self._quantity("total_parameters")),
            active_parameters=round(self._quantity("active_parameters")),
            training_seconds=training_seconds,
            emulated=self.emulated,
            device_kind=torch.cuda.get_device_name() if self.on_gpu else "cpu",
            device_count=self.process.world_size,
            metrics_sha256=sha256(self.folder.metrics),
            files_sha256={path.name: sha256(path) for path in files if path.exists()},
            parameters_sha256=parameters,
            data_manifest_sha256=self.data.manifest_sha256,
        )
        journal.write_record(self.folder.result, result)

    def _parameters_sha256(self) -> str:
        """Over the names and bytes of the final BF16 parameters, rank by rank."""
        digest = hashlib.sha256()
        for chunk in self.chunks:
            for name, parameter in sorted(global_names(unwrapped(chunk)), key=lambda pair: pair[0]):
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if self.process.world_size == 1:
            return digest.hexdigest()
        digests: list[str] = [""] * self.process.world_size
        torch.distributed.all_gather_object(digests, digest.hexdigest())
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _close(self, reason: ExitReason) -> None:
        """End the attempt, with the energy of all its GPUs, or of this machine's processors, and the ranks' times."""
        joules = self.energy.joules()
        if self.on_gpu and self.process.world_size > 1:
            every: list[float | None] = [None] * self.process.world_size
            torch.distributed.all_gather_object(every, joules)
            joules = None if None in every else sum(one or 0.0 for one in every)
        if self.process.world_size > 1:
            self.watch.beat()
            torch.distributed.barrier()
        if self.journal:
            self.journal.close(
                reason,
                self.done,
                energy_joules=joules,
                energy_source=self.energy.source if joules is not None else None,
                save_seconds=self.save_seconds,
                ranks=ranks.rank_times(self.folder),
            )

    def _close_failed(self, error: BaseException) -> None:
        """End the attempt as well as can be: what ended it is the error that is told, whatever comes on top."""
        reason: ExitReason = "failed"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            reason = "out_of_memory"
        lines = str(error).splitlines()
        named, rank = lines[0] if lines else type(error).__name__, self.process.rank
        ending = ranks.Ending(reason=reason, rank=rank, said=named if self.process.leads else f"rank {rank}: {named}")
        self.watch.stop(ending)
        self._close_for(ending)

    def _close_for(self, ending: ranks.Ending) -> None:
        """End the attempt with what ended this rank or another; its energy is not known then."""
        if self.journal is None:
            return
        try:
            last_step = max(self.done, self.journal.attempt.first_step)
            times = ranks.rank_times(self.folder)
            self.journal.close(ending.reason, last_step, ending.said, save_seconds=self.save_seconds, ranks=times)
        except (OctavoError, OSError):
            self.progress.say(f"the attempt could not be closed in {self.folder.attempts}")


def _may_be_a_connection(error: BaseException) -> bool:
    """Whether an error may be that of a collective whose other side is gone."""
    cause = error.__cause__ if isinstance(error, OctavoError) else error
    return isinstance(cause, RuntimeError | CheckpointException) and not isinstance(cause, torch.OutOfMemoryError)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a loss that is none is null, and the result says that the run diverged."""
    return value if value is not None and math.isfinite(value) else None
