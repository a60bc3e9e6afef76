"""From what a user names (a file, a folder, a saved data set, a hub id) to the parts that hold its rows.

The hub's library is imported only where it is needed; its data sets stay on disk, mapped into memory.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from prefiere.asked.hub import why_no_data
from prefiere.asked.language import in_words
from prefiere.cache import digest_of
from prefiere.data.packed import PACKED_SUFFIXES
from prefiere.data.readers import Rows, about_lines, is_records, read_rows
from prefiere.data.schema import Kind
from prefiere.data.splits import Named, ReadFor, choose_split, is_held_out, is_hub_id, preferred, read_name, split_of
from prefiere.data.values import DataError, Remark, without_nulls
from prefiere.files import hash_of
from prefiere.run import called, given_as

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".xlsx")

# Files that lie beside data and are none.
_NOT_DATA = re.compile(
    r"(?:dataset_infos?|data_info|dataset_dict|state|config|metadata|meta|info|stats|schema|manifest|index)\.json"
    r"|(?:requirements|license|licence|readme|notes?|changelog|changes|citation|credits|todo)\.\w+",
    re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Part:
    """Something that rows can be read from again and again; ``name`` stands before the line number.

    content: a hash of all that the rows depend on. last: about which number its last row has, where that is known.
    about: for data.json, whose votes they are, where they are votes. counted: rows have the places of a list in
    Python, and not lines.
    """

    name: str
    rows: Callable[[], Rows]
    content: Callable[[], str]
    last: Callable[[], int | None] = lambda: None
    about: Mapping[str, Any] | None = None
    counted: bool = False

    def at(self, line: int) -> str:
        """What a row is called: ``file:line``, or ``data[place]`` of rows that were given in Python."""
        return f"{self.name}[{line - 1}]" if self.counted else f"{self.name}:{line}"


@dataclass(frozen=True)
class Parts:
    """All parts of a source, the split that they are, and the splits there are.

    beside: files of a folder that are not read. commit: of a data set of the hub.
    """

    parts: tuple[Part, ...]
    split: str | None
    splits: tuple[str, ...]
    beside: tuple[str, ...] = ()
    commit: str | None = None


def on_hub(name: str) -> bool:
    """Whether a name that is no file or folder here is written as a data set of the hub is."""
    base = read_name(name).base
    return is_hub_id(base) and not base.startswith(".") and not base.endswith((*SUFFIXES, *PACKED_SUFFIXES))


def find(source: str | Path, kind: Kind, split: str | None, purpose: ReadFor = "train") -> Parts:
    """What a user's name for data stands for; it may name a split: ``name[split]``, ``owner/name:config[split]@rev``.

    purpose: whether it is trained or validated on, which chooses among splits where none is named. The split of a
    single file is left to its rows. Raises FileNotFoundError or DataError, with what to do.
    """
    if is_votes(source):
        opened: Parts = importlib.import_module("prefiere.feedback.records").parts(str(source), kind, split)
        return opened
    name = read_name(source)
    if split is not None and name.split not in (None, split):
        raise DataError(in_words("data.two_splits", source=source, one=name.split, other=split))
    split = split or name.split
    path = Path(name.base).expanduser()
    if path.is_file():
        return Parts((_part(path),), split, ())
    if path.is_dir():
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        return (_saved if saved else _folder)(path, kind, split, purpose)
    if on_hub(str(source)):
        return _hub(name, kind, split, purpose)
    raise FileNotFoundError(in_words("data.no_file", source=source))


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
    return Part(
        called(path),
        rows=lambda: read_rows(path),
        content=lambda: hash_of(path),
        last=lambda: about_lines(path),
        counted=given_as(path) is not None,
    )


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder(folder: Path, kind: Kind, split: str | None, purpose: ReadFor) -> Parts:
    files, beside = _data_in(folder)
    if not files:
        looked, packed = " ".join(SUFFIXES), " ".join(PACKED_SUFFIXES)
        raise DataError(in_words("data.empty_folder", folder=folder, suffixes=looked, packed=packed))
    of = {f: split_of(f.relative_to(folder)) for f in files}
    splits = tuple(dict.fromkeys(s for s in of.values() if s is not None))
    if not splits and split is not None:  # its rows may say it
        chosen: str | None = split
    elif split is None and purpose == "train" and None in of.values():
        # files without a split in their name belong to what is trained on
        chosen = next((s for s in (*preferred(kind), *splits) if s in splits and not is_held_out(s)), None)
        files = [f for f in files if of[f] in (None, chosen)]
    elif splits:
        chosen = choose_split(splits, kind, split, str(folder), purpose)
        files = [f for f in files if of[f] == chosen]
    else:
        chosen = None
    return Parts(tuple(map(_part, files)), chosen, splits, tuple(str(f) for f in beside))


def _data_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder that hold data, and those beside them that do not: notes, and descriptions of the data."""

    def kind_of(path: Path) -> str:
        suffix = path.with_suffix("").suffix if path.suffix.lower() in PACKED_SUFFIXES else path.suffix
        return suffix.lower()

    def hidden(path: Path) -> bool:
        return any(p.startswith((".", "__MACOSX")) for p in path.relative_to(folder).parts)

    files = sorted(p for p in folder.rglob("*") if p.is_file() and not hidden(p))
    data = [p for p in files if kind_of(p) in SUFFIXES or (p.suffix.lower() == ".zip" and kind_of(p) == "")]
    beside = [p for p in data if _NOT_DATA.fullmatch(p.name)]
    data = [p for p in data if p not in beside]
    tables = [p for p in data if kind_of(p) != ".txt" and not (kind_of(p) == ".json" and _is_one_object(p))]
    if tables and len(tables) < len(data):
        beside += [p for p in data if p not in tables]
        data = tables
    return data, sorted(beside)


def _is_one_object(path: Path) -> bool:
    """Whether a file of JSON is one object that holds no records: a description of something."""
    if path.suffix != ".json" or path.stat().st_size > 1 << 20:
        return False
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and not any(is_records(v) for v in value.values())


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


def _dataset(loaded: Any, name: str, kind: Kind, split: str | None, purpose: ReadFor) -> Parts:
    splits: tuple[str, ...] = ()
    chosen = split
    if hasattr(loaded, "column_names") and isinstance(loaded.column_names, dict):
        splits = tuple(loaded)
        chosen = choose_split(splits, kind, split, name, purpose)
        loaded = loaded[chosen]
    part = Part(
        f"{name}[{chosen}]" if chosen else name,
        rows=lambda: _rows_of(loaded),
        content=lambda: _content(loaded),
        last=lambda: len(loaded),
    )
    return Parts((part,), chosen, splits, commit=_commit(loaded))


def _commit(dataset: Any) -> str | None:
    """The commit of the hub that a data set was made from: its library names the folder of what it made after it."""
    files = getattr(dataset, "cache_files", None) or []
    found = {name for f in files if _COMMIT.fullmatch(name := Path(f["filename"]).parent.name)}
    return found.pop() if len(found) == 1 else None


def _saved(folder: Path, kind: Kind, split: str | None, purpose: ReadFor) -> Parts:
    import datasets

    return _dataset(datasets.load_from_disk(str(folder)), str(folder), kind, split, purpose)


def _hub(name: Named, kind: Kind, split: str | None, purpose: ReadFor) -> Parts:
    """A data set of the Hugging Face hub, ``owner/name`` or ``owner/name:config``, at a revision where one is named."""
    import datasets
    from huggingface_hub import constants

    repository, _, config = name.base.partition(":")
    if not datasets.config.HF_HUB_OFFLINE:  # asked once: its library would ask for half a minute
        if (why := why_no_data(repository, name.revision, held=_downloaded(repository))) is not None:
            raise DataError(why)
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
    options: dict[str, Any] = {} if name.revision is None else {"revision": name.revision}
    try:
        loaded = datasets.load_dataset(repository, config or None, **options)
    except Exception as e:  # whatever goes wrong between here and the hub, the user gets one line
        raise DataError(_hub_error(name.base, e)) from e
    found = _dataset(loaded, name.base, kind, split, purpose)
    if datasets.config.HF_HUB_OFFLINE:
        return _as_asked(found, name, repository)
    return found


def _downloaded(repository: str) -> bool:
    """Whether the library has a data set of the hub on this disk, at whatever revision."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = repository.rpartition("/")
    return Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}").is_dir()


def _as_asked(found: Parts, name: Named, repository: str) -> Parts:
    """What was found offline, saying which version it is: the library takes the one that was downloaded last, whatever
    revision is named. Raises DataError where the one that is asked for is known to be another."""
    from huggingface_hub.constants import HF_HUB_CACHE

    revision, commit = name.revision or "main", found.commit
    noted = Path(HF_HUB_CACHE, f"datasets--{repository.replace('/', '--')}", "refs", revision)
    wanted = noted.read_text().strip() if noted.is_file() else revision
    if commit is not None and _COMMIT.fullmatch(wanted) and wanted != commit:
        raise DataError(
            f"{name.base}: offline, only the version that was downloaded last can be read, which is commit "
            f"{commit[:12]}, and {revision} is {wanted[:12]}. Go online once, or name files."
        )
    known = f", commit {commit[:12]}" if commit is not None else ""
    text = f"offline: {name.base} as it was downloaded last{known}"
    (part,) = found.parts
    return replace(found, parts=(replace(part, rows=lambda: chain([(0, Remark(text))], part.rows())),))


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
