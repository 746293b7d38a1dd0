"""Drawings as SVG inside the page, as small as they can be without a reader missing anything.

matplotlib writes SVG that any program can take apart. Inside one page most of that is said over and over: here a style
that comes again is a class of the page, what all parts of a group have in common stands at the group, only what is
referred to has an identifier, and coordinates end where a screen does. Texts are texts, colours are the page's, and
marks carry their cell and their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby
from xml.etree import ElementTree

import matplotlib.pyplot as plt
from markupsafe import Markup

from octavo.report.charts import Chart
from octavo.report.paint import FAINT, INK, PAPER, RULE, STYLE, Said, Styles, paint, svg

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
GROUP, DEFINITIONS = f"{{{SVG}}}g", f"{{{SVG}}}defs"
OF_PAGE = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", PAPER: "var(--paper)"}
"""Colours that follow the page's light or dark scheme."""
REFERENCE = re.compile(r"(?<=url\(#)[\w-]+")
NUMBER = re.compile(r"-?\d+\.\d+")
PLACES, PLACES_OF_SHAPES = 1, 2
"""Digits after the point of a coordinate in points, of which a screen shows two pixels or less; the shapes of marks,
which are a few points wide, have one more."""
RELATIVE = {"M": 2, "L": 2, "Q": 4, "C": 6}
"""Commands of a path whose points may be told from the one before, and their numbers a point."""
SPACE = re.compile(r" (?=[a-zA-Z-])|(?<=[a-zA-Z]) ")
"""Between two parts of a path that are told apart without it."""
FAMILY = re.compile(r"font-family: ([^;]*);? ?")
NOT_TURNED = re.compile(r"rotate\(-?0 [^)]*\)")
OPACITY = re.compile(r"(?<!-)\bopacity:")
"""Of a whole group: two pale marks on each other would be no darker than one."""


def inline(chart: Chart, styles: Styles, alternative: str, *, narrow: bool) -> ElementTree.Element:
    """A chart as an SVG element, whose styles and identifiers are still its own (`as_one_page`)."""
    with plt.rc_context({**STYLE, "svg.fonttype": "none"}):
        drawing = paint(chart, styles, narrow=narrow)
        root = ElementTree.fromstring(svg(drawing.figure, transparent=True))
        family = ", ".join(plt.rcParams["font.sans-serif"] + ["sans-serif"])
        plt.close(drawing.figure)
    for element in list(root):  # the style that matplotlib gives to all elements is in the page's style sheet
        if element.tag == f"{{{SVG}}}metadata" or element.find(f"{{{SVG}}}style") is not None:
            root.remove(element)
    marks = [(element, *drawing.marks[name]) for element in root.iter() if (name := element.get("id")) in drawing.marks]
    for element, cell, said in marks:
        if cell:
            element.set("data-cell", cell)
        if said:
            _say(element, said)
    definitions = {element for part in root.iter(DEFINITIONS) for element in part.iter()}
    for element in root.iter():
        _tidy(element, PLACES_OF_SHAPES if element in definitions else PLACES)
        if element not in definitions:
            element.attrib.pop("id", None)
    _share(root)
    _without_empty_groups(root)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "font-family": family,
        "class": "narrow" if narrow else "wide",
        "role": "img",
        "aria-label": alternative,
    }
    return root


def numbers_once(drawings: Sequence[ElementTree.Element]) -> list[str]:
    """The numbers of all marks, each once; the marks say at which place theirs stands. The wide and the narrow drawing
    of a chart have the same."""
    places: dict[str, int] = {}
    for root in drawings:
        for mark in root.iter():
            if (number := mark.get("data-number")) is not None:
                mark.set("data-number", str(places.setdefault(number, len(places))))
    return list(places)


def as_one_page(drawings: Iterable[ElementTree.Element]) -> tuple[list[Markup], Markup]:
    """Drawings that stand in one page, and the style sheet that they share; the elements are changed."""
    ElementTree.register_namespace("", SVG)
    numbers, classes = count(1), dict[str, str]()
    texts = []
    for root in drawings:
        names = {name: f"d{next(numbers)}" for element in root.iter() if (name := element.get("id"))}
        for element in root.iter():
            for attribute, value in element.attrib.items():
                if "url(#" in value and not attribute.startswith("data-"):
                    element.set(attribute, REFERENCE.sub(lambda found, names=names: names[found[0]], value))
            if name := element.get("id"):
                element.set("id", names[name])
            if target := element.attrib.pop(LINK, None):
                element.set("href", f"#{names[target[1:]]}" if target.startswith("#") else target)
            if style := element.attrib.pop("style", None):
                element.set("class", classes.setdefault(style, f"s{len(classes) + 1}"))
        texts.append(Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)))
    sheet = "\n".join(f".{name}{{{style}}}" for style, name in classes.items())
    return texts, Markup(sheet)


def _say(artist: ElementTree.Element, said: Sequence[Said]) -> None:
    """Give an artist's marks their numbers, and what these are of to the group of all marks that share it."""
    shapes = [*artist.iter(f"{{{SVG}}}use")] or [*artist.iter(f"{{{SVG}}}path")]
    for shape, (_, number) in zip(shapes, said, strict=True):
        shape.set("data-number", number)
    if len({what for what, _ in said}) == 1:
        artist.set("data-what", said[0][0])
        return
    parents = {child: parent for parent in artist.iter() for child in parent}
    for what, run in groupby(zip(shapes, said, strict=True), key=lambda one: one[1][0]):
        together = [shape for shape, _ in run]
        group = ElementTree.Element(GROUP, {"data-what": what})
        parent = parents[together[0]]
        parent.insert(list(parent).index(together[0]), group)
        for shape in together:
            parents[shape].remove(shape)
            group.append(shape)


def _tidy(element: ElementTree.Element, places: int) -> None:
    """The page's colours, and no more digits and space than there is use for."""
    if not (element.text or "").strip():
        element.text = None
    element.tail = None
    for name, value in list(element.attrib.items()):
        if name == "d":
            element.set(name, _shorter(value, places))
        elif name in ("x", "y"):
            element.set(name, _rounded(value, places))
        elif name == "transform":
            turned = NUMBER.sub(lambda found: _rounded(found[0], PLACES_OF_SHAPES), NOT_TURNED.sub("", value)).strip()
            if turned:
                element.set(name, turned)
            else:
                del element.attrib[name]
        elif name in ("style", "fill", "stroke"):
            element.set(name, _of_page(value))


def _rounded(number: str, places: int) -> str:
    """`12.3456` -> `12.3`, `-0.04` -> `0`."""
    value = round(float(number), places) or 0.0
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def _shorter(path: str, places: int) -> str:
    """A path's commands and coordinates; a command is not said again, and lines follow a move without one.

    Points after the first are said by how far they are from the one before, which takes fewer digits; as what is added
    up has been rounded before, nothing drifts.
    """
    parts, said, scale = [], "", 10**places
    here = began = (0, 0)  # in units of the last place: from where the next point is counted, and where its line began
    for command, *numbers in _commands(path):
        at = [round(float(number) * scale) for number in numbers]
        if command not in RELATIVE:
            parts.append(command)  # the line is closed, and goes on from where it began
            said, here = command, began
            continue
        first = not said
        steps = [one - here[place % 2] * (not first) for place, one in enumerate(at)]
        spoken = command if first else command.lower()
        if spoken != said:
            parts.append(spoken)
        said = {"M": "L", "m": "l"}.get(spoken, spoken)
        parts += [_decimal(one, places) for one in steps]
        here = (at[-2], at[-1])
        began = here if command == "M" else began
    return SPACE.sub("", " ".join(parts))


def _commands(path: str) -> Iterator[list[str]]:
    """Each command with its numbers; one that is said once for several points comes with each of them."""
    command, numbers = "", list[str]()
    for part in path.split():
        if not part.isalpha():
            numbers.append(part)
            if len(numbers) == RELATIVE.get(command, -1):
                yield [command, *numbers]
                command, numbers = {"M": "L"}.get(command, command), []
            continue
        if numbers or command not in (*RELATIVE, ""):
            yield [command, *numbers]
        command, numbers = part, []
    if numbers or command not in (*RELATIVE, ""):
        yield [command, *numbers]


def _decimal(units: int, places: int) -> str:
    """`-5` units of a tenth -> `-.5`."""
    return f"{units / 10**places:.{places}f}".rstrip("0").rstrip(".").replace("0.", ".", abs(units) < 10**places) or "0"


def _of_page(value: str) -> str:
    value = FAMILY.sub("", value)  # the element's own, once
    for colour, variable in OF_PAGE.items():
        value = value.replace(colour, variable)
    return value.replace(": ", ":").replace("; ", ";").rstrip("; ")


def _share(element: ElementTree.Element) -> None:
    """What all parts of a group have in common is the group's, from the inmost groups outwards.

    Presentation is inherited, but for opacity; a clipping is the same for the group unless a part has moved.
    """
    for child in element:
        if child.tag != DEFINITIONS:
            _share(child)
    parts = [child for child in element if child.tag != DEFINITIONS]
    if element.tag != GROUP or not parts:
        return
    for name in ("style", "clip-path"):
        values = {part.get(name) for part in parts}
        value = values.pop()
        if values or value is None or name in element.attrib:
            continue
        moved = any("transform" in part.attrib or "x" in part.attrib for part in parts)
        if OPACITY.search(value) if name == "style" else moved:
            continue
        for part in parts:
            del part.attrib[name]
        element.set(name, value)


def _without_empty_groups(element: ElementTree.Element) -> None:
    """Groups without an attribute hold nothing together, and groups without a part show nothing."""
    for child in list(element):
        _without_empty_groups(child)
        if child.tag == GROUP and not (child.attrib and len(child)):
            at = list(element).index(child)
            element[at : at + 1] = list(child)
