"""What was wrong before the first update: a change from a broken start says nothing good.

Read off the row of step 0: a few examples and the first sampled answers. `prefiere data --model` measures the same, so
that it says the same before a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.account import CLEAN, Account, number_in, part_of, sources_in
from prefiere.doctor.rules.lengths import SHARE
from prefiere.doctor.series import Level, Series
from prefiere.doctor.words import Worded, interval, line, number
from prefiere.stats import wilson

TEMPLATE = Remedy("`prefiere data DATA --model M`: look at three examples as the model reads them")
TOKENIZER = Remedy(
    "read what the model answers before training: where that is no language either, its tokenizer is wrong"
)


Columns = Mapping[str, Any]


def before_run(
    row: Columns, *, vocabulary: int | None, preferences: bool = True, account: Account | None = None
) -> list[Finding]:
    """What the columns of a row of step 0 show where no run has begun. vocabulary: tokens that the model knows.
    preferences: whether pairs or judgements are learnt from. account: what was counted in the data."""
    found = [_no_language(row, vocabulary), _misplaced(row, account or {}), _broken(row)]
    if preferences:
        found += [_foreign(row, vocabulary), _too_alike(row)]
    return [f for f in found if f is not None]


def at_step_0(row: Columns, key: str) -> Level | None:
    """A metric of the row of step 0."""
    series = Series.of([row], key)
    if not len(series):
        return None
    return Level(float(series.values[0]), float(series.low[0]), float(series.high[0]), int(series.n[0]))


def first_row(case: Case) -> Columns:
    """The row of step 0; empty where there is none."""
    return next((r for r in case.rows if r.get("step") == 0), {})


GUESSING = 0.85
"""Of ln V nats per token, from which on a model guesses: random weights are at 0.9 or more, a model that has read
anything writes its own answers at half of it or less."""


def no_language(case: Case) -> Finding | None:
    """The model finds its own answers (where none were sampled, the preferred ones) about as unlikely as tokens that
    are drawn blindly from its vocabulary: -ln V nats per token."""
    return _no_language(first_row(case), case.environment.get("vocabulary"))


def _no_language(row: Columns, size: Any) -> Finding | None:
    own, chosen = at_step_0(row, "samples/ref_logp"), at_step_0(row, "start/chosen_logp")
    seen = chosen if own is None else own
    if not isinstance(size, int) or size < 2 or seen is None or seen.mean > -GUESSING * math.log(size):
        return None
    answers = "preferred" if own is None else "own"
    return Finding(
        "no_language",
        "The model had learnt no language before this run, and preferences teach it none.",
        "bad",
        "Before the first update it found every token about as likely as any other, as random weights do. It may learn "
        "to rank the pairs, but what it writes is noise before and after. Either the model was never trained, or its "
        "weights were not the ones that were read.",
        (line(f"guess_{answers}", level=interval(seen), size=f"{size:,}", guess=number(-math.log(size))),),
        (
            Remedy("a model that was trained on text"),
            Remedy("a supervised start (`prefiere sft`) on much text first"),
        ),
        cause=True,
        values={"size": f"{size:,}"},
    )  # fmt: skip


def elsewhere(case: Case) -> Finding | None:
    """What their own prompt adds to the preferred answers, beside another one, is nothing beyond noise and less than a
    quarter of what it adds to the model's own answers. That is half a nat per token or more, or, of answers that repeat
    little of what was asked, a tenth beyond its interval, of which the preferred ones do not reach half. Where many
    prompts share a stock answer it is little, but something: the other answers belong to theirs."""
    return _misplaced(first_row(case), case.account("train"))


PLACED = 0.35
"""Share of the answers that speak of their own prompt, beyond chance, from which on no model is believed that finds
them misplaced: to one that knows these answers by heart, or none like them, a prompt says nothing of a new one."""
RECITES = 1.0
"""Nats per token that their prompt adds to a model's own answers, from which on it may know them by heart."""


def _misplaced(row: Columns, account: Account) -> Finding | None:
    part = part_of(account, "audit", "faults", "placed")
    count, n, by_chance = (number_in(part, k) for k in ("count", "n", "by_chance"))
    own = at_step_0(row, "start/prompt_in_own")
    recites = own is not None and own.mean >= RECITES
    if recites and 0 < count <= n and wilson(count, n)[0] - by_chance > PLACED:
        return None
    return _elsewhere(row) or _slipped(row)


BEYOND = 0.1
"""Share of answers that fit another prompt as well, beyond that of the model's own, from which on a part of them is
called misplaced."""


def more_ignored(row: Columns) -> bool:
    """Whether more preferred answers than own ones fit another prompt as well, beyond the interval of the own."""
    data, own = at_step_0(row, "start/prompt_ignored"), at_step_0(row, "start/prompt_ignored_own")
    return data is not None and own is not None and data.n >= 8 and data.mean > max(own.high, own.mean + BEYOND)


def astray(account: Account, start: Columns) -> Finding | None:
    """Answers that share no rare word with their own prompt, and some with one whose answer is missing as well, more
    often than chance has it (`data.quality.elsewhere`). Where words alone do not show it, a model must agree.

    start: the columns of the row of step 0, empty where no model was asked."""
    part = part_of(account, "audit", "faults", "elsewhere")
    n, strays, count = (number_in(part, k) for k in ("n", "strays", "count"))
    if not 0 < count <= strays <= n or not (part.get("sure") is True or more_ignored(start)):
        sides = (("placed", "Answers"), ("placed_other", "Rejected answers"))
        return next((f for k, s in sides if (f := _by_chance(part_of(account, "audit", "faults", k), s))), None)
    shares = {k: f"{100 * min(1.0, number_in(part, k)):.0f}%" for k in ("share", "by_chance")}
    if part.get("by_chance") is None:  # no answer is in its place, to say how often chance has it
        shares["by_chance"] = "–"
    seen = [line("astray", strays=f"{strays:,.0f}", n=f"{n:,.0f}", **shares)]
    if isinstance(apart := part.get("apart"), int) and 0 < abs(apart) < n:
        seen.append(line("in_step", n=f"{number_in(part, 'in_step'):,.0f}", apart=f"{apart:+,.0f}"))
    column = part.get("column")
    side = "Preferred answers" if column == 0 else "Rejected answers" if column == 1 else "Answers"
    return Finding(
        "answers_astray",
        f"{side} stand at the wrong prompts: {count:,.0f} of {n:,.0f} speak of what another prompt asks.",
        "warning",
        "An answer takes up words of what was asked. These share no rare word with their own prompt, and some with "
        "another one that is left without an answer of its own. Rows or columns of the data have slipped against each "
        "other, or one column was sorted without the rest. A few of these lines are named by chance, and more have "
        "slipped than words show.",
        tuple(seen),
        (Remedy("join prompts and answers again from where they came, row by row"), CLEAN),
        cause=True,
        sure="likely",
        lines=sources_in(part),
        values={"n": f"{count:,.0f}"},
        said_as="preferred_astray" if column == 0 else "rejected_astray" if column == 1 else "",
    )


def _by_chance(part: Account, side: str) -> Finding | None:
    """Half of the answers or more speak of other prompts, and no more of them of their own than chance has it, less
    than a tenth: as where a column was sorted without the rest, so that hardly any stands in its place."""
    count, n, others, by_chance = (number_in(part, k) for k in ("count", "n", "others", "by_chance"))
    if not (n > 0 and count + others <= n and others >= 0.5 * n):
        return None
    low, high = wilson(count, n)
    if low > by_chance or high >= 0.1:
        return None
    return Finding(
        "answers_astray",
        f"{side} stand at the wrong prompts: {others:,.0f} of {n:,.0f} speak of what other prompts ask, and of their "
        "own no more do than by chance.",
        "warning",
        "An answer takes up words of what was asked. Nearly all of these share rare words with other prompts alone: a "
        "column was probably sorted, or joined, without the rest. Where answers never take up words of what is asked, "
        "as in a choice among names, this shows nothing.",
        (line("placed", n=f"{n:,.0f}", share=f"{100 * count / n:.1f}%", by_chance=f"{100 * by_chance:.1f}%"),),
        (Remedy("join prompts and answers again from where they came, row by row"),),
        cause=True,
        sure="possible",
        values={"n": f"{others:,.0f}"},
        said_as="astray_by_chance",
    )


def _slipped(row: Columns) -> Finding | None:
    """More preferred answers than own ones fit another prompt as well, beyond the intervals of both: of answers that
    stand at the wrong prompt half do, by chance, and a mean over all of them would not show a part."""
    data, own = at_step_0(row, "start/prompt_ignored"), at_step_0(row, "start/prompt_ignored_own")
    adds = at_step_0(row, "start/prompt_in_own")
    if data is None or own is None or min(data.n, own.n) < 8 or adds is None or not adds.mean > 0.5:
        return None
    if data.low <= max(own.high, own.mean + BEYOND) or _unknown_language(row):
        return None
    return Finding(
        "some_elsewhere",
        "A part of the answers do not belong to their prompts: they fit other prompts just as well.",
        "warning",
        "Before training, the model finds many a preferred answer no likelier after its own prompt than after a prompt "
        "of another example, and hardly any of its own answers. Of answers that stand at a wrong prompt about half "
        "show so, by chance: some twice as many are meant. Rows of a part of the data have slipped against each other.",
        (line("prompt_ignored", data=interval(data, SHARE), own=interval(own, SHARE)),),
        (Remedy("`prefiere data DATA`: read three examples; see how prompts and answers were joined"), TEMPLATE),
        cause=True,
        sure="likely",
    )


def _elsewhere(row: Columns) -> Finding | None:
    data, own = at_step_0(row, "start/prompt_matters"), at_step_0(row, "start/prompt_in_own")
    if data is None or data.n < 8 or own is None or not data.mean < 0.25 * own.mean:
        return None
    if not own.mean > 0.5 and not (own.low > 0.1 and data.high < 0.5 * own.low):
        return None
    if data.low > 0:
        return None
    if _unknown_language(row):
        return None
    return Finding(
        "answers_elsewhere",
        "The answers do not belong to their prompts: they fit other prompts just as well.",
        "bad",
        "Before training, the model finds a preferred answer hardly likelier after its own prompt than after a prompt "
        "of another example, while its own answers depend on what was asked. Columns or rows of the data have slipped "
        "against each other, or the prompt is not what was answered.",
        (line("prompt_adds", data=interval(data), own=interval(own)),),
        (Remedy("`prefiere data DATA`: read three examples; see how prompts and answers were joined"), TEMPLATE),
        cause=True,
        sure="likely",
    )


def foreign(case: Case) -> Finding | None:
    """The model finds its own answers likelier than the preferred ones by 2 nats per token or more (7 times, for each
    token): these are not answers as it writes them."""
    vocabulary = case.environment.get("vocabulary")
    return _foreign(first_row(case), vocabulary) if case.family == "preference" else None


def _foreign(row: Columns, vocabulary: Any) -> Finding | None:
    chosen, own, gap = at_step_0(row, "start/chosen_logp"), at_step_0(row, "samples/ref_logp"), _gap(row)
    if chosen is None or own is None or gap is None or gap <= FOREIGN:
        return None
    known = isinstance(vocabulary, int) and not isinstance(vocabulary, bool) and vocabulary > 1
    blind = known and chosen.mean < -math.log(vocabulary)
    return Finding(
        "foreign_answers",
        "These are not answers as this model writes them: it finds each of their words very unlikely.",
        "bad" if blind else "warning",
        "Either the answers come from very different writers, or the model reads them in another form than it writes: "
        "another chat template, marks in the text, another language. What is learnt on such pairs changes little of "
        "what it writes itself."
        + (
            " Tokens that are drawn blindly would be likelier: the answers are in no language that it knows, or its "
            "tokenizer belongs to another model."
            if blind
            else ""
        ),
        (line("naturalness", chosen=interval(chosen), own=interval(own)),),
        (
            *([TOKENIZER] if blind else []),
            TEMPLATE,
            Remedy("a supervised start on the preferred answers first (`prefiere sft`)"),
            Remedy("pairs of this model's own answers (`prefiere collect`, `prefiere loop`)"),
        ),
        cause=True,
        sure="likely",
        values={"gap": number(gap)},
    )


FOREIGN = 2.0


def _unknown_language(row: Columns) -> bool:
    """Whether the answers are in no language that the model knows: no prompt would fit them."""
    gap = _gap(row)
    return gap is not None and gap > 2 * FOREIGN


def _gap(row: Columns) -> float | None:
    """By how much the model finds its own answers likelier than the preferred ones: nats per token."""
    chosen, own = at_step_0(row, "start/chosen_logp"), at_step_0(row, "samples/ref_logp")
    return own.mean - chosen.mean if chosen is not None and own is not None else None


PART_ALIKE = 0.25
"""Share of pairs that are too alike, the low end of its interval, from which on it is said of the data."""


def too_alike(case: Case) -> Finding | None:
    """Both answers are nearly the same to the model (likeness above -0.1), on average or in a part of the pairs; a
    warning where both fall."""
    chosen = case.seen("rewards/chosen")
    falls = chosen is not None and chosen.change.falls()
    return _too_alike(first_row(case), falls, case.evidence("rewards/chosen"), case.gentler() if falls else ())


def _too_alike(
    row: Columns, falls: bool = False, evidence: tuple[Worded, ...] = (), remedy: tuple[Remedy, ...] = ()
) -> Finding | None:
    likeness, part = at_step_0(row, "start/likeness"), at_step_0(row, "start/too_alike")
    if likeness is None or likeness.n < 8:
        return None
    if not likeness.mean > -0.1 and (part is None or part.low <= PART_ALIKE):
        return None
    return Finding(
        "too_alike",
        "The two answers of a pair are too alike for the model to tell them apart"
        + (": pushing one down drags the other along." if falls else "."),
        "warning" if falls else "info",
        "To the model, both answers are nearly the same text. Making the one less likely makes the other less likely "
        "as well, and the probability goes to text that nobody preferred.",
        (
            line("likeness", level=interval(likeness)),
            *([line("alike", level=interval(part, SHARE))] if part is not None else []),
            *evidence,
        ),
        remedy,
        cause=True,
        sure="likely",
    )


def broken(case: Case) -> Finding | None:
    """Before training, a third of all runs of three tokens in the answers had stood there before; whether they ended is
    for `answers.never_end` to say."""
    return _broken(first_row(case))


def _broken(row: Columns) -> Finding | None:
    again = at_step_0(row, "samples/repetition")
    if again is None or not again.mean > 0.33:
        return None
    return Finding(
        "start_broken",
        "The answers were broken before training began, so no change of theirs says much.",
        "warning",
        "Before the first update, they repeated themselves. A base model without a supervised start does that, and a "
        "model that reads another chat template than its own.",
        (line("repeated_at_start", share=number(again.mean, "samples/repetition")),),
        (TEMPLATE, Remedy("a supervised start (`prefiere sft`) first")),
        cause=True,
        sure="possible",
    )
