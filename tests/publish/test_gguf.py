"""GGUF files against transformers' own reader, the published layout of GGUF's llama, and refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from prefiere.models.source import ModelError
from prefiere.publish import gguf_file

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
TEXTS = ["What is a dog? It's 12 años.\n\n  yes", "¿Qué es un perro?", "a"]
TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def byte_level(*before: object) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer."""
    found = Tokenizer(BPE())
    found.pre_tokenizer = (
        pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        if before
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )  # type: ignore[list-item]
    found.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    found.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<|end|>", chat_template=TURN)


def folder_of(path: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    Causal.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def prompts(tokenizer: PreTrainedTokenizerFast) -> list[np.ndarray]:
    return [np.asarray(ids, np.int32) for ids in tokenizer(TEXTS[:2]).input_ids]


CONFIGS = {
    "llama": lambda n: LlamaConfig(vocab_size=n, **SHAPE),
    "llama tied, wider heads": lambda n: LlamaConfig(vocab_size=n + 7, tie_word_embeddings=True, head_dim=32, **SHAPE),
    "mistral": lambda n: MistralConfig(vocab_size=n, sliding_window=None, rms_norm_eps=1e-5, **SHAPE),
    "qwen2": lambda n: Qwen2Config(vocab_size=n, **SHAPE),
    "qwen3": lambda n: Qwen3Config(vocab_size=n, head_dim=128, **SHAPE),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_back_computes_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level()
    folder = folder_of(tmp_path / "m", CONFIGS[name](len(tokenizer)), tokenizer)
    gguf_file.write_gguf(folder, tmp_path / "m.gguf", "f32")
    found = gguf_file.verify(folder, tmp_path / "m.gguf", prompts(tokenizer), TEXTS)
    assert found.most < 1e-5
    assert found.tokens == sum(len(p) - 1 for p in prompts(tokenizer))


@pytest.mark.parametrize(("bits", "most"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 3e-2)])
def test_fewer_bits_are_said_and_small(tmp_path: Path, bits: gguf_file.Bits, most: float) -> None:
    tokenizer = byte_level()
    folder = folder_of(tmp_path / "m", CONFIGS["llama"](len(tokenizer)), tokenizer)
    gguf_file.write_gguf(folder, tmp_path / "m.gguf", bits)
    found = gguf_file.verify(folder, tmp_path / "m.gguf", prompts(tokenizer), TEXTS)
    assert 0 < found.most < most
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == bits.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_a_verification_sees_another_weight(tmp_path: Path) -> None:
    tokenizer = byte_level()
    folder = folder_of(tmp_path / "m", CONFIGS["llama"](len(tokenizer)), tokenizer)
    other = folder_of(tmp_path / "n", CONFIGS["llama"](len(tokenizer)), tokenizer, seed=1)
    gguf_file.write_gguf(other, tmp_path / "n.gguf", "f32")
    assert gguf_file.verify(folder, tmp_path / "n.gguf", prompts(tokenizer), TEXTS).most > 1e-3


def test_queries_rotate_neighbours(tmp_path: Path) -> None:
    """Row 2i of a head in GGUF's llama is row i of transformers' first half, row 2i + 1 the same of its second."""
    weight = np.arange(4 * 16 * 3, dtype=np.float32).reshape(64, 3)
    laid = gguf_file._as_laid_out("model.layers.0.self_attn.q_proj.weight", weight, LlamaConfig(**SHAPE), "llama")
    for head in range(4):
        for i in range(8):
            assert (laid[16 * head + 2 * i] == weight[16 * head + i]).all()
            assert (laid[16 * head + 2 * i + 1] == weight[16 * head + 8 + i]).all()
    kept = gguf_file._as_laid_out("model.layers.0.self_attn.v_proj.weight", weight, LlamaConfig(**SHAPE), "llama")
    assert (kept == weight).all()


def test_the_tokenizer_in_the_file(tmp_path: Path) -> None:
    tokenizer = byte_level(pre_tokenizers.Digits(individual_digits=True))
    folder = folder_of(tmp_path / "m", CONFIGS["llama"](len(tokenizer) + 3), tokenizer)
    gguf_file.write_gguf(folder, tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    value = {name: f.contents() for name, f in fields.items()}
    assert value["general.architecture"] == "llama"
    assert value["tokenizer.ggml.model"] == "gpt2"
    assert value["tokenizer.ggml.pre"] == "smollm"
    assert value["tokenizer.chat_template"] == TURN
    assert value["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    tokens, kinds = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[-3:] == [f"[PAD{len(tokenizer) + i}]" for i in range(3)]
    assert (kinds[0], kinds[1], kinds[-1]) == (3, 1, 5)  # control, normal, unused
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert value["tokenizer.ggml.merges"] == [" ".join(m) for m in merges]


LONGER = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "split", "said"),
    [
        (lambda n: LlamaConfig(vocab_size=n, rope_parameters=LONGER, **SHAPE), (), "positions of the kind llama3"),
        (lambda n: LlamaConfig(vocab_size=n, mlp_bias=True, **SHAPE), (), "no such feed-forward"),
        (lambda n: Qwen3Config(vocab_size=n, head_dim=16, **SHAPE), (), "heads of 16"),
        (lambda n: PreTrainedConfig(model_type="gpt_neox"), (), "gpt_neox models are not written as GGUF"),
        (lambda n: LlamaConfig(vocab_size=n, **SHAPE), (pre_tokenizers.Whitespace(),), "has no name in GGUF"),
    ],
)
def test_what_readers_would_compute_otherwise_is_refused(
    tmp_path: Path, config: object, split: tuple[object, ...], said: str
) -> None:
    tokenizer = byte_level(*split)
    made = config(len(tokenizer))  # type: ignore[operator]
    folder = tmp_path / "m"
    folder.mkdir()
    made.save_pretrained(folder)
    if made.model_type == "gpt_neox":
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=said):
        gguf_file.write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf*"))


def pieces() -> PreTrainedTokenizerFast:
    """A small tokenizer as Llama 2 and Mistral have it: SentencePiece's BPE with bytes to fall back on."""
    found = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    text = "the dog is in the house and the dog eats what is a dog an animal el perro come en la casa"
    words = text.split(" ")
    texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    found.train_from_iterator(texts, BpeTrainer(vocab_size=330, special_tokens=names))
    told = json.loads(found.to_str())
    told["added_tokens"] = told["added_tokens"][:3]  # bytes are ordinary tokens
    told["pre_tokenizer"] = None
    told["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    whole = Tokenizer.from_str(json.dumps(told))
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_sentencepiece_tokenizer_is_read_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = pieces()
    said = ["the dog is in the house", "el perro come", "¿what? 12 años", "animal  animal"]
    split = [tokenizer.tokenize(text) for text in said]
    assert split[0][:3] == ["▁the", "▁dog", "▁is"]
    assert "<0xC2>" in split[2]  # a letter that it never saw, byte by byte
    folder = folder_of(tmp_path / "m", CONFIGS["llama"](len(tokenizer)), tokenizer)
    gguf_file.write_gguf(folder, tmp_path / "m.gguf", "f32")
    ids = [np.asarray(x, np.int32) for x in tokenizer(said).input_ids]
    found = gguf_file.verify(folder, tmp_path / "m.gguf", ids, said)
    assert found.same_ids
    assert found.most < 1e-5
    value = {name: f.contents() for name, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert value["tokenizer.ggml.model"] == "llama"
    assert value["tokenizer.ggml.add_bos_token"] is True
    kinds = dict(zip(value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x41>"], kinds["▁the"]) == (2, 3, 6, 1)
    scores = dict(zip(value["tokenizer.ggml.tokens"], value["tokenizer.ggml.scores"], strict=True))
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    made = ["".join(m.split(" ") if isinstance(m, str) else m) for m in merges]
    assert all(scores[a] > scores[b] for a, b in pairwise(made))  # an earlier merge scores higher


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    tokenizer = byte_level()
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **SHAPE)  # logits far from uniform
    folder, other = (folder_of(tmp_path / n, config, tokenizer, seed) for seed, n in enumerate("mn"))
    for bits in get_args(gguf_file.Bits):
        gguf_file.write_gguf(folder, tmp_path / "m.gguf", bits)
        gguf_file.verify(folder, tmp_path / "m.gguf", prompts(tokenizer), TEXTS).holds(bits)
        with pytest.raises(ModelError, match="computes something else"):
            gguf_file.verify(other, tmp_path / "m.gguf", prompts(tokenizer), TEXTS).holds(bits)
