"""What a setting may be: types that pydantic checks, with the words that say so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1), "a whole number from 1"]
Whole = Annotated[int, Field(ge=0), "a whole number from 0"]
Positive = Annotated[float, Field(gt=0), "a number above 0"]
Amount = Annotated[float, Field(ge=0), "a number from 0"]
Share = Annotated[float, Field(ge=0, lt=1), "a number from 0 up to, not including, 1"]
Half = Annotated[float, Field(ge=0, lt=0.5), "a number from 0 up to, not including, 0.5"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Several = Annotated[int, Field(ge=2), "a whole number from 2"]


def prompts_file(sample_prompts: object) -> str | None:
    """The file of prompts that ``sample_prompts`` names; None for a number of prompts, or "auto"."""
    return sample_prompts if isinstance(sample_prompts, str) and sample_prompts != "auto" else None


_REFERENCE = {"sigmoid", "ipo", "hinge", "robust"}
_PAIRWISE = _REFERENCE | {"simpo", "orpo", "cpo"}
NEEDS_REFERENCE = _REFERENCE | {"kto"}
"""The losses that compare the policy with what it was before the run."""
# The losses that have an option; the others would ignore it, so setting it for them is an error.
LOSSES_WITH: dict[str, set[str]] = {
    "label_smoothing": _PAIRWISE,
    "rpo_alpha": _PAIRWISE,
    "dpop_lambda": _REFERENCE,
    "simpo_gamma": {"simpo"},
    "desirable_weight": {"kto"},
    "undesirable_weight": {"kto"},
}
