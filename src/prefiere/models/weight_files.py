"""A model's files of weights, as they lie in its folder: is one missing or damaged?"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
"""Says which tensor is in which file."""


def damaged_file(folder: Path) -> str | None:
    """Which file is missing or damaged, and what to do; None where nothing is, or ``folder`` is no folder."""
    try:
        text = (folder / INDEX).read_text() if (folder / INDEX).is_file() else '{"weight_map": {}}'
        named = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} is damaged: download it again"
    for path in sorted({*folder.glob("*.safetensors"), *(folder / n for n in named)}):
        if not path.is_file():
            return f"{path.name} is missing: download it again"
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as e:
            return f"{path.name} is damaged ({str(e).splitlines()[0]}): download it again"
    return None
