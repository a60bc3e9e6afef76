"""The table of metrics: one row for each column that metrics.jsonl may have, whatever the method.

Figures, findings, intervals, the direction of ``metric_for_best_model`` and docs/metrics.md read it. A new metric is a
row here; `python -m prefiere.metrics > docs/metrics.md` writes the page. No torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

HELD_OUT = "eval_"
"""Before a column's name: the same, measured on held-out examples."""
BOUNDS = ("_low", "_high", "_n")
"""After a column's name: the ends of its 95% interval, and how many values it is the mean of."""

ROUNDED_ZERO = 1e-6

Better = Literal["higher", "lower"]
Interval = Literal["none", "mean", "share", "seen"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of metrics.jsonl.

    words: what it is called within a sentence; title: over its figure. unit: follows its number; axis: what a figure
    names where no unit follows. per: what one value belongs to. better: None where neither direction is.
    share: a number from 0 to 1 that is shown in per cent. interval: how its bounds are made: Student's t (mean),
    Wilson's for values of 0, 1/2 and 1 (share), or whichever of the two its values call for (seen); none: no bounds.
    rollouts: the column that says the same of each update's own rollouts. held_out: measured on examples that were
    given, so that it also comes with ``eval_``. where: the loss types or families of methods that
    the row is about, where one name means two things; empty: all others.
    """

    name: str
    words: str
    unit: str
    per: str
    better: Better | None
    meaning: str
    title: str = ""
    axis: str = ""
    share: bool = False
    interval: Interval = "mean"
    rollouts: str = ""
    held_out: bool = False
    where: tuple[str, ...] = ()

    @property
    def measured_in(self) -> str:
        """The unit, or what a figure's axis says in its stead."""
        return self.axis or self.unit

    @property
    def rounding(self) -> float:
        """What is nearer to zero is the rounding of a zero. A log-probability of an answer, some hundred nats, is
        rounded in float32 to 2^-24 of itself, 1e-5. A rate is as it was set, however small."""
        return 0.0 if self.name == "learning_rate" else 1e-5 if "nats" in self.measured_in else ROUNDED_ZERO

    @property
    def sampled(self) -> bool:
        """Whether it is measured on answers to the same prompts again and again."""
        return self.name.startswith("samples/")

    @property
    def measured(self) -> str:
        """The column that measures it on the same examples or prompts again and again."""
        return self.name if self.sampled else HELD_OUT + self.name

    @property
    def training(self) -> str:
        """The column that measures it on what training itself sees; "" where there is none."""
        return self.rollouts if self.sampled else self.name


C = Column
UP: Better = "higher"
DOWN: Better = "lower"
NO_REFERENCE = ("simpo", "orpo", "cpo")
PER_TOKEN = ("simpo", "orpo")

# fmt: off
RUN = tuple(replace(c, interval="none") for c in (
    C("step", "update", "", "row", None, "Updates made so far; of a policy gradient, rollouts learnt from."),
    C("epoch", "epoch", "", "row", None, "How often the data has been gone through."),
    C("seconds", "time", "seconds", "row", None, "Time spent on updates so far."),
    C("tokens", "tokens", "tokens", "row", None, "Tokens that updates have run through so far, padding and fillers not "
      "counted."),
    C("tokens_per_second", "speed", "tokens per second", "row", UP, "Speed of the updates since the row before."),
    C("peak_memory_mb", "memory", "MB", "row", DOWN, "The most memory that the process has held: the GPU's, else its "
      "own."),
    C("grad_norm", "gradient norm", "", "update", None, "Length of the gradient before it is clipped. A few rows far "
      "above the others mean odd examples, or a learning rate at the edge."),
    C("learning_rate", "learning rate", "", "update", None, "The rate of the last update."),
    C("loss_scale", "scale of the loss", "", "row", None, "With fp16: what the loss is multiplied by, so that small "
      "gradients are not rounded to 0."),
    C("loss_scale_backoffs", "scales taken back", "", "row", DOWN, "With fp16: how often the scale was halved because "
      "a gradient overflowed."),
    C("weights/moved", "weights moved", "", "row", None, "Length of the change of the trained weights over their "
      "length before training (of an adapter: its own); of many weights, a part. Near 0, nothing was trained."),
))
START = (
    C("start/prompt_matters", "what the prompt adds to its answer", "nats per token", "example", UP, "How much "
      "likelier the model finds a preferred answer after its own prompt than after another one. Near 0, prompts and "
      "answers do not belong together, or the model does not read them."),
    C("start/prompt_in_own", "what the prompt adds to the model's own answers", "nats per token", "answer", UP, "The "
      "same of answers that the model samples itself: what start/prompt_matters is held against."),
    C("start/prompt_ignored", "answers that fit another prompt as well", "", "example", DOWN, "Share of the preferred "
      "answers that the model finds no likelier after their own prompt than after another one.", share=True,
      interval="share"),
    C("start/prompt_ignored_own", "own answers that fit another prompt as well", "", "answer", DOWN, "The same of "
      "answers that the model samples itself: what start/prompt_ignored is held against.", share=True,
      interval="share"),
    C("start/chosen_logp", "log-probability of preferred answers", "nats per token", "example", UP, "How likely the "
      "model finds the preferred answers before training. Far below samples/ref_logp, they are not what it writes."),
    C("start/likeness", "likeness of the two answers", "", "pair", DOWN, "How alike the model finds the two answers of "
      "a pair: 0 for the same text (centred hidden embedding similarity). Near 0, both fall together."),
    C("start/too_alike", "pairs of answers too alike", "", "pair", DOWN, "Share of the pairs whose likeness is above "
      "-0.1.", share=True, interval="share"),
    C("start/reward_retest", "agreement of the reward with itself", "correlation", "row", UP, "Of the same answers "
      "scored twice: 1 where a reward depends on the answer alone, 0 where it is noise.", interval="none"),
)
GIVEN = tuple(replace(c, held_out=True) for c in (
    C("loss", "loss", "nats", "pair", DOWN, "What training makes smaller. It should fall; when only the held-out line "
      "rises again, the model is learning its examples by heart.", "Loss"),
    *(C("loss", "loss", unit, per, DOWN, "What training makes smaller. It should fall; when only the held-out line "
        "rises again, the model is learning its examples by heart.", "Loss", axis=axis, where=where)
      for unit, per, axis, where in (("nats", "token", "", ("imitation",)), ("nats", "pair", "", ("reward",)),
                                     ("", "pair", "β × nats", ("hinge",)),
                                     ("squared nats per token", "pair", "", ("ipo",)),
                                     ("", "answer", "from 0 to the answer's weight", ("kto",)))),
    C("nll_loss", "loss of imitating the chosen answers", "nats per token", "pair", DOWN, "With rpo_alpha: how "
      "surprised the model is by a token of the preferred answer."),
    C("mean_token_accuracy", "next tokens guessed right", "", "token", UP, "How often the example's next token is the "
      "one the model finds most likely.", "Next tokens guessed right", "share of next tokens", share=True),
    C("rewards/margins", "margin", "", "pair", UP, "How much more the model favours the preferred answer over the "
      "other one than it did before training. This should rise.", "Margin", "β × nats"),
    C("rewards/margins", "margin", "", "row", UP, "How much higher the reward of good answers is, on average, than "
      "that of bad ones. This should rise.", "Margin", "β × nats", interval="none", where=("kto",)),
    C("rewards/accuracies", "accuracy", "", "pair", UP, "How often it favours the preferred answer more than it did "
      "before. It counts any difference, however small.", "Accuracy", "share of comparisons", True, "share"),
    C("rewards/chosen", "reward of the chosen answers", "", "answer", UP, "How much more likely than before preferred "
      "answers became; below zero, less. A fall is common: the loss sees only the difference.",
      "Reward of chosen answers", "β × nats"),
    C("rewards/rejected", "reward of the rejected answers", "", "answer", None, "The same for the answers people liked "
      "less. This usually falls, and faster than the chosen ones.", "Reward of rejected answers", "β × nats"),
    C("rewards/margins", "margin", "", "pair", UP, "How much higher the preferred answer scores than the other one. "
      "This should rise; far above the held-out line, the pairs are being learnt by heart.", "Margin", "score",
      where=("reward",)),
    C("rewards/accuracies", "accuracy", "", "pair", UP, "How often the preferred answer scores higher.", "Accuracy",
      "share of comparisons", True, "share", where=("reward",)),
    C("rewards/chosen", "reward of the chosen answers", "", "answer", None, "Only differences between scores are "
      "learnt; where they lie is settled by centring.", "Score of chosen answers", "score", where=("reward",)),
    C("rewards/rejected", "reward of the rejected answers", "", "answer", None, "This should part from the score of "
      "chosen answers, downwards.", "Score of rejected answers", "score", where=("reward",)),
    C("rewards/mean", "score of all answers", "", "pair", None, "Where the scores of chosen and rejected answers lie; "
      "center_rewards_coefficient draws it to 0.", axis="score", where=("reward",)),
    C("rewards/std", "spread of the scores", "", "row", None, "Standard deviation of the scores of all answers.",
      axis="score", interval="none", where=("reward",)),
    *(C(f"rewards/{name}", f"reward of the {name} answers", "", "answer", better, f"How likely {name} answers are, "
        "times β: this loss compares with no model from before.", f"Reward of {name} answers", axis, where=where)
      for name, better in (("chosen", UP), ("rejected", None))
      for axis, where in (("β × nats per token", PER_TOKEN), ("β × nats", ("cpo",)))),
    *(C("rewards/margins", "margin", "", "pair", UP, "How much more likely the preferred answer is than the other one, "
        "times β. This should rise.", "Margin", axis, where=where)
      for axis, where in (("β × nats per token", PER_TOKEN), ("β × nats", ("cpo",)))),
    C("rewards/accuracies", "accuracy", "", "pair", UP, "How often the preferred answer is the more likely one. It "
      "counts any difference, however small.", "Accuracy", "share of comparisons", True, "share", where=NO_REFERENCE),
    C("logps/chosen", "log-probability of the chosen answers", "nats per answer", "answer", UP, "How likely the model "
      "finds the preferred answers, whatever it found before."),
    C("logps/rejected", "log-probability of the rejected answers", "nats per answer", "answer", None, "How likely it "
      "finds the other answers."),
    C("kl", "KL baseline", "nats per answer", "update", None, "KTO's estimate of the KL to the reference, from other "
      "prompts' answers; losses are measured from it.", where=("kto",)),
))
SAMPLES = (
    C("samples/score", "judge's score", "", "answer", UP, "What the judge thinks of answers sampled along the way, "
      "always to the same prompts with the same seeds.", "Judge's score", "score", interval="seen"),
    C("samples/reward", "reward of sampled answers", "", "answer", UP, "What the policy is paid for. It should rise; "
      "whether the answers got better is for the judge to say.", "Reward", "score", rollouts="reward"),
    C("samples/reward_disagreement", "disagreement of the reward models", "", "answer", DOWN, "How far the reward "
      "models are apart about the same answer. A rise means that it is unlike anything they were trained on.",
      "Disagreement", "score", rollouts="reward_disagreement"),
    C("samples/kl", "KL to the start", "nats per answer", "answer", DOWN, "How far the model's own answers have moved "
      "from what it would have written before. Some is the point; a lot costs what it knew.", "KL to the start",
      rollouts="objective/kl"),
    C("samples/kl", "KL to the start", "nats per answer", "answer", DOWN, "The price of the reward: how far the "
      "answers have moved from what the model would have written before. The estimate from rollouts (k3) reads lower "
      "where whole answers were given up.", "KL to the start", rollouts="objective/kl", where=("policy",)),
    C("samples/eos_rate", "answers that end by themselves", "", "answer", UP, "Answers that come to an end by "
      "themselves, rather than run into the limit.", "Answers that end", "share of answers", True, "share",
      "completions/eos_rate"),
    C("samples/length", "length of the answers", "tokens", "answer", None, "A steady length is healthy. Growing "
      "without end, or shrinking to nothing, is not.", "Length", rollouts="completions/mean_length"),
    C("samples/repetition", "text that repeats itself", "", "answer", DOWN, "Runs of three tokens that the answer "
      "contained before. A rise means that it is stuck in a loop.", "Repetition", "share of three-token runs", True),
    C("samples/ref_logp", "naturalness of the answers to the model from before", "nats per token", "answer", UP, "How "
      "likely the answers are to the model from before. A steep fall means text that nobody ever wrote.",
      "Naturalness"),
)
ROLLOUTS = (
    C("reward", "reward of the rollouts", "", "answer", UP, "What the answers of the update's own rollouts earned, as "
      "the reward model gives it.", axis="score"),
    C("reward_std", "spread of the reward within an update", "", "update", None, "Where it is 0, all answers earn the "
      "same and nothing is learnt.", axis="score"),
    C("frac_reward_zero_std", "prompts whose answers all earn the same", "", "update", DOWN, "Of several answers to a "
      "prompt: where all earn the same, none of them is made likelier.", axis="share of prompts"),
    *(C(f"reward_{name}", f"reward of the rollouts, {words}", "", "update", None, meaning, axis="score") for
      name, words, meaning in (
        ("p05", "5% quantile", "One answer in twenty of the update's own earns less."),
        ("p50", "median", "Half of the update's own answers earn less."),
        ("p95", "95% quantile", "One answer in twenty of the update's own earns more."))),
    C("reward_outliers", "answers whose reward is out of all proportion", "", "update", DOWN, "Share of an update's "
      "answers whose reward is ten times the usual distance from the median.", axis="share of answers"),
    C("reward_disagreement", "disagreement of the reward models, rollouts", "", "answer", DOWN, "Standard deviation "
      "over the reward models of an ensemble.", axis="score"),
    C("rewards/NAME/mean", "reward by NAME", "", "answer", UP, "Of several rewards, or with reward_weights: what this "
      "one gave, before weights; answers that it leaves to the others (None) are not counted.", axis="score"),
    C("rewards/NAME/std", "spread of the reward by NAME", "", "update", None, "Its standard deviation within an "
      "update.", axis="score"),
    C("objective/kl", "KL to the start, rollouts", "nats per answer", "answer", DOWN, "KL of the policy to the "
      "reference, by the estimator k3, which is never negative."),
    C("objective/kl_k1", "KL to the start, rollouts, by k1", "nats per answer", "answer", DOWN, "The same by the plain "
      "log-ratio, k1: noisier; max_kl and target_kl watch this one."),
    C("kl", "KL to the start, rollouts", "nats per token", "token", DOWN, "objective/kl per token."),
    C("entropy", "entropy", "nats per token", "token", None, "How open each next token is. It falls as the policy "
      "decides; near zero it writes the same answer every time.", "Entropy"),
    C("sampler_drift", "log-probabilities of the sampler, off by", "nats per token", "token", DOWN, "Train-inference "
      "mismatch: how far log-probabilities while sampling are from those of the training forward."),
    C("staleness", "updates that the sampler's weights were behind", "updates", "answer", DOWN, "With rollout servers: "
      "0, or 1 with max_staleness=1, where sampler_drift also holds how far an update takes the policy."),
    C("completions/mean_length", "length of the rollouts", "tokens", "answer", None, "Tokens of an answer."),
    C("completions/eos_rate", "rollouts that end by themselves", "", "answer", UP, "Answers that end within "
      "max_new_tokens.", axis="share of answers", share=True, interval="share"),
    C("length_reward_correlation", "correlation of length and reward", "", "update", None, "Within an update, whether "
      "longer answers earn more. Near 1 with growing answers, the reward is being won by length.", "Is length paid?",
      "correlation"),
    C("advantages/mean", "advantage", "", "token", None, "How much better than expected a token's answer was.",
      axis="score"),
    C("advantages/std", "spread of the advantages", "", "update", None, "1 where they are whitened.", axis="score"),
    C("returns/mean", "return", "", "token", None, "What is still earned from a token on, KL penalty included; the "
      "critic's target.", axis="score"),
    C("returns/std", "spread of the returns", "", "update", None, "What there is for a critic to explain.",
      axis="score"),
    C("episodes", "answers sampled", "", "update", None, "Answers sampled so far, over all updates."),
)
UPDATES = (
    C("loss/policy_avg", "policy's loss", "", "token", None, "The clipped loss. Its value says little: advantages are "
      "measured anew in each update.", axis="score"),
    C("loss/value_avg", "critic's loss", "", "token", DOWN, "How far the critic's forecasts are from what answers "
      "earned. It should fall, though it follows the reward when that moves.", "Critic's loss", "score squared"),
    C("val/explained_variance", "share of the returns' variance that the critic explains", "", "update", UP, "How much "
      "of the difference between returns it foresees: 1 is all of it, 0 or less is nothing.", "Critic explains",
      "share of variance"),
    C("val/ratio", "probability ratio, new to old", "", "token", None, "Of the policy to the one that wrote the "
      "answers; 1 on the first pass."),
    C("policy/clipfrac_avg", "tokens whose update was clipped", "", "token", None, "Tokens whose update was cut off "
      "because the policy had already moved. A tenth is usual; a third says that updates go too far.",
      "Clipped tokens", "share of tokens", True),
    C("tis/clipfrac", "tokens whose importance weight was truncated", "", "token", None, "With rollout servers: tokens "
      "that training thinks more than twice as likely as the server did when it drew them. Near 0 where the server has "
      "the right weights.", "Truncated weights", "share of tokens", True),
    C("policy/approxkl_avg", "KL of an update (old to new policy)", "nats per token", "token", None, "How far one "
      "update takes the policy from the one that wrote its answers. Above 0.1, what they say is out of date.",
      "Size of an update"),
    C("policy/early_stops", "updates cut short", "", "update", None, "Whether max_approx_kl ended the passes over a "
      "rollout."),
    C("kl_coef", "KL coefficient", "", "update", None, "The price of a nat of KL. An adaptive one rises while the KL "
      "is above its target.", "KL coefficient", "score per nat"),
    *(C(f"time/{name}", f"time of {name}", "seconds", "update", DOWN, meaning) for name, meaning in (
        ("sampling", "Time to sample a rollout."), ("scoring", "Time to score it by reward models or functions."),
        ("measuring", "Time for log-probabilities, entropy and values of its tokens, before any update."),
        ("learning", "Time of the updates on it."))),
)
# fmt: on
SECTIONS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "The run": ("In every row of every method.", RUN),
    "Before training": (
        "In the row of step 0, of a few examples or answers: the model and its data before any update.",
        START,
    ),
    "Given examples": ("Of sft, dpo and reward: each training row's own examples; `eval_`: the held-out ones.", GIVEN),
    "Sampled answers": ("Of every method that writes: answers to the same held-out prompts, same seeds.", SAMPLES),
    "Rollouts": ("Of ppo, rloo, grpo and reinforce: the answers that an update learns from.", ROLLOUTS),
    "Updates": ("Of the same methods: what their updates did.", UPDATES),
}
COLUMNS = tuple(column for _, columns in SECTIONS.values() for column in columns)
OF_ONE = re.compile(r"rewards/(.+)/(mean|std)")
"""A column of one reward among several, by its name."""
_ROWS = {(column.name, where): column for column in COLUMNS for where in column.where or ("",)}


def column(key: str, *where: str) -> Column:
    """The row of a column, with or without ``eval_``: that of the first of these loss types or families that has one of
    its own, else the general one. A name that the table does not know (of another version's run) has a plain row."""
    name = key.removeprefix(HELD_OUT)
    if (of := OF_ONE.fullmatch(name)) is not None:
        row = _ROWS[f"rewards/NAME/{of[2]}", ""]
        return replace(row, name=name, words=row.words.replace("NAME", of[1]))
    for place in (*filter(None, where), ""):
        if (found := _ROWS.get((name, place))) is not None:
            return found
    return next((c for c in COLUMNS if c.name == name), Column(name, name, "", "", None, ""))


def measured_again(key: str) -> bool:
    """Whether every row of a column measures the same examples or prompts."""
    return key.startswith(HELD_OUT) or column(key).sampled


def without_bounds(key: str) -> str:
    """The column that a bound or a count belongs to: ``loss`` for ``loss_low``; any other as it is."""
    return next((key.removesuffix(end) for end in BOUNDS if key.endswith(end)), key)


def metrics_page() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Every column of a run's `metrics.jsonl`. Written by `python -m prefiere.metrics` from the code.",
        "",
        "- `eval_` before a name that has it: the same, measured on held-out examples, the same ones every time.",
        "- `_low` and `_high` after a name: the 95% interval of its mean (clustered by prompt on held-out examples and",
        "  sampled answers); `_n`: how many values it is the mean of. A column with † has none of the three.",
        "- % : a share from 0 to 1, which reports show in per cent. Better: the direction that `metric_for_best_model`",
        "  takes; where there is none, `greater_is_better` must say. Names are those of TRL where it has the metric.",
        "- of: where one name means several things, the `loss_type` or the kind of method (imitation: sft; reward: a",
        "  reward model; policy: ppo and its like) that the line is about. Without: all others.",
    ]
    for title, (lead, columns) in SECTIONS.items():
        lines += ["", f"## {title}", "", lead, ""]
        lines += ["| column | of | unit | one value per | better | meaning |", "| --- | --- | --- | --- | --- | --- |"]
        for c in columns:
            name = (f"[`{HELD_OUT}`]" if c.held_out else "") + f"`{c.name}`" + ("†" if c.interval == "none" else "")
            unit = "%" if c.share else c.measured_in
            lines.append(f"| {name} | {', '.join(c.where)} | {unit} | {c.per} | {c.better or ''} | {c.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
