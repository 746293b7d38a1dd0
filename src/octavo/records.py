"""The schemas of the files between stages, all in one place, and their readers.

Runs write JSON (`metrics.jsonl`, `attempts.jsonl`, `provenance.json`, `result.json`, `routing.parquet`); aggregation
turns them into three tables (`runs.parquet`, `steps.parquet`, `attempts.parquet`). Each carries SCHEMA_VERSION; a file
of another version, or one cut short, is an error that says how to make it again.

Units: times are seconds, instants are UTC (ISO 8601 in JSON, timestamps in tables), losses are nats per token,
energy joules in JSON and kilowatt-hours in tables, memory bytes, FLOPs model FLOPs (no recomputation).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from octavo.errors import OctavoError, shown
from octavo.files import atomic_path, open_plain, parse_json, read_bytes, read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

SCHEMA_VERSION = 1

TAIL = 1 << 14
"""Bytes that a file is read by from its end."""

ExitReason = Literal[
    "completed", "diverged", "signalled", "preempted", "time_limit", "out_of_memory", "node_failure", "cancelled",
    "failed", "killed", "stalled",
]  # fmt: skip
"""How an attempt ended. `signalled`: SIGTERM, SIGUSR1 or SIGINT, saved and left; `killed`: it, or a rank of it, left no
word (SIGKILL, power); `stalled`: a rank stood still, and the others ended the attempt."""

TensorKind = Literal["input", "weight", "gradient"]
Product = Literal["forward", "input_gradient", "weight_gradient"]


class Record(BaseModel):
    """One JSON object of a file between stages."""

    model_config = ConfigDict(extra="forbid")


class MetricsRecord(Record):
    """One line of `metrics.jsonl`: a training step, or a validation (`validation_loss` is there and `loss` is not).

    A resumed run trains the steps after its checkpoint again: `read_metrics` leaves out those that it replaced.
    """

    step: NonNegativeInt
    """Steps done, from 1."""
    tokens: NonNegativeInt
    """Tokens trained on so far."""
    time: float
    """Unix time at which the line was written."""
    attempt: NonNegativeInt
    """The attempt that wrote it, from 1."""
    loss: float | None = None
    aux_loss: float | None = None
    """Load-balancing loss, weight included (mixtures of experts with an auxiliary loss)."""
    multi_token_prediction_loss: float | None = None
    grad_norm: float | None = None
    """Global gradient norm before clipping."""
    learning_rate: float | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    model_tflops: float | None = None
    """Model TFLOP/s over all devices."""
    memory_bytes: int | None = None
    """Peak so far: device memory on GPUs, resident memory on CPUs, largest rank."""
    expert_load: list[list[float]] | None = None
    """Fraction of routed tokens per [MoE layer][expert]; each row sums to 1."""
    fp8_underflow: dict[TensorKind, float] | None = None
    """Fraction of non-zero values that quantising turned to zero."""
    fp8_overflow: dict[TensorKind, float] | None = None
    """Fraction of values that saturated."""
    fp8_amax: dict[TensorKind, float | None] | None = None
    """Largest magnitude before scaling, over layers; None: infinite, or there was a NaN."""
    fp8_product_error: dict[Product, float | None] | None = None
    """Relative error (Frobenius) of the FP8 product against the BF16 one, mean over layers; None: infinite or NaN."""
    validation_loss: float | None = None
    validation_bits_per_byte: float | None = None
    validation_loss_by_domain: dict[str, float] | None = None
    final_validation_loss: float | None = None
    """The result's, on more sequences: in the last line of a completed run."""
    final_validation_bits_per_byte: float | None = None
    final_validation_loss_by_domain: dict[str, float] | None = None

    @property
    def trained(self) -> bool:
        """Whether the line is of a training step, not of a validation."""
        return self.step_seconds is not None


class RankTime(Record):
    """How long a rank of a run worked at a step, up to the reduction of gradients, in which all wait for the slowest.

    Ranks that exchange within a pass (tensor, context, expert and pipeline parallelism) wait for one another in it,
    and each takes as long as the slowest of them.
    """

    rank: int
    node: str
    """Slurm's name, or the host's."""
    stage: int
    """Of the pipeline: ranks of one stage do the same work."""
    seconds: float
    """Median over the last steps of an attempt, at most a thousand. On GPUs the device's time."""


class LayoutSince(Record):
    """A layout that a run was trained under, and since when: `octavo.experiment.run.CellConfig.layout`."""

    after_step: NonNegativeInt
    """0, or the step of the checkpoint that it went on from."""
    layout: str
    """In words: `data 2, micro-batch 4`."""
    devices: int


def laid_out(layouts: Sequence[LayoutSince]) -> str:
    """A run's layouts in words: `data 2, micro-batch 4; from step 121 on tensor 2, micro-batch 4`."""
    later = [f"from step {one.after_step + 1} on {one.layout}" for one in layouts[1:]]
    return "; ".join([*(one.layout for one in layouts[:1]), *later])


class AttemptRecord(Record):
    """One line of `attempts.jsonl`: one try at a run; `end` and `exit_reason` are null until it ends by itself."""

    attempt: int
    """From 1."""
    start: datetime
    end: datetime | None = None
    host: str
    """The first node's name."""
    nodes: list[str]
    device_kind: str
    """`cpu`, or the GPU's name."""
    device_count: int
    exit_reason: ExitReason | None = None
    error: str | None = None
    """The last error's message, one line."""
    first_step: int
    """Steps done when it began (0, or its checkpoint's)."""
    last_step: int | None = None
    slurm_job_id: str | None = None
    energy_joules: float | None = None
    energy_source: Literal["nvml", "rapl"] | None = None
    save_seconds: float | None = None
    """The longest that a checkpoint took."""
    ranks: list[RankTime] = []
    """Where there are several."""
    run_fingerprint: str
    """Of the configuration it ran under."""
    computation_fingerprint: str | None = None
    """Of that configuration without its layout; null in files from before it was recorded."""
    layout: str | None = None
    """The layout it ran under, in words; null in files from before it was recorded."""


class StepProof(Record):
    """What the first step of an attempt did on GPUs, seen where Transformer Engine calls its kernels; one rank's."""

    products: dict[Product, dict[str, int]]
    """Product -> formats and scales of its two operands -> how many."""
    attention: str
    """The backend that was chosen."""
    fused_weight_gradients: int
    """Weights whose gradients were added to the FP32 main gradients without being rounded to BF16."""
    fused_permutations: int
    """Of experts' tokens."""
    dispatchers: list[str]
    """Megatron-Core's classes that sent tokens to experts."""


class Provenance(Record):
    """`provenance.json`: what made this run, as far as it may change numbers."""

    schema_version: int = SCHEMA_VERSION
    octavo_version: str
    git_commit: str | None
    git_dirty: bool | None
    image_digest: str | None
    python: str
    packages: dict[str, str]
    """Name -> version of installed packages."""
    lock_sha256: str | None
    """Of the lock that the packages were installed from; null where that is not known."""
    hardware: dict[str, str | int | float | None]
    """cpu_model, cpu_flags that choose kernels, cores, memory_gib, gpu, driver, compute_capability."""
    threads: int
    environment: dict[str, str]
    """Variables of the allow-list (`octavo.training.provenance.ALLOWED_ENVIRONMENT`) that are set."""
    data_manifest_sha256: str
    precision_built: dict[str, int]
    """Linear layers by implementation: the proof that the precision asked for is the one built."""
    step_proof: StepProof | None = None
    """What ran; null on CPUs, in emulation, and before the first step of an attempt."""
    kernels: dict[str, float] | None = None
    """Kind of kernel (`octavo.training.kernel_profile`) -> share of the GPU's time in the second step of an attempt;
    one rank's, null where it was not profiled."""
    emulated: bool
    deterministic: bool
    layouts: list[LayoutSince] = []
    """The layouts that the run's steps were trained under, the first one first. More than one: it was resharded, and is
    to the last bit no run that was not. Empty in files from before they were recorded: one layout."""


class Result(Record):
    """`result.json`: a run that is complete, or one that diverged."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    cell: str
    architecture: str
    precision: str
    ablation: str | None
    seed: int
    run_fingerprint: str
    computation_fingerprint: str | None = None
    """Null in files from before it was recorded."""
    layouts: list[LayoutSince] = []
    """As in `provenance.json`."""
    status: Literal["completed", "diverged"]
    steps: int
    tokens: int
    training_loss: float | None
    """Mean over the last tenth of the steps; null when it diverged."""
    validation_loss: float | None
    validation_bits_per_byte: float | None
    validation_loss_by_domain: dict[str, float]
    flops_per_token: float
    """Model FLOPs per trained token, forward and backward."""
    total_parameters: int
    active_parameters: int
    """Per token; output head counted, input embedding not."""
    training_seconds: float
    """Sum of the step times of the steps that count."""
    emulated: bool
    device_kind: str
    device_count: int
    metrics_sha256: str
    """Of `metrics.jsonl` when the run ended."""
    files_sha256: dict[str, str]
    """Of the run's other files by name: `attempts.jsonl` with the attempt that ended it, `provenance.json`, and
    `routing.parquet` where there is one."""
    parameters_sha256: str | None
    """Over the final parameters' names and bytes."""
    data_manifest_sha256: str

    @property
    def resharded(self) -> bool:
        """Whether its steps were trained under more than one layout."""
        return len(self.layouts) > 1

    def made_under(self, run_fingerprint: str) -> bool:
        """Whether all of its steps were trained under this configuration, its layout included."""
        return self.run_fingerprint == run_fingerprint and not self.resharded


class SlurmRow(Record):
    """One row of sacct: one time that a job held devices. A requeued job has several."""

    job: str
    submit: datetime
    cell: str
    seed: int
    state: str
    """Slurm's word."""
    start: datetime
    end: datetime
    """Up to now where it still runs."""
    elapsed_seconds: int
    devices: int | None
    """GPUs, or cores where those are the devices; null where Slurm does not count them."""
    requested: int | None
    """GPUs that it asked for on all of its nodes, by its submit line."""
    nodes: str
    """As Slurm lists them: `gpu[03-06]`."""
    energy_joules: float | None = None
    """ConsumedEnergy of its nodes, where the site measures it."""

    @property
    def key(self) -> tuple[str, datetime]:
        """What tells it from all others."""
        return self.job, self.submit


class SlurmAccounting(Record):
    """`sacct.json`: what Slurm's accounting said of an experiment's jobs."""

    schema_version: int = SCHEMA_VERSION
    rows: list[SlurmRow]
    unknown: list[str] = []
    """Jobs that the trainer ran in and that Slurm had no row of, when it was last asked."""


class LedgerState(Record):
    """`ledger.json`: there where the ledger was ever left provisional."""

    schema_version: int = SCHEMA_VERSION
    times_provisional: int
    """How often."""


class NodeFinding(Record):
    """Something wrong on a node."""

    what: str
    found: str
    warns: bool = False
    """A run may go well all the same."""


class DeviceProbe(Record):
    """`results/probes/<cluster>/rank-<n>.json`: what the task of one device found."""

    schema_version: int = SCHEMA_VERSION
    node: str
    """Slurm's name."""
    rank: int
    python: str
    image_digest: str | None
    gemm_tflops: float | None
    """Of products of matrices: BF16 on GPUs, FP32 on a CPU."""
    allreduce_gb_per_second: float | None
    """Each device's part, over all devices; null where there is one, or they did not meet."""
    findings: list[NodeFinding]


class ClusterProbe(Record):
    """`results/probes/<cluster>.json`: a cluster was looked at, and nothing stands in the way of runs."""

    schema_version: int = SCHEMA_VERSION
    cluster: str
    time: datetime
    devices: list[DeviceProbe]
    """Empty where the cluster file says that no node is to be looked at."""


class TimedStep(Record):
    """What steps of one small model take on a machine."""

    kind: Literal["dense", "experts"]
    recipe: str
    work: dict[str, float]
    """Counts per token (`octavo.forecast.work`)."""
    seconds_per_token: float
    """The median over steps and processes, of one core."""
    spread: float
    """Half of the range, in the logarithm, that the middle 80 % of the steps lie in."""


class MachineSpeed(Record):
    """`results/probes/machine-<identity>.json`: how fast one core of a machine trains (`octavo calibrate`)."""

    schema_version: int = SCHEMA_VERSION
    machine: dict[str, str | int | float | None]
    """What its identity is the hash of: processor, cores, and the sources of the compiled loops."""
    time: datetime
    processes: int
    """That trained side by side while it was measured."""
    load: float
    """Processes that wanted a core in the minute before."""
    steps: list[TimedStep]


class DeviceState(Record):
    """How NVML finds a GPU right after work."""

    uncorrected_ecc_errors: int | None
    """Since the driver was loaded; null where the device does not count them."""
    slowed: list[str]
    """What slows its clocks that no healthy device shows under load."""
    clock_mhz: int
    """Of its multiprocessors."""
    maximum_clock_mhz: int


class MeasuredProduct(Record):
    """Three passes of a layer's product by Transformer Engine, as training makes them, quantising included."""

    recipe: str
    matrices: int
    """1: dense; more: a grouped product of so many experts."""
    rows: int
    """Of each."""
    inner: int
    columns: int
    tflops: float | None
    """Null where no GPU was measured, or it failed."""
    error: str | None = None


class MeasuredMessage(Record):
    """What one device sends to others in a second."""

    kind: Literal["all-reduce", "all-to-all", "point-to-point"]
    ranks: int
    bytes: int
    """Of a rank's buffer."""
    gb_per_second: float | None
    """GB of 10^9 bytes that leave a device, as a ring sends them; null where no GPU was measured, or it failed."""
    error: str | None = None


class DeviceMeasures(Record):
    """`results/probes/<cluster>/accept/devices/rank-<n>.json`: what the task of one device measured."""

    schema_version: int = SCHEMA_VERSION
    node: str
    rank: int
    device: str
    stand_in: bool
    """Whether what calls itself a GPU computes on the CPU."""
    products: list[MeasuredProduct]
    messages: list[MeasuredMessage]
    state: DeviceState | None
    """Null where NVML does not say."""


AcceptanceVerdict = Literal["passed", "fell short", "not measured"]


class AcceptanceCheck(Record):
    """One thing that was expected of a cluster, and what was found."""

    part: str
    name: str
    expected: str
    source: str
    """Where the expectation comes from."""
    found: str
    verdict: AcceptanceVerdict
    short_by: float | None = None
    """Share of what was expected that is missing, where it is a number."""


class Acceptance(Record):
    """`results/probes/<cluster>-accept.json`: what was measured on a cluster's GPUs, held against what was expected."""

    schema_version: int = SCHEMA_VERSION
    cluster: str
    time: datetime
    octavo_version: str
    git_commit: str | None
    device: str
    """As it calls itself."""
    devices: int
    nodes: list[str]
    stand_in: bool
    """On a stand-in: no GPU was measured."""
    seconds: float
    """How long it took."""
    factors: dict[str, float]
    """Recipe -> measured tokens/s over the forecast's, for the plan; empty where no GPU was measured."""
    checks: list[AcceptanceCheck]

    @property
    def fell_short(self) -> list[AcceptanceCheck]:
        """The checks that did not find what was expected."""
        return [one for one in self.checks if one.verdict == "fell short"]


RecordType = TypeVar("RecordType", bound=Record)


def read_record(path: Path, record: type[RecordType], *, made_by: str) -> RecordType:
    """One record from a JSON file, its version checked. `made_by` names the command that makes the file."""
    value = read_json(path, made_by=made_by)
    check_version(value, path, made_by=made_by)
    try:
        return record.model_validate(value)
    except ValidationError as error:
        raise OctavoError(
            f"the file is not a {record.__name__}: {_first_problem(error)}",
            where=path,
            fix=f"remove it and make it again: {made_by}",
        ) from None


def check_version(value: Any, path: Path, *, made_by: str) -> None:
    """Refuse a JSON value whose schema_version is not ours."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise OctavoError(
            f"the file has schema version {shown(version)}",
            where=path,
            expected=f"schema version {SCHEMA_VERSION}",
            fix=f"it was made by another version of Octavo: make it again ({made_by})",
        )


def read_lines(path: Path, record: type[RecordType]) -> list[RecordType]:
    """The records of a .jsonl file. A last line without its newline (a killed writer's) is left out."""
    return list(_lines(path, record))


def read_last_lines(path: Path, record: type[RecordType], count: int = 1) -> list[RecordType]:
    """The last `count` records of a .jsonl file, in order, however long the file is; as `read_lines` otherwise."""
    return list(islice(lines_from_the_end(path, record), count))[::-1]


def lines_from_the_end(path: Path, record: type[RecordType]) -> Iterator[RecordType]:
    """The records of a .jsonl file, the last one first; the file is read as far as they are asked for.

    A last line without its newline (a killed writer's) is left out. The file must stay as it is meanwhile.
    """
    for number, line in enumerate(_from_the_end(path), 1):
        yield _record(line, record, f"line {number} from the end", path)


def _from_the_end(path: Path) -> Iterator[bytes]:
    """The whole lines of a file without their newlines, the last one first."""
    try:
        with open_plain(path) as file:
            left, torn = file.seek(0, os.SEEK_END), True  # what is behind the last newline
            after = b""  # the end of a line that begins before what is left
            while left:
                start = max(0, left - TAIL)
                file.seek(start)
                lines = (file.read(left - start) + after).split(b"\n")
                after = lines.pop(0)
                if torn and lines:
                    lines.pop()
                    torn = False
                yield from reversed(lines)
                left = start
            if not torn:
                yield after
    except FileNotFoundError:
        return


def whole_lines(file: BinaryIO) -> int:
    """Bytes up to the last newline, with it: what a killed writer left of another line lies behind."""
    left = file.seek(0, os.SEEK_END)
    while left:
        start = max(0, left - TAIL)
        file.seek(start)
        if found := file.read(left - start).rfind(b"\n") + 1:
            return start + found
        left = start
    return 0


def _lines(path: Path, record: type[RecordType]) -> Iterator[RecordType]:
    if not path.exists():
        return
    for number, line in enumerate(io.BytesIO(read_bytes(path)), 1):
        if not line.endswith(b"\n"):
            return
        yield _record(line, record, f"line {number}", f"{path}:{number}")


def _record(line: bytes, record: type[RecordType], place: str, where: Path | str) -> RecordType:
    try:
        return record.model_validate(parse_json(line))
    except ValueError as error:  # of which UnicodeDecodeError, JSONDecodeError and ValidationError are
        reason = _first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise OctavoError(
            f"{place} is not a {record.__name__}: {reason}",
            where=where,
            fix="the file was changed or damaged: move the run's folder away and train it again",
        ) from None


def lines_that_count(step: np.ndarray, attempt: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Which lines of one `metrics.jsonl` count: those of steps before any that a later attempt trained.

    An attempt goes on from a checkpoint and trains the steps after it again, so the earlier attempt's lines of those
    steps are replaced: all of them, also where the later attempt ends before it reaches the last of them. One value per
    line: its step, its attempt (0 or more), whether it is of a training step. The order of the lines does not matter.
    The lines of several runs may be given at once where each run's numbers are above those of the run before.
    """
    import numpy as np

    first = np.full(attempt.max(initial=0) + 2, np.iinfo(np.int64).max)  # by attempt, the first step that it trained
    np.minimum.at(first, attempt[trained], step[trained])
    replaced_from = np.minimum.accumulate(first[::-1])[::-1]  # by attempt, the same of it and all later ones
    return step < replaced_from[attempt + 1]


def read_metrics(path: Path) -> dict[int, MetricsRecord]:
    """The lines of a `metrics.jsonl` that count (`lines_that_count`), by their number in the file, from 1."""
    import numpy as np

    lines = read_lines(path, MetricsRecord)
    step, attempt = (np.array([getattr(line, name) for line in lines], dtype=np.int64) for name in ("step", "attempt"))
    counts = lines_that_count(step, attempt, np.array([line.trained for line in lines], dtype=bool))
    return {number: line for number, (line, one) in enumerate(zip(lines, counts, strict=True), 1) if one}


def mean_final_loss(step: np.ndarray, loss: np.ndarray, total_steps: int) -> float | None:
    """The mean loss, where it is a number, of the last tenth of the steps planned; None where none of them has one."""
    import numpy as np

    last = loss[(step > total_steps * 0.9) & ~np.isnan(loss)]
    return added(last) / len(last) if len(last) else None


def added(values: np.ndarray) -> float:
    """Their sum, one added after the other: the same bits on every machine and Python, which `sum` is not from 3.12."""
    return float(values.cumsum()[-1]) if len(values) else 0.0


def trained_steps(path: Path) -> dict[int, MetricsRecord]:
    """Step -> the line of a `metrics.jsonl` that counts for it."""
    return {line.step: line for line in read_metrics(path).values() if line.trained}


def last_line(path: Path, attempt: int) -> MetricsRecord | None:
    """The last line that an attempt wrote, whether it counts or not: its last sign of life."""
    lines = lines_from_the_end(path, MetricsRecord)
    found = next((line for line in lines if line.attempt <= attempt), None)  # no attempt writes after a later one
    return found if found and found.attempt == attempt else None


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


# --- tables ---------------------------------------------------------------------------------------------------------


def _schema(name: str, *fields: tuple[str, str, bool]) -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
        "loads": pa.list_(pa.list_(pa.float32())),
        "ranks": pa.list_(
            pa.struct([("rank", pa.int64()), ("node", pa.string()), ("stage", pa.int64()), ("seconds", pa.float64())])
        ),
    }
    return pa.schema(
        [pa.field(field, types[kind], nullable) for field, kind, nullable in fields],
        metadata={"octavo_table": name, "schema_version": str(SCHEMA_VERSION)},
    )


_RUN = [("experiment", "string", False), ("cell", "string", False), ("seed", "int", False)]

TABLE_FIELDS: dict[str, list[tuple[str, str, bool]]] = {
    # (column, kind, nullable)
    "runs": [
        *_RUN,
        ("architecture", "string", False),
        ("precision", "string", False),
        ("ablation", "string", True),
        ("experts", "int", True),  # routed experts; 0: a dense model; null: an import that does not say
        ("experts_per_token", "int", True),
        ("expert_size", "int", True),
        ("shared_expert_size", "int", True),
        ("accumulation", "string", True),  # of FP8 products
        ("status", "string", False),  # completed, diverged, unfinished
        ("steps", "int", False),
        ("tokens", "int", True),
        ("total_parameters", "int", True),
        ("active_parameters", "int", True),
        ("flops_per_token", "float", True),
        ("training_loss", "float", True),
        ("validation_loss", "float", True),
        ("validation_step", "int", True),  # after which validation_loss was measured
        ("validation_bits_per_byte", "float", True),
        ("training_seconds", "float", True),  # sum of the step times that count
        ("training_device_hours", "float", True),  # the same, each step's times the devices that it was trained on
        ("timed_steps", "int", True),  # steps that those are of, of an import; null: all
        ("device_kind", "string", True),
        ("device_count", "int", True),  # of the last layout
        ("layouts", "string", True),  # the layouts it was trained under, in words; several: it was resharded
        ("emulated", "bool", False),
        ("attempts", "int", False),
        ("device_hours_final", "float", True),  # the attempts' hours that the final result rests on
        ("device_hours_all_in", "float", True),  # with failed, pre-empted, repeated and superseded work
        ("energy_kwh_all_in", "float", True),
        ("cost_final", "float", True),
        ("cost_all_in", "float", True),
        ("currency", "string", True),
        ("run_fingerprint", "string", True),
        ("data_manifest_sha256", "string", True),
        ("tokenizer", "string", True),  # what its losses are losses of: identifiers that compared runs must share
        ("data", "string", True),
        ("validation", "string", True),
        ("parameters_sha256", "string", True),
    ],
    "steps": [
        *_RUN,
        ("step", "int", False),
        ("tokens", "int", True),
        ("model_flops", "float", True),  # so far
        ("devices", "int", True),  # that the step was trained on
        ("device_hours", "float", True),  # so far, step times alone x devices
        ("loss", "float", True),
        ("aux_loss", "float", True),
        ("grad_norm", "float", True),
        ("learning_rate", "float", True),
        ("step_seconds", "float", True),
        ("tokens_per_second", "float", True),
        ("model_tflops", "float", True),
        ("memory_bytes", "int", True),
        ("validation_loss", "float", True),
        ("validation_bits_per_byte", "float", True),
        ("fp8_underflow_input", "float", True),
        ("fp8_underflow_weight", "float", True),
        ("fp8_underflow_gradient", "float", True),
        ("fp8_overflow_input", "float", True),
        ("fp8_overflow_weight", "float", True),
        ("fp8_overflow_gradient", "float", True),
        ("fp8_amax_input", "float", True),
        ("fp8_amax_weight", "float", True),
        ("fp8_amax_gradient", "float", True),
        ("fp8_product_error_forward", "float", True),
        ("fp8_product_error_input_gradient", "float", True),
        ("fp8_product_error_weight_gradient", "float", True),
        ("expert_load", "loads", True),
    ],
    "attempts": [
        *_RUN,
        ("attempt", "int", False),  # 0: a job in which training never began
        ("job", "string", True),
        ("submit", "time", True),
        ("state", "string", False),  # ExitReason, or running; Slurm's word, where there is one, in our terms
        ("nodes", "string", True),
        ("ranks", "ranks", True),  # RankTime of each, where there are several
        ("devices", "int", False),
        ("device_kind", "string", False),
        ("layout", "string", True),  # in words; null where the trainer did not say
        ("start", "time", False),
        ("end", "time", False),
        ("first_step", "int", True),
        ("last_step", "int", True),
        ("superseded", "bool", False),  # under a configuration that the experiment no longer has
        ("device_hours", "float", False),
        ("energy_kwh", "float", True),
        ("energy_source", "string", True),  # slurm, nvml, rapl, power x utilisation
        ("cost", "float", True),
        ("currency", "string", True),
        ("source", "string", False),  # sacct (all, or its seconds alone) or attempts.jsonl
    ],
    # of one run: tokens that each expert served, by validation sequence
    "routing": [
        ("sequence", "int", False),
        ("domain", "string", False),
        ("layer", "int", False),
        ("expert", "int", False),
        ("tokens", "int", False),
    ],
}

TableName = Literal["runs", "steps", "attempts", "routing"]


def table_schema(name: TableName) -> pa.Schema:
    """The arrow schema of a table, its version in the metadata."""
    return _schema(name, *TABLE_FIELDS[name])


def write_table(path: Path, frame: pd.DataFrame, name: TableName) -> None:
    """Write a frame as the named table, atomically; columns that it lacks are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema(name)
    frame = frame.assign(**dict.fromkeys(set(schema.names) - set(frame.columns)))
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    with atomic_path(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(schema.metadata), temporary, compression="zstd", write_page_checksum=True
        )


def read_table(
    path: Path, name: TableName, *, made_by: str, columns: list[str] | None = None, where: pc.Expression | None = None
) -> pd.DataFrame:
    """A table as a frame, or the rows and columns that are asked for; its name and version checked."""
    import pyarrow.parquet as pq

    with reading_table(path, made_by=made_by):
        table = pq.read_table(path, columns=columns, filters=where, page_checksum_verification=True)
    check_schema(table.schema, path, name, made_by=made_by, columns=columns)
    return table.to_pandas()


@contextmanager
def reading_table(path: Path, *, made_by: str) -> Iterator[None]:
    """What pyarrow raises of a damaged table, as an error that names it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise OctavoError("a table is missing", where=path, fix=f"make it: {made_by}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise OctavoError(
            f"the table cannot be read: {error}", where=path, fix=f"remove it and make it again: {made_by}"
        ) from error


def check_schema(
    schema: pa.Schema, path: Path, name: TableName, *, made_by: str, columns: list[str] | None = None
) -> None:
    """Refuse what is not the named table in this version, or lacks one of the columns, or has another type in it."""
    metadata = schema.metadata or {}
    found = tuple(metadata.get(key, b"").decode(errors="replace") for key in (b"octavo_table", b"schema_version"))
    if found != (name, str(SCHEMA_VERSION)):
        raise OctavoError(
            f"the file holds table {shown(found[0] or '(none)')} of schema version {shown(found[1] or '(none)')}",
            where=path,
            expected=f"table {name!r} of schema version {SCHEMA_VERSION}",
            fix=f"make it again: {made_by}",
        )
    expected = table_schema(name)
    for column in sorted(expected.names if columns is None else columns):
        if schema.get_field_index(column) < 0:  # there is none, or there are several
            problem = f"the table has no column {column}"
        elif (kind := schema.field(column).type) != expected.field(column).type:
            problem = f"column {column} of the table is of type {kind}, not {expected.field(column).type}"
        else:
            continue
        raise OctavoError(problem, where=path, fix=f"remove it and make it again: {made_by}")


# --- verdicts -------------------------------------------------------------------------------------------------------

Verdict = Literal["supported", "refuted", "inconclusive", "not testable here"]


class Estimate(Record):
    """A number with its confidence interval; the ends are null where one value alone tells nothing of the spread."""

    value: float
    low: float | None = None
    high: float | None = None
    """Student's t interval."""
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    """The bootstrap interval beside it, where there are seeds enough to resample."""
    confidence: float = 0.95
    n: int
    """Seeds (pairs) that it rests on."""
    unit: str
    """What the number is: `nats per token`, `ratio`, `%`, `bits`, `USD`."""


class Part(Record):
    """One comparison that a claim rests on (dense and MoE apart, say)."""

    label: str
    effect: Estimate | None
    verdict: Verdict
    note: str | None = None


class ClaimResult(Record):
    """One claim, held against the runs."""

    number: int
    name: str
    """The file's name in configs/claims."""
    title: str
    text: str
    """The statement as its source makes it."""
    source: str
    verdict: Verdict
    sentence: str
    """What the runs say, in one plain sentence made from the numbers."""
    effect: Estimate | None
    effect_of: str | None = None
    """The comparison that `effect` is of, where the claim rests on several."""
    computed_for: str | None = None
    """What an arithmetic is of, where it is not of the experiment: `in the plan of h100-node (8 H100)`."""
    reason: str | None = None
    """Why it is inconclusive, in a few words, where more seeds are not the answer."""
    needs: str = ""
    """What an experiment must have for it to be testable."""
    tested_by: str = ""
    """The command of an experiment that tests it."""
    expectation: str | None
    """What the claim says of the effect, in words: `below 1`, `within 0.25 %`."""
    p_adjusted: float | None = None
    """Holm-adjusted over the claims that are tested."""
    seeds_needed: int | None = None
    """When inconclusive: seeds with which the verdict leaned to would be reached with 80 % chance."""
    seeds_cost: float | None = None
    """What the further seeds would cost, in `currency`."""
    currency: str | None = None
    parts: list[Part] = []
    runs: list[str]
    """The runs it rests on, `cell/seed-n`; empty for claims about published figures."""
    data: dict[str, Any] = {}
    """What the figure of this claim draws (per layer, per domain, per K), by column."""


class ClaimsFile(Record):
    """`claims.json`."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    ablation: str | None
    configuration: str = ""
    """Fingerprint of what verdicts rest on besides the tables: claims, published figures, cluster and prices."""
    claims: list[ClaimResult]


class Look(Record):
    """`looks/<n>.json`: what a look at the evidence after n seeds asks for, where seeds are added until decided."""

    schema_version: int = SCHEMA_VERSION
    after: int
    """Seeds that the cells which were still asked for had."""
    cells: list[str]
    """Cells of undecided comparisons: they are trained with one seed more."""


class FirstReport(Record):
    """`first-report.json`: of a report that stands while seeds are added until decided, until the whole one does."""

    schema_version: int = SCHEMA_VERSION
    seeds: int
    """Of every cell."""
    first_look: int
    """Seeds before which no verdict is reached on runs."""
    most: int
    """Seeds that any cell is trained with at most."""
    stands: bool
    """Whether it was written: a whole report that stands is not replaced by it."""


class SeedPlans(Record):
    """`seeds.json`: the seeds that an experiment's verdicts were planned with, each time that they were reached."""

    schema_version: int = SCHEMA_VERSION
    plans: list[list[int]]
    """Without repetitions, the first one first; of seeds until decided, all that there can be."""


Axis = Literal[
    "tokens", "model_flops", "active_parameters", "total_parameters", "device_hours", "cost"
]  # fmt: skip
"""What a comparison holds equal. The parameter axes are at equal tokens too, between cells that agree in them."""


Losses = Literal["validation", "training", "validation and training", "bits per byte"]
"""What a loss difference is of: validation losses, but for imported runs that have none, and validation bits per byte
where tokens are not the same."""


class Comparison(Record):
    """Two cells at equal something: how their losses differ, and what each needs for the same loss."""

    axis: Axis
    cell: str
    against: str
    """The baseline."""
    kind: Literal["architecture", "precision", "ablation"]
    loss_difference: Estimate | None
    """Loss of `cell` minus `against` at the end of the common range, relative, in %: below zero, `cell` is better."""
    losses: Losses = "validation"
    """Which losses that is the difference of."""
    loss_differences: list[float] = []
    """The same of each seed."""
    resource_ratio: Estimate | None
    """Resource that `cell` needs over what `against` needs for the same loss, the higher of their two at the end of the
    common range: below one, `cell` is cheaper."""
    resource_ratios: list[float] = []
    """The same of each seed; empty where it is not known for every one."""
    censored: int = 0
    """Seeds in which a run never reached the loss (it diverged) or began below it; `note` says so, and the ratio is
    null where one began below it."""
    mismatch: float | None = None
    """How far the quantity that should be equal is apart, relative (parameter axes)."""
    emulated: bool = False
    """The axis rests on times of a run whose FP8 is emulated."""
    ends: bool = True
    """Whether both losses are those of the runs' ends."""
    planned_ends: bool = False
    """Whether losses and needs are read between the ends of runs that were planned for their lengths, and not off the
    loss curve of one run."""
    loss_bias: Literal[-1, 0, 1] = 0
    """1: `cell` is read while its learning rate is to decay further than the other's, so that it looks worse than a run
    planned for that length would; -1: the other is."""
    ratio_bias: Literal[-1, 0, 1] = 0
    """The same of the resource ratio: 1, it is too high; -1, it is too low."""
    early: str | None = None
    """Who was read early, in words, where there is a bias."""
    unlike: str | None = None
    """What is not known to be the same of tokenizer, training data and validation data, in words."""
    note: str | None = None


class ComparisonsFile(Record):
    """`comparisons.json`: every pair on every axis."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    ablation: str | None
    comparisons: list[Comparison]


# --- verification ---------------------------------------------------------------------------------------------------

Gate = Literal["integrity", "repeatability", "restart", "baseline"]
VerificationStatus = Literal[
    "intact", "outdated", "damaged", "identical", "equal within tolerance", "different", "not compared",
    "not testable here",
]  # fmt: skip
"""Of files: intact; outdated: right for the configuration of before, to be made again; damaged. Of a run made again:
identical to the last bit, equal within the tolerance, different. Not compared: with what was published, of a verdict
that rests on another machine's times or that one of the two does not decide."""


class VerificationCheck(Record):
    """One thing that was looked at: files, or a run made again."""

    gate: Gate
    run: str
    """`cell/seed-n`, or the file."""
    status: VerificationStatus
    note: str
    first_step: int | None = None
    """The first step that differs."""
    differs: list[str] = []
    """The logged numbers that differ there, and the tensors that differ at the end."""
    difference: float | None = None
    """Relative difference of the loss."""
    tolerance: float | None = None
    """What the relative difference may be: the standard deviation over seeds."""


class VerificationFile(Record):
    """`verification.json`: whether the results are reproducible."""

    schema_version: int = SCHEMA_VERSION
    experiment: str
    passed: bool
    """Nothing is damaged and nothing is different."""
    sample: int
    """Runs made again per gate."""
    seed: int
    """That the sample was drawn with."""
    steps: int | None = None
    """Runs were made again up to this step; null: whole."""
    checks: list[VerificationCheck]
