"""Shortest paths learnt from random ones: a task with a known optimum, small enough to see a policy gradient work.

A graph of 21 nodes with random edges has one goal. A small model first imitates random walks on it; then PPO or RLOO
reward short ones. A walk's optimality is 1 for a shortest path, 0 for one that never arrives or uses an edge that is
not there, and falls linearly with its length in between. (The task is that of Chen et al. 2021, "Decision
Transformer", section 1, as trlX poses it.)

    python examples/random_walks.py --out runs/walks [--method ppo | rloo]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefiere import ppo, rloo, sft
from prefiere.evaluate.compare import ask
from prefiere.models.source import find_model
from prefiere.sample.sampling import Sampling

NODES = "abcdefghijklmnopqrstu"
GOAL = "a"
LONGEST = 10
EDGES_EACH = 0.1
SEED = 17  # a graph in which every node leads to the goal, the farthest over 6 edges


def graph() -> dict[str, set[str]]:
    """Where each node leads: each other node with probability 0.1, and one at least; the goal leads nowhere."""
    rng = np.random.default_rng(SEED)
    leads: dict[str, set[str]] = {}
    for node in NODES:
        others = [n for n in NODES if n != node]
        picked = {n for n in others if rng.random() < EDGES_EACH} or {str(rng.choice(others))}
        leads[node] = set() if node == GOAL else picked
    return leads


def distances(leads: dict[str, set[str]]) -> dict[str, int]:
    """Edges on a shortest path from each node to the goal, for the nodes that have one of at most `LONGEST` - 1."""
    found, queue = {GOAL: 0}, deque([GOAL])
    while queue:
        here = queue.popleft()
        for node in NODES:
            if here in leads[node] and node not in found:
                found[node] = found[here] + 1
                queue.append(node)
    return {n: d for n, d in found.items() if 0 < d < LONGEST}


LEADS = graph()
SHORTEST = distances(LEADS)


def optimality(prompts: list[str], completions: list[str]) -> list[float]:
    """1 for a shortest path from the prompt's node, 0 for no path: the reward, and the score."""
    scores = []
    for start, walk in zip(prompts, completions, strict=True):
        path = [start.strip(), *walk.split()]
        real = all(b in LEADS[a] for a, b in pairwise(path) if a in LEADS)
        arrives = path[-1] == GOAL and len(path) <= LONGEST and set(path) <= set(NODES)
        best = SHORTEST.get(path[0], 0)
        scores.append((LONGEST - (len(path) - 1)) / (LONGEST - best) if best and real and arrives else 0.0)
    return scores


def random_walks(n: int) -> list[dict[str, str]]:
    """Walks from random nodes that end at the goal or after `LONGEST` nodes."""
    rng = np.random.default_rng(SEED + 1)
    walks = []
    while len(walks) < n:
        path = [str(rng.choice(sorted(SHORTEST)))]
        while len(path) < LONGEST and path[-1] != GOAL:
            path.append(str(rng.choice(sorted(LEADS[path[-1]]))))
        walks.append({"prompt": path[0], "completion": " " + " ".join(path[1:])})
    return walks


def untrained(folder: Path) -> Path:
    """A small Llama that knows nothing, with a token for each node."""
    words = ["<pad>", "<s>", "</s>", *NODES]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(model: Path, samples: int = 64) -> float:
    """Mean optimality of walks from every node, sampled at temperature 1."""
    starts = sorted(SHORTEST)
    sampling = Sampling(samples=samples, max_new_tokens=LONGEST, seed=7)
    rows = ask(find_model(model), starts, sampling).rows
    return float(np.mean(optimality([r["prompt"] for r in rows], [r["completion"] for r in rows])))


def main() -> None:
    """Imitate, reinforce, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/walks"))
    parser.add_argument("--method", choices=["ppo", "rloo"], default="ppo")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    walks, starts = asked.out / "walks.jsonl", asked.out / "starts.jsonl"
    walks.write_text("".join(json.dumps(w) + "\n" for w in random_walks(1000)))
    starts.write_text("".join(json.dumps({"prompt": n}) + "\n" for n in sorted(SHORTEST)))
    common = {"max_length": 16, "eval_size": 0, "seed": asked.seed, "dtype": "float32"}
    imitated = sft(
        model=untrained(asked.out / "untrained"), data=walks, out=asked.out / "imitated", num_train_epochs=20,
        batch_size=100, learning_rate=2e-3, sample_steps=0, **common,
    )  # fmt: skip
    began = time.perf_counter()
    method = {"ppo": ppo, "rloo": rloo}[asked.method]
    run = method(
        model=imitated.folder, data=starts, reward="random_walks:optimality", out=asked.out / asked.method,
        max_steps=60, max_new_tokens=LONGEST, num_generations=16, batch_size=20, sample_prompts=20, kl_coef=0.005,
        scale_rewards=False, learning_rate=5e-4, guard=False, **common,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    before, after = measured(imitated.model), measured(run.model)
    print(f"optimality {before:.3f} -> {after:.3f} by {asked.method} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
