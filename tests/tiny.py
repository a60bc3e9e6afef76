"""Tiny tokenizers and models, built offline in a moment, so that tests run against the real libraries and no network.

    tokenizer("bpe")                      byte-level, lossless, no BOS
    tokenizer("metaspace", "llama2")      Llama-like: a leading "▁", byte fallback, BOS first, with a chat template
    model("mistral", sliding_window=8)    a random-initialised causal LM in eval mode

Every tokenizer has <pad>=0, <s>=1, </s>=2, <unk>=3, <|im_start|>=4, <|im_end|>=5.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

Kind = Literal["bpe", "metaspace", "wordpiece"]
Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "gemma2"]

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]

CORPUS = [
    "¿Qué es un perro? Un perro es un animal doméstico de la familia de los cánidos.",
    "¿Qué es una casa? Una casa es un edificio en el que vive la gente.",
    "El perro es el mejor amigo del hombre. La casa es donde está el corazón.",
    "What is a dog? A dog is a domestic animal of the family of the canids.",
    "What is a house? A house is a building in which people live.",
    "The dog is man's best friend. Home is where the heart is.",
    "Hello, how are you? I am fine, thank you. Hola, ¿cómo estás? Estoy bien, gracias.",
    "user assistant system tool Human: Assistant: think one two three uno dos tres",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    # A newline follows the end token of each turn.
    "chatml": CHATML,
    # As chatml, with the tools named first and the turns of the assistant marked for `return_assistant_tokens_mask`.
    "generation": (
        "{% if tools %}{{ '<|im_start|>system\ntools:' }}{% for t in tools %}{{ ' ' + t['function']['name'] }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # A default system prompt appears where the conversation has none.
    "default_system": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nA dog.<|im_end|>\n' }}{% endif %}" + CHATML
    ),
    # BOS is part of the text; the system message moves into the first user turn; no text asks for the answer.
    "llama2": (
        "{% set ns = namespace(sys='') %}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{% set ns.sys = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
        "{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + ns.sys + m['content'] + ' [/INST]' }}"
        "{% set ns.sys = '' %}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
        "{% else %}{{ raise_exception('Only user, assistant and system roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # Refuses a system message and turns out of order; has no end token of its own.
    "strict": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
    # Trims what is said, and drops the thinking of every assistant turn but the last.
    "strip": (
        "{% for m in messages %}{% set text = m['content'] | trim %}"
        "{% if m['role'] == 'assistant' and not loop.last and '</think>' in text %}"
        "{% set text = text.split('</think>')[-1] | trim %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}


@cache
def _trained(kind: Kind) -> Tokenizer:
    if kind == "bpe":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "metaspace":
        t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        t.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fallback = [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *fallback], show_progress=False)
    else:
        # Not trained: the trainer's choice among equals differs from one process to the next.
        words = [w for line in CORPUS for w, _ in pre_tokenizers.Whitespace().pre_tokenize_str(line)]
        letters = sorted({c for w in words for c in w})
        pieces = dict.fromkeys([*SPECIAL, *letters, *("##" + c for c in letters), *words[::2]])
        t = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Whitespace()
        t.decoder = decoders.WordPiece(cleanup=False)
        t.add_special_tokens(SPECIAL)
        return t
    t.train_from_iterator(CORPUS, trainer)
    if kind == "metaspace":
        # As in a Llama tokenizer: words were split to learn merges, are not in use, and bytes are ordinary tokens.
        state = json.loads(t.to_str())
        state["pre_tokenizer"] = None
        state["added_tokens"] = [a for a in state["added_tokens"] if not a["content"].startswith("<0x")]
        t = Tokenizer.from_str(json.dumps(state))
    return t


def tokenizer(kind: Kind = "bpe", chat: bool | str = False, bos: bool | None = None) -> PreTrainedTokenizerFast:
    """A trained tokenizer of about 300 to 500 tokens.

    chat: False for no template, True for ChatML, or a name in ``TEMPLATES``. bos: whether <s> is put before raw text
    (default: only for metaspace, as Llama does). Turns of ChatML-like templates end with <|im_end|>, which is then the
    EOS token too; otherwise EOS is </s>.
    """
    t = copy.deepcopy(_trained(kind))
    if bos if bos is not None else kind == "metaspace":
        t.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    name = "chatml" if chat is True else chat
    template = TEMPLATES[name] if name else None
    turn_end = template is not None and "<|im_end|>" in template
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        bos_token="<s>",
        eos_token="<|im_end|>" if turn_end else "</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def model(
    family: Family = "llama",
    vocab_size: int = 400,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    sliding_window: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> PreTrainedModel:
    """A random-initialised causal LM in eval mode, without dropout, whose logits are far from uniform.

    Norm weights and biases are random too, so that forgetting one shows. ``config`` overrides any configuration field.
    The caller's random state is left alone.
    """
    if family == "gpt2":
        fields: dict[str, Any] = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 512}
        fields |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        fields = {
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": hidden // heads,
            "max_position_embeddings": 512,
            "attention_dropout": 0.0,
        }
    if family == "mixtral":
        fields |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if family == "gemma2":
        fields |= {"query_pre_attn_scalar": hidden // heads}
    if family in ("qwen2", "qwen3") and sliding_window is not None:
        fields |= {"use_sliding_window": True, "max_window_layers": 0}
    if family in ("llama", "gpt2"):
        if sliding_window is not None:
            raise ValueError(f"{family} has no sliding window")
    else:
        fields["sliding_window"] = sliding_window
    fields |= {"vocab_size": vocab_size, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1}
    fields |= {"eos_token_id": 2, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return built.to(dtype).eval()
