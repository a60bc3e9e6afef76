"""docs/from-a-spreadsheet-to-a-model.md: every command runs and prints what stands there; its figures are right."""

from __future__ import annotations

import re
from pathlib import Path

import openpyxl
import pytest
from scipy.stats import binomtest

import pages
import runs

NAME = "from-a-spreadsheet-to-a-model.md"
TEXT = (pages.DOCS / NAME).read_text(encoding="utf-8")
VOTERS = ("Ana", "Luis", "Marta")
THINGS = ("an order", "a bill", "a seat", "a dog", "a ticket", "a room")


def vote(case: int, voter: str) -> list[str]:
    """A row of the sheet: most prefer the answer that helps, Luis not always."""
    thing, short = THINGS[case % 6], f"See page {case}."
    helps = f"Of course. Open page {case}, choose {thing}, and press change."
    said = "Both bad" if case % 30 == 7 else "Tie" if case % 20 == 3 else "AB"[case % 2 == 0]
    if case % 11 == 5 or (voter == "Luis" and case % 5 == 0):
        said = {"A": "B", "B": "A"}.get(said, said)
    answers = [short, helps] if case % 2 == 0 else [helps, short]
    return [f"How do I change {thing}, case {case}?", *answers, said, voter]


def team_sheet(path: Path) -> None:
    """The sheet of the page: 180 questions, every ninth asked of a second person."""
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["Question", "Answer A", "Answer B", "Preferred", "Voter"])
    for case in range(180):
        sheet.append(vote(case, VOTERS[case % 3]))
    for case in range(0, 180, 9):
        sheet.append(vote(case, VOTERS[(case + 1) % 3]))
    book.save(path)


@pytest.mark.long
def test_every_command_prints_what_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    team_sheet(Path("answers.xlsx"))
    Path("questions.txt").write_text("".join(f"How do I change a seat, row {i}?\n" for i in range(4)))
    runs.model_folder(Path("toy"))
    done = pages.run_page(NAME, {"Qwen/Qwen2.5-0.5B-Instruct": "toy"})
    assert done.attempted == len(re.findall(r"^\$ prefiere", TEXT, re.M)) > 8
    assert done.failed == 0


def test_the_rows_that_are_shown_are_of_the_sheet() -> None:
    shown = [line for line in TEXT.splitlines() if line.startswith("| How")]
    assert len(shown) == 3
    for line in shown:
        cells = [c.strip() for c in line.strip("|").split("|")]
        case = int(re.findall(r"case (\d+)", cells[0])[0])
        for cell, made in zip(cells, vote(case, cells[-1]), strict=True):
            assert re.fullmatch(re.escape(cell).replace(re.escape("..."), ".*"), made)
        assert cells[-1] == VOTERS[case % 3]


def test_intervals_are_those_of_another_library() -> None:
    (rows,) = re.findall(r"^\| held-out pairs \|(.*)\|\n\|.*\|\n\| from \|(.*)\|\n\| to \|(.*)\|$", TEXT, re.M)
    counts, low, high = ([c.strip() for c in row.split("|")] for row in rows)
    for n, bounds in zip(map(int, counts), zip(low, high, strict=True), strict=True):
        theirs = binomtest(round(0.7 * n), n).proportion_ci(method="wilson")
        assert bounds == (f"{theirs.low:.0%}", f"{theirs.high:.0%}")


def test_comparisons_are_those_of_feedback_md() -> None:
    said = re.findall(r"at a true win rate of 0\.55 (\d+) .* at 0\.60 (\d+), at 0\.65 (\d+), at\s+0\.70 (\d+)",
                      (pages.DOCS / "feedback.md").read_text(encoding="utf-8"))  # fmt: skip
    here = re.findall(
        r"in 60% of the\s+comparisons, it takes (\d+) .* at 65% (\d+) .* at 70% (\d+), at 55% .* (\d+)\.", TEXT
    )
    (six, sixfive, seven, fivefive) = here[0]
    assert said == [(fivefive, six, sixfive, seven)]
