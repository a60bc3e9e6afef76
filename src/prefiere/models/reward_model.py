"""A finished reward model: scores for texts or token ids, on its own or as a role on a policy's trunk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefiere.asked.language import in_words
from prefiere.asked.words.account import encoded
from prefiere.data.schema import Text
from prefiere.models.check.trial import try_scores
from prefiere.models.check.weights import ids_fit
from prefiere.models.classifier import decodes, ends, is_classifier, load_reward, normalisation, room, skeleton
from prefiere.models.load import fingerprint, load_tokenizer
from prefiere.models.measure import Budget, measure
from prefiere.models.score_head import Head, Normalisation
from prefiere.models.source import (
    ModelError,
    Source,
    adapter_config,
    adapter_weights,
    find_model,
    generation_config,
    positions,
)
from prefiere.models.trunk import POLICY, REWARD, Trunk, activate, role_of
from prefiere.tokens.dialect import Manner
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.text_pairs import PairEncoder
from prefiere.tokens.tokenizer import eos_ids_of
from prefiere.tokens.truncation import EncodeReport, Truncation

SCORE_BUDGET = 8192
"""Tokens in a batch, to begin with."""


def score_encoder(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    truncation: Truncation,
    *,
    both_ways: bool,
    on_bad: str = "content",
    **manner: Unpack[Manner],
) -> Encoder | PairEncoder:
    """How a reward model's prompts and answers become tokens, in training and after.

    ``both_ways``: it is an encoder; prompt and answer are then what its tokenizer makes of two texts, unless it has a
    chat template.
    """
    template = manner.get("template", "auto")
    if both_ways and template != "always" and not (tokenizer.chat_template and template == "auto"):
        return PairEncoder(tokenizer, truncation, on_bad=on_bad)  # type: ignore[arg-type]
    eos_ids = ends(source, tokenizer) if both_ways else eos_ids_of(generation_config(source), tokenizer)
    return Encoder(tokenizer, truncation, eos_ids=eos_ids, on_bad=on_bad, **manner)  # type: ignore[arg-type]


class RewardModel:
    """Scores answers: normalised, so that demonstrations score 0 on average with unit scale, where that was saved.

    ``trunk`` and ``encoder`` are the model and how it reads text; ``normalisation.mean`` is taken off its logits;
    ``report`` counts what was truncated so far.
    """

    def __init__(
        self,
        name: str,
        trunk: Trunk,
        encoder: Encoder | PairEncoder,
        saved: Normalisation | None,
        *,
        notice: Callable[[str], None] = lambda text: None,
        unseen: int | None = None,
        role: str = POLICY,
        compute: torch.dtype | None = None,
    ):
        self.name, self.trunk, self.encoder, self.role = name, trunk, encoder, role
        self.compute = compute or next(trunk.model.parameters()).dtype
        self.normalised, self.normalisation = saved is not None, saved or Normalisation()
        self.report = EncodeReport()
        self._notice, self._told, self._unseen = notice, False, unseen
        self._budget = Budget(SCORE_BUDGET)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trust: bool = False,
        max_length: int | None = None,
        on_bad: str = "content",
        template_kwargs: Mapping[str, Any] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """A reward model from a folder, a hub id or a run: any AutoModelForSequenceClassification with one label, or
        an adapter that makes one of its base.

        max_length: tokens of prompt and answer together (default: what the model takes). template_kwargs: variables of
        the chat template (default: those that it was trained with). notice: told once when
        something is truncated. Raises ModelError for a model with several labels or without a score head.
        """
        source = find_model(name, trust=trust)
        if not is_classifier(source):
            raise ModelError(in_words("met.is_no_reward_model", name=name))
        tokenizer = load_tokenizer(source)
        both_ways = not decodes(skeleton(source))
        limits = [n for n in (max_length, room(source, tokenizer) if both_ways else positions(source)) if n]
        longest = min(limits, default=None)
        saved = normalisation(source)
        manner: Manner = saved.manner if saved else {}
        if template_kwargs is not None:
            manner = {**manner, "template_kwargs": template_kwargs}
        encoder = score_encoder(source, tokenizer, Truncation(longest), both_ways=both_ways, on_bad=on_bad, **manner)
        typed = isinstance(encoder, PairEncoder) and encoder.typed
        trunk, _ = load_reward(
            source,
            compute=dtype,
            adapter=None,
            device=device,
            max_length=longest or 4096,
            typed=typed,
            train=False,
        )
        ids_fit(trunk.lm, tokenizer, source.base)
        try_scores(trunk, str(name), compute=dtype, learns=False)
        pad = trunk.lm.config.pad_token_id
        foreign = saved is None and not both_ways
        unseen = pad if foreign and pad in eos_ids_of(generation_config(source), tokenizer) else None
        model = cls(str(name), trunk.eval().requires_grad_(False), encoder, saved, notice=notice, unseen=unseen)
        if unseen is not None:
            notice(f"{name}: padding is the end token, so scores are read at the token before it, as transformers does")
        return model

    @classmethod
    def mounted(
        cls,
        trunk: Trunk,
        name: str | Path,
        role: str = REWARD,
        *,
        compute: torch.dtype = torch.float32,
        trust: bool = False,
        notice: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """A reward model that is an adapter on a policy's own base, as a role on that policy's trunk (see `mount`)."""
        source = find_model(name, trust=trust)
        tokenizer = load_tokenizer(source)
        saved = mount(trunk, name, role, trust=trust)
        encoder = score_encoder(source, tokenizer, Truncation(positions(source)), both_ways=False, **saved.manner)
        return cls(str(name), trunk, encoder, saved, notice=notice, role=role, compute=compute)

    def fingerprint(self) -> str:
        """A hash of the weights that its scores depend on besides the base that it is mounted on."""
        if self.role == POLICY:
            return fingerprint(self.trunk.model)
        return fingerprint(self.trunk, lambda name: role_of(name) == self.role)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.encoder.tokenizer

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> np.ndarray:
        """float64 [n]: the score of each completion, rendered and tokenized as this model was trained to read it.

        Raises ValueError where a score is not a number, or the template refuses a conversation.
        """
        groups = self.encoder.encode_answers(prompts, completions, self.report)
        cut = sum(self.report.counts[n] for n in ("truncated_prompts", "truncated_completions"))
        if cut and not self._told:
            self._told = True
            self._notice(f"{self.name}: {'; '.join(encoded(self.report.to_dict())[1:])}")
        return self.score_groups(groups)[:, 0]

    def score_groups(
        self, groups: Sequence[PromptGroup], progress: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """float64 [n, k]: the score of each completion of groups in this model's own token ids.

        Raises ModelError where a score is not a number, OutOfMemory where a single group does not fit.
        """
        if not len(groups):
            return np.zeros((0, 1))
        k = len(groups[0].completions)
        out = np.zeros((len(groups), k))
        seen = groups if self._unseen is None else [self._seen(g, self._unseen) for g in groups]

        def scores(batch: PackedBatch) -> Tensor:
            return self.trunk.scores(batch, self.role)

        def rows(scores_C: Tensor, batch: PackedBatch) -> dict[str, Tensor]:
            return {"score": scores_C.view(-1, k)}

        found = measure(self.trunk, seen, scores, rows, budget=self._budget, compute=self.compute, progress=progress)
        for part in found:
            out[list(part.groups)] = part.arrays["score"]
        if not np.isfinite(out).all():
            worst = groups[int(np.flatnonzero(~np.isfinite(out).all(1))[0])]
            raise ModelError(f"{self.name} scores {worst.source or 'an answer'} with a number that is not finite.")
        return out - self.normalisation.mean

    @staticmethod
    def _seen(group: PromptGroup, padding: int) -> PromptGroup:
        """A group without the end tokens that its model takes for padding."""
        kept = [max(1, len(c) - _trailing(c, padding)) for c in group.completions]
        cut = tuple(c[:n] for c, n in zip(group.completions, kept, strict=True))
        return PromptGroup(group.prompt, cut, tuple(np.ones(len(c), bool) for c in cut), source=group.source)


def _trailing(ids: np.ndarray, token: int) -> int:
    """How many of the last ids are this token."""
    other = np.flatnonzero(ids != token)
    return len(ids) - 1 - int(other[-1]) if len(other) else len(ids)


def mount(trunk: Trunk, folder: str | Path, role: str = REWARD, *, trust: bool = False) -> Normalisation:
    """Put a reward model that is an adapter on the trunk's own base beside the trunk's other adapters, frozen.

    ``trunk.scores(batch, role)`` less the returned ``mean`` is then what the reward model itself says. Raises
    ModelError for a reward model that is no adapter, or does not fit.
    """
    source = find_model(folder, trust=trust)
    if source.adapter is None or not is_classifier(source):
        raise ModelError(f"{folder} is not an adapter with a score head: only such a one shares the policy's base.")
    if not isinstance(trunk.model, PeftModel):
        raise ModelError(f"{folder} is an adapter, but the policy is not: it cannot share its base.")
    config: Any = copy.deepcopy(adapter_config(source.adapter))
    saved = adapter_weights(source.adapter, str(trunk.device))
    heads = {n: w for n, w in saved.items() if n.endswith(("score.weight", "score.bias"))}
    shared = {n for n, _ in trunk.model.named_parameters()}  # embeddings with a row for padding, which nothing reads
    layers = {n: w for n, w in saved.items() if n not in heads and n not in shared}
    if len(heads) != 1 or not decodes(skeleton(source)):
        raise ModelError(f"{folder} has no score head of a decoder: it cannot share the policy's base.")
    weight = next(iter(heads.values()))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    trained = {n: p.requires_grad for n, p in trunk.named_parameters()}
    try:
        trunk.model.add_adapter(role, config)
        found: Any = set_peft_model_state_dict(trunk.model, layers, adapter_name=role)
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"{folder} does not fit the policy's base: {str(e).splitlines()[-1].strip()}") from e
    lost = [n for n in found.missing_keys if f".{role}." in n]
    if found.unexpected_keys or lost:
        raise ModelError(f"{folder} does not fit the policy's base ({[*found.unexpected_keys, *lost][0]}).")
    head = Head(weight.shape[1], 1, bias=False, device=trunk.device)
    with torch.no_grad():
        head.weight.copy_(weight)
    trunk.heads[role] = head
    for name, p in trunk.named_parameters():
        p.requires_grad_(trained.get(name, False))
    activate(trunk.model, trunk._role)
    return normalisation(source) or Normalisation()
