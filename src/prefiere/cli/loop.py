"""``prefiere loop``: the models of a loop's rounds, in this process, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from prefiere.api import training
from prefiere.api.run import Run
from prefiere.asked.words.account import made
from prefiere.cli.collect import Answering, open_judge
from prefiere.console import Display
from prefiere.data import formats
from prefiere.data.schema import Text
from prefiere.evaluate.hidden import answer_features
from prefiere.feedback.collect import How, Queueing, collect_pairs
from prefiere.feedback.rounds.loop import Rounds
from prefiere.feedback.rounds.recipe import LoopRecipe
from prefiere.feedback.store import Store
from prefiere.feedback.testimony import blind_comparison
from prefiere.models.source import ModelError
from prefiere.run import RunError, Stop


class Models:
    """What needs torch: see `feedback.rounds.loop.Work`. Raises ValueError where the judge cannot be loaded."""

    def __init__(self, store: Store, recipe: LoopRecipe, console: Console):
        self._store, self._recipe, self._console = store, recipe, console
        self._display = Display(console)
        self._judge = open_judge(recipe.judge) if recipe.judge is not None else None
        self._threads = torch.get_num_threads()
        self._read: dict[str, np.ndarray] = {}

    def collect(self, models: list[str], prompts: str, how: How, queueing: Queueing) -> None:
        """See `Work.collect`."""
        asked = [(r.prompt, r.source) for r in formats.read(prompts, kind="prompts", limit=self._recipe.limit)]
        loaded = [Answering(name) for name in models]
        if len({m.fingerprint for m in loaded}) < len(loaded):
            raise ModelError(f"{models[1]} has the weights of {models[0]}: its run changed nothing. Train it longer.")
        with self._display.stage("sampling", 2 * len(asked)) as advance:
            counts = collect_pairs(self._store, loaded, asked, how, queueing, advance)
        self._display.say(f"  {made(dict(sorted(counts.items())))}")
        del loaded  # training needs the memory
        gc.collect()
        torch.cuda.empty_cache()

    def features(self, said: Sequence[tuple[Text, Text]]) -> np.ndarray:
        """See `Work.features`. An answer is read once."""
        new = {key: one for one in said if (key := repr(one)) not in self._read}
        if new:
            with self._display.stage("reading the answers", len(new)) as advance:
                rows = answer_features(self._recipe.model, list(new.values()), progress=advance)
            self._read |= dict(zip(new, rows, strict=True))
        return np.stack([self._read[repr(one)] for one in said])

    def judge(self, round_id: int) -> None:
        """See `Work.judge`."""
        assert self._judge is not None
        self._judge.vote(self._store, self._display, round_id=round_id)

    def train(self, model: str, data: str, out: str) -> Stop | None:
        """See `Work.train`. A run of which the guard has stopped is not trained on."""
        if (Path(out) / "recipe.yaml").is_file() and (ended := Run.open(out).stop) is not None and ended.guarded:
            return ended
        stop = training.train(self._recipe.settings(model, data, out), console=self._console).stopped
        torch.set_num_threads(self._threads)  # answers are drawn as in a process that has trained nothing
        if stop is not None and stop.kind == "interrupted":
            raise KeyboardInterrupt
        return stop

    def report(self, out: str) -> None:
        """See `Work.report`."""
        run = Run(out)
        if (said := blind_comparison(self._store, run.folder)) is not None:
            run.blind = said
            run.report()


def run_loop(store: Store, recipe: LoopRecipe, console: Console) -> dict[str, Any]:
    """Go through a loop's rounds. Returns each with its state, and why the loop stopped, if it did.

    Raises RunError where another process is at work in the same folder.
    """
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{out}: another process runs this loop. Wait for it, or stop it.") from None
    with lock:
        rounds = Rounds(store, recipe, Models(store, recipe, console), Display(console)).run()
    last = rounds[-1]
    stop = None
    if last.state == "stopped":
        guard = Run.open(last.run).stop if last.run and last.after_model is None else None
        stop = guard or Stop("worse", str(last.reason))
    keys = ("n", "state", "before_model", "after_model", "snapshot_id", "run", "reason")
    return {
        "rounds": [{k: getattr(r, k) for k in keys} for r in rounds],
        "model": last.after_model if last.state == "closed" else last.before_model,
        "stop": None if stop is None else {"kind": stop.kind, "text": stop.text},
        "store": store.name,
    }
