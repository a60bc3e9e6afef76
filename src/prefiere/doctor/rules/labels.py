"""Which way round the labels are: whether some are swapped, and which ones.

Read off single pairs (pairs.jsonl). A pair of the first epoch was never learnt from before its margin was measured, so
that its margin is evidence as of held-out data. Swapped labels show as two clouds of margins, one on either side of 0:
statistics are ratios, so that neither beta nor the size of the model matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefiere.asked.language import count_of
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.told import words_reversed, words_tell
from prefiere.doctor.words import line, number
from prefiere.run import Run
from prefiere.stats import FEWEST_MARGINS, LEAST, UNLIKELY, between, chance_of_one, firmly_against, float_of, wilson


@dataclass(frozen=True)
class Margins:
    """Signed evidence of pairs (or of single answers): above 0 where the model agrees with the label. margin: float64
    [n]; source, tokens of each; step at which it was measured."""

    margin: np.ndarray
    source: tuple[str, ...]
    step: np.ndarray

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def chance(self) -> float:
        """How likely these are of a single bell (`stats.chance_of_one`)."""
        return chance_of_one(self.margin)

    def joined(self, other: Margins) -> Margins:
        """Both, each in units of its own median size."""
        parts = [m for m in (self, other) if len(m) and np.median(np.abs(m.margin)) > 0]
        if not parts:
            return self
        margin = np.concatenate([m.margin / np.median(np.abs(m.margin)) for m in parts])
        sources = tuple(source for m in parts for source in m.source)
        return Margins(margin, sources, np.concatenate([m.step for m in parts]))

    @property
    def against(self) -> float:
        """The share below 0."""
        return float((self.margin < 0).mean()) if len(self) else 0.0


def of_rows(rows: Sequence[Mapping[str, Any]]) -> Margins:
    """The evidence of rows of pairs.jsonl; single answers (KTO) count from the middle between good and bad ones. A pair
    whose label is below one half prefers its other answer; a tie says nothing."""
    single = [r for r in rows if _number(r.get("reward")) and _number(r.get("label"))]
    if single:
        reward = np.asarray([r["reward"] for r in single], float)
        good = np.asarray([r["label"] for r in single], float) >= 0.5
        if good.all() or not good.any():
            return Margins(np.zeros(0), (), np.zeros(0))
        middle = (np.median(reward[good]) + np.median(reward[~good])) / 2
        return _told(np.where(good, 1, -1) * (reward - middle), single, reward)
    pairs = [r for r in rows if _number(r.get("margin")) and side(r)]
    margin = np.asarray([side(r) * r["margin"] for r in pairs], float)
    return _told(margin, pairs, margin)


def _told(margin: np.ndarray, rows: Sequence[Mapping[str, Any]], written: np.ndarray) -> Margins:
    """These margins; none where they are but a few steps of what ``written`` was rounded to: nothing lies between such
    steps, which looks like clouds."""
    steps = np.diff(np.unique(written))
    if len(steps) == 0 or float(np.median(np.abs(margin))) < 10 * float(steps.min()):
        return Margins(np.zeros(0), (), np.zeros(0))
    return Margins(margin, _sources(rows), _steps(rows))


def side(row: Mapping[str, Any]) -> int:
    """Which answer the label of a pair prefers: 1 the one called chosen, -1 the other, 0 neither. Rows without a label
    are of runs that wrote none, or of pairs whose label is 1."""
    label = row.get("label", 1)
    return int(np.sign(label - 0.5)) if _number(label) else 1


def last_held_out(case: Case) -> Margins:
    """The last validation's pairs."""
    rows = [r for r in case.pairs if r.get("split") == "eval"]
    last = max((r["step"] for r in rows), default=0)
    return of_rows([r for r in rows if r["step"] == last])


def unseen(case: Case) -> Margins:
    """Training pairs of the second half of the first epoch: by then the model knows what the labels have in common, and
    it has not learnt from these."""
    rows = [r for r in case.pairs if r.get("split") == "train"]
    end = _first_epoch(case, rows)
    return of_rows([r for r in rows if end / 2 < r["step"] <= end])


def _first_epoch(case: Case, rows: Sequence[Mapping[str, Any]]) -> float:
    """The step at which the first epoch ended, or the last one so far."""
    epochs = case.series("epoch")
    within: list[float] = epochs.steps[epochs.values <= 1.0 + 1e-9].tolist()
    return max((float(s) for s in within), default=max((float(r["step"]) for r in rows), default=0.0))


def swapped(case: Case) -> Finding | None:
    """Held-out margins, and those of training pairs that were not learnt from yet, lie in two clouds. Those of a model
    that has not been trained are rounding, and say nothing of its labels; nor does one that finds more of them reversed
    than words alone leave room for, which tell the others."""
    if case.moved is False:
        return None
    held, training = last_held_out(case), unseen(case)
    seen = held.joined(training)
    low, high = wilson(seen.against * len(seen), len(seen))
    if seen.chance >= UNLIKELY or low <= 0.02 or max(held.against, training.against) > 0.5:
        return None
    if (words := words_tell(case.account("train"))) is not None and low > 1 - words.low:
        return None
    lines = suspects(case)
    share = number(seen.against, "rewards/accuracies")
    named = f" The labels of these {len(lines):,} training examples look reversed: pairs.jsonl." if lines else ""
    return Finding(
        "labels_swapped",
        f"About {share} of the labels look reversed: the better answer stands in the place of the worse one.",
        "warning",
        "The model is sure of nearly every pair, and of a part of them it is sure the other way round. Labels that "
        "were given at random would leave it unsure; a part that is swapped looks like this, and so does a part of "
        "another kind, which it gets wrong." + named,
        (
            line(
                "against_their_label",
                share=share,
                n=f"{len(seen):,}",
                low=number(low, "rewards/accuracies"),
                high=number(high, "rewards/accuracies"),
            ),
            line("between_groups", least=f"{LEAST * len(seen):.0f}", n=f"{between(seen.margin)}"),
        ),
        (
            Remedy(
                "look at these lines, and turn round those that are swapped; "
                "`prefiere data DATA --clean out.jsonl --run RUN` leaves them out"
            ),
            Remedy("label_smoothing=0.1, if they cannot be mended", "label_smoothing", 0.1),
        ),
        cause=True,
        sure="likely",
        lines=tuple(lines),
        values={"share": share, "n": f"{len(lines):,}"},
    )


def suspects(case: Case) -> list[str]:
    """Where the training examples were read that the model ranks against their label, by what it said of each before
    it learnt from it, once it knew what the labels have in common; and those that words alone contradict."""
    seen, words = unseen(case), words_reversed(case.account("train"))
    found = set(words.lines) if words is not None else set()
    if len(seen) >= FEWEST_MARGINS:
        named = zip(seen.source, firmly_against(seen.margin), strict=True)
        found |= {source for source, odd in named if odd}
    return sorted(found, key=_place)


def _place(source: str) -> tuple[str, int]:
    """``file:12`` in the order of files and lines."""
    name, _, line = source.rpartition(":")
    return (name, int(line)) if line.isdecimal() else (source, 0)


def _number(value: Any) -> bool:
    return float_of(value) is not None


def _sources(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(str(r.get("source", "")) for r in rows)


def _steps(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.asarray([r["step"] for r in rows], float)


@dataclass(frozen=True)
class SwappedLabels:
    """What a run found the wrong way round. lines: where these labels were read; files, rows: what the run learnt from,
    as far as it says so."""

    run: str
    lines: tuple[str, ...]
    files: tuple[str, ...]
    rows: int | None

    def of_other_data(self, rows: int, missing: Sequence[str]) -> str | None:
        """Why data of so many rows is not what the run learnt from, if it is not. missing: lines that it lacks."""
        if missing:
            return (
                f"{len(missing):,} of the {len(self.lines):,} lines that {self.run} found swapped are not in it, "
                f"{missing[0]} among them. Name what that run learnt from "
                f"({', '.join(self.files) or 'its recipe says what'}), from the folder in which it was started"
            )
        if self.lines and self.rows not in (None, rows):
            return (
                f"it has {count_of(rows, 'row')}, and had {self.rows:,} when {self.run} learnt from it: its lines are "
                "others now. Train a run on it as it is"
            )
        return None


def swapped_in(run: str) -> SwappedLabels:
    """Which labels a run found the wrong way round."""
    case = Case(Run.open(run))
    read, found = case.account("train", "read"), swapped(case)
    files, rows = read.get("files"), read.get("read")
    named = tuple(map(str, files)) if isinstance(files, list) else ()
    return SwappedLabels(run, found.lines if found else (), named, rows if isinstance(rows, int) else None)
