"""How functions are called: TRL's own reward functions get what TRL's trainer gives them, ours get texts."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from prefiere.data.schema import Message
from prefiere.evaluate.functions import Answered, Function, JudgeError, Signature
from prefiere.evaluate.judges import Judge, functions_of, short_names, spread

TEXTS = Answered(
    ["2+2=", "3+3="],
    ["4", "7"],
    [np.asarray([11, 2], np.int32), np.asarray([12, 13, 2], np.int32)],
    [{"prompt": "2+2=", "answer": "4", "level": 1}, {"prompt": "3+3=", "answer": "6"}],
    step=3,
    total=9,
)
CHAT = Answered([(Message("user", p),) for p in TEXTS.prompts], TEXTS.completions, TEXTS.tokens, TEXTS.columns, 3, 9)  # type: ignore[arg-type]


def called(function: Any, asked: Answered = TEXTS) -> list[float]:
    return Function("f", function).score(asked).tolist()


def test_a_function_by_trls_contract_gets_everything_by_keyword() -> None:
    seen: dict[str, Any] = {}

    def f(completions: Any, answer: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs, completions=completions, answer=answer)
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert called(f) == [1.0, 0.0]
    state = seen.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (3, 9)
    assert seen == {
        "prompts": ["2+2=", "3+3="], "completions": ["4", "7"], "completion_ids": [[11, 2], [12, 13, 2]],
        "answer": ["4", "6"], "level": [1, None],
    }  # fmt: skip


def test_conversations_are_messages_by_trls_contract_and_texts_otherwise() -> None:
    seen: dict[str, Any] = {}

    def theirs(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        seen["theirs"] = prompts, completions
        return [0.0, 0.0]

    def ours(prompts: Any, completions: Any) -> list[float]:
        seen["ours"] = prompts, completions
        return [0.0, 0.0]

    called(theirs, CHAT)
    called(ours, CHAT)
    assert seen["theirs"] == (
        [[{"role": "user", "content": "2+2="}], [{"role": "user", "content": "3+3="}]],
        [[{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "7"}]],
    )
    assert seen["ours"] == (["2+2=", "3+3="], ["4", "7"])


def test_trls_own_reward_functions_run_unchanged() -> None:
    thinks = Answered([(Message("user", "?"),)] * 2, ["<think>a</think> b", "b"])
    assert called(think_format_reward, thinks) == [1.0, 0.0]
    long = Answered(["?"] * 3, ["a"] * 3, [np.zeros(n, np.int32) for n in (80, 90, 101)])
    assert called(get_soft_overlong_punishment(100, 20), long) == [0.0, -0.5, -1.0]


def test_every_way_to_write_one() -> None:
    scores = [1.0, 2.0]

    class Instance:
        def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
            return [float(len(c)) for c in completions]

    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return scores

    assert called(lambda prompts, answers: scores) == scores  # any names, by place
    assert called(lambda p, c, answer: [float(c[i] == answer[i]) for i in range(2)]) == [1.0, 0.0]
    assert called(lambda p, c, **kwargs: [float(len(kwargs["answer"]))] * 2) == [2.0, 2.0]
    assert called(lambda completions, level: [float(x or 0) for x in level]) == [1.0, 0.0]
    assert called(lambda **kwargs: [float(len(kwargs["completions"]))] * 2) == [2.0, 2.0]
    assert called(functools.partial(lambda scale, completions, **kw: [scale] * 2, 7.0)) == [7.0, 7.0]
    assert called(Instance()) == [1.0, 1.0]
    assert called(later) == scores
    assert called(lambda a, b, /: scores) == scores


def test_async_functions_run_beside_each_other_also_within_a_running_loop() -> None:
    """The first waits for the second, and so would never end if they ran one after the other."""
    ready: list[asyncio.Event] = []

    async def first(completions: Any, **kwargs: Any) -> list[float]:
        ready.append(asyncio.Event())
        await asyncio.wait_for(ready[0].wait(), 20)
        return [1.0] * len(completions)

    async def second(completions: Any, **kwargs: Any) -> list[float]:
        while not ready:
            await asyncio.sleep(0.001)
        ready[0].set()
        return [2.0] * len(completions)

    judge = Judge(functions_of(["<first>", "<second>"], {"<first>": first, "<second>": second}))

    async def notebook() -> Any:
        return judge.scores(TEXTS)

    assert asyncio.run(notebook()).tolist() == [[1.0, 2.0]] * 2


def test_none_leaves_an_answer_to_the_others() -> None:
    """By hand: sums as in TRL's nansum, means of those that are there."""
    one, two = (lambda prompts, completions: [1.0, None]), (lambda prompts, completions: [3.0, 5.0])
    judge = Judge(functions_of(["<one>", "<two>"], {"<one>": one, "<two>": two}))
    each = judge.scores(TEXTS)
    assert np.array_equal(each, [[1, 3], [math.nan, 5]], equal_nan=True)
    assert judge.combined(each).tolist() == [2.0, 5.0]
    assert Judge(judge.scorers, weights=(2.0, 0.5)).combined(each).tolist() == [3.5, 2.5]
    assert Judge(judge.scorers, "min").combined(each).tolist() == [1.0, 5.0]
    assert Judge(judge.scorers, "lower", 1.0).combined(each).tolist() == [1.0, 5.0]
    assert spread(each).tolist() == [1.0, 0.0]
    alone = Judge(functions_of(["<one>"], {"<one>": one}))
    with pytest.raises(JudgeError, match=r"<one> returned None for an answer to '3\+3=': somebody must score"):
        alone.scores(TEXTS)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completions, solution, **kwargs: [1.0] * 2, "f needs solution, and the data has no such column"),
        (lambda prompts, completions: [1.0], "f returned 1 score for 2 answers: it must return one each."),
        (lambda prompts, completions: 3, "f returned int: it must return a list of numbers."),
        (lambda prompts, completions: [1.0, math.nan], "f returned nan for an answer to '3+3=': scores must be finite"),
        (lambda prompts, completions: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda prompts, completions: {}["x" * 100_000], "KeyError: 'xxx"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_short_line(function: Any, said: str) -> None:
    with pytest.raises(JudgeError) as error:
        called(function)
    assert said in str(error.value)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_an_async_function_that_fails_says_where() -> None:
    async def fails(completions: Any, **kwargs: Any) -> list[float]:
        raise KeyError("key")

    with pytest.raises(JudgeError, match=r"f failed at .*test_functions\.py:\d+: KeyError: 'key'"):
        called(fails)


def test_a_generator_that_fails_says_where() -> None:
    def fails(prompts: Any, completions: Any) -> Iterator[float]:
        yield 1.0
        raise KeyError("key")

    with pytest.raises(JudgeError, match=r"^f failed at .*test_functions\.py:\d+: KeyError: 'key'$"):
        called(fails)


def test_a_column_that_stands_for_something_else_is_refused() -> None:
    asked = Answered(["?"], ["a"], [np.zeros(1, np.int32)], [{"prompts": "mine"}])
    with pytest.raises(JudgeError, match="the data has a column prompts"):
        called(lambda completions, **kwargs: [1.0], asked)
    assert called(lambda prompts, completions: [1.0], asked) == [1.0]


def test_which_functions_read_columns() -> None:
    assert not Signature.of(lambda prompts, completions: 0).reads_columns
    assert not Signature.of(lambda questions, answers: 0).reads_columns
    assert Signature.of(lambda prompts, completions, answer: 0).reads_columns
    assert Signature.of(lambda completions, **kwargs: 0).reads_columns


def test_names_in_a_log_are_short_where_they_can_be() -> None:
    assert short_names(["rewarding:letters", "<score>", "org/reward-model"]) == ["letters", "score", "reward-model"]
    assert short_names(["a:score", "b:score"]) == ["a:score", "b:score"]
