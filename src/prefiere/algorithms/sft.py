"""Supervised fine-tuning: the mean over all scored tokens of -log p, as an objective of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from prefiere.algorithms.offline import Offline
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.objectives.masked import segment_sum
from prefiere.plan.examples import ExampleData
from prefiere.tokens.pack import PackedBatch
from prefiere.train.objective import Metric, Objective, Result, Term
from prefiere.train.setup import Session


@dataclass
class Imitate(Objective):
    """Cross-entropy on the scored tokens: L = - sum_n w_n log p(t_n) / sum_n w_n, over the whole update."""

    def __call__(self, out: TargetLogprobs, batch: PackedBatch) -> Result:
        """Loss and token accuracy of a micro-batch of single answers."""
        weight_N = batch.weight_G.index_select(0, batch.owner_N)
        tokens_G = batch.scored_C.to(out.logp_N.dtype)
        nll_G = -segment_sum(out.logp_N.detach(), batch.owner_N, batch.completions) / tokens_G.clamp(min=1)
        right_G = segment_sum(out.correct_N, batch.owner_N, batch.completions) / tokens_G.clamp(min=1)
        metrics = {
            "loss": Metric(nll_G, tokens_G * batch.weight_G),
            "mean_token_accuracy": Metric(right_G, tokens_G * batch.weight_G),
        }
        return Result([Term(-out.logp_N * weight_N, "tokens")], metrics)


def build(session: Session) -> Offline:
    """The algorithm of a run that imitates answers."""
    assert isinstance(session.data, ExampleData)
    return Offline(session, session.data, Imitate(), Imitate(), guarded=False)
