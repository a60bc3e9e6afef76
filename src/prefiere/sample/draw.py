"""Draw tokens so that each draw depends only on (seed, prompt id, sample, position), in few passes over a vocabulary.

Each draw has its own counter-based random number, so that grouping prompts, dropping rows or adding processes changes
no token, and two models asked with the same seed meet the same luck.

Suffixes: _R rows (answers that are being drawn), _V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prefiere.sample.sampling import Sampling, Vocabulary

BLOCK = 256


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


def inverse_cdf(mass_RV: Tensor, u_R: Tensor) -> Tensor:
    """The first index [R] at which the running sum of ``mass_RV`` (>= 0, not all 0) passes u times the whole.

    A row's sum is searched block by block, then within the block, in float64: a running sum over a whole vocabulary
    would cost more than the model. An index without mass is never drawn.
    """
    rows, size = mass_RV.shape
    blocks = torch.nn.functional.pad(mass_RV, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    block, rest = _passes(blocks.sum(-1, dtype=torch.float64), u_R)
    within = blocks[torch.arange(rows, device=blocks.device), block].double()
    return block * BLOCK + _passes(within, rest)[0]


def _passes(mass_RV: Tensor, u_R: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum passes the share u of the whole, and which share of that entry is passed over."""
    running = mass_RV.cumsum(-1)
    whole = running[:, -1]
    aim = torch.minimum(u_R * whole, torch.nextafter(whole, torch.zeros_like(whole)))[:, None]
    at = torch.searchsorted(running, aim, right=True)
    own = mass_RV.gather(-1, at)
    return at[:, 0], ((aim - (running.gather(-1, at) - own)) / own).clamp_(0, 1)[:, 0]


def draw(
    logits_RV: Tensor,
    sampling: Sampling,
    vocabulary: Vocabulary,
    number_R: np.ndarray,
    sample_R: np.ndarray,
    position: int,
) -> tuple[Tensor, Tensor]:
    """The next token of each row [R] and its log-prob [R] in nats, before the nucleus is cut. Logits are overwritten.

    number_R, sample_R: int64, the number of each row's prompt in the random stream, and of its answer. position: how
    many tokens the answers have so far.
    """
    logits = logits_RV.float()
    if vocabulary.forbidden:
        logits[:, list(vocabulary.forbidden)] = float("-inf")
    if sampling.temperature not in (0.0, 1.0):
        logits /= sampling.temperature
    choice = logits.argmax(-1)
    mass = logits.sub_(logits.gather(-1, choice[:, None])).exp_()
    if sampling.temperature > 0:
        u = uniforms(sampling.seed, number_R, sample_R, position)
        u_R = torch.from_numpy(u).to(mass.device, non_blocking=True)
        choice = inverse_cdf(_nucleus(mass, sampling.top_p), u_R)
    return choice, (mass.gather(-1, choice[:, None])[:, 0] / mass.sum(-1)).log()


def _nucleus(mass_RV: Tensor, top_p: float) -> Tensor:
    """The mass of the likeliest tokens that together reach the share ``top_p``; none elsewhere."""
    if top_p >= 1.0:
        return mass_RV
    ordered, order = mass_RV.double().sort(-1, descending=True)
    running = ordered.cumsum(-1)
    keep = running - ordered < top_p * running[:, -1:]
    return torch.zeros_like(mass_RV).scatter_(-1, order, (ordered * keep).to(mass_RV.dtype))
