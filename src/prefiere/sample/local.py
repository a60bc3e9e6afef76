"""Sample n completions for each prompt: prefill once, drop finished rows, keep log-probs.

How tokens are drawn is in `drawing`, the cache in `rooms`, what the samples of a prompt share in `shared`, and what
makes thin matrix products fast on a CPU in `weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from prefiere.sample.draw import Drawing
from prefiere.sample.kv_cache import prefill
from prefiere.sample.packed_weights import packed_weights
from prefiere.sample.shared_prefix import shareable


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
    with packed_weights(model), shareable(model) as share:
        for start in range(0, len(order), width):
            group = order[start : start + width]
            rooms = np.asarray([min(max_new_tokens, limit - len(prompts[i])) for i in group])
            for s in _decode(model, [prompts[i] for i in group], names[group], samples, rooms, limit, draw, share):
                at = group[s.prompt]
                done[at, s.sample] = Sample(at, s.sample, s.tokens, s.logp, s.ended)
            if progress:
                progress(len(group) * samples)
    model.train(was_training)
    return [done[i, j] for i in range(len(prompts)) for j in range(samples)]


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    names: np.ndarray,
    samples: int,
    rooms: np.ndarray,
    limit: int,
    draw: Drawing,
    share: bool,
) -> Iterator[Sample]:
    """Prefill each prompt once, repeat the cache for its samples, and drop rows as they end, or fill their prompt's
    ``rooms`` tokens. Rows are dropped some at a time, as each time the cache is copied; what a row that is over still
    draws is thrown away."""
    device = next(model.parameters()).device
    prompt_R, sample_R = np.repeat(np.arange(len(prompts)), samples), np.tile(np.arange(samples), len(prompts))
    length, longest, every = int(rooms.max()), max(map(len, prompts)), _look_every(device)
    logits, cache, mask, decoding = prefill(model, prompts, samples, length, share=share)
    told = {} if decoding is None else {"decoding": decoding}
    size = torch.as_tensor([len(prompts[p]) for p in prompt_R.tolist()], device=device)
    tokens = torch.zeros(len(prompt_R), length, dtype=torch.long, device=device)
    logps = torch.zeros(len(prompt_R), length, device=device)
    over = np.zeros(len(prompt_R), bool)
    seen = 0
    for step in range(length):
        tokens[:, step], logps[:, step] = draw(logits, names[prompt_R], sample_R, step)
        drawn = step + 1
        if drawn % every == 0 or drawn == length:
            found = np.isin(tokens[:, seen:drawn].cpu().numpy(), draw.ends)
            end = np.where(found.any(1), seen + found.argmax(1) + 1, length + 1)
            room, seen = rooms[prompt_R], drawn
            fresh = np.flatnonzero(~over & (np.minimum(end, room) <= drawn))
            said = [x[torch.from_numpy(fresh)].cpu().numpy() for x in (tokens, logps)] if len(fresh) else []
            for r, ids, logp in zip(fresh.tolist(), *said, strict=True):
                n = int(min(end[r], room[r]))
                made = ids[:n].astype(np.int32), logp[:n].copy()
                yield Sample(int(prompt_R[r]), int(sample_R[r]), *made, bool(end[r] <= room[r]))
            over[fresh] = True
            if over.all():
                return
            if over.sum() * 8 >= len(over):
                keep = np.flatnonzero(~over)
                prompt_R, sample_R, over = prompt_R[keep], sample_R[keep], over[keep]
                at = torch.from_numpy(keep).to(device)
                cache.batch_select_indices(at)
                mask, size, tokens, logps = (x.index_select(0, at) for x in (mask, size, tokens, logps))
        logits = model(
            input_ids=tokens[:, step, None],
            attention_mask=mask[:, : longest + drawn],
            position_ids=(size + step).clamp(max=limit - 1)[:, None],
            past_key_values=cache,
            use_cache=True,
            **told,
        ).logits[:, -1]


def _look_every(device: torch.device) -> int:
    """Steps between looks for finished rows: a look waits for the device."""
    return 1 if device.type == "cpu" else 8
