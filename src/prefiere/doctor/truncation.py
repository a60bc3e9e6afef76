"""What the account of the data (data.json) says: how much of it the run never saw, and what it saw of its own test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy, advised
from prefiere.doctor.rules.account import level_in, number_in
from prefiere.doctor.words import interval, line, number


def cut(case: Case) -> Finding | None:
    """At least a tenth of the training examples were cut to fit; from half of them on it is a warning."""
    examples = _number(case.account("train", "tokens"), "examples")
    if not examples:
        return None
    prompts, answers, same = (
        _number(case.account("train", "tokens", name), "count")
        for name in ("truncated_prompts", "truncated_completions", "identical")
    )
    if max(prompts, answers) < 0.1 * examples:
        return None
    meaning, evidence = list[str](), list[Worded]()
    if prompts:
        evidence.append(line("prompts_cut", **_share(prompts, examples)))
        meaning.append("Of a prompt the end is kept: the model learns to answer a question that it did not see whole.")
        if not case.sft and case.account("prompts").get("train") == 1:
            meaning.append("All prompts have become the same text, so that no curve has an interval.")
    if answers:
        evidence.append(line("answers_cut", **_share(answers, examples)))
        meaning.append(
            "Of an answer the beginning is kept, without an end token: what is learnt says nothing of how answers go "
            "on and end, and two answers may have become alike."
        )
    if same:
        evidence.append(line("became_the_same", **_share(same, examples)))
    own = ("max_prompt_length", prompts), ("max_completion_length", answers)
    limits = [name for name, count in own if count and case.recipe.get(name)] or ["max_length"]
    return Finding(
        "cut",
        "Much of the training data was cut.",
        "warning" if max(prompts, answers) >= 0.5 * examples else "info",
        " ".join(meaning),
        tuple(evidence),
        (
            advised("larger_both", name=limits[0], other=limits[1])
            if len(limits) == 2
            else advised("larger_one", name=limits[0]),
            Remedy("`prefiere data --model ...`, which counts what is cut before a run"),
        ),
        about="prompts" if prompts >= 0.5 * examples else "",
    )


def _number(account: Mapping[str, Any], name: str) -> int:
    value = account.get(name)
    return int(value) if isinstance(value, int | float) else 0


def not_held_out(case: Case) -> Finding | None:
    """Prompts of eval_data that are also trained on: from a tenth of them on it is a warning."""
    both, of = (_number(case.account("overlap"), name) for name in ("prompts", "of"))
    listed = case.account("known_answers").get("sources")
    known, examples = (_number(case.account("known_answers"), name) for name in ("examples", "of"))
    if examples and known >= 0.1 * examples and known / examples > (both / of if of else 0.0):
        return Finding(
            "known_answers",
            f"{100 * known / examples:.0f}% of the held-out examples were trained on under another prompt.",
            "warning",
            "Their answers stand in the training data word for word, to a prompt that is put in other words. What is "
            "measured on them says how well they were learnt by heart, not how the model does on others.",
            (line("known_answers", n=f"{known:,}", of=f"{examples:,}"),),
            (
                Remedy("leave these examples out of one of the two"),
                *(
                    [Remedy("eval_size instead of eval_data, which keeps them together")]
                    if case.recipe.get("eval_data")
                    else []
                ),
            ),
            cause=True,
            lines=tuple(map(str, listed)) if isinstance(listed, list) else (),
            values={"share": f"{100 * known / examples:.0f}%"},
        )
    if not both or not of:
        return None
    return Finding(
        "not_held_out",
        "Some of the validation data was trained on.",
        "warning" if both >= 0.1 * of else "info",
        "What is measured on such prompts says how well they were learnt, not how the model does on others.",
        (line("prompts_in_both", n=f"{both:,}", of=f"{of:,}"),),
        (
            Remedy("leave these prompts out of one of the two"),
            Remedy("eval_size instead of eval_data, which holds out by prompt"),
        ),
    )


def another_task(case: Case) -> Finding | None:
    """Words tell held-out examples from those that are trained on (`data.quality.told.apart`): above
    `OTHER_KIND` at the low end."""
    found = case.account("apart")
    told = level_in(found)
    if told is None or told.low <= OTHER_KIND or number_in(found, "alike") > TAUGHT:
        return None
    share = number(told.mean, "rewards/accuracies")
    return Finding(
        "another_task",
        f"The held-out examples are of a different kind from those that are trained on: words tell them apart {share} "
        "of the time.",
        "warning",
        "What is measured on them says how the model does on something that it is not taught, and not whether the "
        "training worked. Where that is what you want to know, nothing is wrong.",
        (line("told_apart", share=interval(told, "rewards/accuracies"), n=f"{told.n:,}"),),
        (
            Remedy("leave out eval_data: a validation split is then held out of the training data itself"),
            Remedy("`prefiere data` on both sets: look at three pairs of each"),
        ),
        cause=True,
        sure="likely",
        about="eval_data",
        values={"share": share},
    )


OTHER_KIND, TAUGHT = 0.8, 0.02
"""How often words tell held-out examples from the others, the low end, from which on these are another task; the share
of training examples like them, from which on it is one that is taught among others."""


def _share(count: int, examples: int) -> dict[str, str]:
    return {"n": f"{count:,}", "of": f"{examples:,}", "share": f"{100 * count / examples:.0f}%"}
