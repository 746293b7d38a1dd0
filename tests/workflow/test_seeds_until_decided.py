"""The pipeline trains further seeds of what is not decided, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from pypdf import PdfReader

from tests.tiny import TINY, Checkout, changed

CLAIM = {"title": "A claim", "text": "A claim.", "source": "this test", "needs": "runs", "metric": "loss_difference"}
CLAIMS = {
    # dense models in FP8 are certainly within 50 % of BF16's loss; whether the mixture's are below is up to chance
    "90-decided": {
        "expectation": {"within": 50},
        "comparison": {"pairs": "precision", "cell": {"architecture": "dense"}},
    },
    "91-open": {"expectation": {"below": 0}, "comparison": {"pairs": "precision", "cell": {"architecture": "moe"}}},
}


def test_seeds_are_added_to_undecided_comparisons_alone_until_there_are_no_more(tmp_path: Path) -> None:
    design = {"seeds": {"from": 2, "to": 3}, "claims": list(CLAIMS), "training.steps": 100}
    checkout = Checkout(tmp_path, changed(TINY, {**design, "training.checkpoints.interval": 100}))
    for number, (name, claim) in enumerate(CLAIMS.items(), 90):
        path = tmp_path / "configs" / "claims" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"number": number, **CLAIM, **claim}))
    target = "results/tiny/claims.json"
    folder = tmp_path / "results" / "tiny"
    said = checkout.snakemake("results/tiny/first-report.json")
    assert "results/tiny/report.pdf stands: a first report, after 2 of up to 3 seeds; more are running" in said
    assert "First report, after 2 of up to 3 seeds" in " ".join(
        PdfReader(folder / "report.pdf").pages[0].extract_text().split()
    )
    assert "First report, after 2 of up to 3 seeds" in (folder / "report.html").read_text()
    assert not (folder / "claims.json").exists()
    # ended here, the report is still to be made
    assert "rule report:" in checkout.snakemake("results/tiny/report.pdf", "--dry-run")
    checkout.snakemake(target)
    trained = {path.parent.name: set() for path in folder.glob("runs/*/seed-*")}
    for path in folder.glob("runs/*/seed-*/result.json"):
        trained[path.parent.parent.name].add(path.parent.name)
    two, three = {"seed-1", "seed-2"}, {"seed-1", "seed-2", "seed-3"}
    assert trained == {"dense-bf16": two, "dense-fp8_blockwise": two, "moe-bf16": three, "moe-fp8_blockwise": three}
    assert [path.name for path in sorted(folder.glob("looks/*"))] == ["2.json"]
    verdicts = {claim["number"]: claim for claim in json.loads((tmp_path / target).read_text())["claims"]}
    assert verdicts[90]["verdict"] == "supported"
    assert verdicts[90]["effect"]["n"] == 2
    assert verdicts[91]["effect"]["n"] == 3
    written = (tmp_path / target).stat().st_mtime_ns
    assert "to train" not in checkout.snakemake(target)
    assert (tmp_path / target).stat().st_mtime_ns == written
    assert "10 runs asked for so far, 12 at most" in checkout.octavo("status", "tiny")
