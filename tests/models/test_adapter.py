"""Adapters as other tools save them: with new tokens, on a base that moved, on another adapter, or of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

import runs
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_model, load_policy
from prefiere.models.source import ModelError, Source, find_model, generation_config, positions
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import pack
from random_groups import group


def adapter(base: Path, out: Path, *, rows: int = 0, config: LoraConfig | None = None, **options) -> Path:
    """An adapter on this base, each of whose weights says something, saved by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    if rows:
        model.resize_token_embeddings(rows)
    made = config or LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    get_peft_model(model, made).save_pretrained(out)
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_new_tokens_is_loaded_with_their_embeddings(tmp_path, tied) -> None:
    base = runs.model_folder(tmp_path / "base", tie_word_embeddings=tied)
    rows = AutoModelForCausalLM.from_pretrained(base).config.vocab_size + 4
    folder = adapter(base, tmp_path / "a", rows=rows)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(rows)  # what whoever saved it does by hand
    right = Trunk(PeftModel.from_pretrained(plain, str(folder)).eval(), packed=False)
    batch = pack([group(np.random.default_rng(0), 2, rows, 9, 6)])
    trunk, _ = load_policy(find_model(folder), compute=torch.float32, adapter=None)
    with torch.no_grad():
        expected = right(batch).logp_N
        torch.testing.assert_close(trunk.eval()(batch).logp_N, expected)
        with trunk.role("reference"):
            torch.testing.assert_close(trunk(batch).logp_N, expected)
        torch.testing.assert_close(Trunk(load_model(find_model(folder)), packed=False)(batch).logp_N, expected)


def test_a_base_that_moved_is_said_with_what_to_edit(tmp_path) -> None:
    folder = adapter(runs.model_folder(tmp_path / "base"), tmp_path / "a")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelError, match=r"base, which is not there: set base_model_name_or_path in .*a/adapter_config"
    ):
        find_model(folder)


def test_an_adapter_on_an_adapter_is_refused_with_what_to_do(tmp_path) -> None:
    first = adapter(runs.model_folder(tmp_path / "base"), tmp_path / "first")
    second = adapter(tmp_path / "base", tmp_path / "second")
    told = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(first)}))
    with pytest.raises(ModelError, match=r"which is an adapter itself: merge that one first \(prefiere export .*first"):
        find_model(second)


def test_a_learnt_prompt_is_refused(tmp_path) -> None:
    made = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder = adapter(runs.model_folder(tmp_path / "base"), tmp_path / "a", config=made)
    with pytest.raises(
        ModelError, match="is a PROMPT_TUNING adapter, which learns a prompt and no layers: name its base"
    ):
        find_model(folder)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_base_are_not_trained_under_an_adapter(tmp_path, bias) -> None:
    with pytest.raises(ModelError, match=f"bias={bias} trains biases of the base itself"):
        Adapter.of({"r": 2, "bias": bias})
    folder = adapter(runs.model_folder(tmp_path / "base", family="gpt2"), tmp_path / "a", bias=bias)
    with pytest.raises(ModelError, match=f"trained biases of its base .bias={bias}.*: merge it first"):
        Adapter.saved(str(folder))


def test_ends_that_only_config_json_names(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "base")
    (base / "generation_config.json").unlink(missing_ok=True)
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | {"eos_token_id": [5, 9]}))
    assert generation_config(Source(str(base), None)).eos_token_id == [5, 9]
    GenerationConfig(eos_token_id=[7]).save_pretrained(base)
    assert generation_config(Source(str(base), None)).eos_token_id == [7]


def test_no_limit_of_positions_is_none(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlnet", "n_layer": 1}))
    assert positions(Source(str(tmp_path), None)) is None


@pytest.mark.parametrize(
    ("kind", "says"),
    [("t5", "t5 has an encoder and a decoder"), ("llava", "llava reads images or sound beside text")],
)
def test_what_is_no_language_model_is_said(tmp_path, kind, says) -> None:
    base = runs.model_folder(tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"base cannot be a policy: {says}, and transformers has no text-only") as e:
        load_policy(find_model(base), compute=torch.float32, adapter=None)
    assert len(str(e.value).splitlines()) == 1
