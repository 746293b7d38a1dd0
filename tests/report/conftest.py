"""A small document with every kind of block and chart, and names that would be markup if anyone let them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from octavo.report.charts import Bars, Chart, ChartAxis, Curves, Heat, Intervals
from octavo.report.document import Document, Picture, ReportSection, Table, Text
from octavo.report.paint import save
from octavo.report.style import CellStyle, cell_styles

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "</script><img src=x onerror=document.title='owned'> #panic(\"typst\") $x_1$ *b* @ref <label> \\ `c`"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,2400",
                 f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):  # fmt: skip
        options.add_argument(flag)
    started = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="session")
def styles() -> dict[str, CellStyle]:
    runs = pd.DataFrame(
        [
            {"cell": f"{architecture}-{precision}", "architecture": architecture, "precision": precision,
             "ablation": None, "emulated": precision != "bf16"}
            for architecture in ("dense", "moe", HOSTILE)
            for precision in ("bf16", "fp8_blockwise")
        ]
    )  # fmt: skip
    return cell_styles(runs)


@pytest.fixture(scope="session")
def drawn(styles: dict[str, CellStyle]) -> dict[str, Chart]:
    cells = list(styles)
    curves = pd.DataFrame(
        [
            {"panel": panel, "series": cell, "seed": seed, "x": 1000.0 * step, "y": 5 - step / 10 + seed / 100}
            for panel in ("tokens", "hours")
            for cell in cells
            for seed in (1, 2)
            for step in range(1, 8)
        ]
    )
    dots = pd.DataFrame(
        [
            {"panel": "loss", "row": styles[cell].label, "series": cell, "value": 2.0 + place / 10, "low": 1.9,
             "high": 3.0, "role": role}
            for place, cell in enumerate(cells)
            for role in ("seed", "estimate")
        ]
    )  # fmt: skip
    bars = pd.DataFrame(
        [
            {"panel": "hours", "series": cell, "part": part, "value": value}
            for cell in cells
            for part, value in (("final", 2.0), ("lost", 1.0))
        ]
    )
    heat = pd.DataFrame(
        [
            {"panel": HOSTILE, "row": f"domain {row}", "column": column, "value": float(row - column)}
            for row in range(3)
            for column in range(4)
        ]
    )
    made: tuple[Chart, ...] = (
        Curves("loss", curves, {"tokens": ChartAxis("tokens", log=True), "hours": ChartAxis("hours")},
               ChartAxis("loss (nats)")),
        Intervals("final_loss", dots, {"loss": ChartAxis("loss (nats)")}, [list(dict.fromkeys(dots["row"]))],
                  band={"loss": (1.9, 2.1)}, zero={"loss": 2.0}),
        Bars("ledger", bars, {"hours": ChartAxis("device-hours")}, ("final", "lost")),
        Heat("experts", heat, [HOSTILE], ChartAxis("domain"), ChartAxis("expert"), ChartAxis("preference"), middle=0.0),
    )  # fmt: skip
    return {chart.name: chart for chart in made}


@pytest.fixture(scope="session")
def figures(drawn: dict[str, Chart], styles: dict[str, CellStyle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    for chart in drawn.values():
        save(chart, styles, folder)
    return folder


@pytest.fixture(scope="session")
def content(drawn: dict[str, Chart]) -> Document:
    return Document(
        "Octavo: small",
        HOSTILE,
        (2026, 1, 2, 3, 4, 5),
        sections=[
            ReportSection("Summary", [Text("A is ahead.", "lead"), Text(HOSTILE, "note"), Text(HOSTILE)]),
            ReportSection(
                "Numbers",
                [
                    Table(
                        ["cell", "value"], [["dense", "12"], [HOSTILE, "1.5"], ["moe", "supported"]], "lr", "A table."
                    ),
                    *(Picture(name, f"Caption of {name}.", f"What {name} shows.") for name in drawn),
                ],
            ),
        ],
    )
