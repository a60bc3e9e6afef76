"""Every method that can be asked for, a row each. Whatever loops over methods loops over this table: commands, Python
functions, recipes, runs, estimates, pages, findings and their documentation.

A new method is a row here and the file that it names (``home``), whose ``build(session)`` makes the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prefiere.asked.kinds import NEEDS_REFERENCE
from prefiere.settings import DPO, GRPO, PPO, RLOO, SFT, Reinforce, Reward, Settings

Family = Literal["imitation", "preference", "reward", "policy"]
"""What a run learns from, and so what its curves mean: examples, pairs, pairs as scores, or the scores of its own
answers."""
Reads = Literal["demonstrations", "pairs", "judgements", "prompts"]
"""The kind of record that a run's data is read as."""


_FIRST = ("model", "data", "out", "learning_rate", "num_train_epochs", "batch_size")


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    name: the command. settings: what it takes. home: the module that builds it. title: its name on a page. help: what
    it does, in a line. reads, reference: what its data is read as, and whether it needs the policy as it was before
    the run, for given settings. rate: the automatic learning rate of full fine-tuning at 7B parameters, and the power
    of the size by which it grows towards small models. critic: whether it learns one. matters: the settings to look at
    first, a dozen.
    """

    name: str
    settings: type[Settings]
    family: Family
    home: str
    title: str
    help: str
    reads: Callable[[Any], Reads]
    reference: Callable[[Any], bool]
    rate: tuple[float, float] = (1e-6, 0.7)
    critic: bool = False
    matters: tuple[str, ...] = _FIRST


FIGURES: dict[Family, tuple[str, str, str]] = {
    "imitation": ("loss", "mean_token_accuracy", "samples/eos_rate"),
    "preference": ("rewards/accuracies", "rewards/margins", "samples/kl"),
    "reward": ("rewards/accuracies", "rewards/margins", "loss"),
    "policy": ("samples/reward", "samples/kl", "samples/eos_rate"),
}
"""The three metrics that say most of a run, by what it learns from: named as in metrics.py."""


def _on_policy(name: str, settings: type[Settings], title: str, help: str, *own: str, critic: bool = False) -> Method:
    """A method that samples answers to prompts and learns from their rewards. own: settings of its own that matter."""
    home, first = f"prefiere.algorithms.{name}", (*_FIRST, "reward", "max_new_tokens", "judge", "lora", *own)
    return Method(
        name, settings, "policy", home, title, help, lambda s: "prompts", lambda s: True, critic=critic, matters=first
    )


_ROWS = (
    Method(
        "sft", SFT, "imitation", "prefiere.algorithms.sft", "Supervised fine-tuning (SFT)",
        "Supervised fine-tuning: imitate the answers.",
        reads=lambda s: "demonstrations", reference=lambda s: False, rate=(2e-5, 0.25),
        matters=(*_FIRST, "max_length", "lora", "quantize", "completion_only_loss", "eval_size", "seed"),
    ),
    Method(
        "dpo", DPO, "preference", "prefiere.algorithms.dpo", "Preference optimisation (DPO)",
        "Optimise preferences directly (DPO and its family).",
        reads=lambda s: "judgements" if s.loss_type == "kto" else "pairs",
        reference=lambda s: s.loss_type in NEEDS_REFERENCE,
        matters=(*_FIRST, "loss_type", "beta", "rpo_alpha", "max_length", "lora", "quantize"),
    ),
    Method(
        "reward", Reward, "reward", "prefiere.algorithms.reward", "Reward model",
        "Train a reward model: a score that explains who was preferred.",
        reads=lambda s: "pairs", reference=lambda s: False, rate=(1e-5, 0.5),
        matters=(*_FIRST, "max_length", "lora", "quantize", "center_rewards_coefficient", "pairs_per_prompt",
                 "eval_size"),
    ),
    _on_policy("ppo", PPO, "PPO", "Proximal policy optimisation: sample answers, score them, reinforce; with a critic.",
               "kl_coef", "max_kl", critic=True),
    _on_policy("rloo", RLOO, "RLOO", "REINFORCE, each answer against the others to its prompt (leave one out).",
               "kl_coef", "num_generations"),
    _on_policy("grpo", GRPO, "GRPO",
               "Group-relative policy optimisation: answers to one prompt against their mean and deviation.",
               "kl_loss_coef", "num_generations"),
    _on_policy("reinforce", Reinforce, "REINFORCE",
               "REINFORCE with the mean of all other answers as its baseline, or with none.",
               "kl_coef", "baseline"),
)  # fmt: skip
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
"""By name, in the order in which they are listed."""
