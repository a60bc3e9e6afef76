"""What the account of the data says before any curve does: the same findings for a run and for `prefiere data`.

Shares are counted; a threshold is where a share explains what goes wrong, and where no sound data set that was looked
at has it.
"""

from __future__ import annotations

import math

from prefiere.doctor.case import Case, Finding, FirstLines
from prefiere.doctor.remedies import Remedy, advised, set_to
from prefiere.doctor.rules.account import (
    CLEAN,
    Account,
    found_in_data,
    leaving_out,
    level_in,
    number_in,
    part_of,
    share_seen,
    sources_in,
)
from prefiere.doctor.rules.answered import (
    asked_twice,
    cut_off,
    echoed,
    in_the_prompt,
    left_over,
    of_a_page,
    own_unended,
    said_twice,
    same_ends,
    system_dropped,
    template_unused,
    unasked,
)
from prefiere.doctor.rules.settings import harmed
from prefiere.doctor.rules.start import Columns, astray, broken, first_row, foreign
from prefiere.doctor.rules.texts import OF_ANY, holds_other, same_words_reordered
from prefiere.doctor.rules.told import (
    label_of_prompt,
    one_place,
    people_apart,
    shortcut,
    shortcut_form,
    words_alone,
    words_reversed,
)
from prefiere.doctor.series import Level
from prefiere.doctor.words import line

Weights = tuple[float, float]
"""Of a good answer and of a bad one (desirable_weight and undesirable_weight of KTO)."""
_WEIGHTS = ("desirable_weight", "undesirable_weight")
SIDE, FEW = 0.05, 10
"""The share of the whole that either kind of single answers has, at least; how few a weight does not make up for.
Ethayarajh et al. (2024) have weight times number between 1 and 4/3 to one."""


def findings_of(
    account: Account,
    *,
    preferences: bool = True,
    model: Level | None = None,
    own: Level | None = None,
    start: Columns | None = None,
    weights: Weights = (1.0, 1.0),
    harmed: bool = False,
) -> list[Finding]:
    """What a part of data.json (``train``) shows. preferences: whether pairs or judgements are learnt from. model: how
    often a model that was trained on it is right on held-out pairs. own: how many of a model's own answers stop in the
    middle. start: the columns of the row of step 0, where a model was asked. weights: of single answers.
    harmed: whether a run on it came to harm, or its answers were broken, or foreign to the model, before."""
    checks = (
        *OF_ANY,
        contradictions,
        shortcut,
        shortcut_form,
        lambda seen: one_sided(seen, weights),
        lambda seen: lopsided(seen, weights),
        not_higher,
        nearly_same,
        one_word,
        same_words_reordered,
        holds_other,
        repeated,
        length_alone,
    )
    found = [check(account) for check in checks if preferences or check in OF_ANY]
    found += [astray(account, start or {}), echoed(account), of_a_page(account), said_twice(account)]
    found += [asked_twice(account), left_over(account), in_the_prompt(account), same_ends(account)]
    found.append(cut_off(account, own))
    found += [unasked(account), template_unused(account, harmed), system_dropped(account)]
    if preferences:
        found += [words_reversed(account), words_alone(account, model), people_apart(account), one_place(account)]
        found.append(label_of_prompt(account))
    return [f for f in found if f is not None]


def in_run(case: Case) -> list[Finding]:
    """The same of the data that a run was trained on."""
    right = case.change("eval_rewards/accuracies")
    preferences = case.family in ("preference", "reward")
    model = right.after if right else None
    return findings_of(
        case.account("train"),
        preferences=preferences,
        model=model,
        own=own_unended(case),
        start=first_row(case),
        weights=_weights(case),
        harmed=harmed(case) or any(check(case) is not None for check in (broken, foreign)),
    )


def _weights(case: Case) -> Weights:
    if case.recipe.get("loss_type") != "kto":
        return 1.0, 1.0
    good, bad = (number_in(case.recipe, k) if k in case.recipe else 1.0 for k in _WEIGHTS)
    return good, bad


def contradictions(account: Account) -> Finding | None:
    """The same two answers to the same prompt are preferred both ways, in a fiftieth of the records or more."""
    count, records = number_in(account, "audit", "contradictions"), number_in(account, "audit", "records")
    if not records or count < max(2, 0.02 * records):
        return None
    listed = part_of(account, "audit", "examples").get("contradictions")
    return found_in_data(
        "contradictions",
        f"{count:,.0f} pairs contradict others: the same two answers are preferred both ways.",
        "warning" if count < 0.25 * records else "bad",
        "Each of the two undoes what the other teaches. People may differ, or votes may have been joined the wrong way "
        "round.",
        (share_seen(count, count / records, "contradicted"),),
        (
            Remedy("keep the verdict of most people for each pair, or leave both out"),
            *leaving_out(2 * count / records),  # both sides go
        ),
        FirstLines(map(str, listed), int(count)) if isinstance(listed, list) else (),
        n=f"{count:,.0f}",
    )


def _kinds_by_length(longer: Level) -> Finding | None:
    rule, right = ("longer", longer.mean) if longer.mean > 0.5 else ("shorter", 1 - longer.mean)
    if (longer.low if rule == "longer" else 1 - longer.high) <= 0.75:
        return None
    share = f"{100 * right:.0f}%"
    return Finding(
        "length_tells",
        f"Of a good answer and a bad one, the good one is the {rule} one {share} of the time.",
        "info",
        f"A model can learn to write ever {'more' if rule == 'longer' else 'less'} rather than better. Perhaps answers "
        "of one kind were cut.",
        (line("kinds_by_length", n=f"{longer.n:,}"),),
        (Remedy("good and bad answers of similar length"),),
        values={"share": share},
        about=rule,
        said_as="length_tells_kinds",
    )


def one_sided(account: Account, weights: Weights) -> Finding | None:
    """Single answers of which hardly any, or nearly all, are called good, and whose ``weights`` do not make up for it
    (a weight tells no more of fewer than `FEW` answers)."""
    good, bad = _good_and_bad(account)
    if good + bad < 20 or min(good, bad) >= SIDE * (good + bad):
        return None
    if min(good, bad) >= FEW and not _light(good * weights[0], bad * weights[1]):
        return None
    missing = "bad" if bad < good else "good"
    return found_in_data(
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


def lopsided(account: Account, weights: Weights) -> Finding | None:
    """Both kinds of single answers are there, and ``weights`` make one kind count for next to nothing."""
    good, bad = _good_and_bad(account)
    if good + bad < 20 or min(good, bad) < SIDE * (good + bad) or not _light(good * weights[0], bad * weights[1]):
        return None
    heavy, light = ("good", "bad") if good * weights[0] > bad * weights[1] else ("bad", "good")
    asked = max((0, 1), key=lambda i: abs(math.log(weights[i])) if weights[i] else math.inf)
    name = _WEIGHTS[asked]
    even = weights[1] * bad / good if asked == 0 else weights[0] * good / bad
    return found_in_data(
        "lopsided",
        f"The {heavy} answers weigh far more than the {light} ones: {name}={weights[asked]:g}.",
        "warning",
        "What tells good from bad can only be learnt from both, and one kind counts for next to nothing.",
        (line("good_and_bad", good=f"{good:,.0f} × {weights[0]:g}", bad=f"{bad:,.0f} × {weights[1]:g}"),),
        (set_to(name, float(f"{even:.2g}") or 1.0, "with which both kinds weigh the same"),),
        setting=name,
        value=f"{weights[asked]:g}",
    )


def _good_and_bad(account: Account) -> tuple[float, float]:
    """How many single answers are called good, and bad; of a pair one is each."""
    good, bad = (number_in(account, "audit", "faults", n, "count") for n in ("desirable", "undesirable"))
    pairs = number_in(account, "audit", "faults", "pairs")
    return good + pairs, bad + pairs


def _light(one: float, other: float) -> bool:
    return min(one, other) < SIDE * (one + other)


def not_higher(account: Account) -> Finding | None:
    """Of the pairs that have scores the preferred answer has the lower one in a tenth, or half are tied."""
    lower, even, scored = (number_in(account, "audit", "faults", k, "count") for k in ("lower", "even", "scored"))
    if scored < 20 or lower + even > scored or (lower < 0.1 * scored and even < 0.5 * scored):
        return None
    name, count = ("lower", lower) if lower >= 0.1 * scored else ("even", even)
    share = f"{100 * count / scored:.0f}%"
    what = "the preferred answer has the lower score" if name == "lower" else "both answers have the same score"
    return found_in_data(
        "not_higher",
        f"In {share} of the pairs {what}.",
        "warning",
        "The file says which answer is preferred, and scores beside it say otherwise, or that neither is. Either the "
        "columns were exchanged, the lower score is the better one, or ties were kept as preferences.",
        (share_seen(lower, lower / scored, "lower"), share_seen(even, even / scored, "even")),
        (Remedy("see what the scores mean; leave out pairs that they do not tell apart"),),
        sources_in(part_of(account, "audit", "faults", name)),
        share=share,
    )


def nearly_same(account: Account) -> Finding | None:
    """Answers of the same words, in a tenth of the pairs or more."""
    count, pairs = (
        number_in(account, "audit", "faults", "nearly_same", "count"),
        number_in(account, "audit", "faults", "pairs"),
    )
    if not pairs or count < max(2, 0.1 * pairs):
        return None
    return found_in_data(
        "same_words",
        f"{100 * count / pairs:.0f}% of the pairs have the same words on both sides.",
        "warning",
        "Their answers differ in signs, spaces or capitals only, so that is what they teach. Where signs are what "
        "people compared, nothing is wrong.",
        (share_seen(count, count / pairs, "same_words"),),
        (Remedy("leave these pairs out"), *leaving_out(count / pairs)),
        sources_in(part_of(account, "audit", "faults", "nearly_same")),
        share=f"{100 * count / pairs:.0f}%",
    )


def one_word(account: Account) -> Finding | None:
    """Answers that differ in one word, in a quarter of the pairs or more."""
    part, pairs = part_of(account, "audit", "faults", "one_word"), number_in(account, "audit", "faults", "pairs")
    count = number_in(part, "count")
    if pairs < 20 or count < 0.25 * pairs:
        return None
    return Finding(
        "one_word",
        f"In {100 * count / pairs:.0f}% of the pairs the two answers differ in one word.",
        "info",
        "That word is all that such a pair teaches, and the rest of the answer is pushed up and down at once: watch "
        "whether preferred answers get less likely (rewards/chosen), and whether the answers change at all.",
        (share_seen(count, count / pairs, "one_word_apart"),),
        (Remedy("pairs of answers that were written apart from each other"),),
        lines=sources_in(part),
        values={"share": f"{100 * count / pairs:.0f}%"},
    )


def repeated(account: Account) -> Finding | None:
    """A third of the records repeat earlier ones."""
    count, records = number_in(account, "audit", "duplicates"), number_in(account, "audit", "records")
    if not records or count < max(5, records / 3):
        return None
    return found_in_data(
        "repeated",
        f"{100 * count / records:.0f}% of the records repeat earlier ones.",
        "warning",
        "Each counts as often as it stands there: it is learnt by heart, and other pairs weigh less.",
        (share_seen(count, count / records, "repeated_records"),),
        (Remedy("keep one of each"), CLEAN),
        share=f"{100 * count / records:.0f}%",
    )


def length_alone(account: Account) -> Finding | None:
    """Counting characters alone is right three times in four."""
    if (kinds := level_in(part_of(account, "audit", "faults", "longer"))) is not None:
        return _kinds_by_length(kinds)
    for rule in ("longer", "shorter"):
        part = part_of(account, "audit", f"{rule}_preferred")
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
