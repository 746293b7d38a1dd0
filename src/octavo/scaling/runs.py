"""The rows of a ladder from an experiment's or an import's table of runs: one row for each run trained to its end."""

from __future__ import annotations

from typing import Any

import pandas as pd

from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder, split_horizon
from octavo.records import read_table
from octavo.scaling.ladder import Row

OF_LOSSES = ("tokenizer", "data", "validation")
COLUMNS = [
    "cell", "architecture", "precision", "status", "tokens", "total_parameters", "active_parameters", "flops_per_token",
    "validation_loss", "device_hours_final", "cost_final", "currency", "seed", *OF_LOSSES,
]  # fmt: skip


def rows_of_runs(folder: ExperimentFolder) -> list[Row]:
    """The completed runs of a results folder that say their FLOPs and their validation loss.

    Sizes of an import are told apart by their parameters, whatever their cells are called. Raises OctavoError where the
    runs are of several precisions, texts or currencies: their losses or costs are not one ladder's.
    """
    made_by = f"octavo aggregate {folder.path}, or octavo import"
    runs = read_table(folder.runs_table, "runs", made_by=made_by, columns=COLUMNS)
    if any(split_horizon(cell)[1] is not None for cell in runs["cell"]):
        raise OctavoError(
            "runs of shorter horizons share their beginning with others", where=folder.runs_table,
            expected="ladder.csv, with what each length takes by itself", fix="octavo ladder writes it",
        )  # fmt: skip
    runs = runs[(runs["status"] == "completed") & runs["validation_loss"].notna()]
    said = runs[runs["flops_per_token"].notna() & runs["tokens"].notna()]
    if said.empty:
        raise OctavoError(
            "no completed run says its tokens, its FLOPs and its validation loss", where=folder.runs_table,
            fix="of an import: give model or flops_per_token, and sequence_length or tokens_per_step, in its file",
        )  # fmt: skip
    for column in ("precision", *OF_LOSSES, "currency"):
        if len(values := sorted(map(str, said[column].dropna().unique()))) > 1:
            raise OctavoError(
                f"the runs differ in their {column}: {', '.join(values)[:200]}", where=folder.runs_table,
                expected="runs of one ladder: the same precision, text and currency",
                fix="write the runs to compare into a CSV file and give that",
            )  # fmt: skip
    return [_row(run) for run in said.to_dict("records")]


def _row(run: dict[str, Any]) -> Row:
    def known(column: str) -> float | None:
        value = run[column]
        return None if pd.isna(value) or value <= 0 else float(value)

    return Row(
        architecture=run["architecture"],
        flops=float(run["flops_per_token"]) * float(run["tokens"]),
        validation_loss=float(run["validation_loss"]),
        active_parameters=known("active_parameters"),
        total_parameters=known("total_parameters"),
        tokens=known("tokens"),
        device_hours=known("device_hours_final"),
        cost=known("cost_final"),
        seed=int(run["seed"]),
    )
