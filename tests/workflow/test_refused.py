"""An experiment file that is wrong is said alone, before any rule is looked at."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from tests.tiny import LIMIT, SNAKEMAKE, TINY, Checkout, changed, environment


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("results/tiny/report.pdf", "wrong value: 'x'\n  where:    {root}/configs/experiments/tiny.yaml:"),
        ("results/tiny/ablations/no/report.pdf", "wrong value: 'x'"),
        ("results/tiyn/plan.pdf", "a configuration file is missing\n  where:    {root}/configs/experiments/tiyn.yaml"),
    ],
)
def test_a_refused_experiment_is_one_message(tmp_path: Path, target: str, said: str) -> None:
    root = Checkout(tmp_path / "checkout", changed(TINY, {"training.steps": "x"})).root
    done = subprocess.run(
        [str(SNAKEMAKE), "--profile", "workflow/profiles/local", "--cores", "2", target],
        cwd=root, env=environment(root), capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, message = done.stderr.split("\n", 1)
    assert first.startswith("Using profile")
    assert message.startswith(f"error: {said.format(root=root)}")


def test_results_that_cannot_be_written_are_one_message(tmp_path: Path) -> None:
    """No file may be longer than half a megabyte here, which stands for a full disk: the same error of a write."""
    root = Checkout(tmp_path / "checkout").root

    def start(*options: str) -> subprocess.CompletedProcess[str]:
        limits = (1 << 19, 1 << 19)
        return subprocess.run(
            [str(SNAKEMAKE), "--profile", "workflow/profiles/local", "--cores", "2", *options, "results/tiny/plan.pdf"],
            cwd=root, env=environment(root), capture_output=True, text=True, check=False, timeout=LIMIT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        )  # fmt: skip

    done = start()
    assert done.returncode == 1
    first, message = done.stderr.split("\n", 1)
    assert first.startswith("Using profile")
    assert message.startswith(f"error: the file could not be written: File too large\n  where:    {root}/results\n")
    assert len(message.splitlines()) == 4
    assert start("--dry-run").returncode == 0  # writes nothing there
