"""How text is written for a finished model: as its run wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from prefiere.run import Run
from prefiere.tokens.dialect import Manner


def manner_of(model: str | Path, template_kwargs: Mapping[str, Any] | None = None) -> Manner:
    """The manner of a run: its template, the variables of that, and the day that it prints; {} for any other model.

    template_kwargs: takes the place of the run's.
    """
    made: Manner = {}
    if (Path(model) / "recipe.yaml").is_file():
        run = Run.open(model)
        day = run.choices.get("template_date")
        made = {
            "template": run.recipe.get("template", "auto"),
            "template_kwargs": run.recipe.get("template_kwargs"),
            "day": date.fromisoformat(day) if day else None,
        }
    return {**made, "template_kwargs": template_kwargs} if template_kwargs is not None else made
