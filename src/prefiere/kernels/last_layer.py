"""The last decoder layer runs only where its output is read: nobody looks at the hidden states of a prompt.

Keys and values of the layer are needed for every token; the residual stream, the output of attention and the MLP for
the rows that predict a target alone. Hooks on the layer select them, so that no architecture is written out here: the
layer gets the rows that are read, its attention gets all of them. It fits decoders whose layers look like Llama's
(``self_attn`` behind ``input_layernorm``, or behind nothing); whether it is exact for a model, the probe says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from prefiere.kernels.attention import AttentionPlan

MARK = "_prefiere_last_layer"


@dataclass(frozen=True, slots=True)
class _Inside:
    """What the layer hands on to its attention: the plan, and the states of all rows, normalised."""

    plan: AttentionPlan
    states_1TH: Tensor


def trim(decoder: nn.Module) -> bool:
    """Let the last layer of a decoder skip rows that a plan does not read; returns whether it does.

    Hidden states [1, T, H] come out of it as [1, M, H], M the rows of ``plan.last``.
    """
    layers: Any = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers) or not hasattr(layers[-1], "self_attn"):
        return False
    layer: Any = layers[-1]
    if not hasattr(layer, MARK):
        layer.register_forward_pre_hook(_into_layer, with_kwargs=True)
        layer.self_attn.register_forward_pre_hook(_into_attention, with_kwargs=True)
        layer.self_attn.register_forward_hook(_out_of_attention, with_kwargs=True)
        setattr(layer, MARK, True)
    return bool(getattr(layer, MARK))


def untrim(decoder: nn.Module) -> bool:
    """Never trim this decoder; returns whether it was trimmed."""
    was = trim(decoder)
    if was:
        setattr(cast(Any, decoder).layers[-1], MARK, False)
    return was


def _into_layer(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    plan = kwargs.get("segments")
    if not isinstance(plan, AttentionPlan) or plan.last is None:
        return args, kwargs
    states = args[0] if args else kwargs["hidden_states"]
    inside = layer.input_layernorm(states) if hasattr(layer, "input_layernorm") else states
    rows = states.index_select(1, plan.last.rows_M)
    kwargs = {**kwargs, "segments": _Inside(plan.last, inside)}
    return ((rows, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": rows})


def _into_attention(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inside = kwargs.get("segments")
    if not isinstance(inside, _Inside):
        return args, kwargs
    kwargs = {**kwargs, "segments": inside.plan}
    if args:
        return (inside.states_1TH, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": inside.states_1TH}


def _out_of_attention(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    plan = kwargs.get("segments")
    if not isinstance(plan, AttentionPlan) or plan.rows_M is None:
        return output
    return output[0].index_select(1, plan.rows_M), *output[1:]
