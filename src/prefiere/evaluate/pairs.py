"""How right a model is about pairs that people have judged: any model, any data, one score for each answer.

Training measures its own validation data; this measures whatever is asked for, with the policy and the reference of a
run as they were in training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch

from prefiere.asked.words.account import encoded
from prefiere.data import formats
from prefiere.evaluate.manner import manner_of
from prefiere.models.load import load_policy, load_tokenizer
from prefiere.models.reference import sequence_logps
from prefiere.models.source import Source, find_model, generation_config
from prefiere.models.trunk import Trunk
from prefiere.objectives.preference import LOSSES, PairBatch, accuracies
from prefiere.objectives.preference import rewards as implied
from prefiere.run import Run, RunError
from prefiere.stats import Estimate, clustered_mean
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.tokenizer import eos_ids_of
from prefiere.tokens.truncation import EncodeReport, Truncation

PAIR_BUDGET = 4096
"""Tokens in a batch."""
LIMITS = ("max_length", "max_prompt_length", "max_completion_length")


class Reading(TypedDict, total=False):
    """How pairs are read and tokenized: settings of training, under their names; none where left out."""

    data_split: str | None
    columns: dict[str, str | None] | None
    on_bad: Any
    max_length: int | None
    max_prompt_length: int | None
    max_completion_length: int | None
    template: Any
    template_kwargs: Any
    day: Any
    pairs_per_prompt: Any


@dataclass(frozen=True, slots=True)
class PairScores:
    """A score for each answer of n pairs, in the data's order.

    scores: float64 [n, 2], the chosen answer's first. tokens: int64 [n, 2], how many scored tokens an answer has.
    labels: float64 [n], the probability that chosen is the preferred one. prompts: int64 [n], equal for equal prompts.
    sources: where each pair was read (``file:line``). account: what was read, dropped and truncated.
    """

    scores: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    prompts: np.ndarray
    sources: list[str]
    account: dict[str, Any]

    @property
    def margins(self) -> np.ndarray:
        """float64 [n]: by how much the chosen answer scores higher."""
        margins: np.ndarray = self.scores[:, 0] - self.scores[:, 1]
        return margins

    def right(self, noise: float = 0.0) -> np.ndarray:
        """float64 [n]: 1 where the preferred answer scores higher, 0 where the other does, 0.5 within ``noise``."""
        margins, labels = torch.from_numpy(self.margins), torch.from_numpy(self.labels)
        return accuracies(margins, noise=noise, label_G=labels).double().numpy()

    def accuracy(self, clusters: Sequence[Hashable] | np.ndarray | None = None) -> Estimate:
        """The share that is right, with its interval clustered by prompt, or by other names [n] that are given."""
        return clustered_mean(self.right(), self.prompts if clusters is None else clusters, share=True)


def logps(
    model: str | Path,
    data: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
    **reading: Unpack[Reading],
) -> PairScores:
    """Score answers by log pi(y | x), the sum over their tokens in nats.

    model: hub id, folder of a model or adapter, or a finished run. Raises ValueError where it, or the data, cannot be
    used.
    """
    source = find_model(model)
    store, account = _read(source, data, reading)
    return paired(store, _logps(_trunk(source, store, dtype), store, dtype, progress), account)


def implicit_rewards(
    run: Run | str | Path, data: str | Path, *, progress: Callable[[int], None] | None = None
) -> PairScores:
    """Score answers by the rewards that a preference run implies: beta (log pi - log pi_ref), or as its loss has it.

    Policy and reference run in the precision of the run, and the data is read as the run read its own, whatever its
    layout. Raises RunError for a run without pairs or not finished.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = run.recipe
    loss = LOSSES.get(recipe.get("loss_type", ""))
    if loss is None or loss.per != "pair":
        raise RunError(f"{run.folder} was not trained on pairs: score its answers with logps.")
    policy, start = find_model(run.folder), find_model(recipe["model"])
    chosen = run.choices
    dtype: torch.dtype = getattr(torch, chosen.get("dtype", "float32"))
    reading: Any = {k: recipe[k] for k in (*LIMITS, "on_bad") if k in recipe} | manner_of(run.folder)
    store, account = _read(policy, data, reading)
    trunk = _trunk(policy, store, dtype)
    after = _logps(trunk, store, dtype, progress)
    before = np.zeros_like(after)
    if loss.needs_reference:
        if trunk.adapted and start.adapter is None:  # the reference is the base that the adapter sits on
            with trunk.role(None):
                before = _logps(trunk, store, dtype, progress)
        else:
            before = _logps(_trunk(start, store, dtype), store, dtype, progress)
    flat = (torch.from_numpy(x).flatten() for x in (after, before, _tokens(store)))
    pair = implied(PairBatch.from_completions(*flat), loss, beta=recipe["beta"])
    return paired(store, torch.stack(pair, 1).numpy(), account)


def _read(source: Source, data: str | Path, reading: Reading) -> tuple[GroupStore, dict[str, Any]]:
    tokenizer = load_tokenizer(source)
    records = formats.read(
        data,
        kind="pairs",
        split=reading.get("data_split"),
        columns=reading.get("columns"),
        on_bad=reading.get("on_bad", "content"),
    )
    encoder = Encoder(
        tokenizer,
        Truncation(*(reading.get(name) for name in LIMITS)),  # type: ignore[arg-type]
        eos_ids=eos_ids_of(generation_config(source), tokenizer),
        template=reading.get("template", "auto"),
        template_kwargs=reading.get("template_kwargs"),
        day=reading.get("day"),
        on_bad=reading.get("on_bad", "content"),
    )
    report = EncodeReport()
    store = GroupStore.build(encoder.encode(records, report), 2)
    if not len(store):
        raise ValueError(f"{data} holds no pair to score ({records.counts}; {'; '.join(encoded(report.to_dict()))})")
    return store, {"data": str(data), "read": records.describe(), "tokens": report.to_dict()}


def _trunk(source: Source, store: GroupStore, dtype: torch.dtype) -> Trunk:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = int(store.lengths.max())
    return load_policy(source, compute=dtype, adapter=None, device=device, max_length=longest)[0].eval()


def _logps(trunk: Trunk, store: GroupStore, dtype: torch.dtype, progress: Callable[[int], None] | None) -> np.ndarray:
    autocast = None if dtype == torch.float32 else dtype
    return sequence_logps(trunk, store, budget=PAIR_BUDGET, autocast=autocast, progress=progress)


def _tokens(store: GroupStore) -> np.ndarray:
    return np.asarray([[int(m.sum()) for m in g.masks] for g in store], np.int64)


def paired(store: GroupStore, scores: np.ndarray, account: dict[str, Any]) -> PairScores:
    """Scores [n, 2] with what the store of these pairs says of them."""
    return PairScores(
        scores=scores.astype(np.float64),
        tokens=_tokens(store),
        labels=store.labels.copy(),
        prompts=store.prompt_keys.copy(),
        sources=[g.source for g in store],
        account=account,
    )
