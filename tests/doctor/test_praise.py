"""Nothing praises a run that too little was held out of, nor one of which a single update decides, in any words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefiere.asked.language import TONGUES
from prefiere.cli.train import how_it_went
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import Diagnosis, consistent, diagnose
from prefiere.doctor.plain.tell import plain_verdict, told, translated
from prefiere.report.page import report_html
from prefiere.run import Run
from synthetic_runs import beginning, make, make_policy, make_reward, sound_calibration, to

PRAISE = re.compile(
    r"it worked|learnt the preferences|learnt to answer|got better|earns more|which answer is better|ranks the answers "
    r"correctly|funcionó|mejoraron|gana más|sabe qué respuesta",
    re.IGNORECASE,
)
STRONG: dict[str, Any] = {"rewards/accuracies": lambda t: 0.5 if t == 0 else 1.0, "rewards/margins": to(6.0)}
BY_A_HAIR = STRONG | {"rewards/margins": to(0.08)}
IMITATED: dict[str, Any] = {"loss": to(0.4, 2.4), "mean_token_accuracy": to(0.9, 0.4)}
NO_PAIRS = ("rewards", "logps", "eval_rewards", "eval_logps")
SFT: dict[str, Any] = {"method": "sft", "loss_type": None, "beta": None}
EARNED: dict[str, Any] = {"samples/reward": to(9.0), "samples/score": to(1.0, 0.1)}


def scored(folder: Path, n: int) -> Run:
    return make_reward(folder, calibration=sound_calibration(1.0, n), pairs=n)


KINDS: dict[str, Callable[[Path, int], Run]] = {
    "dpo": lambda folder, n: make(folder, train=STRONG, pairs=n),
    "by a hair": lambda folder, n: make(folder, train=BY_A_HAIR, pairs=n, spread=0.02),
    "sft": lambda folder, n: make(folder, train=IMITATED, drop=NO_PAIRS, recipe=SFT, pairs=n),
    "reward": scored,
    "judged": lambda folder, n: make_policy(folder, answers=EARNED, prompts=n),
    "paid": lambda folder, n: make_policy(folder, answers=EARNED, prompts=n, drop=("samples/score",)),
}
"""Runs that show a perfect result on n held-out examples."""


def said(d: Diagnosis) -> Iterator[str]:
    """Every sentence of a diagnosis that is short: headlines, titles, verdicts in every language, and --json."""
    yield d.headline
    for tongue in TONGUES:
        yield plain_verdict(d, tongue)
        yield translated(d, tongue).headline
        yield from (told(f, tongue).headline for f in d.findings)
    yield from (f.title for f in d.findings)
    yield from (f["title"] for f in json.loads(json.dumps(d.to_dict()))["findings"])


def praising(d: Diagnosis) -> list[str]:
    return [text for text in said(d) if PRAISE.search(text)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [4, 9, 19])
def test_below_20_held_out_examples_nothing_praises(tmp_path: Path, kind: str, n: int) -> None:
    d = diagnose(KINDS[kind](tmp_path, n))
    assert praising(d) == []
    assert d.severity == "warning"
    assert "few_held_out" in d
    assert "good" not in {f.severity for f in d.findings}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "by a hair"])
def test_from_20_on_the_same_result_is_praised(tmp_path: Path, kind: str) -> None:
    d = diagnose(KINDS[kind](tmp_path, 20))
    assert d.severity == "good"
    assert PRAISE.search(d.headline)
    assert plain_verdict(d, "es").startswith("Funcionó")


@pytest.mark.parametrize("kind", ["dpo", "sft", "reward"])
def test_where_nothing_was_held_out_nothing_praises(tmp_path: Path, kind: str) -> None:
    held = ("eval_", "samples/")
    made = {
        "dpo": lambda: make(tmp_path, train=STRONG, drop=held),
        "sft": lambda: make(tmp_path, train=IMITATED, drop=(*NO_PAIRS, *held), recipe=SFT),
        "reward": lambda: make_reward(tmp_path, calibration={}, drop=held),
    }
    d = diagnose(made[kind]())
    assert praising(d) == []
    assert d.severity == "info"
    assert "learnt" in d


def test_prompts_that_are_trained_on_are_not_held_out(tmp_path: Path) -> None:
    """With eval_size=0 answers are sampled to training prompts."""
    run = make_policy(tmp_path, answers=EARNED, drop=("samples/score",), recipe={"sample_prompts": 32})
    run.data = {"examples": {"train": 200, "eval": 0}}
    d = diagnose(run)
    assert praising(d) == []
    assert "held-out prompts" not in d.headline
    (missing,) = (f for f in d.findings if f.key == "unmeasured")
    assert "No held-out data" in missing.meaning


def test_several_answers_to_a_prompt_are_one_prompt(tmp_path: Path) -> None:
    """32 answers to 8 prompts, of which 200 are held out: 8 prompts were measured."""
    run = make_policy(tmp_path, answers=EARNED, prompts=32, recipe={"sample_prompts": 8, "samples_per_prompt": 4})
    run.data = {"examples": {"train": 900, "eval": 200}}
    d = diagnose(run)
    assert praising(d) == []
    assert d.headline == "Too few held-out prompts to tell: 8."


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_a_few_updates_have_earned_nothing(tmp_path: Path, steps: int) -> None:
    """Each end of the training rewards is one update's, or a few: of other prompts, with luck of their own."""
    run = make_policy(
        tmp_path, method="grpo", steps=steps, noise=0.01, rollouts={"reward": to(9.0)}, drop=("samples/",)
    )
    d = diagnose(run)
    assert "learnt" not in d
    assert praising(d) == []


def test_a_page_and_a_terminal_say_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = KINDS["dpo"](tmp_path, 9)
    for spoken in ("es_ES.UTF-8", "C"):
        monkeypatch.setenv("LC_ALL", spoken)
        assert not PRAISE.search(report_html([run]))
        assert not PRAISE.search(json.dumps(how_it_went(run)))
        assert not PRAISE.search("".join(capsys.readouterr()))
    assert not PRAISE.search(repr(run) + repr(diagnose(run)))


# -- what praise must not be said without ----------------------------------------------------------------------------

RESERVED: dict[str, Callable[[Path], Run]] = {
    "barely": lambda folder: make(folder, train=BY_A_HAIR, pairs=400, spread=0.02),
    "unusual_setting": lambda folder: make(folder, train=STRONG, pairs=400, recipe={"beta": 0.005}),
    "too_alike": lambda folder: beginning(make(folder, train=STRONG, pairs=400), likeness=0.2),
    "length_paid": lambda folder: make_policy(folder, rollouts={"length_reward_correlation": to(0.8, 0.7)}),
}
"""Runs that did learn, each with something beside it that a reader should know."""


@pytest.mark.parametrize("key", RESERVED)
def test_what_was_learnt_is_not_said_without_its_reserve(tmp_path: Path, key: str) -> None:
    """Praise and reserve stand in one sentence, in every language, and the page is neither green nor an alarm."""
    d = diagnose(RESERVED[key](tmp_path))
    assert d.praise is not None
    assert d.but is not None
    assert (d.but.key, d.severity) == (key, "info")
    assert d.headline.startswith(d.praise.title)
    assert d.headline.lower().endswith(d.but.title.lower())
    for tongue in TONGUES:
        said = plain_verdict(d, tongue)
        assert said.startswith(told(d.praise, tongue).headline)
        assert said.lower().endswith(told(d.but, tongue).headline.lower())


def test_a_warning_stands_before_a_reserve(tmp_path: Path) -> None:
    run = make(tmp_path, train=STRONG, pairs=400, recipe={"beta": 0.005}, answers={"samples/length": to(80, 20)})
    d = diagnose(run)
    assert d.but is not None
    assert (d.but.severity, d.severity) == ("warning", "warning")
    assert any(f.key == "unusual_setting" for f in d.findings)


def test_information_that_takes_nothing_away_leaves_the_page_green(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, train=STRONG, pairs=400, recipe={"beta": 0.3}))
    assert (d.but, d.severity) == (None, "good")
    assert d.praise is not None
    assert d.headline == d.praise.title


@pytest.mark.parametrize(
    ("right", "severity"),
    [(0.5, "warning"), (0.6, "info"), (0.64, "info"), (0.67, "good"), (0.8, "good")],
)
def test_what_was_learnt_in_part_is_not_simply_good(tmp_path: Path, right: float, severity: str) -> None:
    """Labels of which two in five were given at random leave 60% that can be right: praise says so."""
    run = make(tmp_path, held_out={"rewards/accuracies": to(right, right)}, pairs=600)
    found = diagnose(run)
    assert found.severity == severity
    assert ("in_part" in found) is (severity == "info")
    if severity == "info":
        assert found.headline.startswith("The model learnt the preferences")
        said = re.search(r"it is right (\d+)% of the time", found.headline)
        assert said is not None
        assert int(said[1]) == pytest.approx(100 * right, abs=3)


@pytest.mark.parametrize(("pairs", "said"), [(60, True), (600, False)])
def test_a_share_whose_interval_reaches_low_has_its_reserve(tmp_path: Path, pairs: int, said: bool) -> None:
    """70% of 60 is 57 to 80%, of 600 66 to 74%: the first may be 60% that half-random labels leave."""
    d = diagnose(make(tmp_path, held_out={"rewards/accuracies": to(0.7, 0.7)}, pairs=pairs))
    assert "learnt" in d
    assert ("in_part" in d) is said


@pytest.mark.parametrize(
    ("cause", "symptom"),
    [
        ("labels_swapped", "in_part"),
        ("words_reversed", "in_part"),
        ("reward_outliers", "reward_flat"),
        ("never_end", "reward_flat"),
    ],
)
def test_a_cause_takes_the_place_of_its_symptom(cause: str, symptom: str) -> None:
    named, said = (Finding(key, key, "warning", "") for key in (cause, symptom))
    assert consistent([named, said]) == [named]
    assert consistent([said]) == [said]


def test_a_constant_reward_is_said_where_answers_never_end() -> None:
    """It may be the limit's doing, or the reward's: the graver one is not hidden behind the other."""
    grave, other = Finding("reward_constant", "c", "bad", ""), Finding("never_end", "n", "warning", "")
    assert consistent([other, grave]) == [grave, other]
