"""What of the data would ruin a run or be learnt in the place of quality: seen in the texts alone, in one pass.

Counts and first sources only; what a count means is for `doctor.rules` to say. Nothing here needs a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar

from prefiere.data.audit import Auditor, prompt_key, share
from prefiere.data.convert import AnyRecord
from prefiere.data.quality.elsewhere import Elsewhere, Placed, Spoken
from prefiere.data.quality.people import People
from prefiere.data.quality.told import WordsTell, few_texts
from prefiere.data.schema import Demonstration, Judgement, PreferencePair, Text

R = TypeVar("R", bound=AnyRecord)

AUDITED = 200_000
"""Records that are looked through while they are tokenized, at most: what is remembered of each stays in memory."""
LOOKED_AT = 20_000
"""Records whose words and texts are counted: enough for any share that matters, and bounded in memory."""
USUAL_WORD = 0.05
"""A word that more answers of the other side have is a word of the language, and no mark."""
_SHOWN = 5
_MARKUP = re.compile(
    r"<\|[\w ]{2,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜>]{1,30}｜>"
    r"|^\s*<s>|</s>\s*$|### (?:Instruction|Response):"
)
"""What chat templates write: in a text it means that somebody has rendered it, or that a template leaked into it."""
_DAMAGED = re.compile("�|Ã[\x80-¿ƒ‚„†‡ˆ‰Š‹Œ]|â€[œ\x9d™˜\x93\x94“”]|ï¿½")
"""UTF-8 that was read as another encoding, or characters that were lost."""
_OF_A_PAGE = re.compile(
    r"</(?:p|div|span|li|ul|ol|h[1-6])>|<br ?/?>|(?<!\w)<(?:p|div|span|li|ul|ol|h[1-6])(?: [^<>]*)?>"
    r"|&(?:nbsp|amp|quot|lt|gt|#\d+);"
)
"""What a web page is made of, and no answer to be read."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_LEAST_ASKED, _LABEL, _LEAST_CUT = 12, 20, 50
"""Characters of a prompt that an answer may repeat by chance; of what may stand before one that it repeats ("Question:
"); of an answer that may have been cut at a round length."""
_ASKS = ("?", "？", "؟")
_ENDS = (*_ASKS, ".", ":", "!", "。", "！", "：")
_SENTENCE = re.compile(r"[.!]\s|[。！]")
_WORD = re.compile(r"\w+|[^\w\s]")


def spoken_by(text: Text) -> str:
    """The text alone, without roles."""
    return text if isinstance(text, str) else "\n".join(m.content for m in text)


def _key(text: str) -> bytes:
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _answers_of(record: AnyRecord) -> list[str]:
    if isinstance(record, PreferencePair):
        return [spoken_by(record.chosen), spoken_by(record.rejected)]
    return [spoken_by(record.completion)] if isinstance(record, Judgement | Demonstration) else []


def texts_faulty(record: AnyRecord) -> list[str]:
    """What the texts of a record alone show: markup, damaged, nearly_same (two answers of the same words)."""
    answers = _answers_of(record)
    texts = [spoken_by(record.prompt), *answers]
    found = [n for n, p in (("markup", _MARKUP), ("damaged", _DAMAGED)) if any(p.search(t) for t in texts)]
    if len(answers) == 2:
        one, other = map(_words, answers)
        found += ["nearly_same"] if one == other else []
    return found


@lru_cache(maxsize=8)  # the texts of the record at hand, which several counts look at
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _last_turn(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""


def _of_one_turn(record: AnyRecord) -> bool:
    """Whether it answers its prompt alone, and is no dialogue of which the prompt is the first turn."""
    completion = getattr(record, "completion", "")
    return isinstance(completion, str) or len(completion) <= 1


def _words(text: str) -> list[str]:
    return [w for w in _tokens(text) if w.isalnum()]


def one_word_apart(first: str, second: str) -> bool:
    """Whether two texts are the same but for one word, which was put in, left out or exchanged, of four or more."""
    one, other = sorted(map(_words, (first, second)), key=len)
    if one == other or len(other) < 4 or len(other) - len(one) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[at + (len(one) == len(other)) :] == other[at + 1 :]


def unended(text: str) -> bool:
    """Whether a text of four words or more stops at a letter, or where more must come, instead of at a full stop or any
    other sign."""
    said = text.rstrip()
    return len(said.split()) >= 4 and (said[-1].isalpha() or said[-1] in ",;:-(")


def answer_faults(record: AnyRecord, answer: str) -> Iterator[str]:
    """What an answer to a record's prompt shows: echoed (it begins with the last turn, or a label and that), unended,
    of_a_page (marks of HTML, outside of code)."""
    asked = " ".join(_last_turn(record.prompt).casefold().split())
    if len(asked) >= _LEAST_ASKED and (asked.endswith(_ENDS) or len(asked.split()) >= 5):
        begins = " ".join(answer[: 4 * len(asked) + _LABEL].casefold().split())[: len(asked) + _LABEL]
        label, repeated, _ = begins.partition(asked)
        if repeated and label.rstrip()[-1:] in ("", ":", ">", "]"):
            yield "echoed"
    if unended(answer):
        yield "unended"
    if _OF_A_PAGE.search(_CODE.sub("", answer)):
        yield "of_a_page"


@dataclass
class Faults:
    """Counts over the first `LOOKED_AT` records. ``add`` each; ``to_dict`` is what data.json holds."""

    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    pairs: int = 0
    only: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    any: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    texts: dict[str, Counter[bytes]] = field(default_factory=dict)
    shown: dict[bytes, str] = field(default_factory=dict)
    words: WordsTell = field(default_factory=WordsTell)
    people: People = field(default_factory=People)
    spoken: Spoken = field(default_factory=Spoken)
    ended_at: dict[bytes, int] = field(default_factory=dict)

    def add(self, record: AnyRecord) -> None:
        """Count what a record shows."""
        if self.records >= LOOKED_AT:
            return
        self.records += 1
        answers = _answers_of(record)
        for name in texts_faulty(record):
            self._count(name, record.source)
        prompt = prompt_key(record.prompt)
        if not isinstance(record.prompt, str) and record.prompt and record.prompt[-1].role == "assistant":
            self._count("after_answer", record.source)
        if answers:
            if _of_one_turn(record) and spoken_by(record.prompt).strip():
                self._text("prompt", spoken_by(record.prompt))
            asked, *each = (set(_tokens(t)) for t in (spoken_by(record.prompt), *answers))
            self.spoken.add(prompt, asked, each, record.source)
            self._answer(record, answers)
        if isinstance(record, Judgement):
            self._count("desirable" if record.desirable else "undesirable", "")
            key = int.from_bytes(_key(answers[0]), "little", signed=True)
            self.words.add_single(prompt, key, set(_tokens(answers[0])), record.desirable, record.source)
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
        for name, text in (("prompt_asks", _last_turn(record.prompt)), ("answer_asks", preferred)):
            if text.rstrip().endswith(_ASKS) and not _SENTENCE.search(text):
                self._count(name, record.source)
        for name in answer_faults(record, preferred):
            self._count(name, record.source)
        if unended(preferred):
            self.ended_at[_key(preferred)] = len(preferred.rstrip())

    def _pair(self, prompt: int, source: str, chosen: str, rejected: str) -> None:
        self.pairs += 1
        if one_word_apart(chosen, rejected):
            self._count("one_word", source)
        both = [set(_tokens(t)) for t in (chosen, rejected)]
        self.only[0].update(both[0] - both[1])
        self.only[1].update(both[1] - both[0])
        self.any[0].update(both[0])
        self.any[1].update(both[1])
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
        if longest < _LEAST_CUT:
            return None
        return {"length": longest, "count": sum(longest - n < 2 for n in self.ended_at.values())}

    def shortcut(self) -> dict[str, Any] | None:
        """The word that tells the two answers apart best: of those that one answer alone has in 55% of the pairs at
        least, and that the other side hardly ever has (a word of the language is on both), the one that is most often
        on one side (Wilson's lower bound); None where there is none."""
        best: dict[str, Any] | None = None
        for word in self.only[0].keys() | self.only[1].keys():
            sides = self.only[0][word], self.only[1][word]
            other = self.any[1 if sides[0] >= sides[1] else 0][word]
            if sum(sides) < max(20, 0.55 * self.pairs) or other > USUAL_WORD * self.pairs:
                continue
            low = share(max(sides), sum(sides)).low
            if best is None or low > best["low"]:
                side = "chosen" if sides[0] >= sides[1] else "rejected"
                best = {"word": word, "side": side, "pairs": max(sides), "of": sum(sides), "low": low}
        return best

    def to_dict(self) -> dict[str, Any]:
        """For data.json."""
        same = {}
        for name, counter in self.texts.items():
            most = counter.most_common(1)[0]
            if most[1] > 1 and (most[1] > 0.9 * counter.total() or not few_texts(counter.values())):
                same[name] = {"count": most[1], "text": self.shown[most[0]]}
        return {
            "records": self.records,
            "pairs": self.pairs,
            **{n: {"count": c, "sources": self.sources[n]} for n, c in self.counts.items()},
            "same_text": same,
            "at_the_limit": self.at_the_limit(),
            "shortcut": self.shortcut(),
            "words": self.words.to_dict(),
            "people": self.people.to_dict(self.words),
            **{name: part.to_dict() for name, part in self._places() if part is not None},
        }

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
