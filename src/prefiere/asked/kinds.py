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
