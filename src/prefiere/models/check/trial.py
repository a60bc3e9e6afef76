"""One trial of a model before it is trusted: a few tokens, in about the time of a step.

It asks whether logits are finite, blind to later tokens and the same in training as in evaluation, whether a backward
goes through the layers as they will run, and how to decode so that sampled log-probs are those of a plain forward.
Whether weights are missing, loading has asked (`weights`); how rows run, `rows`. Nothing is left behind: no weight,
gradient, buffer or random number is another than before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefiere.asked.language import in_words
from prefiere.kernels.split import Split
from prefiere.models.check.weights import not_a_number
from prefiere.models.measure import autocast, out_of_memory
from prefiere.models.shard.spread import sharded
from prefiere.models.source import ModelError
from prefiere.models.trunk import POLICY, Trunk
from prefiere.sample.local import generate
from prefiere.sample.plain import WAYS, Way, set_way
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch, pack, unpack

FAILURES = (NotImplementedError, TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError)
"""What a model's own code raises where it does not take what it is given."""
SMALL_BUFFER = 2**16


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial has found: how to decode (None: not asked), why not in a faster way, and what holds, in words."""

    way: Way | None
    why: str
    holds: str


@contextmanager
def untouched(trunk: nn.Module) -> Iterator[None]:
    """Leave random state, modes, gradients, small buffers and the rates of dropout as they were."""
    modes = {m: m.training for m in trunk.modules()}
    rates = {m: m.p for m in trunk.modules() if isinstance(m, nn.Dropout)}
    buffers = {b: b.clone() for b in trunk.buffers() if b.numel() <= SMALL_BUFFER}
    for layer in rates:
        layer.p = 0.0
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for b, was in buffers.items():
            b.copy_(was)
        for layer, rate in rates.items():
            layer.p = rate
        for m, mode in modes.items():
            m.training = mode
        for p in trunk.parameters():
            p.grad = None


@contextmanager
def running(name: str, hint: str = "") -> Iterator[None]:
    """What a model's own code raises meanwhile becomes a ModelError of one line. hint: what to do about it."""
    try:
        yield
    except FAILURES as e:
        if out_of_memory(e) or isinstance(e, ModelError):
            raise
        said = str(e).strip().splitlines() or [repr(e)]
        raise ModelError(f"{name} cannot run as it would be trained ({said[0]}).{hint}") from e


def groups_for(model: PreTrainedModel) -> list[PromptGroup]:
    """Two prompts of different lengths with two completions each, always the same, within the model's positions."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    longest = min(14, limit - 6) if limit > 0 else 14
    rng = np.random.default_rng(0)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, config.vocab_size, n).astype(np.int32)

    found = [(tokens(max(2, longest)), (tokens(5), tokens(3))), (tokens(4), (tokens(3), tokens(4)))]
    return [PromptGroup(p, c, tuple(np.ones(len(x), bool) for x in c)) for p, c in found]


def try_policy(
    trunk: Trunk, name: str, *, compute: torch.dtype | None = None, learns: bool = True, hint: str = ""
) -> Tried:
    """Try out a language model, in the role that it trains in, and let it decode in the fastest way that is right.

    name: what it is called in errors. compute: of autocast, under which it runs. learns: a backward is asked for too.
    hint: what to do where it fails. Raises ModelError for a model that cannot be trusted.
    """
    groups = groups_for(trunk.lm)
    batch = pack(groups).to(trunk.device)
    plain = Trunk(trunk.model, packed=False)
    # One forward of all rows: as they are, with another last token, and without their prompts.
    rows = pack([*groups, *_other_end(groups, trunk.lm), *_without_prompt(groups)]).to(trunk.device)
    with untouched(trunk), trunk.role(POLICY if trunk.adapted else trunk._role):
        with torch.no_grad(), autocast(trunk.device, compute):
            with running(name, hint):
                all_N = plain.eval()(rows).logp_N
            finite(plain, all_N, name, "logits")
            logp_N, moved_N, lost_N = all_N.view(3, -1)
            scale = float((lost_N - logp_N).abs().mean())
            _causal(plain, batch, moved_N - logp_N, float(logp_N.std()), name)
            same_in_training(plain, all_N, plain.train()(rows).logp_N, scale, name)
        if learns:
            gradients_flow(trunk, lambda: trunk(batch).logp_N, name, compute, hint)
        trunk.eval()
        # So hot that unlikely tokens are drawn too, on which ways that differ do not agree by chance.
        hot = max(1.0, -float(logp_N.mean()) / math.log(trunk.lm.config.get_text_config().vocab_size))
        with autocast(trunk.device, compute):
            way, why = _decoding(trunk.lm, plain, [g.prompt for g in groups], hot, scale / hot, name)
    return Tried(way, why, in_words("why.holds" if learns else "why.holds_unlearnt"))


def try_scores(
    trunk: Trunk, name: str, *, compute: torch.dtype | None = None, learns: bool = True, hint: str = ""
) -> Tried:
    """Try out a reward model: see `try_policy`."""
    batch = pack(groups_for(trunk.lm)).to(trunk.device)
    with untouched(trunk), trunk.role(POLICY if trunk.adapted else trunk._role):
        with torch.no_grad(), autocast(trunk.device, compute):
            with running(name, hint):
                score_C = trunk.eval().scores(batch, POLICY)
            finite(trunk, score_C, name, "scores")
            states = _states(trunk, batch)  # of what is under the head, which is zero before training
            same_in_training(trunk, states, _states(trunk.train(), batch), float(states.std()), name)
        if learns:
            gradients_flow(trunk, lambda: trunk.scores(batch, POLICY), name, compute, hint)
    return Tried(None, "", in_words("why.scores_hold" if learns else "why.scores_hold_unlearnt"))


@torch.no_grad()
def share_rows(trunk: Trunk, split: Split, name: str, *, compute: torch.dtype | None = None) -> None:
    """Let processes share the tokens of a trunk's rows, if it says the same of a row that they share as of a whole one.

    All of them call it together; arguments as for `try_policy`. Raises ModelError for a model that does not.
    """
    asked = f"sequence_parallel_size={split.size}"
    if not trunk.packed:
        raise ModelError(f"{asked}: {name} runs on padded rows, whose tokens are not shared: leave it out.")
    batch = pack(groups_for(trunk.lm)).to(trunk.device)

    def states() -> Tensor:
        with autocast(trunk.device, compute, cached=not sharded(trunk)):
            return trunk.states(batch, batch.predictor_N, batch.owner_N, None, batch.reads).float()

    with untouched(trunk):
        trunk.eval()
        whole, trunk.split = states(), split
        with running(name, f" Leave {asked} out."):
            apart = float((whole - states()).abs().max())
    if not apart <= tolerance(trunk.model, float(whole.std())):
        raise ModelError(
            f"{asked}: {name} says something else where processes share a row's tokens (by {apart:.2g}): "
            f"{type(trunk.lm).__name__} has layers that look from one token to another. Leave it out."
        )


def _states(trunk: Trunk, batch: PackedBatch) -> Tensor:
    """The last hidden states of padded rows, [C, L, H], zero at padding."""
    rows = unpack(batch)
    out: Tensor = trunk.lm.base_model(input_ids=rows.ids_CL, attention_mask=rows.mask_CL).last_hidden_state
    return out * rows.mask_CL[..., None]


def finite(trunk: Trunk, out: Tensor, name: str, what: str) -> None:
    """Raise ModelError where what a model says is not finite, naming a weight that is not, where there is one."""
    if bool(torch.isfinite(out).all()):
        return
    bad = not_a_number(trunk.model)
    why = f"its weight {bad} is not: download it again" if bad else "its weights are: set dtype=float32"
    raise ModelError(f"{name}: its {what} are not finite; {why}.")


def tolerance(model: nn.Module, scale: float) -> float:
    """How far two ways to the same number may be apart: far below ``scale``, what a lost prompt would change."""
    first = next(model.parameters())
    full = first.dtype == torch.float32 and not torch.is_autocast_enabled(first.device.type)
    return (1e-3 if full else 0.1) * scale + 1e-6


def same_in_training(trunk: Trunk, before: Tensor, after: Tensor, scale: float, name: str) -> None:
    """Raise ModelError where a model says something else in train() than in eval()."""
    apart = float((before - after).abs().max())
    if not apart <= tolerance(trunk.model, scale) / 10:
        raise ModelError(
            f"{name} says something else in training than in evaluation (by {apart:.2g}): {type(trunk.lm).__name__} "
            "has something random, or statistics of the batch, that its configuration does not switch off."
        )


def _without_prompt(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    return [PromptGroup(g.prompt[-1:], g.completions, g.masks) for g in groups]


def _other_end(groups: Sequence[PromptGroup], model: PreTrainedModel) -> list[PromptGroup]:
    """The same with another last token of each completion."""
    size = int(model.config.get_text_config().vocab_size)
    return [
        PromptGroup(g.prompt, tuple(np.append(c[:-1], np.int32((c[-1] + 1) % size)) for c in g.completions), g.masks)
        for g in groups
    ]


def _causal(plain: Trunk, batch: PackedBatch, moved_N: Tensor, scale: float, name: str) -> None:
    """Raise ModelError where another last token of a completion has changed what is said of the tokens before it."""
    earlier_N = torch.ones_like(batch.owner_N, dtype=torch.bool)
    earlier_N[batch.scored_C.cumsum(0) - 1] = False
    apart = float(moved_N[earlier_N].abs().max())
    if not apart <= tolerance(plain.model, scale):
        raise ModelError(
            f"{name} sees the answer that it would score: another last token changes what {type(plain.lm).__name__} "
            f"says of earlier ones (by {apart:.2g} nats). It reads both ways, as masked language models do: use it as "
            "a reward model, or name one that writes from left to right."
        )


def gradients_flow(
    trunk: Trunk, forward: Callable[[], Tensor], name: str, compute: torch.dtype | None, hint: str
) -> None:
    """Raise ModelError where no gradient goes through the layers as they run in training, or it is not finite."""
    trunk.train()
    with running(name, hint):
        with autocast(trunk.device, compute):
            out = forward()
        out.float().mean().backward()
    if compute == torch.float16:  # without the scale that the engine finds, its range says little
        return
    named = ((n, p.grad) for n, p in trunk.named_parameters() if p.grad is not None)
    bad = next((n for n, g in named if not bool(torch.isfinite(g).all())), None)
    if bad is not None:
        raise ModelError(f"{name}: the gradient of {bad} is not finite.{hint or ' Set dtype=float32.'}")


def _decoding(
    lm: PreTrainedModel, plain: Trunk, prompts: Sequence[np.ndarray], hot: float, scale: float, name: str
) -> tuple[Way, str]:
    """The fastest way to decode whose log-probs are those of plain forwards, and what was wrong with the others."""
    trouble = ""
    for way in WAYS:
        set_way(lm, way)
        found = _compared(lm, plain, prompts, hot, scale)
        if found is None:
            return way, trouble
        trouble = trouble or found
    raise ModelError(f"{name} cannot be sampled from: {trouble}.")


@torch.no_grad()
def _compared(lm: PreTrainedModel, plain: Trunk, prompts: Sequence[np.ndarray], hot: float, scale: float) -> str | None:
    """What is wrong with how a model decodes now; None where nothing is. hot: the temperature."""
    try:
        samples = generate(lm, prompts, Sampling(samples=2, max_new_tokens=3, temperature=hot), Vocabulary(()))
    except FAILURES as e:
        if out_of_memory(e):
            raise
        return in_words("why.no_cache", model=type(lm).__name__, why=str(e).splitlines()[0])
    found = [[s for s in samples if s.prompt == i] for i in range(len(prompts))]
    ones = [tuple(np.ones(len(s.tokens), bool) for s in own) for own in found]
    groups = [PromptGroup(p, tuple(s.tokens for s in own), m) for p, own, m in zip(prompts, found, ones, strict=True)]
    logp_N = plain.eval()(pack(groups).to(plain.device), temperature=hot).logp_N.cpu().numpy()
    apart = float(np.abs(logp_N - np.concatenate([s.logp for s in samples])).max())
    if not apart <= 10 * tolerance(plain.model, scale):
        return in_words("why.cache_differs", model=type(lm).__name__, by=f"{apart:.2g}")
    return None
