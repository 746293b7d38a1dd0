"""`octavo open` starts the user's own browser on the report's file; where there is none it names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import octavo


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "configs" / "experiments").mkdir(parents=True)
    page = tmp_path / "results" / "tiny" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>found</p>")
    return page


def test_the_browser_gets_the_file_itself(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser is a program that notes what it is told: no server is asked for the page."""
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    done = octavo(tmp_path, "open", "tiny")
    assert done.returncode == 0, done.stderr
    assert told.read_text().strip() == page.as_uri()


def test_without_a_browser_the_file_is_named(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER", "false %s")
    monkeypatch.setenv("PATH", "")
    done = octavo(tmp_path, "open", "tiny")
    assert done.returncode == 1
    assert "no browser could be started" in done.stderr
    assert str(page) in done.stderr


def test_a_report_that_is_not_there_is_an_error_that_says_how_to_make_it(page: Path, tmp_path: Path) -> None:
    page.unlink()
    done = octavo(tmp_path, "open", "tiny")
    assert done.returncode == 1
    assert "snakemake results/tiny/report.pdf" in done.stderr
    assert "Traceback" not in done.stderr
