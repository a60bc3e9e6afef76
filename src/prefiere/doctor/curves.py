"""What can be read off the curves. Each check is one function: a case in, a finding or nothing out.

A check speaks only when the change is beyond the 95% intervals *and* large enough to matter, so that a healthy run
raises no alarm. Thresholds are stated where they are used.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import median_filter

from prefiere.doctor.case import Case, Finding, Seen
from prefiere.doctor.words import number, with_interval

MORE = "more updates: a larger num_train_epochs, or a smaller batch_size"


def _evidence(case: Case, *names: str) -> tuple[str, ...]:
    """One line per metric that was measured twice: on held-out data, and in training."""
    return case.evidence(*(k for name in names for k in (f"eval_{name}", name)))


def _rises(seen: Seen | None) -> bool:
    return seen is not None and seen.change.rises()


def _falls(seen: Seen | None) -> bool:
    return seen is not None and seen.change.falls()


def learnt(case: Case) -> Finding | None:
    """The margin (SFT: minus the loss) rose."""
    if case.sft:
        loss = case.seen("loss")
        if loss is None or not loss.change.falls():
            return None
        on = "on answers it never saw" if loss.held_out else "on its training answers"
        return Finding(
            "learnt",
            f"The model learnt to answer like the examples: {on} the loss fell from "
            f"{number(loss.change.before.mean)} to {with_interval(loss.change.after)}.",
            "good" if loss.held_out else "info",
            "The loss is how surprised the model is by each next token of a good answer, in nats. Lower is better; "
            "half a nat less means that each right token became 1.6 times as likely.",
            _evidence(case, "loss", "mean_token_accuracy"),
        )
    margin, accuracy = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None or stuck(case):
        return None
    if not (margin.change.rises() or (_rises(accuracy) and margin.change.diff > 0)):
        return None
    gained = ("on comparisons it never saw" if margin.held_out else "on its training comparisons") + " "
    if accuracy is None:
        gained += "the margin rose"
    elif accuracy.change.after.mean > 0.5:
        share = with_interval(accuracy.change.after, accuracy.key)
        gained += f"it ranks the preferred answer higher {share} of the time"
    else:
        return None
    return Finding(
        "learnt",
        f"The model learnt the preferences: {gained}.",
        "good" if margin.held_out else "info",
        "The margin says how much more the model now favours the preferred answer over the other one than it did "
        "before. It began at zero and rose by more than chance explains.",
        _evidence(case, "rewards/margins", "rewards/accuracies") + _evidence(case, "samples/score"),
    )


def both_fall(case: Case) -> Finding | None:
    """Chosen and rejected fall while the margin rises: what DPO usually does."""
    if case.sft:
        return None
    chosen, rejected, margin = (case.seen(f"rewards/{k}") for k in ("chosen", "rejected", "margins"))
    if not (_falls(chosen) and _falls(rejected) and _rises(margin)):
        return None
    return Finding(
        "both_fall",
        "Both rewards fell while the margin rose. That is normal.",
        "info",
        "The loss sees only the difference between the two answers. It is satisfied when the rejected answer becomes "
        "less likely faster than the chosen one, and since both are similar texts, pushing one down drags the other "
        "along. The probability goes to other answers, usually similar ones. It becomes a problem when the chosen "
        "answers lose a great deal, or when sampled answers get worse: then this page says so.",
        _evidence(case, "rewards/chosen", "rewards/rejected", "rewards/margins"),
    )


def drift(case: Case) -> Finding | None:
    """The chosen answers lost, or the KL grew, by half a nat per token (each token at 60% of its probability), or
    sampled answers lost 0.3 nats per token under the model from before; turning a style around costs less."""
    length = case.tokens_per_answer
    logp, kl, natural = case.seen("logps/chosen"), case.change("samples/kl"), case.change("samples/ref_logp")
    enough = max(5.0, 0.5 * length) if length else max(10.0, 0.5 * abs(logp.change.before.mean)) if logp else 0.0
    signs = []
    if logp is not None and not case.sft and logp.change.falls(enough):
        signs.append("The chosen answers themselves became much less likely, not only the rejected ones.")
    if kl is not None and kl.rises(max(10.0, 0.5 * (length or 40.0))):
        signs.append("What it writes now, the model from before would hardly have written (a large KL).")
    if natural is not None and natural.falls(0.3):
        signs.append("Its answers read less naturally to the model from before: look for wrong words in them.")
    if not signs:
        return None
    return Finding(
        "drift",
        "The model has moved far from where it started.",
        "warning",
        f"{' '.join(signs)} The further it moves, the more it forgets, and the curves cannot show that. Read the "
        "answers below.",
        _evidence(case, "logps/chosen", "samples/kl", "samples/ref_logp"),
        case.gentler(),
    )


def _opposed(accuracy: Seen | None) -> bool:
    """Whether held-out pairs are ranked the wrong way round, beyond the noise."""
    return accuracy is not None and accuracy.held_out and accuracy.change.after.below(0.5)


def moved_away(case: Case) -> Finding | None:
    """Margin and accuracy fell below where they began."""
    margin, accuracy = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None or margin.change.diff >= 0 or (accuracy and accuracy.change.diff >= 0):
        return None
    if not (margin.change.falls(0.01) or _falls(accuracy)):
        return None
    train = case.change("rewards/margins")
    evidence = _evidence(case, *(f"rewards/{k}" for k in ("margins", "accuracies", "chosen", "rejected")))
    if margin.held_out and train is not None and train.rises():
        return Finding(
            "not_carried_over",
            "What it learnt does not carry over: on held-out comparisons it got worse.",
            "bad",
            "On its training pairs the margin rose; on pairs it never saw it fell below where it began. "
            + (
                "It is now right less often than a coin, which learning by heart does not do: the two sets want "
                if _opposed(accuracy)
                else "Either the training pairs were learnt by heart, or the two sets want "
            )
            + "different things (answers swapped in one of them, another source, another prompt format).",
            evidence,
            (
                "`prefiere data` on both sets: look at three pairs of each",
                "fewer num_train_epochs, or " + case.scaled_learning_rate(0.3),
                "leave out eval_data: a validation split is then held out of the training data itself",
            ),
        )
    chosen, rejected = case.seen("rewards/chosen"), case.seen("rewards/rejected")
    pattern = ""
    if chosen and rejected and _falls(chosen) and abs(rejected.change.diff) < 0.35 * abs(chosen.change.diff):
        pattern = (
            " Here the chosen answers became less likely while the rejected ones stayed: the updates pushed against "
            "the preferred answers."
        )
    return Finding(
        "moved_away",
        "The model moved away from what people preferred: margin and accuracy fell.",
        "bad",
        "It now favours the preferred answer less than before training. On the pairs it trains on, the loss can only "
        "push the margin up, so this comes from steps that overshoot (a learning rate too high), from labels that are "
        "swapped or contradict each other, or from training text that is formatted otherwise than the text measured "
        "(chat template, end-of-answer token)." + pattern,
        evidence,
        (
            case.scaled_learning_rate(0.1) + " (and warmup_steps=0.1)",
            "`prefiere data`: check that `chosen` is the better answer, that the template fits the model, and that "
            "answers end with its end token once",
            *case.gentler()[1:2],
        ),
    )


def stuck(case: Case) -> Finding | None:
    """Margin within 0.02 of zero at the end: a loss within 0.01 of ln 2.

    Not so where single margins are spread further than 0.04: a model that has moved, on labels that contradict each
    other, has a small mean margin too, and a higher learning rate would do it no good.
    """
    margins = [c for k in ("eval_rewards/margins", "rewards/margins") if (c := case.change(k)) is not None]
    if not case.has_reference or not margins:
        return None
    if not all(-0.02 < m.after.mean < 0.02 and not m.after.spread > 0.04 for m in margins):
        return None
    few = case.steps < 20
    return Finding(
        "stuck",
        "The model hardly moved: the loss stayed where it began" + (", after few updates." if few else "."),
        "warning",
        "A DPO loss begins at 0.693 (ln 2), where the model favours neither answer more than before, and stayed "
        "there. Almost always the learning rate is too low for this kind of training: LoRA needs about 1e-5 to 2e-4, "
        "ten to a hundred times what full fine-tuning takes.",
        (
            *_evidence(case, "loss", "rewards/margins"),
            f"highest learning rate: {case.learning_rate or '?'}, updates: {case.steps}",
        ),
        (*([MORE] if few else []), case.scaled_learning_rate(10)),
    )


def within_noise(case: Case) -> Finding | None:
    """On held-out data nothing changed beyond its interval."""
    names = ("loss",) if case.sft else ("rewards/margins", "rewards/accuracies", "loss")
    seen = [s for n in names if (s := case.seen(n)) is not None and s.held_out and not math.isnan(s.change.low)]
    if not seen or (case.sft and _rises(seen[0])) or any(c(case) for c in (learnt, moved_away, stuck, overfit)):
        return None
    change = seen[0].change
    half = max(change.diff - change.low, 0.0)
    needed = ""
    if change.diff and change.after.n:
        kind = "answers" if case.sft else "pairs"
        needed = (
            f" To see a change of this size reliably takes about {pairs_needed(change.after.n, half, change.diff):,}"
        )
        needed += f" held-out {kind} instead of {change.after.n:,}."
    return Finding(
        "within_noise",
        "Nothing can be concluded yet: the change is within the noise.",
        "warning",
        "Measured again on other examples, the result could as well have been no change, or the opposite one: the "
        "95% intervals before and after overlap." + needed,
        _evidence(case, *names),
        ("a larger eval_size, or more data", MORE + ", if the curves still rise at the end"),
    )


def overfit(case: Case) -> Finding | None:
    """Held-out loss rose from its best value, by more than its interval, while training went on improving.

    Where held-out pairs are ranked worse than by a coin, they contradict the training pairs: see `moved_away`.
    """
    if not case.sft and _opposed(case.seen("rewards/accuracies")):
        return None
    held_out, train = case.series("eval_loss"), case.series("loss")
    if len(held_out) < 3 or not held_out.measured:
        return None
    # The same pairs every time: their difference is no noisier than one interval unless they are unrelated.
    best = int(np.argmin(held_out.values))
    level, end = held_out.level(slice(best, best + 1)), held_out.end
    rise = end.mean - level.mean
    if best >= len(held_out) - held_out.window or rise <= max(end.high - end.low, level.high - level.low) / 2:
        return None
    before, after = train.values[train.steps <= held_out.steps[best]], train.end.mean
    if len(train) and not after < (before[-max(3, len(before) // 5) :].mean() if len(before) else train.start.mean):
        return None
    step = int(held_out.steps[best])
    improved = level.mean < held_out.start.low if best else False
    return Finding(
        "overfit",
        f"It learnt its training data by heart: on held-out data it was best at step {step}.",
        "warning" if improved else "bad",
        "The loss on the training data went on falling, but on data it never saw it turned and rose: from there on "
        "the model learnt these examples rather than what they have in common.",
        (f"lowest loss on held-out data: {with_interval(level)} at step {step}", *_evidence(case, "loss")),
        (
            "metric_for_best_model=eval_loss, which keeps the best checkpoint, and early_stopping_patience=3",
            "fewer num_train_epochs, or " + case.scaled_learning_rate(0.3),
            "more data",
        ),
    )


def barely(case: Case) -> Finding | None:
    """Accuracy clearly above 80% with a margin below 0.1: right order, hardly any distance."""
    margin, accuracy = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None or accuracy is None or not case.has_reference or stuck(case):
        return None
    if not (accuracy.change.after.above(0.8) and 0 <= margin.change.after.mean < 0.1):
        return None
    return Finding(
        "barely",
        "It ranks the answers correctly, but by a hair: what it writes has hardly changed.",
        "info",
        "Accuracy counts any difference, however small. The margin is the size of that difference, and it is tiny, so "
        "sampled answers will look as before.",
        _evidence(case, "rewards/margins", "rewards/accuracies"),
        (case.scaled_learning_rate(3), MORE),
    )


def spikes(case: Case) -> Finding | None:
    """At least three gradients above ten times the median around them."""
    norm = case.series("grad_norm")
    if len(norm) < 20:
        return None
    usual = np.maximum(median_filter(norm.values, size=21, mode="nearest"), 1e-12)
    at = norm.steps[norm.values > 10 * usual].astype(int)
    if len(at) < 3:
        return None
    shown = ", ".join(map(str, at[:10])) + (", ..." if len(at) > 10 else "")
    return Finding(
        "spikes",
        "A few updates had far larger gradients than the rest.",
        "warning",
        "Single batches pulled the model much harder than usual. Clipping limits what that does, but it often means "
        "damaged or very long examples, or a learning rate at the edge.",
        (f"more than ten times the usual size at steps {shown}",),
        ("a smaller max_grad_norm, such as 0.3", case.scaled_learning_rate(0.5), "`prefiere data` for odd examples"),
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
