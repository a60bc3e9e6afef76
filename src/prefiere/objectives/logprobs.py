"""Log-probs of targets straight from hidden states: LM head and log-softmax in chunks, never a full logits tensor.

log p(t | h) = z_t - log sum_v exp(z_v), with z = cap(scale * (h W^T + b)) / temperature. The forward keeps h and the
log-sum-exp only; the backward computes each chunk's logits again.

Suffixes: _N targets, _H hidden, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 32 * 2**20
"""Size of one chunk's logits in fp32: small enough for buffers to be reused from the cache of freed memory."""


class TargetLogprobs(NamedTuple):
    """logp_N: natural log-probs, fp32, differentiable. entropy_N (nats) and correct_N (the target is the mode, 0 or 1)
    carry no gradient; entropy_N is None unless asked for."""

    logp_N: Tensor
    correct_N: Tensor
    entropy_N: Tensor | None


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to its logits after the head: z = softcap * tanh(scale * z / softcap), then / temperature."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits

    def backward(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Gradient before the transform, given the gradient and the values after it."""
        grad = grad * (self.scale / self.temperature)
        if self.softcap is not None:
            grad = grad * (1 - (logits * (self.temperature / self.softcap)).square())
        return grad


def _rows(vocabulary: int, chunk_bytes: int) -> int:
    return max(16, chunk_bytes // (4 * vocabulary))


def _summary(z: Tensor, target: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    lse = torch.logsumexp(z, -1)
    picked = z.gather(-1, target[:, None])[:, 0]
    correct = (picked >= z.amax(-1)).float()
    entropy = lse - (torch.softmax(z, -1) * z).sum(-1) if want_entropy else None
    return picked - lse, lse, correct, entropy


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        transform: LogitTransform,
        want_entropy: bool,
        rows: int,
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        cast = weight.to(compute)
        parts = []
        for h, t in zip(hidden.split(rows), target.split(rows), strict=True):
            z = (h.to(compute) @ cast.T).float()
            parts.append(_summary(transform(z if bias is None else z + bias.float()), t, want_entropy))
        logp, lse, correct = (torch.cat([p[i] for p in parts]) for i in range(3))  # type: ignore[misc]
        entropy = torch.cat([p[3] for p in parts]) if want_entropy else None  # type: ignore[misc]
        ctx.save_for_backward(hidden, weight, bias, target, lse)
        ctx.transform, ctx.rows, ctx.compute = transform, rows, compute
        ctx.mark_non_differentiable(correct, *([entropy] if entropy is not None else []))
        return logp, correct, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, *_: Any) -> tuple[Any, ...]:
        hidden, weight, bias, target, lse = ctx.saved_tensors
        cast = weight.to(ctx.compute)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Accumulated in fp32: rounding each chunk to bf16 would bias the sum.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            h = hidden[part].to(ctx.compute)
            z = (h @ cast.T).float()
            z = ctx.transform(z if bias is None else z + bias.float())
            grad = torch.exp(z - lse[part, None]).neg_()
            grad.scatter_add_(1, target[part, None], torch.ones_like(grad[:, :1]))
            grad = ctx.transform.backward(grad.mul_(grad_logp[part, None]), z)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(ctx.compute)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ cast
            if grad_weight is not None:
                grad_weight += grad.T @ h
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *([None] * 5),
        )


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


@torch.compiler.disable
def linear_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform | None = None,
    entropy: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> TargetLogprobs:
    """log p(target_n | hidden_n) for a plain linear head.

    Exact with a bias, a tied or frozen weight (no gradient is computed for a frozen one), and any `LogitTransform`.
    Matrix products run in the autocast dtype where autocast is on, else in the dtype of ``hidden_NH``.
    """
    out = _Linear.apply(
        hidden_NH,
        weight_VH,
        bias_V,
        target_N,
        transform or LogitTransform(),
        entropy,
        _rows(weight_VH.shape[0], chunk_bytes),
        _compute_dtype(hidden_NH),
    )
    return TargetLogprobs(*out)


@torch.compiler.disable
def module_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden_NH: Tensor,
    target_N: Tensor,
    *,
    vocabulary: int,
    transform: LogitTransform | None = None,
    entropy: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> TargetLogprobs:
    """The same for any head (LoRA on it, quantized): each chunk is recomputed in the backward by checkpointing."""
    change = transform or LogitTransform()

    def chunk(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        logp, _, correct, ent = _summary(change(head(h).float()), t, entropy)
        return logp, correct.detach(), None if ent is None else ent.detach()

    rows = _rows(vocabulary, chunk_bytes)
    parts = [
        checkpoint(chunk, h, t, use_reentrant=False)
        for h, t in zip(hidden_NH.split(rows), target_N.split(rows), strict=True)
    ]
    logp, correct = (torch.cat([p[i] for p in parts]) for i in range(2))
    return TargetLogprobs(logp, correct, torch.cat([p[2] for p in parts]) if entropy else None)
