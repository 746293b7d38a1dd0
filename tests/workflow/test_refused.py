"""What cannot be run is said alone: a wrong experiment file before any rule is looked at, and before anything starts
what Slurm cannot be asked for."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.tiny import LIMIT, REPOSITORY, SNAKEMAKE, TINY, Checkout, changed, environment


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


def test_the_same_nodes_outside_of_an_allocation_are_refused_in_one_message(tmp_path: Path) -> None:
    """Before anything starts, as soon as Snakemake asks what a run needs."""
    root = Checkout(tmp_path / "checkout", changed(TINY, {"cluster": "fixed"})).root
    cluster = yaml.safe_load((REPOSITORY / "configs/clusters/h100-node.yaml").read_text())
    fixed = changed(cluster, {"slurm.same_nodes": True, "slurm.image": None, "slurm.container": "none"})
    (root / "configs/clusters/fixed.yaml").write_text(yaml.safe_dump(fixed))
    environ = {name: value for name, value in environment(root).items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [str(SNAKEMAKE), "--profile", "workflow/profiles/slurm", "results/tiny/report.pdf"],
        cwd=root, env=environ, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    first, message = done.stderr.split("\n", 1)
    assert first.startswith("Using profile")
    lines = message.splitlines()
    assert lines[0] == "error: runs are to be on the same nodes, and Slurm gives jobs of their own any nodes"
    assert lines[1] == "  where:    configs/clusters/fixed.yaml slurm.same_nodes"
    assert [line.split()[0] for line in lines[2:]] == ["to", "sbatch", "or"]
    assert not list((root / "results").iterdir())


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
