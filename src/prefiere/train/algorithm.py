"""What an algorithm brings to the loop that all of them share."""

from __future__ import annotations

from typing import Any, Protocol

from prefiere.models.reference import Reference
from prefiere.run import Stop
from prefiere.train.engine import Update


class Algorithm(Protocol):
    """What an algorithm brings to the loop.

    guarded: whether the guard may judge sampled answers. shown: the metric beside the progress bar.
    """

    guarded: bool
    shown: str

    @property
    def examples(self) -> int:
        """How many it learns from (pairs, prompts)."""

    @property
    def reference(self) -> Reference | None:
        """For sampled answers; None: no comparison with it."""

    def step(self, step: int) -> Update:
        """Step number ``step``, counted from 0: one optimizer update, or a rollout and several."""

    def begin(self) -> dict[str, Any]:
        """Columns of the row of step 0: the model before any update."""

    def validate(self) -> dict[str, Any]:
        """Columns of the held-out data."""

    def stop(self, row: dict[str, Any]) -> Stop | None:
        """Why to stop after this row, for a reason of the method's own."""

    def singles(self) -> list[dict[str, Any]]:
        """What single examples showed since this was last asked, as rows of pairs.jsonl."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember of the method itself (JSON)."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""

    def complete(self, *, put_back: bool) -> None:
        """What the trained model still needs before it is written; called in every process. put_back: the weights are
        those of an earlier step, the best one."""
