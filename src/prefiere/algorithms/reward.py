"""A reward model: scores of two answers whose difference explains who was preferred, as an objective of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from prefiere.algorithms.offline import Offline
from prefiere.asked.language import in_words
from prefiere.evaluate.calibration import calibration
from prefiere.evaluate.pairs import paired
from prefiere.models.score_head import normalise
from prefiere.models.trunk import POLICY, Trunk
from prefiere.objectives.bradley_terry import bradley_terry, centring
from prefiere.objectives.preference import accuracies
from prefiere.plan.examples import ExampleData
from prefiere.plan.rhythm import NORMALISED
from prefiere.settings import Reward
from prefiere.tokens.pack import PackedBatch
from prefiere.train.engine import Measured
from prefiere.train.objective import Metric, Objective, Result, Term
from prefiere.train.setup import Session


@dataclass
class Scores(Objective):
    """Bradley-Terry over (chosen, rejected) groups, with ties, soft labels, margins and weights as the pairs say.

    centre: weight of the squared sum of both scores, which keeps them around zero. smoothing: share of labels taken to
    be flipped.
    """

    centre: float = 0.0
    smoothing: float = 0.0
    logged: tuple[str, ...] = ("rewards/margins", "rewards/chosen", "rewards/rejected")

    def singles(self, index: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The margin, and the score of each answer."""
        return {n.removeprefix("rewards/").replace("margins", "margin"): values[n] for n in self.logged}

    def forward(self, trunk: Trunk, batch: PackedBatch) -> Tensor:
        """Scores [C] in fp32."""
        return trunk.scores(batch, POLICY)

    def __call__(self, out: Tensor, batch: PackedBatch) -> Result:
        """Loss and scores of a micro-batch of pairs. ``rewards/square`` is what ``rewards/std`` is made of."""
        chosen_G, rejected_G = out.view(-1, 2).unbind(1)
        label_G = batch.label_G * (1 - self.smoothing) + (1 - batch.label_G) * self.smoothing
        losses_G = bradley_terry(chosen_G, rejected_G, label_G=label_G, margin_G=batch.margin_G)
        if self.centre:
            losses_G = losses_G + self.centre * centring(chosen_G, rejected_G)
        margin_G = chosen_G - rejected_G
        metrics = {
            "loss": Metric(losses_G, batch.weight_G),
            "rewards/chosen": Metric(chosen_G),
            "rewards/rejected": Metric(rejected_G),
            "rewards/margins": Metric(margin_G),
            "rewards/accuracies": Metric(accuracies(margin_G, label_G=batch.label_G)),
            "rewards/mean": Metric((chosen_G + rejected_G) / 2),
            "rewards/square": Metric((chosen_G.square() + rejected_G.square()) / 2),
        }
        return Result([Term(losses_G * batch.weight_G, "weight")], metrics)


def complete(session: Session, data: ExampleData, objective: Scores, held: Measured | None) -> None:
    """Make demonstrations (chosen answers that it was trained on, `NORMALISED` at most) score 0 on average with unit
    scale, and write what the held-out pairs say of the model before that."""
    engine, main = session.engine, session.world.main
    some = np.random.default_rng([session.settings.seed, 2]).permutation(len(data.train))[:NORMALISED]
    with session.display.stage(in_words("progress.calibrating"), len(some)) as advance:
        seen = engine.measure(data.train, objective, np.sort(some), advance).values
    labels = data.train.labels[np.sort(some)]
    made = normalise(
        session.trunk,
        np.where(labels >= 0.5, seen["rewards/chosen"], seen["rewards/rejected"]),
        session.manner,
    )
    if main and data.eval is not None and held is not None:
        scores = np.stack([held.values["rewards/chosen"], held.values["rewards/rejected"]], 1)
        session.run.calibration = calibration(paired(data.eval, scores, {})) | {
            "normalisation": {"mean": made.mean, "std": made.std}
        }


def build(session: Session) -> Offline:
    """The algorithm of a run that fits a reward model."""
    settings, data = session.settings, session.data
    assert isinstance(settings, Reward)
    assert isinstance(data, ExampleData)
    goal = Scores(settings.center_rewards_coefficient, settings.label_smoothing)

    return Offline(session, data, goal, goal, guarded=False, finishing=partial(complete, session, data, goal))
