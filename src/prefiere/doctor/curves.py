"""What can be read off the curves. Each check is one function: a case in, a finding or nothing out.

A check speaks only when the change is beyond the 95% intervals *and* large enough to matter, so that a healthy run
raises no alarm. Thresholds are stated where they are used.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import median_filter

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding, Seen
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules import lengths
from prefiere.doctor.standstill import gained, pairs_needed, still, stuck, unseen_ones
from prefiere.doctor.words import interval, line, number, with_interval
from prefiere.metrics import column


def _evidence(case: Case, *names: str) -> tuple[Worded, ...]:
    """One line per metric that was measured twice: on held-out data, and in training."""
    return case.evidence(*(k for name in names for k in (f"eval_{name}", name)))


def _called(seen: Seen) -> str:
    return column(seen.key).words


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
        on = f"on {unseen_ones(case, 'answers')}" if loss.held_out else "on its training answers"
        return gained(
            case,
            "The model learnt to answer like the examples",
            f"{on} the loss fell from {number(loss.change.before.mean)} to {with_interval(loss.change.after)}",
            loss.key,
            "The loss is how surprised the model is by each next token of a good answer, in nats. Lower is better; "
            "half a nat less means that each right token became 1.6 times as likely.",
            _evidence(case, "loss", "mean_token_accuracy"),
        )
    margin, accuracy = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None or still(case):
        return None
    if not (margin.change.rises() or (_rises(accuracy) and margin.change.diff > 0)):
        return None
    if accuracy is not None and accuracy.held_out and accuracy.change.after.known and accuracy.change.after.low <= 0.5:
        return None
    measured = (f"on {unseen_ones(case, 'comparisons')}" if margin.held_out else "on its training comparisons") + " "
    if accuracy is None:
        measured += "the margin rose"
    elif accuracy.change.after.mean > 0.5:
        share = with_interval(accuracy.change.after, accuracy.key)
        measured += f"it ranks the preferred answer higher {share} of the time"
    else:
        return None
    return gained(
        case,
        "The model learnt the preferences",
        measured,
        margin.key,
        "The margin says how much more the model now favours the preferred answer over the other one than it did "
        "before. It began at zero and rose by more than chance explains.",
        _evidence(case, "rewards/margins", "rewards/accuracies")
        + _evidence(case, "samples/score")
        + lengths.said(case),
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
    sampled answers lost 0.3 nats per token under the model from before, where that is beyond the noise of few answers;
    turning a style around costs less."""
    length = case.tokens_per_answer
    logp, kl, natural = case.seen("logps/chosen"), case.change("samples/kl"), case.change("samples/ref_logp")
    enough = max(5.0, 0.5 * length) if length else max(10.0, 0.5 * abs(logp.change.before.mean)) if logp else 0.0
    signs = []
    if logp is not None and not case.sft and logp.change.falls(enough):
        signs.append("The chosen answers themselves became much less likely, not only the rejected ones.")
    if kl is not None and kl.rises(max(10.0, 0.5 * (length or 40.0))):
        signs.append("What it writes now, the model from before would hardly have written (a large KL).")
    if natural is not None and natural.diff < -0.3 and (natural.falls() or natural.falls(0.3)):
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
                Remedy("`prefiere data` on both sets: look at three pairs of each"),
                Remedy("fewer num_train_epochs", push=-1),
                *_harder(case, 0.3),
                Remedy("leave out eval_data: a validation split is then held out of the training data itself"),
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
            *_harder(case, 0.1),
            Remedy(
                "`prefiere data`: check that `chosen` is the better answer, that the template fits the model, and that "
                "answers end with its end token once"
            ),
            *(() if case.odd(1) else case.gentler()[1:2]),
        ),
    )


def _harder(case: Case, factor: float) -> tuple[Remedy, ...]:
    """What makes steps smaller: the setting that is far too strong, else a smaller rate."""
    return (case.usual(odd),) if (odd := case.odd(1)) is not None else (case.rate_times(factor),)


def within_noise(case: Case) -> Finding | None:
    """On held-out data nothing changed beyond its interval."""
    names = ("loss",) if case.sft else ("rewards/margins", "rewards/accuracies", "loss")
    seen = [s for n in names if (s := case.seen(n)) is not None and s.held_out and not math.isnan(s.change.low)]
    if not seen or (case.sft and _rises(seen[0])) or any(c(case) for c in (learnt, moved_away, stuck, overfit)):
        return None
    if still(case):
        return None
    noisy = next((s for s in seen if not s.change.moves()), seen[0])
    change, name = noisy.change, _called(noisy)
    other = next((s for s in seen if s is not noisy and s.change.moves()), None)
    half = max(change.diff - change.low, 0.0)
    needed = ""
    if change.diff and change.after.n:
        kind = "answers" if case.sft else "pairs"
        needed = (
            f" To see a change of this size reliably takes about {pairs_needed(change.after.n, half, change.diff):,}"
        )
        needed += f" held-out {kind} instead of {change.after.n:,}."
    shown = (
        f" That the {_called(other)} moved says that the model changed, not that it chooses better." if other else ""
    )
    return Finding(
        "within_noise",
        "Nothing can be concluded yet: the change is within the noise.",
        "warning",
        f"Measured again on other examples, the {name} could as well have shown no change, or the opposite one: its "
        f"95% intervals before and after overlap.{shown}{needed}",
        _evidence(case, *names),
        (
            Remedy("a larger eval_size, or more data"),
            Remedy(
                "more updates: a larger num_train_epochs, or a smaller batch_size, if the curves still rise at the end",
                push=1,
            ),
        ),
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
        (line("lowest_loss", level=interval(level), step=f"{step}"), *_evidence(case, "loss")),
        (
            Remedy("metric_for_best_model=eval_loss, which keeps the best checkpoint, and early_stopping_patience=3"),
            Remedy("fewer num_train_epochs", push=-1),
            *_harder(case, 0.3),
            Remedy("more data"),
        ),
    )


def spikes(case: Case) -> Finding | None:
    """At least three gradients above ten times the median around them, and at most a twentieth of all above five
    times: those that stand apart. Where many are large, some examples are harder than others, and none is odd."""
    norm = case.series("grad_norm")
    if len(norm) < 20:
        return None
    around = median_filter(norm.values, size=21, mode="nearest")
    # Where a loss saturates most gradients are 0 and the others are not odd: a tenth of the largest of most is usual.
    usual = np.maximum(np.maximum(around, 0.1 * float(np.quantile(norm.values, 0.9))), 1e-12)
    at = norm.steps[norm.values > 10 * usual].astype(int)
    if not 3 <= len(at) <= int((norm.values > 5 * usual).sum()) <= max(3, len(norm) // 20):
        return None
    shown = ", ".join(map(str, at[:10])) + (", ..." if len(at) > 10 else "")
    return Finding(
        "spikes",
        "A few updates had far larger gradients than the rest.",
        "warning",
        "Single batches pulled the model much harder than usual. Clipping limits what that does, but it often means "
        "damaged or very long examples, or a learning rate at the edge.",
        (line("spikes", steps=shown),),
        (
            Remedy("`prefiere data` for odd examples"),
            Remedy("a smaller max_grad_norm, such as 0.3"),
            *_harder(case, 0.5),
        ),
    )
