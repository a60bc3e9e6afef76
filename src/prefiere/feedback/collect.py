"""Answers of models into a store, and pairs of them into its queue. The answers come from a sampler that is given."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from prefiere.data.schema import Text
from prefiere.feedback import items
from prefiere.feedback.items import Drawn
from prefiere.feedback.schema import Purpose, answer, text_of
from prefiere.feedback.store import Store

_CHUNK = 16  # prompts between two writes: what a killed command loses, at most


@dataclass(frozen=True)
class How:
    """How answers are drawn: the same values, the same answers."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


class Answerer(Protocol):
    """A model that answers, wherever it runs."""

    label: str
    path: str
    fingerprint: str
    run: str | None
    step: int | None

    def __call__(
        self, prompts: Sequence[Text], samples: int, how: How, numbers: Sequence[int]
    ) -> list[list[str]]:  # fmt: skip
        """``samples`` answers to each prompt. numbers: what the prompts are called in the random stream."""


@dataclass(frozen=True, kw_only=True)
class Queueing:
    """What pairs are for: their purpose, how many people see each, the seed of their order, and their round, if any.

    The second model of a round's comparison is what that round made.
    """

    purpose: Purpose = "ask"
    overlap: int | None = None
    seed: int = 0
    round_id: int | None = None


class NothingToAsk(ValueError):
    """No pair of answers says anything."""


def collect_pairs(
    store: Store,
    models: Sequence[Answerer],
    prompts: Sequence[tuple[Text, str]],
    how: How,
    queueing: Queueing,
    progress: Callable[[int], None] = lambda n: None,
) -> Counter[str]:
    """Let one model answer each prompt twice, or two models once each, and queue the pairs. Returns what was made.

    What the store holds is not sampled again, so a command that was killed goes on where it was. Pairs of equal
    answers, and answers that say nothing, are counted and not asked about. Raises NothingToAsk where no pair says a
    word.
    """
    counts: Counter[str] = Counter()
    samples = 2 if len(models) == 1 else 1
    with store.write() as c:
        ids = [items.add_prompt(c, text, (), source) for text, source in prompts]
        made_in = [queueing.round_id if queueing.purpose == "compare" and n else None for n in range(len(models))]
        known = [
            items.add_model(c, m.label, m.path, m.fingerprint, m.run, m.step, made)
            for m, made in zip(models, made_in, strict=True)
        ]
    texts = dict(zip(ids, (text for text, _ in prompts), strict=True))
    drawn: list[dict[int, list[int]]] = []
    for model, model_id in zip(models, known, strict=True):
        drawn.append(_answers(store, model, model_id, texts, samples, how, progress))
    sides = [(drawn[0][i][0], drawn[-1][i][-1]) for i in texts]  # two answers of one model, or one of each of two
    counts += _queue(store, list(zip(texts, sides, strict=True)), queueing)
    if texts and counts["left out (an answer says nothing)"] == len(texts):
        raise NothingToAsk(
            f"{' and '.join(m.label for m in models)}: no pair of answers says anything; nothing to ask."
        )
    return counts


def _queue(store: Store, sides: Sequence[tuple[int, tuple[int, int]]], queueing: Queueing) -> Counter[str]:
    """Queue pairs of (prompt, two answers) in one transaction. Returns what became of them."""
    counts: Counter[str] = Counter()
    rng = random.Random(f"{queueing.seed}")
    with store.write() as c:
        said = {r.id: r.content for r in c.execute(sa.select(answer.c.id, answer.c.content))}
        for prompt_id, (a, b) in sides:
            if not _speaks(said[a]) or not _speaks(said[b]):
                counts["left out (an answer says nothing)"] += 1
                continue
            made = items.add_pair(
                c, prompt_id, a, b, purpose=queueing.purpose, overlap=queueing.overlap, round_id=queueing.round_id,
                rng=rng,
            )  # fmt: skip
            if not made and queueing.round_id is not None:
                items.join_round(c, a, b, queueing.purpose, queueing.round_id)
            equal = said[a] == said[b]
            counts["pairs queued" if made else "left out (equal answers)" if equal else "pairs there before"] += 1
    return counts


def _answers(
    store: Store, model: Answerer, model_id: int, texts: dict[int, Text], samples: int, how: How,
    progress: Callable[[int], None],
) -> dict[int, list[int]]:  # fmt: skip
    """The ids of each prompt's answers by this model, sampled where they are missing."""
    found: dict[int, list[int]] = {}
    with store.read() as c:
        for prompt_id in texts:
            same = sa.and_(
                answer.c.prompt_id == prompt_id, answer.c.model_id == model_id, answer.c.seed == how.seed,
                answer.c.sample < samples,
            )  # fmt: skip
            found[prompt_id] = list(c.execute(sa.select(answer.c.id).where(same).order_by(answer.c.sample)).scalars())
    lacking = [i for i in texts if len(found[i]) < samples]
    progress((len(texts) - len(lacking)) * samples)
    for start in range(0, len(lacking), _CHUNK):
        chunk = lacking[start : start + _CHUNK]
        said = model([texts[i] for i in chunk], samples, how, chunk)
        with store.write() as c:
            for prompt_id, answers in zip(chunk, said, strict=True):
                found[prompt_id] = [
                    items.add_answer(
                        c, prompt_id, text,
                        Drawn(model_id=model_id, seed=how.seed, sample=n, temperature=how.temperature, top_p=how.top_p,
                              max_new_tokens=how.max_new_tokens),
                    )
                    for n, text in enumerate(answers)
                ]  # fmt: skip
        progress(len(chunk) * samples)
    return found


def _speaks(content: object) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(text_of(content))
