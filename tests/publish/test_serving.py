"""Ollama's template, read by a small interpreter of Go's language, against transformers' chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from prefiere.publish.serving import Turns, modelfile, vllm_command

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "Hi {you}"}, {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What is a dog?"},
]  # fmt: skip


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    found = tiny.tokenizer("bpe", True)
    found.chat_template = template
    return found


def ollama(template: str, system: str | None, turns: list[dict[str, str]]) -> str:
    """What Ollama makes of a template of the kind that is written here."""
    head = re.fullmatch(r"(?:\{\{ if \.System \}\}(?P<sys>.*?)\{\{ else \}\}(?P<no>.*?)\{\{ end \}\}|(?P<start>.*?))"
                        r"\{\{ range \$i, \$_ := \.Messages \}\}\{\{ \$last := .*? \}\}\{\{ if eq \.Role \"user\" \}\}"
                        r"(?P<user>.*?)\{\{ if \$last \}\}(?P<gen>.*?)\{\{ end \}\}"
                        r"\{\{ else if eq \.Role \"assistant\" \}\}(?P<said>.*?)\{\{ end \}\}\{\{ end \}\}",
                        template, re.S)  # fmt: skip
    assert head is not None
    text = head["start"] if head["no"] is None else head["no"]
    if system is not None:
        text = head["sys"].replace("{{ .System }}", system)
    for i, turn in enumerate(turns):
        text += head["user" if turn["role"] == "user" else "said"].replace("{{ .Content }}", turn["content"])
        if turn["role"] == "user" and i == len(turns) - 1:
            text += head["gen"]
    return text


@pytest.mark.parametrize("template", [CHATML, WITHOUT_SYSTEM])
@pytest.mark.parametrize("turns", [TURNS[:1], TURNS])
def test_a_conversation_is_written_as_transformers_writes_it(template: str, turns: list[dict[str, str]]) -> None:
    tokenizer = tokenizer_of(template)
    found = Turns.of(tokenizer)
    assert found is not None
    bos = tokenizer.bos_token if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else ""
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).removeprefix(bos)
    assert ollama(found.for_ollama(), None, turns) == expected
    if template == CHATML:
        told = [{"role": "system", "content": "Be brief."}, *turns]
        expected = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        assert ollama(found.for_ollama(), "Be brief.", turns) == expected
    else:
        assert found.system is None


def test_a_template_that_is_no_text_around_turns_is_left_to_the_file(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert Turns.of(tokenizer) is None
    tokenizer.save_pretrained(tmp_path)
    text = modelfile(tmp_path, "m.gguf", "mine")
    assert text.splitlines()[1] == "FROM ./m.gguf"
    assert "TEMPLATE" not in text
    assert f"PARAMETER stop {json.dumps(tokenizer.eos_token)}" in text


def test_the_command_for_vllm(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    assert vllm_command(folder) == f"vllm serve '{folder}'"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    assert vllm_command(folder) == (
        f"vllm serve org/base --enable-lora --max-lora-rank 8 --lora-modules 'my model={folder}'"
    )
