"""Sampled answers along a run: curves can look perfect while the model is destroyed, so its answers are read as well.

Most signals here need no judge: whether an answer ends, how long it is, whether it repeats itself, and how likely it is
under the reference. The guard compares them with those of the same prompts and seed before the run.

Suffix: _A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from prefiere.data.quality.marks import unended
from prefiere.data.schema import Text, question
from prefiere.evaluate.functions import Answered
from prefiere.evaluate.judges import Judge, spread
from prefiere.evaluate.rows import flat
from prefiere.models.measure import Budget
from prefiere.models.reference import Reference, sequence_logps
from prefiere.models.trunk import Trunk
from prefiere.sample.sampling import Rollouts, Sample, Sampling, by_all
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.schedule import cut_for, longest_first
from prefiere.world import World

RETESTED = 64
"""Answers that a reward scores twice, to see whether it agrees with itself."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Sampled answers of one moment: rows for samples.jsonl, and per-answer signals [A] with each answer's prompt.

    logps: [A], log-probs of whole answers, where they were measured as examples are.
    """

    rows: list[dict[str, Any]]
    signals: dict[str, np.ndarray]
    prompts: np.ndarray
    samples: list[Sample] = field(default_factory=list)
    logps: np.ndarray | None = None

    def columns(self) -> dict[str, float]:
        """The signals as columns of a log row, with intervals clustered by prompt."""
        return flat(self.signals, self.prompts, prefix="samples/")


@dataclass
class AnswerEvaluator:
    """Has a model answer the same prompts with the same seed, whenever it is called, and measures the answers.

    prompts: int32 ids each. asked: the same prompts as they were read. budget: tokens of a micro-batch of log-probs.
    autocast: their precision (None: the weights'). judge: scores answers. reward: what a policy is trained on, where it
    is trained on one. columns: the data's columns of each prompt, and total, the updates of the run: for functions that
    read them. world: the processes that answer together, each its share; all know all answers.
    """

    prompts: Sequence[np.ndarray]
    asked: Sequence[Text]
    decode: Callable[[np.ndarray], str]
    rollouts: Rollouts
    sampling: Sampling
    budget: Budget | int = 4096
    autocast: torch.dtype | None = None
    judge: Judge | None = None
    reward: Judge | None = None
    columns: Sequence[Mapping[str, Any]] = ()
    total: int = 0
    world: World | None = None

    def __call__(
        self,
        trunk: Trunk | None,
        reference: Reference | None,
        *,
        version: int = 0,
        progress: Callable[[int], None] | None = None,
        unmoved: bool = False,
    ) -> Answers:
        """Sample, measure and judge. version: of the trunk's weights (see `Rollouts`). trunk: None for a finished model
        behind a server. unmoved: the trunk is the reference still."""
        if trunk is not None:
            self.rollouts.publish(trunk, version)
        samples = self._sampled(version, progress)
        signals = {
            "eos_rate": np.asarray([float(s.ended) for s in samples]),
            "length": np.asarray([float(len(s.tokens)) for s in samples]),
            "repetition": np.asarray([repetition(s.tokens) for s in samples]),
        }
        measured_A = ref_logp_A = None
        if reference is not None and trunk is not None:
            measured_A = ref_logp_A = self._logp(trunk, samples)
            if not unmoved:  # by the same path: their difference is exact where nothing has changed
                with reference.live() as frozen:
                    ref_logp_A = self._logp(frozen, samples)
            signals["ref_logp"] = ref_logp_A / signals["length"]
            if self.sampling.unchanged:
                signals["kl"] = (measured_A - ref_logp_A).astype(np.float64)
        logp_A = np.asarray([s.logp.sum() for s in samples]) if measured_A is None else measured_A
        answered = self._answered(samples, version)
        asked, completions = answered.prompts, answered.completions
        signals |= self._judged(answered, samples)
        rows = [
            {
                "prompt": question(asked[i]),
                "completion": completions[i],
                "sample": s.sample,
                "ended": s.ended,
                "unended": unended(completions[i]),
                "tokens": len(s.tokens),
                "logp": float(logp_A[i]),
                "ref_logp": None if ref_logp_A is None else float(ref_logp_A[i]),
                "repetition": float(signals["repetition"][i]),
                "score": float(signals["score"][i]) if "score" in signals else None,
                "reward": float(signals["reward"][i]) if "reward" in signals else None,
            }
            for i, s in enumerate(samples)
        ]
        return Answers(rows, signals, np.asarray([s.prompt for s in samples]), samples, measured_A)

    def _sampled(self, version: int, progress: Callable[[int], None] | None) -> list[Sample]:
        """The answers, by prompt, then by sample."""
        if self.world is None:
            return self.rollouts.sample(self.prompts, self.sampling, version=version, progress=progress)
        mine = range(self.world.rank, len(self.prompts), self.world.size)
        asked, numbers = [self.prompts[i] for i in mine], list(mine)
        draw = partial(self.rollouts.sample, asked, self.sampling, version=version, numbers=numbers, progress=progress)
        own = by_all(self.world, draw)
        answers = self.world.gather([replace(s, prompt=mine[s.prompt]) for s in own])
        return sorted(answers, key=lambda s: (s.prompt, s.sample))

    def _logp(self, trunk: Trunk, samples: Sequence[Sample]) -> np.ndarray:
        """Log-probs [A] of whole answers, in nats, under the trunk's active role."""
        groups, world = [self.group(s) for s in samples], self.world
        cut = cut_for(world.team.number, world.team.count) if world else longest_first
        share = sequence_logps(trunk, groups, budget=self.budget, autocast=self.autocast, cut=cut)[:, 0]
        return world.sum_of_teams(share) if world else share

    def _judged(self, asked: Answered, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """The scores [A] of judge and reward, where there are any."""
        signals: dict[str, np.ndarray] = {}
        if self.judge is not None:
            signals["score"] = self.judge.combined(self._scores(self.judge, asked, samples))
        if self.reward is not None:
            each_AM = self._scores(self.reward, asked, samples)
            signals["reward"] = self.reward.combined(each_AM)
            if each_AM.shape[1] > 1:
                signals["reward_disagreement"] = spread(each_AM)
        return signals

    def _scores(self, judge: Judge, asked: Answered, samples: Sequence[Sample]) -> np.ndarray:
        """float64 [A, M]: what each of M scorers says of each answer. Each process asks about the answers to its share
        of the prompts, those that it has drawn."""
        if self.world is None or self.world.size == 1:
            return judge.scores(asked)
        mine = [i for i, s in enumerate(samples) if s.prompt % self.world.size == self.world.rank]
        each = np.zeros((0, len(judge.scorers)))
        with judge.whole():  # processes score unequally many answers
            if mine:  # there may be more processes than prompts
                each = judge.scores(asked.some(mine))
        self.world.barrier()  # one may wait longer for its scores than another
        scores_AM = np.zeros((len(samples), len(judge.scorers)))
        for at, one in self.world.gather(list(zip(mine, each, strict=True))):
            scores_AM[at] = one
        return scores_AM

    def retest(self, answers: Answers) -> dict[str, float]:
        """``start/reward_retest``: the correlation of the reward with itself, where up to `RETESTED` answers are scored
        a second time, in reverse: what depends on the answers beside it, or is given to the wrong ones, differs.
        Nothing without a reward, or where all answers earn the same."""
        first = answers.signals.get("reward")
        if self.reward is None or first is None:
            return {}
        some = answers.samples[:RETESTED][::-1]
        second = self.reward.combined(self._scores(self.reward, self._answered(some, 0), some))[::-1]
        if len(some) < 3 or not (np.ptp(first[: len(some)]) > 0 and np.ptp(second) > 0):
            return {}
        return {"start/reward_retest": float(np.corrcoef(first[: len(some)], second)[0, 1])}

    def _answered(self, samples: Sequence[Sample], version: int) -> Answered:
        """What scorers are told of samples."""
        asked, completions = [self.asked[s.prompt] for s in samples], [self.decode(s.tokens) for s in samples]
        columns = [self.columns[s.prompt] for s in samples] if self.columns else []
        return Answered(asked, completions, [s.tokens for s in samples], columns, version, self.total)

    def group(self, s: Sample) -> PromptGroup:
        """A sample as a prompt with one completion, to compute its log-prob under any model."""
        return PromptGroup(self.prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),))


def repetition(tokens: np.ndarray) -> float:
    """Share of an answer's trigrams that stood in it before: 0 for ordinary prose, towards 1 for a stuck record."""
    if len(tokens) < 4:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, 3)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)
