"""Figures inside the page: smaller than matplotlib's own SVG, and the same drawing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from octavo.report.charts import Chart
from octavo.report.inline import DEFINITIONS, LINK, OF_PAGE, SVG, as_one_page, inline
from octavo.report.paint import STYLE, paint, svg
from octavo.report.style import CellStyle

NAMES = ("loss", "final_loss", "ledger", "experts")
SHAPES = {f"{{{SVG}}}{name}" for name in ("use", "path", "text")}
Look = dict[str, str]


def looks(element: ElementTree.Element, inherited: Look, sheet: dict[str, Look]) -> Iterator[tuple[str, Look, str]]:
    """What is drawn, in order: its kind with what it is drawn of, its style with what it inherits, and its clipping."""
    own = {**declarations(element.get("style", "")), **sheet.get(element.get("class", ""), {})}
    look = {**inherited, **own}
    if clip := element.get("clip-path"):
        look["clip"] = clip
    if element.tag in SHAPES:
        kind = element.tag.removeprefix(f"{{{SVG}}}")
        yield (
            f"{kind} {element.text or ''}",
            {name: value for name, value in look.items() if name != "clip"},
            str(look.get("clip") is not None),
        )
    for child in element:
        if child.tag != DEFINITIONS:
            yield from looks(child, look, sheet)


def declarations(style: str) -> Look:
    pairs = [part.split(":", 1) for part in style.split(";") if part.strip()]
    return {name.strip(): value.strip() for name, value in pairs if name.strip() != "font-family"}


def of_page(look: Look) -> Look:
    """References have other names in a page, colours may be the page's."""
    return {name: OF_PAGE.get(value, re.sub(r"#[\w-]+\)", "#)", value)) for name, value in look.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_is_matplotlibs(name: str, drawn: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    """Each shape in its order with its whole style, its clipping, and its place to half a tenth of a point."""
    with plt.rc_context({**STYLE, "svg.fonttype": "none"}):
        plain = ElementTree.fromstring(svg(paint(drawn[name], styles).figure, transparent=True))
        plt.close("all")
    (text,), sheet = as_one_page([inline(drawn[name], styles, "", narrow=False)])
    small = ElementTree.fromstring(text)
    assert len(text) < 0.7 * len(ElementTree.tostring(plain))
    classes = {
        found[1]: declarations(found[2]) for found in re.finditer(r"\.(\w+)\{([^}]*)\}", str(sheet))
    }  # fmt: skip
    expected = [(kind, of_page(look), clip) for kind, look, clip in looks(plain, {}, {})]
    assert [(kind, of_page(look), clip) for kind, look, clip in looks(small, {}, classes)] == expected

    def places(root: ElementTree.Element) -> list[float]:
        shapes = (element for element in root.iter() if element.tag in SHAPES)
        return [float(element.get(at, 0)) for element in shapes for at in ("x", "y")]

    assert places(small) == pytest.approx(places(plain), abs=0.0501)


def test_what_is_referred_to_is_there_once(drawn: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    texts, sheet = as_one_page(
        [inline(drawn[name], styles, "", narrow=narrow) for name in NAMES for narrow in (False, True)]
    )
    page = "".join(texts)
    identifiers = re.findall(r' id="([^"]*)"', page)
    referred = set(re.findall(r'href="#([^"]*)"', page)) | set(re.findall(r"url\(#([^)]*)\)", page + sheet))
    assert len(identifiers) == len(set(identifiers))
    assert referred <= set(identifiers)
    assert LINK not in page
    used = set(re.findall(r' class="(s\d+)"', page))
    assert used == set(re.findall(r"\.(s\d+)\{", str(sheet)))
    assert 'style="' not in page


def test_a_mark_has_its_number_and_its_group_what_it_is_of(
    drawn: dict[str, Chart], styles: dict[str, CellStyle]
) -> None:
    """tests/report/conftest.py: one seed and an estimate of 2.1 for the second cell, 1.9 to 3."""
    (text,), _ = as_one_page([inline(drawn["final_loss"], styles, "", narrow=False)])
    root = ElementTree.fromstring(text)
    parents = {child: parent for parent in root.iter() for child in parent}
    said = []
    for mark in root.iter():
        if number := mark.get("data-number"):
            group = mark
            while (what := group.get("data-what")) is None:
                group = parents[group]
            said.append(f"{what} {number}")
    label = list(styles.values())[1].label
    assert said[2:4] == [f"{label}, one seed: 2.100", f"{label}: 2.100, 95 % interval 1.900 to 3.000"]
    assert len(said) == 2 * len(styles)
