"""Models that answer for a store: ``prefiere collect``, ``judge`` and ``compare --ask``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefiere.asked.endpoint import names_endpoint
from prefiere.asked.language import count_of, in_words
from prefiere.asked.words.account import made
from prefiere.console import Display
from prefiere.data import formats
from prefiere.data.schema import Text
from prefiere.evaluate.compare import respondent, sides, validation_prompts
from prefiere.evaluate.judges import Judge
from prefiere.evaluate.manner import manner_of
from prefiere.feedback import collect
from prefiere.feedback.collect import How, Queueing
from prefiere.feedback.judging.endpoint import Endpoint
from prefiere.feedback.judging.voting import Compares, by_scores, vote_by
from prefiere.feedback.store import Store, hidden
from prefiere.files import visible
from prefiere.models.load import fingerprint
from prefiere.models.source import ModelError
from prefiere.run import Run
from prefiere.sample.sampling import Sampling
from prefiere.tokens.encoder import Encoder


class Answering:
    """A model that answers prompts, in this process or behind a server. Raises ModelError where it cannot be loaded."""

    def __init__(self, name: str, *, trust: bool = False):
        tokenizer, eos_ids, self._rollouts, model = respondent(name, trust=trust)
        self._encoder = Encoder(tokenizer, eos_ids=eos_ids, **manner_of(name))
        of_server = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        self.label, self.path = name, name
        self.fingerprint = of_server if model is None else fingerprint(model)
        is_run = (Path(name) / "recipe.yaml").is_file()
        self.run = str(Path(name).resolve()) if is_run else None
        self.step: int | None = Run.open(name).status.get("step") if is_run else None

    def __call__(self, prompts: Sequence[Text], samples: int, how: How, numbers: Sequence[int]) -> list[list[str]]:
        """See `feedback.collect.Answerer`."""
        sampling = Sampling(samples, how.temperature, how.top_p, how.max_new_tokens, how.seed)
        ids: list[np.ndarray] = self._encoder.encode_prompts(prompts)
        drawn = self._rollouts.sample(ids, sampling, version=0, numbers=numbers)
        said: list[list[str]] = [[] for _ in prompts]
        for s in drawn:
            said[s.prompt].append(self._encoder.decode(s.tokens))
        return said


def run_collect(
    store: Store, models: Sequence[str], prompts: str, how: How, queueing: Queueing, *, limit: int | None, trust: bool,
    display: Display,
) -> dict[str, Any]:  # fmt: skip
    """Let the models answer the prompts of a file and queue the pairs. Returns the counts."""
    if not 1 <= len(models) <= 2:
        raise ModelError("name one model, which answers twice, or two, which answer once each: --model M [--model M2].")
    asked = [(r.prompt, r.source) for r in formats.read(prompts, kind="prompts", limit=limit)]
    loaded = [Answering(name, trust=trust) for name in models]
    if len({m.fingerprint for m in loaded}) < len(loaded):
        raise ModelError(f"{models[0]} and {models[1]} are the same model, weight for weight: name another.")
    with display.stage("sampling", 2 * len(asked)) as advance:
        counts = collect.collect_pairs(store, loaded, asked, how, queueing, advance)
    display.say(made(dict(sorted(counts.items()))))
    return {"counts": dict(counts), "store": store.name}


def run_compare(
    store: Store, before: str, after: str | None, prompts: str | None, how: How, *, limit: int, trust: bool,
    display: Display,
) -> dict[str, Any]:  # fmt: skip
    """Queue a blind comparison of two models (a run alone: before and after it) for people. Returns the counts.

    Raises ValueError where there are no prompts, or where both models are the same.
    """
    first, second, run = sides(before, after)
    if prompts is not None:
        asked: list[tuple[Text, str]] = [
            (r.prompt, r.source) for r in formats.read(prompts, kind="prompts", limit=limit)
        ]
    elif run is not None:
        asked = [(text, str(run.folder)) for text in validation_prompts(run, limit)]
    else:
        raise ValueError(in_words("met.which_prompts"))
    loaded = [Answering(name, trust=trust) for name in (first, second)]
    if loaded[0].fingerprint == loaded[1].fingerprint:
        raise ModelError(f"{first} and {second} are the same model, weight for weight: there is nothing to compare.")
    with display.stage("sampling", 2 * len(asked)) as advance:
        counts = collect.collect_pairs(store, loaded, asked, how, Queueing(purpose="compare", seed=how.seed), advance)
    display.say(made(dict(sorted(counts.items()))))
    return {"before": first, "after": second, "counts": dict(counts), "store": store.name}


@dataclass(frozen=True)
class Voter:
    """A judge under the name that it votes under."""

    name: str
    compare: Compares

    def vote(self, store: Store, display: Display, *, limit: int | None = None, round_id: int | None = None) -> int:
        """Let it vote on the pairs that it has not had. Returns on how many it did."""
        asks = self.compare if isinstance(self.compare, Endpoint) else None
        with display.stage(f"judging as {self.name}", limit or 0) as advance:
            done = vote_by(store, self.name, self.compare, limit=limit, round_id=round_id, progress=advance,
                           at_once=1 if asks else 64)  # fmt: skip
        if asks is not None and asks.unread:
            said = f"answers of {self.name} that were no verdict and do not count: {asks.unread:,}, the first: "
            display.say(said + repr(visible(asks.example)))
        return done


def open_judge(name: str, model: str | None = None, guidelines: str = "") -> Voter:
    """A judge: an endpoint (http://host/v1#MODEL), a function (module:function) or a reward model.

    Raises ValueError for what is none, and for a model or guidelines of a judge that reads none.
    """
    if names_endpoint(name):
        asked = Endpoint.named(name, model, guidelines)
        return Voter(asked.name, asked)
    if model or guidelines:
        raise ModelError(f"{name} is no endpoint: --judge-model and --guidelines are for one (http://host/v1).")
    return Voter(name, by_scores(Judge.load(name)))


def run_judge(store: Store, judge: Voter, *, limit: int | None, display: Display) -> dict[str, Any]:
    """Let a judge vote on pairs that it has not had. Returns how many it did, and how often it gave no verdict."""
    done = judge.vote(store, display, limit=limit)
    display.say(
        f"{count_of(done, 'vote')} of {judge.name}, a person of kind judge: "
        f"`prefiere votes people {hidden(store.name)}` shows its worth."
    )
    unread = judge.compare.unread if isinstance(judge.compare, Endpoint) else 0
    return {"votes": done, "judge": judge.name, "unread": unread}
