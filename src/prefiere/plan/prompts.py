"""The prompts that a policy answers while it learns: read, tokenized, split by prompt, with an account of each."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefiere.asked.kinds import prompts_file
from prefiere.asked.language import count_of, in_words
from prefiere.console import Display
from prefiere.data import formats
from prefiere.data.audit import split_by_prompt
from prefiere.data.prompts import columns_at
from prefiere.data.quality.told import apart
from prefiere.data.splits import ReadFor
from prefiere.plan.examples import (
    PromptData,
    Prompts,
    held_out,
    most_watched,
    overlap_line,
    overlap_of,
    prompts_of_file,
)
from prefiere.run import called
from prefiere.settings import PolicyGradient
from prefiere.tokens.dialect import Manner
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.truncation import Truncation


def _keys(prompts: Prompts) -> np.ndarray:
    """int64 [n]: equal prompts have equal keys."""
    digests = [hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in prompts.ids]
    return np.asarray([int.from_bytes(d, "little", signed=True) for d in digests], np.int64)


def read_prompts(
    settings: PolicyGradient,
    tokenizer: PreTrainedTokenizerBase,
    eos_ids: list[int],
    display: Display,
    *,
    max_length: int,
    manner: Manner,
    with_columns: bool = False,
) -> PromptData:
    """Read prompts to train on and to watch, with the data's columns where they are asked for. A prompt that stands
    twice, with the same columns, counts once.

    Raises ValueError for a prompt that leaves no room for an answer (unless on_bad=drop), or where nothing is left.
    """
    encoder = Encoder(tokenizer, Truncation(None), eos_ids=eos_ids, **manner)
    read, account = _tokenized(settings, settings.data, "train", encoder, max_length, display, with_columns)
    accounts: dict[str, Any] = {"train": account}
    train, validation = read, read.select([])
    if settings.eval_data is not None:
        validation, accounts["eval"] = _tokenized(
            settings, settings.eval_data, "eval", encoder, max_length, display, with_columns
        )
        accounts["overlap"] = overlap_of(_keys(read), _keys(validation))
        display.note(overlap_line(accounts["overlap"]))
        accounts["apart"] = apart(read.ids, validation.ids)
    elif settings.eval_size:
        train_at, eval_at = split_by_prompt(_keys(read), held_out(settings.eval_size, len(read)), settings.seed)
        if not len(train_at) or not len(eval_at):
            raise ValueError(in_words("data.too_few_to_answer", data=called(settings.data)))
        train, validation = read.select(train_at), read.select(eval_at)
    accounts["examples"] = accounts["prompts"] = {"train": len(train), "eval": len(validation)}
    accounts["fingerprint"] = {"train": _fingerprint(train), "eval": _fingerprint(validation)}
    accounts["eval_sources"] = validation.sources
    watched = _watched(settings, validation if len(validation) else train, encoder, with_columns)
    display.say(in_words("progress.prompts", n=f"{len(train):,}", held_out=f"{len(validation):,}"))
    return PromptData(train, accounts, watched)


def _room(settings: PolicyGradient, max_length: int) -> int:
    """Tokens that a prompt may take. Raises ValueError where answers leave none."""
    room = min(settings.max_prompt_length or max_length, max_length - settings.max_new_tokens)
    if room < 1:
        raise ValueError(
            f"max_new_tokens: {settings.max_new_tokens} tokens of an answer leave no room for a prompt within "
            f"max_length={max_length}"
        )
    return room


def _tokenized(
    settings: PolicyGradient,
    name: str,
    purpose: ReadFor,
    encoder: Encoder,
    max_length: int,
    display: Display,
    with_columns: bool,
) -> tuple[Prompts, dict[str, Any]]:
    """The distinct prompts of a source that leave room for an answer, and what became of its records."""
    room = _room(settings, max_length)
    split, columns = settings.data_split if purpose == "train" else None, settings.columns
    source = formats.read(name, kind="prompts", split=split, columns=columns, on_bad=settings.on_bad, purpose=purpose)
    read = list(source)
    rows = columns_at([r.source for r in read], name, split=split, purpose=purpose) if with_columns else {}
    found = list({repr((r.prompt, rows.get(r.source))): r for r in read}.values())
    texts, places = [r.prompt for r in found], [r.source for r in found]
    beside = [rows.get(place, {}) for place in places] if with_columns else []
    whole = Prompts(encoder.encode_prompts(texts), texts, places, beside)
    long = [i for i, p in enumerate(whole.ids) if len(p) > room]
    if long and settings.on_bad != "drop":
        raise ValueError(
            f"{whole.sources[long[0]]}: a prompt of {count_of(len(whole.ids[long[0]]), 'token')}, and "
            f"{_limit(settings, max_length, room)} "
            f"({count_of(len(long), 'such prompt')}). Change that, shorten them, or leave them out: on_bad=drop"
        )
    kept = whole.select([i for i in range(len(whole)) if i not in set(long)])
    display.say(f"{called(name)}: {source.layout}; {in_words('account.distinct', n=f'{len(kept):,}')}")
    for line in source.unread_lines():
        display.note(line)
    if long:
        display.note(in_words("account.too_long", n=f"{len(long):,}", room=room, first=whole.sources[long[0]]))
    if not len(kept):
        raise ValueError(in_words("data.no_prompt", data=called(name), why=source.counts))
    dropped = {"too_long": len(long), "sources": [whole.sources[i] for i in long[:10]]}
    return kept, {"data": name, "read": source.describe(), "distinct": len(kept), "dropped": dropped}


def _limit(settings: PolicyGradient, max_length: int, room: int) -> str:
    if room == settings.max_prompt_length:
        return f"max_prompt_length takes {room}"
    return f"max_length={max_length} less max_new_tokens={settings.max_new_tokens} leaves {room}"


def _watched(settings: PolicyGradient, held: Prompts, encoder: Encoder, with_columns: bool) -> Prompts:
    """The prompts to answer along the run."""
    if (name := prompts_file(settings.sample_prompts)) is not None:
        return prompts_of_file(name, encoder, with_columns)
    return held.select(range(min(most_watched(settings), len(held))))


def _fingerprint(prompts: Prompts) -> str:
    h = hashlib.blake2b(digest_size=16)
    for p in prompts.ids:
        h.update(len(p).to_bytes(4, "little") + p.tobytes())
    return h.hexdigest()
