"""Which split is this, and which is read: of files, folders, data sets and rows alike.

What is named as held out (test, validation, ...) is not trained on unless its user names it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prefiere.asked.language import in_words
from prefiere.data.schema import Kind
from prefiere.data.values import BadRow, DataError, Row
from prefiere.run import called

ReadFor: TypeAlias = Literal["train", "eval"]

# The split that suits a kind, where a data set has several and none was named.
_PREFERRED: dict[Kind, tuple[str, ...]] = {
    "pairs": ("train_prefs", "train"),
    "comparisons": ("train_prefs", "train"),
    "judgements": ("train_prefs", "train"),
    "demonstrations": ("train_sft", "train"),
    "prompts": ("train_gen", "train"),
}
_TRAIN = ("train", "training")
_HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing", "(?:held|hold)[-_ ]?out")
_NAMES = "|".join((*_TRAIN, *_HELD_OUT))
_SHARD = re.compile(r"[-_.](?:\d{5}-of-\d{5}.*|part[-_]?\d+|\d+)$")
_WHOLE = re.compile(rf"(?:{_NAMES})\d*(?:_\w+)?", re.IGNORECASE)
_AT_END = re.compile(rf"(?:^|[-_. ])({_NAMES})\d*$", re.IGNORECASE)
_AT_START = re.compile(rf"^({_NAMES})[-_. ]", re.IGNORECASE)
_NAME = re.compile(r"(?P<base>.*?)(?:\[(?P<split>.*)\])?(?:@(?P<revision>[\w./-]+))?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Named:
    """A source as a user names it: ``base[split]@revision``, where base is a path, or owner/name:config."""

    base: str
    split: str | None = None
    revision: str | None = None


def read_name(source: str | Path) -> Named:
    """The parts of a name. A path that exists is taken as it is. Raises DataError at a split that is none."""
    name = str(source)
    if Path(name).expanduser().exists():
        return Named(name)
    match = _NAME.fullmatch(name)
    if match is None or (match["split"] is None and not is_hub_id(match["base"])):
        return Named(name)
    split = match["split"]
    if split is not None and not re.fullmatch(r"[\w.-]+( [\w.-]+)*", split):
        raise DataError(in_words("data.odd_split", name=name, split=split, base=match["base"]))
    return Named(match["base"], split, match["revision"])


def is_hub_id(name: str) -> bool:
    """Whether this is written as data sets of the hub are."""
    return _HUB_ID.fullmatch(name) is not None


def is_held_out(split: str) -> bool | None:
    """Whether a split is kept for testing; None for a name that is no split's."""
    if not _WHOLE.fullmatch(split):
        return None
    return not split.lower().startswith(_TRAIN)


def split_of(relative: Path) -> str | None:
    """The split that a path names: train.jsonl, data/train_prefs-00000-of-00004.parquet, my-test.csv, val/x.json."""
    stem = relative.name
    while (suffix := Path(stem).suffix) and re.fullmatch(r"\.[A-Za-z]\w*", suffix) and not _WHOLE.fullmatch(suffix[1:]):
        stem = stem[: -len(suffix)]
    while match := _SHARD.search(stem):
        stem = stem[: match.start()]
    if _WHOLE.fullmatch(stem):
        return stem
    if named := _AT_END.search(stem) or _AT_START.search(stem):
        return named.group(1)
    return next((p for p in reversed(relative.parts[:-1]) if _WHOLE.fullmatch(p)), None)


def preferred(kind: Kind) -> tuple[str, ...]:
    """The splits that suit a kind of record, the best first."""
    return _PREFERRED[kind]


def choose_split(splits: Sequence[str], kind: Kind, split: str | None, where: str, purpose: ReadFor) -> str:
    """The named split, or the one that suits the kind and the purpose. Raises DataError where that is not clear."""
    if split is not None:
        if split in splits:
            return split
        near = difflib.get_close_matches(split, splits, n=1)
        none = in_words("data.no_splits")
        key, meant = ("data.no_split_near", near[0]) if near else ("data.no_split", "")
        raise DataError(in_words(key, where=where, split=split, near=meant, splits=", ".join(splits) or none))
    for_train = [s for s in splits if not is_held_out(s)]
    for_test = [s for s in splits if is_held_out(s)]
    if purpose == "eval":
        suffix = preferred(kind)[0].removeprefix("train")
        suited = [s for s in for_test if s.endswith(suffix)] or for_test or for_train
        if len(suited) == 1:
            return suited[0]
        raise DataError(in_words("data.which_to_validate", where=where, one=suited[0], splits=", ".join(splits)))
    if len(for_train) == 1 == len(splits):
        return splits[0]
    chosen = next((s for s in preferred(kind) if s in splits), None)
    if chosen is None and len(for_train) == 1:
        chosen = for_train[0]
    if chosen is None and not for_train:
        raise DataError(in_words("data.held_out_by_name", where=where, one=splits[0], splits=", ".join(splits)))
    if chosen is None:
        raise DataError(in_words("data.which_split", where=where, one=splits[0], splits=", ".join(splits)))
    return chosen


class RowSplit:
    """Rows that name their own split, in a column ``split``: those of another one, or of none, are left out.

    One held-out value is enough to make it such a column. ``split`` is the one that is read, None where rows name none.
    """

    def __init__(self, told: str | None, kind: Kind, purpose: ReadFor, where: str, settled: bool):
        self._told, self._kind, self._purpose, self._where, self._settled = told, kind, purpose, called(where), settled
        self.split: str | None = None

    def key(self) -> list[str | None]:
        """What it depends on, as plain values."""
        return [self._told, self._purpose]

    def look(self, rows: list[Row], every: Callable[[], Iterator[Row]]) -> None:
        """Decide from the first rows, and from all where these do not suffice. Raises DataError where none suits."""
        if self._settled or self.split is not None:
            return
        said = dict.fromkeys(s if isinstance(s := row.get("split"), str) else None for row in rows)
        found = [s for s in said if s is not None]
        known = [s for s in found if is_held_out(s) is not None]
        wanted = self._told or ("train" if self._purpose == "train" else None)
        if self._told is None and not known:
            return  # what later rows say is checked as they come
        if wanted not in found or len(known) < len(said):
            found = list(dict.fromkeys(s for row in every() if isinstance(s := row.get("split"), str)))
            known = [s for s in found if is_held_out(s) is not None]
        if self._told is not None:
            if not known:
                raise DataError(in_words("data.file_without_splits", where=self._where, split=self._told))
            self.split = choose_split(found, self._kind, self._told, self._where, self._purpose)
            return
        unknown = len(found) > len(known)
        if not any(is_held_out(s) for s in known) and (unknown or None in said or self._purpose == "eval"):
            return
        self.split = choose_split(known, self._kind, None, self._where, self._purpose)

    def check(self, row: Row) -> None:
        """Raise BadRow for a row of another split, or of none, or of several."""
        if self._settled:
            return
        said: Any = row.get("split")
        if isinstance(said, list) and any(isinstance(s, str) and is_held_out(s) is not None for s in said):
            detail = (
                f"expected the name of one split, found {str(said)[:40]}; 'columns={{split: none}}' leaves it unread"
            )
            raise BadRow("split", "wrong type in split", detail)
        if self.split is None:
            held = self._told is None and self._purpose == "train" and isinstance(said, str) and is_held_out(said)
        else:
            held = said != self.split
        if held:
            of = f"of split {said}" if isinstance(said, str) and said else "without a split"
            raise BadRow("split", of, content=True)
