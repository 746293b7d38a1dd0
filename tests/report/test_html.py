"""The HTML report in a real browser: it fits, everyone can use it, and nothing runs or is fetched that is not ours."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from unicodedata import normalize

import pytest
from pypdf import PdfReader
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from octavo.report.charts import Chart
from octavo.report.document import Document
from octavo.report.html import write_html
from octavo.report.style import CellStyle
from tests.report.conftest import HOSTILE

WIDTHS, SCHEMES = (375, 1280), ("light", "dark")


@pytest.fixture(scope="module")
def file(
    content: Document,
    drawn: dict[str, Chart],
    styles: dict[str, CellStyle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("html") / "report.html"
    write_html(content, drawn, styles, path)
    return path


@pytest.fixture
def page(browser: Chrome, file: Path) -> Iterator[Chrome]:
    """The page afresh, wide and light."""
    show(browser, 1280, "light")
    browser.get(file.as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def show(browser: Chrome, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def visible(page: Chrome, name: str) -> list[str]:
    """The classes of a figure's SVGs that are shown."""
    svgs = page.find_elements(By.CSS_SELECTOR, f"#figure-{name} > svg")
    return [str(svg.get_attribute("class")) for svg in svgs if svg.is_displayed()]


def test_nothing_fails_and_nothing_is_fetched(page: Chrome, file: Path) -> None:
    """Neither from the page's own making nor by what a reader may press."""
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [entry["message"] for entry in page.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert requests
    assert all('"url":"http' not in request for request in requests)
    links = re.findall(r'(?:href|src|action)="([^"]*)"', file.read_text())
    assert links
    assert {link[0] for link in links} <= {"#", "d"}, "within the page, or data in it"


def test_a_script_of_another_does_not_run(page: Chrome) -> None:
    """The policy names the hash of the page's script: one that got in all the same is refused."""
    page.execute_script(
        "const one = document.createElement('script'); one.textContent = \"document.title = 'owned'\";"
        "document.body.append(one)"
    )
    assert page.title == "Octavo: small"


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_and_fits(page: Chrome, drawn: dict[str, Chart], width: int) -> None:
    """One of two versions is shown, named in words, and no text of it is cut off at the edges."""
    show(page, width, "light")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for name in drawn:
        assert visible(page, name) == ["narrow" if width == 375 else "wide"]
        svg = page.find_element(By.CSS_SELECTOR, f"#figure-{name} > svg.{visible(page, name)[0]}")
        assert svg.get_attribute("aria-label") == f"What {name} shows."
        texts = svg.find_elements(By.TAG_NAME, "text")
        assert texts
        frame, tolerance = svg.rect, 3  # pixels, by which the browser's font may be wider than matplotlib's
        for text in texts:
            said = str(text.get_attribute("textContent"))
            if name == "experts" and set(said.split()) & set(HOSTILE.split()):  # a title of 90 letters need not fit
                continue
            left, width_of = text.rect["x"] - frame["x"], text.rect["width"]
            assert -tolerance <= left <= frame["width"] - width_of + tolerance, (name, said)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation(page: Chrome, file: Path, width: int, scheme: str) -> None:
    """All rules of axe-core, those of WCAG 2.2 AA and of good practice; every table unfolded."""
    show(page, width, scheme)
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    page.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.execute_script((Path(package.origin).parent / "axe.min.js").read_text())
    found = page.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert len(found["passes"]) > 20
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]] == []


def test_a_figure_is_no_stop_of_the_tab_key_and_the_first_skips_to_the_report(page: Chrome) -> None:
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert first.text == "Skip to the report"
    first.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "report"
    stops = page.execute_script(
        "return [...document.querySelectorAll('figure svg, figure svg *')].map(o => o.tabIndex)"
    )
    assert set(stops) == {-1}


def test_dark_figures_are_light_on_dark(page: Chrome) -> None:
    """Texts and frames follow the page; the colours of cells do not."""
    script = """const style = (which) => getComputedStyle(document.querySelector(which));
        return [style("#figure-loss > svg.wide text").fill, style("body").backgroundColor,
                style("#figure-loss > svg.wide [data-cell=moe-bf16] use").fill]"""
    light = page.execute_script(script)
    show(page, 1280, "dark")
    dark = page.execute_script(script)
    brightness = [[sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in one[:2]] for one in (light, dark)]
    (ink, paper), (dark_ink, dark_paper) = brightness
    assert (ink < 200, paper > 700) == (True, True)
    assert (dark_ink > 600, dark_paper < 200) == (True, True)
    assert light[2] == dark[2] == "rgb(213, 94, 0)"  # #D55E00, vermilion


def test_printed_it_is_whole_pages_without_tools(page: Chrome, drawn: dict[str, Chart]) -> None:
    """No toggles, links or folded tables; every figure's caption is on the page of its figure."""
    printed = page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    sheets = PdfReader(BytesIO(base64.b64decode(printed["data"]))).pages
    pages = [normalize("NFKC", sheet.extract_text()) for sheet in sheets]  # without ligatures
    text = " ".join(pages)
    assert "Shown in all figures" not in text
    assert "Skip to the report" not in text
    assert "The numbers" not in text
    assert any("Caption of loss." in sheet and "loss (nats)" in sheet for sheet in pages)
    assert [name for name in drawn if f"Caption of {name}." not in text] == []


def test_markup_in_names_stays_text(page: Chrome) -> None:
    assert page.title == "Octavo: small"
    assert page.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    assert "onerror=document.title" in page.find_element(By.CSS_SELECTOR, "p.note").text
    assert "onerror" in page.find_element(By.CSS_SELECTOR, "#figure-experts > svg.wide").text


def test_a_cell_is_switched_off_in_all_figures(page: Chrome) -> None:
    marks = [one for one in page.find_elements(By.CSS_SELECTOR, "svg.wide [data-cell=moe-bf16]") if one.is_displayed()]
    figures = {"loss", "final_loss", "ledger"}
    assert all(page.find_elements(By.CSS_SELECTOR, f"#figure-{name} [data-cell=moe-bf16]") for name in figures)
    page.find_element(By.CSS_SELECTOR, ".cells input[value=moe-bf16]").click()
    assert marks
    assert not any(one.is_displayed() for one in marks)
    others = page.find_elements(By.CSS_SELECTOR, "svg.wide [data-cell=dense-bf16]")
    assert any(one.is_displayed() for one in others)


def test_a_mark_shows_its_number(page: Chrome) -> None:
    """Two seeds at 4,000 tokens: 4.61 and 4.62, on the average 4.615."""
    points = page.find_elements(By.CSS_SELECTOR, "#figure-loss > svg.wide [data-cell=dense-bf16] [data-number]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[3])
    ActionChains(page).move_to_element(points[3]).perform()
    tip = page.find_element(By.ID, "tip")
    assert tip.is_displayed()
    assert tip.text.endswith(": 4.615 (seeds 4.610 to 4.620) at 4,000")


def test_the_numbers_of_a_figure_are_a_table_below_it(page: Chrome, styles: dict[str, CellStyle]) -> None:
    """The estimates of tests/report/conftest.py: 2.0, 2.1, ... in the interval from 1.9 to 3."""
    below = page.find_element(By.CSS_SELECTOR, "#figure-final_loss details")
    below.find_element(By.TAG_NAME, "summary").click()
    rows = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in below.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]
    assert [row[1] for row in rows] == [" ".join(style.label.split()) for style in styles.values()]
    assert rows[1][2:] == ["2.100", "1.900", "3.000"]


def test_a_table_is_sorted_by_number(page: Chrome) -> None:
    """As numbers, not as texts: 1.5 before 12; what is none comes last."""
    table = page.find_element(By.CSS_SELECTOR, "section table")
    header = table.find_elements(By.CSS_SELECTOR, "thead th")[1]
    orders = []
    for _ in range(2):
        header.find_element(By.TAG_NAME, "button").click()
        orders.append([row.text for row in table.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(2)")])
        orders.append([str(header.get_attribute("aria-sort"))])
    assert orders == [["1.5", "12", "supported"], ["ascending"], ["12", "1.5", "supported"], ["descending"]]


def test_verdicts_are_marked_and_tables_have_captions(page: Chrome) -> None:
    assert page.find_element(By.CSS_SELECTOR, "td.supported").text == "supported"
    assert page.find_element(By.CSS_SELECTOR, "caption").text == "A table."


def test_amounts_in_several_units_are_sorted_by_what_they_are(page: Chrome) -> None:
    shown = ["95 s", "2.1 min", "1.5 h", "52 cents", "$1.20", "2.4 Wh", "1.2 kWh", "396 k", "× 0.887 [0.843, 0.934]"]
    found = page.execute_script("return arguments[0].map(numeric)", shown)
    assert found == pytest.approx([95, 126, 5400, 0.52, 1.2, 2.4, 1200, 396_000, 0.887])


@pytest.mark.parametrize(("width", "folded"), [(375, True), (1280, False)])
def test_on_a_telephone_the_answer_comes_before_the_contents(page: Chrome, width: int, folded: bool) -> None:
    show(page, width, "light")
    page.refresh()
    assert (page.find_element(By.CSS_SELECTOR, "nav details").get_attribute("open") is None) == folded
