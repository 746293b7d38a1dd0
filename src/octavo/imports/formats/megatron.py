"""`megatron_log`: console lines of Megatron-LM, Megatron-Bridge and forks that kept their form.

Source: `training_log` and `evaluate_and_print_results` of Megatron-LM's megatron/training/training.py and Megatron-
Bridge's training/utils/train_utils.py and training/eval.py:

    iteration 10/ 100 | consumed samples: 2560 | elapsed time per iteration (ms): 812.5 | ... | lm loss: 9.1E+00 | ...
    validation loss at iteration 100 on validation set | lm loss value: 8.7E+00 | lm loss PPL: 6.0E+03 |
    validation-books loss at iteration 100 | lm loss value: ...             (several validation sets)
    validation loss at the end of training for val data | lm loss value: ...   (releases up to 2023)

Each field ends with a bar, so what was cut off is left out. A loss that is not above zero is not printed, or as zero:
where a whole line says no loss, its loss was NaN; where it says zero and that iterations were skipped, none was taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from octavo.imports.formats.console import NUMBER, clock, number, one_record, read_lines
from octavo.imports.points import Point, Stated

FIELDS = {
    "consumed samples": "samples",
    "consumed tokens": "tokens",
    "lm loss": "loss",
    "load_balancing_loss": "aux_loss",
    "seq_load_balancing_loss": "aux_loss",
    "global_load_balancing_loss": "aux_loss",
    "grad norm": "grad_norm",
    "learning rate": "learning_rate",
}
"""Field -> column; of several auxiliary losses the first counts."""

_ITERATION = re.compile(r"\biteration\s+(\d+)\s*/\s*(\d+)\s*\|")
_VALIDATION = re.compile(
    r"\bvalidation(?:-(?P<set>[^|]*?))? loss at "
    r"(?:iteration (?P<step>\d+)|the end of training for (?P<data>val|test) data)(?P<test> on test set)?"
    rf"[^|]*\|(?:.*?\|)?? *lm loss value:\s*(?P<loss>{NUMBER})\s*\|",
    re.IGNORECASE,
)
_ELAPSED = "elapsed time per iteration (ms)"
_SKIPPED = "number of skipped iterations"
_AFTER_LOSS = ("loss scale", "grad norm", _SKIPPED)
"""Fields that follow the loss: where one is there and the loss is not, the loss was not cut off."""


def read(path: Path, stated: Stated) -> Iterator[Point]:
    """The points of a log."""
    reached = 0

    def line(text: str, place: str) -> Point | None:
        nonlocal reached
        if found := _VALIDATION.search(text):
            if found["test"] or found["data"] == "test":
                return None
            step = int(found["step"]) if found["step"] else reached
            return Point(step, place, validation={found["set"] or "": number(found["loss"])}, clock=clock(text))
        if _ITERATION.search(text) is None:
            return None
        point, stated.planned = _training(text, place)
        if "loss" not in point.values and not text.endswith("\n"):
            return None  # cut off before its loss
        reached = point.step
        return point

    return read_lines(path, line)


def _training(text: str, place: str) -> tuple[Point, int]:
    records = list(_ITERATION.finditer(text))
    one_record(len(records), ", ".join(f"iteration {found[1]}" for found in records))
    found = records[0]
    values: dict[str, float] = {}
    names, skipped = set(), 0
    for field in text[found.end() : text.rfind("|") + 1].split("|"):
        name, colon, said = (part.strip() for part in field.partition(":"))
        if not (colon and said):
            continue
        names.add(name)
        if name == _ELAPSED:
            values["step_seconds"] = number(said.split("/")[0]) / 1000  # some forks write a running mean behind a slash
        elif name == _SKIPPED:
            skipped = int(said)
        elif name in FIELDS:
            values.setdefault(FIELDS[name], number(said))
    if "loss" not in values and names.intersection(_AFTER_LOSS):
        values["loss"] = float("nan")
    if skipped and values.get("loss", 1) <= 0:
        values["loss"] = float("nan")
    return Point(int(found[1]), place, values, skipped=skipped, clock=clock(text)), int(found[2])
