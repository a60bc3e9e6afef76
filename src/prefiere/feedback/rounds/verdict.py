"""What a round's blind comparison says: does the model after win against the model before?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from prefiere.asked.language import count_of
from prefiere.feedback.schema import pair
from prefiere.feedback.science import judges
from prefiere.feedback.votes import Vote, in_force
from prefiere.stats import clustered_mean


@dataclass(frozen=True)
class Verdict:
    """How often the model after is preferred, a tie as half, with its 95% interval (nan below two prompts)."""

    share: float
    low: float
    high: float
    votes: int
    sentence: str

    @property
    def lost(self) -> bool:
        """Whether the whole interval lies below one half."""
        return self.high < 0.5


def verdict_of(c: sa.Connection, round_id: int) -> Verdict:
    """Of the votes in force on a round's comparison. Answer b of each pair is the model after's.

    People decide. Where a judge voted, too, on enough of their pairs, it narrows their interval (PPI++); a judge alone
    decides only where nobody else voted, and the sentence says so.
    """
    mine = sa.select(pair.c.id).where(pair.c.round_id == round_id, pair.c.purpose == "compare")
    pairs = set(c.execute(mine).scalars())
    said = [v for v in in_force(c) if v.pair_id in pairs]
    people, judged = _by_pair([v for v in said if not v.judge]), _by_pair([v for v in said if v.judge])
    prompts = {v.pair_id: v.prompt_id for v in said}
    common = [p for p in people if p in judged]
    if len(common) >= judges.FEWEST_JUDGED and len(common) == len(people):
        rest = [f for p, f in judged.items() if p not in people]
        found = judges.corrected([people[p] for p in common], [judged[p] for p in common], rest)
        share, low, high, whose = found.mean, found.low, found.high, "people, and a judge that they correct"
    else:
        values, whose = (people, "people") if people else (judged, "the judge alone")
        mean = clustered_mean(list(values.values()), [prompts[p] for p in values], share=True)
        share, low, high = mean.mean, mean.low, mean.high
    count = len(people or judged)
    if not count:
        return Verdict(share, low, high, 0, "nobody compared the answers: nothing is known of the model after")
    interval = f" ({low:.0%} to {high:.0%})" if low == low else ""
    sentence = f"the model after is preferred in {share:.0%}{interval} of {count_of(count, 'pair')}, by {whose}"
    return Verdict(share, low, high, count, sentence)


def _by_pair(votes: Sequence[Vote]) -> dict[int, float]:
    """The mean vote on each pair: 1 where the model after wins, 0.5 for a tie or two bad answers."""
    found: dict[int, list[float]] = defaultdict(list)
    for v in votes:
        found[v.pair_id].append({"b": 1.0, "a": 0.0}.get(v.side, 0.5))
    return {p: float(np.mean(values)) for p, values in found.items()}
