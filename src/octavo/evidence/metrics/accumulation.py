"""The metric of how products are summed: FP8's loss error with sums in FP32 and in about 14 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.evidence.comparisons import Reading, final_reading, refusal
from octavo.evidence.grid import Cell, Grid, Pair
from octavo.evidence.metrics.base import Expectation, Measurement, NoParameters, Phrase, Sample, divergence
from octavo.evidence.schedule import Bias
from octavo.records import Estimate


def accumulation(grid: Grid, parameters: NoParameters, expectation: Expectation) -> Measurement:
    """FP8's loss error against BF16 with sums kept in FP32 (which must be good enough) and in about 14 bits (which must
    not be). Products promoted to FP32 every 128 elements count as the first kind."""
    del parameters
    samples: list[Sample] = []
    untested: dict[str, str] = {}
    rows: dict[str, list[Any]] = {"cell": [], "accumulation": [], "seed": [], "error": []}
    reference = {
        cell.architecture: cell for cell in grid.cells.values() if cell.precision == "bf16" and not cell.ablation
    }
    short = [cell for cell in grid.cells.values() if cell.accumulation == "fp14" and cell.architecture in reference]
    if not short:
        return Measurement(missing="an ablation with precision.accumulation: fp14, and its BF16 cell")
    asked_for = {cell.baseline for cell in short}
    for cell in grid.cells.values():
        if cell.precision == "bf16" or cell.baseline not in asked_for or not _sums_alone(cell, grid):
            continue
        pair = Pair("precision", cell, reference[cell.architecture])
        why = refusal(grid, pair)
        readings = {seed: None if why else final_reading(grid, pair, seed) for seed in pair.seeds}
        errors = [(seed, one and one.difference) for seed, one in readings.items()]
        values = np.array([error for _, error in errors if error is not None])
        sign, early = _bias(pair, [one for one in readings.values() if one is not None])
        lost = divergence(cell, pair.against)
        if not len(values) and lost is None:
            untested[cell.label] = why or "no seed is complete for it and for BF16 on equally many tokens"
            continue
        for seed, error in errors:
            for column, value in zip(rows, (cell.name, cell.accumulation, seed, error), strict=True):
                rows[column].append(value)
        kept = {"fp32": "sums in FP32", "fp14": "sums in 14 bits", "promoted": "sums promoted to FP32"}
        samples.append(
            Sample(
                label=f"{cell.label}, {kept[cell.accumulation]}", values=values, unit="%",
                relation="above" if cell.accumulation == "fp14" else expectation.relation, margin=expectation.margin,
                phrase=_with_sums(pair, kept[cell.accumulation]), cells=(cell, pair.against), runs=pair.run_names,
                diverged=lost, bias=sign, early=early,
            )
        )  # fmt: skip
    kinds = {sample.relation for sample in samples}
    if len(kinds) < 2:
        return Measurement(missing="complete runs of FP8 with sums in FP32 and in 14 bits, and of BF16")
    return Measurement(samples, untested, incomplete=bool(untested), data=rows)


def _bias(pair: Pair, readings: list[Reading]) -> tuple[int, str | None]:
    """Sign of the bias of final losses, and whose rate was still high, in words."""
    bias = Bias(*np.mean([one.undecayed for one in readings], axis=0)) if readings else Bias(0.0, 0.0)
    if not bias.sign:
        return 0, None
    cell, rate = (pair.cell, bias.cell) if bias.sign > 0 else (pair.against, bias.against)
    return bias.sign, f"{cell.label} is read with its learning rate at {100 * rate:.0f} % of its peak"


def _sums_alone(cell: Cell, grid: Grid) -> bool:
    """Whether a cell is a baseline, or an ablation of how products are summed and of nothing else we know of."""
    base = grid.cells.get(cell.baseline)
    return cell.ablation is None or (base is not None and cell.accumulation != base.accumulation)


def _with_sums(pair: Pair, sums: str) -> Phrase:
    architecture = pair.cell.label.partition(",")[0]

    def phrase(effect: Estimate) -> str:
        away = f"{effect.value:+.2f}".replace("-", "\N{MINUS SIGN}")
        return f"{architecture} with {sums} ends {away} % from {pair.against.label}"

    return phrase
