"""Tokens made as a job of a partition for such work, on a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.experiment.load import load_experiment
from octavo.experiment.run import data_identifier
from octavo.layout import ConfigFolders, data_folder
from tests.cluster.conftest import make_checkout
from tests.cluster.slurm_cluster import ACCOUNT, SlurmCluster
from tests.cluster.test_faults import run


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_tokens_are_made_as_a_job_where_a_partition_is_named(slurm: SlurmCluster, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "octavo")
    experiment = load_experiment("tiny", ConfigFolders(checkout.root / "configs"))
    manifest = data_folder(data_identifier(experiment.file.data, experiment.file.tokenizer)) / "manifest.json"
    given = ("cpu_partition=spot", f"cpu_account={ACCOUNT}", "cpu_cores=2", "cpu_memory_mb=3000", "cpu_minutes=7")
    checkout.finish(checkout.snakemake(str(manifest), options=("--config", *given)))
    assert (checkout.root / manifest).exists()
    fields = "WorkDir,Partition,State,AllocCPUS,ReqMem,TimelimitRaw"
    rows = run("sacct", "-nXP", "-S", "now-1hour", f"--format={fields}").splitlines()
    (mine,) = (row.split("|") for row in rows if row.startswith(f"{checkout.root}|"))
    assert mine[1:] == ["spot", "COMPLETED", "2", "3000M", "7"]
