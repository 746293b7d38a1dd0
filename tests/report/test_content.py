"""A whole report from an experiment whose truth is known: what it says is what the tables hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from pypdf import PdfReader
from typer.testing import CliRunner

from octavo.accounting.slurm import PROVISIONAL
from octavo.cli import app
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.precision.recipes import RECIPES
from octavo.records import Estimate, Verdict
from octavo.report.charts import Intervals
from octavo.report.content import document
from octavo.report.document import SIGNS, Strip, Table, Text
from octavo.report.figures import charts, held_equal
from octavo.report.inputs import load_inputs
from octavo.report.pdf import write_pdf
from octavo.report.sections.answer import more_or_fewer, questions
from octavo.report.sections.ledger import forecast
from octavo.report.sections.small_print import how_trained, scattered_times
from octavo.report.style import duration
from tests.synthetic import Failure, Truth, write_experiment
from tests.tiny import REPOSITORY, copy_configs

TRUTH = Truth(offsets={"fp8_blockwise": 0.0002, "no_shared_expert": 0.005, "few_experts": 0.004, "fp14": 0.01})


def octavo(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def make(root: Path, seeds: tuple[int, ...], *, ablation: str | None = None) -> Path:
    """The experiment's report, or one ablation's; the folder it is in."""
    if not (root / "results").exists():
        write_experiment(root, seeds=seeds, truth=TRUTH, failures={("moe-bf16", 1): Failure(120)})
        copy_configs(root)
        (root / "workflow").symlink_to(REPOSITORY / "workflow")
    options = ["--ablation", ablation] if ablation else []
    for verb in ("aggregate", "claims", "figures", "report"):
        octavo(verb, "results/synthetic", *options)
    folder = root / "results" / "synthetic"
    return folder / "ablations" / ablation if ablation else folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(autouse=True)
def _inside(root: Path, monkeypatch: pytest.MonkeyPatch, _repository_root: None) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(root))
    monkeypatch.chdir(root)


@pytest.fixture
def report(root: Path) -> Path:
    folder = root / "results" / "synthetic"
    return folder if (folder / "report.pdf").exists() else make(root, (1, 2, 3))


def flat(text: str) -> str:
    return " ".join(text.replace("\N{SOFT HYPHEN}", "").split())


def first_page(path: Path) -> str:
    return flat(PdfReader(path).pages[0].extract_text())


def test_page_one_holds_the_numbers_of_the_tables(report: Path) -> None:
    page = first_page(report / "report.pdf")
    runs = pd.read_parquet(report / "runs.parquet")
    for cell in ("dense-bf16", "dense-fp8_blockwise", "moe-bf16", "moe-fp8_blockwise"):
        own = runs[runs["cell"] == cell]
        assert f"{own['validation_bits_per_byte'].mean():.3f}" in page
        assert duration(3600 * own["device_hours_all_in"].sum()) in page
    assert "3 seeds" in page
    assert "FP8 is emulated: its numbers are real, its speed is not and is not judged" in page
    assert "GPU" not in page


def test_the_heading_says_who_is_ahead_on_the_same_text_and_that_hours_are_not_decided(report: Path) -> None:
    """MoE learns 1.25 times as fast per token: a lower loss at equal tokens. Its steps take 1.35 times as long: by the
    hour it is read at 74 % of its run, with its rate at 26 % of its peak, and nothing is said against it. Of FP8
    three seeds tell too little."""
    page = first_page(report / "report.pdf")
    heading = re.split(r" \d+ runs ·", page.removeprefix("Octavo: synthetic "))[0]
    claims = {claim["number"]: claim for claim in json.loads((report / "claims.json").read_text())["claims"]}
    assert (claims[1]["verdict"], claims[2]["verdict"]) == ("inconclusive", "inconclusive")
    found = re.fullmatch(
        r"At this size a mixture of experts reaches a ([\d.]+) % lower loss at equal tokens; it is not decided "
        "whether a mixture needs fewer device-hours for the same loss or FP8 is as accurate as BF16",
        heading,
    )
    assert found, heading
    (one,) = [
        one for one in json.loads((report / "comparisons.json").read_text())["comparisons"]
        if (one["cell"], one["against"], one["axis"]) == ("moe-bf16", "dense-bf16", "tokens")
    ]  # fmt: skip
    assert float(found[1]) == pytest.approx(-one["loss_difference"]["value"], abs=0.05)
    assert "needs a run planned for this length" in page


def test_page_one_has_every_verdict(report: Path) -> None:
    page = letters(first_page(report / "report.pdf"))
    claims = json.loads((report / "claims.json").read_text())["claims"]
    assert len(claims) == 11
    tested, untested = page.split("nottestablehere")
    for claim in claims:
        title = letters(f"{claim['number']} {claim['title']}")
        if claim["verdict"] == "not testable here":
            assert title in untested
        else:
            said = claim["verdict"] + letters(claim["reason"] or "")
            assert f"{title}{said}" in tested.replace("✓", "").replace("✗", "").replace("○", "")


def test_page_one_names_the_command_that_tests_what_is_not_testable_here(report: Path) -> None:
    """The experiment of every such command is one of ours."""
    inputs = load_inputs(ExperimentFolder(report))
    (strip,) = [one for one in document(inputs, {}).sections[0].blocks if isinstance(one, Strip)]
    untested = [one for one in inputs.claims.claims if one.verdict == "not testable here"]
    assert untested
    for claim in untested:
        found = re.search(rf"\b{claim.number}\b[\d, and]*: {re.escape(claim.tested_by)}\.", strip.untested)
        assert found, strip.untested
        (name,) = re.findall("results/(.+)/report.pdf", claim.tested_by)
        assert (REPOSITORY / "configs" / "experiments" / f"{name}.yaml").exists()


@pytest.mark.parametrize(
    ("verdict", "hours", "bits", "heading"),
    [
        ("supported", "yes", "yes: less than 0.25 %",
         ("needs 40 % fewer device-hours for the same loss; FP8 raises the loss by less than 0.25 %",)),
        ("refuted", "no: more", "no: more than 0.25 %",
         ("needs 40 % more device-hours for the same loss; FP8 raises the loss by more than 0.25 %",)),
        ("inconclusive", "not decided", "not decided",
         ("it is not decided whether a mixture needs fewer device-hours for the same loss "
          "or FP8 is as accurate as BF16",)),
        ("not testable here", "not testable here", "not testable here", ()),
    ],
)  # fmt: skip
def test_heading_tiles_and_strip_say_what_the_verdicts_say(
    report: Path, tmp_path: Path, verdict: Verdict, hours: str, bits: str, heading: tuple[str, ...]
) -> None:
    """Read back from the PDF for every verdict that a claim can have; the ratio is 0.6, or 1.4 where refuted."""
    inputs = load_inputs(ExperimentFolder(report))
    ratio = Estimate(value=1.4 if verdict == "refuted" else 0.6, low=0.5, high=1.5, n=3, unit="ratio")
    changed = [
        one.model_copy(update={"verdict": verdict, "reason": None, "effect": ratio if one.number == 1 else one.effect})
        for one in inputs.claims.claims
    ]
    inputs = replace(inputs, claims=inputs.claims.model_copy(update={"claims": changed}))
    drawn = charts(inputs)
    content = document(inputs, drawn)
    write_pdf(content, report / "figures", tmp_path / "report.pdf")
    page = first_page(tmp_path / "report.pdf")
    _, by_the_hour, eight_bits = questions(inputs)
    for tile, answer in ((by_the_hour, hours), (eight_bits, bits)):
        assert tile is not None
        assert tile.answer == answer
        assert f"{SIGNS[verdict]} {answer}" in page
    for said in heading:
        assert said in page
    words = ("needs 40 % fewer", "needs 40 % more", "by less than", "by more than", "not decided whether")
    for word in words:
        assert (word in content.finding) == any(word in said for said in heading), content.finding
    (strip,) = [block for block in content.sections[0].blocks if isinstance(block, Strip)]
    assert len(strip.tested) == (0 if verdict == "not testable here" else 11)
    assert {tile.verdict for tile in strip.tested} <= {verdict}


@pytest.mark.parametrize(
    ("differences", "answer"),
    [
        ([-1.0, -1.1, -0.9], "yes"),
        ([1.0, 1.1, 0.9], "no: higher"),
        ([-1.0, 1.1, -0.9], "too close to call"),
        # t = -4.91, p = 0.039 with two degrees of freedom: below 5 % by itself, not as one question among several
        ([-1.0, -1.5, -0.75], "too close to call"),
    ],
)
def test_the_same_text_is_judged_as_one_question_among_the_claims(
    report: Path, differences: list[float], answer: str
) -> None:
    inputs = load_inputs(ExperimentFolder(report))
    assert sum(claim.p_adjusted is not None for claim in inputs.claims.claims) >= 3
    changed = [
        one.model_copy(update={"loss_differences": differences, "loss_difference": Estimate(
            value=sum(differences) / 3, low=-2, high=2, n=3, unit="%")})
        if (one.kind, one.axis) == ("architecture", "tokens") else one
        for one in inputs.comparisons.comparisons
    ]  # fmt: skip
    comparisons = inputs.comparisons.model_copy(update={"comparisons": changed})
    tile, *_ = questions(replace(inputs, comparisons=comparisons))
    assert tile is not None
    assert tile.answer == answer


def test_shares_are_said_as_people_say_them() -> None:
    assert [more_or_fewer(ratio) for ratio in (0.94, 1.37, 1.004, 12.0)] == [
        "6.0 % fewer", "37 % more", "0.4 % more", "× 12.0",
    ]  # fmt: skip


def test_loss_differences_are_those_of_the_truth(report: Path) -> None:
    """At every number of tokens the mixture is where the dense model is after 1.25 times as many."""
    frame = charts(load_inputs(ExperimentFolder(report)))["loss_differences"].frame
    own = frame[(frame["panel"] == "tokens") & (frame["series"] == "moe-bf16")]
    assert own["seed"].nunique() == 3
    tokens = own["x"].to_numpy()
    expected = 100 * (TRUTH.loss("moe", [], tokens) / TRUTH.loss("dense", [], tokens) - 1)
    assert own["y"].to_numpy() == pytest.approx(expected, abs=0.3)  # seeds scatter by 0.05 % of the loss each


def test_a_provisional_ledger_is_said_first_and_where_the_hours_are(report: Path) -> None:
    """sacct did not answer for any attempt: the note is in two sections, the first of all and the ledger."""
    inputs = load_inputs(ExperimentFolder(report))
    attempts = inputs.attempts.assign(source="attempts.jsonl" + PROVISIONAL)
    found = []
    for one in (inputs, replace(inputs, attempts=attempts)):
        sections = document(one, {}).sections
        notes = [number for number, section in enumerate(sections) for block in section.blocks
                 if isinstance(block, Text) and block.text.startswith("The ledger is provisional: Slurm")]  # fmt: skip
        found.append(notes)
    assert found[0] == []
    assert len(found[1]) == 2
    assert found[1][0] == 0


def test_what_fp8_does_to_the_numbers_is_drawn_for_every_tensor_and_product(report: Path) -> None:
    """Each logged number of tests/synthetic.py in a panel of its own: fractions in %, magnitudes as they are."""
    shown = {}
    for name in ("fp8_underflow", "fp8_errors", "fp8_amax"):
        frame = pd.read_csv(report / "figures" / f"{name}.csv")
        assert {"dense-fp8_blockwise", "moe-fp8_blockwise"} <= set(frame["series"])
        shown |= frame.groupby("panel")["y"].mean().round(9).to_dict()
    kinds, products = ("input", "weight", "gradient"), ("forward", "input_gradient", "weight_gradient")
    assert shown == {
        **dict(zip([f"fp8_underflow_{kind}" for kind in kinds], (0.1, 0.01, 1.0), strict=True)),
        **dict(zip([f"fp8_amax_{kind}" for kind in kinds], (9.0, 0.3, 1e-3), strict=True)),
        **dict(zip([f"fp8_product_error_{product}" for product in products], (3.0, 4.0, 4.0), strict=True)),
    }


def test_saturation_is_drawn_where_there_is_some(report: Path) -> None:
    """None in tests/synthetic.py."""
    inputs = load_inputs(ExperimentFolder(report))
    assert "fp8_overflow" not in charts(inputs)
    steps = inputs.steps.assign(fp8_overflow_input=inputs.steps["fp8_overflow_input"] + 0.02)
    frame = charts(replace(inputs, steps=steps))["fp8_overflow"].frame
    assert frame.groupby("panel")["y"].max().to_dict() == {
        "fp8_overflow_input": 2.0,
        "fp8_overflow_weight": 0.0,
        "fp8_overflow_gradient": 0.0,
    }


def test_time_under_emulation_is_marked_in_the_figure_of_all_axes(report: Path) -> None:
    """FP8 is emulated in tests/synthetic.py: its rows of hours and money say so, and no other row does."""
    chart = charts(load_inputs(ExperimentFolder(report)))["fair_axes"]
    assert isinstance(chart, Intervals)
    for row in chart.rows:
        timed = "device-hours" in row or "money" in row
        assert ("(emulated)" in row) == (timed and "FP8" in row), row
    work, timed = chart.blocks
    assert {"device-hours" in row or "money" in row for row in work} == {False}
    assert {"device-hours" in row or "money" in row for row in timed} == {True}


def test_axes_with_the_same_numbers_are_one_row(report: Path) -> None:
    """The pair has equal active parameters and equal tokens: one row. FLOPs and hours differ: rows of their own."""
    inputs = load_inputs(ExperimentFolder(report))
    names = [equal for equal, one in held_equal(inputs) if (one.cell, one.against) == ("moe-bf16", "dense-bf16")]
    assert names == [
        "equal tokens and active parameters", "equal model FLOPs", "equal device-hours", "equal money",
    ]  # fmt: skip


def test_every_seed_is_drawn_on_every_axis(report: Path) -> None:
    """Three seeds a row beside their mean, which is that of comparisons.json."""
    frame = charts(load_inputs(ExperimentFolder(report)))["fair_axes"].frame
    for _, own in frame[frame["panel"] == "difference"].groupby("row"):
        seeds, mean = own.loc[own["role"] == "seed", "value"], own.loc[own["role"] != "seed", "value"]
        assert len(seeds) == 3
        assert mean.item() == pytest.approx(seeds.mean())


def test_the_methods_say_what_each_precision_is_and_where_that_is_written(report: Path) -> None:
    text = flat(unescape((report / "report.html").read_text()))
    for name in ("bf16", "fp8_blockwise"):
        assert RECIPES[name].summary in text
        assert RECIPES[name].source in text


def test_the_methods_say_what_training_begins_with_and_at_which_rates(report: Path) -> None:
    """Of the laptop, whose embeddings, head and routers have rates of their own, and of one whose have not."""
    laptop = load_experiment("laptop", ConfigFolders(REPOSITORY / "configs"))
    text = how_trained(laptop)[0].text
    rates = "learning rate 0.007 (7 times that for embedding and output head, 0.3 times that for routers)"
    assert f"AdamW with {rates}, weight decay 0.1" in text
    assert "Weights start with a standard deviation of 0.05, those of the input embedding 0.3." in text
    pages = flat("".join(page.extract_text() for page in PdfReader(report / "report.pdf").pages))
    assert "AdamW with learning rate 0.001, weight decay" in pages
    assert "Weights start with a standard deviation of 0.02." in pages


def test_both_formats_say_the_same(report: Path) -> None:
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    html = unescape((report / "report.html").read_text())
    pages = [flat(page.extract_text()) for page in PdfReader(report / "report.pdf").pages]
    pdf = " ".join(re.sub(r"Octavo: synthetic \d+ of \d+$", "", page) for page in pages)  # paragraphs go over pages
    texts = [
        block.text
        for section in document(inputs, charts(inputs)).sections
        for block in section.blocks
        if isinstance(block, Text)
    ]
    assert len(texts) > 15
    for text in texts:
        assert text in html
        assert letters(text) in letters(pdf), text


def letters(text: str) -> str:
    """Letters and digits alone: what line breaks, hyphens and typographic quotes cannot change."""
    return "".join(character for character in text if character.isalnum())


def test_made_again_the_bytes_are_the_same(report: Path) -> None:
    names = ["claims.json", "comparisons.json", "report.pdf", "report.html", "figures/loss.svg", "figures/loss.png"]
    before = {name: (report / name).read_bytes() for name in names}
    for verb in ("aggregate", "claims", "figures", "report"):
        octavo(verb, "results/synthetic")
    assert {name: (report / name).read_bytes() for name in names} == before


def test_what_a_lost_attempt_took_is_in_the_ledger(report: Path) -> None:
    """Killed at step 120 of 200 with a checkpoint at step 100: 20 steps of 1.35 s were for nothing."""
    runs = pd.read_parquet(report / "runs.parquet").set_index(["cell", "seed"])
    lost = runs.loc[("moe-bf16", 1), "device_hours_all_in"] - runs.loc[("moe-bf16", 1), "device_hours_final"]
    # of the first attempt (10 s + 120 steps) a sixth of the steps is lost, and so is that share of its start-up
    assert lost == pytest.approx((10 + 120 * 1.35) / 6 / 3600, rel=1e-6)
    ledger = pd.read_csv(report / "figures" / "ledger.csv").query("panel == 'time' and series == 'moe-bf16'")
    assert ledger.set_index("part")["value"].iloc[1] == pytest.approx(60 * lost, rel=1e-6)  # minutes


def test_the_ledger_says_where_its_hours_are_from_and_what_they_leave_out(report: Path) -> None:
    text = flat(" ".join(page.extract_text() for page in PdfReader(report / "report.pdf").pages))
    assert "The ledger is from attempts.jsonl. It does not count runs that octavo verify makes again." in text


def test_an_ablation_has_two_pages_and_its_own_cells_alone(report: Path, root: Path) -> None:
    folder = make(root, (1, 2, 3), ablation="no_shared_expert")
    pages = [flat(page.extract_text()) for page in PdfReader(folder / "report.pdf").pages]
    assert len(pages) == 2
    assert "MoE BF16, no shared expert ends above that of MoE BF16" in pages[0]
    assert set(pd.read_parquet(folder / "runs.parquet")["cell"]) == {"moe-bf16", "moe-bf16+no_shared_expert"}
    whole = load_inputs(ExperimentFolder(Path("results/synthetic"))).styles
    part = load_inputs(ExperimentFolder(Path("results/synthetic")), "no_shared_expert").styles
    for cell, style in part.items():
        assert style == whole[cell], "a cell looks the same in every report"


def test_the_plans_own_interval_is_named(report: Path) -> None:
    """Plan against actual says 90 % where the plan's column does."""
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    cell = inputs.complete["cell"].iloc[0]
    planned = {"cell": cell, "tokens_per_second_per_device": 10.0, "tokens_per_second_low": 1.0,
               "tokens_per_second_high": 1e12, "interval": 0.9, "device_hours": 1.0}  # fmt: skip
    text, table = forecast(replace(inputs, plan=pd.DataFrame([planned]))).blocks
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    assert text.text == "Of 1 cells, 1 ran within the forecast's 90 % interval."
    assert "90 % interval" in table.header


def test_what_a_claim_needs_is_beside_it(report: Path) -> None:
    text = flat(unescape((report / "report.html").read_text()))
    for claim in json.loads((report / "claims.json").read_text())["claims"]:
        assert claim["needs"]
        assert claim["needs"] in text


def test_unsteady_step_times_are_a_limit(report: Path) -> None:
    """Seeds of tests/synthetic.py take the same time; one of them 1.25 times as long is 25 %."""
    inputs = load_inputs(ExperimentFolder(report))
    assert list(scattered_times(inputs)) == []
    slow = (inputs.runs["cell"] == "moe-bf16") & (inputs.runs["seed"] == 2)
    runs = inputs.runs.assign(training_seconds=inputs.runs["training_seconds"] * (1 + 0.25 * slow))
    (said,) = scattered_times(replace(inputs, runs=runs))
    assert "differ by up to 25.0 % (more than 10 %: MoE BF16)" in said


def test_one_seed_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path, (1,))
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    tested = [claim for claim in claims if claim["runs"] and claim["verdict"] != "not testable here"]
    assert tested
    assert {claim["verdict"] for claim in tested} == {"inconclusive"}
    assert "One seed decides nothing" in flat(PdfReader(folder / "report.pdf").pages[0].extract_text())


def test_a_missing_table_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Path) -> None:
    from octavo.errors import OctavoError

    hidden = report / "runs.parquet"
    content = hidden.read_bytes()
    try:
        for spoiled, expected in ((None, "there are no tables yet"), (content[:100], "cannot be read")):
            hidden.unlink(missing_ok=True)
            if spoiled is not None:
                hidden.write_bytes(spoiled)
            with pytest.raises(OctavoError, match=expected):
                load_inputs(ExperimentFolder(Path("results/synthetic")))
    finally:
        hidden.write_bytes(content)
