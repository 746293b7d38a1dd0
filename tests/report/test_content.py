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
from octavo.experiment.config import SeedsUntilDecided
from octavo.experiment.load import load_experiment
from octavo.layout import ConfigFolders, ExperimentFolder
from octavo.precision.recipes import RECIPES
from octavo.records import ClaimsFile, Comparison, Estimate, FirstReport, Verdict
from octavo.report.charts import Intervals
from octavo.report.content import document
from octavo.report.document import SIGNS, Picture, Strip, Table, Text
from octavo.report.figures import charts, held_equal
from octavo.report.html import write_html
from octavo.report.inputs import load_inputs
from octavo.report.pdf import write_pdf
from octavo.report.sections.answer import finding, more_or_fewer, questions
from octavo.report.sections.ledger import forecast, owning
from octavo.report.sections.questions import fairness, losses
from octavo.report.sections.small_print import how_trained, scattered_times
from octavo.report.style import duration, percent
from tests.synthetic import Failure, Truth, write_experiment
from tests.tiny import REPOSITORY, copy_configs

TRUTH = Truth(offsets={"fp8_blockwise": 0.0002, "no_shared_expert": 0.005, "few_experts": 0.004, "fp14": 0.01})


def octavo(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def make(
    root: Path,
    seeds: tuple[int, ...],
    *,
    ablation: str | None = None,
    verbs: tuple[str, ...] = ("aggregate", "claims", "figures", "report"),
) -> Path:
    """The experiment's report, or one ablation's, or what some of the verbs make; the folder it is in."""
    if not (root / "results").exists():
        write_experiment(root, seeds=seeds, truth=TRUTH, failures={("moe-bf16", 1): Failure(120)})
        copy_configs(root)
        (root / "workflow").symlink_to(REPOSITORY / "workflow")
    options = ["--ablation", ablation] if ablation else []
    for verb in verbs:
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


def test_no_page_is_over_a_third_empty(report: Path) -> None:
    """The lowest text of every page, the last one aside, is in the lowest third of what lies above the footer (figures
    have captions below them)."""
    *pages, _ = PdfReader(report / "report.pdf").pages
    top, foot = float(pages[0].mediabox.height) - 17 * 72 / 25.4, 18 * 72 / 25.4
    for number, page in enumerate(pages, 1):
        heights: list[float] = []
        page.extract_text(visitor_text=lambda text, user, matrix, *_, to=heights: to.append(
            matrix[4] * user[1] + matrix[5] * user[3] + user[5]) if text.strip() else None)  # fmt: skip
        lowest = min(one for one in heights if one > foot - 5)  # the last line may stand on the margin
        assert lowest < foot + (top - foot) / 3, number


def test_every_page_has_its_number(report: Path) -> None:
    """Where the layout does not settle, page numbers are those of an earlier try."""
    pages = PdfReader(report / "report.pdf").pages
    for number, page in enumerate(pages, 1):
        assert f"{number} of {len(pages)}" in flat(page.extract_text())


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
    assert len(claims) == 12
    tested, untested = page.split("nottestablehere")
    for claim in claims:
        title = letters(f"{claim['number']} {claim['title']}")
        if claim["verdict"] == "not testable here":
            assert title in untested
        else:
            said = claim["verdict"]
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


MIXTURE = "At this size a mixture of experts"


@pytest.mark.parametrize(
    ("verdict", "differences", "answers", "heading"),
    [
        ("supported", [-1.0, -1.01, -0.99], ("yes", "yes", "yes: less than 0.25 %"),
         f"{MIXTURE} reaches a 1.0 % lower loss at equal tokens and needs 40 % fewer device-hours for the same loss; "
         "FP8 raises the loss by less than 0.25 %"),
        ("refuted", [1.0, 1.01, 0.99], ("no: higher", "no: more", "no: more than 0.25 %"),
         f"{MIXTURE} reaches a 1.0 % higher loss at equal tokens and needs 40 % more device-hours for the same loss; "
         "FP8 raises the loss by more than 0.25 %"),
        ("inconclusive", [-1.0, 1.0, 0.5], ("too close to call", "not decided", "not decided"),
         "At this size it is not decided whether a mixture of experts reaches a lower loss at equal tokens, a mixture "
         "needs fewer device-hours for the same loss or FP8 is as accurate as BF16"),
        ("not testable here", [], (None, "not testable here", "not testable here"),
         "None of the three questions can be tested here"),
    ],
)  # fmt: skip
def test_heading_tiles_and_strip_say_what_the_verdicts_say(
    report: Path, tmp_path: Path, verdict: Verdict, differences: list[float], answers: tuple[str | None, ...],
    heading: str,
) -> None:  # fmt: skip
    """Read back from PDF and page for every verdict that a claim can have, and held to claims.json.

    The mixture's ratio of hours is 0.6, or 1.4 where it is refuted; its loss differs by so many percent, or there is no
    such comparison.
    """
    given = load_inputs(ExperimentFolder(report))
    ratio = Estimate(value=1.4 if verdict == "refuted" else 0.6, low=0.5, high=1.5, n=3, unit="ratio")
    claims = ClaimsFile.model_validate_json((report / "claims.json").read_text())
    for one in claims.claims:
        one.verdict, one.reason = verdict, None
        one.effect = ratio if one.number == 1 else one.effect
    path = tmp_path / "claims.json"
    path.write_text(claims.model_dump_json())
    found = Estimate(value=sum(differences) / 3, low=-2, high=2, n=3, unit="%")
    compared = [
        one.model_copy(update={"loss_differences": differences, "loss_difference": found if differences else None})
        if (one.kind, one.axis) == ("architecture", "tokens") else one
        for one in given.comparisons.comparisons
    ]  # fmt: skip
    comparisons = given.comparisons.model_copy(update={"comparisons": compared})
    inputs = replace(given, claims=ClaimsFile.model_validate_json(path.read_text()), comparisons=comparisons)
    content = document(inputs, charts(inputs))
    one = replace(content, sections=content.sections[:1])
    write_pdf(one, report / "figures", tmp_path / "report.pdf")
    without = [block for block in one.sections[0].blocks if not isinstance(block, Picture)]  # drawing takes seconds
    write_html(replace(one, sections=[replace(one.sections[0], blocks=without)]), {}, {}, tmp_path / "report.html")
    assert content.finding.startswith(heading)  # of FP8 the pair that refutes may follow
    written = json.loads(path.read_text())["claims"]
    questions_asked = (
        "Lower loss at equal tokens?",
        "Fewer device-hours for the same loss?",
        "FP8 as accurate as BF16?",
    )
    for text in (first_page(tmp_path / "report.pdf"), words_of(tmp_path / "report.html")):
        before_strip, strip, untested = parts_of_page_one(text)
        assert letters(content.finding) in letters(before_strip)
        for question, answer in zip(questions_asked, answers, strict=True):
            assert (question in before_strip) == (answer is not None)
            if answer:
                sign = "○" if answer == "too close to call" else SIGNS[verdict]
                tile = before_strip.partition(question)[2].partition("?")[0]
                assert f"{sign} {answer}" in tile, tile
        tile = before_strip.partition("Fewer device-hours for the same loss?")[2]
        assert tile.strip().startswith("40 % more" if verdict == "refuted" else "40 % fewer")
        for claim in written:
            title = letters(f"{claim['number']} {claim['title']}")
            said = letters(f"{claim['number']} {claim['title']} {claim['verdict']}")
            if verdict == "not testable here":
                assert title in letters(untested)
                assert title not in letters(strip)
            else:
                assert said in letters(strip), claim["title"]
        others = {"supported", "refuted", "inconclusive"} - {verdict}
        assert not any(word in strip for word in others)


def parts_of_page_one(text: str) -> tuple[str, str, str]:
    """What is before the strip of claims, the strip, and what could not be tested."""
    start = min(place for place in (text.find("cost, all seeds"), len(text)) if place >= 0)
    above, below = text[:start], text[start:].partition("Commit")[0]
    strip, _, untested = below.partition("– not testable here:")
    return above, strip, untested


def words_of(path: Path) -> str:
    """What a page shows, as one line."""
    body = path.read_text().partition("<main")[2].partition("</main>")[0]
    return flat(unescape(re.sub(r"<[^>]+>", " ", body)))


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
    inputs = replace(inputs, comparisons=inputs.comparisons.model_copy(update={"comparisons": changed}))
    tile, *_ = questions(inputs)
    assert tile is not None
    assert tile.answer == answer
    # of at most eight seeds three are the first look, which spends little
    experiment = inputs.experiment
    assert experiment is not None
    design = SeedsUntilDecided.model_validate({"from": 3, "to": 8})
    looked = replace(experiment, file=experiment.file.model_copy(update={"seeds": design}))
    tile, *_ = questions(replace(inputs, experiment=looked))
    assert tile is not None
    assert tile.answer == "too close to call"


@pytest.mark.parametrize(("ends", "said"), [((-1.6, -0.4), True), ((0.4, 1.6), True), ((-1.6, 0.4), False)])
def test_an_interval_without_zero_that_decides_nothing_says_why(
    report: Path, ends: tuple[float, float], said: bool
) -> None:
    """t = -4.91, as above: the interval of the comparison alone would be read as an answer."""
    inputs = load_inputs(ExperimentFolder(report))
    found = Estimate(value=-1.0, low=ends[0], high=ends[1], n=3, unit="%")
    changed = [
        one.model_copy(update={"loss_differences": [-1.0, -1.5, -0.75], "loss_difference": found})
        if (one.kind, one.axis) == ("architecture", "tokens") else one
        for one in inputs.comparisons.comparisons
    ]  # fmt: skip
    tile, *_ = questions(replace(inputs, comparisons=inputs.comparisons.model_copy(update={"comparisons": changed})))
    assert tile is not None
    assert tile.answer == "too close to call"
    assert ("clear by itself, not as one of several tests" in tile.detail) == said


@pytest.mark.parametrize(
    ("low", "said"),
    [(1.2, "At these sizes the dense model needs 1.40 times a mixture's model FLOPs for the same loss; "),
     (0.9, "At these sizes it is not decided whether a mixture needs fewer model FLOPs for the same loss, ")],
)  # fmt: skip
def test_a_ladders_heading_is_about_its_sizes_and_its_first_tile_about_the_money(
    report: Path, low: float, said: str
) -> None:
    inputs = load_inputs(ExperimentFolder(report))
    tenth = Estimate(value=1.25, low=1.0, high=1.6, n=3, unit="ratio")
    changed = [
        one.model_copy(update={"verdict": "refuted" if one.number == 12 else "inconclusive", "reason": None,
                               "effect": tenth if one.number == 12 else one.effect})
        for one in inputs.claims.claims
    ]  # fmt: skip
    ratios = [{"axis": "flops", "loss": 3.0, "value": 1.4, "low": low, "high": 1.7, "interval": 0.95}]
    found = {"leverage": ratios, "carried_on": [], "published": [], "extrapolation": []}
    inputs = replace(inputs, claims=inputs.claims.model_copy(update={"claims": changed}), leverage=found)
    assert finding(inputs).startswith(said)
    tile, *_ = questions(inputs)
    assert tile is not None
    # the dense model spends 1.25 times the mixture's money (1 to 1.6): the mixture 1 / 1.25 = 80 % of its (62.5 to 100)
    assert (tile.value, tile.answer) == ("80 % of it", "no")
    assert "95 %: 62 to 100 %" in tile.detail


def test_a_first_report_cannot_be_taken_for_the_whole(report: Path, tmp_path: Path) -> None:
    """Before the first look it says that there are no verdicts yet; after it, what they are so far."""
    given = load_inputs(ExperimentFolder(report))
    for first_look in (6, 3):
        first = FirstReport(seeds=3, first_look=first_look, most=9, stands=True)
        content = document(replace(given, first=first), charts(given))
        one = replace(content, sections=content.sections[:1])
        write_pdf(one, report / "figures", tmp_path / "report.pdf")
        page = first_page(tmp_path / "report.pdf")
        start = "Octavo: synthetic, first report First report, after 3 of up to 9 seeds; more are running "
        assert page.startswith(start)
        assert ("no verdict on runs is reached before 6 seeds of every cell" in page) == (first_look == 6)
        assert ("So far: At this size a mixture of experts reaches a" in page) == (first_look == 3)
        assert "The whole report takes this one's place" in page
        assert "octavo trace" not in page


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


def test_cells_on_different_nodes_are_named_where_they_are_compared(report: Path) -> None:
    """In the ledger, with the comparisons and with the throughput. By Slurm's word: without a job number nothing is
    known of nodes, and on the same ones nothing is to be said."""
    inputs = load_inputs(ExperimentFolder(report))
    drawn = charts(inputs)
    dense = inputs.attempts["cell"] == "dense-bf16"
    said = []
    for job, other in ((None, "node3"), ("7", "node[1-2]"), ("7", "node3")):
        attempts = inputs.attempts.assign(job=job, nodes=dense.map({True: "node[1-2]", False: other}))
        sections = document(replace(inputs, attempts=attempts), drawn).sections
        texts = [(one.title, block.text) for one in sections for block in one.blocks if isinstance(block, Text)]
        told = {title: text for title, text in texts if text.startswith("The cells were trained on different nodes")}
        said.append(told)
    assert said[:2] == [{}, {}]
    assert {"Comparisons at equal resources", "Throughput"} < set(said[2])
    assert len(said[2]) == 3
    (only,) = set(said[2].values())
    assert " on node3; " in only
    end = f"{inputs.label('dense-bf16')} on node[1-2]. How fast those nodes are is part of every comparison"
    assert end in only


def test_a_node_that_slows_a_final_run_down_is_named_with_the_throughput(report: Path) -> None:
    """Three ranks: the median is 1 s. Of an attempt that did not end well nothing is said."""
    inputs = load_inputs(ExperimentFolder(report))
    drawn = charts(inputs)
    begin = "of several ranks: what a rank works at a step"
    texts = []
    for state, last in (("completed", 1.04), ("completed", 1.25), ("failed", 1.25)):
        ranks = [{"rank": number, "node": f"gpu{number}", "stage": 0, "seconds": seconds}
                 for number, seconds in enumerate((0.9, 1.0, last))]  # fmt: skip
        of_run = (inputs.attempts["cell"] == "dense-bf16") & (inputs.attempts["seed"] == 1)
        attempts = inputs.attempts.assign(ranks=[ranks if one else None for one in of_run], state=state)
        (section,) = (
            one for one in document(replace(inputs, attempts=attempts), drawn).sections if one.title == "Throughput"
        )
        texts.append([block for block in section.blocks if isinstance(block, Text) and begin in block.text])
    (even,), (slowed,), failed = texts
    assert even.text.endswith("lies between 0.90 and 1.04 times the median of the ranks.")
    assert "lies between 0.90 and 1.25 times" in slowed.text
    end = f"slowed down: {inputs.label('dense-bf16')}, seed 1: gpu2 works 25% longer at a step than the median rank."
    assert slowed.text.endswith(end)
    assert failed == []


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


def test_many_pairs_are_told_as_how_many_their_range_and_a_table_that_has_each(report: Path) -> None:
    """Every pair of the report fourteen times, the n-th a hundredth of a per cent of the loss higher than the one
    before: 13 hundredths lie between the first and the last."""
    inputs = load_inputs(ExperimentFolder(report))
    runs = pd.concat(
        [inputs.runs.assign(cell=inputs.runs["cell"] + str(place), precision=inputs.runs["precision"] + str(place))
         for place in range(14)]
    )  # fmt: skip

    def moved(one: Comparison, place: int) -> Comparison:
        found = one.loss_difference
        update = {"cell": f"{one.cell}{place}", "against": f"{one.against}{place}"}
        value = found and found.model_copy(update={"value": found.value + place / 100})
        return one.model_copy(update={**update, "loss_difference": value})

    compared = [one for one in inputs.comparisons.comparisons if one.kind != "ablation"]
    comparisons = [moved(one, place) for place in range(14) for one in compared]
    many = replace(inputs, runs=runs, comparisons=inputs.comparisons.model_copy(update={"comparisons": comparisons}))
    drawn = charts(many)
    axes = drawn["fair_axes"].frame
    of_architecture = axes[(axes["panel"] == "difference") & axes["row"].str.startswith("MoE against dense, equal tok")]
    assert of_architecture["row"].unique().tolist() == ["MoE against dense, equal tokens (28 pairs)"]
    pairs = of_architecture[of_architecture["role"] == "pair"]["value"]
    assert len(pairs) == 28
    estimate = of_architecture[of_architecture["role"] == "estimate"]["value"].item()
    assert estimate == pytest.approx(pairs.median())
    section = fairness(many, drawn)
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert len(table.rows) == len({(one.cell, one.against) for one in comparisons})
    assert all(len(row) == len(table.header) for row in table.rows)
    texts = [block.text for block in losses(many, {}).blocks if isinstance(block, Text)]
    bf16 = next(one for one in compared if (one.cell, one.axis) == ("moe-bf16", "tokens"))
    (said,) = [text for text in texts if text.startswith("MoE against dense at equal tokens: of 28 pairs ")]
    assert bf16.loss_difference is not None
    assert said.count(" %") == 2
    assert percent(bf16.loss_difference.value) in said or percent(bf16.loss_difference.value + 0.13) in said


def test_the_methods_say_what_each_precision_is_and_where_that_is_written(report: Path) -> None:
    text = flat(unescape((report / "report.html").read_text()))
    for name in ("bf16", "fp8_blockwise"):
        assert RECIPES[name].summary in text
        assert RECIPES[name].source in text


def test_the_methods_say_what_training_begins_with_and_at_which_rates(report: Path) -> None:
    """Of the laptop, whose embeddings, head and routers have rates of their own, and of one whose have not."""
    laptop = load_experiment("laptop", ConfigFolders(REPOSITORY / "configs"))
    text = how_trained(laptop)[0].text
    rates = "learning rate 0.005 (7 times that for embedding and output head, 0.3 times that for routers)"
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
    assert "These times are from attempts.jsonl; runs that octavo verify makes again are not counted." in text


def test_money_is_said_with_its_range_its_age_and_what_owning_costs(report: Path) -> None:
    """The rent of the synthetic cluster has neither a range nor a date; owning is that of h100-node.yaml."""
    text = flat(" ".join(page.extract_text() for page in PdfReader(report / "report.pdf").pages))
    assert "The rent has no date: whether it still holds is not known." in text
    assert "Goodput: of the device-hours that all attempts held," in text
    assert "Claim 11 is inconclusive. What decides it is the share of all hours in which devices are used" in text
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    drawn = charts(inputs)["owning"]
    assert isinstance(drawn, Intervals)
    assert drawn.rows[0].startswith("rent of an hour: 1.99 to 5")  # the widest swing is the first
    width = drawn.frame["high"] - drawn.frame["low"]
    assert (width.diff().dropna() <= 0).all()
    unpriced = owning(replace(inputs, experiment=None), {})  # an import without a cluster has no currency of its own
    assert [block.header[1] for block in unpriced.blocks if isinstance(block, Table)] == [
        "an hour owned, USD", "an hour, USD",
    ]  # fmt: skip


def test_goodput_is_training_over_the_hours_held(report: Path) -> None:
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    trained = (inputs.runs["training_seconds"] * inputs.runs["device_count"]).sum() / 3600
    share = 100 * trained / inputs.attempts["device_hours"].sum()
    assert 50 < share < 100
    (said,) = [
        block.text
        for section in document(inputs, charts(inputs)).sections
        for block in section.blocks
        if isinstance(block, Text) and block.text.startswith("Goodput")
    ]
    assert f"attempts held, {share:.0f} % trained" in said


def test_under_trained_models_are_said_to_be(report: Path) -> None:
    """200 steps of 1,024 tokens over the active parameters of the smallest cell and the largest."""
    runs = pd.read_parquet(report / "runs.parquet")
    seen = 200 * 8 * 128 / runs["active_parameters"]
    text = flat(" ".join(page.extract_text() for page in PdfReader(report / "report.pdf").pages))
    assert f"Runs saw {seen.min():.2f}" in text
    assert "tokens per active parameter: under-trained models are compared" in text


def test_both_runs_of_a_tenth_stand_at_each_price(report: Path) -> None:
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    tables = [
        block
        for section in document(inputs, charts(inputs)).sections
        for block in section.blocks
        if isinstance(block, Table) and "llama-3.1-405b" in block.header
    ]
    (table,) = tables
    assert [row[1:] for row in table.rows][:2] == [
        ["$2.00", "$5,576,000", "$61,680,000"],
        ["$3.00", "$8,364,000", "$92,520,000"],
    ]


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
               "tokens_per_second_high": 1e12, "interval": 0.9, "device_hours": 1.0, "seeds": 3}  # fmt: skip
    text, table = forecast(replace(inputs, plan=pd.DataFrame([planned]))).blocks
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    assert text.text.startswith("Of 1 cells, 1 ran within the forecast's 90 % interval. They ran ")
    assert "90 % interval" in table.header


def test_the_report_says_how_many_times_as_fast_as_forecast_the_runs_were(report: Path) -> None:
    """Cells whose plan was made from their own runs are left out: that was no forecast."""
    inputs = load_inputs(ExperimentFolder(Path("results/synthetic")))
    complete = inputs.complete
    plan = []
    for cell, times in (("dense-bf16", 2.0), ("moe-bf16", 4.0), ("moe-fp8_blockwise", 1.0)):
        own = complete[complete["cell"] == cell]
        rate = float((own["tokens"] / own["training_seconds"] / own["device_count"]).mean()) / times
        plan.append(
            {"cell": cell, "tokens_per_second_per_device": rate, "tokens_per_second_low": rate / 2.5,
             "tokens_per_second_high": rate * 2.5, "interval": 0.8, "device_hours": 1.0,
             "seeds": 9, "measured_runs": int(times == 1.0)}
        )  # fmt: skip
    text, table, left_out = forecast(replace(inputs, plan=pd.DataFrame(plan))).blocks
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    assert isinstance(left_out, Text)
    assert text.text == (
        "Of 2 cells, 1 ran within the forecast's 80 % interval. "
        "They ran 3 times as fast as forecast in the median (2 to 4 times)."
    )
    assert [row[4] for row in table.rows] == ["2.00", "4.00"]
    assert left_out.text.startswith("The plan of 1 cells was made when some of their runs were there")
    # an hour of nine seeds is 400 s a seed, and three ran
    assert complete[complete["cell"] == "dense-bf16"]["seed"].nunique() == 3
    assert [row[5] for row in table.rows] == [duration(1200)] * 2
    (left_out,) = forecast(replace(inputs, plan=pd.DataFrame(plan).assign(measured_runs=1))).blocks
    assert isinstance(left_out, Text)
    assert left_out.text.startswith("The plan of 3 cells")


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
    folder = make(tmp_path, (1,), verbs=("aggregate", "claims"))
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    tested = [claim for claim in claims if claim["runs"] and claim["verdict"] != "not testable here"]
    assert tested
    assert {claim["verdict"] for claim in tested} == {"inconclusive"}
    assert finding(load_inputs(ExperimentFolder(folder))).startswith("One seed decides nothing")


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
