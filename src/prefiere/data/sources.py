"""From what a user names (a file, a folder, a saved data set, a hub id) to the parts that hold its rows.

The hub's library is imported only where it is needed; its data sets stay on disk, mapped into memory.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefiere.cache import digest_of
from prefiere.data.readers import Rows, read_rows, without_nulls
from prefiere.data.schema import Kind
from prefiere.data.values import DataError
from prefiere.files import hash_of

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")

# Files that lie beside data and are none.
_NOT_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "requirements.txt",
    "license.txt",
    "readme.txt",
}

# The split that suits a kind, where a data set has several and none was named.
_PREFERRED: dict[Kind, tuple[str, ...]] = {
    "pairs": ("train_prefs", "train"),
    "comparisons": ("train_prefs", "train"),
    "judgements": ("train_prefs", "train"),
    "demonstrations": ("train_sft", "train"),
    "prompts": ("train_gen", "train"),
}

_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")
_SPLIT = re.compile(r"^(?:train|test|validation|valid|val|dev|eval)(?:_\w+)?$")
_SPLIT_AT_END = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev|eval)$")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")


@dataclass(frozen=True)
class Part:
    """Something that rows can be read from again and again; ``name`` stands before the line number.

    content: a hash of all that the rows depend on. about: for data.json, whose votes they are, where they are votes.
    """

    name: str
    rows: Callable[[], Rows]
    content: Callable[[], str]
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Parts:
    """All parts of a source, the split that they are, and the splits there are."""

    parts: tuple[Part, ...]
    split: str | None
    splits: tuple[str, ...]


def on_hub(name: str) -> bool:
    """Whether a name that is no file or folder here is written as a data set of the hub is."""
    return bool(_HUB_ID.match(name)) and not name.startswith(".") and not name.endswith((*SUFFIXES, ".gz"))


def find(source: str | Path, kind: Kind, split: str | None) -> Parts:
    """What a user's name for data stands for. Raises FileNotFoundError or DataError, with what to do."""
    if is_votes(source):
        opened: Parts = importlib.import_module("prefiere.feedback.records").parts(str(source), kind, split)
        return opened
    path = Path(source).expanduser()
    if path.is_file():
        if split is not None:
            raise DataError(f"{source}: a file has no splits; leave out split={split}, or name the folder")
        return Parts((_part(path),), None, ())
    if path.is_dir():
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        return _saved(path, kind, split) if saved else _folder(path, kind, split)
    if on_hub(str(source)):
        return _hub(str(source), kind, split)
    raise FileNotFoundError(f"{source}: no such file or folder (a data set of the hub is written owner/name)")


def is_votes(source: str | Path) -> bool:
    """Whether this names a store of people's votes: a PostgreSQL URL, or a SQLite file with its application id.

    ``#3`` after it names a snapshot. The room that opens it lies above this one, so it is imported by name.
    """
    name = str(source).partition("#")[0]
    if name.startswith(("postgresql://", "postgres://")):
        return True
    path = Path(name).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as f:
        head = f.read(72)
    return head[:15] == b"SQLite format 3" and head[68:] == b"pref"


def _part(path: Path) -> Part:
    return Part(str(path), lambda: read_rows(path), lambda: hash_of(path))


# -- folders ----------------------------------------------------------------------------------------------------------


def split_of(relative: Path) -> str | None:
    """The split that a path names: train.jsonl, data/train_prefs-00000-of-00004.parquet, my-test.csv, val/x.json."""
    stem = _SHARD.sub("", relative.name.split(".")[0])
    if _SPLIT.match(stem):
        return stem
    if ending := _SPLIT_AT_END.search(stem):
        return ending.group(1)
    return next((p for p in reversed(relative.parts[:-1]) if _SPLIT.match(p)), None)


def _folder(folder: Path, kind: Kind, split: str | None) -> Parts:
    def is_data(path: Path) -> bool:
        hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        return path.is_file() and not hidden and suffix.lower() in SUFFIXES and path.name.lower() not in _NOT_DATA

    files = sorted(p for p in folder.rglob("*") if is_data(p))
    if not files:
        raise DataError(f"{folder}: no data in this folder (looked for {' '.join(SUFFIXES)}, also .gz)")
    of = {f: split_of(f.relative_to(folder)) for f in files}
    splits = tuple(dict.fromkeys(s for s in of.values() if s is not None))
    if split is None and None in of.values():  # files without a split in their name belong to what is trained on
        chosen: str | None = next((s for s in _PREFERRED[kind] if s in splits), None)
        files = [f for f in files if of[f] in (None, chosen)]
    else:
        chosen = choose_split(splits, kind, split, str(folder))
        files = [f for f in files if of[f] == chosen]
    return Parts(tuple(map(_part, files)), chosen, splits)


def choose_split(splits: Sequence[str], kind: Kind, split: str | None, where: str) -> str:
    """The named split, or the one that suits the kind. Raises DataError where that is not clear."""
    if split is not None:
        if split in splits:
            return split
        near = difflib.get_close_matches(split, splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{where}: no split {split}{hint} Splits: {', '.join(splits) or 'none'}")
    if len(splits) == 1:
        return splits[0]
    chosen = next((s for s in _PREFERRED[kind] if s in splits), None)
    if chosen is None:
        raise DataError(f"{where}: which split? Name one with split=: {', '.join(splits)}")
    return chosen


# -- data sets --------------------------------------------------------------------------------------------------------


def _rows_of(dataset: Any) -> Rows:
    """Rows of a memory-mapped data set, in batches."""
    number = 0
    for batch in dataset.iter(batch_size=256):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, {k: without_nulls(v) for k, v in zip(batch, values, strict=True)}


def _content(dataset: Any) -> str:
    """A hash of a data set's tables on disk, and of what was done to them since (its own fingerprint)."""
    tables = [hash_of(Path(f["filename"])) for f in dataset.cache_files]
    return digest_of({"fingerprint": dataset._fingerprint, "tables": tables})


def _dataset(loaded: Any, name: str, kind: Kind, split: str | None) -> Parts:
    splits: tuple[str, ...] = ()
    chosen = None
    if hasattr(loaded, "column_names") and isinstance(loaded.column_names, dict):
        splits = tuple(loaded)
        chosen = choose_split(splits, kind, split, name)
        loaded = loaded[chosen]
    elif split is not None:
        raise DataError(f"{name}: this data set has no splits; leave out split={split}")
    part = Part(f"{name}[{chosen}]" if chosen else name, lambda: _rows_of(loaded), lambda: _content(loaded))
    return Parts((part,), chosen, splits)


def _saved(folder: Path, kind: Kind, split: str | None) -> Parts:
    import datasets

    return _dataset(datasets.load_from_disk(str(folder)), str(folder), kind, split)


def _hub(name: str, kind: Kind, split: str | None) -> Parts:
    """A data set of the Hugging Face hub, ``owner/name`` or ``owner/name:config``."""
    import datasets

    repository, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None)
    except Exception as e:  # whatever goes wrong between here and the hub, the user gets one line
        raise DataError(_hub_error(name, e)) from e
    return _dataset(loaded, name, kind, split)


def _hub_error(name: str, error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    kinds = {c.__name__ for e in _causes(error) for c in type(e).__mro__}
    words = str(error).lower()
    if "GatedRepoError" in kinds or "gated" in words:
        what = "the data set is gated: accept its terms on its hub page, then log in with `hf auth login`"
    elif "config name is missing" in words:
        what = f"name one of its configurations, as {name}:CONFIG"
    elif kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        what = (
            "no file or folder of this name here, and no public data set on the hub; check the name, or `hf auth login`"
        )
    elif kinds & {"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException", "Timeout"}:
        what = "no file or folder of this name here, and the hub is out of reach; check the name and the network"
    else:
        what = "the hub's library could not load it"
    return f"{name}: {what} ({said[:200]})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
