"""How others serve an exported model: a Modelfile for Ollama, a command for vLLM."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_SAID = {"system": "SYSTEM-TEXT-0", "user": "USER-TEXT-1", "assistant": "ANSWER-TEXT-2", "again": "USER-TEXT-3"}


@dataclass(frozen=True, slots=True)
class Turns:
    """A chat template as the text around each turn: ``{}`` stands for what is said.

    start: before the first turn where there is no system message. answer: what an answer begins with.
    """

    start: str
    system: str | None
    user: str
    answer: str
    assistant: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Turns | None:
        """The turns of a tokenizer's template; None where it is no text around each turn."""
        if not isinstance(tokenizer.chat_template, str):
            return None
        asked = {"role": "user", "content": _SAID["user"]}
        said = {"role": "assistant", "content": _SAID["assistant"]}
        again = {"role": "user", "content": _SAID["again"]}
        one, two, three = (_rendered(tokenizer, turns) for turns in ([asked], [asked, said], [asked, said, again]))
        waiting = _rendered(tokenizer, [asked], add_generation_prompt=True)
        if not (two.startswith(one) and three.startswith(two) and waiting.startswith(one)):
            return None
        user = three[len(two) :].replace(_SAID["again"], "{}")
        turn = user.replace("{}", _SAID["user"])
        if "{}" not in user or not one.endswith(turn):
            return None
        added = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]  # then whoever tokenizes adds it
        bos = str(tokenizer.bos_token) if added else ""
        system = _system(tokenizer, asked, turn, bos)
        start = one[: -len(turn)].removeprefix(bos)
        return cls(start, system, user, waiting[len(one) :], two[len(one) :].replace(_SAID["assistant"], "{}"))

    def for_ollama(self) -> str:
        """As a template in Go's language."""
        start = "{{ if .System }}" + self.system.replace("{}", "{{ .System }}") + "{{ else }}" if self.system else ""
        last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        user = self.user.replace("{}", "{{ .Content }}") + "{{ if $last }}" + self.answer + "{{ end }}"
        said = '{{ else if eq .Role "assistant" }}' + self.assistant.replace("{}", "{{ .Content }}") + "{{ end }}"
        turns = "{{ range $i, $_ := .Messages }}" + last + '{{ if eq .Role "user" }}' + user + said + "{{ end }}"
        return f"{start}{self.start}{'{{ end }}' if self.system else ''}{turns}"


def _system(tokenizer: Any, asked: dict[str, str], turn: str, bos: str) -> str | None:
    """The text around a system message, or None where the template takes none before a plain user's turn."""
    try:
        told = _rendered(tokenizer, [{"role": "system", "content": _SAID["system"]}, asked])
    except Exception:  # a template may refuse the role in any way that its author liked
        return None
    if not told.endswith(turn) or _SAID["system"] not in told:
        return None
    return told[: -len(turn)].removeprefix(bos).replace(_SAID["system"], "{}")


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def modelfile(folder: Path, weights: str, name: str) -> str:
    """Ollama's Modelfile for a GGUF file that lies beside it.

    folder: has the tokenizer. Where its template is no text around each turn, the template inside the file decides.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [f"# ollama create {name} -f Modelfile && ollama run {name}", f"FROM ./{weights}"]
    turns = Turns.of(tokenizer)
    if turns is not None and '"""' not in (text := turns.for_ollama()):
        lines.append(f'TEMPLATE """{text}"""')
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def vllm_command(folder: Path) -> str:
    """The command that serves an exported folder with vLLM: a whole model, or an adapter on its base."""
    told = folder / "adapter_config.json"
    if not told.is_file():
        return f"vllm serve {shlex.quote(str(folder))}"
    config = json.loads(told.read_text())
    base, rank = str(config["base_model_name_or_path"]), config.get("r", 16)
    named = shlex.quote(f"{folder.name}={folder}")
    return f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} --lora-modules {named}"
