"""Text that a chat template wrote before it got here: recognised, so that it is not rendered again."""

from __future__ import annotations

import re

# A format: what its turns begin with, how a prompt in it ends, and the marker that a template of it holds.
_FORMATS = (
    ("ChatML", r"<\|im_start\|>(?:system|user|developer)", r"<\|im_start\|>assistant\s*", "<|im_start|>"),
    (
        "Llama 3",
        r"<\|start_header_id\|>",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*",
        "<|start_header_id|>",
    ),
    ("[INST]", r"\[INST\]", r"\[/INST\]\s*", "[INST]"),
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
