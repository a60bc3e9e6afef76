"""Settings that lie far from what suits the run, said as the cause where the run shows what they do."""

from __future__ import annotations

from prefiere.doctor.answers import answers_broken
from prefiere.doctor.case import Case, Finding, Severity
from prefiere.doctor.dials import DialReading
from prefiere.doctor.remedies import set_to
from prefiere.doctor.standstill import still
from prefiere.doctor.words import number
from prefiere.metrics import column

_WORDS = {
    "learning_rate": "learning rate",
    "critic_learning_rate": "learning rate of the critic (critic_learning_rate)",
    "warmup_steps": "warm-up (warmup_steps)",
    "critic_warmup_steps": "warm-up of the critic (critic_warmup_steps)",
    "beta": "tie to the model from before (beta)",
    "kl_coef": "price of moving away (kl_coef)",
    "kl_loss_coef": "price of moving away (kl_loss_coef)",
}


def too_strong(case: Case) -> Finding | None:
    """The run came to harm, or nothing came of it, and a setting pushes it further than it should."""
    odd = case.odd(1)
    if odd is None:
        return None
    if harmed(case):
        what = "Every update goes further than what it learnt from can justify, and the model loses what it knew."
    elif no_better(case):
        what = "After training, held-out pairs are ranked no better than by a coin."
    else:
        return None
    return _said(case, odd, "bad", what)


def too_weak(case: Case) -> Finding | None:
    """The run did not move, and a setting holds it back."""
    odd = case.odd(-1)
    if odd is None or harmed(case) or not unmoved(case) or too_strong(case) is not None:
        return None
    return _said(case, odd, "warning", "So the model stays where it started, whatever the data says.")


def out_of_range(case: Case) -> Finding | None:
    """A setting far from its usual value, in a run that shows neither harm nor standstill by it."""
    if too_strong(case) or too_weak(case) or (odd := next((r for r in case.dials if r.odd), None)) is None:
        return None
    shown = _value(odd)
    rate = odd.dial.name == "learning_rate" and abs(odd.farness) > 1.5
    return Finding(
        f"rate_too_{'high' if odd.farness > 0 else 'low'}" if rate else "unusual_setting",
        f"A setting is far from what is usual: {odd.dial.name}={shown}.",
        "info" if abs(odd.farness) < 1.5 else "warning",
        f"{_compared(odd)} The run shows no harm of it, but look there first if something is odd.",
        (),
        (case.usual(odd),),
        about=odd.dial.name,
        values={"setting": odd.dial.name, "value": shown, "usual": str(odd.setting)},
    )


def worst_kept(case: Case) -> Finding | None:
    """The checkpoint that is kept as the best is the worst: greater_is_better says the reverse of the metric."""
    name, greater = case.recipe.get("metric_for_best_model"), case.recipe.get("greater_is_better")
    if not isinstance(name, str) or not isinstance(greater, bool):
        return None
    if (better := column(name).better) is None or greater == (better == "higher"):
        return None
    return Finding(
        "worst_kept",
        f"model/ holds the worst step, not the best: greater_is_better={str(greater).lower()} for {name}.",
        "warning",
        f"Of {name} the {better} value is the better one. What this page says of the last step does not hold of "
        "model/, which was taken from the step that measured worst.",
        (),
        (set_to("greater_is_better", better == "higher"),),
        cause=True,
        about="greater_is_better",
        values={"setting": name},
    )


def harmed(case: Case) -> bool:
    """Whether the run shows damage: answers fell apart, it was stopped by a guard, it failed, it moved away, or far."""
    if answers_broken(case) or (case.stop is not None and case.stop.guarded) or case.status.get("state") == "failed":
        return True
    score, natural = case.change("samples/score"), case.change("samples/ref_logp")
    if (score is not None and score.falls(0.05)) or (natural is not None and natural.falls(0.5)):
        return True
    kl, length = case.seen("samples/kl"), case.tokens_per_answer or 40.0
    if kl is not None and kl.change.rises(max(10.0, 0.5 * length)):
        return True
    if case.family == "policy":
        reward = case.seen("samples/reward")
        return reward is not None and reward.change.falls()
    margin, held = case.seen("rewards/margins"), case.change("eval_loss")
    return (margin is not None and margin.change.falls(0.01)) or (held is not None and held.rises())


def no_better(case: Case) -> bool:
    """Whether held-out pairs, 40 or more, are ranked no better than by a coin: the interval holds 50%, or lies below,
    and does not reach far above it. One of few pairs holds it whatever was learnt."""
    right = case.change("eval_rewards/accuracies")
    return right is not None and right.after.n >= 40 and right.after.low <= 0.5 and right.after.high <= 0.62


def unmoved(case: Case) -> bool:
    """Whether the run shows no change: margins at 0, a loss that stayed, a reward within its noise."""
    if case.family == "preference":
        return still(case) or _small(case)
    if case.family == "policy":
        reward, kl = case.seen("samples/reward"), case.seen("samples/kl")
        flat = reward is None or not reward.change.rises()
        return flat and (kl is None or not kl.change.rises(0.5))
    loss = case.seen("loss")
    right = case.seen("rewards/accuracies")
    if case.family == "reward":
        return right is not None and not right.change.after.above(0.55)
    return loss is None or not loss.change.falls(0.02)


def _small(case: Case) -> bool:
    """Whether what was learnt is not shown beyond the noise, or by a hair only."""
    margin, right = case.seen("rewards/margins"), case.seen("rewards/accuracies")
    if margin is None:
        return False
    beta = case.recipe.get("beta")
    moved = abs(margin.change.diff) / (float(beta) if isinstance(beta, int | float) and beta > 0 else 1.0)
    return not margin.change.rises() or moved < 1.0 or (right is not None and not right.change.after.above(0.5))


def _value(odd: DialReading) -> str:
    return "none" if odd.written is None else f"{odd.written:g}"


def _compared(odd: DialReading) -> str:
    times = odd.times
    name = _WORDS.get(odd.dial.name, odd.dial.name)
    if odd.value is None:
        return f"The {name} has no limit, where {odd.usual:g} is usual."
    if odd.dial.steps:
        taken = f"{100 * odd.value:.0f}% of the updates" if odd.value <= 1 else "longer than the run"
        return f"The {name} is {taken}, where {100 * odd.usual:.0f}% is usual."
    if odd.usual == 0 or odd.value == 0:
        return f"The {name} is {odd.value:g}, where {odd.usual:g} is usual."
    suits = f"{odd.usual:.1e} suits this model" if odd.dial.auto else f"{odd.usual:g} is usual"
    if times >= 1:
        return f"The {name} is {number(times)} times as large as what suits the run: {_value(odd)}, where {suits}."
    smaller = number(1 / times) if times else "∞"
    return f"The {name} is {smaller} times smaller than what suits the run: {_value(odd)}, where {suits}."


def _said(case: Case, odd: DialReading, severity: Severity, what: str) -> Finding:
    """what: what the run shows of it, as a sentence."""
    high = odd.farness > 0
    rate = odd.dial.name in ("learning_rate",)
    key = f"rate_too_{'high' if high else 'low'}" if rate else f"setting_too_{'high' if high else 'low'}"
    name = _WORDS.get(odd.dial.name, odd.dial.name)
    return Finding(
        key,
        f"The {name} is far too {'high' if high else 'low'} ({_value(odd)}).",
        severity,
        f"{_compared(odd)} {what}",
        case.evidence(
            "eval_rewards/accuracies",
            "eval_rewards/margins",
            "samples/score",
            "samples/ref_logp",
            "samples/kl",
            "samples/reward",
        ),
        (case.usual(odd),),
        cause=True,
        sure="sure" if abs(odd.farness) > 1.5 else "likely",
        about=odd.dial.name,
        values={"setting": odd.dial.name, "value": _value(odd), "usual": str(odd.setting)},
    )
