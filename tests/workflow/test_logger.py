"""What a person sees while the pipeline works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_logger_plugin_octavo import last_step, run_folder

SNAKEFILE = """
rule all:
    input: "data.txt", "bad.txt"

rule data:
    output: "data.txt"
    shell: "touch {output}"

rule bad:
    output: "bad.txt"
    log: "bad.log"
    shell: "echo 'error: no such thing' > {log}; exit 1"
"""


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "snakemake"
    command = [str(program), "--cores", "1", "--keep-going", "--show-failed-logs", "--logger", "octavo", *options]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_a_log_has_one_line_as_a_job_starts_and_ends_and_the_log_of_the_one_that_failed(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = snakemake(tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert sum("start  text to tokens" in line for line in lines) == 1
    assert sum("done   text to tokens" in line for line in lines) == 1
    assert any("done   bad" in line for line in lines) is False
    assert "error: no such thing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_is_printed_as_snakemake_words_it(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert "rule bad" in done.stdout + done.stderr


@pytest.mark.parametrize("padding", [0, 10_000])
def test_progress_is_the_last_whole_training_line(tmp_path: Path, padding: int) -> None:
    """Validations have no loss; the line that a writer has not finished does not count; only the tail is read."""
    lines = [{"step": step, "loss": 5.0 / step, "note": "x" * (padding // 10)} for step in range(1, 11)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 10, "validation_loss": 1.0}])
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + '{"step": 11, "lo')
    point = last_step(path)
    assert point is not None
    assert (point["step"], point["loss"]) == (10, 0.5)


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert last_step(tmp_path / "metrics.jsonl") is None


def test_a_training_job_belongs_to_a_run_folder() -> None:
    folder = run_folder({"experiment": "laptop", "cell": "moe-bf16", "seed": "2"})
    assert folder.metrics == Path("results/laptop/runs/moe-bf16/seed-2/metrics.jsonl")
