"""A trained reward model says the same in plain transformers, here, and as a role on a policy's trunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import runs
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_policy
from prefiere.models.reward_model import RewardModel, mount
from prefiere.models.source import ModelError, find_model
from prefiere.models.trunk import POLICY, REWARD
from prefiere.run import Run
from prefiere.settings import Reward
from prefiere.tokens.pack import pack

ASKED = ["What is a dog?", "1 2 3", "¿Qué es el pan, y qué comen los perros en la casa de la gente?", "the dog"]
SAID = ["A dog is a friend.", "perro", "pan.", "el perro es un animal que vive en la casa con gente"]


def base(folder: Path, padding: str, **options) -> Path:
    """A tiny causal LM whose tokenizer pads with a token of its own, with the end token, or not at all."""
    runs.model_folder(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = {"own": tokenizer.pad_token, "eos": tokenizer.eos_token, "none": None}[padding]
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = tokenizer.pad_token_id
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reward_run(tmp: Path, name: str = "run", **options) -> Run:
    given = {"max_steps": 3, "eval_size": 4, "out": str(tmp / name), **options}
    return launch(runs.settings(tmp, Reward, **given), display=Display(quiet=True)).run


def plain_scores(folder: Path) -> np.ndarray:
    """What somebody with transformers alone gets, from one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        offset = json.loads((folder / "reward.json").read_text())["mean"]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        offset = getattr(model.config, "prefiere_reward", {"mean": 0.0})["mean"]
    if tokenizer.chat_template:
        talks = [
            [{"role": "user", "content": p}, {"role": "assistant", "content": c}]
            for p, c in zip(ASKED, SAID, strict=True)
        ]
        texts = [tokenizer.apply_chat_template(t, tokenize=False).removesuffix("\n") for t in talks]
    else:
        texts = [p + c + tokenizer.eos_token for p, c in zip(ASKED, SAID, strict=True)]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    batch.pop("token_type_ids", None)
    assert (batch["input_ids"][:, -1] == tokenizer.pad_token_id).any(), "nothing is padded"
    with torch.no_grad():
        return model.eval()(**batch).logits[:, 0].double().numpy() - offset


@pytest.mark.parametrize("padding", ["own", "eos", "none"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True])
def test_plain_transformers_agrees(tmp_path, family, padding, lora) -> None:
    base(tmp_path / "model", padding, family=family, chat=padding != "none")
    run = reward_run(tmp_path, lora=lora)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    scores = RewardModel.load(run.folder).score(ASKED, SAID)
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(scores, plain_scores(run.model), atol=2e-5)


def without_a_spare_token(folder: Path) -> Path:
    """A model as GPT-2: padding is the end token, and the embeddings have no row to spare."""
    runs.model_folder(folder, family="gpt2", chat=False)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("<pad>", "<first>"))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["pad_token"] = told["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_without_a_spare_token_gets_a_new_one(tmp_path, lora) -> None:
    before = len(AutoTokenizer.from_pretrained(without_a_spare_token(tmp_path / "model")))
    run = reward_run(tmp_path, lora=lora)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|pad|>", before)
    np.testing.assert_allclose(RewardModel.load(run.folder).score(ASKED, SAID), plain_scores(run.model), atol=2e-5)


def test_demonstrations_score_zero_with_unit_scale(tmp_path) -> None:
    run = reward_run(tmp_path, eval_size=0, max_steps=6)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    model = RewardModel.load(run.folder)
    scores = model.score([r["prompt"] for r in rows], [r["chosen"] for r in rows])
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)
    assert model.normalisation.std != 1


def mounted(tmp_path: Path, run: Run):
    trunk, _ = load_policy(
        find_model(tmp_path / "model"),
        compute=torch.float32,
        adapter=Adapter.lora(r=2, alpha=4, dropout=0.0, targets="all-linear", dora=False, rslora=False),
    )
    trained = {n: p.requires_grad for n, p in trunk.named_parameters()}
    saved = mount(trunk, run.folder)
    return trunk, saved, trained


def test_mounted_scores_are_the_model_s_own(tmp_path) -> None:
    run = reward_run(tmp_path, lora=True, max_steps=6)
    trunk, saved, trained = mounted(tmp_path, run)
    alone = RewardModel.load(run.folder)
    groups = alone.encoder.encode_answers(ASKED, SAID, alone.report)
    batch = pack(groups)
    with torch.no_grad():
        before = trunk(batch).logp_N
        scores = trunk.scores(batch, REWARD).double().numpy() - saved.mean
        assert torch.equal(trunk(batch).logp_N, before), "the policy is not what it was"
    np.testing.assert_allclose(scores, alone.score(ASKED, SAID), atol=1e-5)
    after = {n: p.requires_grad for n, p in trunk.named_parameters()}
    assert {n: g for n, g in after.items() if n in trained} == trained
    assert not any(g for n, g in after.items() if n not in trained)
    assert trunk._role == POLICY


def test_a_reward_adapter_with_a_padding_token_of_its_own_is_mounted(tmp_path) -> None:
    without_a_spare_token(tmp_path / "model")
    run = reward_run(tmp_path, lora=True)
    trunk, saved, _ = mounted(tmp_path, run)
    alone = RewardModel.load(run.folder)
    batch = pack(alone.encoder.encode_answers(ASKED, SAID, alone.report))
    with torch.no_grad():
        scores = trunk.scores(batch, REWARD).double().numpy() - saved.mean
    np.testing.assert_allclose(scores, alone.score(ASKED, SAID), atol=1e-5)


def test_what_cannot_be_mounted_is_named(tmp_path) -> None:
    run = reward_run(tmp_path, lora=True)
    whole = reward_run(tmp_path, "whole", lora=False)
    trunk, _, _ = mounted(tmp_path, run)
    with pytest.raises(ModelError, match="not an adapter with a score head"):
        mount(trunk, whole.folder, "other")
    full, _ = load_policy(find_model(tmp_path / "model"), compute=torch.float32, adapter=None)
    with pytest.raises(ModelError, match="the policy is not"):
        mount(full, run.folder)
    wide = runs.model_folder(tmp_path / "wide", hidden=64)
    lora = Adapter.lora(r=2, alpha=4, dropout=0.0, targets="all-linear", dora=False, rslora=False)
    other, _ = load_policy(find_model(wide), compute=torch.float32, adapter=lora)
    with pytest.raises(ModelError, match="does not fit the policy's base"):
        mount(other, run.folder)


def test_what_is_no_reward_model_is_named(tmp_path) -> None:
    folder = runs.model_folder(tmp_path / "model")
    with pytest.raises(ModelError, match="no score head"):
        RewardModel.load(folder)
    two = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match="has 2 labels"):
        RewardModel.load(tmp_path / "two")
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="no score head"):
        RewardModel.load(tmp_path / "adapter")


def test_a_score_that_is_no_number_is_an_error(tmp_path) -> None:
    model = RewardModel.load(reward_run(tmp_path).folder)
    with torch.no_grad():
        model.trunk.heads[POLICY].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="answer 1 with a number that is not finite"):
        model.score(["a"], ["b"])


def test_an_answer_that_says_nothing_has_a_score_too(tmp_path) -> None:
    model = RewardModel.load(reward_run(tmp_path).folder)
    scores = model.score(ASKED, ["", "perro", "", "pan"])
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()


def test_truncation_is_told_once(tmp_path) -> None:
    said: list[str] = []
    model = RewardModel.load(reward_run(tmp_path).folder, max_length=12, notice=said.append)
    for _ in range(2):
        model.score(["el perro " * 30], ["pan"])
    assert len(said) == 1
    assert "1 prompt cut from the left" in said[0]


def test_a_foreign_model_whose_padding_is_its_end_token_is_read_as_transformers_reads_it(tmp_path) -> None:
    folder = base(tmp_path / "model", "eos")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "foreign")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "foreign")
    said: list[str] = []
    ours = RewardModel.load(tmp_path / "foreign", notice=said.append)
    np.testing.assert_allclose(ours.score(ASKED, SAID), plain_scores(tmp_path / "foreign"), atol=2e-5)
    assert "the token before it" in said[0]
