"""Log-probs of targets straight from hidden states: LM head and log-softmax in chunks, never a full logits tensor.

log p(t | h) = z_t - log sum_v exp(z_v), with z = cap(scale * (h W^T + b)) / temperature.

The forward goes through the targets in chunks and keeps h and the log-sum-exp. The gradient of log p with respect to h
does not depend on the loss and is all that a frozen head needs: it is computed on the way, and the backward multiplies.
With a trained head the backward goes through chunks of the vocabulary: each part of the weight's gradient is then one
product over all targets, and nothing of the weight's size is added up in parts. It computes the logits again where they
are too many to keep.

Suffixes: _N targets, _H hidden, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefiere.kernels.matmul import Products, compute_dtype

CHUNK_BYTES = 32 * 2**20
"""Size of one chunk's logits in fp32."""
KEPT_BYTES = 64 * 2**20
"""Logits of up to this size, in the dtype of products, are kept for the backward of a trained head."""


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
        """Logits of any shape -> the same shape."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits

    def backward(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Gradient before the transform, given the gradient and the values after it, all of one shape."""
        if self.scale != self.temperature:
            grad = grad * (self.scale / self.temperature)
        if self.softcap is not None:
            grad = grad * (1 - (logits * (self.temperature / self.softcap)).square())
        return grad


def _summary(z: Tensor, target: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    lse = torch.logsumexp(z, -1)
    picked = z.gather(-1, target[:, None])[:, 0]
    correct = (picked >= z.amax(-1)).float()
    entropy = lse - (torch.softmax(z, -1) * z).sum(-1) if want_entropy else None
    return picked - lse, lse, correct, entropy


class _HeadLogprobs(torch.autograd.Function):
    """Log-probs, whether the target is the mode, and entropy (empty unless asked for): each [N], fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        transform: LogitTransform,
        want_entropy: bool,
        chunk_bytes: int,
        compute: torch.dtype,
        learning: bool,
        products: Products,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cast = weight.to(compute)
        need_hidden, need_weight, need_bias = (learning and n for n in ctx.needs_input_grad[:3])
        ahead = need_hidden and not need_weight and not need_bias
        logp, lse, correct = (torch.empty(hidden.shape[0], device=hidden.device) for _ in range(3))
        entropy = torch.empty_like(logp) if want_entropy else logp.new_empty(0)
        slope = torch.empty_like(hidden) if ahead else None
        shape = hidden.shape[0], weight.shape[0]
        keep = learning and not ahead and shape[0] * shape[1] * compute.itemsize <= KEPT_BYTES
        kept = torch.empty(shape, dtype=compute, device=hidden.device) if keep else None
        for part in _parts(hidden.shape[0], 4 * weight.shape[0], chunk_bytes):
            raw = products.matmul(hidden[part].to(compute), cast.T)
            if kept is not None:
                kept[part] = raw
            z = transform(_logits(raw, bias))
            p, top = torch.softmax(z, -1), z.amax(-1)
            # The largest probability is exp(top - lse), at least 1 / V: its logarithm loses nothing.
            lse[part] = top - torch.log(p.amax(-1))
            picked = z.gather(-1, target[part, None])[:, 0]
            logp[part] = picked - lse[part]
            correct[part] = (picked >= top).float()
            if want_entropy:
                entropy[part] = lse[part] - (p * z).sum(-1)
            if slope is not None:
                p.scatter_(1, target[part, None], torch.expm1(logp[part])[:, None])
                slope[part] = products.matmul(transform.backward(p, z).to(compute), cast).neg_()
        ctx.ahead, ctx.transform, ctx.chunk_bytes, ctx.compute = ahead, transform, chunk_bytes, compute
        ctx.products = products
        if ahead:
            ctx.save_for_backward(slope)
        elif learning:
            ctx.save_for_backward(hidden, weight, bias, target, lse, logp, kept)
        ctx.mark_non_differentiable(correct, entropy)
        return logp, correct, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.ahead:
            (slope,) = ctx.saved_tensors
            return (slope * grad_logp[:, None]).to(slope.dtype), *([None] * 9)
        hidden, weight, bias, target, lse, logp, kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        compute, product, h = ctx.compute, ctx.products.matmul, hidden.to(ctx.compute)
        pulled = (hidden * -grad_logp[:, None]).to(compute) if need_weight else None
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias and bias is not None else None
        for part in _parts(weight.shape[0], 4 * hidden.shape[0], ctx.chunk_bytes):
            cast = weight[part].to(compute)
            raw = product(h, cast.T) if kept is None else kept[:, part]
            z = ctx.transform(_logits(raw, None if bias is None else bias[part]))
            # p - 1 at the target, p elsewhere: minus the gradient of log p with respect to z.
            p = (z - lse[:, None]).exp_()
            place = (target - part.start).clamp(0, z.shape[1] - 1)[:, None]
            mine = ((target >= part.start) & (target < part.stop))[:, None]
            p.scatter_(1, place, torch.where(mine, torch.expm1(logp)[:, None], p.gather(1, place)))
            p = ctx.transform.backward(p, z)
            if grad_bias is not None:
                grad_bias[part] = -(grad_logp @ p).to(bias.dtype)
            p = p.to(compute)
            if grad_weight is not None and pulled is not None:
                grad_weight[part] = product(p.T, pulled)
            if grad_hidden is not None:
                grad_hidden += product(p, cast)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(-grad_logp[:, None]).to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, *([None] * 7)


def _logits(raw: Tensor, bias: Tensor | None) -> Tensor:
    z = raw.float()
    return z if bias is None else z + bias.float()


def _parts(size: int, bytes_each: int, chunk_bytes: int) -> list[slice]:
    step = max(16, chunk_bytes // max(1, bytes_each))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


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
    products: Products | None = None,
) -> TargetLogprobs:
    """log p(target_n | hidden_n) [N] for a plain linear head: hidden states [N, H], weight [V, H], bias [V], ids [N].

    Exact with a bias, a tied or frozen weight (no gradient is computed for a frozen one), and any `LogitTransform`.
    Matrix products run in the autocast dtype where autocast is on, else in the dtype of ``hidden_NH``; ``products``
    says through which library (PyTorch's default without). chunk_bytes: size of one chunk's logits.
    """
    out = _HeadLogprobs.apply(
        hidden_NH,
        weight_VH,
        bias_V,
        target_N,
        transform or LogitTransform(),
        entropy,
        chunk_bytes,
        compute_dtype(hidden_NH),
        torch.is_grad_enabled(),
        products or Products(),
    )
    logp, correct, spread = out
    return TargetLogprobs(logp, correct, spread if entropy else None)


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
    """The same for any head (LoRA on it, quantized), which takes hidden states [n, H] and returns logits [n, V].

    Each chunk of the ``hidden_NH`` [N, H] and targets [N] is recomputed in the backward by checkpointing.
    """
    change = transform or LogitTransform()

    def chunk(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        logp, _, correct, ent = _summary(change(head(h).float()), t, entropy)
        return logp, correct.detach(), None if ent is None else ent.detach()

    rows = max(16, chunk_bytes // (4 * vocabulary))
    parts = [
        checkpoint(chunk, h, t, use_reentrant=False)
        for h, t in zip(hidden_NH.split(rows), target_N.split(rows), strict=True)
    ]
    logp, correct = (torch.cat([p[i] for p in parts]) for i in range(2))
    return TargetLogprobs(logp, correct, torch.cat([p[2] for p in parts]) if entropy else None)
