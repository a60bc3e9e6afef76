"""Sample n completions for each prompt: prefill once, drop finished rows, keep log-probs.

A draw depends only on (seed, prompt id, sample, position): each is made with its own counter-based random number, so
grouping prompts, dropping rows or adding processes changes no token, and two models asked with the same seed meet the
same luck.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion of prompt number ``prompt``.

    tokens: int32 [L], with the end token where there is one. logp: float32 [L], natural log-probs under the sampled
    distribution at the temperature given, before top-p. ended: an end token was reached.
    """

    prompt: int
    sample: int
    tokens: np.ndarray
    logp: np.ndarray
    ended: bool


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): 64 well-mixed bits from 64 bits."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniforms(seed: int, prompt: np.ndarray, sample: np.ndarray, position: int) -> np.ndarray:
    """float64 [n] in (0, 1): one number for each (seed, prompt id, sample, position)."""
    state = np.full(len(prompt), seed % 2**64, np.uint64)
    for part in (prompt, sample, np.asarray(position)):
        with np.errstate(over="ignore"):
            salt = part.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
            state = _mix(state + np.uint64(0x9E3779B97F4A7C15) + salt)
    return np.asarray(((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def _choose(logp_RV: Tensor, u_R: np.ndarray, top_p: float) -> Tensor:
    """Inverse-CDF draw [R] from log-probs [R, V], cut to the nucleus of mass ``top_p``."""
    p = logp_RV.double().exp()
    if top_p < 1.0:
        ordered, order = p.sort(-1, descending=True)
        keep = ordered.cumsum(-1) - ordered < top_p
        p = torch.zeros_like(p).scatter_(-1, order, ordered * keep)
    cdf = p.cumsum(-1)
    u = torch.from_numpy(u_R).to(cdf.device)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp_(max=p.shape[-1] - 1)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn: temperature (0 is greedy), nucleus, seed, ids that end an answer, ids never chosen."""

    temperature: float
    top_p: float
    seed: int
    ends: np.ndarray
    forbidden: tuple[int, ...]

    def __call__(
        self, logits_RV: Tensor, prompt_R: np.ndarray, sample_R: np.ndarray, step: int
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row [R] and its log-prob [R]."""
        logits = logits_RV.float()
        if self.forbidden:
            logits[:, list(self.forbidden)] = float("-inf")
        logp = torch.log_softmax(logits / self.temperature if self.temperature > 0 else logits, -1)
        if self.temperature > 0:
            choice = _choose(logp, uniforms(self.seed, prompt_R, sample_R, step), self.top_p)
        else:
            choice = logits.argmax(-1)
        return choice, logp.gather(-1, choice[:, None])[:, 0]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    *,
    samples: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_ids: Sequence[int],
    seed: int = 0,
    prompt_ids: Sequence[int] | None = None,
    rows: int = 64,
    forbidden: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Sample ``samples`` completions for each prompt (int32 token ids); temperature 0 is greedy.

    ``prompt_ids`` name the prompts in the random stream (their places by default); at most ``rows`` sequences decode
    at once. ``forbidden`` ids are never chosen. ``progress`` hears how many sequences have finished. Samples come in
    the order of prompts, then samples. Raises ValueError for an empty prompt.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} has no tokens: there is nothing to continue")
        if len(prompt) >= limit:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens, and the model takes {limit}: shorten it")
    names = np.asarray(prompt_ids if prompt_ids is not None else range(len(prompts)), np.int64)
    draw = Drawing(temperature, top_p, seed, np.asarray(list(eos_ids)), tuple(forbidden))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    width = max(1, rows // samples)
    was_training = model.training
    model.eval()
    done: dict[tuple[int, int], Sample] = {}
    for start in range(0, len(order), width):
        group = order[start : start + width]
        rooms = np.asarray([min(max_new_tokens, limit - len(prompts[i])) for i in group])
        for s in _decode(model, [prompts[i] for i in group], names[group], samples, rooms, draw):
            at = group[s.prompt]
            done[at, s.sample] = Sample(at, s.sample, s.tokens, s.logp, s.ended)
        if progress:
            progress(len(group) * samples)
    model.train(was_training)
    return [done[i, j] for i in range(len(prompts)) for j in range(samples)]


def _padded_left(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [R, L], padded on the left, so that every row's next token stands in the same column."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, p in enumerate(prompts):
        ids[r, longest - len(p) :] = torch.from_numpy(p.astype(np.int64))
        mask[r, longest - len(p) :] = 1
    return ids.to(device), mask.to(device)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    names: np.ndarray,
    samples: int,
    rooms: np.ndarray,
    draw: Drawing,
) -> Iterator[Sample]:
    """Prefill each prompt once, repeat the cache for its samples, and drop rows as they end, or fill their prompt's
    ``rooms`` tokens."""
    device = next(model.parameters()).device
    ids, mask = _padded_left(prompts, device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(samples)
    row_prompt, row_sample = np.repeat(np.arange(len(prompts)), samples), np.tile(np.arange(samples), len(prompts))
    repeat = torch.from_numpy(row_prompt).to(device)
    logits, mask, position = (x.index_select(0, repeat) for x in (logits, mask, position[:, -1:]))
    tokens: list[list[int]] = [[] for _ in row_prompt]
    logps: list[list[float]] = [[] for _ in row_prompt]
    alive = np.arange(len(row_prompt))
    for step in itertools.count():
        choice, logp = draw(logits, names[row_prompt[alive]], row_sample[alive], step)
        chosen = choice.cpu().numpy()
        for r, t, lp in zip(alive.tolist(), chosen.tolist(), logp.tolist(), strict=True):
            tokens[r].append(t)
            logps[r].append(lp)
        ended = np.isin(chosen, draw.ends)
        done = ended | (rooms[row_prompt[alive]] == step + 1)
        for r, e, over in zip(alive.tolist(), ended.tolist(), done.tolist(), strict=True):
            if over:
                made = np.asarray(tokens[r], np.int32), np.asarray(logps[r], np.float32)
                yield Sample(int(row_prompt[r]), int(row_sample[r]), *made, e)
        if done.all():
            return
        if done.any():
            keep = torch.from_numpy(np.flatnonzero(~done)).to(device)
            cache.batch_select_indices(keep)
            mask, position, choice = (x.index_select(0, keep) for x in (mask, position, choice))
            alive = alive[~done]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        position = position + 1
        logits = model(
            input_ids=choice[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        ).logits[:, -1]
