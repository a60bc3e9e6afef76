"""Answers from a model in this process: each prompt is run once, rows that have ended are dropped, log-probs are kept.

How tokens are drawn is in `draw`, the cache in `kv_cache`, what the answers to a prompt share in `shared_prefix`, what
makes thin matrix products fast on a CPU in `packed_weights`, how a model decodes that none of this suits in `plain`.

Suffixes: _P prompts, _R rows (answers that are being drawn), _T their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefiere.asked.language import count_of
from prefiere.sample.draw import draw
from prefiere.sample.kv_cache import PreparedCache
from prefiere.sample.packed_weights import packed_weights
from prefiere.sample.plain import Anew, OwnCache, way_of
from prefiere.sample.sampling import Sample, Sampling, Vocabulary
from prefiere.sample.shared_prefix import shareable


class LocalRollouts:
    """Answers of a model in this process, in the precision of the run's forwards (``autocast``; None: the weights').

    whole: what holds the model's weights together meanwhile, where they are spread over processes.
    """

    limit: float | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        autocast: torch.dtype | None = None,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._model, self._vocabulary, self._autocast, self._whole = model, vocabulary, autocast, whole

    def check(self, trunk: nn.Module) -> str:
        """Nothing to check: the weights that answer are the weights that train. How far the two forwards are apart,
        each step measures (sampler_drift)."""
        return ""

    def publish(self, trunk: nn.Module, version: int) -> None:
        """Nothing to publish: there is one copy of the weights, and it is the newest."""

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        version: int,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Answers from the weights as they are now, whichever ``version`` that is (see `Rollouts`)."""
        device = next(self._model.parameters()).device
        with self._whole(), torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            made = generate(self._model, prompts, sampling, self._vocabulary, numbers=numbers, progress=progress)
        return [replace(s, version=version) for s in made]

    def close(self) -> None:
        """Nothing is held."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    vocabulary: Vocabulary,
    *,
    numbers: Sequence[int] | None = None,
    rows: int = 64,
    progress: Callable[[int], None] | None = None,
    drawn: Callable[[Tensor], None] | None = None,
) -> list[Sample]:
    """Sample answers to each prompt (int32 token ids), by prompt, then by sample.

    numbers: what the prompts are called in the random stream (default: their places). rows: how many answers are drawn
    at once, at most. progress: is told how many answers are done. drawn: is given each step's
    tokens, int64 [rows], also what a row draws after its end. Raises ValueError for an empty prompt, and for one
    that leaves no position for an answer.
    """
    limit = _positions(model)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} has no tokens: there is nothing to continue")
        if len(prompt) >= limit:
            raise ValueError(
                f"prompt {i} has {count_of(len(prompt), 'token')}, and the model takes {limit}: shorten it"
            )
    number_P = np.asarray(numbers if numbers is not None else range(len(prompts)), np.int64)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    width = max(1, rows // sampling.samples)
    was_training = model.training
    model.eval()
    done: dict[tuple[int, int], Sample] = {}
    try:
        sharing = shareable(model) if way_of(model) == "prepared" else nullcontext(False)
        with packed_weights(model), sharing as share:
            for start in range(0, len(order), width):
                group = order[start : start + width]
                asked = [prompts[i] for i in group]
                for s in _decode(model, asked, number_P[group], sampling, vocabulary, share, drawn):
                    at = group[s.prompt]
                    done[at, s.sample] = replace(s, prompt=at)
                if progress:
                    progress(len(group) * sampling.samples)
    finally:
        model.train(was_training)
    return [done[i, j] for i in range(len(prompts)) for j in range(sampling.samples)]


def _positions(model: PreTrainedModel) -> int:
    """How many tokens of prompt and answer the model takes."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if found and found > 0 else 2**31  # XLNet's is -1


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    number_P: np.ndarray,
    sampling: Sampling,
    vocabulary: Vocabulary,
    share: bool,
    drawn: Callable[[Tensor], None] | None,
) -> Iterator[Sample]:
    """Run the prompts, and draw token after token until every row has ended, in the way that the model decodes."""
    device, limit = next(model.parameters()).device, _positions(model)
    rows = _Rows(prompts, number_P, sampling, limit, device)
    way, every = way_of(model), _look_every(device)
    steps: PreparedCache | OwnCache | Anew
    if way == "prepared":
        steps = PreparedCache(model, prompts, sampling.samples, rows.slots, share=share, limit=limit)
    else:
        steps = (OwnCache if way == "cache" else Anew)(model, prompts, sampling.samples)
    logits = steps.logits_RV
    while True:
        rows.add(*draw(logits, sampling, vocabulary, rows.number_R, sampling.first + rows.sample_R, rows.drawn))
        if drawn is not None:
            drawn(rows.tokens_RT[:, rows.drawn - 1])
        if rows.drawn % every == 0 or rows.drawn == rows.slots:
            yield from rows.finished(vocabulary.eos_ids)
            if rows.over_R.all():
                return
            kept = rows.drop_finished() if steps.may_drop else None
            if kept is not None:
                steps.keep(kept)
        logits = steps.step(rows.tokens_RT[:, rows.drawn - 1])


class _Rows:
    """The answers that are being drawn, one a row, with as many slots for tokens as the longest of them may need.

    prompt_R, sample_R: int64, which answer to which prompt a row is. number_R: int64, its prompt's number in the random
    stream. most_R: int64, tokens it may have. length_R: int64, tokens of its prompt. tokens_RT, logp_RT: what was
    drawn. over_R: bool, whether it has ended and its sample was handed out; what it still draws is not used.
    """

    def __init__(
        self, prompts: Sequence[np.ndarray], number_P: np.ndarray, sampling: Sampling, limit: int, device: torch.device
    ):
        length_P = np.asarray([len(p) for p in prompts])
        self.prompt_R = np.repeat(np.arange(len(prompts)), sampling.samples)
        self.sample_R = np.tile(np.arange(sampling.samples), len(prompts))
        self.number_R = number_P[self.prompt_R]
        self.most_R = np.minimum(sampling.max_new_tokens, limit - length_P)[self.prompt_R]
        self.slots, self.drawn, self._looked = int(self.most_R.max()), 0, 0
        self.length_R = torch.as_tensor(length_P[self.prompt_R], device=device)
        self.tokens_RT = torch.zeros(len(self.prompt_R), self.slots, dtype=torch.long, device=device)
        self.logp_RT = torch.zeros(len(self.prompt_R), self.slots, device=device)
        self.over_R = np.zeros(len(self.prompt_R), bool)

    def add(self, token_R: Tensor, logp_R: Tensor) -> None:
        """Take up the next token of every row."""
        self.tokens_RT[:, self.drawn], self.logp_RT[:, self.drawn] = token_R, logp_R
        self.drawn += 1

    def finished(self, eos_ids: Sequence[int]) -> Iterator[Sample]:
        """The samples of all rows that have ended, or have no slot left, since the last call."""
        ends = np.isin(self.tokens_RT[:, self._looked : self.drawn].cpu().numpy(), eos_ids)
        end_R = np.where(ends.any(1), self._looked + ends.argmax(1) + 1, self.slots + 1)
        length_R = np.minimum(end_R, self.most_R)
        fresh = np.flatnonzero(~self.over_R & (length_R <= self.drawn))
        self._looked = self.drawn
        self.over_R[fresh] = True
        if not len(fresh):
            return
        tokens, logps = (x[torch.from_numpy(fresh)].cpu().numpy() for x in (self.tokens_RT, self.logp_RT))
        for r, ids, logp in zip(fresh.tolist(), tokens, logps, strict=True):
            n, ended = int(length_R[r]), bool(end_R[r] <= self.most_R[r])
            yield Sample(int(self.prompt_R[r]), int(self.sample_R[r]), ids[:n].astype(np.int32), logp[:n].copy(), ended)

    def drop_finished(self) -> Tensor | None:
        """Drop rows that are over once they are an eighth of all, since dropping copies the cache; int64, those that
        stay (None: all do)."""
        if self.over_R.sum() * 8 < len(self.over_R):
            return None
        keep = np.flatnonzero(~self.over_R)
        kept = torch.from_numpy(keep).to(self.length_R.device)
        self.prompt_R, self.sample_R, self.number_R = self.prompt_R[keep], self.sample_R[keep], self.number_R[keep]
        self.most_R, self.over_R = self.most_R[keep], self.over_R[keep]
        self.length_R = self.length_R.index_select(0, kept)
        self.tokens_RT, self.logp_RT = self.tokens_RT.index_select(0, kept), self.logp_RT.index_select(0, kept)
        return kept


def _look_every(device: torch.device) -> int:
    """Steps between looks for finished rows: a look waits for the device."""
    return 1 if device.type == "cpu" else 8
