"""Whether several processes may share the tokens of each packed row (`kernels.split`): asked before a weight is loaded.

Whether the model's rows run packed, and come out the same when they are shared, a check at load says.
"""

from __future__ import annotations

from typing import Any

from prefiere.asked.language import in_words
from prefiere.methods import METHODS
from prefiere.settings import Settings

ALIKE = {"full_attention", "sliding_attention"}
"""Kinds of layers, as configurations call them, in which tokens meet in attention alone."""
BY_THE_LONGEST = {"dynamic", "longrope"}
"""Rotary positions that change with the longest row that a forward sees."""


def refuse_sharing(settings: Settings, processes: int, config: Any, *, packed: bool) -> None:
    """Raise ValueError, in one line, where ``sequence_parallel_size`` processes cannot share the tokens of a row.

    processes: of the run. config: of the model. packed: whether its rows may be.
    """
    if settings.sequence_parallel_size > 1 and (why := _why_not(settings, processes, config, packed)) is not None:
        raise ValueError(f"sequence_parallel_size={settings.sequence_parallel_size}: {why}")


def _why_not(settings: Settings, processes: int, config: Any, packed: bool) -> str | None:
    size, text = settings.sequence_parallel_size, config.get_text_config()
    if METHODS[settings.method].family == "policy":
        return in_words("why.shared_answers", method=settings.method)
    if not packed:
        return in_words("why.shared_padding")
    if settings.torch_compile:
        return in_words("why.shared_compiled")
    if processes % size:
        return in_words("why.shared_processes", count=processes, size=size)
    if other := set(getattr(text, "layer_types", None) or ()) - ALIKE:
        return in_words("why.shared_layers", kind=min(other))
    if changing := _rotary(text) & BY_THE_LONGEST:
        return in_words("why.shared_positions", kind=min(changing))
    heads = getattr(text, "num_attention_heads", None)  # where it has no number, a check at load finds out
    if isinstance(heads, int) and heads % size:
        fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        return in_words("why.shared_heads", heads=heads, fits=fits)
    return None


def _rotary(text: Any) -> set[str]:
    """The kinds of rotary positions that a configuration names, of all layers or by their kinds."""
    said = getattr(text, "rope_parameters", None) or {}
    each = [said, *(part for part in said.values() if isinstance(part, dict))]
    return {str(part["rope_type"]) for part in each if "rope_type" in part}
