"""Functions that score answers get the data's columns on every path, and a run that was given one asks for it again."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prefiere
import runs
from prefiere import recipe
from prefiere.api import training
from prefiere.api.functions import mark_of, recorded_name
from prefiere.in_memory import InMemory
from prefiere.run import Run

OPTIONS = {"batch_size": 4, "num_generations": 2, "max_steps": 2, "learning_rate": 1e-3, "eval_size": 4,
           "max_new_tokens": 6, "sample_prompts": 3}  # fmt: skip


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else, and nothing here reads them."""
    monkeypatch.setattr(training, "_write_report", lambda run: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and prompts with an answer each."""
    folder = tmp_path_factory.mktemp("place")
    runs.ragged_folder(folder / "model", chat=False)
    runs.model_folder(folder / "plain", chat=False)
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(12)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pairs = [r | {"chosen": f"{r['answer']}.", "rejected": "no."} for r in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    return folder


def likeness(text: str, answer: str) -> float:
    """A fixed number for each pair of texts."""
    return zlib.crc32(f"{text}>{answer}".encode()) % 1000 / 999


def by_prompt(prompts: list[str], completions: list[str]) -> list[float]:
    """The answer is worked out from the prompt: an oracle for functions that are told it."""
    answers = [str(2 * int(p.split()[0])) if p != "?" else "" for p in prompts]
    return [likeness(c, a) for c, a in zip(completions, answers, strict=True)]


def by_column(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """By TRL's contract."""
    return [likeness(c, a) for c, a in zip(completions, answer, strict=True)]


async def by_column_later(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    return by_column(completions, answer)


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(c.count(v) for v in "aeiou")) for c in completions]


def trained(place: Path, out: Path, method: str = "grpo", **options: Any) -> Run:
    given = {"model": place / "model", "data": place / "sums.jsonl", "out": out, **OPTIONS, **options}
    return getattr(prefiere, method)(**given)


@pytest.mark.long
def test_columns_reach_a_reward_in_training_and_validation(place: Path, tmp_path: Path) -> None:
    """Weights, rows and samples are those of the run whose function works the answer out from the prompt."""
    told = trained(place, tmp_path / "prompt", reward=by_prompt)
    assert len({s["reward"] for s in told.samples}) > 1
    for name, function in (("column", by_column), ("later", by_column_later)):
        runs.assert_same_run(told, trained(place, tmp_path / name, reward=function))
    rows = [json.loads(line) for line in (place / "sums.jsonl").read_text().splitlines()]
    runs.assert_same_run(told, trained(place, tmp_path / "held", data=rows, reward_funcs=by_column))


def test_columns_reach_a_judge_of_sampled_answers(place: Path, tmp_path: Path) -> None:
    given = {k: v for k, v in OPTIONS.items() if k != "num_generations"}
    given |= {"model": place / "plain", "data": place / "pairs.jsonl"}
    told, column = (prefiere.dpo(**given, out=tmp_path / f.__name__, judge=f) for f in (by_prompt, by_column))
    assert told.metrics[0]["samples/score"] > 0
    runs.assert_same_run(told, column)


def test_columns_reach_a_function_of_a_module_on_the_command_line(place: Path, tmp_path: Path) -> None:
    (tmp_path / "sums_of_mine.py").write_text(
        "import zlib\n\n\ndef score(completions, answer, **kwargs):\n"
        "    return [zlib.crc32(f'{c}>{a}'.encode()) % 1000 / 999 for c, a in zip(completions, answer)]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        flags = {"model": str(place / "model"), "data": str(place / "sums.jsonl"), "out": "run"}
        settings = recipe.load("grpo", None, flags | OPTIONS | {"reward": "sums_of_mine:score"})
        run = training.train(settings)
        runs.assert_same_run(trained(place, tmp_path / "prompt", reward=by_prompt), run)


def test_several_rewards_with_weights_are_their_sum_and_each_is_logged(place: Path, tmp_path: Path) -> None:
    def both(prompts: list[str], completions: list[str]) -> list[float]:
        return [
            2 * a - 0.5 * b for a, b in zip(by_prompt(prompts, completions), vowels(prompts, completions), strict=True)
        ]

    one = trained(place, tmp_path / "one", reward=both)
    two = trained(place, tmp_path / "two", reward=[by_column, vowels], reward_weights=[2, -0.5])
    assert {k: v.tolist() for k, v in runs.weights(one).items()} == {
        k: v.tolist() for k, v in runs.weights(two).items()
    }
    row = two.metrics[-1]
    assert row["reward"] == pytest.approx(2 * row["rewards/by_column/mean"] - 0.5 * row["rewards/vowels/mean"])
    assert row["rewards/vowels/mean_n"] == 8
    assert runs.unknown_columns(two.metrics) == set()
    with pytest.raises(ValueError, match="reward_weights needs one number for each reward, 2 in all"):
        trained(place, tmp_path / "three", reward=[by_column, vowels], reward_weights=[1])


@pytest.mark.long
def test_a_prompt_that_stands_twice_with_another_answer_counts_twice(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "answer": a} for i in range(6) for a in "ab"]
    counted = trained(place, tmp_path / "column", data=rows, reward=by_column, max_steps=1).data["prompts"]
    assert sum(counted.values()) == 12
    plain = trained(place, tmp_path / "plain", data=rows, reward=vowels, max_steps=1, eval_size=2).data["prompts"]
    assert sum(plain.values()) == 6


def closing_over(scale: float) -> Callable[..., list[float]]:
    def score(prompts: list[str], completions: list[str]) -> list[float]:
        return [scale * v for v in vowels(prompts, completions)]

    return score


@pytest.mark.long
def test_a_run_asks_for_the_function_that_it_began_with(place: Path, tmp_path: Path) -> None:
    whole = trained(place, tmp_path / "whole", reward=closing_over(0.5), max_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefiere.train.loop.Loop._stop_asked", lambda loop: loop.state.step == 1)
        trained(place, tmp_path / "run", reward=closing_over(0.5), max_steps=3)
    run = Run.open(tmp_path / "run")
    assert (run.recipe["reward"], run.status["step"]) == ("<score>", 1)
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"^<score> is another function than the one that this run began with\."):
        trained(place, tmp_path / "run", reward=closing_over(2.0), max_steps=3)
    with pytest.raises(ValueError, match=r"was started with other settings \(reward\)"):
        trained(place, tmp_path / "run", reward=vowels, max_steps=3)
    with pytest.raises(ValueError, match=r"^reward: <score> is a function that was given in Python\. Give it again"):
        training.train(recipe.load(None, run.folder / "recipe.yaml"))
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before
    runs.assert_same_run(whole, trained(place, tmp_path / "run", reward=closing_over(0.5), max_steps=3))


def calling(value: float) -> Any:
    """An object whose class has inherited how it is called."""

    class Base:
        __call__ = closing_over(value)

    class Mine(Base):
        pass

    return Mine()


def test_names_and_marks() -> None:
    import rewarding

    assert recorded_name(rewarding.letters) == "rewarding:letters"
    assert recorded_name(closing_over(1.0)) == "<score>"
    assert recorded_name(lambda p, c: 0) == "<lambda>"
    assert mark_of(closing_over(1.0)) == mark_of(closing_over(1.0))
    assert mark_of(closing_over(1.0)) != mark_of(closing_over(2.0))
    assert mark_of(lambda p, c: 0) != mark_of(lambda p, c: 1)
    assert mark_of(rewarding.letters) != mark_of(rewarding.vowels)
    assert mark_of(functools.cache(closing_over(1.0)))["code"] != mark_of(functools.cache(closing_over(2.0)))["code"]
    assert mark_of(functools.partial(vowels, s="a"))["code"] != mark_of(functools.partial(vowels, s="b"))["code"]
    assert mark_of(calling(1.0))["code"] == mark_of(calling(1.0))["code"]
    assert mark_of(calling(1.0))["code"] != mark_of(calling(2.0))["code"]


class Counting:
    """A reward that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        self.calls += 1
        return vowels(prompts, completions)


def counting() -> Callable[..., list[float]]:
    calls, seen = 0, dict[str, float]()

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        return [seen.setdefault(c, float(len(c))) for c in completions]

    return score


def remembering(prompts: list[str], completions: list[str], seen: list[str] = []) -> list[float]:  # noqa: B006
    seen += completions
    return vowels(prompts, completions)


@pytest.mark.parametrize("function", [Counting(), Counting().__call__, counting(), remembering])
def test_what_a_function_changes_itself_does_not_make_it_another(function: Callable[..., Any]) -> None:
    first = mark_of(function)
    assert mark_of(function) == first
    function(["a"], ["b"])
    then = mark_of(function)
    assert then["code"] == first["code"]
    assert then["state"] != first["state"]
    assert list(InMemory(marks={"<score>": then}).same({"<score>": first})) == [
        "<score> is the function that this run began with, and holds other values (attributes, lists) now"
    ]


def test_a_mark_is_the_same_in_every_process() -> None:
    """The order of a set of texts is another one in each."""
    code = (
        "from prefiere.api.functions import mark_of\n"
        "class Of:\n"
        "    known = None\n"
        "    def __call__(self, p, c): return [c[:1] in {'a', 'b', 'c', 'd', 'e'} for c in c]\n"
        "it = Of()\n"
        "it.known = {'a', 'b', 'c', 'd', 'e'}\n"
        "print(mark_of(it), mark_of(lambda p, c: c in (1, frozenset('vwxyz')) or c in {'a', 'b', 'c', 'd', 'e'}))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(told) == 1


@pytest.mark.long
def test_a_finished_run_takes_no_other_function_for_its_own(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counting()
    given: dict[str, Any] = {"out": tmp_path / "run", "max_steps": 1, "sample_steps": 0}
    assert not trained(place, reward=closing_over(0.5), **given | {"out": tmp_path / "other"}).already
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"^<score> is another function than the one that this run began with\."):
        trained(place, reward=closing_over(-0.5), **given | {"out": tmp_path / "other"})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    trained(place, reward=counted, **given)
    capsys.readouterr()
    assert trained(place, reward=counted, **given).already
    assert "<Counting> is the function that this run began with, and holds other values" in capsys.readouterr().err


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"reward": lambda completions, solution, **kw: [1.0]}, "<lambda> needs solution, and the data has no such column"),
    ({"reward": [closing_over(1.0), closing_over(2.0)]}, "two functions are called <score>"),
    ({"reward": 3.5}, "reward must be"),
    ({"reward": lambda prompts, completions: None}, "<lambda> returned NoneType"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_function_that_does_not_work_leaves_nothing(
    place: Path, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    rows = [json.loads(line) for line in (place / "sums.jsonl").read_text().splitlines()]
    with pytest.raises(ValueError, match=said):
        trained(place, tmp_path / "run", data=rows, **wrong)
    assert not (tmp_path / "run").exists()
