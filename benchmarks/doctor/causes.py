"""Every cause that is planted: what it does to the data or to the settings at three strengths, and what names it.

A cause is named exactly where one of its keys stands among the findings as a warning or worse (for `informs`: at all).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
Kind = Literal["dpo", "kto", "reward", "sft", "rloo", "ppo"]
Plant = Callable[[list[Row], random.Random, float], list[Row]]


@dataclass(frozen=True)
class Cause:
    """kind: the method of the run. strengths: three values, weak to strong, that ``data`` or ``settings`` take.
    exact: keys (or ``key:about``) that name it. informs: finding it as information counts. held: what is planted in
    separate held-out data."""

    name: str
    kind: Kind
    strengths: tuple[Any, Any, Any]
    exact: frozenset[str]
    data: Plant | None = None
    settings: Callable[[Any], Row] = field(default=lambda s: {})
    informs: bool = False
    held: Plant | None = None


def words(text: str) -> list[str]:
    """A text's words."""
    return text.split()


def of(row: Row, side: str) -> str:
    """The text of an answer."""
    return str(row[side][-1]["content"])


def put(row: Row, side: str, text: str) -> Row:
    """The row with another text in the place of an answer, or of its prompt."""
    return {**row, side: [*row[side][:-1], {**row[side][-1], "content": text}]}


def some(rows: list[Row], rng: random.Random, share: float, change: Callable[[Row, int], Row]) -> list[Row]:
    """The rows, a share of them changed."""
    chosen = set(rng.sample(range(len(rows)), round(share * len(rows))))
    return [change(row, i) if i in chosen else row for i, row in enumerate(rows)]


def flip(row: Row, i: int = 0) -> Row:
    """Chosen and rejected exchanged."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def flipped(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, flip)


def contradicted(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return rows + [flip(r) for r in rng.sample(rows, round(share * len(rows)))]


def shuffled(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    at = rng.sample(range(len(rows)), round(share * len(rows)))
    moved = dict(zip(at, at[1:] + at[:1], strict=True))
    sides = [k for k in rows[0] if k != "prompt"]
    return [{**row, **{k: rows[moved.get(i, i)][k] for k in sides}} for i, row in enumerate(rows)]


def templated(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    def change(row: Row, i: int) -> Row:
        marked = put(row, "prompt", f"<|user|>{of(row, 'prompt')}<|end|><|assistant|>")
        for side in set(row) - {"prompt"}:
            marked = put(marked, side, f"<|assistant|>{of(row, side)}<|end|>")
        return marked

    return some(rows, rng, share, change)


def damaged(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    def broken(text: str) -> str:
        return f"{text} ¿qué será?".encode().decode("cp1252", "replace")

    def change(row: Row, i: int) -> Row:
        for side in set(row) - {"prompt"}:
            row = put(row, side, broken(of(row, side)))
        return row

    return some(rows, rng, share, change)


def marked(word: str, side: str) -> Plant:
    def plant(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
        return some(rows, rng, share, lambda r, i: put(r, side, f"{of(r, side)} {word}"))

    return plant


def one_text(side: str) -> Plant:
    def plant(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
        text = of(rows[0], side)
        return some(rows, rng, share, lambda r, i: put(r, side, text))

    return plant


def same_words(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, lambda r, i: put(r, "rejected", of(r, "chosen").upper().rstrip(".") + "!"))


def one_word_off(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    def change(row: Row, i: int) -> Row:
        said = words(of(row, "chosen"))
        at = rng.randrange(len(said))
        other = rng.choice(words(of(rng.choice(rows), "chosen")))
        return put(row, "rejected", " ".join([*said[:at], other, *said[at + 1 :]]))

    return some(rows, rng, share, change)


def repeated(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """So many of the records repeat others."""
    few = rng.sample(rows, max(10, round((1 - share) * len(rows))))
    return few + [rng.choice(few) for _ in range(len(rows) - len(few))]


def longer(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    return some(rows, rng, share, lambda r, i: put(r, "chosen", f"{of(r, 'chosen')} {of(r, 'chosen')}"))


def letters(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    def noise(text: str) -> str:
        return " ".join("".join(rng.choice("bcdfghjklmnpqrstvwxz") for _ in w) for w in words(text))

    def change(row: Row, i: int) -> Row:
        for side in set(row) - {"prompt"}:
            row = put(row, side, noise(of(row, side)))
        return row

    return some(rows, rng, share, change)


def reworded(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Held-out data: so many of its pairs are training pairs with a mark after their question."""
    at = rng.sample(range(len(rows)), 60)
    known, new = at[: round(60 * share)], at[round(60 * share) :]
    return [put(rows[i], "prompt", f"{of(rows[i], 'prompt')} ?!") for i in known] + [
        put(put(put(rows[i], "prompt", f"{of(rows[i], 'prompt')} …"), "chosen", f"{of(rows[i], 'chosen')} {i}"),
            "rejected", f"{of(rows[i], 'rejected')} {i}") for i in new
    ]  # fmt: skip


def slipped(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """The answers of the last rows, so many of them, are those of the row after."""
    begin, sides = round((1 - share) * len(rows)), [k for k in rows[0] if k != "prompt"]
    return [
        {**row, **{k: rows[(i + 1) % len(rows) if i >= begin else i][k] for k in sides}} for i, row in enumerate(rows)
    ]


def of_answers(change: Callable[[Row, str], str]) -> Plant:
    """Every answer of a share of the rows changed."""

    def planted(row: Row, i: int) -> Row:
        for side in set(row) - {"prompt"}:
            row = put(row, side, change(row, of(row, side)))
        return row

    return lambda rows, rng, share: some(rows, rng, share, planted)


def stored(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Answers cut at a length that so many of the preferred ones pass."""
    longest = sorted(len(of(r, "chosen")) for r in rows)[round((1 - share) * (len(rows) - 1))]
    return of_answers(lambda row, text: text[:longest])(rows, rng, 1.0)


def one_sided(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Single answers, of which so many are good."""
    out = []
    for row in rows:
        good = rng.random() < share
        out.append({"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good})
    return out


def judged(rows: list[Row], rng: random.Random, share: float) -> list[Row]:
    """Single answers, of so many of which the verdict is wrong."""
    out = []
    for i, row in enumerate(rows):
        good = i % 2 == 0
        wrong = rng.random() < share
        out.append(
            {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good != wrong}
        )
    return out


def times(key: str) -> Callable[[float], Row]:
    """A setting as a multiple of the automatic rate: resolved by the runner."""
    return lambda s: {key: ("auto", s)}


def keys(*names: str) -> frozenset[str]:
    return frozenset(names)


def odd(name: str) -> frozenset[str]:
    """A setting that is named, with what it does or without."""
    return keys(*(f"{key}:{name}" for key in ("setting_too_high", "setting_too_low", "unusual_setting")))


SWAP, NO_PATTERN = ("labels_swapped", "words_reversed"), "no_pattern"
ELSEWHERE = ("answers_elsewhere", "some_elsewhere", "answers_astray")
CAUSES: tuple[Cause, ...] = (
    Cause("labels: a part is swapped", "dpo", (0.1, 0.2, 0.3), keys(*SWAP), flipped),
    Cause("labels: random", "dpo", (0.4, 0.45, 0.5), keys(*SWAP, NO_PATTERN), flipped),
    Cause("labels: swapped in the training data only", "dpo", (0.8, 0.9, 1.0),
          keys("not_carried_over", "moved_away"), flipped, held=lambda rows, rng, s: rng.sample(rows, 60)),
    Cause("pairs contradict each other", "dpo", (0.2, 0.5, 1.0), keys("contradictions"), contradicted),
    Cause("answers of other prompts", "dpo", (0.6, 0.8, 1.0), keys(*ELSEWHERE), shuffled),
    Cause("template written into the text", "dpo", (0.2, 0.6, 1.0), keys("template_in_text"), templated),
    Cause("wrong encoding", "dpo", (0.1, 0.4, 1.0), keys("damaged_text"), damaged),
    Cause("a word gives the label away", "dpo", (0.6, 0.8, 1.0), keys("shortcut_word"), marked("indeed", "chosen")),
    Cause("a word in the other answer", "dpo", (0.6, 0.8, 1.0), keys("shortcut_word"), marked("hmm", "rejected")),
    Cause("one preferred text", "dpo", (0.25, 0.5, 1.0), keys("one_text"), one_text("chosen")),
    Cause("one other text", "dpo", (0.25, 0.5, 1.0), keys("one_text"), one_text("rejected")),
    Cause("the same words on both sides", "dpo", (0.2, 0.6, 1.0), keys("same_words"), same_words),
    Cause("answers one word apart", "dpo", (0.6, 0.8, 1.0), keys("too_alike", "one_word"), one_word_off,
          informs=True),
    Cause("records repeat", "dpo", (0.5, 0.7, 0.9), keys("repeated"), repeated),
    Cause("held-out answers were trained on", "dpo", (0.2, 0.5, 1.0), keys("known_answers", "not_held_out"), None,
          held=reworded),
    Cause("few held-out pairs", "dpo", (15, 8, 4), keys("few_held_out"), settings=lambda s: {"eval_size": s}),
    Cause("nothing held out", "dpo", (0, 0, 0), keys("unmeasured"), settings=lambda s: {"eval_size": s}, informs=True),
    Cause("answers cut", "dpo", (8, 5, 3), keys("cut"), settings=lambda s: {"max_completion_length": s}),
    Cause("prompts cut", "dpo", (5, 4, 3), keys("cut"), settings=lambda s: {"max_prompt_length": s}),
    Cause("only length", "dpo", (0.9, 0.95, 1.0), keys("length_tells", "longer", "said_twice"), longer, informs=True),
    Cause("answers that are no language", "dpo", (0.8, 0.9, 1.0), keys("foreign_answers"), letters),
    Cause("rate too high", "dpo", (20, 60, 200), keys("rate_too_high"), settings=times("learning_rate")),
    Cause("rate too low", "dpo", (1 / 60, 1 / 300, 1 / 3000), keys("rate_too_low"), settings=times("learning_rate")),
    Cause("beta too large", "dpo", (5.0, 20.0, 100.0), keys("setting_too_high:beta", "unusual_setting:beta"),
          settings=lambda s: {"beta": s}),
    Cause("beta too small", "dpo", (5e-3, 1e-3, 1e-4), keys("setting_too_low:beta", "unusual_setting:beta"),
          settings=lambda s: {"beta": s}),
    Cause("labels smoothed away", "dpo", (0.4, 0.45, 0.49),
          keys("setting_too_high:label_smoothing", "unusual_setting:label_smoothing"),
          settings=lambda s: {"label_smoothing": s}, informs=True),
    Cause("adam_epsilon", "dpo", (1e-2, 1e-1, 1.0),
          keys("setting_too_high:adam_epsilon", "unusual_setting:adam_epsilon"),
          settings=lambda s: {"adam_epsilon": s}),
    Cause("weight_decay", "dpo", (5.0, 30.0, 100.0),
          keys("setting_too_high:weight_decay", "unusual_setting:weight_decay"),
          settings=lambda s: {"weight_decay": s}),
    Cause("too few updates", "dpo", (6, 3, 1), keys("stuck", "within_noise", "barely"),
          settings=lambda s: {"max_steps": s}, informs=True),
    Cause("KTO: one side", "kto", (0.97, 0.99, 1.0), keys("one_sided"), one_sided),
    Cause("KTO: a part is swapped", "kto", (0.1, 0.2, 0.3), keys(*SWAP), judged),
    Cause("reward: a part is swapped", "reward", (0.1, 0.2, 0.3), keys(*SWAP), flipped),
    Cause("reward: random labels", "reward", (0.4, 0.45, 0.5), keys(*SWAP, NO_PATTERN), flipped),
    Cause("reward: a word gives the label away", "reward", (0.6, 0.8, 1.0), keys("shortcut_word"),
          marked("indeed", "chosen")),
    Cause("reward: rate too high", "reward", (30, 100, 300), keys("rate_too_high"), settings=times("learning_rate")),
    Cause("reward: rate too low", "reward", (1 / 60, 1 / 300, 1 / 3000), keys("rate_too_low"),
          settings=times("learning_rate")),
    Cause("reward: learnt by heart", "reward", (12.0, 20.0, 30.0), keys("overfit", "saturated", "no_pattern",
          "setting_too_high:num_train_epochs"), flipped, settings=lambda s: {"num_train_epochs": s}),
    Cause("reward upside down", "rloo", ("against", "against", "against"), keys("reward_upside_down"),
          settings=lambda s: {"reward": f"benchmarks.doctor.rewards:{s}"}),
    Cause("reward: noise", "rloo", ("noisy_2", "noisy_5", "noise"), keys("reward_noisy"),
          settings=lambda s: {"reward": f"benchmarks.doctor.rewards:{s}"}),
    Cause("reward: constant", "rloo", ("constant", "constant", "constant"), keys("reward_constant"),
          settings=lambda s: {"reward": f"benchmarks.doctor.rewards:{s}"}),
    Cause("reward: outliers", "rloo", ("outliers_1", "outliers_2", "outliers_5"), keys("reward_outliers"),
          settings=lambda s: {"reward": f"benchmarks.doctor.rewards:{s}"}),
    Cause("reward: length", "rloo", ("long_1", "long_3", "long"), keys("length_hack", "length_paid", "exploited"),
          settings=lambda s: {"reward": f"benchmarks.doctor.rewards:{s}"}, informs=True),
    Cause("price of the KL", "rloo", (5.0, 20.0, 100.0), keys("price_too_high", "setting_too_high:kl_coef"),
          settings=lambda s: {"kl_coef": s}),
    Cause("policy: rate too high", "rloo", (20, 60, 200), keys("rate_too_high"), settings=times("learning_rate")),
    Cause("policy: rate too low", "rloo", (1 / 60, 1 / 300, 1 / 3000), keys("rate_too_low"),
          settings=times("learning_rate")),
    Cause("policy: temperature", "rloo", (2.0, 3.0, 5.0),
          keys("setting_too_high:temperature", "unusual_setting:temperature"), settings=lambda s: {"temperature": s}),
    Cause("policy: passes over a rollout", "ppo", (12, 20, 30),
          keys("setting_too_high:num_ppo_epochs", "unusual_setting:num_ppo_epochs"),
          settings=lambda s: {"num_ppo_epochs": s, "max_approx_kl": None}),
    Cause("policy: answers that cannot end", "rloo", (8, 5, 3), keys("never_end"),
          settings=lambda s: {"max_new_tokens": s}),
    Cause("sft: rate too high", "sft", (30, 100, 300), keys("rate_too_high"), settings=times("learning_rate")),
    Cause("sft: rate too low", "sft", (1 / 60, 1 / 300, 1 / 3000), keys("rate_too_low"),
          settings=times("learning_rate")),
    Cause("sft: answers of other prompts", "sft", (0.6, 0.8, 1.0), keys(*ELSEWHERE), shuffled),
    Cause("sft: template written into the text", "sft", (0.2, 0.6, 1.0), keys("template_in_text"), templated),
    Cause("rows slipped by one", "dpo", (0.3, 0.6, 1.0), keys(*ELSEWHERE), slipped),
    Cause("sft: rows slipped by one", "sft", (0.3, 0.6, 1.0), keys(*ELSEWHERE), slipped),
    Cause("a column was cut when it was stored", "dpo", (0.3, 0.6, 0.9), keys("cut_off"), stored),
    Cause("marks of a web page", "dpo", (0.3, 0.6, 1.0), keys("web_marks"), of_answers(lambda r, a: f"<p>{a}</p>")),
    Cause("sft: the prompt is in the answer", "sft", (0.3, 0.6, 1.0), keys("prompt_in_answer"),
          of_answers(lambda r, a: f"Question: {of(r, 'prompt')} Answer: {a}")),
    Cause("warm-up", "dpo", (0.9, 100, 1000), odd("warmup_steps"), settings=lambda s: {"warmup_steps": s}),
    Cause("max_grad_norm", "dpo", (1e-3, 1e-5, 1e-7), odd("max_grad_norm"), settings=lambda s: {"max_grad_norm": s}),
    Cause("lora_alpha", "dpo", (1e3, 1e4, 1e5), odd("lora_alpha"), settings=lambda s: {"lora": True, "lora_alpha": s}),
    Cause("lora_dropout", "dpo", (0.5, 0.7, 0.9), odd("lora_dropout"),
          settings=lambda s: {"lora": True, "lora_dropout": s}),
    Cause("KTO: one kind weighs nothing", "kto", (30.0, 200.0, 1000.0), keys("lopsided"),
          settings=lambda s: {"desirable_weight": s}),
    Cause("policy: temperature too low", "rloo", (0.1, 0.03, 0.01), odd("temperature"),
          settings=lambda s: {"temperature": s}),
    Cause("critic: rate too low", "ppo", (1e-6, 1e-8, 1e-10), odd("critic_learning_rate"),
          settings=lambda s: {"critic_learning_rate": s}),
)  # fmt: skip

UNLEARNT = Cause("nothing learnt with sound labels and settings", "dpo", (None, None, None), keys("pattern_missed"))
"""Not planted: a healthy run of a model that cannot learn the data. It is not healthy, and its labels are sound."""
