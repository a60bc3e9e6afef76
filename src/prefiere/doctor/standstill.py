"""What can be concluded from curves, and what not: the model stood still, moved by a hair, or was held against too
little for praise."""

from __future__ import annotations

import math

from prefiere.asked.kinds import prompts_file
from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy, set_to
from prefiere.doctor.truncation import not_held_out
from prefiere.doctor.words import line, number
from prefiere.metrics import measured_again

MORE = Remedy("more updates: a larger num_train_epochs, or a smaller batch_size", push=1)
FEW_HELD_OUT = 20
"""Held-out examples, below which nothing is called good."""
ENOUGH_ROWS = 10
"""Training rows, below which an end is fewer than five of them, so that a single update decides what is seen."""


def examples_held_out(case: Case) -> int | None:
    """How many held-out examples (policy gradients: prompts) were measured; None where no row says.

    Answers are sampled to training prompts where no prompt is held out: that is 0.
    """
    policy = case.family == "policy"
    keys = (
        ("samples/reward", "samples/score") if policy else ("eval_rewards/margins", "eval_rewards/chosen", "eval_loss")
    )
    counts = [int(s.n.max()) for k in keys if len(s := case.series(k)) and s.n.max() > 0]
    if case.family == "reward" and isinstance(n := case.calibration.get("n"), int):
        counts.append(n)
    if not counts:
        return None
    # Rows count answers, of which a prompt may have several.
    asked = case.run.choices.get("sample_prompts", case.recipe.get("sample_prompts"))
    bounds = (asked, case.account("examples").get("eval")) if policy and prompts_file(asked) is None else ()
    return min([max(counts), *(n for n in bounds if isinstance(n, int))])


def _kind(case: Case) -> str:
    return "prompts" if case.family == "policy" else "examples"


def unseen_ones(case: Case, what: str) -> str:
    """Held-out examples in words, which were not trained on unless the data says so: "comparisons it never saw"."""
    return f"held-out {what}" if _known(case) else f"{what} it never saw"


def _known(case: Case) -> bool:
    found = not_held_out(case)
    return found is not None and found.severity == "warning"


def gained(case: Case, praise: str, measured: str, key: str, meaning: str, seen: tuple[Worded, ...]) -> Finding | None:
    """What a run learnt: ``praise: measured.``, where `FEW_HELD_OUT` held-out examples or more show it.

    On fewer, on held-out ones that were trained on, or on training data alone, what was measured is told as information
    and nothing is praised; where a single training row decides, it is not told. key: the metric that shows it.
    measured: what it shows.
    """
    count = examples_held_out(case)
    if not measured_again(key) or count == 0:
        if not measured_again(key) and len(case.series(key)) < ENOUGH_ROWS:
            return None
        alone = "Nothing that was held out shows whether this holds for other data."
        return Finding(
            "learnt", f"Nothing held out was measured: {measured}.", "info", alone, seen, said_as="learnt_in_training"
        )
    if count is not None and count < FEW_HELD_OUT:
        luck, kind = "Others may show the opposite: so few show no more than themselves.", _kind(case)
        return Finding(
            "learnt", f"Seen on {count} held-out {kind} only: {measured}.", "info", luck, seen, said_as="learnt_on_few"
        )
    if _known(case):
        of_known = "These examples, or their answers, were trained on: they do not show how it does on others."
        return Finding(
            "learnt", f"Measured on what it had seen: {measured}.", "info", of_known, seen, said_as="learnt_on_known"
        )
    said_as = {"imitation": "learnt_examples", "policy": "learnt_reward"}.get(case.family, "")
    return Finding("learnt", f"{praise}: {measured}.", "good", meaning, seen, said_as=said_as)


def few_held_out(case: Case) -> Finding | None:
    """Fewer than 20 held-out examples (or prompts that are sampled): whatever they say could be luck."""
    count = examples_held_out(case)
    if not count or count >= FEW_HELD_OUT:  # none at all: see `unmeasured`
        return None
    kind = _kind(case)
    return Finding(
        "few_held_out",
        f"Too few held-out {kind} to tell: {count}.",
        "warning",
        f"With fewer than {FEW_HELD_OUT}, even 'all of them right' may be luck: what is shown holds of these few.",
        (line(f"held_out_{kind}", n=f"{count}"),),
        (_more_held_out(case, count),),
        values={"n": str(count)},
    )


def _more_held_out(case: Case, count: int) -> Remedy:
    """How to keep more than ``count`` examples aside: a quarter of all, at most a hundred, where that is enough."""
    asked = case.recipe.get("sample_prompts")
    if case.family == "policy" and prompts_file(asked) is not None:
        return Remedy("more prompts in the file that sample_prompts names")
    if case.family == "policy" and isinstance(asked, int) and asked < FEW_HELD_OUT:
        return set_to("sample_prompts", "auto", "which takes up to 32 prompts")
    if case.recipe.get("eval_data"):
        return Remedy("more examples in eval_data: a hundred show most of what there is to see")
    found = [n for k in ("train", "eval") if isinstance(n := case.account("examples").get(k), int)]
    if len(found) < 2:  # nothing is known of how many there are
        return Remedy("eval_size=0.1, or 100 where there are so many; or separate eval_data")
    if (kept := min(100, sum(found) // 4)) >= FEW_HELD_OUT:
        return set_to("eval_size", kept, "so that enough are kept aside to tell")
    return Remedy("more data: of eighty examples or more, twenty can be kept aside (eval_size)")


def still(case: Case) -> bool:
    """Margin within 0.02 of zero at the end: a loss within 0.01 of ln 2. Below the usual beta, 0.1, a margin is as much
    smaller of a model that has moved as far, and so are these bounds.

    Not so where single margins are spread further than 0.04: a model that has moved, on labels that contradict each
    other, has a small mean margin too, and a higher learning rate would do it no good.
    """
    margins = [c for k in ("eval_rewards/margins", "rewards/margins") if (c := case.change(k)) is not None]
    if not case.has_reference or not margins:
        return False
    beta = case.recipe.get("beta")
    least = 0.02 * min(1.0, beta / 0.1 if isinstance(beta, int | float) and beta > 0 else 1.0)
    return all(-least < m.after.mean < least and not m.after.spread > 2 * least for m in margins)


def stuck(case: Case) -> Finding | None:
    """The model is still where it began, and neither a setting nor its labels explain it: too few updates, or a rate of
    which nothing is known. Where the weights have moved, the rate is not the cause."""
    if not still(case) or case.odd(-1) is not None:
        return None
    few = case.steps < 20
    if case.moved and not few:
        return None
    known = any(r.dial.name == "learning_rate" for r in case.dials) or case.recipe.get("learning_rate") == "auto"
    return Finding(
        "stuck",
        "The model hardly moved: the loss stayed where it began" + (", after few updates." if few else "."),
        "warning",
        "A DPO loss begins at 0.693 (ln 2), where the model favours neither answer more than before, and stayed "
        "there."
        + (
            ""
            if known
            else " Often the learning rate is too low for this kind of training: LoRA needs about 1e-5 to 2e-4, ten to "
            "a hundred times what full fine-tuning takes."
        ),
        (
            *_both(case, "loss", "rewards/margins"),
            line("pace", rate=f"{case.learning_rate or '?'}", steps=f"{case.steps}"),
        ),
        (*([MORE] if few or known else []), *([] if known else [case.rate_times(10)])),
        sure="possible" if case.moved else "sure",  # weights that moved, and labels without a pattern, look the same
    )


def barely(case: Case) -> Finding | None:
    """Accuracy clearly above 80% with a margin below 0.1: right order, hardly any distance."""
    margin, accuracy = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None or accuracy is None or not case.has_reference or still(case):
        return None
    if not (accuracy.change.after.above(0.8) and 0 <= margin.change.after.mean < 0.1):
        return None
    if not accuracy.held_out or few_held_out(case):
        return None
    return Finding(
        "barely",
        "What it writes has hardly changed: it ranks the answers correctly, by a hair.",
        "info",
        "Accuracy counts any difference, however small. The margin is the size of that difference, and it is tiny, so "
        "sampled answers will look as before.",
        _both(case, "rewards/margins", "rewards/accuracies"),
        (*case.bolder(3), MORE),
    )


IN_PART, SHOWN = 0.65, 0.6
"""Where fewer held-out pairs are ranked rightly than the first share, or the interval holds less than the second one,
what was learnt may be a part only of what is there."""


def in_part(case: Case) -> Finding | None:
    """Held-out pairs are ranked better than by a coin, and it is not shown that far more of them are ranked rightly."""
    right = case.change("eval_rewards/accuracies")
    if right is None or not right.after.above(0.5) or (right.after.mean >= IN_PART and right.after.above(SHOWN)):
        return None
    share = number(right.after.mean, "rewards/accuracies")
    return Finding(
        "in_part",
        f"It may be only a part of what people preferred: it is right {share} of the time, and a coin half of it.",
        "info",
        "So much is there, beyond chance. The rest may have no pattern (labels that were given at random, or that "
        "contradict each other), or need more data, or a larger model.",
        case.evidence("eval_rewards/accuracies"),
        (
            Remedy("`prefiere data ... --check`: look at 15 pairs without knowing which answer was preferred"),
            Remedy("more data, or a larger model"),
        ),
        values={"share": share},
    )


def pairs_needed(n: int, half: float, effect: float) -> int:
    """How many pairs would show ``effect``, where ``n`` gave an interval of half-width ``half``.

    Half-widths shrink with the root of n; 2.80/1.96 adds the margin that finds a true effect 80% of the time.
    """
    return _round_up(n * (half / abs(effect) * 2.80 / 1.96) ** 2)


def _round_up(value: float) -> int:
    """To two figures, upwards: 1,234 is 1,300."""
    if value <= 10:
        return max(2, math.ceil(value))
    step = 10 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


def _both(case: Case, *names: str) -> tuple[Worded, ...]:
    """One line per metric that was measured twice: on held-out data, and in training."""
    return case.evidence(*(k for name in names for k in (f"eval_{name}", name)))
