"""No objective broadcasts in silence: each argument in turn with one dimension more is refused by its name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefiere import objectives
from prefiere.objectives import shapes
from prefiere.objectives.preference import LOSSES, PairBatch

G, L = 3, 3  # equal, so that [G, 1] beside [G, L] would broadcast as well
ONE, TWO, MOMENTS = torch.zeros(G), torch.zeros(G, L), torch.ones(3)
PAIRS = PairBatch(*(torch.zeros(G) for _ in dataclasses.fields(PairBatch)))

ARGUMENTS: dict[str, Any] = {
    "batch": PAIRS, "loss": LOSSES["sigmoid"], "beta": 0.1, "k": 3, "count": torch.tensor(3), "kl_coef": 0.1,
    "baseline": torch.tensor(0.0), "logratio_sum": torch.tensor(0.0), "segment_N": torch.zeros(G, dtype=torch.int64),
    "mask": torch.ones(G, dtype=torch.bool), "mask_CL": torch.ones(G, L, dtype=torch.bool),
}  # fmt: skip
"""Arguments that their names do not tell."""
FREE = ("masked.whiten", "values")
"""Of any shape, and beside no other of it."""


def public_functions() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for m in pkgutil.iter_modules(objectives.__path__):
        module = importlib.import_module(f"prefiere.objectives.{m.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_") and module is not shapes:
                found[f"{m.name}.{name}"] = function
    return found


def fitting(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of the right shapes: by name, else by suffix, else one tensor for each token."""
    given: dict[str, Any] = {}
    for name, p in inspect.signature(function).parameters.items():
        if name in ARGUMENTS:
            given[name] = ARGUMENTS[name]
        elif "Tensor" in str(p.annotation):
            given[name] = TWO if name.endswith("_CL") else MOMENTS if name.endswith("_3") else ONE
    if function.__name__ == "segment_sum":
        given["count"] = 1
    return given


FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_dimension_more_is_refused_by_name(name: str) -> None:
    function = FUNCTIONS[name]
    given = fitting(function)
    function(**given)  # as it should be
    tensors = [n for n, x in given.items() if isinstance(x, torch.Tensor) and (name, n) != FREE]
    assert tensors or given["batch"] is PAIRS, "nothing is checked"
    for n in tensors:
        wrong = {**given, n: given[n][..., None]}
        with pytest.raises(ValueError, match=rf"\b{n} \[.*\].*shape"):
            function(**wrong)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PairBatch)])
def test_a_batch_of_pairs_is_checked_when_it_is_made(field: str) -> None:
    """And so every loss of pairs is."""
    with pytest.raises(ValueError, match=rf"{field} \[3, 1\].*rank 1"):
        dataclasses.replace(PAIRS, **{field: torch.zeros(G, 1)})


@pytest.mark.parametrize("name", ["policy_C", "reference_C", "tokens_C"])
def test_completions_are_flat(name: str) -> None:
    given = {n: torch.zeros(2 * G) for n in ("policy_C", "reference_C", "tokens_C")}
    with pytest.raises(ValueError, match=name):
        PairBatch.from_completions(**{**given, name: torch.zeros(2 * G, 1)})


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"^a \[3\], b \[3, 1\]: must have the same shape, of rank 1$"):
        shapes.same_shape(rank=1, a=torch.zeros(3), b=torch.zeros(3, 1), c=None)
    with pytest.raises(ValueError, match=r"^a \[4\]: must have the shape \[3\]$"):
        shapes.of_shape((3,), a=torch.zeros(4))
