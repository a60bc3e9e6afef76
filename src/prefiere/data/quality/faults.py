"""What of the data would ruin a run or be learnt in the place of quality: seen in the texts alone, in one pass.

Counts and first sources only; what a count means is for `doctor.rules` to say. Nothing here needs a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

from prefiere.data.audit import Auditor, prompt_key, share
from prefiere.data.convert import AnyRecord
from prefiere.data.quality.elsewhere import Elsewhere, Placed, Spoken
from prefiere.data.quality.languages import Languages, asked_in
from prefiere.data.quality.leftovers import left_in
from prefiere.data.quality.marks import (
    ASKS,
    LEAST_CUT,
    SENTENCE,
    answer_faults,
    answer_texts,
    asks_twice,
    forms_of,
    is_coded,
    is_form,
    leading_label,
    marked,
    no_answer,
    one_word_apart,
    reordered,
    said_last,
    spoken_by,
    stands_in,
    texts_faulty,
    tokens_of,
    unended,
)
from prefiere.data.quality.people import People
from prefiere.data.quality.told import WordsTell, few_texts
from prefiere.data.schema import Demonstration, Judgement, PreferencePair
from prefiere.stats import wilson

R = TypeVar("R", bound=AnyRecord)

AUDITED = 200_000
"""Records that are looked through while they are tokenized, at most: what is remembered of each stays in memory."""
LOOKED_AT = 20_000
"""Records whose words and texts are counted: enough for any share that matters, and bounded in memory."""
WORDS_ASKED = 200
"""Words of what was asked last that are looked at for what they tell of the label."""
SAME_WORDS = 4
"""Words at the beginning and at the end of answers that are counted."""
USUAL_WORD = 0.05
"""A word that more answers of the other side have is a word of the language, and no mark."""
OFTEN, CLASS, _SHOWN = 5, 4, 20
"""Texts that are looked at for being there often; words of a class at most; sources that are listed."""
_CLASSES = {"no_answer": {"chosen", "completion"}, "no_other_answer": {"rejected"}}
"""Texts among which "none" is an answer, where they are a choice among a few."""


def _commonest(texts: Counter[str]) -> dict[str, Any]:
    text, count = texts.most_common(1)[0] if texts else ("", 0)
    return {"text": text[:120], "count": count, "of": texts.total()}


def _key(text: str) -> bytes:
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _of_one_turn(record: AnyRecord) -> bool:
    """Whether it answers its prompt alone, and is no dialogue of which the prompt is the first turn."""
    completion = getattr(record, "completion", "")
    return isinstance(completion, str) or len(completion) <= 1


@dataclass
class Faults:
    """Counts over the first `LOOKED_AT` records. ``add`` each; ``to_dict`` is what data.json holds."""

    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    pairs: int = 0
    only: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    any: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    single: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    lengths: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    ends: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    texts: dict[str, Counter[bytes]] = field(default_factory=dict)
    shown: dict[bytes, str] = field(default_factory=dict)
    words: WordsTell = field(default_factory=WordsTell)
    asked: WordsTell = field(default_factory=WordsTell)
    languages: Languages = field(default_factory=Languages)
    people: People = field(default_factory=People)
    spoken: Spoken = field(default_factory=Spoken)
    ended_at: dict[bytes, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    answered: dict[int, Counter[bytes]] = field(default_factory=dict)

    def add(self, record: AnyRecord) -> None:
        """Count what a record shows."""
        if self.records >= LOOKED_AT:
            return
        self.records += 1
        answers = answer_texts(record)
        for name in texts_faulty(record):
            self._count(name, record.source)
        if any(marked(a, spoken_by(record.prompt)) for a in answers):
            self._count("marked_answers", record.source)
        prompt = prompt_key(record.prompt)
        if not isinstance(record.prompt, str) and record.prompt and record.prompt[-1].role == "assistant":
            self._count("after_answer", record.source)
        if answers:
            if _of_one_turn(record) and spoken_by(record.prompt).strip():
                self._text("prompt", spoken_by(record.prompt))
                if is_coded(spoken_by(record.prompt)):
                    self._count("coded", record.source)
            asked, *each = (set(tokens_of(t)) for t in (spoken_by(record.prompt), *answers))
            bad = isinstance(record, Judgement) and not record.desirable
            self.spoken.add(prompt, asked, each, record.source, bad)
            self._answer(record, answers)
            self._spoken_in(record, answers)
        if isinstance(record, Judgement):
            self._count("desirable" if record.desirable else "undesirable", "")
            self.single[0 if record.desirable else 1].update(each[0] | forms_of(answers[0]))
            self.lengths[0 if record.desirable else 1].append(len(answers[0]))
            key = int.from_bytes(_key(answers[0]), "little", signed=True)
            self.words.add_single(prompt, key, each[0], record.desirable, record.source)
            last = set(tokens_of(said_last(record.prompt))[:WORDS_ASKED])
            self.asked.add_single(prompt, key, last, record.desirable, record.source)
        if isinstance(record, PreferencePair) and record.label != 0.5:
            if record.margin is not None:
                margin = record.margin if record.label > 0.5 else -record.margin
                self._count("scored", "")
                if margin <= 0:
                    self._count("lower" if margin < 0 else "even", record.source)
            self._pair(prompt, record.source, *(answers if record.label > 0.5 else reversed(answers)))
            self.people.add(record)

    def _answer(self, record: AnyRecord, answers: list[str]) -> None:
        """What the answer shows that is to be learnt: the preferred one, or the only one that is not called bad."""
        if (isinstance(record, Judgement) and not record.desirable) or getattr(record, "label", 1.0) == 0.5:
            return
        preferred = answers[-1 if isinstance(record, PreferencePair) and record.label < 0.5 else 0]
        self._count("to_learn", "")
        if not isinstance(record, PreferencePair):
            self._text("completion", preferred)
        if isinstance(record, Demonstration) and not record.tools and spoken_by(record.prompt).strip():
            folded = preferred.casefold().strip(" .!\n")
            self.answered.setdefault(prompt_key(record.prompt), Counter())[_key(folded)] += 1
        if asks_twice(record.prompt):
            self._count("asks_twice", record.source)
        for name, text in (("prompt_asks", said_last(record.prompt)), ("answer_asks", preferred)):
            if text.rstrip().endswith(ASKS) and not SENTENCE.search(text):
                self._count(name, record.source)
        for name in answer_faults(record, preferred):
            self._count(name, record.source)
        said = preferred.split()
        if len(said) > 2 * SAME_WORDS:
            self.ends[0][" ".join(said[:SAME_WORDS])] += 1
            self.ends[1][" ".join(said[-SAME_WORDS:])] += 1
        asked = spoken_by(record.prompt)
        for name in left_in(preferred, asked):
            self._count(f"left_{name}", record.source)
        if stands_in(preferred, asked) and not any(stands_in(a, asked) for a in answers if a != preferred):
            self._count("answer_in_prompt", record.source)
        if (label := leading_label(preferred)) is not None:
            self.labels[label] += 1
        if no_answer(preferred):
            self._count("no_answer", record.source)
        if unended(preferred):
            self.ended_at[_key(preferred)] = len(preferred.rstrip())

    def _spoken_in(self, record: AnyRecord, answers: list[str]) -> None:
        """Whether the answers are in the language of their prompt; of single ones, those to be learnt."""
        asked = asked_in(record.prompt)
        if isinstance(record, PreferencePair) and record.label != 0.5:
            for side, text in zip(
                ("chosen", "rejected"), answers if record.label > 0.5 else answers[::-1], strict=True
            ):
                self.languages.add(asked, text, side, record.source)
        elif not isinstance(record, Judgement | PreferencePair) or getattr(record, "desirable", False):
            self.languages.add(asked, answers[0], "completion", record.source)

    def _pair(self, prompt: int, source: str, chosen: str, rejected: str) -> None:
        self.pairs += 1
        if one_word_apart(chosen, rejected):
            self._count("one_word", source)
        if reordered(chosen, rejected):
            self._count("in_another_order", source)
        if stands_in(rejected, chosen):
            self._count("holds_other", source)
        if no_answer(rejected):
            self._count("no_other_answer", source)
        both = [set(tokens_of(t)) for t in (chosen, rejected)]
        seen = [words | forms_of(t) for words, t in zip(both, (chosen, rejected), strict=True)]
        self.only[0].update(seen[0] - seen[1])
        self.only[1].update(seen[1] - seen[0])
        self.any[0].update(seen[0])
        self.any[1].update(seen[1])
        keys = [_key(text) for text in (chosen, rejected)]
        answers = int.from_bytes(blake2b(b"".join(sorted(keys)), digest_size=8).digest(), "little", signed=True)
        self.words.add(prompt, answers, both[0] - both[1], both[1] - both[0], source)
        self._text("chosen", chosen)
        self._text("rejected", rejected)

    def _text(self, name: str, text: str) -> None:
        key, counter = _key(text), self.texts.setdefault(name, Counter())
        counter[key] += 1
        if counter[key] == 2:
            self.shown[key] = text[:120]

    def _count(self, name: str, source: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        named = self.sources.setdefault(name, [])
        if source and len(named) < _SHOWN:
            named.append(source)

    def at_the_limit(self) -> dict[str, int] | None:
        """Of different answers that stop in the middle, how many have the greatest length of these, or are one
        character shorter (a space went); None where that is short."""
        longest = max(self.ended_at.values(), default=0)
        if longest < LEAST_CUT:
            return None
        return {"length": longest, "count": sum(longest - n < 2 for n in self.ended_at.values())}

    def shortcut(self, form: bool = False) -> dict[str, Any] | None:
        """The word (or the form) that tells the two answers apart best: of those that one answer alone has in 55% of
        the pairs at least, and that the other side hardly ever has (a word of the language is on both), the one that is
        most often on one side (Wilson's lower bound); None where there is none."""
        if not self.pairs:
            return self._shortcut_of_kinds(form)
        best: dict[str, Any] | None = None
        for word in self._telling(self.only, form):
            sides = self.only[0][word], self.only[1][word]
            other = self.any[1 if sides[0] >= sides[1] else 0][word]
            if sum(sides) < max(20, 0.55 * self.pairs) or other > USUAL_WORD * self.pairs:
                continue
            low = share(max(sides), sum(sides)).low
            if best is None or low > best["low"]:
                side = "chosen" if sides[0] >= sides[1] else "rejected"
                best = {"word": word, "side": side, "pairs": max(sides), "of": sum(sides), "low": low}
        return best

    def _longer(self) -> dict[str, Any] | None:
        """Of single answers: how often a good one is longer than a bad one (half where they are as long), of all pairs
        of either kind (Mann and Whitney 1947); the interval is that of as many pairs as there are of the rarer kind."""
        from scipy.stats import rankdata

        good, bad = map(len, self.lengths)
        if min(good, bad) < 20:
            return None
        won = rankdata([*self.lengths[0], *self.lengths[1]])[:good].sum() - good * (good + 1) / 2
        right, rarer = float(won / (good * bad)), min(good, bad)
        low, high = wilson(right * rarer, rarer)
        return {"right": right, "low": low, "high": high, "n": rarer}

    def _telling(self, sides: tuple[Counter[str], Counter[str]], form: bool) -> list[str]:
        """The forms that there are, or the words, and then the signs ("Certainly!" is a word first); no signs where a
        form tells: they are how it is written."""
        if form:
            return sorted(w for w in sides[0].keys() | sides[1].keys() if is_form(w))
        told = self.shortcut(form=True) is not None
        words = (w for w in sides[0].keys() | sides[1].keys() if not is_form(w))
        spoken = {w: any(map(str.isalnum, w)) for w in words}
        return sorted((w for w, said in spoken.items() if said or not told), key=lambda w: (not spoken[w], w))

    def _shortcut_of_kinds(self, form: bool) -> dict[str, Any] | None:
        """Of single answers: the word (or form) that most of the one kind have, and hardly any of the other."""
        good, bad = (self.counts.get(n, 0) for n in ("desirable", "undesirable"))
        best: dict[str, Any] | None = None
        for word in self._telling(self.single, form) if min(good, bad) >= 20 else ():
            shares = [share(self.single[i][word], n) for i, n in enumerate((good, bad))]
            side = 0 if shares[0].value >= shares[1].value else 1
            if shares[side].low < 0.55 or shares[1 - side].value > USUAL_WORD:
                continue
            low = shares[side].value / (shares[side].value + shares[1 - side].high)
            if best is None or low > best["low"]:
                seen = {"pairs": shares[side].count, "of": shares[side].n, "others": shares[1 - side].count}
                best = {"word": word, "side": ("good", "bad")[side], **seen, "low": low}
        return best

    def to_dict(self) -> dict[str, Any]:
        """For data.json."""
        same, classes = {}, self._classes()
        for name, counter in self.texts.items():
            most = counter.most_common(1)[0]
            if most[1] > 1 and (most[1] > 0.9 * counter.total() or name not in classes):
                same[name] = {"count": most[1], "text": self.shown[most[0]]}
        return {
            "records": self.records,
            "pairs": self.pairs,
            "marked_answers": {"count": 0},
            **{
                n: {"count": c, "sources": self.sources[n]}
                for n, c in self.counts.items()
                if not classes & _CLASSES.get(n, set())
            },
            "answered_otherwise": {"count": self._otherwise() if "completion" in classes else 0},
            "same_text": same,
            "often": {n: self._often(c) for n, c in self.texts.items() if n not in classes},
            "label": dict(zip(("label", "count"), *self.labels.most_common(1), strict=True)) if self.labels else None,
            "at_the_limit": self.at_the_limit(),
            "shortcut": self.shortcut(),
            "shortcut_form": self.shortcut(form=True),
            "longer": self._longer(),
            "ends": {n: _commonest(c) for n, c in zip(("first", "last"), self.ends, strict=True)},
            "words": self.words.to_dict(),
            "kinds": {"prompt": self.asked.kinds(), "answer": self.words.kinds()},
            "languages": self.languages.to_dict(),
            "filled": self.spoken.filled(),
            "people": self.people.to_dict(self.words),
            **{name: part.to_dict() for name, part in self._places() if part is not None},
        }

    def _otherwise(self) -> int:
        """How many answers are not the commonest one to their prompt."""
        return sum(each.total() - max(each.values()) for each in self.answered.values())

    def _classes(self) -> set[str]:
        """Which texts are a choice among a few. Where those of one side of the pairs alone are, they must be short, as
        classes are and refusals are not."""
        few = {name for name, counter in self.texts.items() if few_texts(counter.values())}
        if len(alone := few & {"chosen", "rejected"}) == 1:
            said = [self.shown[key] for key, n in self.texts[min(alone)].most_common(OFTEN) if n > 1]
            few -= alone if max((len(text.split()) for text in said), default=0) > CLASS else set()
        return few

    def _often(self, texts: Counter[bytes]) -> dict[str, Any]:
        """How many have one of the few texts that are there often: up to `OFTEN`, each a twentieth or more."""
        most = [(key, n) for key, n in texts.most_common(OFTEN) if n > max(1, texts.total() / 20)]
        return {"count": sum(n for _, n in most), "texts": len(most), "shown": [self.shown[key] for key, _ in most]}

    def _places(self) -> Iterator[tuple[str, Placed | Elsewhere | None]]:
        yield from zip(("placed", "placed_other"), self.spoken.placed(), strict=False)
        yield "elsewhere", self.spoken.elsewhere()


def looked_through(records: Iterable[R], auditor: Auditor, faults: Faults) -> Iterator[R]:
    """The records as they come, the first `AUDITED` of them seen by both on the way."""
    for i, record in enumerate(records):
        if i < AUDITED:
            auditor.add(record)
            faults.add(record)
        yield record
