"""A rollout: answers sampled from the policy, their rewards, and what every role says of each of their tokens.

Each process samples and scores its share of the prompts; then all know the whole rollout, so that whatever is a
statistic of the update (a baseline, whitening) is computed from the same numbers everywhere.

Suffixes: _C completions, _N their tokens in a row, _CL completions x tokens, padded on the right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefiere.algorithms.ahead import Ahead
from prefiere.models.measure import Found
from prefiere.models.reference import Reference
from prefiere.models.trunk import CRITIC
from prefiere.sample.sampling import Rollouts, Sample, Sampling, by_all
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.train.engine import Engine, TrainingError


@dataclass
class Rollout:
    """Prompts with k sampled completions each (completion c = group * k + i), and arrays over them.

    first_C: int64 [C + 1], where each completion's tokens begin in arrays over all tokens [N]. reward_C: float64 [C],
    as the reward model gives them. each_CM: float64 [C, M], those of each of M reward models. ended_C: bool [C], an
    end token was reached. tokens: float32 [N] each, in nats: ``sampled`` (the sampler's log-probs), ``logp`` (the
    policy's before any update, by the training forward), ``ref`` (the reference's), ``entropy`` (the policy's),
    ``value`` (the critic's, in rewards) where there is one, and ``weight`` (`truncated_weight`) where other weights
    than the policy's drew the answers. behind_C: int64 [C],
    updates that the weights which drew a completion are behind the policy. seconds: of sampling, scoring and measuring.
    """

    store: GroupStore
    first_C: np.ndarray
    reward_C: np.ndarray
    each_CM: np.ndarray
    ended_C: np.ndarray
    tokens: dict[str, np.ndarray]
    behind_C: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Completions of a prompt."""
        return self.store.k

    @property
    def length_C(self) -> np.ndarray:
        """int64 [C]: tokens of each completion."""
        return np.diff(self.first_C)

    def places(self, groups: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64: where the tokens of these groups' completions stand in arrays over all tokens, in a batch's order."""
        bounds = self.first_C[:: self.k]
        return np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in np.asarray(groups)])

    def keep(self, found: Iterable[Found[str]]) -> None:
        """Take up numbers of tokens that micro-batches gave."""
        for part in found:
            at = self.places(part.groups)
            for name, values in part.arrays.items():
                self.tokens.setdefault(name, np.full(int(self.first_C[-1]), np.nan, np.float32))[at] = values

    def mask(self) -> Tensor:
        """bool [C, L]: where a completion has a token."""
        lengths = torch.from_numpy(self.length_C)
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(self, values_N: np.ndarray) -> Tensor:
        """float64 [C, L]: numbers of all tokens as rows of completions, 0 beyond their ends."""
        mask = self.mask()
        out = torch.zeros(mask.shape, dtype=torch.float64)
        out[mask] = torch.from_numpy(values_N).double()
        return out

    def flat(self, values_CL: Tensor) -> np.ndarray:
        """float32 [N]: rows of completions [C, L] as numbers of all tokens, without what is beyond their ends."""
        return values_CL[self.mask()].float().numpy()


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's draws."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


class Dealt(NamedTuple):
    """What one process samples: ``samples`` answers to each of these prompts [n], from answer ``first`` on."""

    prompts: np.ndarray
    first: int
    samples: int


def shares(groups: int, k: int, rank: int, size: int, *, split: bool) -> list[Dealt]:
    """What process ``rank`` of ``size`` samples of k answers to each of so many prompts; ``split``: a prompt's answers
    may come from several processes, and where prompts cannot be dealt out evenly, they do."""
    if not split or groups % size == 0:
        return [Dealt(np.arange(groups)[rank::size], 0, k)]
    begin, end = (n * groups * k // size for n in (rank, rank + 1))
    found = list[Dealt]()
    for at in sorted({begin, min(end, -(-begin // k) * k), max(begin, end // k * k)} - {end}):
        first = at % k
        whole = (end - at) // k if first == 0 else 0
        count = k if whole else min(k - first, end - at)
        found.append(Dealt(at // k + np.arange(max(1, whole)), first, count))
    return found


def collect(
    engine: Engine,
    rollouts: Rollouts,
    prompts: Sequence[np.ndarray],
    number_G: np.ndarray,
    sampling: Sampling,
    score: Callable[[Sequence[int], Sequence[np.ndarray]], np.ndarray],
    *,
    version: int,
    ahead: Ahead | None = None,
) -> Rollout:
    """Sample completions of these prompts (int32 ids each) from the policy as it is now, and score them.

    number_G: int64 [G], the prompts' numbers in the data, and in the random stream. score: prompts' numbers and
    completions' tokens -> float64 [n, M]. version: of the policy (`Rollouts`), which is the step as well. ahead:
    asks for the next step's answers meanwhile, so that answers may be an update behind. Log-probs are not there yet:
    see `measure_roles`. Raises TrainingError where an answer comes from another version, and EndpointError, in every
    process, where a server fails one of them.
    """
    began = time.perf_counter()
    # The answers of one prompt split where they come from the trunk: a server draws them all from one seed.
    mine = shares(len(prompts), sampling.samples, engine.world.rank, engine.world.size, split=rollouts.limit is None)

    def draw() -> list[tuple[int, Sample]]:
        rollouts.publish(engine.trunk, version)
        waiting, found = ahead.take(version) if ahead is not None else None, list[tuple[int, Sample]]()
        for at, first, count in mine:
            how, asked = replace(sampling, samples=count, first=first), [prompts[i] for i in at]
            own = waiting or rollouts.sample(asked, how, version=version, numbers=number_G[at].tolist())
            found += [(int(at[s.prompt]), replace(s, sample=first + s.sample)) for s in own]
        if ahead is not None:
            ahead.ask(version + 1, version)
        return found

    drawn = by_all(engine.world, draw)
    sampled = time.perf_counter()
    each = score([int(number_G[i]) for i, _ in drawn], [s.tokens for _, s in drawn])
    parts = [(i, s, one) for (i, s), one in zip(drawn, each, strict=True)]
    parts = sorted(engine.world.gather(parts), key=lambda p: (p[0], p[1].sample))
    others = {s.version for _, s, _ in parts} - {version, version - (ahead is not None)}
    if others:  # all processes know of all answers, and stop together
        raise TrainingError(f"answers came from version {min(others)} of the policy, and version {version} was asked")
    rollout = _arranged(prompts, [s for _, s, _ in parts], np.stack([e for _, _, e in parts]), sampling.samples)
    rollout.behind_C = np.asarray([version - s.version for _, s, _ in parts])
    rollout.seconds = {"sampling": sampled - began, "scoring": time.perf_counter() - sampled}
    return rollout


def _arranged(prompts: Sequence[np.ndarray], samples: Sequence[Sample], each_CM: np.ndarray, k: int) -> Rollout:
    groups = []
    for i, prompt in enumerate(prompts):
        own = samples[i * k : (i + 1) * k]
        masks = tuple(np.ones(len(s.tokens), bool) for s in own)
        groups.append(PromptGroup(prompt, tuple(s.tokens for s in own), masks))
    first = np.concatenate([[0], np.cumsum([len(s.tokens) for s in samples])]).astype(np.int64)
    tokens = {"sampled": np.concatenate([s.logp for s in samples])}
    ended = np.asarray([s.ended for s in samples])
    return Rollout(GroupStore.build(groups, k), first, each_CM.mean(1), each_CM, ended, tokens)


def measure_roles(
    engine: Engine,
    reference: Reference,
    rollout: Rollout,
    parts: Sequence[np.ndarray],
    *,
    temperature: float,
    critic: bool,
    policy: bool,
) -> None:
    """Compute what policy, reference and critic say of each token before any update, into ``rollout.tokens``.

    The policy runs on the batches ``parts`` of the first epoch, cut as their updates will cut them: on the first pass
    the ratio of new to old is then 1, exactly. policy: false where the only update there is will say so itself.
    """
    began = time.perf_counter()

    def roles(batch: PackedBatch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if policy:
            own = engine.trunk(batch, temperature=temperature, entropy=True)
            found = {"logp": own.logp_N, "entropy": own.entropy_N}
        with reference.live() as frozen:
            found["ref"] = frozen(batch, temperature=temperature).logp_N
        if critic:
            found["value"] = engine.trunk.values(batch, CRITIC)
        return found

    for members in parts:
        rollout.keep(engine.each(rollout.store, members, roles, lambda found, batch: found))
    rollout.seconds["measuring"] = time.perf_counter() - began


def minibatches(groups: int, count: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The groups of each minibatch of an epoch over a rollout: a fresh permutation, cut into ``count`` even parts."""
    order = np.random.default_rng([seed, epoch]).permutation(groups)
    cuts = np.linspace(0, groups, min(count, groups) + 1).astype(int)
    return [order[a:b] for a, b in pairwise(cuts)]
