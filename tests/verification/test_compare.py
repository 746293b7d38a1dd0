"""Bits are compared, not digits; tolerances are what seeds do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from pypdf import PdfReader
from synthetic import hashes
from typer.testing import CliRunner

from octavo.cli import app
from octavo.errors import OctavoError
from octavo.evidence.verdicts import read_claims
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, ExperimentFolder, configs
from octavo.records import read_record
from octavo.verification.compare import counted_metrics, first_difference
from octavo.verification.reference import Reference, compare, write_reference
from octavo.verification.tolerance import seed_spread

REFERENCES = Path(__file__).resolve().parents[2] / "results" / "reference"


def test_one_bit_is_a_difference() -> None:
    loss = 3.25
    left = {1: {"loss": loss}, 2: {"loss": loss, "grad_norm": 1.0}}
    right = {1: {"loss": loss}, 2: {"loss": math.nextafter(loss, 4), "grad_norm": 1.0}}
    found = first_difference(left, right)
    assert found is not None
    assert (found.step, found.fields) == (2, ["loss"])
    assert first_difference(left, right, until=1) is None
    assert first_difference(left, {1: left[1]}) is not None  # a step that is missing


def test_what_an_attempt_did_again_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "tokens": 8, "time": 0.0, "attempt": 1, "loss": 5.0},
        {"step": 2, "tokens": 16, "time": 0.0, "attempt": 1, "loss": 9.0},
        {"step": 2, "tokens": 16, "time": 9.0, "attempt": 2, "loss": 4.0, "step_seconds": 1.0},
        {"step": 2, "tokens": 16, "time": 9.0, "attempt": 2, "validation_loss": 4.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    assert counted_metrics(path) == {1: {"loss": 5.0}, 2: {"loss": 4.0, "validation_loss": 4.5}}


def test_a_reference_tells_same_from_alike_from_different(folder: ExperimentFolder, tmp_path: Path) -> None:
    published = tmp_path / "reference"
    path = write_reference(folder, published)
    found = {one.run: one.status for one in compare(folder, published).checks}
    assert found.pop("hours and cost") == "not testable here"  # never a verdict
    assert set(found.values()) == {"identical"}

    value = json.loads(path.read_text())
    losses = {(one["cell"], one["seed"]): one["validation_loss"] for one in value["runs"]}
    spread = seed_spread((cell, loss) for (cell, _), loss in losses.items())
    assert spread is not None
    tolerance = spread.tolerance(2)  # the two seeds of a cell
    factors = {"dense-bf16": 1 + 0.8 * tolerance, "moe-bf16": 1 + 1.2 * tolerance}
    for one in value["runs"]:
        one["validation_loss"] *= factors.get(one["cell"], 1.0)
        if one["cell"] == "moe-fp8_blockwise":
            one["data_manifest_sha256"] = "f" * 64
    value["environment"]["packages.torch"] = ["2.12.0", "2.13.0"]
    claim = next(one for one in value["claims"] if one["verdict"] == "supported" and one["name"] not in TIMED_CLAIMS)
    claim["verdict"] = "refuted"
    path.write_text(json.dumps(value))
    checks = {one.run: one for one in compare(folder, published).checks}
    assert checks["dense-bf16"].status == "equal within tolerance"
    assert checks["moe-bf16"].status == "different"
    assert checks["dense-fp8_blockwise"].status == "identical"
    assert checks["moe-fp8_blockwise"].status == "different"
    assert "trained on other text" in checks["moe-fp8_blockwise"].note
    assert checks["environment"].status == "not testable here"  # sameness to the last bit
    assert "packages.torch: 2.13.0, published 2.12.0 and 2.13.0" in checks["environment"].note
    assert checks[f"claim {claim['number']}"].status == "different"


TIMED_CLAIMS = ("01-moe-saves-device-hours", "03-fp8-is-faster", "12-a-tenth-of-the-money")
"""What rests on device-hours, on the time of a step, and on money."""


def test_on_another_machine_a_verdict_that_rests_on_time_is_not_compared(
    folder: ExperimentFolder, tmp_path: Path
) -> None:
    """All losses are the same bits there: it is a success, and says how far apart the effects are."""
    path = write_reference(folder, tmp_path)
    value = json.loads(path.read_text())
    (one,) = [one for one in value["claims"] if one["name"] == TIMED_CLAIMS[0]]
    other = {"supported": "refuted", "refuted": "supported", "inconclusive": "supported"}[one["verdict"]]
    one |= {"verdict": other, "effect": {**one["effect"], "value": 9.0, "low": 8.5, "high": 9.5}}
    path.write_text(json.dumps(value))
    assert {check.run: check.status for check in compare(folder, path).checks}["claim 1"] in (
        "different",
        "not compared",
    )

    value["environment"]["hardware.cpu_model"] = ["another"]
    path.write_text(json.dumps(value))
    done = CliRunner().invoke(app, ["compare", "results/synthetic", str(path)])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if " claim 1 " in line]
    assert "not compared" in line
    assert f"published {other} (9 ratio, 8.5 to 9.5): the intervals do not overlap" in line
    runs, claims = len(value["runs"]), len(value["claims"])
    assert done.stdout.splitlines()[-1] == (
        f"passed: {path}: losses identical {runs} of {runs}, verdicts {claims - 1} the same, 1 rests on time"
    )


@pytest.mark.parametrize(
    ("own", "published", "status"),
    [
        ("supported", "supported", "identical"),
        ("supported", "refuted", "different"),
        ("refuted", "supported", "different"),
        ("inconclusive", "supported", "not compared"),
        ("refuted", "not testable here", "not compared"),
    ],
)
def test_only_supported_against_refuted_is_different(
    folder: ExperimentFolder, tmp_path: Path, own: str, published: str, status: str
) -> None:
    path = write_reference(folder, tmp_path)
    value, claims = json.loads(path.read_text()), json.loads(folder.claims.read_text())
    value["claims"] = [{**one, "verdict": published} for one in value["claims"] if one["number"] == 2]
    claims["claims"] = [{**one, "verdict": own} for one in claims["claims"] if one["number"] == 2]
    path.write_text(json.dumps(value))
    folder.claims.write_text(json.dumps(claims))
    assert [one.status for one in compare(folder, path).checks if one.run == "claim 2"] == [status]


def test_what_rests_on_time_is_told_by_metric_and_axis(folder: ExperimentFolder) -> None:
    assert tuple(one.name for one in read_claims(configs()) if one.rests_on_time) == TIMED_CLAIMS


def test_a_reference_rests_on_no_time(folder: ExperimentFolder, tmp_path: Path) -> None:
    """Made again, a run is the same but for its times: so is its reference but for hours and cost."""
    before = json.loads(write_reference(folder, tmp_path / "before").read_text())
    for run in folder.run_folders():
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        run.metrics.write_text("".join(json.dumps({**one, "time": one["time"] + 7.0}) + "\n" for one in lines))
    after = json.loads(write_reference(folder, tmp_path / "after").read_text())
    assert before == after
    first = before["runs"][0]
    table = pd.read_parquet(folder.runs_table).set_index(["cell", "seed"]).loc[(first["cell"], first["seed"])]
    for name in ("validation_loss", "device_hours_final", "cost_all_in", "tokens"):
        assert first[name] == table[name]


def test_a_reference_of_another_experiment_is_refused(folder: ExperimentFolder, tmp_path: Path) -> None:
    path = write_reference(folder, tmp_path)
    path.write_text(path.read_text().replace('"experiment": "synthetic"', '"experiment": "laptop"', 1))
    with pytest.raises(OctavoError, match="the reference is of the experiment laptop"):
        compare(folder, path)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in REFERENCES.glob("*/reference.json")))
def test_the_published_references_are_of_these_experiments(name: str) -> None:
    """`octavo bundle results/<experiment> --reference` makes them again."""
    found = read_record(REFERENCES / name / "reference.json", Reference, made_by="octavo bundle --reference")
    experiment = load_experiment(name, ConfigFolders(REFERENCES.parents[1] / "configs"))
    runs = {(one.cell, one.seed): one.run_fingerprint for one in found.runs}
    assert runs == {one: experiment.run(*one).run_fingerprint for one in runs}
    assert runs.keys() >= {(cell, seed) for cell in experiment.cells for seed in experiment.file.first_seeds}


def test_names_from_files_reach_no_shell_and_no_markup(folder: ExperimentFolder) -> None:
    """What a run's error says is text in every table: nothing is run, nothing becomes HTML."""
    from tests.tiny import octavo

    name = '<script>alert(1)</script> #read("/etc/passwd") $(touch owned) `touch owned`'
    path = folder.run("moe-bf16", 1).attempts
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "error": name, "host": name, "nodes": [name]}) + "\n")
    provenance = folder.run("moe-bf16", 1).provenance
    made = json.loads(provenance.read_text())
    made["hardware"]["cpu_model"] = name
    provenance.write_text(json.dumps(made))
    result = folder.run("moe-bf16", 1).result
    result.write_text(json.dumps({**json.loads(result.read_text()), "files_sha256": hashes(folder.run("moe-bf16", 1))}))
    root = Path.cwd()
    for verb in ("aggregate", "claims", "figures", "report"):
        done = octavo(root, verb, "results/synthetic")
        assert done.returncode == 0, done.stderr
    assert not list(root.rglob("owned"))
    page = folder.report_html.read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    typeset = "".join("".join(one.extract_text() for one in PdfReader(folder.report_pdf).pages).split())
    for part in ("<script>alert(1)</script>", "$(touchowned)", "`touchowned`"):  # lines break anywhere
        assert part in typeset
    assert '#read("/etc/passwd")' in typeset.replace("“", '"').replace("”", '"')


@pytest.mark.parametrize("name", ["../outside", "a/b", "a;b", "$(b)", "-x", "a b", "a\nb", "<b>"])
def test_names_of_models_and_ablations_cannot_leave_the_results(folder: ExperimentFolder, name: str) -> None:
    path = Path("configs/experiments/synthetic.yaml")
    path.write_text(path.read_text().replace("models:\n  dense:", f"models:\n  {json.dumps(name)}:"))
    assert json.dumps(name) in path.read_text()
    with pytest.raises(OctavoError):
        load_experiment("synthetic")
