"""Do experts specialise? Mutual information between the expert and the domain of the text, layer by layer.

For each mixture-of-experts layer the tokens of the validation sequences make a table of domain by expert. Its mutual
information I(domain; expert), in bits, is what knowing the expert tells of the domain; over the entropy of the domains
it is a share between 0 (routing knows nothing of domains) and 1. Estimated from counts it is never zero, and tokens of
a sequence are not independent, so it is held against a permutation null: whole sequences are dealt new domains, the
same way for all runs and layers, and their mean information is taken off (Good, Permutation, Parametric and Bootstrap
Tests of Hypotheses, 3rd ed., 2005, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.evidence.grid import Cell, Grid
from octavo.evidence.metrics.base import Expectation, Measurement, NoParameters, Sample
from octavo.records import Estimate, read_table

PERMUTATIONS = 999


@dataclass(frozen=True)
class Routing:
    """Which experts served which sequence, in one run."""

    counts: np.ndarray
    """Tokens by [sequence, layer, expert]."""
    domains: list[str]
    """Of each sequence."""
    layers: list[int]


def read_routing(path: Path, made_by: str) -> Routing:
    """The routing table of a run."""
    frame = read_table(path, "routing", made_by=made_by)
    sequences, layers = np.unique(frame["sequence"]), np.unique(frame["layer"])
    counts = np.zeros((len(sequences), len(layers), int(frame["expert"].max()) + 1))
    at = np.searchsorted(sequences, frame["sequence"]), np.searchsorted(layers, frame["layer"]), frame["expert"]
    np.add.at(counts, at, frame["tokens"].to_numpy(dtype=float))
    domains = frame.drop_duplicates("sequence").set_index("sequence")["domain"].loc[sequences].tolist()
    return Routing(counts, domains, layers.tolist())


def mutual_information(joint: np.ndarray) -> np.ndarray:
    """I(row; column) in bits of tables of counts [..., row, column]."""
    share = joint / joint.sum((-1, -2), keepdims=True)
    rows, columns = share.sum(-1, keepdims=True), share.sum(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = share * np.log2(share / (rows * columns))
    return np.where(share > 0, terms, 0.0).sum((-1, -2))


def information_by_layer(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """I(domain; expert) by layer; `counts` are [sequence, layer, expert], `labels` numbers from 0."""
    sequences, layers, experts = counts.shape
    one_hot = labels[None, :] == np.arange(labels.max() + 1)[:, None]
    joint = (one_hot @ counts.reshape(sequences, -1)).reshape(-1, layers, experts)
    return mutual_information(joint.transpose(1, 0, 2))


def entropy(labels: np.ndarray, weights: np.ndarray) -> float:
    """Of the domains, in bits, by the tokens they have."""
    share = np.bincount(labels, weights=weights) / weights.sum()
    return float(-(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum())


@dataclass(frozen=True)
class Information:
    """What the runs of a cell show, by seed and layer, all in bits."""

    measured: np.ndarray
    """[seed, layer]"""
    null: np.ndarray
    """[permutation, seed, layer]"""
    entropy: float

    @property
    def shares(self) -> np.ndarray:
        """By seed, the share of the domains' entropy that experts tell beyond chance, mean over layers, %."""
        return 100 * (self.measured - self.null.mean(0)).mean(-1) / self.entropy

    @property
    def p_value(self) -> float:
        """That dealing domains to sequences at random tells as much, mean over seeds and layers."""
        return float((1 + (self.null.mean((1, 2)) >= self.measured.mean()).sum()) / (len(self.null) + 1))

    @property
    def p_by_layer(self) -> np.ndarray:
        """The same for each layer."""
        return (1 + (self.null.mean(1) >= self.measured.mean(0)).sum(0)) / (len(self.null) + 1)


def information(runs: list[Routing], seed: int = 0) -> Information:
    """Measure runs that routed the same sequences."""
    names = sorted(set(runs[0].domains))
    labels = np.array([names.index(domain) for domain in runs[0].domains])
    generator = np.random.default_rng(seed)
    dealt = [generator.permutation(labels) for _ in range(PERMUTATIONS)]
    return Information(
        measured=np.array([information_by_layer(run.counts, labels) for run in runs]),
        null=np.array([[information_by_layer(run.counts, deal) for run in runs] for deal in dealt]),
        entropy=entropy(labels, runs[0].counts.sum((1, 2))),
    )


def specialisation(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """The share of the domains' entropy that the expert tells beyond chance, and a permutation test that it is any."""
    del parameters
    samples: list[Sample] = []
    data: dict[str, Any] = {"layers": _columns("cell layer information null null_high p entropy"), "heat": {}}
    for cell in [one for one in grid.cells.values() if one.mixture and not one.ablation]:
        seeds, runs = _routings(grid, cell)
        if not runs or len(set(runs[0].domains)) < 2:
            continue
        found = information(runs)
        _add_layers(data["layers"], cell, runs[0].layers, found)
        if not data["heat"]:
            data["heat"] = heat(runs[0])
            data["heat_run"] = f"{cell.name}/seed-{seeds[0]}"
        samples.append(
            Sample(
                label=cell.label, values=found.shares, unit="% of the domain", relation=expectation.relation,
                margin=expectation.margin, phrase=_tells(cell), cells=(cell,),
                runs=[f"{cell.name}/seed-{seed}" for seed in seeds], p_at_least=found.p_value,
            )
        )  # fmt: skip
    if not samples:
        return Measurement(
            missing="routing.parquet of mixtures of experts, over validation text of two domains or more"
        )
    shared = any(cell.shared_expert_size for sample in samples for cell in sample.cells)
    return Measurement(
        samples, data=data, remark="The shared expert serves every token by construction." if shared else ""
    )


def heat(run: Routing) -> dict[str, list[Any]]:
    """By layer, domain and expert: the share of the domain's tokens that the expert served."""
    table = _columns("layer domain expert share")
    for index, layer in enumerate(run.layers):
        for domain in sorted(set(run.domains)):
            chosen = np.array([one == domain for one in run.domains])
            tokens = run.counts[chosen, index].sum(0)
            for expert, share in enumerate(tokens / tokens.sum()):
                _add(table, layer, domain, expert, float(share))
    return table


def _routings(grid: Grid, cell: Cell) -> tuple[list[int], list[Routing]]:
    """The runs that wrote their routing, those alone that routed the sequences that the first one did."""
    again = f"snakemake {grid.whole.report_pdf}"
    found: dict[int, Routing] = {}
    for seed in sorted(cell.runs.index):
        path = grid.whole.run(cell.name, seed).routing
        if path.exists():
            found[seed] = read_routing(path, again)
    first = next(iter(found.values()), None)
    same = {seed: run for seed, run in found.items() if first is not None and run.domains == first.domains}
    return list(same), list(same.values())


def _add_layers(table: dict[str, list[Any]], cell: Cell, layers: list[int], found: Information) -> None:
    by_layer = found.null.mean(1)
    for index, layer in enumerate(layers):
        null = by_layer[:, index]
        _add(
            table, cell.name, layer, float(found.measured[:, index].mean()), float(null.mean()),
            float(np.quantile(null, 0.95)), float(found.p_by_layer[index]), found.entropy,
        )  # fmt: skip


def _tells(cell: Cell) -> Any:
    def phrase(effect: Estimate) -> str:
        return f"in {cell.label} the expert tells {effect.value:.1f} % of the domain of a token beyond chance"

    return phrase


def _columns(names: str) -> dict[str, list[Any]]:
    return {name: [] for name in names.split()}


def _add(table: dict[str, list[Any]], *row: Any) -> None:
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)
