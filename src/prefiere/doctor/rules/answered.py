"""What is wrong with the answers of the data as texts: they repeat their prompt, end without a full stop, or come from
a web page (`data.quality.marks`); and with what the chat template makes of them."""

from __future__ import annotations

from dataclasses import replace

from prefiere.doctor.case import Case, Finding, Surety
from prefiere.doctor.remedies import Remedy, set_to
from prefiere.doctor.rules.account import Account, found_in_data, number_in, part_of, share_seen, sources_in
from prefiere.doctor.rules.lengths import SHARE
from prefiere.doctor.rules.start import TEMPLATE
from prefiere.doctor.series import Level
from prefiere.doctor.words import interval, left, line
from prefiere.stats import wilson

PART, BEYOND = 0.1, 0.3
"""Share of the answers from which on it is said; by how much more of them than of the model's own answers end without a
full stop, beyond the intervals of both."""
FEWEST = 20
"""Answers below which nothing is said."""


def _level(account: Account, name: str) -> Level | None:
    """The share of the answers to be learnt that were counted; None of few."""
    count, n = (int(number_in(account, "audit", "faults", part, "count")) for part in (name, "to_learn"))
    return Level(count / n, *wilson(count, n), n) if n >= FEWEST and 0 <= count <= n else None


def own_unended(case: Case) -> Level | None:
    """How many of the answers that the model wrote before training, and ended, stop in the middle; None of few."""
    seen = [r.get("unended") for r in case.answers if r.get("step") == 0 and r.get("ended") is True]
    stop = [s for s in seen if isinstance(s, bool)]
    return Level(sum(stop) / len(stop), *wilson(sum(stop), len(stop)), len(stop)) if len(stop) >= 8 else None


def echoed(account: Account) -> Finding | None:
    """A tenth of the answers begin with their prompt, and the reader did not cut it off (a longer one it does)."""
    return _counted(
        account,
        "echoed",
        "prompt_in_answer",
        "begin by repeating their prompt",
        "The question was probably written where the answer alone belongs. The model then learns to say each question "
        "again before it answers.",
        Remedy("take the prompt out of the answers, which begin where the model is to begin"),
        "likely",
    )


def of_a_page(account: Account) -> Finding | None:
    """A tenth of the answers hold marks of HTML."""
    return _counted(
        account,
        "of_a_page",
        "web_marks",
        "hold marks of a web page",
        "Tags and entities such as <p> or &amp; are how a page is written, and not what people read. The model learns "
        "to write them.",
        Remedy("write the data again as plain text, or as Markdown"),
        "sure",
    )


def said_twice(account: Account) -> Finding | None:
    """A tenth of the answers are one text twice."""
    return _counted(
        account,
        "twice",
        "said_twice",
        "are the same text twice",
        "It was copied into the cell, or joined to itself. The model learns to say everything twice.",
        Remedy("keep it once: export the data again, or cut these answers in half"),
        "sure",
    )


def asked_twice(account: Account) -> Finding | None:
    """In a tenth of the prompts something stands twice in a row: a message again, or one text twice."""
    return _counted(
        account,
        "asks_twice",
        "asked_twice",
        "say something twice in a row",
        "Dialogues were stored twice, or the prompt was joined to itself. The model is asked so by nobody else, and "
        "what is said again in an answer is learnt as well.",
        Remedy("keep each message once: export the data again"),
        "sure",
        of="prompts",
    )


def left_over(account: Account) -> Finding | None:
    """A tenth of the answers hold something that nobody wants to teach (`data.quality.leftovers`): the commonest."""
    counted = part_of(account, "audit", "faults")
    levels = {n: share for n in counted if n.startswith("left_") and (share := _level(account, n)) is not None}
    name = max(levels, key=lambda n: levels[n].mean, default="")
    if not name or levels[name].mean < PART or levels[name].low < PART / 2:
        return None
    share, what = levels[name], left(name.removeprefix("left_"))
    shown = f"{100 * share.mean:.0f}%"
    return Finding(
        "left_over",
        f"{shown} of the answers hold what nobody wants to teach: {what}.",
        "warning",
        "The model learns to write it. It was left there by whoever wrote the answers, or by a program that stored "
        "them. Where the answers are to hold it, nothing is wrong.",
        (line("left_over", what=what, level=interval(share, SHARE), n=f"{share.n:,}"),),
        (Remedy("read three of these, and take it out of the answers"),),
        cause=True,
        sure="likely",
        about=name.removeprefix("left_"),
        lines=sources_in(part_of(counted, name)),
        values={"share": shown, "what": what},
    )


def same_ends(account: Account) -> Finding | None:
    """A third of the answers that are to be learnt begin, or end, with the same four words."""
    for end, how, key in (("last", "end", "same_last"), ("first", "begin", "same_first")):
        part = part_of(account, "audit", "faults", "ends", end)
        count, of = number_in(part, "count"), number_in(part, "of")
        if of >= FEWEST and of / 3 <= count <= of:
            shown, text = f"{100 * count / of:.0f}%", " ".join(str(part.get("text")).split())[:60]
            return Finding(
                key,
                f"{shown} of the answers {how} with the same words: “{text}”.",
                "info",
                "The model learns to write them everywhere: a greeting, a signature, or what whoever wrote the answers "
                "says each time. Where that is wanted, nothing is wrong.",
                (share_seen(count, count / of, key, text=text),),
                (Remedy("take them off, unless every answer is to have them"),),
                about=end,
                values={"share": shown, "text": text},
            )
    return None


def in_the_prompt(account: Account) -> Finding | None:
    """A tenth of the answers stand in their prompts word for word, where the other answer of a pair does not; of single
    answers and examples that is information."""
    found = _counted(
        account,
        "answer_in_prompt",
        "answer_in_prompt",
        "stand in their prompt already",
        "The model can learn to copy, rather than to answer. Perhaps a solution was left in the prompt. Where it is to "
        "choose, or to find a passage of a text, nothing is wrong.",
        Remedy("take the answers out of the prompts"),
        "possible",
    )
    pairs = number_in(account, "audit", "faults", "pairs") > 0
    return found if pairs or found is None else replace(found, severity="info")


def _counted(
    account: Account, part: str, key: str, what: str, meaning: str, advice: Remedy, sure: Surety, of: str = "answers"
) -> Finding | None:
    """What a tenth of the answers to be learnt, or of their prompts, or more, show beyond the interval of that
    share."""
    share = _level(account, part)
    if share is None or share.low < PART:
        return None
    shown = f"{100 * share.mean:.0f}%"
    return Finding(
        key,
        f"{shown} of the {of} {what}.",
        "warning",
        meaning,
        (line(part, level=interval(share, SHARE), n=f"{share.n:,}"),),
        (advice,),
        cause=True,
        sure=sure,
        lines=sources_in(part_of(account, "audit", "faults", part)),
        values={"share": shown},
    )


def cut_off(account: Account, own: Level | None) -> Finding | None:
    """Answers stop without a full stop: a quarter of these at the same length, the greatest of them; or more of them
    than of the model's own (``own``). As information where half of all do, and nothing is known of the model's."""
    share = _level(account, "unended")
    if share is None:
        return None
    limit = part_of(account, "audit", "faults", "at_the_limit")
    length, count = (number_in(limit, k) for k in ("length", "count"))
    unended = share.mean * share.n + 0.5
    at_once = length > 0 and max(10, 0.05 * share.n, 0.25 * unended) <= count <= unended
    more = own is not None and share.low > max(own.high, own.mean + BEYOND)
    if not (at_once or more or (own is None and share.low > 0.5)):
        return None
    seen = [line("unended", level=interval(share, SHARE), n=f"{share.n:,}")]
    if at_once:
        seen.append(line("at_the_limit", n=f"{count:,.0f}", length=f"{length:,.0f}"))
    if more and own is not None:
        seen.append(line("unended_own", level=interval(own, SHARE), n=f"{own.n:,}"))
    shown = f"{100 * share.mean:.0f}%"
    return Finding(
        "cut_off",
        f"{shown} of the answers to be learnt end without a full stop"
        + (f", {count:,.0f} of them at the same length, {length:,.0f} characters." if at_once else "."),
        "warning" if at_once or more else "info",
        "They stop at a letter, or where more must come, and each is learnt with an end token after it: to stop there. "
        + ("They were cut" if at_once else "They may have been cut")
        + " where the data was stored or exported"
        + ("." if at_once else ", or those who wrote them leave out the last full stop."),
        tuple(seen),
        (Remedy("the whole answers, from where they came; or leave out those that were cut"),),
        cause=True,
        sure="likely" if at_once else "possible",
        lines=sources_in(part_of(account, "audit", "faults", "unended")),
        values={"share": shown},
    )


def none_given(account: Account) -> Finding | None:
    """A twentieth of the answers to be learnt, or of the others, say that there is none (N/A, #REF!)."""
    pairs = number_in(account, "audit", "faults", "pairs")
    for name, n, word in (
        ("no_answer", number_in(account, "audit", "faults", "to_learn", "count"), ""),
        ("no_other_answer", pairs, "that were not preferred "),
    ):
        part = part_of(account, "audit", "faults", name)
        count = number_in(part, "count")
        if n >= 20 and 0.05 * n <= count <= n:
            return found_in_data(
                "none_given",
                f"{100 * count / n:.0f}% of the answers {word}are none: N/A, a lone sign, a formula that failed.",
                "warning",
                "Such a pair is won by any answer at all, and a placeholder that is preferred is learnt. Cells were "
                "empty, or formulas failed, where the data was exported. Where some prompts have no answer, nothing is "
                "wrong.",
                (share_seen(count, count / n, name),),
                (Remedy("leave these rows out, and export the sheet's values again"),),
                sources_in(part),
                share=f"{100 * count / n:.0f}%",
            )
    return None


SPEAKERS = frozenset((
    "response", "answer", "reply", "output", "completion", "assistant", "agent", "bot", "ai", "model", "system",
    "user", "human", "customer", "client", "question", "option", "candidate", "chosen", "rejected", "respuesta",
    "asistente", "agente", "usuario", "cliente", "modelo", "pregunta",
))  # fmt: skip
"""What stands before an answer where it was shown or stored, and is hardly a form that somebody wants."""


def begins_labelled(account: Account) -> Finding | None:
    """A fifth of the answers to be learnt begin with the same label: "Response 1:"."""
    part, n = part_of(account, "audit", "faults", "label"), number_in(account, "audit", "faults", "to_learn", "count")
    count, label = number_in(part, "count"), str(part.get("label"))[:40]
    if n < 20 or not 0.2 * n <= count <= n:
        return None
    return Finding(
        "label_before",
        f"{100 * count / n:.0f}% of the answers begin with a label: “{label}:”.",
        "warning" if label.endswith(" #") or label in SPEAKERS else "info",
        "A form in which answers were shown or stored got into them, and the model learns to write it. Where answers "
        "are to begin so, nothing is wrong.",
        (share_seen(count, count / n, "label_before", text=label),),
        (Remedy("take it off the answers, of both sides"),),
        cause=True,
        sure="possible",
        values={"share": f"{100 * count / n:.0f}%", "word": label},
    )


def _of_examples(account: Account, name: str, least: float) -> tuple[float, float] | None:
    """How many examples the chat template did this to, and of how many; None below a share of ``least``."""
    count, n = number_in(account, "tokens", name, "count"), number_in(account, "tokens", "examples")
    return (count, n) if n >= FEWEST and least * n <= count <= n else None


def unasked(account: Account) -> Finding | None:
    """The chat template has no generation prompt: before half of the answers or more it writes a mark that a model is
    not given when it is asked."""
    if (found := _of_examples(account, "unasked", 0.5)) is None:
        return None
    return Finding(
        "unasked",
        "The chat template does not ask for an answer: the mark before answers is missing when the model is asked.",
        "warning",
        "It writes a mark before each answer of the data, and none after a question (add_generation_prompt). So the "
        "model begins its answers where nobody has told it to, and the mark is learnt as if it were text.",
        (share_seen(found[0], found[0] / found[1], "unasked"),),
        (
            Remedy("a chat template that ends with the mark of an answer where add_generation_prompt is set"),
            TEMPLATE,
        ),
        cause=True,
        lines=sources_in(part_of(account, "tokens", "unasked")),
    )


def template_unused(account: Account, harmed: bool = False) -> Finding | None:
    """``template=never`` for a model that has a chat template, in half of the examples or more, none of which are
    written as any template writes them. Information, unless the run came to harm, or its answers were broken before."""
    if (found := _of_examples(account, "template_unused", 0.5)) is None:
        return None
    return Finding(
        "template_unused",
        "The model's chat template is not used: template=never.",
        "warning" if harmed else "info",
        "It is trained, and its answers are looked at, in a form that it does not meet in use: whoever chats with it "
        "will ask through the template. Where it is to go on with plain text, nothing is wrong (a base model may bring "
        "a template along).",
        (share_seen(found[0], found[0] / found[1], "template_unused"),),
        (set_to("template", "auto"),),
        cause=True,
        sure="possible",
        about="template",
    )


def system_dropped(account: Account) -> Finding | None:
    """The chat template leaves out the system message of a twentieth of the examples or more; as information below
    half, which explains little of what a run shows."""
    if (found := _of_examples(account, "system_left_out", 0.05)) is None:
        return None
    share = f"{100 * found[0] / found[1]:.0f}%"
    return Finding(
        "system_dropped",
        f"The chat template leaves out the system message of {share} of the examples.",
        "warning" if found[0] >= 0.5 * found[1] else "info",
        "The model never reads it, in training or after. Where it says how to answer, pairs look as if they "
        "contradicted each other.",
        (share_seen(found[0], found[0] / found[1], "system_dropped"),),
        (Remedy("write what it says into the first question, or give the tokenizer a template that writes it"),),
        cause=True,
        lines=sources_in(part_of(account, "tokens", "system_left_out")),
        values={"share": share},
    )
