"""The table of metrics: every column that a run logs stands in it, and the page says what the table says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import runs
from prefiere import metrics
from prefiere.asked.kinds import NEEDS_REFERENCE
from prefiere.methods import Family
from prefiere.metrics import COLUMNS, HELD_OUT, column, without_bounds
from prefiere.objectives.preference import LOSSES

ROOT = Path(__file__).parents[1]
GOLDEN = sorted(p for p in (ROOT / "tests" / "golden").glob("*.json") if p.name != "canary.json")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_every_column_that_a_method_logs_is_in_the_table(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len({key for row in rows for key in row}) > 30
    assert runs.unknown_columns(rows) == set()


LATER = {"reward_p05", "reward_p50", "reward_p95", "reward_outliers", "frac_reward_zero_std"}
LATER |= {"tis/clipfrac", "staleness"}  # of rollout servers: tests/algorithms/test_served.py
LATER |= {f"start/{n}" for n in ("prompt_in_own", "prompt_ignored_own", "reward_retest")}
"""Columns that came after the golden runs were recorded: tests/train/test_singles.py has runs that log them."""


def test_every_row_of_the_table_is_logged_by_some_run() -> None:
    """Those that the golden runs leave out are clocks, later columns, and what only 16-bit floats on a GPU have."""
    logged = {key for path in GOLDEN for row in json.loads(path.read_text(encoding="utf-8"))["rows"] for key in row}
    logged = {re.sub("rewards/[^/]+/(mean|std)", r"rewards/NAME/\1", key) for key in logged}
    clocks = {"seconds", "tokens_per_second", "peak_memory_mb"} | {
        f"time/{n}" for n in ("sampling", "scoring", "measuring", "learning")
    }
    assert {c.name for c in COLUMNS} - logged == clocks | LATER | {"loss_scale", "loss_scale_backoffs"}
    assert {c.name for c in COLUMNS if c.held_out} == {
        without_bounds(key).removeprefix(HELD_OUT) for key in logged if key.startswith(HELD_OUT)
    }
    bounded = {key.removesuffix("_low").removeprefix(HELD_OUT) for key in logged if key.endswith("_low")}
    assert {c.name for c in COLUMNS if c.interval != "none"} - clocks - LATER == bounded


def test_a_row_has_one_place() -> None:
    places = [(c.name, where) for c in COLUMNS for where in c.where or ("",)]
    assert len(set(places)) == len(places)
    assert {where for _, where in places} <= {"", *LOSSES, *get_args(Family)}
    assert {c.rollouts for c in COLUMNS if c.rollouts} <= {c.name for c in COLUMNS}


@pytest.mark.parametrize(
    ("where", "unit"),
    [
        (("sigmoid", "preference"), "nats"),
        (("robust", "preference"), "nats"),
        (("hinge", "preference"), ""),
        (("kto", "preference"), ""),
        (("ipo", "preference"), "squared nats per token"),
        (("", "imitation"), "nats"),
        (("", "reward"), "nats"),
    ],
)
def test_the_unit_of_a_loss_is_that_of_its_formula(where: tuple[str, str], unit: str) -> None:
    """-log of a probability is in nats; a hinge on beta times nats and KTO's probability are not; IPO squares them."""
    assert column("eval_loss", *where).unit == unit


def test_losses_without_a_reference_have_rows_that_speak_of_none() -> None:
    told = {loss for loss in LOSSES if "before" not in column("rewards/accuracies", loss, "preference").meaning}
    assert told == set(LOSSES) - set(NEEDS_REFERENCE)


def test_a_name_of_two_meanings() -> None:
    assert column("kl", "kto", "preference").words == "KL baseline"
    assert column("kl", "", "policy").per == "token"
    assert column("rewards/chosen", "", "reward").axis == "score"
    assert column("eval_rewards/chosen", "sigmoid", "preference").axis == "β × nats"
    assert column("rewards/margins", "simpo", "preference").axis == "β × nats per token"
    assert column("rewards/mean").name == "rewards/mean"
    assert column("of/another_version").words == "of/another_version"
    assert column("rewards/letters/mean").words == "reward by letters"


@pytest.mark.parametrize(
    ("key", "better"),
    [
        ("eval_loss", "lower"),
        ("eval_nll_loss", "lower"),
        ("samples/kl", "lower"),
        ("samples/repetition", "lower"),
        ("samples/reward_disagreement", "lower"),
        ("eval_rewards/accuracies", "higher"),
        ("samples/score", "higher"),
        ("samples/eos_rate", "higher"),
        ("samples/ref_logp", "higher"),
        ("samples/length", None),
        ("eval_rewards/rejected", None),
    ],
)
def test_which_way_is_better(key: str, better: str | None) -> None:
    assert column(key).better == better


def test_the_page_is_the_table() -> None:
    page = ROOT / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics.metrics_page(), (
        "run `python -m prefiere.metrics > docs/metrics.md`"
    )
    done = subprocess.run([sys.executable, "-m", "prefiere.metrics"], capture_output=True, text=True, check=True)
    assert done.stdout == metrics.metrics_page()
    for line in metrics.metrics_page().splitlines():
        if line.startswith("| "):
            assert line.count("|") == 7, f"a bar within a cell of {line}"
