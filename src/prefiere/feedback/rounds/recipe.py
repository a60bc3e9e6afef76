"""What a loop is asked to do: a small YAML file, checked before anything is sampled."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefiere import recipe as recipes
from prefiere.feedback import items
from prefiere.recipe import RecipeError
from prefiere.settings import Settings

_HOURS = re.compile(r"(\d+(?:\.\d+)?) ?h")
_OURS = ("method", "model", "data", "out")  # what the loop itself tells each run


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Asking(_Keys):
    """When a round has asked enough: at so many votes of people, or at a time, whichever comes first."""

    votes: int | None = Field(None, ge=0, description="people's votes on the round's pairs; 0: a judge alone decides")
    until: str | None = Field(None, description="48h after the round began, a time (2026-12-01T18:00), or enough")

    @field_validator("until", mode="before")
    @classmethod
    def _a_time(cls, value: Any) -> Any:
        """YAML reads an unquoted time as a time."""
        return value.isoformat() if isinstance(value, datetime) else value

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.votes is None and self.until is None:
            raise ValueError("say when a round has asked enough: votes, until, or both")
        self.deadline(0.0)
        return self

    @property
    def enough(self) -> bool:
        """Whether the stop rule ends it: see `science.active.stopping`."""
        return self.until == "enough"

    def deadline(self, began: float) -> float | None:
        """The time, in seconds since 1970, at which a round that began then ends. Raises ValueError for no time."""
        if self.until is None or self.enough:
            return None
        if hours := _HOURS.fullmatch(self.until):
            return began + 3600 * float(hours[1])
        try:
            return datetime.fromisoformat(self.until).timestamp()  # without an offset: this machine's time
        except ValueError:
            raise ValueError(f"until must be 48h, a time as 2026-12-01T18:00, or enough, not {self.until!r}") from None


class Comparing(_Keys):
    """The blind comparison at the end of a round: of how many votes of people, on which prompts."""

    votes: int = Field(ge=0, description="people's votes; 0: a judge alone decides")
    prompts: str | None = Field(None, description="prompts to compare on; none: the loop's")


class LoopRecipe(_Keys):
    """Every key of a loop's recipe."""

    store: str = Field(description="the store of votes: a file, or postgresql://...")
    model: str = Field(description="hub id, folder of a model or adapter, or a run: what the first round starts from")
    prompts: str = Field(description="text with one prompt a line, or data in any layout")
    out: str = Field("runs/loop", description="a folder: each round's run goes into it")
    rounds: int = Field(1, ge=1, description="rounds at most")
    method: Literal["dpo", "sft"] = Field("dpo", description="how a round learns")
    ask: Asking = Field(description="when a round has asked enough")
    compare: Comparing = Field(description="the blind comparison before and after")
    judge: str | None = Field(None, description="module:function, a reward model, or an endpoint, that votes too")
    limit: int | None = Field(None, ge=1, description="the first so many prompts only")
    overlap: int | None = Field(None, ge=1, description="people a pair; none: one, two for 12% of the pairs")
    temperature: float = Field(1.0, gt=0, description="of the answers that are asked about")
    top_p: float = Field(1.0, gt=0, le=1, description="of the nucleus to sample from")
    max_new_tokens: int = Field(128, ge=1, description="of an answer")
    seed: int = Field(0, ge=0, description="of the answers and the order of the pairs")
    train: dict[str, Any] = Field({}, description="settings of each run, as in docs/settings.md")

    @model_validator(mode="after")
    def _somebody_votes(self) -> Self:
        for key in ("ask", "compare"):
            if getattr(self, key).votes == 0 and self.judge is None:
                raise ValueError(f"{key}.votes is 0 and there is no judge: nobody would vote")
        return self

    def digest(self) -> str:
        """A hash of what makes the answers and the weights. How long people are asked may change while it runs."""
        made = self.model_dump(include={"model", "prompts", "out", "method", "limit", "temperature", "top_p",
                                        "max_new_tokens", "seed", "train"})  # fmt: skip
        return items.digest(made | {"compared_on": self.compare.prompts})

    def settings(self, model: str, data: str, out: str) -> Settings:
        """What one round's run is asked. Raises RecipeError for a key under ``train`` that cannot be."""
        return recipes.load(self.method, None, {**self.train, "model": model, "data": data, "out": out})


def load_loop(path: str | Path) -> LoopRecipe:
    """Read a loop's recipe. Raises RecipeError, with file, line and key, or FileNotFoundError."""
    given = recipes.read_keys(path)
    try:
        found = LoopRecipe(**{key: value for key, (value, _) in given.items()})
    except ValidationError as e:
        raise RecipeError(_explain(path, given, e)) from e
    where = given.get("train", (None, f"{path}: "))[1]
    for key in _OURS:
        if key in found.train:
            raise RecipeError(f"{where}train.{key} is for the loop to say: write {key} at the margin, or leave it out.")
    try:
        found.settings(found.model, found.store, found.out)
    except RecipeError as e:
        raise RecipeError(f"{where}train: {e}") from e
    return found


def _explain(path: str | Path, given: dict[str, tuple[Any, str]], error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] != "missing"), errors[0])  # a misspelt key is missing, too
    key = ".".join(map(str, first["loc"]))
    where = given[str(first["loc"][0])][1] if first["loc"] and first["loc"][0] in given else f"{path}: "
    if first["type"] == "missing":
        return f"{where}{key} is missing."
    if first["type"] == "extra_forbidden":
        within: type[_Keys] = LoopRecipe
        if len(first["loc"]) > 1:
            within = Asking if first["loc"][0] == "ask" else Comparing
        return f"{where}{key} is not a key of a loop: it has {', '.join(within.model_fields)}."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}{key + ': ' if key else ''}{message}."
