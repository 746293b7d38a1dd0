"""Methods and limits: methods, limits, verification, imports, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from octavo.evidence.metrics.base import LEAST_STEPS
from octavo.evidence.names import PRECISIONS, listed, words
from octavo.experiment.config import Optimizer, SeedsUntilDecided, Training
from octavo.experiment.run import Experiment
from octavo.models.parameters import TRAINED
from octavo.precision.recipes import RECIPES
from octavo.records import SeedPlans, StepProof, read_record
from octavo.report.document import Block, ReportSection, Table, Text
from octavo.report.inputs import Inputs, shared
from octavo.report.sections.phrases import at_length, filled
from octavo.report.style import MISSING, count, duration, number
from octavo.statistics import ALPHA

SKEWED = "simulated: 15 to 26 % with lognormal noise, 60 to 71 % where one seed in ten is bad"
"""How often; `benchmarks/seeds_until_decided.py` simulates it."""
SCATTER = 10
"""%, by which seeds may differ in step time before the limits of an experiment say so."""


def methods(inputs: Inputs) -> ReportSection:
    """How the runs were made and compared."""
    blocks: list[Block] = [
        *([Text(inputs.description)] if inputs.description else []),
        *(how_trained(inputs.experiment) if inputs.experiment else _trained_elsewhere()),
        _recipes(inputs),
        Text(
            "Equal resources. Each run's validation losses are smoothed by isotonic regression and interpolated by a "
            "monotone cubic in the logarithm of the resource. The loss difference is read where the shorter of two "
            "curves ends; the resource ratio is what either needs for the higher of the two losses there, which both "
            "reach. A seed in which a run diverged, or whose curve begins below that loss, has no ratio: it is "
            "censored, and the notes say so."
        ),
        *_planned_lengths(inputs),
        Text(
            "Statistics. Student's t on paired differences; equivalence by two one-sided tests; p values adjusted over "
            f"claims by Holm. With one seed, or runs of fewer than {LEAST_STEPS} steps, every verdict on training is "
            f"inconclusive. {_looks(inputs)}"
        ),
        Text(
            "Early readings. A run that is read before the decay of its learning rate (as logged; a rate that was not "
            "logged is taken to fall to the end) looks worse than one planned for that length. Of such a comparison "
            "only the verdict that this works against is given."
        ),
        Text(
            "Divergence. A run diverged if it ended without a sane loss: none, not finite, zero or below, or far above "
            "where it had been. It has no loss, counts by Fisher's exact test, and says nothing of speed."
        ),
        Text("Speed. Device-seconds a token of the median logged step; the first tenth of the lines is left out."),
        Text(
            "Cost. Device-hours are devices times the time of the logged training steps."
            if inputs.imported
            else "Cost. Device-hours are devices times the wall-clock that an attempt held them. Final: the share of "
            "each attempt's steps that the results rest on. All-in: every attempt, failed, stopped, repeated or "
            "superseded."
        ),
    ]
    return ReportSection("Methods", blocks)


def _planned_lengths(inputs: Inputs) -> list[Block]:
    """How runs of several lengths are made and compared."""
    if not inputs.horizons:
        return []
    lengths = listed([f"{steps:,}" for steps in inputs.horizons])
    return [
        Text(
            f"Planned lengths. Besides the whole length, runs are planned for {lengths} steps: each begins from a "
            "checkpoint of the run of the whole length, whose rate is still at its peak there, trains the decay of its "
            "own length, and is to the last bit the run of that length. Curves over a resource go through the ends of "
            "these runs, interpolated in the logarithms of both; no loss is read on the way. What a run of a length "
            "takes is its part of the common beginning and its own decay."
        )
    ]


def _looks(inputs: Inputs) -> str:
    seeds = inputs.experiment.file.seeds if inputs.experiment else None
    if not isinstance(seeds, SeedsUntilDecided):
        return ""
    return (
        f"After {seeds.first} seeds and each further one, up to {seeds.last}, it was looked at what is decided; looks "
        "spend the error rate by Lan and DeMets (like O'Brien and Fleming), so p is that of all of them."
    )


def _recipes(inputs: Inputs) -> Table:
    """What the precisions of the runs are, and where that is written."""
    used = set(inputs.runs["precision"])
    rows = [[PRECISIONS[name], recipe.summary, recipe.source] for name, recipe in RECIPES.items() if name in used]
    return Table(["precision", "what it is", "source"], rows, "lll", "The precisions.", [1.3, 3, 3], small=True)


def how_trained(experiment: Experiment) -> list[Text]:
    """How the runs were trained, and what cells of a seed share."""
    file, training = experiment.file, experiment.file.training
    optimizer = training.optimizer
    seeds = ", ".join(map(str, file.all_seeds))
    if isinstance(file.seeds, SeedsUntilDecided):
        seeds = f"1 to {file.seeds.first}, and further ones up to {file.seeds.last} for what was not decided"
    overrides = "; ".join(
        f"{role}: {', '.join(f'{key} = {value}' for key, value in change.items())}"
        for role, change in file.overrides.items()
        if change
    )
    return [
        Text(
            f"Training. {training.total_steps:,} steps of {training.global_batch_size} sequences of "
            f"{training.sequence_length} tokens ({count(training.total_steps * training.tokens_per_step)} a run), "
            f"AdamW with {_learning_rates(optimizer)}, weight decay {optimizer.weight_decay:g}, "
            f"{_schedule(training)}. "
            f"{_initial_values(training)} Seeds {seeds}. "
            f"Differences between architectures: {overrides or 'none but the model itself'}."
        ),
        Text(
            "Pairing. Cells of a seed see the same sequences in the same order and begin from the same values where "
            "the shapes of their parameters agree. Differences are taken seed by seed."
        ),
    ]


def _schedule(training: Training) -> str:
    schedule = training.schedule
    if schedule.decay_fraction is not None:
        return (
            f"{schedule.warmup_fraction:.0%} warm-up, a constant rate and a decay by 1 - sqrt(its share) in the last "
            f"{schedule.decay_fraction:.0%} of the steps"
        )
    return f"{schedule.decay} decay after {schedule.warmup_fraction:.0%} warm-up"


def _learning_rates(optimizer: Optimizer) -> str:
    others = [
        f"{multiplier:g} times that for {what}"
        for what, multiplier in (
            ("embedding and output head", optimizer.embedding_multiplier),
            ("routers", optimizer.router_multiplier),
        )
        if multiplier != 1
    ]
    return f"learning rate {optimizer.learning_rate:g}" + (f" ({', '.join(others)})" if others else "")


def _initial_values(training: Training) -> str:
    embedding = training.embedding_initialisation_std
    own = f", those of the input embedding {embedding:g}" if embedding else ""
    return f"Weights start with a standard deviation of {training.initialisation_std:g}{own}."


def _trained_elsewhere() -> list[Text]:
    return [
        Text(
            "Training. The runs were trained outside Octavo and imported from their logs, which do not say on what "
            "data and with which settings: that cells differ in what they are named after and in nothing else rests on "
            "the word of those who ran them."
        ),
        Text(
            "Pairing. Differences are taken seed by seed. Whether runs of a seed saw the same data in the same order "
            "is not recorded; where they did not, pairing gains nothing, and the intervals are still right."
        ),
        Text(
            "Losses. A cell with fewer validations than a curve needs is compared on other axes than tokens by its "
            "training losses, averaged over windows of steps; the notes say where."
        ),
    ]


def limits(inputs: Inputs) -> ReportSection:
    """What these runs cannot show."""
    largest = count(inputs.runs["active_parameters"].max())
    tokens = count(inputs.runs["tokens"].max())
    said = [
        f"The largest model has {_or_unknown(largest)} active parameters and the longest run {_or_unknown(tokens)} "
        "tokens: what holds here need not hold at the scale that the claims were made for.",
        f"{inputs.seeds} seed{'s' if inputs.seeds != 1 else ''}: differences smaller than their intervals are not "
        "shown to be zero.",
    ]
    said += [one for one in [under_trained(inputs)] if one]
    said.append(
        "The tests take noise to be normal, and a few seeds do not show whether it is. With three seeds and skewed "
        "noise a claim of a small difference is supported falsely more often than in "
        f"{100 * ALPHA:.0f} of 100 ({SKEWED})."
    )
    said += [one for one in [seeds_not_planned(inputs)] if one]
    said += scattered_times(inputs)
    said += other_layouts(inputs)
    if inputs.emulated:
        said.append("Nothing here measures the speed, energy or cost of FP8: it was emulated.")
    if set(inputs.runs["device_kind"].dropna()) == {"cpu"}:
        said.append(
            "All runs were on CPU cores; how a mixture's step time compares with a dense model's differs on GPUs, "
            "where experts are spread over devices."
        )
    if inputs.experiment:
        domains = sorted({source.domain for source in inputs.experiment.file.data.sources})
        said.append(f"The text is of {len(domains)} kind{'s' if len(domains) > 1 else ''} ({', '.join(domains)}).")
    return ReportSection("Limits", [Text(text) for text in said])


def under_trained(inputs: Inputs) -> str | None:
    """How many tokens an active parameter saw, and that this is few, where it is."""
    runs = inputs.complete
    seen = (runs["tokens"] / runs["active_parameters"]).dropna()
    if seen.empty:
        return None
    span = " to ".join(dict.fromkeys(number(end) for end in (seen.min(), seen.max())))
    said = f"Runs saw {span} tokens per active parameter"
    if round(seen.min()) >= TRAINED:
        return f"{said}."
    return (
        f"{said}: under-trained models are compared, where compute-optimal training takes about {TRAINED} "
        "(arXiv 2203.15556). What is cheaper here need not be where models are trained longer."
    )


def seeds_not_planned(inputs: Inputs) -> str | None:
    """That error rates do not hold, where seeds are others than were planned before verdicts were seen."""
    if inputs.experiment is None:
        return None
    planned = set(inputs.experiment.file.all_seeds)
    others = sorted({run.seed for run in inputs.whole.run_folders() if run.result.exists()} - planned)
    path = inputs.whole.seed_plans
    plans = read_record(path, SeedPlans, made_by="octavo claims").plans if path.exists() else []
    earlier = [plan for plan in plans if plan != sorted(planned) and planned & set(plan)]
    found = [f"Verdicts were reached before with seeds {listed([str(seed) for seed in plan])}." for plan in earlier]
    if others:
        names = listed([str(seed) for seed in others])
        found.append(f"The folder holds results of seeds that the experiment does not ask for: {names}.")
    if not found:
        return None
    return (
        f"{' '.join(found)} Where seeds are chosen or added after results were seen, verdicts are false more often "
        f"than in {100 * ALPHA:.0f} of 100: their error rates no longer hold."
    )


def scattered_times(inputs: Inputs) -> Iterator[str]:
    """That times are unsteady, where a cell's seeds, which do the same work, differ by more than SCATTER in them."""
    runs = inputs.complete.assign(step=inputs.complete["training_seconds"] / inputs.complete["steps"])
    layouts = runs["layouts"].fillna("")  # not the same work: another number of devices
    spread = runs.groupby(["cell", layouts])["step"].agg(["min", "max"]).droplevel(1)
    more = (100 * (spread["max"] / spread["min"] - 1)).dropna().groupby("cell", sort=False).max()
    if len(more) and more.max() > SCATTER:
        unsteady = [inputs.label(str(cell)) for cell in more[more > SCATTER].index]
        cells = "all cells" if len(unsteady) == len(more) > 1 else "; ".join(unsteady)  # names have commas
        yield (
            f"Seeds of a cell do the same work, yet their mean step times differ by up to {number(more.max())} % "
            f"(more than {SCATTER} %: {cells}). Speeds, hours and money here rest on an unsteady machine."
        )


def other_layouts(inputs: Inputs) -> Iterator[str]:
    """The runs that were not trained from end to end under the layout that the experiment has now."""
    if inputs.experiment is None:
        return
    for several, what in (
        (True, "went on from a checkpoint of another layout (resharded), which changes the order of sums: their losses "
         "are held to the tolerance of verification, not to the last bit"),
        (False, "were trained under another layout than the experiment has now, and were kept"),
    ):  # fmt: skip
        found = {
            f"{row.cell}/seed-{row.seed}": str(row.layouts)
            for frame in (inputs.runs, inputs.shorter)
            for row in frame.itertuples()
            if (";" in str(row.layouts)) == several and row.layouts != inputs.experiment.cells[str(row.cell)].layout
        }
        if found:
            runs = "; ".join(f"{name} ({layouts.replace(';', ',')})" for name, layouts in found.items())
            yield f"{len(found)} run{'s' * (len(found) > 1)} {what}: {runs}.{at_length(found)}"


def _or_unknown(text: str) -> str:
    return "an unknown number of" if text == MISSING else text


def verification(inputs: Inputs) -> ReportSection:
    """Whether the results were reproduced."""
    found = inputs.verification
    if found is None or inputs.ablation:
        return ReportSection("Verification", [])
    rows = [
        [str(one.get("gate", "")), str(one.get("run", "")), str(one.get("status", "")), str(one.get("note", ""))]
        for one in found.get("checks", [])
    ]
    header = ["gate", "run", "result", "note"]
    return ReportSection(
        "Verification",
        [
            Table(
                header,
                rows,
                "llll",
                f"Runs made again beside the originals.{at_length(row[1] for row in rows)}",
                [1.5, 2, 1.3, 4],
                small=True,
            )
        ],
    )


def imported_runs(inputs: Inputs) -> ReportSection:
    """Where imported runs came from, and what their import left blank."""
    imported = inputs.imported
    if imported is None:
        return ReportSection("Imported runs", [])
    price = f"priced as on the cluster {imported.cluster}" if imported.cluster else "not priced"
    blocks: list[Block] = [
        Text(
            f"These runs were not made by Octavo. They were imported from {len(imported.files)} "
            f"file{'s' * (len(imported.files) != 1)} in the format {words(imported.format)}, and are {price}."
        )
    ]
    if imported.blank:
        rows = [[what, missing] for what, _, missing in (blank.partition(": ") for blank in imported.blank)]
        caption = "What was not given and is therefore left out; nothing was guessed."
        blocks.append(Table(["left blank", "what would fill it"], rows, "ll", caption, [3, 3], small=True))
    rows = [[name, digest] for name, digest in imported.files.items()]
    caption = "The files as they were when they were imported."
    blocks.append(Table(["file", "SHA-256"], rows, "ll", caption, [2.4, 4], small=True))
    return ReportSection("Imported runs", blocks)


def provenance(inputs: Inputs) -> ReportSection:
    """Versions, hardware, commit, data."""
    found = list(inputs.provenance.values())
    blocks: list[Block] = []
    if found:
        packages = sorted({name for one in found for name in one.packages})
        rows = [
            ["Octavo", shared([one.octavo_version for one in found])],
            [
                "commit",
                shared([f"{one.git_commit or 'unknown'}{' (changed)' if one.git_dirty else ''}" for one in found]),
            ],
            ["image", shared([one.image_digest or "none" for one in found])],
            ["Python", shared([one.python for one in found])],
            *(
                [name, shared([one.packages.get(name, "absent") for one in found])]
                for name in packages
                if name != "octavo"
            ),
            ["lock (SHA-256)", shared([one.lock_sha256 or "unknown" for one in found])],
            *(
                [words(key), shared([one.hardware.get(key) for one in found])]
                for key in dict.fromkeys(key for one in found for key in one.hardware)
                if any(one.hardware.get(key) is not None for one in found)
            ),
            ["threads a process", shared([one.threads for one in found])],
            ["data manifest (SHA-256)", shared([one.data_manifest_sha256 for one in found])],
        ]
        blocks.append(Table(["", "all runs"], rows, "ll", "What made the runs.", [1.4, 5], small=True))
        built = {
            name: shared([", ".join(f"{count} {kind}" for kind, count in one.precision_built.items())])
            for name, one in inputs.provenance.items()
            if name.endswith(f"seed-{min(inputs.runs['seed'])}")
        }
        rows = [[name, value] for name, value in built.items()]
        blocks.append(
            Table(["run", "linear layers by implementation"], rows, "ll",
                  "The precision asked for is the precision built: layers counted before the first step."
                  + at_length(built),
                  [1.6, 4], small=True)
        )  # fmt: skip
        blocks += _what_ran({name: inputs.provenance[name].step_proof for name in built})
        blocks += _kernels({name: inputs.provenance[name].kernels for name in built})
    if inputs.manifest:
        rows = [
            [source["name"], source["license"] or "", str(source["documents"]), ", ".join(source["sha256"].values())]
            for source in inputs.manifest["sources"]
        ]
        blocks.append(
            Table(["source", "licence", "documents", "SHA-256"], rows, "llrl",
                  "The text.", [1.4, 1.8, 0.9, 4.4], small=True)
        )  # fmt: skip
        held = sum(domain["tokens"] for domain in inputs.manifest["splits"]["train"].values())
        blocks.append(Text(how_often_read(float(inputs.runs["tokens"].max()), float(held))))
    blocks += run_list(inputs).blocks
    return ReportSection("Provenance", blocks)


def how_often_read(tokens: float, held: float) -> str:
    """Whether the longest run, of so many tokens, reads the training text, which holds so many, more than once.

    Text that is read again teaches less than new text (Muennighoff et al. 2023, arXiv 2305.16264).
    """
    said = f"The training text holds {count(held)} tokens; the longest run reads {count(tokens)}"
    if tokens <= held:
        return f"{said}, none of them twice."
    return f"{said}: all of it {tokens / held:.2g} times over. Text that is read again teaches less than new text."


def _what_ran(proofs: Mapping[str, StepProof | None]) -> list[Block]:
    """What the first step of runs on GPUs did; nothing where no run was on one."""
    rows = [
        [
            name,
            "; ".join(
                f"{words(product)}: {times} x {kinds}"
                for product, seen in proof.products.items()
                for kinds, times in seen.items()
            ),
            proof.attention,
            f"{proof.fused_weight_gradients} weights, {proof.fused_permutations} permutations",
            listed(proof.dispatchers) if proof.dispatchers else MISSING,
        ]
        for name, proof in proofs.items()
        if proof is not None
    ]
    header = ["run", "products in the first step", "attention", "fused", "dispatcher"]
    caption = "What ran, counted where Transformer Engine calls its kernels."
    return [Table(header, rows, "lllll", caption, [1.6, 3.4, 1.4, 1.2, 1.4], small=True)] if rows else []


def _kernels(profiles: Mapping[str, dict[str, float] | None]) -> list[Block]:
    """Where the GPU's time went in the second step of runs; nothing where none was profiled."""
    rows = [
        [name, ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())]
        for name, shares in profiles.items()
        if shares
    ]
    caption = "Kernels by kind, as a share of the GPU's time in the second step of an attempt."
    return [Table(["run", "kernels"], rows, "ll", caption, [1.6, 4], small=True)] if rows else []


def run_list(inputs: Inputs) -> ReportSection:
    """Every run with what it was and what came of it."""
    rows = [
        [
            f"{row.cell}/seed-{row.seed}",
            row.status,
            str(row.steps),
            duration(row.training_seconds),
            MISSING if inputs.imported else str(row.attempts),
            *(one[:16] if isinstance(one, str) else MISSING for one in (row.run_fingerprint, row.parameters_sha256)),
        ]
        for row in inputs.runs.itertuples()
    ]
    hashes = ", with the beginning of the SHA-256 of its configuration and of its final parameters"
    table = Table(
        ["run", "status", "steps", "training", "attempts", "configuration", "final parameters"], rows, "llrrrll",
        f"Every run{'' if inputs.imported else hashes}.", [3.4, 1.1, 0.7, 0.9, 0.9, 1.7, 1.7], small=True,
    )  # fmt: skip
    return ReportSection("Runs", [filled(table)])
