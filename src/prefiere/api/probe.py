"""Two tasks that cannot fail unless the machinery does: ``prefiere probe --model M``.

When a run goes wrong, the fault is in the data, in the reward, or in the machinery: the model as it is loaded, its chat
template, its end token, the rate, the loss. A preference of a known word needs nothing but sound machinery, nor does a
reward for a known token. If both are learnt, look at data and reward; if not, at model and settings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prefiere.api.held import settle
from prefiere.api.training import train
from prefiere.asked.language import in_words
from prefiere.doctor.case import Case
from prefiere.doctor.series import Change
from prefiere.run import Run

SUBJECTS = (
    *("water", "bread", "stone", "music", "winter", "bridge", "letter", "window", "garden", "river", "clock", "paper"),
    *("colour", "silver", "forest", "harbour", "candle", "mirror", "pocket", "thunder", "village", "engine", "blanket"),
    *("kitchen", "island", "feather", "market", "needle", "ladder", "button", "valley", "copper", "saddle", "lantern"),
    *("orchard", "pepper", "rocket", "tunnel", "velvet", "wagon", "basket", "carpet", "donkey", "finger", "hammer"),
    *("jacket", "kettle", "lemon"),
)
QUESTIONS = ("What is {}?", "Tell me about {}.", "Explain {}.", "What do you know about {}?")
KNOWN = ("Yes", "No")
"""The preferred answer's first word, and the other's; all else is the same."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One task: what it was, whether it was learnt, and what was measured before and after."""

    task: str
    learnt: bool
    before: float
    after: float
    low: float

    def __str__(self) -> str:
        figures = {"before": f"{self.before:.2f}", "after": f"{self.after:.2f}", "low": f"{self.low:.2f}"}
        return in_words(f"probe.{'learnt' if self.learnt else 'not_learnt'}", task=self.task, **figures)


@dataclass(frozen=True, slots=True)
class Probe:
    """What both tasks say. verdict: a sentence on where to look."""

    preference: Probed
    reward: Probed

    @property
    def sound(self) -> bool:
        """Whether the machinery learnt both."""
        return self.preference.learnt and self.reward.learnt

    @property
    def verdict(self) -> str:
        """Where to look."""
        if self.sound:
            return in_words("probe.sound")
        if self.preference.learnt:
            return in_words("probe.no_rewards")
        if self.reward.learnt:
            return in_words("probe.no_preferences")
        return in_words("probe.neither")


def probe(model: str, out: str | Path, *, console: Console | None = None, **settings: Any) -> Probe:
    """Train a model on a preference of a known word, and on a reward of a known token, each for a minute or less.

    settings: of both runs (``learning_rate``, ``template``, ``lora``, ...), to probe them too. Raises ValueError as
    training does.
    """
    folder, quiet = Path(out), console or Console(quiet=True)
    shared = {"model": model, "save_steps": 1000, "guard": False, "seed": 0, **settings}
    return Probe(_preference(shared, folder / "preference", quiet), _reward(shared, folder / "reward", quiet))


def _run(method: str, values: dict[str, Any], console: Console) -> Run:
    made, given = settle(method, None, values)
    return train(made, fresh=True, console=console, given=given)


def _asked() -> list[str]:
    return [question.format(subject) for subject in SUBJECTS for question in QUESTIONS]


def _preference(shared: dict[str, Any], out: Path, console: Console) -> Probed:
    prompts = _asked()
    same = [f"It is a {SUBJECTS[i % len(SUBJECTS)]}." for i in range(len(prompts))]
    pairs = [
        {"prompt": p, "chosen": f"{KNOWN[0]}. {end}", "rejected": f"{KNOWN[1]}. {end}"}
        for p, end in zip(prompts, same, strict=True)
    ]
    values = {"data": pairs, "out": str(out), "batch_size": 16, "eval_size": 40, "sample_steps": 0, "max_length": 128}
    run = _run("dpo", shared | values, console)
    change = Case(run).change("eval_rewards/accuracies")
    return _probed(in_words("probe.prefers", word=KNOWN[0]), change, least=0.75)


def _reward(shared: dict[str, Any], out: Path, console: Console) -> Probed:
    """First a run of one update, which samples the model's own answers: the token that is paid for is one that they
    hold now and then. Then the run that is paid for it."""
    own = {"data": _asked(), "batch_size": 16, "num_generations": 4, "eval_size": 48, "max_new_tokens": 24,
           "sample_prompts": 48, "kl_coef": 0.0}  # fmt: skip
    first = _run("rloo", shared | own | {"reward": _length, "out": f"{out}-before", "max_steps": 1}, console)
    token = known_token([str(r["completion"]) for r in first.samples if r.get("step") == 0])

    def holds(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(token in _tokens(c)) for c in completions]

    run = _run("rloo", shared | own | {"reward": holds, "out": str(out), "max_steps": 16, "sample_steps": 16}, console)
    return _probed(in_words("probe.writes", token=token), Case(run).change("samples/reward"), least=None)


def _length(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def _tokens(text: str) -> set[str]:
    return set(re.findall(r"\w+|[^\w\s]", text))


def known_token(answers: Sequence[str]) -> str:
    """The word or sign that is nearest to standing in three answers of ten. Raises ValueError where all are empty."""
    counts = Counter(token for a in answers for token in _tokens(a))
    if not counts:
        raise ValueError(in_words("probe.no_token"))
    return min(sorted(counts), key=lambda token: abs(counts[token] / len(answers) - 0.3))


def _probed(task: str, change: Change | None, least: float | None) -> Probed:
    """Learnt: it rose beyond its noise, and above ``least`` where that is given."""
    if change is None:
        return Probed(task, False, float("nan"), float("nan"), float("nan"))
    good = change.rises() and (least is None or change.after.low > least)
    return Probed(task, good, change.before.mean, change.after.mean, change.after.low)
