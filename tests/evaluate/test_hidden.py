"""Mean hidden states against plain forwards of transformers, each answer alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import runs
from prefiere.evaluate.hidden import answer_features

SAID = [("what is a dog", "an animal"), ("what is a dog", "it is a friend of man and lives in the house"), ("a", "dog")]


def test_an_answer_is_the_mean_of_the_states_that_predict_it(tmp_path: Path) -> None:
    folder = runs.model_folder(tmp_path / "model", seed=3)
    found = answer_features(str(folder), SAID)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, (prompt, answer) in zip(found, SAID, strict=True):
        asked = [{"role": "user", "content": prompt}]
        head = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False)
        whole = [*head, *tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            states = model(torch.tensor([whole]), output_hidden_states=True).hidden_states[-1][0]
        expected = states[len(head) - 1 : len(whole) - 1].mean(0)
        assert row == pytest.approx(expected.numpy(), abs=1e-5)


def test_an_answer_reads_alike_beside_any_others_and_one_without_a_token_is_zero(tmp_path: Path) -> None:
    folder = str(runs.model_folder(tmp_path / "model"))
    found = answer_features(folder, [*SAID, ("what is a dog", "")])
    assert not found[3].any()
    assert found[1] == pytest.approx(answer_features(folder, SAID[1:2])[0], abs=1e-5)
    assert np.abs(found[:3]).sum() > 0


def test_a_text_longer_than_the_model_takes_is_cut(tmp_path: Path) -> None:
    folder = str(runs.model_folder(tmp_path / "model", max_position_embeddings=64))
    found = answer_features(folder, [("what is a dog", "man " * 300), ("what " * 300, "dog")])
    assert np.isfinite(found).all()
    assert (np.abs(found).sum(1) > 0).all()
