"""KTO: single answers called good or bad, against a KL that mismatched answers estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefiere.algorithms.offline import rows_of
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.objectives.masked import segment_sum
from prefiere.objectives.preference import kto_baseline, kto_loss
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.train.objective import Metric, Objective, Over, Result, Term


@dataclass
class Unpaired(Objective):
    """KTO over single answers, each with a mismatched one (another prompt's) that estimates the KL.

    mismatched: a store of the same prompts with other prompts' answers. reference*: float32 [n, 1].
    """

    mismatched: GroupStore
    reference: np.ndarray = field()  # to be given, though other objectives have none
    reference_mismatched: np.ndarray
    beta: float
    options: dict[str, Any]
    baseline: float = 0.0
    logged: tuple[str, ...] = ("rewards/chosen",)

    def singles(self, index: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The reward of each answer, and 1 where it is called desirable, else 0."""
        return {"reward": values["rewards/chosen"], "label": self.mismatched.labels[index]}

    def prepare(self, members: np.ndarray, over: Over) -> None:
        """The KL baseline over the whole update: mean log-ratio of its mismatched answers, over all processes."""

        def logratio(out: TargetLogprobs, batch: PackedBatch) -> dict[str, Tensor]:
            logp_C = segment_sum(out.logp_N, batch.owner_N, batch.completions)
            return {"sum": (logp_C - rows_of(self.reference_mismatched, batch.index_G, logp_C)).double().sum()}

        total = sum(float(part.arrays["sum"]) for part in over(self.mismatched, members, logratio))
        self.baseline = float(kto_baseline(torch.tensor(total, dtype=torch.float64), len(members)).float())

    def prepare_unmoved(self) -> None:
        """Without a difference, the KL is 0."""
        self.baseline = 0.0

    def __call__(self, out: TargetLogprobs, batch: PackedBatch) -> Result:
        """Loss of a micro-batch; rewards are shown for desirable ("chosen") and undesirable ("rejected") answers."""
        policy_C = segment_sum(out.logp_N, batch.owner_N, batch.completions)
        logratio_C = policy_C - rows_of(self.reference, batch.index_G, policy_C)
        losses_C = kto_loss(logratio_C, batch.label_G, self.baseline, beta=self.beta, **self.options)
        reward_C = self.beta * logratio_C.detach()
        good, bad = batch.label_G, 1 - batch.label_G
        metrics = {
            "loss": Metric(losses_C, batch.weight_G),
            "rewards/chosen": Metric(reward_C, good),
            "rewards/rejected": Metric(reward_C, bad),
            "logps/chosen": Metric(policy_C, good),
            "logps/rejected": Metric(policy_C, bad),
            "kl": Metric(torch.full_like(reward_C, self.baseline)),
        }
        return Result([Term(losses_C * batch.weight_G, "weight")], metrics)


def mismatch(store: GroupStore, seed: int, max_length: int) -> GroupStore:
    """The same prompts, each with the answer of another example under a seeded cycle through all of them.

    A lent answer is cut from the right where it would pass ``max_length``. Raises ValueError below two examples.
    """
    if len(store) < 2:
        raise ValueError("KTO estimates the KL from other prompts' answers: it needs at least two examples")
    cycle = np.random.default_rng([seed, 1]).permutation(len(store))
    other = np.empty(len(store), np.int64)
    other[cycle] = np.roll(cycle, -1)

    def swapped(i: int) -> PromptGroup:
        own, lent = store[i], store[int(other[i])]
        room = max(1, max_length - len(own.prompt))
        answers, masks = (tuple(x[:room] for x in parts) for parts in (lent.completions, lent.masks))
        return PromptGroup(own.prompt, answers, masks, own.weight, own.label, source=own.source)

    return GroupStore.build((swapped(i) for i in range(len(store))), k=1)
