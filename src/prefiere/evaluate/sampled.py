"""Sampled answers along a run: curves can look perfect while the model is destroyed, so its answers are read as well.

Every signal here needs no judge: does an answer end, how long is it, does it repeat itself, and how likely is it under
the reference. The guard compares them with the same prompts and seeds before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prefiere.data.schema import Text, question
from prefiere.evaluate.judges import Judge
from prefiere.evaluate.rows import flat
from prefiere.models.reference import Reference, sequence_logps
from prefiere.models.trunk import Trunk
from prefiere.sample.local import Sample, generate
from prefiere.tokens.groups import PromptGroup


@dataclass(frozen=True, slots=True)
class Answers:
    """Sampled answers of one moment: rows for samples.jsonl, and per-answer signals [n] with each answer's prompt."""

    rows: list[dict[str, Any]]
    signals: dict[str, np.ndarray]
    prompts: np.ndarray
    samples: list[Sample] = field(default_factory=list)

    def columns(self) -> dict[str, float]:
        """The signals as columns of a log row, with intervals clustered by prompt."""
        return flat(self.signals, self.prompts, prefix="samples/")


@dataclass
class Sampler:
    """Asks the same prompts with the same seed, whenever it is called.

    prompts: int32 ids each. asked: the same as what was read. judge scores answers; reward is what a policy is trained
    on, where it is trained on one.
    """

    prompts: Sequence[np.ndarray]
    asked: Sequence[Text]
    decode: Callable[[np.ndarray], str]
    eos_ids: Sequence[int]
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    budget: int = 4096
    judge: Judge | None = None
    reward: Judge | None = None
    forbidden: Sequence[int] = field(default_factory=tuple)

    def __call__(
        self,
        trunk: Trunk,
        reference: Reference | None,
        *,
        autocast: torch.dtype | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Answers:
        """Sample, measure and judge."""
        with torch.autocast(trunk.device.type, autocast, enabled=autocast is not None):
            samples = generate(
                trunk.lm,
                self.prompts,
                samples=self.samples,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                eos_ids=self.eos_ids,
                seed=self.seed,
                forbidden=self.forbidden,
                progress=progress,
            )
        groups = [self.group(s) for s in samples]
        if reference is None:
            logp = np.asarray([s.logp.sum() for s in samples])
        else:  # both by the same path: their difference is then exact where nothing has changed
            logp = sequence_logps(trunk, groups, budget=self.budget, autocast=autocast)[:, 0]
        tokens = np.asarray([len(s.tokens) for s in samples])
        signals = {
            "eos_rate": np.asarray([float(s.ended) for s in samples]),
            "length": tokens.astype(np.float64),
            "repetition": np.asarray([repetition(s.tokens) for s in samples]),
        }
        ref_logp = None
        if reference is not None:
            with reference.live() as frozen:
                ref_logp = sequence_logps(frozen, groups, budget=self.budget, autocast=autocast)[:, 0]
            signals["ref_logp"] = ref_logp / tokens
            if self.temperature == 1.0 and self.top_p == 1.0:
                signals["kl"] = (logp - ref_logp).astype(np.float64)
        completions = [self.decode(s.tokens) for s in samples]
        asked = [self.asked[s.prompt] for s in samples]
        if self.judge is not None:
            signals["score"] = self.judge(asked, completions)
        if self.reward is not None:
            each = self.reward.each(asked, completions)
            signals["reward"] = self.reward.combined(each)
            if each.shape[1] > 1:
                signals["reward_disagreement"] = each.std(1)
        rows = [
            {
                "prompt": question(asked[i]),
                "completion": completions[i],
                "sample": s.sample,
                "ended": s.ended,
                "tokens": len(s.tokens),
                "logp": float(logp[i]),
                "ref_logp": None if ref_logp is None else float(ref_logp[i]),
                "repetition": float(signals["repetition"][i]),
                "score": float(signals["score"][i]) if "score" in signals else None,
                "reward": float(signals["reward"][i]) if "reward" in signals else None,
            }
            for i, s in enumerate(samples)
        ]
        return Answers(rows, signals, np.asarray([s.prompt for s in samples]), samples)

    def group(self, s: Sample) -> PromptGroup:
        """A sample as a prompt with one completion, to compute its log-prob under any model."""
        return PromptGroup(self.prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),))


def repetition(tokens: np.ndarray) -> float:
    """Share of an answer's trigrams that stood in it before: 0 for ordinary prose, towards 1 for a stuck record."""
    if len(tokens) < 4:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, 3)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)
