"""The page of all experiments says what their files say, and how far a stranger's bundle was checked."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.layout import ExperimentFolder
from octavo.records import ClaimsFile, VerificationCheck, read_record
from octavo.verification.board import of_bundle, write_index
from tests.tiny import octavo


def rows(page: Path, table: int) -> list[list[str]]:
    """The texts of a table of the page, its header first."""
    found = re.findall(r"<table>(.*?)</table>", page.read_text(), re.DOTALL)[table]
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in found.split("<tr>")[1:])
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in cells]


def test_a_results_folder_is_marked_unverified_and_leads_to_its_report(folder: ExperimentFolder, root: Path) -> None:
    done = octavo(root, "index")
    assert done.returncode == 0, done.stderr
    page = root / done.stdout.strip()
    header, own = rows(page, 0)
    said = dict(zip(header, own, strict=True))
    assert (said["experiment"], said["verification"]) == ("synthetic", "not verified")
    # 4 cells and an ablation of one of them, 2 seeds each
    assert (said["cells"], said["runs completed"], said["seeds"]) == ("5", "10 of 10", "2")
    assert '<a href="synthetic/report.html">synthetic</a>' in page.read_text()


def test_verdicts_are_those_of_the_claims_file(folder: ExperimentFolder, root: Path) -> None:
    page = write_index(Path("results"), [], Path("page.html"))
    claims = read_record(folder.claims, ClaimsFile, made_by="").claims
    header, own = rows(page, 1)
    assert header[1:] == [f"{claim.number}. {claim.title}" for claim in claims]
    for claim, said in zip(claims, own[1:], strict=True):
        assert claim.verdict in said
    assert 'href="results/synthetic/report.html"' in page.read_text()


def test_a_bundle_is_verified_by_making_its_report_again(bundle: Path, root: Path) -> None:
    shutil.rmtree(root / "results" / "synthetic")
    done = octavo(root, "index", str(bundle))
    assert done.returncode == 0, done.stderr
    _, own = rows(root / done.stdout.strip(), 0)
    assert own[:2] == ["synthetic (bundle.zip)", "verified: the bundle's report was made again, byte for byte"]


@pytest.mark.parametrize("status", ["damaged", "different", "outdated"])
def test_a_bundle_with_one_check_that_is_not_identical_is_called_different(status: Any) -> None:
    checks = [
        VerificationCheck(gate="baseline", run="synthetic", status="identical", note="the same"),
        VerificationCheck(gate="baseline", run="synthetic", status=status, note="claims.json is other bytes"),
    ]
    assert of_bundle(checks) == "DIFFERENT (1 of 2 checks): synthetic: claims.json is other bytes"


def test_without_any_report_it_says_how_to_make_one(root: Path) -> None:
    shutil.rmtree(root / "results" / "synthetic")
    with pytest.raises(OctavoError, match="no experiment has a report yet"):
        write_index(Path("results"), [], Path("page.html"))
    assert not Path("page.html").exists()
