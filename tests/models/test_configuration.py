"""What a run changes in a model's configuration, before the model is made, and what a save puts back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import runs
import zoo
from prefiere.models.check.trial import try_policy
from prefiere.models.configuration import calm, published
from prefiere.models.load import load_policy
from prefiere.models.source import find_model
from prefiere.train.checkpoint import save_model
from prefiere.train.setup import load_trunk

RATES = {
    "opt": {"dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.0},
    "starcoder2": {"residual_dropout": 0.2, "embedding_dropout": 0.2, "attention_dropout": 0.1},
    "xglm": {"dropout": 0.2, "activation_dropout": 0.2, "attention_dropout": 0.2},
    "bloom": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "granite": {"attention_dropout": 0.2},
    "seed_oss": {"attention_dropout": 0.2, "residual_dropout": 0.2},
    "gpt_bigcode": {"attn_pdrop": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "biogpt": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "activation_dropout": 0.2},
    "phimoe": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "mixtral": {"router_jitter_noise": 0.3},
}


@pytest.mark.parametrize("name", RATES)
def test_nothing_is_random_in_training_and_the_saved_configuration_keeps_its_own(tmp_path, name) -> None:
    folder = zoo.folder(tmp_path / "m", name, **RATES[name])
    trunk, _ = load_policy(find_model(folder), compute=torch.float32, adapter=None)
    assert try_policy(trunk, name).holds
    batch = runs.batch()
    first, second = (trunk.train()(batch).logp_N for _ in range(2))
    assert torch.equal(first, second)
    save_model(trunk, AutoTokenizer.from_pretrained(folder), tmp_path / "out")
    kept = AutoConfig.from_pretrained(tmp_path / "out")
    assert {k: getattr(kept, k) for k in RATES[name]} == RATES[name]
    assert not any(published(trunk.lm).values.keys() - {(k,) for k in RATES[name]})


def test_rates_of_a_nested_configuration() -> None:
    config = AutoConfig.for_model("llama4")
    config.text_config.attention_dropout, config.text_config.router_jitter_noise = 0.1, 0.2
    config.text_config.output_router_logits = True
    found = calm(config, "nowhere")
    text = config.text_config
    assert (text.attention_dropout, text.output_router_logits) == (0, False)
    assert found.values["text_config", "attention_dropout"] == 0.1
    assert text.router_jitter_noise == 0.2, "some routers read it in evaluation too"
    assert found.auxiliary


def test_an_auxiliary_loss_is_said_to_be_left_out(tmp_path) -> None:
    zoo.folder(tmp_path / "model", "mixtral", output_router_logits=True)
    s = runs.settings(tmp_path, sample_steps=0)
    trunk, found = load_trunk(runs.planned(s), torch.device("cpu"))
    assert next(c for c in found if c.name == "auxiliary_loss").value == "left out"
    assert next(c for c in found if c.name == "decoding").value == "prepared"
    save_model(trunk, AutoTokenizer.from_pretrained(tmp_path / "model"), tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").output_router_logits


@pytest.mark.parametrize(("asked", "kept"), [(None, torch.bfloat16), (torch.float32, torch.float32)])
def test_a_whole_model_is_saved_in_the_dtype_of_its_checkpoint_or_the_one_asked_for(tmp_path, asked, kept) -> None:
    zoo.build("llama", tie_word_embeddings=True).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    tokenizer = runs.tiny.tokenizer("bpe")
    tokenizer.save_pretrained(tmp_path / "m")
    trunk, _ = load_policy(find_model(tmp_path / "m"), compute=torch.float32, adapter=None)
    assert next(trunk.parameters()).dtype == torch.float32
    with torch.no_grad():
        trunk.lm.model.norm.weight += 0.25
    save_model(trunk, tokenizer, tmp_path / "out", asked)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {kept}
    assert "lm_head.weight" not in weights, "a tied weight is saved once"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(kept).removeprefix("torch.")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, p in trunk.lm.named_parameters():
        assert torch.equal(again.get_parameter(name), p.to(kept).float()), name
    assert next(trunk.parameters()).dtype == torch.float32
