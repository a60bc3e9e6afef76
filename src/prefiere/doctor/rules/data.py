"""What the account of the data says before any curve does: the same findings for a run and for `prefiere data`.

Shares are counted; a threshold is where a share explains what goes wrong, and where no sound data set that was looked
at has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding, Severity
from prefiere.doctor.remedies import Remedy, advised
from prefiere.doctor.series import Level
from prefiere.doctor.words import interval, line, number
from prefiere.stats import LEAST

Account = Mapping[str, Any]

CLEAN = Remedy("`prefiere data DATA --clean out.jsonl`, which writes the data without them")


def findings_of(account: Account, *, preferences: bool = True, model: Level | None = None) -> list[Finding]:
    """What a part of data.json (``train``) shows. preferences: whether pairs or judgements are learnt from. model: how
    often a model that was trained on it is right on held-out pairs."""
    checks = (markup, damaged, one_text, contradictions, shortcut, one_sided, nearly_same, repeated, length_alone)
    found = [check(account) for check in checks] if preferences else [markup(account), damaged(account)]
    if preferences:
        found += [words_reversed(account), words_alone(account, model)]
    return [f for f in found if f is not None]


def in_run(case: Case) -> list[Finding]:
    """The same of the data that a run was trained on."""
    right = case.change("eval_rewards/accuracies")
    preferences = case.family in ("preference", "reward")
    return findings_of(case.account("train"), preferences=preferences, model=right.after if right else None)


def number_in(account: Account, *path: str) -> float:
    """A count at a place of the account; 0 where there is none, or what may come from a stranger counts nothing (NaN,
    infinity)."""
    found: Any = account
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    known = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 2**63
    return float(found) if known else 0.0


def _part(account: Account, *path: str) -> Account:
    found: Any = account
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _records(account: Account) -> float:
    return number_in(account, "audit", "faults", "records")


def _sources(part: Account) -> tuple[str, ...]:
    listed = part.get("sources")
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def _share(account: Account, name: str) -> tuple[float, float, tuple[str, ...]]:
    """Count, share of the records, first sources of what was counted."""
    part = _part(account, "audit", "faults", name)
    count, records = number_in(part, "count"), _records(account)
    return count, count / records if records else 0.0, _sources(part)


def _said(count: float, share: float, what: str, **values: str) -> Worded:
    return line(what, n=f"{count:,.0f}", share=f"{100 * share:.0f}%", **values)


def _found(
    key: str, title: str, severity: Severity, meaning: str, seen: tuple[Worded, ...], advice: tuple[Remedy, ...],
    lines: tuple[str, ...] = (), **values: str,
) -> Finding:  # fmt: skip
    return Finding(key, title, severity, meaning, seen, advice, cause=True, lines=lines, values=values)


def markup(account: Account) -> Finding | None:
    """Marks of a chat template within the texts of a twentieth of the records or more."""
    count, share, lines = _share(account, "markup")
    if share < 0.05:
        return None
    return _found(
        "template_in_text",
        f"{100 * share:.0f}% of the texts hold marks of a chat template: they were written out before.",
        "warning" if share < 0.5 else "bad",
        "The model's own template is put around them once more, or they belong to another model. It then reads text "
        "such as nobody will ever ask it, before training and after.",
        (_said(count, share, "marks"),),
        (Remedy("take the marks out of the data: messages as role and content, without a template"), CLEAN),
        lines,
        share=f"{100 * share:.0f}%",
    )


def damaged(account: Account) -> Finding | None:
    """Text in a wrong encoding, in a twentieth of the records or more."""
    count, share, lines = _share(account, "damaged")
    if share < 0.05:
        return None
    return _found(
        "damaged_text",
        f"{100 * share:.0f}% of the texts are damaged: they were read in a wrong encoding.",
        "warning" if share < 0.5 else "bad",
        "Letters with accents have become pairs of odd signs, and the model learns to write them so.",
        (_said(count, share, "damaged"),),
        (Remedy("write the data again as UTF-8 from where it came from"), CLEAN),
        lines,
        share=f"{100 * share:.0f}%",
    )


def one_text(account: Account) -> Finding | None:
    """A fifth of the preferred answers, or of the others, are the same text."""
    pairs = number_in(account, "audit", "faults", "pairs")
    for side, word in (("chosen", "preferred"), ("rejected", "other")):
        part = _part(account, "audit", "faults", "same_text", side)
        count = number_in(part, "count")
        if pairs >= 20 and count >= 0.2 * pairs:
            return _found(
                "one_text",
                f"{100 * count / pairs:.0f}% of the {word} answers are the same text.",
                "warning" if count < 0.5 * pairs else "bad",
                "What is learnt then is this text, whatever was asked: to write it everywhere, or to avoid it.",
                (_said(count, count / pairs, f"same_text_{side}", text=str(part.get("text", ""))[:60]),),
                (Remedy("leave these pairs out, or keep a few of them"),),
                share=f"{100 * count / pairs:.0f}%",
            )
    return None


def contradictions(account: Account) -> Finding | None:
    """The same two answers to the same prompt are preferred both ways, in a fiftieth of the records or more."""
    count, records = number_in(account, "audit", "contradictions"), number_in(account, "audit", "records")
    if not records or count < max(2, 0.02 * records):
        return None
    listed = _part(account, "audit", "examples").get("contradictions")
    return _found(
        "contradictions",
        f"{count:,.0f} pairs contradict others: the same two answers are preferred both ways.",
        "warning" if count < 0.25 * records else "bad",
        "Each of the two undoes what the other teaches. People may differ, or votes may have been joined the wrong way "
        "round.",
        (_said(count, count / records, "contradicted"),),
        (Remedy("keep the verdict of most people for each pair, or leave both out"), CLEAN),
        tuple(map(str, listed)) if isinstance(listed, list) else (),
        n=f"{count:,.0f}",
    )


def shortcut(account: Account) -> Finding | None:
    """A word that one answer alone has in half of the pairs, nine times in ten on the same side."""
    word = _part(account, "audit", "faults", "shortcut")
    if number_in(word, "low") <= 0.9:
        return None
    side = "preferred" if word.get("side") == "chosen" else "other"
    shown = str(word.get("word"))[:40]
    return _found(
        "shortcut_word",
        f"One word gives the labels away: “{shown}” stands in the {side} answer nearly every time.",
        "warning",
        "The quickest way to tell the answers apart is this word, so that may be all that is learnt: to write it, or "
        "never to write it, whatever else the answer says.",
        (
            line(
                f"word_in_{side}", word=shown, of=f"{number_in(word, 'of'):,.0f}", n=f"{number_in(word, 'pairs'):,.0f}"
            ),
        ),
        (Remedy("take the word out of all answers, or add pairs in which both have it"),),
        word=shown,
    )


def one_sided(account: Account) -> Finding | None:
    """Single answers of which hardly any, or nearly all, are called good."""
    good, bad = (number_in(account, "audit", "faults", n, "count") for n in ("desirable", "undesirable"))
    if good + bad < 20 or min(good, bad) >= 0.05 * (good + bad):
        return None
    missing = "bad" if bad < good else "good"
    return _found(
        "one_sided",
        f"Hardly any answer is called {missing}: {min(good, bad):,.0f} of {good + bad:,.0f}.",
        "warning",
        "What tells good from bad can only be learnt from both. Where none is held out, nothing measures it either.",
        (line("good_and_bad", good=f"{good:,.0f}", bad=f"{bad:,.0f}"),),
        (
            advised(f"more_{missing}"),
            Remedy("desirable_weight and undesirable_weight, so that both sides weigh about the same"),
        ),
        n=f"{min(good, bad):,.0f}",
    )


def nearly_same(account: Account) -> Finding | None:
    """Answers of the same words, in a tenth of the pairs or more."""
    count, pairs = (
        number_in(account, "audit", "faults", "nearly_same", "count"),
        number_in(account, "audit", "faults", "pairs"),
    )
    if not pairs or count < max(2, 0.1 * pairs):
        return None
    return _found(
        "same_words",
        f"{100 * count / pairs:.0f}% of the pairs have the same words on both sides.",
        "warning" if count < 0.5 * pairs else "bad",
        "Their answers differ in signs, spaces or capitals only, so that is what they teach.",
        (_said(count, count / pairs, "same_words"),),
        (Remedy("leave these pairs out"), CLEAN),
        _sources(_part(account, "audit", "faults", "nearly_same")),
        share=f"{100 * count / pairs:.0f}%",
    )


def repeated(account: Account) -> Finding | None:
    """A third of the records repeat earlier ones."""
    count, records = number_in(account, "audit", "duplicates"), number_in(account, "audit", "records")
    if not records or count < max(5, records / 3):
        return None
    return _found(
        "repeated",
        f"{100 * count / records:.0f}% of the records repeat earlier ones.",
        "warning",
        "Each counts as often as it stands there: it is learnt by heart, and other pairs weigh less.",
        (_said(count, count / records, "repeated_records"),),
        (Remedy("keep one of each"), CLEAN),
        share=f"{100 * count / records:.0f}%",
    )


def length_alone(account: Account) -> Finding | None:
    """Counting characters alone is right three times in four."""
    for rule in ("longer", "shorter"):
        part = _part(account, "audit", f"{rule}_preferred")
        if number_in(part, "n") >= 20 and number_in(part, "low") > 0.75:
            share = f"{100 * number_in(part, 'value'):.0f}%"
            return Finding(
                "length_tells",
                f"The {rule} answer is the preferred one {share} of the time.",
                "info",
                "A model can learn to write ever "
                + ("more" if rule == "longer" else "less")
                + " rather than better. Compare accuracy among pairs of like length before believing it.",
                (line("differ_in_length", n=f"{number_in(part, 'n'):,.0f}"),),
                (Remedy("pairs of answers of similar length"),),
                values={"share": share},
                about=rule,
            )
    return None


def words_reversed(account: Account) -> Finding | None:
    """Labels that the words of the answers contradict as firmly as they confirm the others (`data.quality.told`)."""
    part = _part(account, "audit", "faults", "words", "reversed")
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
        lines=_sources(part),
        values={"share": share, "n": f"{count:,.0f}"},
    )


def words_tell(account: Account) -> Level | None:
    """How often words alone tell the preferred answer; None where too few pairs were counted."""
    found = _part(account, "audit", "faults", "words")
    if not number_in(found, "n"):
        return None
    right, low, high = (number_in(found, k) for k in ("right", "low", "high"))
    return Level(right, low, high, int(number_in(found, "n")))


def words_alone(account: Account, model: Level | None) -> Finding | None:
    """Whether words alone tell the preferred answer, and whether the model is shown to tell it better."""
    words = words_tell(account)
    if words is None:
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
