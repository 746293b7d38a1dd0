"""The HTML report in a real browser: self-contained, interactive, and nothing in it runs that is not ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from octavo.report.charts import Chart
from octavo.report.document import Document
from octavo.report.html import write_html
from octavo.report.style import CellStyle

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="module")
def page(
    content: Document, drawn: dict[str, Chart], styles: dict[str, CellStyle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chrome]:
    folder = tmp_path_factory.mktemp("html")
    write_html(content, drawn, styles, folder / "report.html")
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,2400",
                 f"--user-data-dir={folder / 'profile'}"):  # fmt: skip
        options.add_argument(flag)
    browser = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        browser.get((folder / "report.html").as_uri())
        yield browser
    finally:
        browser.quit()


def test_nothing_fails_and_nothing_is_fetched(page: Chrome) -> None:
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [entry["message"] for entry in page.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all('"url":"http' not in request for request in requests)


def test_every_figure_is_drawn(page: Chrome, drawn: dict[str, Chart]) -> None:
    for name in drawn:
        figure = page.find_element(By.ID, f"figure-{name}")
        assert figure.find_elements(By.CSS_SELECTOR, ".main-svg"), name
        assert figure.get_attribute("aria-label") == f"What {name} shows."


def test_markup_in_names_stays_text(page: Chrome) -> None:
    assert page.title == "Octavo: small"
    assert page.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    assert "onerror=document.title" in page.find_element(By.CSS_SELECTOR, "p.note").text


def test_a_cell_can_be_switched_off(page: Chrome) -> None:
    figure = page.find_element(By.ID, "figure-loss")
    before = page.execute_script("return arguments[0].data.map(trace => trace.visible)", figure)
    assert before.count("legendonly") == 0
    figure.find_elements(By.CSS_SELECTOR, ".legendtoggle")[0].click()
    page.implicitly_wait(1)
    script = "return new Promise(done => setTimeout(() => done(arguments[0].data.map(t => t.visible)), 700))"
    after = page.execute_script(script, figure)
    assert after.count("legendonly") >= 2  # the cell's lines in both panels


def test_values_are_shown_on_hover(page: Chrome) -> None:
    script = """
        const figure = arguments[0];
        Plotly.Fx.hover(figure, [{curveNumber: 3, pointNumber: 2}]);
        return figure.querySelectorAll('.hovertext').length;
    """
    assert page.execute_script(script, page.find_element(By.ID, "figure-loss")) >= 1


def test_verdicts_are_marked_and_tables_have_captions(page: Chrome) -> None:
    assert page.find_element(By.CSS_SELECTOR, "td.supported").text == "supported"
    assert page.find_element(By.CSS_SELECTOR, "caption").text == "A table."
