"""Which curves are shown for which family of methods, and what each means in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prefiere.doctor.case import Case, Family
from prefiere.doctor.words import ROLLOUTS, UNITS, is_share


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: the metric, its title, what it means in plain words, and a value to compare with, with its name.

    ``varies``: shown only where the metric changes. ``scores``: of reward models alone, whose numbers carry the names
    of those of preference optimisation and mean something else.
    """

    key: str
    title: str
    meaning: str
    reference: float | None = None
    reference_name: str = ""
    varies: bool = False
    scores: bool = False
    unit_name: str = ""

    def of(self, case: Case) -> bool:
        """Whether the run belongs on this figure."""
        return self.scores == (case.family == "reward")

    @property
    def measured(self) -> str:
        """What is measured on the same examples again and again."""
        return self.key if self.key.startswith("samples/") else f"eval_{self.key}"

    @property
    def training(self) -> str | None:
        """Its twin from the examples, or the rollouts, that training itself sees."""
        return ROLLOUTS.get(self.key) if self.key.startswith("samples/") else self.key

    @property
    def unit(self) -> str:
        if self.unit_name or not is_share(self.key):
            return self.unit_name or UNITS.get(self.key, "β × nats" if self.key.startswith("rewards/") else "score")
        return {
            "samples/repetition": "share of three-token runs",
            "samples/eos_rate": "share of answers",
            "mean_token_accuracy": "share of next tokens",
            "policy/clipfrac_avg": "share of tokens",
        }.get(self.key, "share of comparisons")


_KL = Panel("samples/kl", "KL to the start", "How far the model's own answers have moved from what it would "
            "have written before. Some is the point; a lot costs what it knew.", 0.0, "not moved")  # fmt: skip
_LOSS = Panel("loss", "Loss", "What training makes smaller. It should fall; when only the held-out line rises again, "
              "the model is learning its examples by heart.")  # fmt: skip
PREFERENCE = (
    _LOSS,
    Panel("rewards/margins", "Margin", "How much more the model favours the preferred answer over the other one than "
          "it did before training. This should rise.", 0.0, "as before"),
    Panel("rewards/accuracies", "Accuracy", "How often it favours the preferred answer more than it did before. It "
          "counts any difference, however small.", 0.5, "coin flip"),
    Panel("rewards/chosen", "Reward of chosen answers", "How much more likely than before preferred answers became; "
          "below zero, less. A fall is common: the loss sees only the difference.", 0.0, "as before"),
    Panel("rewards/rejected", "Reward of rejected answers", "The same for the answers people liked less. This usually "
          "falls, and faster than the chosen ones.", 0.0, "as before"),
    _KL,
)  # fmt: skip
IMITATION = (
    _LOSS,
    _KL,
    Panel("mean_token_accuracy", "Next tokens guessed right", "How often the example's next token is the one the "
          "model finds most likely."),
)  # fmt: skip
REWARD = (
    replace(_LOSS, reference=math.log(2), reference_name="coin flip", scores=True),
    Panel("rewards/margins", "Margin", "How much higher the preferred answer scores than the other one. This should "
          "rise; far above the held-out line, the pairs are being learnt by heart.", 0.0, "no difference",
          scores=True, unit_name="score"),
    Panel("rewards/accuracies", "Accuracy", "How often the preferred answer scores higher.", 0.5, "coin flip",
          scores=True),
    Panel("rewards/chosen", "Score of chosen answers", "Only differences between scores are learnt; where they lie "
          "is settled by centring.", scores=True, unit_name="score"),
    Panel("rewards/rejected", "Score of rejected answers", "This should part from the score of chosen answers, "
          "downwards.", scores=True, unit_name="score"),
)  # fmt: skip
POLICY = (
    Panel("samples/reward", "Reward", "What the policy is paid for. It should rise; whether the answers got better is "
          "for the judge to say.", unit_name="score"),
    replace(_KL, meaning="The price of the reward: how far the answers have moved from what the model would have "
            "written before. The estimate from rollouts (k3) reads lower where whole answers were given up."),
    Panel("entropy", "Entropy", "How open each next token is. It falls as the policy decides; near zero it writes the "
          "same answer every time.", 0.0, "no choice left"),
    Panel("policy/clipfrac_avg", "Clipped tokens", "Tokens whose update was cut off because the policy had already "
          "moved. A tenth is usual; a third says that updates go too far."),
    Panel("policy/approxkl_avg", "Size of an update", "How far one update takes the policy from the one that wrote its "
          "answers. Above 0.1, what they say is out of date."),
    Panel("loss/value_avg", "Critic's loss", "How far the critic's forecasts are from what answers earned. It should "
          "fall, though it follows the reward when that moves.", unit_name="score squared"),
    Panel("val/explained_variance", "Critic explains", "How much of the difference between returns it "
          "foresees: 1 is all of it, 0 or less is nothing.", 0.0, "nothing", unit_name="share of variance"),
    Panel("length_reward_correlation", "Is length paid?", "Within an update, whether longer answers earn more. Near 1 "
          "with growing answers, the reward is being won by length.", 0.0, "unrelated", unit_name="correlation"),
    Panel("kl_coef", "KL coefficient", "The price of a nat of KL. An adaptive one rises while the KL is above its "
          "target.", varies=True, unit_name="score per nat"),
)  # fmt: skip
ANSWERS = (
    Panel("samples/score", "Judge's score", "What the judge thinks of answers sampled along the way, always to the "
          "same prompts with the same seeds."),
    Panel("samples/reward_disagreement", "Disagreement", "How far the reward models are apart about the same answer. A "
          "rise means that it is unlike anything they were trained on."),
    Panel("samples/eos_rate", "Answers that end", "Answers that come to an end by themselves, rather than run into "
          "the limit."),
    Panel("samples/length", "Length", "A steady length is healthy. Growing without end, or shrinking to nothing, is "
          "not."),
    Panel("samples/repetition", "Repetition", "Runs of three tokens that the answer contained before. A rise means "
          "that it is stuck in a loop."),
    Panel("samples/ref_logp", "Naturalness", "How likely the answers are to the model from before. A steep fall means "
          "text that nobody ever wrote."),
)  # fmt: skip
_PANELS: dict[Family, tuple[Panel, ...]] = {
    "preference": PREFERENCE,
    "imitation": IMITATION,
    "reward": REWARD,
    "policy": POLICY,
}


def panels_of(cases: Sequence[Case]) -> Iterable[Panel]:
    """The panels of every family among the runs, each metric once, in the words of the first family that has it."""
    by_key: dict[tuple[str, bool], Panel] = {}
    for case in cases:
        for panel in _PANELS[case.family]:
            by_key.setdefault((panel.key, panel.scores), _coin_flip(cases) if panel is _LOSS else panel)
    return by_key.values()


def _coin_flip(cases: Sequence[Case]) -> Panel:
    """The loss panel, with ln 2 as its reference where that is what every run on it began at."""
    pairs = [c for c in cases if c.family in ("preference", "imitation")]
    plain = [
        c.has_reference and c.recipe.get("loss_type", "sigmoid") == "sigmoid" and not c.recipe.get("rpo_alpha")
        for c in pairs
    ]
    return replace(_LOSS, reference=math.log(2), reference_name="coin flip") if pairs and all(plain) else _LOSS
