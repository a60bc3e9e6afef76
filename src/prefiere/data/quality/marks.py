"""What a single record's texts show: marks that do not belong there, damage, and answers that are none.

Nothing here counts: that is for `faults`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from prefiere.data.convert import AnyRecord
from prefiere.data.schema import Demonstration, Judgement, PreferencePair, Text

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
_ASKS_FOR_A_PAGE = re.compile(
    r"\bhtml\b|\bweb ?page|página web|</?(?:html|body|head|div|p|span|table|ul|ol|li|a|br|h[1-6])\b[^<>\n]{0,100}>",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_LEAST_ASKED, _LABEL, LEAST_CUT = 12, 20, 50
"""Characters of a prompt that an answer may repeat by chance; of what may stand before one that it repeats ("Question:
"); of an answer that may have been cut at a round length."""
ASKS = ("?", "？", "؟")
_ENDS = (*ASKS, ".", ":", "!", "。", "！", "：")
SENTENCE = re.compile(r"[.!]\s|[。！]")
_WORD = re.compile(r"\w+|[^\w\s]|[\r\xa0\xad\u2000-\u200b\u202f\u3000\ufeff]")
"""Words and signs, and what nobody sees: spaces of other kinds than everybody types, marks of an encoding."""
_NO_ANSWER = frozenset((
    "n/a", "na", "n.a", "none", "null", "nil", "nan", "undefined", "empty", "missing", "tbd", "todo",
    "no answer", "no response", "not available", "not applicable", "#n/a", "#ref", "#value", "#name", "#div/0",
    "#null", "#num", "#error", "sin respuesta", "no disponible", "ninguna", "pendiente",
))  # fmt: skip
"""What says that there is no answer, in small letters, without the signs around it."""
_SIGNS = "()[]<>{}!?.,*_-–—/~ "
_BEFORE = re.compile(r"[*_#>\[( ]{0,4}((?:[^\W\d_]+ ?){1,3}?)(?: ?(\d{1,2}|(?<= )[A-Da-d]))?[*_\])]{0,3}:[*_]{0,2} \S")
_CODED = re.compile(
    r"#?\d{2,}|#?[A-Za-z]{1,12}[-_#:]?\d{2,}(?:[-_]\w+)*|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII
)


def spoken_by(text: Text) -> str:
    """The text alone, without roles."""
    return text if isinstance(text, str) else "\n".join(m.content for m in text)


def answer_texts(record: AnyRecord) -> list[str]:
    """The texts of its answers: of a pair the chosen one first."""
    if isinstance(record, PreferencePair):
        return [spoken_by(record.chosen), spoken_by(record.rejected)]
    return [spoken_by(record.completion)] if isinstance(record, Judgement | Demonstration) else []


def texts_faulty(record: AnyRecord) -> list[str]:
    """What the texts of a record alone show: markup, damaged, nearly_same (two answers of the same words)."""
    answers = answer_texts(record)
    texts = [spoken_by(record.prompt), *answers]
    found = [n for n, p in (("markup", _MARKUP), ("damaged", _DAMAGED)) if any(p.search(t) for t in texts)]
    if len(answers) == 2:
        one, other = map(_words, answers)
        found += ["nearly_same"] if one == other else []
    return found


def marked(answer: str, asked: str) -> bool:
    """Whether marks of a chat template stand in an answer; not counted is one at its end that ends the turns of its
    prompt as well, and is taken off."""
    said, own = answer.rstrip(), "</s>" if "[INST]" in asked else ""
    found = [(m.group().strip(), m.end() == len(said)) for m in _MARKUP.finditer(said)]
    return any(not (last and (mark == own or mark in asked)) for mark, last in found)


@lru_cache(maxsize=8)  # the texts of the record at hand, which several counts look at
def tokens_of(text: str) -> tuple[str, ...]:
    """Its words and signs, in small letters."""
    return tuple(_WORD.findall(text.casefold()))


def said_last(prompt: Text) -> str:
    """What was said last of a prompt."""
    return prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""


def _words(text: str) -> list[str]:
    return [w for w in tokens_of(text) if w.isalnum()]


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
    of_a_page (marks of HTML, outside of code, that were not asked for), twice (it is one text twice)."""
    asked = " ".join(said_last(record.prompt).casefold().split())
    if len(asked) >= _LEAST_ASKED and (asked.endswith(_ENDS) or len(asked.split()) >= 5):
        begins = " ".join(answer[: 4 * len(asked) + _LABEL].casefold().split())[: len(asked) + _LABEL]
        label, repeated, _ = begins.partition(asked)
        if repeated and label.rstrip()[-1:] in ("", ":", ">", "]"):
            yield "echoed"
    if unended(answer):
        yield "unended"
    if _OF_A_PAGE.search(_CODE.sub("", answer)) and not _ASKS_FOR_A_PAGE.search(spoken_by(record.prompt)):
        yield "of_a_page"
    if _is_twice(answer):
        yield "twice"


def _is_twice(text: str) -> bool:
    """Whether a text is the same words twice, of which five or more differ, and nothing else."""
    said = text.split()
    half = said[: len(said) // 2]
    return half == said[len(said) // 2 :] and len({w for w in half if any(c.isalpha() for c in w)}) >= 5


def asks_twice(prompt: Text) -> bool:
    """Whether something of a prompt stands there twice in a row: somebody's message again, or one text twice."""
    if isinstance(prompt, str):
        return _is_twice(prompt)
    spoken = [(m.role, m.content) for m in prompt if m.role != "tool"]
    again = any(one == other and len(one[1]) >= _LEAST_ASKED for one, other in pairwise(spoken))
    return again or any(_is_twice(content) for _, content in spoken)


def no_answer(text: str) -> bool:
    """Whether a text says that there is none: N/A, null, what a sheet writes of a formula that failed, a lone sign."""
    said = text.strip().casefold()
    return said.strip(_SIGNS) in _NO_ANSWER or (0 < len(said) <= 5 and not said.strip("-–—_.?*/"))


def leading_label(text: str) -> str | None:
    """What stands before an answer up to a colon, where that may be a label, "Response 1" or "Agent": up to three
    words, and a number or a letter, which is written as #."""
    found = _BEFORE.match(text[:40])
    if found is None or len(found[1]) > 24:
        return None
    return found[1].strip().casefold() + (" #" if found[2] else "")


def is_coded(prompt: str) -> bool:
    """Whether a prompt is a number or a code such as TCK-20014, in which nothing is asked."""
    return _CODED.fullmatch(prompt.strip()) is not None


_FORMS: dict[str, re.Pattern[str]] = {
    "=lists": re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t].*\n\n?[ \t]*(?:[-*•]|\d+[.)])[ \t]", re.MULTILINE),
    "=bold": re.compile(r"\*\*\S"),
    "=headings": re.compile(r"^#{1,4} \S", re.MULTILINE),
    "=several lines": re.compile(r"\S[ \t]*\n\s*\S"),
    "=spaces before signs": re.compile(r"\w [.,;:!?](?: |\Z)"),
    "=quotes around it": re.compile(r"\A\s*([\"'“«]).*[\"'”»]\s*\Z", re.DOTALL),
}


def is_form(name: str) -> bool:
    """Whether a name is that of a form, and no word."""
    return len(name) > 1 and name[0] == "="


def forms_of(text: str) -> set[str]:
    """Forms in which a text is written, that its words in small letters do not show; no word begins as their names."""
    begins = text[:4000]
    found = {name for name, pattern in _FORMS.items() if pattern.search(begins)}
    capitals, small = (sum(map(is_one, begins)) for is_one in (str.isupper, str.islower))
    if capitals >= 10 and small == 0:
        found.add("=capitals")
    return found | ({"=small letters"} if small >= 20 and capitals == 0 else set())


def reordered(first: str, second: str) -> bool:
    """Whether two texts have the same words, five or more, in another order."""
    one, other = _words(first), _words(second)
    return len(one) >= 5 and one != other and sorted(one) == sorted(other)


def stands_in(text: str, other: str) -> bool:
    """Whether a text of twenty characters or more stands whole within another one."""
    inner, outer = (" ".join(t.casefold().split()) for t in (text, other))
    return 20 <= len(inner) < len(outer) and inner in outer
