"""What words alone show, before any model. Of the labels: the word that gives them away, those that words contradict,
how often they tell the preferred answer (`data.quality.told`), and whose preferences are not the others'
(`data.quality.people`). Of the answers: which language they are in (`data.quality.languages`)."""

from __future__ import annotations

from collections.abc import Mapping
from unicodedata import category

from prefiere.asked.language import Worded
from prefiere.doctor.case import Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.account import (
    CLEAN,
    Account,
    found_in_data,
    level_in,
    number_in,
    part_of,
    share_seen,
    sources_in,
)
from prefiere.doctor.series import Level
from prefiere.doctor.words import form, interval, language_named, line, number
from prefiere.stats import LEAST

UNTOLD = 0.65
"""Share of the preferred answers up to which words that may be at chance tell nothing: the high end of the interval."""

BY_PROMPT = 0.8
"""How often the words of questions tell good answers from bad ones, the low end, from which on it is said."""

_SIDES = {"chosen": "preferred", "rejected": "other", "good": "good", "bad": "bad"}


def words_reversed(account: Account) -> Finding | None:
    """Labels that the words of the answers contradict as firmly as they confirm the others (`data.quality.told`)."""
    part = part_of(account, "audit", "faults", "words", "reversed")
    n = number_in(part, "n")
    if not n:
        return None
    share, low, high = (f"{100 * number_in(part, k):.0f}%" for k in ("share", "low", "high"))
    count = number_in(part, "count")
    return Finding(
        "words_reversed",
        f"About {share} of the labels look reversed: the words of these answers contradict them.",
        "warning",
        "A sum over single words, fitted to the others, is sure of nearly every label, and of a part of them it is "
        "sure the other way round. Labels that were given at random would leave it unsure; a part that is swapped "
        "looks like this, and so does a part in which something else was preferred. The labels of "
        f"{count:,.0f} lines are meant.",
        (
            line("against_words", share=share, n=f"{n:,.0f}", low=low, high=high),
            line("between_groups", least=f"{LEAST * n:.0f}", n=f"{number_in(part, 'between'):,.0f}"),
        ),
        (Remedy("look at these lines, and turn round those that are swapped"), CLEAN),
        cause=True,
        sure="likely",
        lines=sources_in(part),
        values={"share": share, "n": f"{count:,.0f}"},
    )


def words_tell(account: Account) -> Level | None:
    """How often words alone tell the preferred answer; None where too few pairs were counted."""
    return level_in(part_of(account, "audit", "faults", "words"))


def words_alone(account: Account, model: Level | None) -> Finding | None:
    """Whether words alone tell the preferred answer, and whether the model is shown to tell it better."""
    words = words_tell(account)
    if words is None or (words.low <= 0.5 and words.high > UNTOLD):  # too few to say either
        return None
    told = number(words.mean, "rewards/accuracies")
    seen = (line("words_alone", share=interval(words, "rewards/accuracies"), n=f"{words.n:,}"),)
    check = Remedy("`prefiere data ... --check`: look at 15 pairs without knowing which answer was preferred")
    if not words.above(0.5):
        return Finding(
            "words_silent",
            f"Words alone do not tell which answer was preferred: {told} is what a coin would do.",
            "info",
            "A sum over single words, fitted to a part of the pairs, ranks the others no better than a coin. What was "
            "preferred may be seen in what single words do not show, or in nothing.",
            seen,
            (check,),
            values={"share": told},
        )
    alike = model is not None and model.above(0.5) and not model.above(words.mean)
    return Finding(
        "words_tell",
        f"Words alone tell {told} of the preferred answers" + (": about as many as this model." if alike else "."),
        "info",
        "A sum over single words, fitted to a part of the pairs, ranks so many of the others as their labels do. So "
        "the labels have a pattern, and a model that does no better may have learnt which words to use, rather than "
        "what to say.",
        seen,
        values={"share": told},
    )


def shortcut(account: Account) -> Finding | None:
    """A word that one answer alone has in half of the pairs, nine times in ten on the same side."""
    word = part_of(account, "audit", "faults", "shortcut")
    if number_in(word, "low") <= 0.9:
        return None
    side = _SIDES.get(str(word.get("side")), "other")
    shown = str(word.get("word"))[:40]
    if category(shown[:1] or " ") in ("Cf", "Zs", "Cc"):
        shown = f"U+{ord(shown[0]):04X}"
    sign = shown.startswith("U+") or not any(c.isalnum() for c in shown)
    return found_in_data(
        "shortcut_word",
        f"One {'sign' if sign else 'word'} gives the labels away: “{shown}” stands in the {side} answer nearly every "
        "time.",
        "warning",
        f"The quickest way to tell the answers apart is this {'sign' if sign else 'word'}, so that may be all that is "
        "learnt: to write it, or never to write it, whatever else the answer says. Look at what it stands in: a "
        "sentence that one side always has, another language or form, or the end of answers that were cut.",
        (
            line(
                f"word_in_{side}",
                word=shown,
                **{k: f"{number_in(word, at):,.0f}" for k, at in (("of", "of"), ("n", "pairs"), ("others", "others"))},
            ),
        ),
        (
            Remedy("read three pairs, and mend what one side alone has: `prefiere data DATA`"),
            Remedy("take it out of all answers, or add pairs in which both have it"),
        ),
        word=shown,
    )


def shortcut_form(account: Account) -> Finding | None:
    """A form that one answer alone has, as `shortcut` has it of a word."""
    word = part_of(account, "audit", "faults", "shortcut_form")
    if number_in(word, "low") <= 0.9:
        return None
    side = _SIDES.get(str(word.get("side")), "other")
    what = form(str(word.get("word")))
    n, of, others = (f"{number_in(word, k):,.0f}" for k in ("pairs", "of", "others"))
    return Finding(
        "shortcut_form",
        f"How answers are written gives the labels away: the {side} ones alone have {what}.",
        "warning",
        "The quickest way to tell the answers apart is this form, so that may be all that is learnt, whatever they "
        "say. Where it is what people preferred, nothing is wrong.",
        (line(f"form_in_{side}", what=what, n=n, of=of, others=others),),
        (Remedy("write both answers of a pair in the same form, or add pairs in which both have it"),),
        cause=True,
        sure="possible",
        values={"what": what},
    )


def label_of_prompt(account: Account) -> Finding | None:
    """The words of what was asked tell good single answers from bad ones at least as often as those of the answers do,
    and more often than `BY_PROMPT` (the low end)."""
    asked, answered = (level_in(part_of(account, "audit", "faults", "kinds", of)) for of in ("prompt", "answer"))
    if asked is None or asked.low <= BY_PROMPT or (answered is not None and answered.mean > asked.mean):
        return None
    share = number(asked.mean, "rewards/accuracies")
    said = [(asked, "prompts_tell"), *([(answered, "answers_tell")] if answered is not None else [])]
    return Finding(
        "label_of_prompt",
        "Whether an answer is called good goes with what was asked, not with what was answered.",
        "warning",
        f"The words of the question alone tell good answers from bad ones {share} of the time, where a coin is right "
        "half of the time. The model then learns to say more on some questions and less on others, and little of what "
        "makes an answer good. Where some questions are simply answered worse, add good answers to these, and bad ones "
        "to the others.",
        tuple(line(what, share=interval(told, "rewards/accuracies"), n=f"{told.n:,}") for told, what in said),
        (
            Remedy("good and bad answers to the same prompts"),
            Remedy("`prefiere data ... --check`: look at 15 pairs without knowing which answer was preferred"),
        ),
        cause=True,
        sure="possible",
        values={"share": share},
    )


def people_apart(account: Account) -> Finding | None:
    """Somebody whose preferences are the reverse of the others', or else follow none of their pattern."""
    listed = part_of(account, "audit", "faults", "people").get("apart")
    people = [p for p in listed if isinstance(p, Mapping) and number_in(p, "n")] if isinstance(listed, list) else []
    contrary = any(p.get("contrary") is True for p in people)
    people = [p for p in people if (p.get("contrary") is True) == contrary]
    if not people:
        return None
    who = ", ".join(str(p.get("who")) for p in people[:3]) + (" ..." if len(people) > 3 else "")
    title = "is the opposite of what the others preferred." if contrary else "follows no pattern of the others'."
    meaning = (
        "Words that were fitted to everybody else's preferences tell the reverse of theirs. Either they took the "
        "question the other way round, or their column was exchanged, or they want something else."
        if contrary
        else "Words that were fitted to everybody else's preferences tell none of theirs. Either they chose without "
        "reading, or their rows have slipped, or they go by something else."
    )
    return Finding(
        "person_contrary" if contrary else "person_unlike",
        f"What {who} preferred {title}",
        "warning",
        meaning,
        tuple(_person(p) for p in people[:3]),
        (Remedy("ask them what they went by; turn their labels round, or leave them out"),),
        cause=True,
        sure="likely",
        lines=tuple(source for p in people for source in sources_in(p)),
        values={"who": who},
    )


def _person(of: Account) -> Worded:
    shares = {k: f"{100 * number_in(of, k):.0f}%" for k in ("right", "low", "high", "others")}
    return line("of_one_person", who=str(of.get("who")), n=f"{number_in(of, 'n'):,.0f}", **shares)


def one_place(account: Account) -> Finding | None:
    """Of two answers that were shown, the one in the same place was nearly always preferred."""
    part = part_of(account, "audit", "faults", "people", "always")
    count, n = number_in(part, "count"), number_in(part, "of")
    if not 0 < count <= n:
        return None
    share, who = f"{100 * count / n:.0f}%", part.get("who")
    by = f" by {who}" if who is not None else ""
    return Finding(
        "one_place",
        f"In {share} of the comparisons{by} the answer in the same place was preferred.",
        "warning",
        "Two answers in random order win about as often in either place. Either the place was chosen without reading, "
        "or the verdict was misread. Where answers stand in no random order (sorted by a score, one model's always "
        "first), nothing is wrong.",
        (
            share_seen(count, count / n, "stood_first" if part.get("place") == "first" else "stood_second"),
            *((line("by_person", who=str(who)),) if who is not None else ()),
        ),
        (Remedy("`prefiere data DATA --check`: judge some of them again, in random order"),),
        cause=True,
        sure="possible",
        values={"share": share} | ({"who": str(who)} if who is not None else {}),
        said_as="one_place_by" if who is not None else "",
    )


def other_language(account: Account) -> Finding | None:
    """A tenth of the answers to be learnt, or of the others, are in another language than their prompt, where both are
    clear of half of them or more. Where nearly all are, on each side, that is probably what is wanted: information."""
    parts = {side: part_of(account, "audit", "faults", "languages", side) for side in _LEARNT}
    shares = {side: _in_another(part) for side, part in parts.items() if number_in(part, "of")}
    task = all(share >= 0.8 for share in shares.values())
    for side, share in shares.items():
        if share < 0.1:
            continue
        asked, spoken = (language_named(str(parts[side].get(k))) for k in ("asked", "spoken"))
        shown, learnt = f"{100 * share:.0f}%", _LEARNT[side]
        what = "answers" if learnt else "answers that were not preferred"
        return Finding(
            "other_language",
            f"{shown} of the {what} are in a different language from their prompt.",
            "info" if task else "warning",
            "What is learnt then is which language to write, whatever was asked in. Texts of different rows or columns "
            "may have been joined. Where it is to answer in one language whatever it is asked in, or to translate, "
            "nothing is wrong."
            if learnt
            else "What is learnt then is which language not to write, and little of what makes an answer better.",
            (share_seen(number_in(parts[side], "count"), share, f"other_language_{side}", asked=asked, spoken=spoken),),
            (Remedy("answers in the language of their prompt, on both sides of a pair"),),
            cause=True,
            sure="possible",
            lines=sources_in(parts[side]),
            values={"share": shown},
            said_as="" if learnt else "other_language_rejected",
        )
    return None


def _in_another(part: Account) -> float:
    """The share of a side's answers that are in another language; 0 where that is clear of too few to say."""
    count, clear, of = (number_in(part, k) for k in ("count", "clear", "of"))
    return count / of if of >= 20 and 0.5 * of <= clear <= of and count <= clear else 0.0


def accents_lost(account: Account) -> Finding | None:
    """The answers to be learnt, or the others, are in a language of which a tenth or more of all different words have
    accents, and fewer than a hundredth of theirs do."""
    for side, learnt in _LEARNT.items():
        part = part_of(account, "audit", "faults", "languages", side, "written")
        words, accents = number_in(part, "words"), number_in(part, "accents")
        if words < 200 or accents >= words / 100:
            continue
        language = language_named(str(part.get("language")))
        what = "answers" if learnt else "answers that were not preferred"
        return Finding(
            "accents_lost",
            f"The {what} lack the accents of their language, {language}.",
            "warning",
            "The model learns to write without them. They were probably lost where the texts were stored or exported."
            if learnt
            else "What is learnt then is to write accents, and little of what makes an answer better.",
            (line("accents_lost", n=f"{accents:,.0f}", of=f"{words:,.0f}", language=language),),
            (Remedy("export the texts again from where they came, with all letters"),),
            cause=True,
            sure="likely",
            values={"language": language},
            said_as="" if learnt else "accents_lost_rejected",
        )
    return None


_LEARNT = {"chosen": True, "completion": True, "rejected": False}
"""Answers whose language is counted, and whether they are to be learnt."""
