"""Methods that learn from their own answers: each step samples a rollout, assigns advantages, and updates on it.

Algorithms differ in how rewards become advantages and in whether there is a critic: a file each. All else is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from prefiere.algorithms.advantages import Advantages, Estimator, RewardScale, advantages_of, spread_of
from prefiere.algorithms.ahead import Ahead, Request
from prefiere.algorithms.policy_loss import Policy
from prefiere.algorithms.rollout import Rollout, collect, measure_roles, minibatches, step_seed
from prefiere.asked.endpoint import EndpointError
from prefiere.evaluate.functions import Answered
from prefiere.evaluate.judges import Judge, short_names, spread
from prefiere.models.critic import rescale_critic
from prefiere.models.reference import Reference
from prefiere.objectives.masked import masked_moments
from prefiere.objectives.ppo import AdaptiveKL, explained_variance, kl_k3, truncated_weight
from prefiere.plan.examples import PromptData, Prompts
from prefiere.run import Stop
from prefiere.sample.sampling import Sampling
from prefiere.sample.served import others_weights
from prefiere.settings import PolicyGradient
from prefiere.stats import Moments
from prefiere.tokens.schedule import members
from prefiere.train.engine import Update
from prefiere.train.objective import Objective
from prefiere.train.setup import Session

MAX_DRIFT = 0.05
"""Nats per token between this process's sampling and training, above which a run says so: bf16 stays within a few
hundredths."""


@dataclass
class OnPolicy:
    """Sample, score, reinforce.

    estimate: how rewards become advantages. objectives: what the updates on a rollout minimise, at a step. critic:
    whether there is one. kl: the coefficient of the KL in the reward, fixed or steered.
    """

    session: Session
    settings: PolicyGradient
    prompts: Prompts
    rewards: Judge
    reference: Reference
    estimate: Estimator
    objectives: Callable[[Rollout, Advantages, int], list[Objective]]
    critic: bool = False
    guarded: bool = True
    shown: str = "reward"
    scale: RewardScale = field(default_factory=RewardScale)
    kl: AdaptiveKL | None = None
    episodes: int = 0
    drifted: bool = False

    def __post_init__(self) -> None:
        s = self.settings
        self.ahead = Ahead(self.session.rollouts, self._request) if s.max_staleness else None
        self.kl = AdaptiveKL(s.kl_coef, s.target_kl or 1.0, s.kl_horizon)

    @classmethod
    def of(
        cls,
        session: Session,
        estimate: Estimator,
        objectives: Callable[[Rollout, Advantages, int], list[Objective]] | None = None,
        *,
        critic: bool = False,
    ) -> OnPolicy:
        """The algorithm of a session; its updates minimise the policy's loss, unless ``objectives`` says otherwise."""
        settings = session.settings
        assert isinstance(settings, PolicyGradient)
        assert isinstance(session.data, PromptData)
        assert session.reward is not None
        assert session.reference is not None

        def alone(rollout: Rollout, advantages: Advantages, step: int) -> list[Objective]:
            return [Policy(rollout, advantages, settings)]

        return cls(
            session,
            settings,
            session.data.train,
            session.reward,
            session.reference,
            estimate,
            objectives or alone,
            critic,
        )

    @property
    def examples(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self, step: int) -> Update:
        """A rollout and the updates on it. Raises EndpointError, before any of them, where a server's answers are none
        to learn from."""
        s = self.settings
        first = self._minibatches(step, 0)
        rollout = self._rollout(step, first)
        self._near(rollout)
        unscaled = self.scale.std is None
        score_C = self.scale(rollout.reward_C, rollout.ended_C, s)
        assert self.kl is not None
        scaled_now = unscaled and self.scale.std is not None and self.critic
        if scaled_now and rescale_critic(
            self.session.trunk, self.scale.std or 1.0
        ):  # what it said of this rollout, too
            rollout.tokens["value"] /= self.scale.std
        advantages = advantages_of(rollout, score_C, self.kl.coef, self.estimate, whitened=s.whiten_advantages)
        began = time.perf_counter()
        done, stopped = self._learn(step, rollout, advantages, first)
        learnt = time.perf_counter() - began
        metrics = self._metrics(rollout, advantages)
        self._watch_sampler(metrics["sampler_drift"].mean)
        metrics |= {n: _merged([u.metrics[n] for u in done if n in u.metrics]) for n in _names(done)}
        metrics |= {f"time/{n}": Moments.of([x]) for n, x in rollout.seconds.items()}
        metrics |= {"time/learning": Moments.of([learnt])}
        metrics |= {"policy/early_stops": Moments.of([float(stopped)]), "kl_coef": Moments.of([self.kl.coef])}
        self.episodes += len(rollout.reward_C)
        metrics |= {"episodes": Moments.of([self.episodes])}
        if s.target_kl is not None:
            self.kl.update(metrics["objective/kl_k1"].mean, len(score_C))
        tokens = sum(u.tokens for u in done)
        return Update(done[-1].loss, metrics, done[-1].grad_norm, tokens, sum(u.microbatches for u in done))

    def _minibatches(self, step: int, epoch: int) -> list[np.ndarray]:
        s = self.settings
        groups = len(self._chosen(step))
        return minibatches(groups, s.num_mini_batches, seed=step_seed(s.seed, step), epoch=epoch)

    def _chosen(self, step: int) -> np.ndarray:
        return members(len(self.prompts), self.settings.batch_size, seed=self.settings.seed, step=step)

    def _rollout(self, step: int, parts: Sequence[np.ndarray]) -> Rollout:
        s, session = self.settings, self.session
        chosen = self._chosen(step)
        asked, score = [self.prompts.ids[int(i)] for i in chosen], partial(self._score, step)
        rollout = collect(
            session.engine, session.rollouts, asked, chosen, self._sampling(step), score,
            version=step, ahead=self.ahead,
        )  # fmt: skip
        rollout.reward_C = self.rewards.combined(rollout.each_CM)
        measure_roles(
            session.engine, self.reference, rollout, parts, temperature=s.temperature, critic=self.critic,
            policy=not self._says_itself(parts),
        )  # fmt: skip
        if session.rollouts.limit is not None:
            logp, sampled = (torch.from_numpy(rollout.tokens[n]) for n in ("logp", "sampled"))
            rollout.tokens["weight"] = truncated_weight(logp, sampled).numpy()
        return rollout

    def _sampling(self, step: int) -> Sampling:
        s = self.settings
        seed = step_seed(s.seed, step)
        return Sampling(s.num_generations, s.temperature, max_new_tokens=s.max_new_tokens, seed=seed)

    def _request(self, step: int) -> Request | None:
        """What this process asks for in a step; None beyond the last one."""
        if step >= self.session.total_steps:
            return None
        world = self.session.world
        mine = self._chosen(step)[world.rank :: world.size].tolist()
        return Request([self.prompts.ids[i] for i in mine], mine, self._sampling(step))

    def _near(self, rollout: Rollout) -> None:
        """Raise EndpointError where training says something else of these answers than the server that drew them. Of
        answers from weights of before nothing is known: then each version was tried as it was published."""
        limit = self.session.rollouts.limit
        if limit is None or rollout.behind_C.any():
            return
        drift = float(np.abs(rollout.tokens["sampled"] - rollout.tokens["logp"]).mean())
        if drift > limit:
            raise EndpointError(others_weights("the rollout server", drift, limit))

    def _says_itself(self, parts: Sequence[np.ndarray]) -> bool:
        """Whether the policy's log-probs before the update are those of the update: there is one, on all of the
        rollout, and neither its rewards nor a server's answers ask for them earlier."""
        assert self.kl is not None
        asked = self.critic or self.kl.coef or self.session.rollouts.limit is not None
        return not asked and self.settings.num_ppo_epochs == 1 and len(parts) == 1

    def _score(self, step: int, numbers: Sequence[int], completions: Sequence[np.ndarray]) -> np.ndarray:
        with self.rewards.whole():  # processes score unequally many answers
            return self._scored(step, numbers, completions)

    def _scored(self, step: int, numbers: Sequence[int], completions: Sequence[np.ndarray]) -> np.ndarray:
        if not completions:  # there are more processes than prompts
            return np.zeros((0, len(self.rewards.scorers)))
        texts = [self.session.decode(tokens) for tokens in completions]
        prompts, columns = [self.prompts.texts[i] for i in numbers], self.prompts.columns
        known = [columns[i] for i in numbers] if columns else []
        return self.rewards.scores(Answered(prompts, texts, completions, known, step, self.session.total_steps))

    def _learn(
        self, step: int, rollout: Rollout, advantages: Advantages, first: Sequence[np.ndarray]
    ) -> tuple[list[Update], bool]:
        """Every pass over the rollout; says whether it was cut short because the policy had moved far from it."""
        s, engine, done = self.settings, self.session.engine, list[Update]()
        objectives = self.objectives(rollout, advantages, step)
        for epoch in range(s.num_ppo_epochs):
            for part in first if epoch == 0 else self._minibatches(step, epoch):
                update = engine.update(rollout.store, part, *objectives)
                done.append(update)
                if "logp" not in rollout.tokens:
                    said = [found for goal in objectives if isinstance(goal, Policy) for found in goal.seen]
                    rollout.keep(engine.world.gather(said))
                far = update.metrics.get("policy/approxkl_avg")
                if far is not None and s.max_approx_kl is not None and far.mean > s.max_approx_kl:
                    return done, True
        return done, False

    # -- what is told of it ---------------------------------------------------------------------------------------

    def _metrics(self, rollout: Rollout, advantages: Advantages) -> dict[str, Moments]:
        tokens, length_C = rollout.tokens, rollout.length_C.astype(np.float64)
        reward_C = rollout.reward_C
        drift_N = np.abs(tokens["sampled"] - tokens["logp"])
        kl_N = kl_k3(*(torch.from_numpy(tokens[n]).double() for n in ("logp", "ref"))).numpy()
        found = {
            "reward": Moments.of(reward_C),
            "reward_std": Moments.of([reward_C.std()]),
            **({"frac_reward_zero_std": Moments.of([_alike(reward_C, rollout.k)])} if rollout.k > 1 else {}),
            **{f"reward_{name}": Moments.of([value]) for name, value in spread_of(reward_C).items()},
            "objective/kl": Moments.of(np.add.reduceat(kl_N, rollout.first_C[:-1])),
            "objective/kl_k1": Moments.of(np.add.reduceat(tokens["logp"] - tokens["ref"], rollout.first_C[:-1])),
            "kl": Moments.of(kl_N),
            "entropy": Moments.of(tokens["entropy"]),
            "sampler_drift": Moments.of(drift_N),
            "advantages/mean": Moments.of(advantages.advantage_N),
            "advantages/std": Moments.of([advantages.advantage_N.std()]),
            "returns/mean": Moments.of(advantages.return_N),
            "returns/std": Moments.of([advantages.return_N.std()]),
            "completions/mean_length": Moments.of(length_C),
            "completions/eos_rate": Moments.of(rollout.ended_C.astype(np.float64)),
        }
        if self.session.rollouts.limit is not None:
            found["staleness"] = Moments.of(rollout.behind_C)
        if length_C.std() > 0 and reward_C.std() > 0:
            found["length_reward_correlation"] = Moments.of([np.corrcoef(length_C, reward_C)[0, 1]])
        if rollout.each_CM.shape[1] > 1:
            found["reward_disagreement"] = Moments.of(spread(rollout.each_CM))
        if rollout.each_CM.shape[1] > 1 or self.rewards.weights is not None:
            for name, score_C in zip(short_names(list(self.rewards.scorers)), rollout.each_CM.T, strict=True):
                given = score_C[~np.isnan(score_C)]
                if len(given):
                    found |= {
                        f"rewards/{name}/mean": Moments.of(given),
                        f"rewards/{name}/std": Moments.of([given.std()]),
                    }
        if "value" in tokens:
            returns, values = (torch.from_numpy(x) for x in (advantages.return_N, tokens["value"]))
            share = float(explained_variance(masked_moments(returns), masked_moments(returns - values)))
            if np.isfinite(share):
                found["val/explained_variance"] = Moments.of([share])
        return found

    def _watch_sampler(self, drift: float) -> None:
        if drift > MAX_DRIFT and not self.drifted and self.session.rollouts.limit is None:
            self.drifted = True
            self.session.display.say(
                f"the sampler's log-probs are {drift:.2g} nats per token off those of training: answers come from a "
                "somewhat different policy than the one that learns. dtype=float32 tells whether that matters"
            )

    def begin(self) -> dict[str, Any]:
        """No columns: answers to held-out prompts, which the loop samples, make the row of step 0."""
        return {}

    def validate(self) -> dict[str, Any]:
        """No columns: answers to held-out prompts are sampled by the loop."""
        return {}

    def stop(self, row: dict[str, Any]) -> Stop | None:
        """Why to stop: the KL budget is spent. By k1: a single answer that the reference likes can make k3 huge."""
        kl, most = row.get("objective/kl_k1"), self.settings.max_kl
        if kl is None or most is None or kl <= most:
            return None
        far = f"the policy is {kl:.2f} nats per answer from the reference, and max_kl allows {most:g}"
        return Stop("kl_budget", f"guard: KL budget spent: {far}")

    def singles(self) -> list[dict[str, Any]]:
        """None: its examples are its own answers, in samples.jsonl."""
        return []

    # -- what a checkpoint keeps ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Scale of rewards, KL coefficient, answers so far."""
        assert self.kl is not None
        return {"scale": self.scale.state(), "kl": self.kl.state_dict(), "episodes": self.episodes}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from these."""
        self.scale, self.kl = RewardScale(**saved["scale"]), AdaptiveKL(**saved["kl"])
        self.episodes = saved["episodes"]

    def complete(self, *, put_back: bool) -> None:
        """The policy needs no more before it is written."""


def _names(updates: Sequence[Update]) -> list[str]:
    return list(dict.fromkeys(n for u in updates for n in u.metrics))


def _merged(parts: Sequence[Moments]) -> Moments:
    total = Moments()
    for part in parts:
        total = total + part
    return total


def _alike(reward_C: np.ndarray, k: int) -> float:
    """The share of the prompts, with k answers each, whose answers all earn the same."""
    return float((np.ptp(reward_C.reshape(-1, k), axis=1) == 0).mean())
