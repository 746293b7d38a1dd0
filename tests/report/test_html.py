"""The HTML report in a real browser: self-contained, interactive, and nothing in it runs that is not ours."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from octavo.report.charts import Chart
from octavo.report.document import Document
from octavo.report.html import write_html
from octavo.report.style import CellStyle


@pytest.fixture(scope="module")
def page(
    browser: Chrome,
    content: Document,
    drawn: dict[str, Chart],
    styles: dict[str, CellStyle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Chrome:
    folder = tmp_path_factory.mktemp("html")
    write_html(content, drawn, styles, folder / "report.html")
    browser.get((folder / "report.html").as_uri())
    return browser


def test_nothing_fails_and_nothing_is_fetched(page: Chrome) -> None:
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [entry["message"] for entry in page.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all('"url":"http' not in request for request in requests)


def test_every_figure_is_drawn(page: Chrome, drawn: dict[str, Chart]) -> None:
    for name in drawn:
        figure = page.find_element(By.ID, f"figure-{name}")
        assert figure.find_elements(By.CSS_SELECTOR, ".main-svg"), name
        assert figure.get_attribute("aria-label") == f"What {name} shows."


def test_the_margin_and_the_line_of_no_difference_are_drawn(page: Chrome) -> None:
    """One band and one line, of the chart with both."""
    figure = page.find_element(By.ID, "figure-final_loss")
    assert len(figure.find_elements(By.CSS_SELECTOR, ".shapelayer path")) == 2


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
