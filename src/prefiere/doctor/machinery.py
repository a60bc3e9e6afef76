"""Whether the machinery of a policy-gradient run is sound: its critic, the size of its updates, its sampler.

policy_gradients.py reads what came out of the run; this file reads why it may not have. Each check is one function.
"""

from __future__ import annotations

from prefiere.doctor.answers import answers_broken
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.words import figure, line, number


def dead_critic(case: Case) -> Finding | None:
    """Over the last fifth of the run the critic explains less than 5% of the returns, beyond the noise below 10%.

    Not where the reward's spread fell below a third: then there is nothing left to explain. As information where what
    it explains went up, and a tenth of the variance is within its interval: it may be learning still.
    """
    explained, spread = case.end("val/explained_variance"), case.change("reward_std")
    if explained is None or len(case.series("val/explained_variance")) < 10:
        return None
    if not (explained.mean < 0.05 and explained.below(0.1)):
        return None
    if spread is not None and (spread.after.mean < 1e-6 or spread.after.mean < spread.before.mean / 3):
        return None
    learns = (change := case.change("val/explained_variance")) is not None and change.may_rise(0.1)
    return Finding(
        "dead_critic",
        "The critic has not caught up with the returns yet."
        if learns
        else "The critic explains nothing of the returns.",
        "info" if learns else "warning",
        "The critic predicts what an answer will earn, so that only what is better than expected is reinforced. At 0 "
        "it predicts no better than a constant; below 0, worse. Learning still works then, with more noise.",
        case.evidence("val/explained_variance", "loss/value_avg", "returns/std"),
        (
            Remedy("a higher critic_learning_rate, or critic_warmup_steps=10, in which it alone learns"),
            Remedy("more num_ppo_epochs"),
            Remedy("`prefiere rloo`, which needs no critic"),
        ),
        said_as="critic_behind" if learns else "",
    )


def too_far(case: Case) -> Finding | None:
    """Single updates go too far: 30% of the tokens clipped, an approximate KL of 0.1, or most updates cut short."""
    clipped, moved = case.end("policy/clipfrac_avg"), case.end("policy/approxkl_avg")
    stops, ratio = case.end("policy/early_stops"), case.end("val/ratio")
    signs = []
    if clipped is not None and clipped.above(0.3):
        signs.append(figure("figure", "policy/clipfrac_avg", clipped))
    if moved is not None and moved.above(0.1):
        signs.append(figure("figure_in", "policy/approxkl_avg", moved))
    if ratio is not None and (ratio.above(1.1) or ratio.below(0.9)):
        signs.append(figure("ratio", "val/ratio", ratio))
    if stops is not None and stops.above(0.5):
        signs.append(line("cut_short", share=number(stops.mean)))
    if not signs:
        return None
    return Finding(
        "too_far",
        "Each update moves the policy too far.",
        "warning",
        "The answers of a rollout tell how to improve the policy that wrote them. After a few steps it is another "
        "policy, and what they say is out of date; clipping then discards much of it.",
        tuple(signs),
        (
            *((case.usual(odd),) if (odd := case.odd(1)) else (case.rate_times(0.3), *case.fewer_passes())),
            Remedy("a smaller cliprange, or a smaller max_approx_kl, which ends an update sooner"),
        ),
    )


def fewer_ends(case: Case) -> Finding | None:
    """A tenth of the answers stopped ending by themselves; where a fifth did, answers.degenerate speaks."""
    ends = case.seen("samples/eos_rate")
    if ends is None or answers_broken(case) or not ends.change.falls(0.1):
        return None
    return Finding(
        "fewer_ends",
        "Fewer answers come to an end by themselves.",
        "warning",
        "They run into the limit of tokens instead. An answer that is cut off is scored as it stands, and a reward "
        "that likes length pays for that.",
        case.evidence(ends.key, "samples/length", "completions/mean_length", "length_reward_correlation"),
        (
            case.larger("missing_eos_penalty", 2, "which is what an answer without an end costs"),
            Remedy("a larger max_new_tokens, if good answers need it"),
        ),
    )


def sampler_off(case: Case) -> Finding | None:
    """The sampler's log-probabilities are 0.05 nats per token from those of training, and no update lies between."""
    drift = case.end("sampler_drift")
    if drift is None or not drift.above(0.05) or case.recipe.get("max_staleness"):
        return None
    return Finding(
        "sampler_off",
        "What was sampled is not quite what is trained: the sampler's log-probabilities are off.",
        "warning",
        "Answers are sampled by one path through the model and learnt from by another. Their rounding differs a "
        "little; at this size the policy that learns is not the one that wrote.",
        (figure("off_at_end", "sampler_drift", drift),),
        (
            Remedy("dtype=float32, to see whether it is rounding"),
            Remedy("the same model folder without custom attention, if it is not"),
        ),
    )


def disagreement(case: Case) -> Finding | None:
    """The reward models disagree more than twice as much as about the answers from before."""
    spread = case.change("samples/reward_disagreement")
    if spread is None or not spread.rises(max(spread.before.mean, 1e-6)):
        return None
    return Finding(
        "disagreement",
        "The reward models disagree about what the policy writes now.",
        "warning",
        "They agree about answers like those that they were trained on. Where they part, none of them knows, and the "
        "reward says little.",
        case.evidence("samples/reward_disagreement", "samples/reward", "samples/kl", "samples/score"),
        (
            Remedy("reward_ensemble=min or lower, which pay only for what all of them like"),
            case.tighter("which keeps the answers where they agree"),
        ),
    )
