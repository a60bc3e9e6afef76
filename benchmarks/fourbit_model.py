"""What `fourbit` works on: a model of random weights written layer by layer, a reward model on it, and pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, MistralForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.contenders import LORA
from prefiere.models.trunk import POLICY
from prefiere.tokens.groups import GroupStore, PromptGroup

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
EOS = 2
LENGTHS = ((4.7, 0.9), (5.5, 0.65), (5.5, 0.65))
"""Log-normal mean and deviation of prompt and answers, in tokens: 165 and 302 on average before they are cut."""


@dataclass(frozen=True)
class Size:
    """A model's shape, the longest pair and answer in tokens, groups in an update, updates that are timed."""

    title: str
    shape: dict[str, int]
    length: int
    answer: int
    pairs: int
    prompts: int
    steps: int
    products: tuple[int, ...] | None = None


SIZES = {
    "mistral-7b": Size(
        "Mistral-7B shape",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 32000},
        1024, 384, 16, 32, 4,
    ),
    "tiny": Size(
        "tiny Mistral",
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512},
        128, 8, 4, 4, 1, (256, 512),
    ),
}  # fmt: skip


def pairs(size: Size) -> GroupStore:
    """Random tokens with lengths like UltraFeedback's, scaled with the size: updates to warm up on and to time."""
    rng = np.random.default_rng(0)
    scale = size.length / 1024

    def ids(mean: float, deviation: float, most: int) -> np.ndarray:
        n = int(np.clip(scale * rng.lognormal(mean, deviation), 2, most))
        return rng.integers(len(SPECIAL), size.shape["vocab_size"], n).astype(np.int32)

    groups = []
    for _ in range(max(size.pairs, size.prompts) * (size.steps + 1)):
        prompt = ids(*LENGTHS[0], size.length // 2)
        room = size.length - len(prompt) - 1
        answers = tuple(np.append(ids(*of, room), np.int32(EOS)) for of in LENGTHS[1:])
        groups.append(PromptGroup(prompt, answers, tuple(np.ones(len(a), bool) for a in answers)))
    return GroupStore.build(groups, 2)


def make(folder: Path, size: Size) -> None:
    """The model, its tokenizer, a reward model on it and the pairs as text; nothing where they are there already."""
    if (folder / "pairs.jsonl").is_file():
        return
    config = MistralConfig(
        **size.shape, sliding_window=None, dtype=torch.bfloat16, bos_token_id=1, eos_token_id=EOS, pad_token_id=0
    )  # type: ignore[arg-type]
    base = folder / "model"
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(base)
    write_weights(base, config)
    words = SPECIAL + [f"w{i}" for i in range(len(SPECIAL), config.vocab_size)]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.save_pretrained(base)
    write_reward(folder / "reward", base, config)
    tokenizer.save_pretrained(folder / "reward")
    made = folder / "pairs.part"
    with made.open("w", encoding="utf-8") as f:
        for g in pairs(size):
            parts = zip(
                ("prompt", "chosen", "rejected"), (g.prompt, *(a[:-1] for a in g.completions)), strict=True
            )  # fmt: skip
            f.write(json.dumps({name: " ".join(words[i] for i in ids) for name, ids in parts}) + "\n")
    made.rename(folder / "pairs.jsonl")


def write_weights(folder: Path, config: MistralConfig) -> None:
    """Random weights in bf16, a shard for each layer, drawn by a GPU if one is here: as much memory as a layer."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in MistralForCausalLM(config).named_parameters()}
    torch.manual_seed(0)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else name, []).append(name)
    places, total = {}, 0
    for number, names in enumerate(shards.values(), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {n: drawn(shapes[n]) for n in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
        total += sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def drawn(shape: torch.Size) -> torch.Tensor:
    """A matrix as transformers draws it; a norm's weights are ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(shape, device=device) * 0.02 if len(shape) > 1 else torch.ones(shape)).to(torch.bfloat16)


def write_reward(folder: Path, base: Path, config: MistralConfig) -> None:
    """A reward model of random weights: an adapter on this base with a score head, and its normalisation."""
    shape = MistralConfig.from_dict({**config.to_dict(), "num_labels": 1})
    with torch.device("meta"):
        model = get_peft_model(
            MistralForSequenceClassification(shape), LoraConfig(**{**LORA, "task_type": "SEQ_CLS"})
        )  # fmt: skip
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    folder.mkdir(parents=True)
    save_file({n: torch.randn(p.shape) * 0.01 for n, p in held.items()}, folder / "adapter_model.safetensors")
    saved = model.peft_config[POLICY]
    saved.base_model_name_or_path = str(base)
    saved.save_pretrained(folder)
    (folder / "reward.json").write_text(json.dumps({"mean": 0.0, "std": 1.0, "template": "auto"}))
