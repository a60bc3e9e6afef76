"""A language model inside one that reads images: what is trained is said, and its adapter fits the published class."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    Llama4Config,
    Llama4ForConditionalGeneration,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

import runs
import tiny
from prefiere.launch import launch
from prefiere.models.configuration import TakenOut, published
from prefiere.models.export import export_model, load_plain
from prefiere.models.load import load_model
from prefiere.models.source import find_model
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def qwen(words: int, end: int) -> PreTrainedModel:
    linear = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")} | {
        f"linear_num_{kind}_heads": 2 for kind in ("key", "value")
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    text = TEXT | linear | {"vocab_size": words, "layer_types": ["linear_attention", "full_attention"],
                            "rope_parameters": rope, "eos_token_id": end}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 4, "num_position_embeddings": 16}  # fmt: skip
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))


def llama(words: int, end: int) -> PreTrainedModel:
    text = TEXT | {"vocab_size": words, "intermediate_size_mlp": 48, "num_local_experts": 2, "eos_token_id": end,
                   "pad_token_id": 0, "bos_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
              "vision_output_dim": 16, "image_size": 8, "patch_size": 4, "projector_input_dim": 16,
              "projector_output_dim": 16}  # fmt: skip
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))


def folder_of(path: Path, make: object) -> Path:
    tokenizer = tiny.tokenizer("bpe", True)
    torch.manual_seed(0)
    model = make(len(tokenizer), tokenizer.eos_token_id)  # type: ignore[operator]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("make", "here", "there"), [(qwen, "model.", "model.language_model."), (llama, "", "language_model.")]
)
def test_where_a_language_model_was_taken_out_of(tmp_path: Path, make: object, here: str, there: str) -> None:
    folder = folder_of(tmp_path / "model", make)
    model = load_model(find_model(folder))
    whole = {"qwen": "Qwen3_5ForConditionalGeneration", "llama": "Llama4ForConditionalGeneration"}[make.__name__]  # type: ignore[attr-defined]
    assert published(model).taken_out == TakenOut(whole, here, there)


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_says_so_and_its_adapter_loads_on_the_published_class(tmp_path: Path, lora: bool) -> None:
    folder = folder_of(tmp_path / "model", qwen)
    settings = runs.settings(tmp_path, lora=lora, max_steps=2, learning_rate=1e-2, sample_steps=0)
    (note,) = resolve(settings, Device.of(torch.device("cpu")), {}).notes
    assert "Qwen3_5ForConditionalGeneration, of which the language model alone is trained" in note
    run = launch(settings).run
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("the dog is a friend of man").input_ids])
    with torch.no_grad():
        before = Qwen3_5ForConditionalGeneration.from_pretrained(folder)(ids).logits
        after = load_model(find_model(run.folder))(ids).logits
        assert (after - before).abs().max() > 1e-3
        plain = load_plain(run.model)
        assert type(plain).__name__ == ("PeftModelForCausalLM" if lora else "Qwen3_5ForCausalLM")
        assert plain(ids).logits.numpy() == pytest.approx(after.numpy(), abs=1e-5)
        if lora:
            whole = PeftModel.from_pretrained(Qwen3_5ForConditionalGeneration.from_pretrained(folder), str(run.model))
            assert whole(ids).logits.numpy() == pytest.approx(after.numpy(), abs=1e-5)
    asked = [ids[0].numpy().astype("int32")]
    written = export_model(find_model(run.folder), tmp_path / "out", merge=False, prompts=asked, eos_ids=[2])
    assert [m.changed for m in written.moved] == [0.0]


def test_an_adapter_of_a_language_model_taken_out_is_trained_on(tmp_path: Path) -> None:
    folder_of(tmp_path / "model", qwen)
    first = runs.settings(tmp_path, lora=True, max_steps=2, learning_rate=1e-2, sample_steps=0)
    run = launch(first).run
    on = runs.settings(tmp_path, max_steps=1, sample_steps=0).model_copy(
        update={"model": str(run.folder), "out": str(tmp_path / "on")}
    )
    again = launch(on).run
    assert again.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # its reference is the adapter as it came
    assert not set(runs.weights(run)) ^ set(runs.weights(again))
    assert all(".model.language_model.layers." in name for name in runs.weights(again))
