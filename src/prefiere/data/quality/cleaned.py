"""Data without the records that teach the wrong thing, and an account of what was left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefiere.asked.language import in_words
from prefiere.data.audit import pair_key
from prefiere.data.convert import AnyRecord, check_content
from prefiere.data.quality.faults import Faults
from prefiere.data.quality.marks import texts_faulty
from prefiere.data.values import BadRow


@dataclass
class RecordsLeftOut:
    """How many records were left out for which reason, and where they were read. missing: sources that were named as
    swapped, and are none of this data. beyond: how many records had no words counted, as being too many."""

    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    beyond: int = 0

    def add(self, why: str, source: str) -> None:
        """Count a record."""
        self.counts[why] = self.counts.get(why, 0) + 1
        self.sources.setdefault(why, []).append(source)

    def lines(self) -> list[str]:
        """The account in words, a line for each reason."""
        said = []
        for why, n in self.counts.items():
            first = ", ".join(self.sources[why][:3])
            said.append(in_words("clean.left_out", n=f"{n:,}", why=in_words(f"clean.why.{why}"), sources=first))
        return said


def cleaned(
    records: Callable[[], Iterable[AnyRecord]], left: RecordsLeftOut, swapped: Collection[str] = ()
) -> Iterator[AnyRecord]:
    """The records that stay, read twice by ``records``; what goes is counted in ``left``.

    swapped: sources of records whose label a run found the wrong way round, however their file is spelled; those that
    words contradict (`told`) go in any case, and answers that words find at a wrong prompt (`elsewhere`). Of
    contradicted pairs both sides go, of repeated records the first stays.
    """
    verdicts: dict[int, int] = {}
    places, faults, read = _Places(), Faults(), 0
    named, met = {places.of(s): s for s in swapped}, set[str]()
    for record in records():
        key, verdict = pair_key(record)
        verdicts[key] = verdicts.get(key, 0) | verdict
        if (place := places.of(record.source)) in named:
            met.add(place)
        faults.add(replace(record, source=str(read)))  # a row may hold several records, and no source at all
        read += 1
    left.beyond = read - faults.records
    left.missing = [said for place, said in named.items() if place not in met]
    turned = faults.words.reversed()
    astray = faults.spoken.elsewhere()
    wrong = dict.fromkeys(astray.sources if astray is not None and astray.sure else (), "elsewhere")
    wrong |= dict.fromkeys(turned.sources if turned is not None else (), "reversed")
    seen: set[tuple[int, int]] = set()
    for i, record in enumerate(records()):
        said = pair_key(record)
        odd = "swapped" if places.of(record.source) in named else wrong.get(str(i))
        why = _why(record, verdicts[said[0]], said in seen, odd)
        seen.add(said)
        if why is None:
            yield record
        else:
            left.add(why, record.source)


def _why(record: AnyRecord, verdicts: int, repeated: bool, odd: str | None) -> str | None:
    """odd: what is wrong with its label, or with its place, if anything."""
    try:
        check_content(record)
    except BadRow:
        return "unusable"
    if faults := texts_faulty(record):
        return faults[0]
    if verdicts & 3 == 3:
        return "contradictions"
    return "duplicates" if repeated else odd


@dataclass
class _Places:
    """``file:line`` with the whole path of the file, links followed; what is in no file of this machine stays. Each
    name is looked up once."""

    whole: dict[str, str] = field(default_factory=dict)

    def of(self, source: str) -> str:
        name, _, line = source.rpartition(":")
        if not name or not line.isdecimal():
            return source
        if name not in self.whole:
            self.whole[name] = str(Path(name).resolve()) if Path(name).exists() else name
        return f"{self.whole[name]}:{line}"
