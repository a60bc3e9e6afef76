"""The demo's model before it has learnt anything: a tokenizer fitted to the corpus, a small Llama with random weights.

Small enough (1.4 million parameters) to be trained from scratch on a laptop by the project's own ``sft``, and a
plain transformers folder like any other, so that nothing in the demo is a special case.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefiere.demo.corpus import demonstrations

VOCABULARY = 3000
PAD, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ("system", "user", "assistant") -%}
{{- raise_exception("unknown role " ~ message.role ~ ": use system, user or assistant") -}}
{%- endif -%}
{{- "<|" ~ message.role ~ "|>" -}}
{%- if message.role == "assistant" -%}
{%- generation -%}{{- message.content ~ "<|end|>" -}}{%- endgeneration -%}
{%- else -%}
{{- message.content ~ "<|end|>" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` entries fitted to the corpus: any text in any script goes through it unchanged.

    A turn is ``<|role|>text<|end|>``; ``<|end|>`` is also the end-of-sequence token, padding has a token of its own.
    """
    texts = {message.content for d in demonstrations() for message in (*d.prompt, *d.completion)}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A Llama with random weights: hidden 128, 4 layers, 4 heads, 1.4M parameters, fp32.

    The same seed gives the same weights; the caller's random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.08,  # from 0.02 so small a model takes half as long again to start learning
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        max_new_tokens=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def build_base(folder: Path, seed: int = 0) -> Path:
    """Write the untrained model and its tokenizer as a transformers folder; returns the folder."""
    tokenizer = make_tokenizer()
    make_model(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
