"""What a file looks like that its reader found nothing in: so that a refusal says what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import OctavoError
from octavo.imports.formats.console import lines

LOOKED_AT = 2000
"""Lines from the start of a file."""


@dataclass(frozen=True)
class Look:
    """A kind of log: what one of its lines holds, what to call it, what to do about it."""

    line: re.Pattern[str]
    what: str
    fix: str
    format: str | None = None
    """The format that reads it."""


_TABLE = "write a table of step, loss, ... and import it with format: csv"

LOOKS = (
    Look(
        re.compile(r"\biteration\s+\d+\s*/\s*\d+ \|.*\blearning rate \d.*\| lm loss [\d.]"),
        "a log of Megatron-LM as it was in 2020: no colon behind 'learning rate' and 'lm loss'",
        r"add them, sed -E 's/(learning rate|lm loss|loss scale) /\1: /g', and import the result with sequence_length "
        "or tokens_per_step",
    ),
    Look(re.compile(r":::MLLOG "), "an MLPerf log", "give format: mlperf", "mlperf"),
    Look(
        re.compile(r"\breduced_train_loss: |\biteration \d+/\d+ \| lr: "),
        "the console output of NeMo 2",
        f"import its TensorBoard files, or {_TABLE}",
    ),
    Look(re.compile(r"\biteration: \d+ / \d+ \|.*\blm_loss: "), "a log of nanotron", _TABLE),
    Look(
        re.compile(r"\biteration\s+\d+\s*/\s*\d+\s*\|.*\blm loss: "),
        "a console log of Megatron-LM or Megatron-Bridge",
        "give format: megatron_log",
        "megatron_log",
    ),
    Look(
        re.compile(r"\bstep:\s*\d+\s+loss:\s"),
        "torchtitan's console output",
        "give format: torchtitan_log",
        "torchtitan_log",
    ),
    Look(re.compile(r"^\{'loss': .*'(epoch|learning_rate)': "), "the console output of Hugging Face's Trainer", _TABLE),
    Look(re.compile(r"\bsteps: \d+ loss: [\d.]+ iter time \(s\): "), "the console output of DeepSpeed", _TABLE),
    Look(re.compile(r'^\s*\{\s*"lm loss": '), "golden values", "give format: megatron_golden", "megatron_golden"),
    Look(re.compile(r'^\s*\{"step": \d+, '), "JSON lines", _TABLE),
    Look(re.compile(r"^(\w+,)*step(,\w+)+\s*$"), "a table", "give format: csv", "csv"),
)
_WRAPPED = re.compile(r"\biteration\s+\d+\s*/\s*\d+\s*\|(?!.*(number of|loss))[^\n]*\n$")
_REST = re.compile(r"^[^|\n]*\| .*\blm loss: |^[^|\n]*\blm loss: ")


def unreadable(files: list[Path], kind: str) -> OctavoError:
    """The error for files in which no training loss was found: what they look like, and what to do."""
    found = next((look for path in files if (look := _look(path, kind))), None)
    return OctavoError(
        "no training loss was found" + (f": it looks like {found.what}" if found else ""),
        where=", ".join(map(str, files)),
        expected=f"what {kind} files look like",
        fix=found.fix
        if found
        else "choose the format that wrote it (docs/imports.md lists them), or write a table "
        "of step, loss, ... and import it with format: csv",
    )


def _look(path: Path, kind: str) -> Look | None:
    if path.is_dir() or path.name.startswith("events.out.tfevents"):
        named = "events.out.tfevents" in path.name or any(path.rglob("events.out.tfevents.*"))
        tensorboard = Look(re.compile(""), "TensorBoard's event files", "give format: tensorboard", "tensorboard")
        return tensorboard if named and kind != "tensorboard" else None
    begun = False
    try:
        for number, (_, line) in enumerate(lines(path)):
            if number >= LOOKED_AT:
                return None
            if begun and _REST.search(line) and not re.search(r"\biteration\s+\d+\s*/", line):
                return Look(
                    _REST, "a Megatron log that a terminal wrapped: one record over several lines",
                    "import the file that the program wrote, not what was copied from a screen",
                )  # fmt: skip
            begun = begun or _WRAPPED.search(line) is not None
            for look in LOOKS:
                if look.format != kind and look.line.search(line):
                    return look
    except OctavoError:
        return None
    return None
