"""From the data that a user names to token ids to train and validate on, with an account of every record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prefiere.asked.kinds import prompts_file
from prefiere.asked.language import in_words
from prefiere.asked.words.account import counted, encoded, unread
from prefiere.cache import digest_of, entry
from prefiere.console import Display
from prefiere.data import formats
from prefiere.data.audit import Auditor, split_by_prompt
from prefiere.data.prompts import columns_at, prompts_at
from prefiere.data.quality.faults import Faults, looked_through
from prefiere.data.quality.leaks import known_answers, together
from prefiere.data.quality.told import apart, some_of
from prefiere.data.schema import Kind, Text
from prefiere.data.splits import ReadFor
from prefiere.files import hash_of
from prefiere.methods import METHODS
from prefiere.plan.shown import reading
from prefiere.run import called
from prefiere.settings import SFT, Reward, Settings
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import GroupStore, GroupWriter
from prefiere.tokens.text_pairs import PairEncoder
from prefiere.tokens.truncation import EncodeReport

MAX_EVAL = 512


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, int32 [P_i] each, and as what was read. columns: the data's columns of each, where they
    were asked for."""

    ids: list[np.ndarray]
    texts: list[Text]
    sources: list[str]
    columns: list[Mapping[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: Sequence[int] | np.ndarray) -> Prompts:
        """The prompts at these positions."""
        at = [int(i) for i in indices]
        columns = [self.columns[i] for i in at] if self.columns else []
        return Prompts([self.ids[i] for i in at], [self.texts[i] for i in at], [self.sources[i] for i in at], columns)

    def with_columns(
        self, name: str, kind: Kind = "prompts", split: str | None = None, purpose: ReadFor = "train"
    ) -> Prompts:
        """The same prompts with the columns of the data that they were read from, as records of this kind."""
        found = columns_at(self.sources, name, kind=kind, split=split, purpose=purpose)
        return replace(self, columns=[found.get(s, {}) for s in self.sources])


@dataclass(frozen=True)
class ExampleData:
    """What an offline run reads: examples to train on and, where some are held out, to validate on.

    account: what became of every record (data.json). watched: the prompts that are answered along the run.
    """

    train: GroupStore
    eval: GroupStore | None
    account: dict[str, Any]
    watched: Prompts


@dataclass(frozen=True)
class PromptData:
    """What an on-policy run reads: prompts that the policy learns to answer. The rest is as in `ExampleData`."""

    train: Prompts
    account: dict[str, Any]
    watched: Prompts


def read_data(
    settings: Settings,
    encoder: Encoder | PairEncoder,
    kind: formats.Kind,
    display: Display,
    *,
    with_columns: bool = False,
) -> ExampleData:
    """Read, tokenize and split by prompt. with_columns: of the watched prompts. Raises ValueError where nothing is
    left."""
    store, read = _tokenized(settings, settings.data, "train", encoder, kind, display)
    account: dict[str, Any] = {"train": read}
    validation: GroupStore | None
    if settings.eval_data is not None:
        train = store
        validation, account["eval"] = _tokenized(settings, settings.eval_data, "eval", encoder, kind, display)
        account["overlap"] = overlap_of(train.prompt_keys, validation.prompt_keys)
        display.note(overlap_line(account["overlap"]))
        account["apart"] = apart(_tokens(train), _tokens(validation))
    elif settings.eval_size:
        keys = together(store.split_keys, store.answer_keys)
        train_at, eval_at = split_by_prompt(keys, held_out(settings.eval_size, len(store)), settings.seed)
        if not len(train_at) or not len(eval_at):
            raise ValueError(in_words("data.too_few_prompts", data=called(settings.data)))
        train, validation = store.select(train_at), store.select(eval_at)
    else:
        train, validation = store, None
    if validation is not None:
        at = np.flatnonzero(known_answers(train.answer_keys, validation.answer_keys))
        sources = [validation[int(i)].source for i in at]
        account["known_answers"] = {"examples": len(at), "of": len(validation), "sources": sources}
    account["examples"] = {"train": len(train), "eval": len(validation) if validation else 0}
    account["prompts"] = {
        "train": len(np.unique(train.prompt_keys)),
        "eval": len(np.unique(validation.prompt_keys)) if validation else 0,
    }
    account["fingerprint"] = {"train": train.fingerprint(), "eval": validation.fingerprint() if validation else None}
    account["eval_sources"] = [g.source for g in validation] if validation else []
    watched = Prompts([], [], [])
    if isinstance(encoder, Encoder) and not isinstance(settings, Reward):  # a reward model answers nothing
        watched = _watched(settings, validation or train, encoder, with_columns)
    n, held = (f"{account['examples'][part]:,}" for part in ("train", "eval"))
    display.say(in_words("progress.examples", n=n, held_out=held))
    return ExampleData(train, validation, account, watched)


def _tokens(store: GroupStore) -> list[np.ndarray]:
    """The tokens of some examples, of their prompts and first answers."""
    return [np.concatenate([group.prompt, group.completions[0]]) for group in (store[i] for i in some_of(len(store)))]


def overlap_of(train: np.ndarray, validation: np.ndarray) -> dict[str, int]:
    """How many of the distinct prompts to validate on are also trained on. Keys of prompts: int64 [n] each."""
    prompts = np.unique(validation)
    return {"prompts": int(np.isin(prompts, train).sum()), "of": len(prompts)}


def overlap_line(overlap: dict[str, int]) -> str | None:
    """The same in words; None where no prompt is on both sides."""
    both, of = overlap["prompts"], overlap["of"]
    return in_words("account.overlap", n=f"{both:,}", of=f"{of:,}") if both else None


@cache
def code() -> str:
    """A hash of the code that reads and tokenizes, and the versions of the libraries that it calls: what they make of
    the same data may change with them."""
    package = Path(formats.__file__).parents[1]
    code = sorted(f for room in ("data", "tokens") for f in (package / room).rglob("*.py"))
    files = {str(f.relative_to(package)): hash_of(f) for f in code}
    return digest_of({"files": files, **{name: version(name) for name in ("transformers", "tokenizers")}})


def held_out(size: float, n: int) -> int:
    """How many of n examples ``eval_size`` holds out."""
    return int(size) if size >= 1 else max(1, min(MAX_EVAL, round(size * n)))


def _tokenized(
    settings: Settings,
    name: str,
    purpose: ReadFor,
    encoder: Encoder | PairEncoder,
    kind: formats.Kind,
    display: Display,
) -> tuple[GroupStore, dict[str, Any]]:
    """The examples of a source as token ids, from the cache where they are there, and what became of its records."""
    options: Any = {"columns": settings.columns, "on_bad": settings.on_bad, "purpose": purpose}
    split = settings.data_split if purpose == "train" else None
    if isinstance(settings, Reward):
        options["pairs_per_prompt"] = settings.pairs_per_prompt
    source: Any = formats.read(name, kind=kind, split=split, **options)
    k = 2 if kind == "pairs" else 1
    with entry("tokens", {"records": source.key(), "ids": encoder.key(), "code": code()}) as kept:
        if not kept.whole:
            report, auditor, faults = EncodeReport(), Auditor(), Faults()
            with kept.making() as (folder, about), reading(display, name, source) as so_far:
                with GroupWriter(folder, k) as writer:
                    for group in encoder.encode(looked_through(source, auditor, faults), report):
                        writer.add(group)
                        if len(writer) % 1000 == 0:
                            so_far(len(writer))
                if not len(writer):
                    what = f"{source.counts}; {'; '.join(encoded(report.to_dict()))}"
                    raise ValueError(in_words("data.no_example", data=called(name), why=what))
                about |= {"read": source.describe(), "tokens": report.to_dict()}
                about |= {"audit": auditor.found().to_dict() | {"faults": faults.to_dict()}}
    account: dict[str, Any] = {"data": name, **{of: kept.about[of] for of in ("read", "tokens", "audit")}}
    display.say(f"{called(name)}: {source.layout}; {counted(account['read'])}")
    for line in (*unread(account["read"]), *encoded(account["tokens"])[1:]):
        display.note(line)
    if source.votes is not None:  # of this store and this moment: no part of what is kept by contents
        account["votes"] = source.votes
    return GroupStore.open(kept.folder, k), account


MOST_WATCHED = 32
"""Prompts that are answered along a run, unless its settings say how many."""


def most_watched(settings: Settings) -> int:
    """How many prompts of the data are answered along a run, at most."""
    return MOST_WATCHED if settings.sample_prompts == "auto" else int(settings.sample_prompts)


def prompts_of_file(name: str, encoder: Encoder, with_columns: bool = False) -> Prompts:
    """The prompts of a file that a user names to have them answered along the run."""
    records = list(formats.read(name, kind="prompts"))
    texts = [r.prompt for r in records]
    found = Prompts(encoder.encode_prompts(texts), texts, [r.source for r in records])
    return found.with_columns(name) if with_columns else found


def _watched_split(settings: Settings) -> dict[str, Any]:
    """The split in which the watched prompts were read, and as what."""
    kind = METHODS[settings.method].reads(settings)
    return {"kind": kind} | ({"purpose": "eval"} if settings.eval_data else {"split": settings.data_split})


def _watched(settings: Settings, store: GroupStore, encoder: Encoder, with_columns: bool) -> Prompts:
    """Distinct prompts to answer along the run: those of a file, or the first of this store."""
    if (name := prompts_file(settings.sample_prompts)) is not None:
        return prompts_of_file(name, encoder, with_columns)
    _, first = np.unique(store.prompt_keys, return_index=True)
    if isinstance(settings, SFT) and not settings.completion_only_loss:
        first = np.arange(len(store))  # what is stored as the prompt is the first token of each text
    groups = [store[int(i)] for i in np.sort(first)[: most_watched(settings)]]
    sources = [g.source for g in groups]
    name, split = settings.eval_data or settings.data, _watched_split(settings)
    texts = prompts_at(sources, name, columns=settings.columns, **split)
    ids = [g.prompt for g in groups]
    if isinstance(settings, SFT) and not settings.completion_only_loss:
        ids = [encoder.encode_prompts([texts[g.source]])[0] if texts.get(g.source) else g.prompt for g in groups]
    read = [texts[g.source] if g.source in texts else encoder.decode(g.prompt) for g in groups]
    watched = Prompts(ids, read, sources)
    return watched.with_columns(name, **split) if with_columns else watched
