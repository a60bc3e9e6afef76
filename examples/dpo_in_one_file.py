"""DPO in one file: every step from pairs to the gradient, on PyTorch, transformers and prefiere's objectives.

    python examples/dpo_in_one_file.py

The model and the pairs are those of the demo: a small bilingual model that answers half the time like an encyclopedia
and half the time casually, and pairs of answers that prefer the encyclopedia. Rows are padded and every weight is
trained, so that nothing stands between a reader and the algorithm; ``prefiere dpo`` packs the rows and keeps the run.

Suffixes: _G pairs, _C completions (chosen and rejected of each pair in turn: C = 2 G), _L tokens of a padded row.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from prefiere.data.audit import split_by_prompt
from prefiere.data.schema import Message, PreferencePair
from prefiere.demo import corpus, judge
from prefiere.objectives.preference import LOSSES, PairBatch, accuracies, dpo_loss, rewards
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.stats import Estimate, clustered_mean

BETA = 0.1
"""How strongly the policy is held to the reference."""
PAIRS = 32
"""Pairs of an update."""
HELD_OUT = 64
"""Pairs that are measured and never trained on."""
LEARNING_RATE = 4e-4
"""Peak, for a model of 1.4 million parameters; one of 7 billion takes 1e-6."""


class Rows(NamedTuple):
    """Prompts with an answer each, padded on the right. tokens_CL: int64 ids. answer_CL: bool, true at the answer."""

    tokens_CL: Tensor
    answer_CL: Tensor


# -- from text to rows of tokens --------------------------------------------------------------------------------------


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> str:
    """The prompt as the chat template writes it, up to the place where the answer begins."""
    messages = [m.as_dict() for m in prompt]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def token_ids(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> list[tuple[list[int], list[int]]]:
    """Ids of (prompt, chosen answer) and of (prompt, rejected answer). The end token belongs to the answer."""
    prompt, found = prompt_text(tokenizer, pair.prompt), []
    for answer in (pair.chosen, pair.rejected):
        messages = [m.as_dict() for m in (*pair.prompt, *answer)]
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        # Prompt and answer are tokenized apart: the prompt's ids may not depend on the answer.
        texts = prompt, whole.removeprefix(prompt)
        found.append(tuple(tokenizer(text, add_special_tokens=False).input_ids for text in texts))
    return found


def rows_of(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> Rows:
    """The completions of these pairs, one a row: chosen, rejected, chosen, ..."""
    both = [ids for pair in pairs for ids in token_ids(tokenizer, pair)]
    tokens = [torch.tensor(prompt + answer) for prompt, answer in both]
    answers = [torch.tensor([False] * len(prompt) + [True] * len(answer)) for prompt, answer in both]
    return Rows(pad_sequence(tokens, batch_first=True), pad_sequence(answers, batch_first=True))


# -- the algorithm ----------------------------------------------------------------------------------------------------


def sequence_logps(model: PreTrainedModel, rows: Rows) -> Tensor:
    """log pi(answer | prompt) in nats, [C]: the sum over the answer's tokens, each given all tokens before it.

    Attention is causal and padding stands on the right, so that no token sees it and no mask is needed.
    """
    logits = model(rows.tokens_CL[:, :-1]).logits.float()
    logp_CL = torch.log_softmax(logits, -1).gather(-1, rows.tokens_CL[:, 1:, None])[..., 0]
    return (logp_CL * rows.answer_CL[:, 1:]).sum(1)


def pair_batch(model: PreTrainedModel, rows: Rows, reference_C: Tensor) -> PairBatch:
    """What a loss of the family reads: the policy's log-probs, the reference's, and the answers' lengths."""
    return PairBatch.from_completions(sequence_logps(model, rows), reference_C, rows.answer_CL.sum(1))


def train(model: PreTrainedModel, rows: Rows, *, steps: int, seed: int) -> list[float]:
    """Train the model on these pairs; returns the loss of each update, in nats."""
    model.eval()  # it has no dropout
    count = len(rows.tokens_CL) // 2
    with torch.no_grad():
        # 1. The reference is the policy as it is now. What it says of the data never changes: it is asked once.
        parts = [sequence_logps(model, Rows(*p)) for p in zip(*(x.split(2 * PAIRS) for x in rows), strict=True)]
        reference_C = torch.cat(parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    random, losses = np.random.default_rng(seed), []
    for _ in range(steps):
        # 2. A batch of pairs; both completions of a pair are in it.
        chosen_G = torch.from_numpy(random.choice(count, PAIRS, replace=False)) * 2
        at_C = torch.stack([chosen_G, chosen_G + 1], 1).flatten()
        # 3. One forward pass of the policy, and the loss of each pair: -log sigmoid(beta (h_chosen - h_rejected)),
        #    where h is log pi(answer) - log pi_reference(answer).
        loss = dpo_loss(
            pair_batch(model, Rows(rows.tokens_CL[at_C], rows.answer_CL[at_C]), reference_C[at_C]), beta=BETA
        )
        # 4. The gradient of the mean over pairs, clipped, and a step along it.
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.mean().detach()))
    return losses


# -- what came of it --------------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_accuracy(model: PreTrainedModel, rows: Rows, reference_C: Tensor) -> float:
    """Share of pairs whose chosen answer has gained more on the reference than the rejected one has."""
    batch = pair_batch(model, rows, reference_C)
    chosen_G, rejected_G = rewards(batch, LOSSES["sigmoid"], beta=BETA)
    return float(accuracies(chosen_G - rejected_G).mean())


def judged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Estimate, Estimate]:
    """Two answers to each of ``count`` questions that no pair contains: the share in the preferred style, and the share
    that is right about the thing asked, as the demo's rule judges them, with 95% intervals."""
    asked = [prompt_text(tokenizer, p) for p in corpus.held_out_prompts()[:count]]
    prompts = [np.asarray(tokenizer(text, add_special_tokens=False).input_ids, np.int32) for text in asked]
    sampling = Sampling(samples=2, max_new_tokens=48)
    samples = generate(model, prompts, sampling, Vocabulary.of(tokenizer, [tokenizer.eos_token_id]))
    answers = [str(tokenizer.decode(s.tokens, skip_special_tokens=True)) for s in samples]
    questions, clusters = [asked[s.prompt] for s in samples], [s.prompt for s in samples]
    return (
        clustered_mean(judge.encyclopedic(questions, answers), clusters, share=True),
        clustered_mean(judge.on_topic(questions, answers), clusters, share=True),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, and print what has become better; returns the figures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=30, help="updates")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--questions", type=int, default=132, help="held-out questions to be answered before and after")
    a = p.parse_args(arguments)
    with as_file(files("prefiere.demo").joinpath("assets/base")) as folder:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = corpus.preferences()
    train_at, held_at = split_by_prompt(pairs, HELD_OUT, a.seed)
    rows, held = (rows_of(tokenizer, [pairs[i] for i in at]) for at in (train_at, held_at))
    with torch.no_grad():
        reference_C = sequence_logps(model, held)
    found: dict[str, Any] = {"before": judged(model, tokenizer, a.questions)}
    found["losses"] = train(model, rows, steps=a.steps, seed=a.seed)
    found["after"] = judged(model, tokenizer, a.questions)
    found["accuracy"] = held_out_accuracy(model, held, reference_C)
    print(f"loss: {found['losses'][0]:.4f} at first (ln 2), {np.mean(found['losses'][-5:]):.4f} in the last updates")
    print(f"held-out pairs told apart: {100 * found['accuracy']:.0f}% (a coin: 50%)")
    for what, before, after in zip(("preferred style", "right"), found["before"], found["after"], strict=True):
        print(f"answers to new questions, {what}: {shown(before)} before, {shown(after)} after")
    return found


def shown(e: Estimate) -> str:
    """A share with its 95% interval."""
    return f"{100 * e.mean:.0f}% [{100 * e.low:.0f}, {100 * e.high:.0f}]"


if __name__ == "__main__":
    main()
