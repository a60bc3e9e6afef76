"""Answers as a model's own last hidden states, averaged over each answer: what a small model of preferences reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from prefiere.data.schema import Demonstration, Text
from prefiere.evaluate.manner import manner_of
from prefiere.models.check.weights import ids_fit
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.measure import Budget, measure
from prefiere.models.source import find_model, positions
from prefiere.models.trunk import Trunk
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.tokenizer import eos_ids_of
from prefiere.tokens.truncation import EncodeReport, Truncation

MAX_LENGTH = 1024
"""Tokens of prompt and answer; longer ones are cut as in training."""


def mean_states(
    trunk: Trunk,
    groups: Sequence[PromptGroup],
    *,
    budget: Budget,
    compute: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """float32 [n, k, H]: of each completion the mean of the last hidden states that predict its scored tokens."""
    k = len(groups[0].completions)

    def forward(batch: PackedBatch) -> Tensor:
        return trunk.states(batch, batch.predictor_N, batch.owner_N, None, batch.reads)

    def averaged(states_NH: Tensor, batch: PackedBatch) -> dict[str, Tensor]:
        sums_CH = states_NH.new_zeros(batch.completions, states_NH.shape[1], dtype=torch.float32)
        sums_CH.index_add_(0, batch.owner_N, states_NH.float())
        return {"mean": (sums_CH / batch.scored_C.clamp(min=1)[:, None]).view(len(batch.index_G), k, -1)}

    found: np.ndarray | None = None
    for part in measure(trunk, groups, forward, averaged, budget=budget, compute=compute, progress=progress):
        mean = part.arrays["mean"]
        if found is None:
            found = np.zeros((len(groups), *mean.shape[1:]), np.float32)
        found[list(part.groups)] = mean
    assert found is not None
    return found


def answer_features(
    name: str,
    said: Sequence[tuple[Text, Text]],
    *,
    trust: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """float32 [n, H]: the mean hidden states of answers (prompt, answer) under a model; zeros for one without a token.

    progress: is told how many answers are done. Raises ValueError where the model cannot be used.
    """
    source = find_model(name, trust=trust)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(source)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(source, dtype=dtype, device=device)
    ids_fit(model, tokenizer, source.base)
    room = Truncation(min(MAX_LENGTH, positions(source) or MAX_LENGTH))
    encoder = Encoder(tokenizer, room, eos_ids=eos_ids_of(model, tokenizer), on_bad="drop", **manner_of(name))
    records = (Demonstration(prompt=p, completion=a, source=str(i)) for i, (p, a) in enumerate(said))
    groups = list(encoder.encode(records, EncodeReport()))
    found = np.zeros((len(said), model.config.get_text_config().hidden_size), np.float32)
    if groups:
        states = mean_states(Trunk(model, packed=False), groups, budget=Budget(8192), progress=progress)
        found[[int(g.source) for g in groups]] = states[:, 0]
    return found
