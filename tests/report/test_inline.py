"""Figures inside the page: smaller than matplotlib's own SVG, and the same drawing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from octavo.report.charts import Chart
from octavo.report.inline import DEFINITIONS, LINK, OF_PAGE, SVG, _shorter, as_one_page, inline, numbers_once
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


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 1.234 2.5 L 3 4 L 3 4.05 L -10 0 z", "M1.2 2.5l1.8 1.5 0 0-13-4z"),  # 4.05 is 4.0, rounded to even
        ("M 1 2 L 3 4 M 5 6 L 7 8", "M1 2l2 2m2 2 2 2"),
        # by 0.04 and 0.04 and 0.04: rounded where it stands, not step by step
        ("M 0 0 L 0.04 0 L 0.08 0 L 0.12 0", "M0 0l0 0 .1 0 0 0"),
        ("M 0 -0.5 C 0.1 0.2 0.3 0.4 0.5 0.6 z M 1 1 L 2 2 z", "M0-.5c.1 .7 .3 .9 .5 1.1zm1 1.5 1 1z"),
    ],
)
def test_a_path_is_told_in_steps_from_point_to_point(path: str, short: str) -> None:
    """After z the next point is counted from where the closed line began."""
    assert _shorter(path, 1) == short


def test_a_number_that_two_drawings_show_is_there_once(drawn: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    """The wide and the narrow drawing show the same; a mark says at which place its number stands."""
    roots = [inline(drawn["final_loss"], styles, "", narrow=narrow) for narrow in (False, True)]
    before = [[mark.get("data-number", "") for mark in root.iter() if mark.get("data-number")] for root in roots]
    said = numbers_once(roots)
    assert len(said) == len(set(said))
    after = [
        [said[int(mark.get("data-number", ""))] for mark in root.iter() if mark.get("data-number")] for root in roots
    ]
    assert after == before
    assert set(before[0]) == set(before[1]) == set(said)


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
