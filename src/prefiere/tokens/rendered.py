"""Text that a chat template wrote before it got here: recognised, so that it is not rendered again."""

from __future__ import annotations

import re

from prefiere.tokens.dialect import TemplateRefusal

# A format: what its turns begin with, how a prompt in it ends, and the marker that a template of it holds.
_FORMATS = (
    ("ChatML", r"<\|im_start\|>(?:system|user|developer)", r"<\|im_start\|>assistant\s*", "<|im_start|>"),
    (
        "Llama 3",
        r"<\|start_header_id\|>",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*",
        "<|start_header_id|>",
    ),
    (
        "Llama 4",
        r"<\|header_start\|>",
        r"<\|header_start\|>assistant<\|header_end\|>\s*",
        "<|header_start|>",
    ),
    (
        "Granite",
        r"<\|start_of_role\|>",
        r"<\|start_of_role\|>assistant<\|end_of_role\|>\s*",
        "<|start_of_role|>",
    ),
    ("Kimi", r"<\|im_(?:user|system)\|>", r"<\|im_assistant\|>assistant<\|im_middle\|>\s*", "<|im_user|>"),
    ("[INST]", r"\A\s*(?:<s>\s*)?\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]", r"\[/INST\]\s*", "[INST]"),
    ("Gemma", r"<start_of_turn>user", r"<start_of_turn>model\s*", "<start_of_turn>"),
    ("Zephyr", r"<\|(?:system|user)\|>", r"<\|assistant\|>\s*", "<|assistant|>"),
    ("DeepSeek", "<｜User｜>", "<｜Assistant｜>", "<｜Assistant｜>"),
    ("Harmony", r"<\|start\|>user", r"<\|start\|>assistant(?:<\|channel\|>\w+<\|message\|>)?", "<|start|>"),
    ("Command", r"<\|USER_TOKEN\|>", r"<\|CHATBOT_TOKEN\|>\s*", "<|CHATBOT_TOKEN|>"),
    ("Vicuna", r"(?:^|\s)USER:", r"\sASSISTANT:\s*", "ASSISTANT:"),
    ("Alpaca", r"### Instruction", r"### (?:Response|Answer|Output):?\s*", "### Response"),
)
_PATTERNS = [
    (name, re.compile(begin), re.compile(rf"(?:{end})(?:<think>\s*)?\Z"), marker)
    for name, begin, end, marker in _FORMATS
]


def format_of(prompt: str) -> tuple[str, str] | None:
    """The name and the marker of the chat format that a prompt is written in, ready to be answered; None for others."""
    tail = prompt[-80:].rstrip()
    if tail[-1:] not in ("t", "T", ">", "]", ":", "n", "l", "e", "r"):
        return None
    for name, begin, end, marker in _PATTERNS:
        if end.search(prompt, max(0, len(prompt) - 80)) and begin.search(prompt):
            return name, marker
    return None


_OPENING = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)?\s*"
    r"(?:<\|im_start\|>(?:system|user|developer|assistant)\s|<\|im_(?:user|system)\|>|<\|start_of_role\|>"
    r"|<\|(?:start_header_id|header_start)\|>|<start_of_turn>(?:user|model)\s|<｜User｜>|<\|START_OF_TURN_TOKEN\|>)"
)


def refuse_rendered(text: str) -> None:
    """Raise `TemplateRefusal` for a message that begins as a template writes a turn: it would be rendered twice."""
    if text.lstrip()[:1] == "<" and (found := _OPENING.match(text)):
        raise TemplateRefusal(
            f"a message begins with {found[0].strip()!r}, as rendered text does, and is no prompt that waits for its "
            "answer: give the bare text or messages, or whole texts under template=never"
        )
