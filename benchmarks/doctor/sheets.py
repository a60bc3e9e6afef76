"""Causes that come out of spreadsheets, votes, templates and reward functions: what people export, click and write by
mistake."""

from __future__ import annotations

import random

from benchmarks.doctor.causes import (
    CAUSES,
    ELSEWHERE,
    Cause,
    Plant,
    Row,
    flip,
    keys,
    odd,
    of,
    of_answers,
    put,
    some,
    words,
)
from prefiere.data.quality.languages import language_of

NONE = ("N/A", "none", "-", "#REF!")
REFUSALS = (
    "I cannot help with that.",
    "Sorry, this is not something that I can answer.",
    "That is beyond what I know.",
    "Please ask somebody else.",
)
PEOPLE = ("ana", "ben", "eva", "joe")


def each(**answers: tuple[str, ...]) -> Plant:
    """A share of the rows with one of these texts in the place of an answer, in turn."""
    ((side, texts),) = answers.items()
    return lambda rows, rng, share: some(rows, rng, share, lambda r, i: put(r, side, texts[i % len(texts)]))


def coded(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, lambda r, i: put(r, "prompt", f"TCK-{20_000 + i}"))


def reordered(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    def change(row: Row, i: int) -> Row:
        said = words(of(row, "chosen"))
        return put(row, "rejected", " ".join(rng.sample(said, len(said))))

    return some(rows, rng, share, change)


def both(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, lambda r, i: put(r, "chosen", f"{of(r, 'chosen')}\n\n{of(r, 'rejected')}"))


def filled(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """So many of the rows, one half or more, have the prompt of a row before."""
    size = round(1 / (1 - share))
    return [{**row, "prompt": rows[i - i % size]["prompt"]} for i, row in enumerate(rows)]


def unseen(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, lambda r, i: put(r, "chosen", of(r, "chosen").replace(" ", "\xa0")))


def contrary(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """One of four people, who has so many of the pairs, prefers the other answer."""
    out = []
    for row in rows:
        who = PEOPLE[0] if rng.random() < share else rng.choice(PEOPLE[1:])
        out.append({**(flip(row) if who == PEOPLE[0] else row), "annotator": who})
    return out


def first(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Comparisons of answers in random order, in so many of which the first one is called the better one."""
    out = []
    for row in rows:
        a, b = rng.sample((row["chosen"], row["rejected"]), 2)
        said = "a" if rng.random() < share else "b"
        out.append({"prompt": row["prompt"], "answer_a": a, "answer_b": b, "preference": said})
    return out


def translated(side: str) -> Plant:
    """A share of the answers in another language than their prompt."""

    def change(row: Row, i: int) -> Row:
        if language_of(of(row, "prompt")) == "Spanish":
            return put(row, side, f"What we can say of it is that you find this in house number {i % 90}.")
        return put(row, side, f"Lo que se puede decir de esto es que está en la casa número {i % 90}.")

    return lambda rows, rng, share: some(rows, rng, share, change)


def by_prompt(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Single answers, of so many of which the verdict is that of the first word of their prompt."""
    good = {w: i % 2 == 0 for i, w in enumerate(sorted({words(of(r, "prompt"))[0] for r in rows}))}
    out = []
    for i, row in enumerate(rows):
        side = "chosen" if i % 2 else "rejected"
        label = good[words(of(row, "prompt"))[0]] if rng.random() < share else rng.random() < 0.5
        out.append({"prompt": row["prompt"], "completion": row[side], "label": label})
    return out


def sums(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Held-out data of which so many are sums."""

    def change(row: Row, i: int) -> Row:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        asked = put(row, "prompt", f"{a} + {b}")
        return put(put(asked, "chosen", f"{a + b}"), "rejected", f"{a + b + rng.randint(1, 9)}")

    return some(rng.sample(rows, 60), rng, share, change)


def rewarded(name: str, *found: str) -> Cause:
    """A reward function of `rewards`, at three strengths the same."""
    reward = f"benchmarks.doctor.rewards:{name}"
    return Cause(f"reward: {name.replace('_', ' ')}", "rloo", (reward,) * 3, keys(*found),
                 settings=lambda s: {"reward": s})  # fmt: skip


SHEETS: tuple[Cause, ...] = (
    Cause("a few refusals are preferred", "dpo", (0.4, 0.6, 0.9), keys("few_texts", "one_text"), each(chosen=REFUSALS)),
    Cause("cells without an answer", "dpo", (0.1, 0.3, 0.6), keys("none_given"), each(rejected=NONE)),
    Cause("a label before the answers", "dpo", (0.3, 0.6, 1.0), keys("label_before"),
          of_answers(lambda r, a: f"Response {1 + len(a) % 2}: {a}")),
    Cause("numbers in the place of prompts", "dpo", (0.3, 0.6, 1.0), keys("coded_prompts"), coded),
    Cause("words in another order", "dpo", (0.3, 0.6, 1.0), keys("in_another_order"), reordered),
    Cause("both answers in one cell", "dpo", (0.15, 0.3, 0.6), keys("holds_other"), both),
    Cause("prompts filled down", "dpo", (0.5, 0.67, 0.75), keys("filled_down", *ELSEWHERE), filled),
    Cause("spaces that nobody sees", "dpo", (0.6, 0.8, 1.0), keys("shortcut_word"), unseen),
    Cause("one person is contrary", "dpo", (0.1, 0.2, 0.3), keys("person_contrary"), contrary),
    Cause("the first answer is chosen", "dpo", (0.95, 0.98, 1.0), keys("one_place"), first),
    Cause("answers in another language", "dpo", (0.2, 0.5, 1.0), keys("other_language"), translated("chosen")),
    Cause("other answers in another language", "reward", (0.2, 0.5, 1.0), keys("other_language"),
          translated("rejected")),
    Cause("KTO: the label goes with the prompt", "kto", (0.8, 0.9, 1.0), keys("label_of_prompt"), by_prompt),
    Cause("held-out data of another task", "dpo", (0.9, 0.95, 1.0), keys("another_task"), held=sums),
    Cause("the chat template is not used", "dpo", ("never",) * 3, keys("template_unused"),
          settings=lambda s: {"template": s}),
    Cause("adam_beta2", "dpo", (0.5, 0.2, 0.0), odd("adam_beta2"), settings=lambda s: {"adam_beta2": s}),
    rewarded("of_the_prompt", "reward_of_prompt"),
    rewarded("of_another_answer", "reward_noisy"),
    rewarded("of_its_batch", "reward_of_batch"),
    rewarded("a_value_stands_in", "reward_mostly_same"),
)  # fmt: skip
ALL = (*CAUSES, *SHEETS)
