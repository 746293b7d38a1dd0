"""Claims held against the runs: verdicts, effects, and sentences made from the numbers.

A claim is a file in `configs/claims`. Its metric measures one or more samples; the claim is supported when every sample
supports it and refuted when any refutes it, at 5 % over all claims of the experiment together (Holm). One seed decides
nothing; where the seeds are too few, how many would be needed is worked out from the spread they showed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from octavo.configuration import Section, parse_section, place, read_section
from octavo.errors import OctavoError, no_such
from octavo.evidence.comparisons import all_comparisons, estimate, of_draws
from octavo.evidence.grid import Grid
from octavo.evidence.metrics import METRICS
from octavo.evidence.metrics.base import LEAST_STEPS, Expectation, Measurement, Sample, number_like
from octavo.evidence.metrics.costs import amount, cost_of_a_seed
from octavo.evidence.metrics.pairs import TIMED_AXES
from octavo.evidence.names import ends, listed
from octavo.evidence.sequential import Looks
from octavo.experiment.cluster import Cluster, Device
from octavo.experiment.load import load_cluster
from octavo.experiment.run import Experiment
from octavo.files import fingerprint, sha256, write_json
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.records import (
    ClaimResult,
    ClaimsFile,
    ComparisonsFile,
    Estimate,
    Part,
    SeedPlans,
    Verdict,
    read_record,
)
from octavo.statistics import (
    ALPHA,
    Relation,
    Test,
    all_of,
    confidence_for,
    holm,
    once,
    required_seeds,
    test,
    test_of_draws,
)

MOST_TOLD = 8
"""Comparisons of a claim that its sentence names one by one; of more it tells how many, the range and the one that
decides."""


class Claim(Section):
    """One statement that the evidence is held against."""

    number: PositiveInt
    """Its number in reports; no two claims have the same."""
    title: str
    """The claim in a few words."""
    text: str
    """The claim as a sentence."""
    source: str
    """Who says so, and where."""
    metric: str
    """How it is measured: a name of `octavo.evidence.metrics.METRICS`."""
    comparison: dict[str, Any] = {}
    """What is compared: the metric's own keys."""
    expectation: dict[Relation, float] = {}
    """What the claim says of the effect: `{below: 1}`, `{above: 1}`, `{within: 0.25}`, in the metric's unit; nothing
    for figures that bring their own."""
    needs: str
    """What an experiment must have for the claim to be testable."""
    tested_by: str = ""
    """The command that makes the report of an experiment that tests it."""


@dataclass(frozen=True)
class LoadedClaim:
    """A claim file with its metric's parameters, before it is evaluated."""

    name: str
    claim: Claim
    parameters: Any
    expectation: Expectation

    @property
    def rests_on_time(self) -> bool:
        """Whether its verdict follows from times, hours or money that runs took: on another machine it is another's."""
        return METRICS[self.claim.metric].timed or getattr(self.parameters, "axis", None) in TIMED_AXES


@dataclass(frozen=True)
class EvaluatedClaim:
    """A claim evaluated on the grid, before the correction for the other claims."""

    loaded: LoadedClaim
    measurement: Measurement
    tests: list[Test | None]

    @property
    def test(self) -> Test | None:
        """Of the whole claim; None where a sample has one seed, or there is none that decides."""
        if not self.measurement.decides or not self.tests or any(one is None for one in self.tests):
            return None
        return all_of([one for one in self.tests if one is not None])


def write_verdicts(folder: ExperimentFolder, configs: ConfigFolders, ablation: str | None) -> ExperimentFolder:
    """Write claims.json and comparisons.json of an experiment or of one ablation; the folder that they are in."""
    from octavo.experiment.load import load_experiment

    tables = folder.ablation(ablation) if ablation else folder
    experiment = None if folder.imported.exists() else load_experiment(folder.name, configs)
    claims = write_verdicts_of(tables, folder, configs, experiment, ablation)
    if experiment is not None and any(claim.p_adjusted is not None for claim in claims):
        _remember_seeds(folder, experiment.file.all_seeds)
    return tables


def write_verdicts_of(
    tables: ExperimentFolder, folder: ExperimentFolder, configs: ConfigFolders, experiment: Experiment | None,
    ablation: str | None,
) -> list[ClaimResult]:  # fmt: skip
    """Write claims.json and comparisons.json beside some tables, of the experiment in `folder` or of one ablation."""
    grid = Grid(tables, folder, experiment)
    loaded = read_claims(configs, experiment)
    claims = ClaimsFile(
        experiment=folder.name,
        ablation=ablation,
        configuration=configuration_fingerprint(configs, loaded, experiment),
        claims=judge(grid, loaded),
    )
    comparisons = ComparisonsFile(experiment=folder.name, ablation=ablation, comparisons=all_comparisons(grid))
    write_json(tables.comparisons, comparisons.model_dump(mode="json"))
    write_json(tables.claims, claims.model_dump(mode="json"))
    return claims.claims


def configuration_fingerprint(configs: ConfigFolders, claims: list[LoadedClaim], experiment: Experiment | None) -> str:
    """Changes when verdicts may be other ones although the tables are the same: claims, published figures, prices and
    plans that claims name."""
    from octavo.experiment.load import load_experiment

    published = {path.name: sha256(path) for path in sorted(configs.published.rglob("*.yaml"))}
    clusters: list[tuple[Cluster, Device]] = [(experiment.cluster, experiment.device)] if experiment else []
    named = {str(one.parameters.cluster) for one in claims if getattr(one.parameters, "cluster", None)}
    clusters += [load_cluster(name, configs) for name in sorted(named) if (configs.clusters / f"{name}.yaml").exists()]
    plans = [load_experiment(name, configs) for name in named_plans(claims, configs)]
    clusters += [(plan.cluster, plan.device) for plan in plans]
    cluster = [part.model_dump(mode="json") for both in clusters for part in both]
    planned = [cell.fingerprint for plan in plans for cell in plan.grid]
    return fingerprint([[(one.name, one.claim.model_dump(mode="json")) for one in claims], published, cluster, planned])


def named_plans(claims: list[LoadedClaim], configs: ConfigFolders) -> list[str]:
    """The experiments whose plans claims name, of those that there are."""
    names = {str(one.parameters.experiment) for one in claims if getattr(one.parameters, "experiment", None)}
    return [name for name in sorted(names) if (configs.experiments / f"{name}.yaml").exists()]


def _remember_seeds(folder: ExperimentFolder, seeds: list[int]) -> None:
    """Note with which seeds verdicts were planned: others, after verdicts were seen, lose the error rate."""
    path, plan = folder.seed_plans, sorted(seeds)
    plans = read_record(path, SeedPlans, made_by="octavo claims").plans if path.exists() else []
    if plan not in plans:
        write_json(path, SeedPlans(plans=[*plans, plan]).model_dump(mode="json"))


def read_claims(configs: ConfigFolders, experiment: Experiment | None = None) -> list[LoadedClaim]:
    """The claims that an experiment is held against (all there are, unless its file names some), by number."""
    there = {path.stem: path for path in sorted(configs.claims.glob("*.yaml"))}
    names = list(there)
    if experiment is not None and experiment.file.claims is not None:
        names = experiment.file.claims
        for index, name in enumerate(names):
            if name not in there:
                raise no_such("claim", name, there, where=place(experiment.path, ("claims", index)))
    claims = sorted((_read(there[name]) for name in names), key=lambda one: (one.claim.number, one.name))
    for one, other in pairwise(claims):
        if one.claim.number == other.claim.number:
            raise OctavoError(
                f"claims {one.name} and {other.name} have the same number",
                where=place(there[other.name], ("number",)),
                fix="give one of them another",
            )
    return claims


def _read(path: Path) -> LoadedClaim:
    claim = read_section(path, Claim)
    if claim.metric not in METRICS:
        raise no_such("metric", claim.metric, METRICS, where=place(path, ("metric",)))
    how = METRICS[claim.metric]
    parameters = parse_section(claim.comparison, how.parameters, path, at=("comparison",))
    if len(claim.expectation) != bool(how.unit):
        raise OctavoError(
            f"a claim says {len(claim.expectation)} things of its effect",
            where=place(path, ("expectation",)),
            expected="one of below, above and within, with a margin"
            if how.unit
            else "none: the figures bring their own",
        )
    relation, margin = next(iter(claim.expectation.items()), ("within", 0.0))
    if how.unit == "ratio" and (margin <= 0 or relation == "within"):  # compared on a logarithmic scale
        raise OctavoError(
            f"wrong value: {relation}: {margin:g}",
            where=place(path, ("expectation", relation)),
            expected="below or above a ratio greater than 0",
        )
    return LoadedClaim(path.stem, claim, parameters, Expectation(relation, margin))


def judge(grid: Grid, claims: list[LoadedClaim]) -> list[ClaimResult]:
    """A verdict for every claim."""
    evaluated = [_evaluate(grid, loaded) for loaded in claims]
    tested = [one.test for one in evaluated]
    count = sum(one is not None for one in tested)
    return [_result(grid, one, p, count) for one, p in zip(evaluated, adjusted_p_values(tested), strict=True)]


def adjusted_p_values(tests: Sequence[Test | None]) -> list[float | None]:
    """Of the verdict that each claim leans to, adjusted over those that are tested (Holm)."""
    adjusted = iter(holm([one.p_value for one in tests if one is not None]))
    return [None if one is None else next(adjusted) for one in tests]


def verdict_of(tested: Test | None, p_value: float | None) -> Verdict:
    """Inconclusive unless the p value of what the test leans to is at most ALPHA."""
    if tested is None or p_value is None or p_value > ALPHA:
        return "inconclusive"
    return "supported" if tested.supports < tested.refutes else "refuted"


def _evaluate(grid: Grid, loaded: LoadedClaim) -> EvaluatedClaim:
    measurement = METRICS[loaded.claim.metric].measure(grid, loaded.parameters, loaded.expectation)
    return EvaluatedClaim(loaded, measurement, [_test(sample, grid.looks) for sample in measurement.samples])


def undecided_cells(grid: Grid, claims: list[LoadedClaim]) -> list[str]:
    """The cells of comparisons that another seed of theirs could decide, in the order of the grid."""
    evaluated = [_evaluate(grid, loaded) for loaded in claims]
    tested = [one.test for one in evaluated]
    count = sum(one is not None for one in tested)
    found: set[str] = set()
    for one, p in zip(evaluated, adjusted_p_values(tested), strict=True):
        if _claim_verdict(one, p) != "inconclusive" or _reason(one, []):
            continue
        for sample, of_sample in zip(one.measurement.samples, one.tests, strict=True):
            settled = of_sample is not None and count * of_sample.supports <= ALPHA
            if not settled and sample.fitted_to is None:
                found |= {cell.name for cell in sample.cells}
    return [name for name in grid.cells if name in found]


def _test(sample: Sample, looks: Looks | None) -> Test | None:
    """What the seeds that can be compared say, and what the runs that diverged say."""
    if sample.fitted_to is not None:
        return test_of_draws(sample.values, sample.relation, sample.margin)
    found = test(sample.values, sample.relation, sample.margin, sample.bias, looks or once)
    if sample.short:
        return found and Test(1.0, 1.0)
    if found is not None:
        found = Test(max(found.supports, sample.p_at_least), found.refutes)
    if sample.diverged is None:
        return found
    tests = 2 if found else 1  # two ways to a verdict, adjusted by Bonferroni, as are looks at what diverged
    tests *= looks.last - looks.first + 1 if looks else 1
    supports, refutes = (found.supports, found.refutes) if found else (1.0, 1.0)
    if sample.blocked:
        return Test(1.0, min(1.0, tests * min(refutes, sample.diverged.p_worse)))
    return Test(min(1.0, tests * min(supports, sample.diverged.p_worse)), 1.0)


def _result(grid: Grid, evaluated: EvaluatedClaim, p_adjusted: float | None, tested: int) -> ClaimResult:
    loaded, measurement = evaluated.loaded, evaluated.measurement
    claim = loaded.claim
    effects = [_effect(sample) for sample in measurement.samples]
    parts = [
        Part(
            label=sample.label,
            effect=effect,
            verdict=verdict_of(one, one and one.p_value),
            note="; ".join(filter(None, (sample.diverged and sample.diverged.words, sample.early))) or None,
        )
        for sample, effect, one in zip(measurement.samples, effects, evaluated.tests, strict=True)
    ]
    parts += [part for part, _ in measurement.arithmetic]
    parts += [
        Part(label=label, effect=None, verdict="not testable here", note=why)
        for label, why in measurement.untested.items()
    ]
    verdict = _claim_verdict(evaluated, p_adjusted)
    n = min((len(sample.values) for sample in measurement.samples), default=0)
    reason = (_reason(evaluated, effects) or _before_first_look(n, grid.looks)) if verdict == "inconclusive" else None
    needed = None
    fitted = any(sample.fitted_to is not None for sample in measurement.samples)
    if verdict == "inconclusive" and reason is None and grid.looks is None and not fitted:
        needed = _seeds_needed(measurement, tested)
    alone = _alone(evaluated, p_adjusted, tested, grid.looks) if verdict == "inconclusive" and reason is None else None
    cells = {cell.name: cell for sample in measurement.samples for cell in sample.cells}
    each = cost_of_a_seed(cells)
    further = None if needed is None or each is None else max(0, needed - n) * each
    return ClaimResult(
        number=claim.number,
        name=loaded.name,
        title=claim.title,
        text=claim.text.strip(),
        source=claim.source,
        needs=claim.needs.strip(),
        tested_by=claim.tested_by.strip(),
        verdict=verdict,
        sentence=_sentence(evaluated, effects, verdict, reason, alone, needed, further, grid),
        effect=None if verdict == "not testable here" else _headline(evaluated, effects)[0],
        effect_of=_headline(evaluated, effects)[1],
        computed_for=measurement.computed_for or None,
        reason=(reason.short if reason else alone),
        expectation=_expectation(claim),
        p_adjusted=p_adjusted,
        seeds_needed=needed,
        seeds_cost=further,
        currency=grid.currency if further is not None else None,
        parts=parts,
        runs=list(dict.fromkeys(run for sample in measurement.samples for run in sample.runs)),
        data=measurement.data,
    )


def _effect(sample: Sample) -> Estimate | None:
    """What a sample measured, with its interval; None where it has no value."""
    confidence = confidence_for(sample.relation)
    if sample.fitted_to is not None:
        return of_draws(sample.values, sample.unit, sample.fitted_to, confidence)
    return estimate(sample.values, sample.unit, confidence) if len(sample.values) else None


def _claim_verdict(evaluated: EvaluatedClaim, p_adjusted: float | None) -> Verdict:
    if evaluated.measurement.arithmetic:
        verdicts = [part.verdict for part, _ in evaluated.measurement.arithmetic]
        if "refuted" in verdicts:
            return "refuted"
        return "inconclusive" if "inconclusive" in verdicts else "supported"
    if not evaluated.measurement.samples or not evaluated.measurement.decides:
        return "not testable here"
    verdict = verdict_of(evaluated.test, p_adjusted)
    return "inconclusive" if verdict == "supported" and evaluated.measurement.incomplete else verdict


def _headline(evaluated: EvaluatedClaim, effects: list[Estimate | None]) -> tuple[Estimate | None, str | None]:
    """The effect that stands for the claim, and the comparison that it is of: of the sample that refutes most, or where
    none does of the one whose mean is least on the claim's side of the margin; the first of an arithmetic."""
    if evaluated.measurement.arithmetic:
        first = evaluated.measurement.arithmetic[0][0]
        return first.effect, first.label
    labels = [sample.label for sample in evaluated.measurement.samples]
    if not effects:
        return None, None
    whole, at = evaluated.test, 0
    if whole is not None:
        if whole.refutes < whole.supports:
            at = int(np.argmin([one.refutes for one in evaluated.tests if one is not None]))
        else:
            at = int(np.argmin([_beyond_margin(sample) for sample in evaluated.measurement.samples]))
    return effects[at], labels[at]


def _beyond_margin(sample: Sample) -> float:
    """How far a sample's mean is on the claim's side of the margin; infinitely far where runs diverged of every seed,
    for then it has no mean."""
    if not len(sample.values):
        return np.inf
    mean = float(np.mean(sample.values) if sample.fitted_to is None else np.median(sample.values))
    return {"below": sample.margin - mean, "above": mean - sample.margin, "within": sample.margin - abs(mean)}[
        sample.relation
    ]


@dataclass(frozen=True)
class Reason:
    """Why a claim is inconclusive where more seeds are not the answer."""

    short: str
    """For a table."""
    sentence: str


def _reason(evaluated: EvaluatedClaim, effects: list[Estimate | None]) -> Reason | None:
    if evaluated.measurement.undecided:
        return Reason("its range holds both answers", evaluated.measurement.undecided)
    return _reason_of_runs(evaluated.measurement, effects)


def _before_first_look(seeds: int, looks: Looks | None) -> Reason | None:
    """Before the first look no boundary can be crossed, however clear an interval stands of the margin."""
    if looks is None or not seeds or seeds >= looks.first:
        return None
    return Reason(
        f"no verdict before {looks.first} seeds",
        f"No verdict is reached before {looks.first} seeds; these are {seeds}.",
    )


def _reason_of_runs(measurement: Measurement, effects: list[Estimate | None]) -> Reason | None:
    samples = measurement.samples
    if any(effect is not None and effect.n < 2 for effect in effects):
        return Reason("one seed", "One seed tells nothing of the spread.")
    if short := [sample for sample in samples if sample.short]:
        steps = int(min(cell.runs["steps"].min() for sample in short for cell in sample.cells if len(cell.runs)))
        return Reason(
            f"runs of {steps} steps", f"Runs of {steps} steps are too short for a verdict, which needs {LEAST_STEPS}."
        )
    if any(sample.blocked for sample in samples):
        return Reason("runs diverged", "Where runs diverge the claim cannot be supported.")
    if biased := [sample for sample in samples if _leans_with_its_bias(sample)]:
        early = "; ".join(dict.fromkeys(sample.early or "" for sample in biased))
        return Reason(
            "needs a run planned for this length",
            f"It needs a run planned for this length: {early}, which makes it look worse than such a run would.",
        )
    if measurement.incomplete:
        return Reason(
            "a comparison is missing", "While a comparison that it is about is missing the claim cannot be supported."
        )
    return None


def _leans_with_its_bias(sample: Sample) -> bool:
    """Whether its numbers, taken as they are, lean to the verdict that their bias makes."""
    if not sample.bias:
        return False
    found, plain = (test(sample.values, sample.relation, sample.margin, bias) for bias in (sample.bias, 0))
    return found is not None and plain is not None and plain.p_value < found.p_value


def _alone(evaluated: EvaluatedClaim, p_adjusted: float | None, tested: int, looks: Looks | None) -> str | None:
    """Where an interval stands clear of the margin and the claim is inconclusive all the same: by which p value."""
    whole = evaluated.test
    plain = [_test(sample, None) for sample in evaluated.measurement.samples]  # as if looked at once
    alone = [one for one in plain if one is not None]
    supported = len(alone) == len(plain) and all(one.supports <= ALPHA for one in alone)
    refuted = any(one.refutes <= ALPHA for one in alone)
    if whole is None or p_adjusted is None or not (supported or refuted):
        return None
    verdict = "supported" if supported else "refuted"
    p = max(one.supports for one in alone) if supported else min(one.refutes for one in alone)
    among = [f"{n} {what}" for n, what in ((len(alone), "comparisons"), (tested, "claims")) if n > 1]
    among += ["looks"] if looks else []
    return f"{verdict} alone (p = {p_words(p)}), not among {' and '.join(among)} (p = {p_words(p_adjusted)})"


def p_words(p: float) -> str:
    """A p value with three significant digits, or as many as it takes to see on which side of ALPHA it is."""
    digits = 3
    while (p > ALPHA) != (float(f"{p:.{digits}g}") > ALPHA) and digits < 12:
        digits += 1
    return f"{p:.{digits}g}"


def _seeds_needed(measurement: Measurement, tested: int) -> int | None:
    needed = [
        required_seeds(sample.values, sample.relation, sample.margin, claims=max(1, tested))
        for sample in measurement.samples
    ]
    return None if None in needed else max((one for one in needed if one is not None), default=None)


# --- words ----------------------------------------------------------------------------------------------------------


def _expectation(claim: Claim) -> str:
    unit = METRICS[claim.metric].unit
    words = [
        f"{relation} {margin:g}" + ("" if unit == "ratio" else f" {unit}")
        for relation, margin in claim.expectation.items()
    ]
    return words[0] if words else "as printed"


def _sentence(
    evaluated: EvaluatedClaim,
    effects: list[Estimate | None],
    verdict: Verdict,
    reason: Reason | None,
    alone: str | None,
    needed: int | None,
    cost: float | None,
    grid: Grid,
) -> str:
    measurement = evaluated.measurement
    if measurement.missing:
        return _sentences([f"it would need {measurement.missing}"])
    if not measurement.samples and not measurement.arithmetic:
        return _sentences(_untested(measurement))
    of_samples = [_what(sample, effect) for sample, effect in zip(measurement.samples, effects, strict=True)]
    clauses = [words for _, words in measurement.arithmetic if words]
    clauses += of_samples if len(of_samples) <= MOST_TOLD else _of_many(evaluated, effects)
    if measurement.computed_for:
        clauses[0] = f"{measurement.computed_for}, {clauses[0]}"
    closing = [measurement.remark] if measurement.remark else []
    if measurement.untested:
        closing.append(f"Not tested: {'; '.join(_untested(measurement))}.")
    if verdict == "inconclusive":
        if alone:
            closing.append(f"{alone[0].upper()}{alone[1:]}.")
        if reason:
            closing.append(reason.sentence)
        elif grid.looks:
            seeds = min(effect.n for effect in effects if effect is not None)
            closing.append(f"Not decided after {seeds} of at most {grid.looks.last} seeds.")
        elif any(sample.fitted_to is not None for sample in measurement.samples):
            closing.append("Further rungs and seeds would narrow the interval.")
        elif needed is None:
            closing.append("The mean is so close to the margin that no number of seeds that could be run would tell.")
        else:
            price = "" if cost is None or grid.currency is None else f", for a further {amount(cost)} {grid.currency}"
            closing.append(
                f"To tell would take about {needed} seeds{price}; added to these after the fact they lose the error "
                "rate, in a plan of their own or until decided they keep it."
            )
    return " ".join([_sentences(clauses), *closing])


def _what(sample: Sample, effect: Estimate | None) -> str:
    """What a sample shows: the effect, and the runs that diverged."""
    diverged = sample.diverged.words if sample.diverged else ""
    if effect is None:
        return f"{diverged}, so there is no loss to compare"
    return f"{sample.phrase(effect)} ({'; '.join(filter(None, (_interval(effect), diverged)))})"


def _of_many(evaluated: EvaluatedClaim, effects: list[Estimate | None]) -> list[str]:
    """How many comparisons say what, each alone, how far they lie apart, and the one that the claim stands with."""
    samples = evaluated.measurement.samples
    alone = [verdict_of(one, one and one.p_value) for one in evaluated.tests]
    words = {"supported": "support the claim", "refuted": "refute it", "inconclusive": "do not decide it"}
    counts = [f"{alone.count(verdict)} {said}" for verdict, said in words.items() if verdict in alone]
    known = {sample.label: effect for sample, effect in zip(samples, effects, strict=True) if effect is not None}
    told = [f"of {len(samples)} comparisons, each alone, {listed(counts)}"]
    if known:
        least, most = ends({label: effect.value for label, effect in known.items()})
        unit = " %" if known[least].unit.startswith("%") else ""
        low, high = (number_like(known[one].value, known[one]).replace("-", "\N{MINUS SIGN}") for one in (least, most))
        told.append(f"they lie between {low}{unit} ({least}) and {high}{unit} ({most})")
    headline = _headline(evaluated, effects)[1]
    at = next(place for place, sample in enumerate(samples) if sample.label == headline)
    return [*told, f"the one that is furthest from the claim: {_what(samples[at], effects[at])}"]


def _untested(measurement: Measurement) -> list[str]:
    """Comparisons that cannot be tested, those with the same reason together."""
    labels: dict[str, list[str]] = {}
    for label, why in measurement.untested.items():
        labels.setdefault(why, []).append(label)
    return [
        f"{' and '.join(of_reason)}: {why}"
        if len(of_reason) <= MOST_TOLD
        else f"{len(of_reason)} comparisons, {of_reason[0]} to {of_reason[-1]}: {why}"
        for why, of_reason in labels.items()
    ]


def _sentences(clauses: list[str]) -> str:
    text = "; ".join(clauses)
    return text[:1].upper() + text[1:] + "."


def _interval(effect: Estimate) -> str:
    seeds = f"{effect.n} seed" + "s" * (effect.n != 1)
    if effect.low is None or effect.high is None:
        return seeds
    if effect.unit == "ratio" and (effect.low < 0.01 or effect.high >= 1000):
        low, high = f"{effect.low:.1e}", f"{effect.high:.1e}"  # two seeds can give ends that are orders apart
    elif effect.unit.startswith("% of"):
        low, high = f"{effect.low:.1f}", f"{effect.high:.1f}"
    else:
        low, high = number_like(effect.low, effect), number_like(effect.high, effect)
    unit = " %" if effect.unit.startswith("%") else ""
    return f"{100 * effect.confidence:.0f} % interval {low} to {high}{unit}, {seeds}".replace("-", "\N{MINUS SIGN}")
