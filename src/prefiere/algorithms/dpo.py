"""Preference optimisation: the DPO family's losses as objectives of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prefiere.algorithms.kto import Unpaired, mismatch
from prefiere.algorithms.offline import Offline, reference_logps, rows_of
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.objectives.masked import segment_sum
from prefiere.objectives.preference import LOSSES, Loss, PairBatch, accuracies, rewards, sft_loss
from prefiere.plan.examples import ExampleData
from prefiere.settings import DPO
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.schedule import visited
from prefiere.train.objective import Metric, Objective, Result, Term
from prefiere.train.setup import Session


def options_of(settings: DPO) -> dict[str, Any]:
    """The keyword arguments that the loss of these settings takes."""
    return {name: getattr(settings, name) for name in LOSSES[settings.loss_type].options}


@dataclass
class Pairs(Objective):
    """A pairwise loss over (chosen, rejected) groups.

    reference: float32 [n, 2]; None where the loss has none.
    """

    loss: Loss
    options: dict[str, Any]
    beta: float
    reference: np.ndarray | None = field()  # to be given, though other objectives have none
    rpo_alpha: float = 0.0
    noise: float = 0.0
    logged: tuple[str, ...] = ("rewards/margins", "logps/chosen", "logps/rejected")

    def singles(self, index: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The margin, and by how many nats each answer became likelier than under the reference (losses without one:
        its log-prob)."""
        before = np.zeros((len(index), 2), np.float32) if self.reference is None else self.reference[index]
        change = {n: values[f"logps/{n}"] - before[:, i] for i, n in enumerate(("chosen", "rejected"))}
        return {"margin": values["rewards/margins"], **change}

    def __call__(self, out: TargetLogprobs, batch: PackedBatch) -> Result:
        """Loss and rewards of a micro-batch of pairs."""
        policy_C = segment_sum(out.logp_N, batch.owner_N, batch.completions)
        reference_C = torch.zeros_like(policy_C)
        if self.reference is not None:
            reference_C = rows_of(self.reference, batch.index_G, policy_C)
        pairs = PairBatch.from_completions(policy_C, reference_C, batch.scored_C, batch.label_G)
        losses_G = self.loss.function(pairs, **self.options)
        metrics = {}
        if self.rpo_alpha:
            nll_G = sft_loss(pairs)
            losses_G = losses_G + self.rpo_alpha * nll_G
            metrics["nll_loss"] = Metric(nll_G)
        chosen_G, rejected_G = rewards(pairs, self.loss, beta=self.beta)
        margin_G = chosen_G - rejected_G
        metrics |= {
            "loss": Metric(losses_G, batch.weight_G),
            "rewards/chosen": Metric(chosen_G),
            "rewards/rejected": Metric(rejected_G),
            "rewards/margins": Metric(margin_G),
            "rewards/accuracies": Metric(accuracies(margin_G, noise=self.noise, label_G=batch.label_G)),
            "logps/chosen": Metric(pairs.policy_chosen_G),
            "logps/rejected": Metric(pairs.policy_rejected_G),
        }
        return Result([Term(losses_G * batch.weight_G, "weight")], metrics)


def build(session: Session) -> Offline:
    """The algorithm of a run that optimises preferences: KTO over single answers, or a loss over pairs."""
    settings, data = session.settings, session.data
    assert isinstance(settings, DPO)
    assert isinstance(data, ExampleData)
    loss = LOSSES[settings.loss_type]
    seen = visited(len(data.train), settings.batch_size, seed=settings.seed, steps=session.total_steps)

    def logps(store: GroupStore, rows: np.ndarray) -> np.ndarray:
        out = np.full((len(store), store.k), np.nan, np.float32)  # of what no update sees, nothing is known
        out[rows] = reference_logps(session, store if len(rows) == len(store) else store.select(rows))
        return out

    def objective(store: GroupStore, rows: np.ndarray) -> Objective:
        if loss.per == "completion":
            other = mismatch(store, settings.seed, session.plan.max_length)
            options = {name: x for name, x in options_of(settings).items() if name != "beta"}
            return Unpaired(other, logps(store, rows), logps(other, rows), settings.beta, options)
        before = logps(store, rows) if loss.needs_reference else None
        return Pairs(loss, options_of(settings), settings.beta, before, settings.rpo_alpha)

    held = objective(data.eval, np.arange(len(data.eval))) if data.eval is not None else None
    reference = session.reference if settings.sample_steps != 0 else None
    return Offline(session, data, objective(data.train, seen), held, reference)
