"""Encoders as reward models: what no checkpoint holds is trained and saved, so that they score the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, load_peft_weights
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

import runs
import tiny
import zoo
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import load_reward
from prefiere.models.reward_model import RewardModel
from prefiere.models.source import ModelError, find_model
from prefiere.tokens.pack import unpack
from prefiere.train.checkpoint import save_model

ENCODERS = ("bert", "deberta-v2", "albert", "modernbert", "roberta", "xlm-roberta", "electra", "distilbert")


def masked_model(folder: Path, name: str) -> Path:
    """A masked language model, as such encoders are published: without a pooler, without a classifier."""
    fields = {"hidden_dim": 48, "pooler_hidden_size": 32, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    usual = AutoConfig.for_model(name)
    small = {k: v for k, v in (zoo.SMALL | fields).items() if getattr(usual, k, None) is not None}
    small |= {"pad_token_id": 0, "num_labels": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **small)).save_pretrained(folder)
    tokenizer = tiny.tokenizer("bpe", False)
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder: Path, out: Path, *, lora: bool):
    """A reward model on it whose every trained weight has moved, saved."""
    adapter = Adapter.lora(r=2, alpha=4, dropout=0.0, targets="all-linear", dora=False, rslora=False)
    source = find_model(folder)
    torch.manual_seed(1)
    trunk, _ = load_reward(source, compute=torch.float32, adapter=adapter if lora else None)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trunk.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    save_model(trunk, tiny.tokenizer("bpe", False), out)
    return trunk.eval()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_scores_the_same_each_time_it_is_loaded(tmp_path, name, lora) -> None:
    trunk = trained(masked_model(tmp_path / "m", name), tmp_path / "out", lora=lora)
    batch = runs.batch()
    with torch.no_grad():
        before = trunk.scores(batch, "default").numpy()
        assert np.ptp(before) > 1e-3
        for seed in (2, 3):
            torch.manual_seed(seed)
            again = RewardModel.load(tmp_path / "out").trunk
            np.testing.assert_allclose(again.scores(batch, "default").numpy(), before, atol=1e-5)
        torch.manual_seed(4)
        kind = AutoPeftModelForSequenceClassification if lora else AutoModelForSequenceClassification
        options = {"num_labels": 1} if lora else {}
        plain = kind.from_pretrained(str(tmp_path / "out"), **options).eval()
        rows = unpack(batch)
        logits = plain(input_ids=rows.ids_CL, attention_mask=rows.mask_CL).logits
    np.testing.assert_allclose(logits[:, 0].numpy(), before, atol=1e-5)


def test_an_adapter_that_left_its_pooler_behind_is_refused(tmp_path) -> None:
    """As they were saved before: the pooler was drawn at random, frozen, and not saved."""
    trained(masked_model(tmp_path / "m", "bert"), tmp_path / "out", lora=True)
    kept = {n: w for n, w in load_peft_weights(str(tmp_path / "out")).items() if "pooler" not in n}
    save_file(kept, tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"lacks weights that it was trained beside \(.*pooler.*\).*Train it again"):
        RewardModel.load(tmp_path / "out")


def test_an_encoder_without_a_layer_is_refused(tmp_path) -> None:
    path = masked_model(tmp_path / "m", "bert") / "model.safetensors"
    weights = load_file(path)
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights of BertForSequenceClassification \(bert\.encoder\.layer\.1"):
        load_reward(find_model(tmp_path / "m"), compute=torch.float32, adapter=None)
