"""What is wrong with the texts of data of any kind: marks of a template, damage, one text everywhere, and prompts and
answers in each other's place."""

from __future__ import annotations

from dataclasses import replace

from prefiere.doctor.case import Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.account import (
    Account,
    found_in_data,
    leaving_out,
    number_in,
    part_of,
    records_in,
    share_seen,
    shared,
    sources_in,
)
from prefiere.doctor.rules.answered import begins_labelled, none_given
from prefiere.doctor.rules.told import accents_lost, other_language
from prefiere.stats import wilson

OTHER_COLUMN = Remedy(
    "the column that holds what was asked, columns={prompt: ...}; `prefiere data` says which one is read"
)


def markup(account: Account) -> Finding | None:
    """Marks of a chat template within the texts of a twentieth of the records or more. As information where the
    template of the model at hand had written these prompts, which are taken as they are, and answers hold none; without
    a model nobody knows whose marks these are."""
    count, share, lines = shared(account, "markup")
    own = min(count - shared(account, "marked_answers")[0], number_in(account, "tokens", "already_rendered", "count"))
    own = max(0.0, own if part_of(account, "audit", "faults", "marked_answers") else 0.0)  # an older account has none
    of_prompts, share = own / max(1.0, records_in(account)), share - own / max(1.0, records_in(account))
    count -= own
    if max(of_prompts, share) < 0.05:
        return None
    if share < 0.05:
        shown = f"{100 * of_prompts:.0f}%"
        return found_in_data(
            "template_in_text",
            f"{shown} of the prompts were written out by this model's template before: they are taken as they are.",
            "info",
            "No template is put around them once more. Nothing is wrong, as long as it is asked in that form later.",
            (share_seen(own, of_prompts, "marks"),),
            (),
            share=shown,
            said_as="template_taken",
        )
    known = bool(part_of(account, "tokens"))
    found = found_in_data(
        "template_in_text",
        f"{100 * share:.0f}% of the texts hold marks of a chat template: they were written out before.",
        "warning" if share < 0.5 or not known else "bad",
        "The model's own template is put around them once more, or they belong to another model. It then reads text "
        "such as nobody will ever ask it, before training and after.",
        (share_seen(count, share, "marks"),),
        (
            Remedy("take the marks out of the data: messages as role and content, without a template"),
            *leaving_out(share),
        ),
        () if own else lines,  # of which some are those that are taken as they are
        share=f"{100 * share:.0f}%",
    )
    return found if known else replace(found, sure="possible")


def damaged(account: Account) -> Finding | None:
    """Text in a wrong encoding, in a twentieth of the records or more."""
    count, share, lines = shared(account, "damaged")
    if share < 0.05:
        return None
    return found_in_data(
        "damaged_text",
        f"{100 * share:.0f}% of the texts are damaged: they were read in a wrong encoding.",
        "warning" if share < 0.5 else "bad",
        "Letters with accents have become pairs of odd signs, and the model learns to write them so.",
        (share_seen(count, share, "damaged"),),
        (Remedy("write the data again as UTF-8 from where it came from"), *leaving_out(share)),
        lines,
        share=f"{100 * share:.0f}%",
    )


def one_text(account: Account) -> Finding | None:
    """A fifth of the preferred answers, of the others, or of single answers to be learnt, are the same text, and the
    answers are no choice among a few (`data.quality.told.few_texts`)."""
    pairs = number_in(account, "audit", "faults", "pairs")
    single = number_in(account, "audit", "faults", "to_learn", "count") - pairs
    good = "good " if number_in(account, "audit", "faults", "desirable", "count") else ""
    for side, word, n in (("chosen", "preferred ", pairs), ("rejected", "other ", pairs), ("completion", good, single)):
        part = part_of(account, "audit", "faults", "same_text", side)
        count = number_in(part, "count")
        if n >= 20 and 0.2 * n <= count <= n:
            return found_in_data(
                "one_text",
                f"{100 * count / n:.0f}% of the {word}answers are the same text.",
                "warning" if count < 0.5 * n else "bad",
                "What is learnt then is this text, whatever was asked: to write it everywhere, or to avoid it.",
                (share_seen(count, count / n, f"same_text_{side}", text=_flat(part)),),
                (Remedy("leave most of them out, and keep a few"),),
                share=f"{100 * count / n:.0f}%",
            )
    return None


def _flat(part: Account) -> str:
    return " ".join(str(part.get("text", "")).split())[:60]


def texts_again(account: Account) -> Finding | None:
    """A few texts, each in a twentieth or more, are three in ten of the answers to be learnt, or of the others, and
    none of them alone is what `one_text` tells of."""
    pairs = number_in(account, "audit", "faults", "pairs")
    single = number_in(account, "audit", "faults", "to_learn", "count") - pairs
    if one_text(account) is not None:
        return None
    for side, n in (("chosen", pairs), ("rejected", pairs), ("completion", single)):
        part = part_of(account, "audit", "faults", "often", side)
        count, texts, shown = number_in(part, "count"), number_in(part, "texts"), part.get("shown")
        if n >= 20 and 0.3 * n <= count <= n:
            first = str(shown[0]) if isinstance(shown, list) and shown else ""
            return found_in_data(
                "few_texts",
                f"{100 * count / n:.0f}% of the answers {'that were not preferred ' if side == 'rejected' else ''}are "
                f"{texts:.0f} texts, which stand there again and again.",
                "warning",
                "What is learnt then is these texts, whatever was asked: to write them everywhere (refusals, "
                "greetings, placeholders), or to avoid them.",
                (share_seen(count, count / n, f"few_texts_{side}", text=_flat({"text": first})),),
                (Remedy("leave most of them out, and keep a few"),),
                share=f"{100 * count / n:.0f}%",
                n=f"{texts:.0f}",
            )
    return None


def coded_prompts(account: Account) -> Finding | None:
    """A fifth of the prompts are numbers or codes."""
    count, share, lines = shared(account, "coded")
    if records_in(account) < 20 or not 0.2 <= share <= 1:
        return None
    return found_in_data(
        "coded_prompts",
        f"{100 * share:.0f}% of the prompts are a number or a code, in which nothing is asked.",
        "warning",
        "A column of numbers was taken for what people asked, or the text that belongs to them was not joined in. "
        "Where a number or a code is all that is asked, nothing is wrong.",
        (share_seen(count, share, "coded"),),
        (OTHER_COLUMN,),
        lines,
        share=f"{100 * share:.0f}%",
    )


def same_words_reordered(account: Account) -> Finding | None:
    """In a quarter of the pairs both answers have the same words in another order."""
    return _of_pairs(
        account,
        "in_another_order",
        "the two answers have the same words in another order",
        "The order is all that such a pair teaches, and a model that writes sentences knows it. Where the order is "
        "what people compared (of steps, of names), nothing is wrong.",
        Remedy("pairs of answers that were written apart from each other"),
        0.25,
    )


def holds_other(account: Account) -> Finding | None:
    """In a tenth of the pairs the preferred answer holds the other one whole."""
    return _of_pairs(
        account,
        "holds_other",
        "the preferred answer holds the other one whole",
        "Both may have been copied into one cell, and the model learns to write the worse answer, too. Where the "
        "better answer was made by going on with the other, nothing is wrong.",
        Remedy("`prefiere data DATA`: read three examples; keep what was preferred alone"),
        0.1,
    )


def _of_pairs(account: Account, name: str, what: str, meaning: str, advice: Remedy, least: float) -> Finding | None:
    part, pairs = part_of(account, "audit", "faults", name), number_in(account, "audit", "faults", "pairs")
    count = number_in(part, "count")
    if pairs < 20 or not least * pairs <= count <= pairs:
        return None
    return Finding(
        name,
        f"In {100 * count / pairs:.0f}% of the pairs {what}.",
        "warning",
        meaning,
        (share_seen(count, count / pairs, name),),
        (advice,),
        cause=True,
        sure="possible",
        lines=sources_in(part),
        values={"share": f"{100 * count / pairs:.0f}%"},
    )


def one_prompt(account: Account) -> Finding | None:
    """A fifth of the records have the same prompt."""
    part, records = part_of(account, "audit", "faults", "same_text", "prompt"), records_in(account)
    count = number_in(part, "count")
    if records < 20 or not 0.2 * records <= count <= records:
        return None
    share = f"{100 * count / records:.0f}%"
    return found_in_data(
        "one_prompt",
        f"{share} of the records have the same prompt.",
        "warning",
        "What was asked is probably in another column, or was lost when the data was exported: the model is taught to "
        "answer so many things to the same words. Where this one prompt is all that is wanted, nothing is wrong.",
        (share_seen(count, count / records, "same_prompt", text=_flat(part)),),
        (OTHER_COLUMN,),
        share=share,
    )


def exchanged(account: Account) -> Finding | None:
    """Two in five of the answers to be learnt are one question, and 30 points fewer of the prompts are."""
    answers, prompts, n = (
        number_in(account, "audit", "faults", k, "count") for k in ("answer_asks", "prompt_asks", "to_learn")
    )
    if n < 20 or not 0.4 * n <= answers <= n or answers - prompts <= 0.3 * n:
        return None
    return Finding(
        "exchanged",
        "The answers are questions, and the prompts are not: are they in each other's place?",
        "warning",
        "Where columns or roles were exchanged, the model learns to ask what it should answer. Where it is to ask "
        "questions, nothing is wrong.",
        (share_seen(answers, answers / n, "answer_asks"), share_seen(prompts, prompts / n, "prompt_asks")),
        (Remedy("`prefiere data DATA`: read three examples; name the columns as they are, columns={prompt: ...}"),),
        cause=True,
        sure="possible",
        lines=sources_in(part_of(account, "audit", "faults", "answer_asks")),
    )


def after_answer(account: Account) -> Finding | None:
    """An answer of the assistant stands last in a tenth of the prompts."""
    after, share, lines = shared(account, "after_answer")
    if records_in(account) < 20 or not 0.1 <= share <= 1:
        return None
    return Finding(
        "after_answer",
        f"In {100 * share:.0f}% of the records an answer stands last in the prompt, where a question belongs.",
        "warning",
        "Where roles were exchanged, the model learns to speak as those who ask. Where it is to go on with an answer "
        "that is begun, nothing is wrong.",
        (share_seen(after, share, "after_answer"),),
        (Remedy("`prefiere data DATA`: read three examples, and see who says what"),),
        cause=True,
        sure="possible",
        lines=lines,
        values={"share": f"{100 * share:.0f}%"},
    )


def filled_down(account: Account) -> Finding | None:
    """Of prompts with several records, one answer of each speaks of its prompt as answers do, and of the others less
    than a quarter as many do: the cell of the prompt was filled down over rows of other prompts."""
    part = part_of(account, "audit", "faults", "filled")
    count, of, rest, n = (number_in(part, k) for k in ("count", "of", "rest", "n"))
    if not (0 < count <= of and rest <= n and n >= 20):
        return None
    low, high = wilson(count, of)[0], wilson(rest, n)[1]
    if low <= 0.2 or high >= 0.25 * low:
        return None
    end = "last" if part.get("end") == "last" else "first"
    return Finding(
        "filled_down",
        f"Of several answers to the same prompt the {end} one alone answers it: {n:,.0f} stand at a prompt of others.",
        "warning" if n < records_in(account) / 2 else "bad",
        "An answer takes up rare words of what was asked. These do hardly ever, where another one at the same prompt "
        "does: merged or empty cells were filled with the prompt of the row before (or after), and theirs are lost.",
        (
            share_seen(count, count / of, f"speaks_{end}"),
            share_seen(rest, rest / n, "speaks_rest"),
        ),
        (Remedy("join prompts and answers again from where they came, row by row"),),
        cause=True,
        sure="likely",
        values={"n": f"{n:,.0f}"},
    )


def answered_otherwise(account: Account) -> Finding | None:
    """A twentieth of the answers, which are a choice among a few, are not the commonest one to their prompt."""
    count, share, _ = shared(account, "answered_otherwise")
    if share < 0.05:
        return None
    return found_in_data(
        "answered_otherwise",
        f"{count:,.0f} answers are not the one that their question has most often.",
        "info",
        "The answers are a choice among a few. Where one is right, the others are wrong: people may have judged "
        "differently. Where several are right, nothing is wrong.",
        (share_seen(count, share, "answered_otherwise"),),
        (Remedy("one answer to each question: the one that most people gave"),),
        n=f"{count:,.0f}",
    )


OF_ANY = (
    other_language,
    accents_lost,
    answered_otherwise,
    filled_down,
    markup,
    damaged,
    none_given,
    one_text,
    texts_again,
    begins_labelled,
    one_prompt,
    coded_prompts,
    exchanged,
    after_answer,
)
"""Demonstrations are held against these as well."""
