"""How cost grows with runs, steps and text: processor time and memory, each figure with its bar, peers in the same run.

    .venv/bin/python benchmarks/scale.py [status] [steps] [tables] [graph] [text] [--full] [--folder FOLDER]

Every figure is measured at two sizes, the whole and a tenth of it (of the graph, a fifth); its growth exponent is
log(cost ratio) / log(size ratio), with what a program costs at any size in it: 1 is linear. The sizes are those of the
bars with `--full` (10,000 runs, a million steps, 1 GB of text: about 5 GB of disk and 20 minutes), and a tenth of them
without. Bars are printed and left to the reader; those on seconds and memory are of the sizes with `--full`. Processor
time is user and system time of the process and its children; nothing is read from a disk that was not written just
before.

polars and duckdb, the peers of the tables, are no dependencies: `pip install polars duckdb` into the environment, or
the line says that they are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from aggregation import write_runs  # noqa: E402
from dag import BARE, SNAKEMAKE, write_grid  # noqa: E402

OCTAVO = Path(sys.executable).parent / "octavo"
Cost = tuple[float, float]
"""Processor seconds, and peak memory in MiB."""


def cost(command: list[str | Path], folder: Path) -> Cost:
    """Of a program in a folder; its output is thrown away."""
    environment = {**os.environ, "OCTAVO_ROOT": str(folder), "PATH": f"{OCTAVO.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [str(part) for part in command], cwd=folder, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed in {folder}: {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def python(code: str, folder: Path, *arguments: str | Path) -> Cost:
    """`cost` of a program text."""
    return cost([sys.executable, "-c", code, *arguments], folder)


def line(what: str, sizes: tuple[int, int], costs: tuple[Cost, Cost], bar: str = "") -> None:
    """Print a figure at both sizes, how it grows, and its bar."""
    (small, _), (large, memory) = costs
    growth = math.log(large / small) / math.log(sizes[1] / sizes[0])
    print(f"{what:44} {sizes[0]:>9,}: {small:7.2f} s  {sizes[1]:>10,}: {large:7.2f} s {memory:6.0f} MiB"
          f"  exponent {growth:4.2f}{'  bar: ' + bar if bar else ''}", flush=True)  # fmt: skip


def ratio(what: str, ours: float, theirs: float, bar: float) -> None:
    """Print what ours costs over a peer's, and the bar."""
    print(f"{what:44} ratio {ours / theirs:.2f}  bar: {bar}  {'met' if ours <= bar * theirs else 'MISSED'}", flush=True)


def grids(root: Path, runs: int, steps: int) -> tuple[Path, Path]:
    """Two grids of finished runs, a tenth and the whole."""
    folders = root / "tenth", root / "whole"
    for folder, count in zip(folders, (runs // 10, runs), strict=True):
        if not folder.exists():
            folder.mkdir(parents=True)
            write_runs(folder, count, steps)
    return folders


def status(root: Path, runs: int) -> None:
    """`octavo status` of a grid."""
    small, large = (cost([OCTAVO, "status", "results/synthetic"], folder) for folder in grids(root, runs, 1000))
    line("octavo status, runs", (runs // 10, runs), (small, large), "5 s at 10,000 runs of 1,000 steps")


POLARS = """
import sys; from pathlib import Path; import polars as pl
schema = {name: pl.Int64 for name in ("step", "tokens", "attempt", "memory_bytes")}
schema |= {name: pl.Float64 for name in ("loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds",
    "tokens_per_second", "model_tflops", "validation_loss", "validation_bits_per_byte")}
operands = pl.Struct({name: pl.Float64 for name in ("input", "weight", "gradient")})
schema |= {"fp8_underflow": operands, "fp8_overflow": operands, "fp8_amax": operands}
schema |= {"fp8_product_error": pl.Struct({n: pl.Float64 for n in ("forward", "input_gradient", "weight_gradient")})}
schema |= {"expert_load": pl.List(pl.List(pl.Float32))}
files = sorted(Path(sys.argv[1]).glob("runs/*/seed-*/metrics.jsonl"))
pl.scan_ndjson(files, schema=schema, include_file_paths="run").sink_parquet(sys.argv[2], compression="zstd",
    compression_level=1)
"""
DUCKDB = """
import sys, duckdb
three = lambda *names: "STRUCT(" + ", ".join(f"{name} DOUBLE" for name in names) + ")"
columns = dict.fromkeys(("step", "tokens", "attempt", "memory_bytes"), "BIGINT")
columns |= dict.fromkeys(("loss", "aux_loss", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second",
    "model_tflops", "validation_loss", "validation_bits_per_byte"), "DOUBLE")
columns |= dict.fromkeys(("fp8_underflow", "fp8_overflow", "fp8_amax"), three("input", "weight", "gradient"))
columns |= {"fp8_product_error": three("forward", "input_gradient", "weight_gradient"), "expert_load": "FLOAT[][]"}
duckdb.sql(f"COPY (SELECT * FROM read_json('{sys.argv[1]}/runs/*/seed-*/metrics.jsonl', format='newline_delimited', "
    f"columns={columns}, filename=true)) TO '{sys.argv[2]}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
"""


AGGREGATE: list[str | Path] = [OCTAVO, "aggregate", "results/synthetic"]


def tables(root: Path, runs: int) -> None:
    """`octavo aggregate` against polars and duckdb, which make one table of the same columns of the same files.

    They check no hashes, leave the lines of replaced steps in, and join no validation to its step. Afterwards the same
    with all but one run read before.
    """
    folders = grids(root, runs, 1000)
    small, large = (from_nothing(folder) for folder in folders)
    line("octavo aggregate, runs", (runs // 10, runs), (small, large))
    peers = {}
    for name, code in (("polars", POLARS), ("duckdb", DUCKDB)):
        if subprocess.run([sys.executable, "-c", f"import {name}"], check=False, capture_output=True).returncode:
            print(f"{name} is not installed: not compared")
            continue
        arguments = "results/synthetic", root / f"{name}.parquet"
        one, other = (python(code, folder, *arguments) for folder in folders)
        line(f"{name}, the same files", (runs // 10, runs), (one, other))
        peers[other[0]] = name
    if peers:
        ratio(f"octavo aggregate over the faster, {peers[min(peers)]}", large[0], min(peers), 1.3)
    small, large = (with_one_more(folder) for folder in folders)
    line("octavo aggregate, one run more", (runs // 10, runs), (small, large), "3 s at 10,000 runs of 1,000 steps")


def from_nothing(folder: Path) -> Cost:
    """Of tables of runs of which none was read before."""
    shutil.rmtree(folder / "results/synthetic/.parts", ignore_errors=True)
    return cost(AGGREGATE, folder)


def with_one_more(folder: Path) -> Cost:
    """Of the tables of a grid after those of all its runs but one."""
    run, beside = folder / "results/synthetic/runs/moe-bf16/seed-3", folder / "beside"
    run.rename(beside)
    cost(AGGREGATE, folder)
    beside.rename(run)
    return cost(AGGREGATE, folder)


END = "from octavo.layout import RunFolder; from pathlib import Path; import sys; "
RESTART = END + "from octavo.training.journal import close_dangling; close_dangling(RunFolder(Path(sys.argv[1])))"
NOTHING = END + "from octavo.training.journal import close_dangling"


def steps(root: Path, count: int) -> None:
    """One long run: status and verification, and its restart after a kill."""
    made = []
    for number in (count // 10, count):
        folder = root / f"steps-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            write_runs(folder, 4, number)
            for cell in ("dense-bf16", "dense-fp8_blockwise", "moe-bf16"):  # one run is left, the longest
                shutil.rmtree(folder / "results/synthetic/runs" / cell)
        made.append(folder)
    sizes = count // 10, count
    for what, command in {
        "octavo status, steps": [OCTAVO, "status", "results/synthetic"],
        "octavo aggregate, steps": [OCTAVO, "aggregate", "results/synthetic"],
        "octavo verify --sample 0, steps": [OCTAVO, "verify", "results/synthetic", "--sample", "0", "--record"],
    }.items():
        small, large = (cost(command, folder) for folder in made)
        line(what, sizes, (small, large), "300 MiB at 1,000,000 steps")
    costs = []
    for folder in made:
        run = folder / "results/synthetic/runs/moe-fp8_blockwise/seed-1"
        attempt = {**json.loads((run / "attempts.jsonl").read_text()), "end": None, "exit_reason": None}
        (run / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
        seconds, memory = python(RESTART, folder, run)
        costs.append((max(seconds - python(NOTHING, folder, run)[0], 0.001), memory))
    line("restart after a kill, without imports, steps", sizes, (costs[0], costs[1]), "0.5 s at any length")


def graph(root: Path, runs: int) -> None:
    """`snakemake -n` against a bare Snakefile with as many jobs."""
    ours, theirs = [], []
    for number in (runs // 5, runs):
        grid, bare = root / f"grid-{number}", root / f"bare-{number}"
        if not grid.exists():
            bare.mkdir(parents=True)
            (bare / "Snakefile").write_text(BARE.format(seeds=number // 4))
            grid.mkdir()
            write_grid(grid, number)
        command = [SNAKEMAKE, "--dry-run", "--cores", "2"]
        profile = ["--profile", "workflow/profiles/local", "results/grid/report.pdf"]
        pairs = [(cost([*command, *profile], grid), cost([*command, "report.txt"], bare)) for _ in range(3)]
        ours.append(min(pair[0] for pair in pairs))  # the least disturbed
        theirs.append(min(pair[1] for pair in pairs))
        ratio(f"snakemake -n over a bare Snakefile, {number:,} runs", ours[-1][0], theirs[-1][0], 1.5)
    line("snakemake -n, runs", (runs // 5, runs), (ours[0], ours[1]))
    line("the same of a bare Snakefile", (runs // 5, runs), (theirs[0], theirs[1]))


PREPARE = """
import sys; from pathlib import Path; from rich.console import Console
from octavo.data.prepare import prepare; from octavo.experiment.config import Data, FileTokenizer
text, made = Path(sys.argv[1]), Path(sys.argv[2])
data = Data.model_validate({"sources": [{"kind": "files", "path": str(text)}], "validation_fraction": 0.05})
prepare(data, FileTokenizer.model_validate({"kind": "file", "path": sys.argv[3],
    "end_of_document": "<|end_of_document|>"}), made, Console(quiet=True))
"""
ENCODE = """
import json, sys; from itertools import islice; import tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2]); tokenizer.encode_special_tokens = True
with open(sys.argv[1] + "/all.jsonl") as lines:
    while batch := [json.loads(line)["text"] for line in islice(lines, 1000)]:
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)
"""


def text(root: Path, size: int) -> None:
    """`octavo data` against the library's own batches over the same documents, both with what their start costs."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    words = sorted({word for path in REPOSITORY.glob("docs/*.md") for word in path.read_text().split()})
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<|end_of_document|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    trained.train_from_iterator((path.read_text() for path in REPOSITORY.glob("docs/*.md")), trainer)
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = root / "tokenizer.json"
    trained.save(str(tokenizer))
    generator, ours, theirs = random.Random(1), [], []
    for bytes_ in (size // 10, size):
        folder = root / f"text-{bytes_}"
        if not folder.exists():
            folder.mkdir()
            with (folder / "all.jsonl").open("w") as file:
                while file.tell() < bytes_:
                    file.write(json.dumps({"text": " ".join(generator.choices(words, k=400))}) + "\n")
        shutil.rmtree(root / f"set-{bytes_}", ignore_errors=True)
        ours.append(python(PREPARE, REPOSITORY, folder, root / f"set-{bytes_}", tokenizer))
        theirs.append(python(ENCODE, REPOSITORY, folder, tokenizer))
    line("octavo data, bytes", (size // 10, size), (ours[0], ours[1]))
    line("encode_batch_fast, the same bytes", (size // 10, size), (theirs[0], theirs[1]))
    ratio("octavo data over encode_batch_fast", ours[1][0], theirs[1][0], 1.1)


FIGURES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "status": (status, 10_000),
    "steps": (steps, 1_000_000),
    "tables": (tables, 10_000),
    "graph": (graph, 10_000),
    "text": (text, 1_000_000_000),
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", default=list(FIGURES), metavar="figure", help=", ".join(FIGURES))
    parser.add_argument("--full", action="store_true", help="the sizes of the bars, not a tenth of them")
    parser.add_argument("--folder", type=Path, help="a folder with space, whose grids are used again; else a temporary")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="octavo-scale-"))
    try:
        for name in options.figures:
            measure, size = FIGURES[name]
            # one folder for all: status and tables are measured on the same grids
            measure(root / ("full" if options.full else "tenth"), size if options.full else size // 10)
    finally:
        if not options.folder:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
