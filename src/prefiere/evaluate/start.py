"""What a model and its pairs are to each other before any update: does the prompt matter, and are the answers alike?

Measured on a few examples (`few`): about a twentieth of the work of a hundred updates. What is wrong with data, or with
how it is written for the model, shows here before anything is spent.

Suffixes: _N scored tokens, _C completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefiere.evaluate.rows import flat
from prefiere.evaluate.sampled import repetition
from prefiere.kernels.memory import within_memory
from prefiere.models.check.weights import ids_fit
from prefiere.models.load import load_model
from prefiere.models.measure import Budget, measure
from prefiere.models.reference import sequence_logps
from prefiere.models.source import Source
from prefiere.models.trunk import Trunk
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.tokenizer import eos_ids_of

FEWEST, MOST = 8, 96
"""Examples that are looked at: below the first nothing is said."""
TOO_ALIKE = -0.1
"""Likeness above which lowering one answer drags the other along."""


def few(store: GroupStore, examples: int, share: int = 16) -> list[int]:
    """One example in ``share`` of those that a run visits, of different prompts, from all over the store; `MOST` at
    most and `FEWEST` at least, as far as there are. Of a prompt with several it is any, not always the first, which may
    be the only one in its place where a cell was filled down. Where they stand in the store."""
    good = np.arange(len(store)) if store.k > 1 else np.flatnonzero(store.labels >= 0.5)
    mixed = good[np.random.default_rng(0).permutation(len(good))]
    first = mixed[np.unique(store.prompt_keys[mixed], return_index=True)[1]]
    wanted = min(len(first), max(FEWEST, min(MOST, examples // share)))
    at = np.sort(first)[np.linspace(0, len(first) - 1, wanted).astype(int)] if wanted else []
    return [int(i) for i in at]


def at_start(
    trunk: Trunk,
    store: GroupStore,
    *,
    examples: int,
    max_length: int,
    budget: Budget | int,
    autocast: torch.dtype | None,
    known: np.ndarray | None = None,
) -> dict[str, float]:
    """Columns of the row of step 0 (``start/...``), with intervals; none below `FEWEST` different prompts.

    ``examples``: how many the run visits. max_length: tokens of a row, within which an answer that is lent to another
    prompt is cut. known: float32 [n, k], log-probs of the store's completions under this model, NaN where unknown.
    """
    at = [i for i in few(store, examples) if store.sizes(i)[0] > 1]
    if len(at) < FEWEST:
        return {}
    pairs = _lent([store[i] for i in at], max_length, known[at] if known is not None else None)
    of_own, of_lent = pairs.logps(trunk, budget, autocast)
    tokens = np.asarray([int(g.masks[0].sum()) for g in pairs.own])
    adds = of_own - of_lent
    values = {"prompt_matters": adds / tokens, "prompt_ignored": adds <= 0, "chosen_logp": of_own / tokens}
    row = flat(values, np.arange(len(tokens)), prefix="start/")
    if store.k == 2:
        compared = [store[i] for i in few(store, examples, 32)]
        alike = likeness(trunk, compared, budget, autocast)
        row |= flat({"likeness": alike, "too_alike": alike > TOO_ALIKE}, np.arange(len(compared)), prefix="start/")
    return row


BEFORE, BUDGET = 32, 4096
"""Where no run has begun: examples that are looked at, and tokens in a batch."""


@within_memory("measuring the model on the data", "take a smaller max_length")
def before_a_run(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[PromptGroup],
    sampling: Sampling,
    *,
    dtype: torch.dtype,
    max_length: int,
) -> dict[str, float]:
    """The columns of a run's step 0 that say what a model and examples are to each other, where there is no run: of
    `BEFORE` examples, and of an answer of the model's own to each of their prompts.

    Raises ModelError where the model cannot be loaded, or OutOfMemory.
    """
    model = load_model(source, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    ids_fit(model, tokenizer, source.base)
    trunk, store = Trunk(model, packed=False), GroupStore.build(groups, len(groups[0].completions))
    visited = 16 * min(BEFORE, len(store))
    row = at_start(trunk, store, examples=visited, max_length=max_length, budget=BUDGET, autocast=None)
    prompts = [store[i].prompt for i in few(store, visited)]
    samples = generate(trunk.lm, prompts, sampling, Vocabulary.of(tokenizer, eos_ids_of(model, tokenizer)))
    own = [PromptGroup(prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),)) for s in samples]
    logps = sequence_logps(trunk, own, budget=BUDGET)[:, 0]
    signals = {
        "ref_logp": logps / np.asarray([len(s.tokens) for s in samples]),
        "repetition": np.asarray([repetition(s.tokens) for s in samples]),
    }
    row |= flat(signals, np.asarray([s.prompt for s in samples]), prefix="samples/")
    return row | of_own_answers(trunk, own, max_length, BUDGET, None, logps)


def of_own_answers(
    trunk: Trunk,
    answers: Sequence[PromptGroup],
    max_length: int,
    budget: Budget | int,
    autocast: torch.dtype | None,
    known: np.ndarray | None = None,
) -> dict[str, float]:
    """``start/prompt_in_own``: what the prompt adds to the model's own answers; nothing below `FEWEST` of them.

    known: their log-probs [n], where they have been measured.
    """
    pairs = _lent(answers[:MOST], max_length, known[:MOST, None] if known is not None else None)
    if len(pairs.own) < FEWEST:
        return {}
    of_own, of_lent = pairs.logps(trunk, budget, autocast)
    adds, tokens = of_own - of_lent, np.asarray([len(g.completions[0]) for g in pairs.own])
    values = {"prompt_in_own": adds / tokens, "prompt_ignored_own": adds <= 0}
    return flat(values, np.arange(len(pairs.own)), prefix="start/")


@dataclass(frozen=True, slots=True)
class Lent:
    """Answers after their own prompt and after another's. known: their log-probs after their own, NaN where unknown."""

    own: list[PromptGroup]
    lent: list[PromptGroup]
    known: list[float]

    def logps(self, trunk: Trunk, budget: Budget | int, autocast: torch.dtype | None) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs [n] of the answers after either prompt; what is known is not computed again."""
        of_own = np.asarray(self.known, np.float32)
        unknown = np.flatnonzero(np.isnan(of_own))
        measured = [self.own[i] for i in unknown]
        of_own[unknown] = sequence_logps(trunk, measured, budget=budget, autocast=autocast)[:, 0]
        return of_own, sequence_logps(trunk, self.lent, budget=budget, autocast=autocast)[:, 0]


def _lent(groups: Sequence[PromptGroup], max_length: int, known: np.ndarray | None) -> Lent:
    """Each preferred answer after its own prompt, and after that of the example half the list away.

    known: the log-probs [n, k] of whole completions; of an answer that is cut nothing is known.
    """
    out = Lent([], [], [])
    for i, g in enumerate(groups):
        other = groups[(i + len(groups) // 2) % len(groups)]
        best = 0 if len(g.completions) == 1 or g.label >= 0.5 else 1
        room = max(1, max_length - max(len(g.prompt), len(other.prompt)))
        answer, mask = g.completions[best][:room], g.masks[best][:room]
        if mask.any() and not any(np.array_equal(answer, c[:room]) for c in other.completions):
            out.own.append(PromptGroup(g.prompt, (answer,), (mask,)))
            out.lent.append(PromptGroup(other.prompt, (answer,), (mask,)))
            whole = len(answer) == len(g.completions[best])
            out.known.append(float(known[i, best]) if known is not None and whole else math.nan)
    return out


def likeness(
    trunk: Trunk, pairs: Sequence[PromptGroup], budget: Budget | int, autocast: torch.dtype | None
) -> np.ndarray:
    """float64 [n]: how alike a model finds the two answers of each pair, 0 for the same text.

    The centred hidden embedding similarity of Razin et al. (2024, definition 2), normalised by length and by the
    preferred answer's own size: (h+ . h- - h+ . h+) / (h+ . h+), h the mean of the last hidden states that predict an
    answer's tokens. Near 0, lowering the one drags the other along.
    """

    def states(batch: PackedBatch) -> Tensor:
        return trunk.states(batch, batch.predictor_N, batch.owner_N, None, batch.reads)

    def alike(h_NH: Tensor, batch: PackedBatch) -> Mapping[str, Tensor]:
        h_NH = h_NH.float()
        mean_CH = h_NH.new_zeros(batch.completions, h_NH.shape[-1]).index_add(0, batch.owner_N, h_NH)
        mean_CH = mean_CH / batch.scored_C[:, None].clamp(min=1)
        good, bad = mean_CH.view(-1, 2, h_NH.shape[-1]).unbind(1)
        size = good.square().sum(-1)
        return {"alike": ((good * bad).sum(-1) - size) / size.clamp(min=1e-12)}

    most = budget if isinstance(budget, Budget) else Budget(budget)
    out = np.zeros(len(pairs))
    for part in measure(trunk, pairs, states, alike, budget=most, compute=autocast):
        out[list(part.groups)] = part.arrays["alike"]
    return out
