"""An experiment file that is wrong is said alone, before any rule is looked at."""

from __future__ import annotations

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
