"""The C files on an Arm processor: compiled for aarch64 and run by qemu, every function gives this processor's bits."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Iterator
from ctypes import c_float, c_int32, c_int64, c_uint32
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.cpu import library
from octavo.cpu.sources import FLAGS, FOLDER

Array = np.ndarray[Any, Any]
Call = tuple[str, tuple[Any, ...]]

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
C_TYPES = {None: "void", c_int32: "int32_t", c_int64: "int64_t", c_uint32: "uint32_t", c_float: "float"}
E4M3 = (448.0, 2.0**-6, 1.5 * 2.0**20)
"""A format as rounding.c takes it: largest number, smallest normal one, and what is added to round to its fraction."""


def test_every_function_gives_the_same_bits(tmp_path: Path) -> None:
    if not (shutil.which(COMPILER) and EMULATOR):
        pytest.skip("needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user")
    if library.COMPILED is None:
        pytest.skip("there was no C compiler at installation")
    calls = list(some_calls())
    assert {name for name, _ in calls} == library._FUNCTIONS.keys() - {"octavo_sources", "octavo_instruction_sets"}
    there = iter(run_on_arm(calls, tmp_path))
    for name, arguments in calls:
        places = [one.ctypes.data if isinstance(one, np.ndarray) else one for one in arguments]
        getattr(library.COMPILED, name)(*places)
        for position, here in enumerate(arguments):
            if isinstance(here, np.ndarray):
                assert next(there) == here.tobytes(), f"{name}, argument {position}"


def some_calls() -> Iterator[Call]:
    """Every function with sizes that fill no vector, and numbers from subnormal to those that saturate."""
    random = np.random.default_rng(1)

    def wide(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    def narrow(*shape: int, spread: int = 0) -> Array:
        """BF16, by its bits; magnitudes over 2^-spread to 2^spread."""
        numbers = np.ldexp(wide(*shape), random.integers(-spread, spread, shape, endpoint=True))
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def room(*shape: int, kind: Any = np.uint16) -> Array:
        return np.zeros(shape, kind)

    rows, columns = 7, 83
    x, gradient, weight = narrow(rows, columns), narrow(rows, columns), narrow(columns)
    scale = np.abs(wide(rows))
    yield "octavo_rms_norm", (x, weight, room(rows, columns), room(rows, kind=np.float32), rows, columns, 1e-5)
    to_weight = room(columns, kind=np.float32)
    yield "octavo_rms_norm_gradient", (gradient, x, weight, scale, room(rows, columns), to_weight, rows, columns)

    both, probabilities = narrow(rows, 2 * columns, spread=3), np.abs(wide(rows))
    yield "octavo_swiglu", (both, probabilities, room(rows, columns), rows, columns)
    to_both, to_probabilities = room(rows, 2 * columns), room(rows, kind=np.float32)
    yield "octavo_swiglu_gradient", (gradient, both, probabilities, to_both, to_probabilities, rows, columns)

    logits, labels = narrow(rows, columns, spread=4), random.integers(0, columns, rows)
    numbers = [room(rows, kind=np.float32) for _ in range(3)]
    yield "octavo_cross_entropy", (logits, labels, *numbers, rows, columns)
    largest, total = np.full(rows, 9, np.float32), np.full(rows, 30, np.float32)
    out = room(rows, columns)
    yield "octavo_cross_entropy_gradient", (wide(rows), logits, labels, largest, total, out, rows, columns)

    for back in (0, 1):
        heads, angles = narrow(5, 2, 3, 22), wide(5, 22)
        strides = np.array([2 * 3 * 22, 3 * 22, 22], np.int64)
        turned = room(5, 2, 3, 22)
        yield "octavo_rotate", (heads, strides, np.cos(angles), np.sin(angles), turned, 5, 2, 3, 22, back)

    for window in (19, 6):
        yield "octavo_attention_weights", (4 * wide(2, 19, 19), room(2, 19, 19), 2, 19, window, 0.25)
        attended = narrow(2, 19, 19) & 0x7FFF  # positive
        yield "octavo_attention_weights_gradient", (wide(2, 19, 19), attended, room(2, 19, 19), 2, 19, window, 0.25)

    for scored in (11, columns):
        weights = room(rows, scored, kind=np.float32)
        yield "octavo_softmax", (20 * wide(rows, scored), weights, rows, scored)
        yield "octavo_softmax_gradient", (wide(rows, scored), np.abs(wide(rows, scored)), weights.copy(), rows, scored)

    counts, factors = np.array([13, 0, 30], np.int64), np.array([1.0, 2.0, 0.3], np.float32)
    tokens, (into, out_of) = 43, (37, 53)
    of_tokens = {0: (into, 0, tokens * out_of), 1: (out_of, 0, tokens * into), 2: (out_of, into, 3 * into * out_of)}
    for product, (left, right, results) in of_tokens.items():
        for write_as in (0, 1, 2):
            operand = narrow(tokens, right) if right else narrow(3, out_of, into)
            written = wide(results) if write_as == 2 else room(results, kind=(np.uint16, np.float32)[write_as])
            places = narrow(tokens, left), operand, written, counts, factors
            yield "octavo_multiply", (product, 0, write_as, 0, *places, 3, into, out_of)

    few = np.array([0.5, -1.5, 3.0, 0.0625, -448.0], np.float32)
    a, b = random.choice(few, (5, 96)), random.choice(few, (96, 64))
    fields = (b.view(np.uint32) >> 23 & 0xFF).astype(np.int16)
    for promotion in (0, 64):
        summed = room(5, 64, kind=np.float32)
        yield "octavo_accumulate", (a, b, fields, summed, 5, 64, 96, 32, 13, 0xFFFFFC00, promotion)

    values = narrow(9, 300, spread=12)
    sizes, scales = np.array([700, 0, 2000], np.int64), np.array([7.5, 1.0, 0.1], np.float32)
    yield "octavo_amax", (values, 3, sizes, room(3, kind=np.float32))
    yield "octavo_quantise", (values, room(9, 300), 3, sizes, scales, *E4M3)
    for block in (32, 128, 50):
        yield "octavo_quantise_rows", (values, room(9, 300), 9, 300, block, *E4M3)
    tall, most, floor = np.array([4, 5], np.int64), room(300, kind=np.int16), room(300, kind=np.float32)
    yield "octavo_quantise_blocks", (values, room(9, 300), 2, tall, 300, 4, 128, *E4M3, most, floor)

    lines = [
        {"a": number, "b": 1 / (number + 1), "c": {"d": -number / 3e9, "e": None}, "f": [[number / 7, 0.1], []]}
        for number in range(40)
    ]
    text = np.frombuffer("".join(json.dumps(line) + "\n" for line in lines).encode(), np.uint8)
    asked = np.array([(0, 1, 0, 0), (1, 1, 1, 1), (2, 1, 2, 2), (3, 1, 3, 3), (4, 1, 3, 4), (5, 1, 4, 5)], np.int32)
    columns = room(6, 40, kind=np.uint64), room(6, 40, kind=np.uint8), room(41, kind=np.int32)
    loads = room(len(text) // 2 + 1, kind=np.int32), room(len(text) // 2 + 1, kind=np.float32)
    names = np.frombuffer(b"abcdef", np.uint8)
    yield "octavo_read_lines", (text, len(text), 40, names, asked, len(asked), *columns, *loads)


def run_on_arm(calls: list[Call], folder: Path) -> list[bytes]:
    """What is in each call's arrays after it, in their order, when a program of all calls ran for aarch64."""
    lines, arrays = [], [one for _, arguments in calls for one in arguments if isinstance(one, np.ndarray)]
    for name, (result, arguments) in library._FUNCTIONS.items():
        taken = ", ".join(C_TYPES.get(one, "void *") for one in arguments) or "void"
        lines.append(f"{C_TYPES.get(result, 'const char *')} {name}({taken});")
    lines.append("int main(void) {")
    lines += [f"static char place{n}[{array.nbytes}] __attribute__((aligned(64)));" for n, array in enumerate(arrays)]
    lines += [f"if (!fread(place{n}, {array.nbytes}, 1, stdin)) return 1;" for n, array in enumerate(arrays)]
    numbers = iter(range(len(arrays)))
    for name, arguments in calls:
        passed = [f"place{next(numbers)}" if isinstance(one, np.ndarray) else spelt(one) for one in arguments]
        lines.append(f"{name}({', '.join(passed)});")
    lines += [f"fwrite(place{n}, {array.nbytes}, 1, stdout);" for n, array in enumerate(arrays)]
    program = folder / "calls.c"
    program.write_text("#include <stdint.h>\n#include <stdio.h>\n" + "\n".join(lines) + "\nreturn 0; }\n")
    sources = [program, *sorted(FOLDER.glob("*.c"))]
    built = [COMPILER, *FLAGS, "-static", '-DOCTAVO_SOURCES=""', *map(str, sources), "-o", "calls", "-lm"]
    subprocess.run(built, cwd=folder, check=True)
    assert EMULATOR is not None
    command = [EMULATOR, "./calls"]
    ran = subprocess.run(command, cwd=folder, input=b"".join(map(bytes, arrays)), capture_output=True, check=True)
    ends = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
    assert len(ran.stdout) == ends[-1]
    return [ran.stdout[begin:end] for begin, end in pairwise(ends)]


def spelt(number: float) -> str:
    """A number in C, to the bit."""
    return str(number) if isinstance(number, int) else f"{ctypes.c_float(number).value.hex()}f"
