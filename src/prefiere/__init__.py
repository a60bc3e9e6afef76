"""prefiere: align language models with human preferences.

>>> import prefiere
>>> sorted(prefiere.__all__)
['Run', '__version__', 'compare', 'dpo', 'grpo', 'ppo', 'read', 'reinforce', 'reward', 'rloo', 'sft']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefiere.api.methods import dpo, grpo, ppo, reinforce, reward, rloo, sft
    from prefiere.api.training import compare
    from prefiere.data.formats import read
    from prefiere.run import Run

    __version__: str

__all__ = ["Run", "__version__", "compare", "dpo", "grpo", "ppo", "read", "reinforce", "reward", "rloo", "sft"]

_HOMES = dict.fromkeys(__all__, "prefiere.api.methods") | {
    "compare": "prefiere.api.training",
    "Run": "prefiere.run",
    "read": "prefiere.data.formats",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: reading data or a report must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("prefiere")
    if name not in _HOMES:
        raise AttributeError(f"module 'prefiere' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
