"""Whether a model can be trusted with packed rows: compared with plain forwards when it is loaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefiere.asked.language import in_words
from prefiere.kernels import attention
from prefiere.kernels.last_layer import untrim
from prefiere.models.trunk import Trunk
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch, pack


def _log_probs(trunk: Trunk, batch: PackedBatch) -> Tensor:
    logp_N: Tensor = trunk(batch).logp_N
    return logp_N


@torch.no_grad()
def probe(
    model: PreTrainedModel, max_length: int, read: Callable[[Trunk, PackedBatch], Tensor] = _log_probs
) -> str | None:
    """Compare a packed row with plain forwards, beyond the model's window if rows can be that long.

    ``read`` gives a number for each target [N] (default: its log-prob).

    None where they agree; otherwise why packed rows cannot be trusted with this model. A model whose last layer cannot
    skip rows is compared again, and from then on used, with every row in every layer.
    """
    reason = _compare(model, max_length, read)
    if reason is not None and untrim(Trunk(model).decoder):
        reason = _compare(model, max_length, read)
    return reason


def _compare(model: PreTrainedModel, max_length: int, read: Callable[[Trunk, PackedBatch], Tensor]) -> str | None:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    long = window + 9 if 0 < window < max_length else 24
    long = min(long, int(getattr(config, "max_position_embeddings", 10**9)) - 16)
    rng = np.random.default_rng(0)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, config.vocab_size, n).astype(np.int32)

    groups = [
        PromptGroup(p, c, tuple(np.ones(len(x), bool) for x in c))
        for p, c in [(tokens(max(1, long)), (tokens(7), tokens(11))), (tokens(5), (tokens(3), tokens(2)))]
    ]
    batch = pack(groups).to(model.device)
    was_training, before = model.training, model.config._attn_implementation
    model.eval()
    plain = read(Trunk(model, packed=False), batch)
    try:
        model.set_attn_implementation(attention.NAME)
        packed = read(Trunk(model, packed=True), batch)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as e:
        return in_words("why.no_packed", model=type(model).__name__, why=str(e).splitlines()[0])
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
    # The yardstick is what a lost prompt would change: the error has to be far below it.
    alone = pack([PromptGroup(g.prompt[-1:], g.completions, g.masks) for g in groups]).to(model.device)
    lost = (read(Trunk(model, packed=False), alone) - plain).abs().mean()
    error = (packed - plain).abs()
    owners = batch.owner_N
    worst = max(float(error[owners == c].median()) for c in range(batch.completions))
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    if not worst <= tolerance * float(lost) + 1e-6:
        return in_words("why.packed_differ", model=type(model).__name__, by=f"{worst:.2g}")
    return None
