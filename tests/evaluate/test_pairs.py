"""Scores of answers: against a plain forward in float64, and against what training itself measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefiere.console import Display
from prefiere.evaluate.pairs import PairScores, implicit_rewards, logps
from prefiere.launch import launch
from prefiere.run import RunError
from prefiere.settings import SFT
from runs import model_folder, pairs_file, settings


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow_logp(model: torch.nn.Module, before: list[int], answer: list[int]) -> float:
    """One answer alone, token by token, in float64."""
    total = 0.0
    for i, token in enumerate(answer):
        z = model(torch.tensor([before + answer[:i]])).logits[0, -1]
        total += float(z[token] - torch.logsumexp(z, 0))
    return total


@torch.no_grad()
def test_log_probs_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    folder, data = model_folder(tmp_path / "model", chat=False), pairs_file(tmp_path / "pairs.jsonl", n=5)
    found = logps(folder, data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    for i, row in enumerate(rows(data)):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for j, name in enumerate(("chosen", "rejected")):
            answer = [*tokenizer(row[name])["input_ids"], tokenizer.eos_token_id]
            assert found.tokens[i, j] == len(answer)
            assert found.scores[i, j] == pytest.approx(slow_logp(model, prompt, answer), abs=1e-3)
    assert found.sources == [f"{data}:{i}" for i in range(1, 6)]
    assert len(set(found.prompts.tolist())) == 5


@pytest.mark.parametrize(
    "options", [{}, {"lora": True}, {"lora": True, "dtype": "bfloat16"}, {"loss_type": "simpo"}], ids=str
)
def test_rewards_are_those_that_training_measured(tmp_path: Path, options: dict[str, object]) -> None:
    held_out = pairs_file(tmp_path / "held-out.jsonl", n=9, seed=1)
    given = settings(tmp_path, eval_data=str(held_out), learning_rate=1e-2, sample_steps=0, **options)
    run = launch(given, display=Display(quiet=True)).run
    found, last = implicit_rewards(run, held_out), run.metrics[-1]
    near = 1e-4 if "dtype" not in options else 1e-2
    assert found.scores.mean(0) == pytest.approx([last["eval_rewards/chosen"], last["eval_rewards/rejected"]], abs=near)
    assert abs(found.margins).min() > 5 * near
    assert found.accuracy().mean == pytest.approx(last["eval_rewards/accuracies"])
    assert found.accuracy().low == pytest.approx(last["eval_rewards/accuracies_low"])


def test_a_run_that_started_from_an_adapter_is_measured_against_it(tmp_path: Path) -> None:
    first = launch(settings(tmp_path, lora=True, sample_steps=0), display=Display(quiet=True)).run
    given = settings(
        tmp_path, model=str(first.folder), out=str(tmp_path / "second"), learning_rate=1e-2, sample_steps=0
    )
    second = launch(given, display=Display(quiet=True)).run
    data = tmp_path / "pairs.jsonl"
    expected = 0.1 * (logps(second, data).scores - logps(first, data).scores)
    assert implicit_rewards(second, data).scores == pytest.approx(expected, abs=1e-4)
    assert abs(expected).mean() > 1e-2


def test_accuracy_counts_ties_labels_and_clusters() -> None:
    scores = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [0.0, 1.0]])
    labels = np.array([1.0, 1.0, 1.0, 0.25])
    found = PairScores(scores, np.ones((4, 2), np.int64), labels, np.array([7, 7, 8, 9]), list("abcd"), {})
    # right; wrong; a tie; the rejected one scores higher, which agrees with 3 in 4
    assert found.right().tolist() == [1, 0, 0.5, 0.75]
    assert found.right(noise=1.0).tolist() == [0.5, 0, 0.5, 0.5]
    assert (found.accuracy().mean, found.accuracy().clusters) == (pytest.approx(2.25 / 4), 3)
    assert found.accuracy(["x", "y", "z", "w"]).clusters == 4


def test_a_run_without_pairs_says_what_to_do(tmp_path: Path) -> None:
    run = launch(settings(tmp_path, SFT, max_steps=1, sample_steps=0), display=Display(quiet=True)).run
    with pytest.raises(RunError, match="not trained on pairs: score its answers with logps"):
        implicit_rewards(run, tmp_path / "pairs.jsonl")
