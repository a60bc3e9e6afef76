"""What can be read off a policy-gradient run: whether it earned its reward honestly, and at what price.

Here a model is paid for what it writes, so whatever the reward overlooks will be found and used. Each check is one
function, as in curves.py; thresholds are stated where they are used.
"""

from __future__ import annotations

import numpy as np

from prefiere.doctor import answers, curves, standstill
from prefiere.doctor.answers import answers_broken
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy, advised
from prefiere.doctor.rules import lengths, peak
from prefiere.doctor.rules.rewards import SCORE
from prefiere.doctor.series import Change
from prefiere.doctor.words import figure, interval, line, number, with_interval
from prefiere.stats import float_of

WORTH_HAVING = 0.5
"""A rise of a reward or score, in the spread of single ones before training, that is worth a run."""
MORE_ANSWERS = Remedy("a larger eval_size, so that a smaller change can be seen")
MORE_ROLLOUTS = Remedy("more updates: a larger num_train_epochs, or max_steps", push=1)


def _judge_fell(case: Case) -> tuple[Change, int] | None:
    """The judge's score from its best to its end, and the step of the best, where it fell beyond the noise."""
    score = case.series("samples/score")
    if len(score) < 2:
        return None
    best = int(np.argmax(score.values))
    fall = Change(score.level(slice(best, best + 1)), score.end)
    return (fall, int(score.steps[best])) if fall.falls() else None


def reward_learnt(case: Case) -> Finding | None:
    """The judge's score rose; where there is none, the reward."""
    reward, score = case.seen("samples/reward"), case.change("samples/score")
    told = score is not None and score.rises()
    if told and score is not None:
        key, praise = "samples/score", "The answers got better"
        rise = f"the judge's score rose from {number(score.before.mean)} to {with_interval(score.after)}"
    elif score is None and reward is not None and reward.change.rises():
        key, praise = reward.key, "The policy earns more"
        where = "on held-out prompts" if reward.held_out and standstill.examples_held_out(case) != 0 else "in training"
        rise = f"{where} the reward rose from {number(reward.change.before.mean)} to "
        rise += with_interval(reward.change.after)
    else:
        return None
    kl = case.seen("samples/kl")
    at = f", at a KL of {number(kl.change.after.mean)} nats per answer" if kl is not None else ""
    return standstill.gained(
        case,
        praise,
        rise + at,
        key,
        "The reward is what training pays for; the judge is asked besides, and was not paid. "
        "The KL is the price: how far the answers have moved from what the model would have written before. "
        "Much reward for little KL is what a good run looks like.",
        case.evidence("samples/score", "samples/reward", "reward", "samples/kl", "objective/kl")
        + peak.distance_said(case)
        + lengths.said(case),
    )


def reward_exploited(case: Case) -> Finding | None:
    """The judge's score fell from its best while the reward went on rising (over-optimisation)."""
    fell, reward = _judge_fell(case), case.series("samples/reward")
    if fell is None:
        return None
    change, step = fell
    if not len(reward):
        reward = case.series("reward")
    then = np.flatnonzero(reward.steps <= step)
    if len(reward) < 2 or not len(then):
        return None
    window = 1 if reward.same else reward.window
    at_best = reward.level(slice(max(0, int(then[-1]) + 1 - window), int(then[-1]) + 1))
    if not Change(at_best, reward.end).rises():
        return None
    worse = (now := case.change("samples/score")) is not None and not now.rises()
    return Finding(
        "exploited",
        "The reward is being exploited: it went on rising while the judge's score fell"
        + (f" after step {step}." if step else "."),
        "bad" if worse else "warning",
        "The policy found answers that the reward rates too highly, and moved there. A reward model is only right near "
        "the answers that it was trained on; the further the policy goes, the more it is paid for the reward model's "
        "mistakes. The model of an earlier step is better than this one.",
        (
            line("judge_at_best", step=f"{step}", best=interval(change.before), end=interval(change.after)),
            *case.evidence("samples/reward", "reward", "samples/kl", "samples/length"),
            *peak.distance_said(case),
        ),
        (
            case.tighter("which makes moving away cost more"),
            advised("stop_earlier", step=str(step))
            if step
            else Remedy("a smaller max_kl, which stops the run before it is far from the start"),
            Remedy("several reward models, or one trained on answers like those below"),
        ),
    )


def policy_worse_score(case: Case) -> Finding | None:
    """The judge likes the answers less than before, while the reward did not rise either."""
    return None if reward_exploited(case) else answers.worse_score(case)


def not_followed(case: Case) -> Finding | None:
    """The reward rose clearly, the judge's score did not; as information where its interval holds a rise worth having,
    and it went up."""
    reward, score = case.seen("samples/reward"), case.change("samples/score")
    if reward is None or score is None or not reward.change.rises() or score.moves() or reward_exploited(case):
        return None
    evidence = case.evidence("samples/reward", "reward", "samples/score", "samples/kl")
    if score.may_rise(WORTH_HAVING * score.before.spread):
        return Finding(
            "not_followed",
            "The reward rose; whether the judge's score follows cannot be told yet: too few answers were judged.",
            "info",
            "The score went up, within the noise; so would a rise worth having.",
            evidence,
            (MORE_ANSWERS,),
            said_as="judge_undecided",
        )
    return Finding(
        "not_followed",
        "The reward rose, but the judge sees no change beyond the noise.",
        "warning",
        "What the policy was paid for is not what the judge looks at, or the change is too small for the prompts that "
        "were judged. Read the answers below before this model is used.",
        evidence,
        (MORE_ANSWERS, Remedy("read the answers, and check the reward on them")),
    )


def reward_falls(case: Case) -> Finding | None:
    """The reward is lower than at the start."""
    reward = case.seen("samples/reward")
    if reward is None or not reward.change.falls():
        return None
    return Finding(
        "reward_falls",
        "The policy earns less reward than before training.",
        "bad",
        "Training raises the reward less its price in KL. Where the reward falls, either steps overshoot, or the price "
        "is so high that staying put pays more, or answers run into a penalty (the one for not ending, say).",
        case.evidence("samples/reward", "reward", "objective/kl", "completions/eos_rate", "policy/clipfrac_avg"),
        (
            *((case.usual(odd),) if (odd := case.odd(1)) else (case.rate_times(0.3), *case.fewer_passes())),
            Remedy("a smaller kl_coef, if the KL has stayed near zero", push=1),
            Remedy("a larger max_new_tokens, if answers stopped ending"),
        ),
    )


def reward_flat(case: Case) -> Finding | None:
    """The reward's change is within the noise, in training and on held-out prompts. As information where all of their
    intervals hold a rise worth having: then it is not shown to be flat, either."""
    seen = [c for k in ("samples/reward", "reward") if (c := case.change(k)) is not None and c.after.known]
    if not seen or any(c.moves() for c in seen) or reward_learnt(case):
        return None
    kl, spread, first = case.seen("samples/kl"), case.end("reward_std"), case.series("reward_std")
    evidence = case.evidence("samples/reward", "reward", "reward_std", "samples/kl", "objective/kl")
    if len(first) and all(c.may_rise(WORTH_HAVING * first.start.mean) for c in seen):
        return Finding(
            "reward_flat",
            "Whether the reward rises cannot be told yet: too little was measured.",
            "info",
            "Its rise is within the noise, and so would be a rise worth having.",
            evidence,
            (MORE_ROLLOUTS, MORE_ANSWERS),
            said_as="reward_undecided",
        )
    if spread is not None and spread.mean < 1e-6:
        why = "Every answer earns the same reward, so nothing says which of them to write more often."
        remedy: tuple[Remedy, ...] = (Remedy("a reward that tells answers apart: `prefiere score` on a few of them"),)
    elif kl is not None and not kl.change.rises(0.1):
        why = "The policy has hardly moved either (its KL is near zero)."
        odd, usual_rate = case.odd(-1), _rate_is_usual(case)
        remedy = (case.usual(odd),) if odd else (MORE_ROLLOUTS,) if usual_rate else (case.rate_times(10), MORE_ROLLOUTS)
    else:
        why = (
            "The policy moved, but not to where the reward is: the signal drowns in noise, or the reward was made for "
            "other answers than these."
        )
        remedy = (
            SCORE,
            Remedy("a larger batch_size (rollouts per update)"),
            Remedy("whiten_advantages=true"),
            MORE_ROLLOUTS,
        )
    return Finding("reward_flat", "The reward did not move beyond the noise.", "warning", why, evidence, remedy)


def _rate_is_usual(case: Case) -> bool:
    """Whether the learning rate is known to be about the automatic one."""
    known = next((r for r in case.dials if r.dial.name == "learning_rate"), None)
    return case.recipe.get("learning_rate") == "auto" or (known is not None and not known.odd)


def length_hack(case: Case) -> Finding | None:
    """Within updates, longer answers earn more (correlation above 0.4), and the answers grew by a third."""
    paid, length = case.end("length_reward_correlation"), case.seen("samples/length")
    if paid is None or not paid.above(0.4) or answers_broken(case):
        return None
    grew = length is not None and length.change.rises(max(1.0, 0.33 * length.change.before.mean))
    return Finding(
        "length_hack" if grew else "length_paid",
        "The answers grow, and the reward pays for length." if grew else "The reward goes with length.",
        "warning" if grew else "info",
        "Within an update, the longer of the answers earn more. People do prefer fuller answers up to a point; a "
        "reward model learns that as a rule without an end"
        + (", and the policy follows it." if grew else ". The answers have not grown by it so far."),
        (
            figure("figure_at_end", "length_reward_correlation", paid),
            *case.evidence("samples/length", "completions/mean_length", "samples/score", "samples/reward"),
        ),
        (
            Remedy("`prefiere score` on the reward model: its accuracy where the preferred answer is the shorter one"),
            case.tighter("which makes every extra token cost more", 2),
            Remedy("a larger missing_eos_penalty, if answers run into the limit"),
        )
        if grew
        else (),
    )


def rollouts_longer(case: Case) -> Finding | None:
    """Answers grew by half, without a reward for length within the updates."""
    length = case.seen("samples/length")
    if length is None or answers_broken(case) or length_hack(case):
        return None
    if not length.change.rises(max(1.0, 0.5 * length.change.before.mean)):
        return None
    return Finding(
        "longer",
        "The answers became much longer.",
        "info",
        "Rewards often favour length. See below whether the answers say more, or only use more words.",
        case.evidence("samples/length", "completions/mean_length", "length_reward_correlation"),
        (Remedy("`prefiere score` on the reward model: its accuracy by length difference"),),
    )


def entropy_collapse(case: Case) -> Finding | None:
    """Entropy fell below a quarter of what it was; from below 0.2 nats per token there was no freedom to lose."""
    entropy = case.change("entropy")
    if entropy is None or entropy.before.mean < 0.2 or not entropy.falls(0.75 * entropy.before.mean):
        return None
    return Finding(
        "entropy_collapse",
        "The policy has lost its variety: it writes nearly the same answer every time.",
        "warning",
        "Entropy is how open each next token is. Where it is gone, all answers to a prompt are alike, the reward can "
        "no longer tell them apart, and learning ends, at the best answer or at an early guess.",
        case.evidence("entropy", "reward_std", "samples/reward", "samples/repetition"),
        (
            *((case.usual(odd),) if (odd := case.odd(1)) else ()),
            case.tighter("which holds the policy near the model from before, and its variety"),
            *(() if odd else (case.rate_times(0.3), *case.fewer_passes())),
        ),
    )


def kl_runaway(case: Case) -> Finding | None:
    """More than one nat per token of an answer, and at least 20: the start would hardly write one token in three."""
    kl = case.seen("samples/kl")
    length = case.tokens_per_answer or 40.0
    if kl is None or not kl.change.rises(max(20.0, length)):
        return None
    series = case.series(kl.key)
    middle = series.level(slice(len(series) // 2, len(series) // 2 + 1)).mean
    still = " Half of that came in the second half of the run, and it is still rising." * (
        series.end.mean > 1.5 * max(middle, 1e-9)
    )
    return Finding(
        "kl_runaway",
        "The policy ran away from where it started: nothing held its KL.",
        "bad",
        "At this distance the model from before says nothing of these answers any more, nor does a reward model that "
        "was trained on answers like its own." + still,
        case.evidence("samples/kl", "objective/kl", "samples/ref_logp", "kl_coef", "samples/score"),
        (
            *((case.usual(odd),) if (odd := case.odd(1)) else ()),
            case.tighter("or target_kl, with which the price finds itself"),
            Remedy("max_kl, which stops the run at a budget", push=-1),
            *(() if odd else (case.rate_times(0.3),)),
        ),
    )


def policy_drift(case: Case) -> Finding | None:
    """As for given answers, unless the policy ran away altogether."""
    return None if kl_runaway(case) else curves.drift(case)


def adaptive(case: Case) -> Finding | None:
    """The KL coefficient changed by a fifth or more along the run."""
    coefficient = case.series("kl_coef").values
    if len(coefficient) < 2 or coefficient[0] <= 0 or 0.8 < coefficient[-1] / coefficient[0] < 1.25:
        return None
    up, target, seen = coefficient[-1] > coefficient[0], case.recipe.get("target_kl"), case.end("objective/kl")
    kl = seen.mean if seen is not None else 0.0
    aim = float_of(target) or 0.0
    far = kl > 0 and aim > 0 and not 1 / 3 < kl / aim < 3
    return Finding(
        "adaptive",
        f"The KL coefficient adapted itself, from {number(coefficient[0])} to {number(coefficient[-1])}.",
        "info",
        "It rises while the KL is above target_kl and falls while it is below. It ended "
        + ("higher: the coefficient it began with was too weak." if up else "lower: it began too strong.")
        + (
            f" The KL ended at {number(kl)}, far from the {number(aim)} that were asked for."
            if far
            else " The value of the end is a good fixed kl_coef for a run like this."
        ),
        case.evidence("objective/kl", "samples/kl"),
        said_as="adaptive_far" if far else "",
    )
