"""PPO in one file: every step from prompts to the gradient, on transformers and prefiere's sampler and objectives.

    python examples/ppo_in_one_file.py

The model and the prompts are those of the demo: a small bilingual model that answers half the time like an encyclopedia
and half the time casually. The reward is the demo's rule, 1 for an answer in an encyclopedia's voice; a reward model
would stand in its place. Rows are padded and every role is a model of its own; ``prefiere ppo`` packs the rows and,
with LoRA, keeps all roles on one base.

Suffixes: _C completions, _L tokens of a padded row, each of them predicted from the tokens before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefiere.data.schema import Message
from prefiere.demo import corpus, judge
from prefiere.objectives.masked import masked_moments, whiten
from prefiere.objectives.ppo import gae, kl_k1, log_ratio, policy_loss, token_rewards, value_loss
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sample, Sampling, Vocabulary
from prefiere.stats import Estimate, clustered_mean

PROMPTS, EPOCHS, MINIBATCHES = 64, 2, 2
"""Prompts of a rollout, with one answer each; passes over the rollout; updates of a pass."""
KL_COEF = 0.05
"""Price of a nat of KL to the policy before, in units of the reward."""
LEARNING_RATE, CRITIC_RATE = 3e-4, 1e-3
NEW_TOKENS = 48


class Critic(nn.Module):
    """What the rest of an answer is going to earn, told before each of its tokens: a decoder with a head of one number.

    It begins as the policy's own layers, with a head that says 0.
    """

    def __init__(self, policy: PreTrainedModel):
        super().__init__()
        self.body = deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens_CL: Tensor) -> Tensor:
        """Values [C, L - 1]: at the place of each token, given the tokens before it."""
        values: Tensor = self.head(self.body(tokens_CL[:, :-1]).last_hidden_state)[..., 0]
        return values


class Rollout(NamedTuple):
    """Answers, and what all roles say of their tokens before any update.

    tokens_CL: int64, prompts and answers padded on the right. score_C: the reward of each answer. All others are
    [C, L - 1], one value for each predicted token. written: true where the policy wrote it. old_logp, ref_logp: nats.
    """

    tokens_CL: Tensor
    score_C: Tensor
    written: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    advantage: Tensor
    returns: Tensor
    old_value: Tensor


def token_logps(model: PreTrainedModel, tokens_CL: Tensor) -> Tensor:
    """log pi(token | the tokens before it) in nats, [C, L - 1]. Padding stands on the right, where no token sees it."""
    logits = model(tokens_CL[:, :-1]).logits.float()
    return torch.log_softmax(logits, -1).gather(-1, tokens_CL[:, 1:, None])[..., 0]


class Asked(NamedTuple):
    """Prompts: the text that the rule reads, and the ids (int32) that the model reads."""

    texts: list[str]
    ids: list[np.ndarray]


def asked(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> Asked:
    """The prompts as the chat template writes them, up to the place where the answer begins."""
    texts = [
        str(tokenizer.apply_chat_template([m.as_dict() for m in p], tokenize=False, add_generation_prompt=True))
        for p in prompts
    ]
    return Asked(texts, [np.asarray(tokenizer(t, add_special_tokens=False).input_ids, np.int32) for t in texts])


class PPO:
    """The four roles (policy, reference, critic, and the rule that rewards), and one step of the algorithm."""

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int):
        self.policy, self.tokenizer = policy.eval(), tokenizer  # there is no dropout
        self.reference = deepcopy(policy).requires_grad_(False)
        self.critic = Critic(policy)
        self.vocabulary = Vocabulary.of(tokenizer, [tokenizer.eos_token_id])
        groups = [{"params": policy.parameters()}, {"params": self.critic.parameters(), "lr": CRITIC_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, eps=1e-5)
        self.random = np.random.default_rng(seed)

    def score(self, prompts: Asked, samples: Sequence[Sample]) -> list[float]:
        """The reward of each answer."""
        answers = [str(self.tokenizer.decode(s.tokens, skip_special_tokens=True)) for s in samples]
        return judge.encyclopedic([prompts.texts[s.prompt] for s in samples], answers)

    @torch.no_grad()
    def rollout(self, prompts: Asked) -> Rollout:
        """An answer to each prompt, its reward, and the credit of each of its tokens."""
        # 1. The policy answers.
        sampling = Sampling(max_new_tokens=NEW_TOKENS, seed=int(self.random.integers(2**31)))
        samples = generate(self.policy, prompts.ids, sampling, self.vocabulary)
        rows = [np.concatenate([prompts.ids[s.prompt], s.tokens]).astype(np.int64) for s in samples]
        written = [np.arange(1, len(row)) >= len(prompts.ids[s.prompt]) for row, s in zip(rows, samples, strict=True)]
        tokens_CL = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
        mask = pad_sequence([torch.from_numpy(w) for w in written], batch_first=True)
        # 2. The answers are scored, and each role says what it thinks of every token.
        score_C = torch.tensor(self.score(prompts, samples))
        logp, ref = token_logps(self.policy, tokens_CL), token_logps(self.reference, tokens_CL)
        value = self.critic(tokens_CL)
        # 3. The reward of a token: what it costs to leave the reference, and at the last token the answer's score.
        rewards = token_rewards(score_C, kl_k1(logp, ref), mask, kl_coef=KL_COEF)
        # 4. Its credit: by how much what came after exceeds what the critic expected, to mean 0 and deviation 1.
        advantage, returns = gae(rewards, value, mask, gamma=1.0, lam=0.95)
        advantage = whiten(advantage, masked_moments(advantage, mask))
        return Rollout(tokens_CL, score_C, mask, logp, ref, advantage, returns, value)

    def update(self, r: Rollout) -> list[float]:
        """Some passes over a rollout; returns the mean ratio of new to old probability in each update."""
        ratios = []
        for _ in range(EPOCHS):
            for part in np.array_split(self.random.permutation(len(r.tokens_CL)), MINIBATCHES):
                at, mask = torch.from_numpy(part), r.written[part]
                logp, value = token_logps(self.policy, r.tokens_CL[at]), self.critic(r.tokens_CL[at])
                # 5. The clipped losses, per token. While the ratio is 1, the policy's gradient is -A grad log pi.
                policy = policy_loss(logp, r.old_logp[at], r.advantage[at], clip=0.2)
                critic = value_loss(value, r.old_value[at], r.returns[at], clip=0.2)
                # 6. The gradient of their means over the tokens that the policy wrote, clipped, and a step along it.
                self.optimizer.zero_grad()
                (policy[mask].mean() + critic[mask].mean()).backward()
                for model in (self.policy, self.critic):
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                self.optimizer.step()
                ratios.append(float(log_ratio(logp.detach(), r.old_logp[at]).exp()[mask].mean()))
        return ratios

    def step(self, prompts: Asked) -> dict[str, Any]:
        """One step: a rollout on some of the prompts, and the updates on it."""
        some = self.random.choice(len(prompts.ids), PROMPTS, replace=False)
        rollout = self.rollout(Asked([prompts.texts[i] for i in some], [prompts.ids[i] for i in some]))
        return {"reward": float(rollout.score_C.mean()), "ratios": self.update(rollout)}

    def measured(self, prompts: Asked) -> dict[str, Estimate]:
        """Of one answer to each prompt: mean reward, and KL to the policy before, in nats per answer."""
        r = self.rollout(prompts)
        kl_C, each = (kl_k1(r.old_logp, r.ref_logp) * r.written).sum(1), range(len(r.score_C))
        return {"reward": clustered_mean(r.score_C, each, share=True), "KL": clustered_mean(kl_C, each)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, and print what has become better; returns the figures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=12, help="rollouts")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--questions", type=int, default=132, help="held-out questions to be answered before and after")
    a = p.parse_args(arguments)
    with as_file(files("prefiere.demo").joinpath("assets/base")) as folder:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    learnt = asked(tokenizer, [pair.prompt for pair in corpus.preferences()])
    held_out = asked(tokenizer, corpus.held_out_prompts()[: a.questions])
    ppo = PPO(model, tokenizer, seed=a.seed)
    found: dict[str, Any] = {"before": ppo.measured(held_out), "steps": []}
    for step in range(a.steps):
        found["steps"].append(ppo.step(learnt))
        print(f"rollout {step:2}: mean reward {found['steps'][-1]['reward']:.2f}")
    found["after"] = ppo.measured(held_out)
    for when in ("before", "after"):
        told = [f"{name} {e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]" for name, e in found[when].items()]
        print(f"new questions, {when}: {', '.join(told)}")
    return found


if __name__ == "__main__":
    main()
