"""What a person sees while the pipeline works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.records import FirstReport
from snakemake_logger_plugin_octavo import last_step, left, run_folder

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
    assert any("FAILED bad: no such thing" in line for line in lines)
    assert "Traceback" not in done.stderr


FAILURES = """
rule all:
    input: "error.txt", "killed.txt", "silent.txt", "saved.txt"

rule error:
    output: "error.txt"
    log: "error.log"
    shell:
        "echo 'error: the disk is full\\n  where:    results/e\\n  to do:    free some' >> {log};"
        "echo later >> {log}; exit 1"

rule killed:
    output: "killed.txt"
    log: "killed.log"
    shell: "echo 'step 7' > {log}; kill -KILL $$"

rule silent:
    output: "silent.txt"
    shell: "exit 3"

rule saved:
    output: "saved.txt"
    shell: "exit 75"
"""


def test_a_failure_is_the_job_the_reason_and_the_log_and_no_banner(tmp_path: Path) -> None:
    """At once, and again at the end. What an earlier try wrote into the log is gone when this one fails."""
    (tmp_path / "Snakefile").write_text(FAILURES)
    (tmp_path / "error.log").write_text("error: of an earlier try\n")
    (tmp_path / "killed.log").write_text("error: of an earlier try\n")
    done = snakemake(tmp_path)
    assert done.returncode == 1
    said = re.sub(r"\d\d:\d\d:\d\d ", "", done.stderr)
    assert (
        "FAILED error: the disk is full\n  where:    results/e\n  to do:    free some\n  log:      error.log\n" in said
    )
    killed = "it was ended by SIGKILL from outside, perhaps for want of memory"
    assert f"FAILED killed: {killed}\n  log:      killed.log\n" in said
    assert "FAILED silent: it ended with status 3 and without a word\n" in said
    assert "left   saved: it saved, and goes on from there\n" in said
    end = said.partition("3 jobs failed:\n")[2]
    assert sorted(end.splitlines()[:3]) == [
        "  error: the disk is full", f"  killed: {killed}", "  silent: it ended with status 3 and without a word",
    ]  # fmt: skip
    assert "the same command goes on from there" in end
    for banner in ("Error in rule", "CalledProcessError", "RuleException", "Exiting because", "jobid:", "earlier try"):
        assert banner not in said, banner


def test_a_dry_run_is_printed_as_snakemake_words_it(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert "rule bad" in done.stdout + done.stderr


def test_a_run_that_starts_is_said_to_take_what_the_plan_says(tmp_path: Path) -> None:
    """A shorter run has a row of its own; without a plan nothing is said."""
    rules = 'rule all:\n    input: "results/e/runs/a/seed-1/done", "results/e/runs/a/seed-1/horizon-10/done"\n\n'
    rules += 'rule train:\n    output: "results/{experiment}/runs/{cell}/seed-{seed}/done"\n'
    (tmp_path / "Snakefile").write_text(rules + '    wildcard_constraints: cell="[^/]+"\n    shell: "touch {output}"\n')
    (tmp_path / "results/e").mkdir(parents=True)
    plan = tmp_path / "results/e/plan.csv"
    plan.write_text("cell,hours_per_run\na,0.5\na@10,0.01\n")
    lines = snakemake(tmp_path).stderr.splitlines()
    assert sum("start  train a seed 1 (0:30:00 by the plan)" in line for line in lines) == 1
    assert sum("start  train a seed 1/horizon-10 (0:00:36 by the plan)" in line for line in lines) == 1
    plan.unlink()
    again = snakemake(tmp_path, "--forceall").stderr.splitlines()
    assert sum(line.endswith("start  train a seed 1") for line in again) == 1


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


def test_time_left_is_that_of_the_pace_so_far() -> None:
    """Four runs in 40 s: ten seconds each, whatever runs side by side; nothing is said after two."""
    assert left(40.0, 4, 25) == "about 0:04:10 left"
    assert left(20.0, 2, 25) == ""
    assert left(40.0, 4, 0) == ""


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert last_step(tmp_path / "metrics.jsonl") is None


def test_a_training_job_belongs_to_a_run_folder() -> None:
    folder = run_folder({"experiment": "laptop", "cell": "moe-bf16", "seed": "2"})
    assert folder.metrics == Path("results/laptop/runs/moe-bf16/seed-2/metrics.jsonl")


APPEARING = """
rule all:
    input: "unforeseen.txt"

rule report:
    input: "results/e/first-report.json"
    output: "results/{scope}/report.pdf", "results/{scope}/report.html"
    shell: "touch {output}"

rule first_report:
    output: "results/{scope}/first-report.json"
    shell: "touch results/e/report.pdf results/e/report.html unforeseen.txt; cp first.json {output}"

rule other:
    input: "results/e/report.pdf"
    output: "unforeseen.txt"
    shell: "touch {output}"
"""


def test_a_first_report_in_the_place_of_the_whole_one_is_no_warning_other_files_are(tmp_path: Path) -> None:
    """Snakemake warns of outputs that appear while it works: of those that a first report is written to on purpose
    nothing is said, of others it is."""
    (tmp_path / "Snakefile").write_text(APPEARING)
    first = FirstReport(seeds=3, first_look=4, most=9, stands=True)
    (tmp_path / "first.json").write_text(first.model_dump_json())
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "results/e/report.pdf stands: a first report, after 3 of up to 9 seeds" in done.stderr
    assert "output files of rule other were not present when the DAG was created" in done.stderr
    assert "rule report were not present" not in done.stderr
