"""What a run's curves and answers mean, in plain language, with the remedy.

The checks live in curves.py (curves of given answers), truncation.py (what was cut of the data), reward_models.py,
policy_gradients.py and machinery.py (policy gradients), answers.py (sampled text), and rules/ (causes: data, labels,
settings, rewards, the start, the course of the run). This file holds the list of checks of each family of methods, and
the verdict: one sentence over all findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefiere.doctor import answers, curves, machinery, policy_gradients, reward_models, standstill, truncation
from prefiere.doctor.case import Case, Family, Finding, Severity
from prefiere.doctor.remedies import acceptable, agreeing
from prefiere.doctor.rules import course, data, labels, lengths, patterns, peak, rewards, settings, start
from prefiere.run import Run

__all__ = ["Diagnosis", "Finding", "diagnose"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict in one sentence, its severity, and the findings it rests on, the gravest first."""

    headline: str
    severity: Severity
    findings: tuple[Finding, ...]

    def __contains__(self, key: object) -> bool:
        return any(f.key == key for f in self.findings)

    @property
    def praise(self) -> Finding | None:
        """What was learnt, where held-out examples enough show it."""
        return praise(self.findings)

    @property
    def but(self) -> Finding | None:
        """What the praise must not be said without, if there is such a thing."""
        return reserve(self.findings)

    @property
    def cause(self) -> Finding | None:
        """The gravest finding that names why the run went wrong, if one does."""
        return next((f for f in self.findings if f.cause and f.severity in ("bad", "warning")), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"headline": self.headline, "severity": self.severity, "findings": plain_values(self.findings)}


def plain_values(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as plain values, for JSON. lines_of: how many lines are meant, of which ``lines`` are the first."""
    return [
        {k: v for k, v in asdict(f).items() if k not in ("advice", "seen", "said_as")}
        | {
            "lines": list(f.lines),
            "lines_of": f.lines_of,
            "values": {k: str(v) for k, v in f.values.items()},
            "evidence": f.evidence,
            "remedies": [asdict(r) | {"text": str(r)} for r in f.remedies],
        }
        for f in found
    ]


def diagnose(run: Run) -> Diagnosis:
    """Read a run folder and say what it shows. Raises RunError where a file of the folder is damaged."""
    case = Case(run)
    checked = (*_OF_THE_RUN, *_CHECKS[case.family], *_OF_ALL, course.unfinished, course.unmeasured)
    found = [f for check in checked if (f := check(case)) is not None] + data.in_run(case)
    found = [replace(f, advice=acceptable(f.remedies, case.recipe)) for f in consistent(found)]
    headline, severity = _verdict(found)
    return Diagnosis(headline, severity, tuple(found))


_ORDER: tuple[Severity, ...] = ("bad", "warning", "good", "info")
_PRAISE = ("learnt", "both_fall", "barely", "adaptive", "within_noise")
"""What is no comfort where something is bad: that a change may be chance is none for a model that was ruined."""
_RESERVES = ("unusual_setting", "barely", "too_alike", "one_word", "length_paid", "mostly_length", "in_part")
"""Information without which praise would say too much: such a run did learn, and is not simply good."""
_EXPLAINED: dict[str, tuple[str, ...]] = {
    "no_pattern": (
        *("within_noise", "stuck", "overfit", "not_carried_over", "moved_away"),
        *("mostly_length", "words_silent"),
    ),
    "pattern_missed": ("within_noise", "stuck", "chance", "mostly_length", "words_tell"),
    "weak_pattern": ("within_noise", "stuck", "chance", "mostly_length", "words_tell"),
    "labels_swapped": ("mostly_length", "spikes", "words_reversed", "in_part"),
    "words_reversed": (
        "mostly_length",
        "spikes",
        "in_part",
        "weak_pattern",
        "no_pattern",
        "chance",
        "within_noise",
        "words_tell",
    ),
    "person_contrary": ("labels_swapped", "words_reversed", "mostly_length", "spikes"),
    "one_place": ("no_pattern", "weak_pattern", "within_noise", "chance", "words_silent"),
    "no_language": ("answers_elsewhere", "foreign_answers", "start_broken", "never_end"),
    "another_task": ("no_pattern", "weak_pattern", "within_noise", "chance"),
    "template_unused": ("start_broken", "never_end", "foreign_answers"),
    "cut_off": ("shortcut_word",),
    "system_dropped": ("no_pattern", "weak_pattern", "within_noise", "chance"),
    "said_twice": ("longer",),
    **dict.fromkeys(("shortcut_word", "web_marks"), ("foreign_answers",)),
    "answers_elsewhere": ("foreign_answers", "shortcut_word"),
    "prompt_in_answer": ("foreign_answers", "shortcut_word", "label_before"),
    "answers_astray": ("some_elsewhere", "foreign_answers"),
    "template_in_text": ("foreign_answers", "start_broken", "shortcut_word"),
    "damaged_text": ("foreign_answers", "shortcut_word"),
    **dict.fromkeys(("one_text", "few_texts"), ("shortcut_word", "foreign_answers", "repeated")),
    "none_given": ("shortcut_word", "few_texts", "one_text"),
    "label_before": ("shortcut_word", "foreign_answers"),
    "in_another_order": ("too_alike", "foreign_answers"),
    "coded_prompts": ("answers_elsewhere", "some_elsewhere"),
    **dict.fromkeys(("one_prompt", "cut"), ("repeated", "known_answers")),
    "known_answers": ("another_task",),
    "exchanged": ("shortcut_word",),
    "repeated": ("shortcut_word", "labels_swapped"),
    "price_too_high": ("reward_flat", "setting_too_high"),
    "reward_mostly_same": ("reward_flat", "dead_critic", "not_followed", "reward_outliers"),
    "reward_of_prompt": ("reward_flat", "dead_critic", "not_followed"),
    "reward_of_batch": ("reward_flat", "not_followed", "reward_noisy"),
    "reward_constant": ("reward_flat", "dead_critic"),
    "rate_too_low": ("stuck", "within_noise", "chance", "reward_flat", "barely"),
    "setting_too_high": ("stuck", "within_noise", "reward_flat", "barely", "spikes"),
    "setting_too_low": ("stuck", "within_noise", "reward_flat", "barely"),
    "exploited": ("past_the_peak",),
    "reward_noisy": ("reward_flat", "not_followed"),
    "reward_outliers": ("reward_flat",),
    "never_end": ("reward_flat",),
}
"""A cause, and the symptoms that would say less, or something else, beside it."""


def _explains(cause: Finding, other: Finding) -> bool:
    """Whether a cause takes the place of another finding: information explains no warning, and a word that gives labels
    away may be the least that is the matter with answers that ruin a run."""
    if cause.severity == "info" or (cause.key == "shortcut_word" and other.severity == "bad"):
        return False
    if cause.key == "cut_off" and any(c.isalnum() for c in str(other.values.get("word", ""))):
        return False  # a full stop that one side alone has is explained by answers that were cut, a word is not
    if cause.key == "cut" and cause.about != "prompts":
        return False  # prompts that were cut become the same, answers do not
    key = "shortcut_word" if other.key == "shortcut_form" else other.key
    return key in _EXPLAINED.get(cause.key, ())


def consistent(found: list[Finding]) -> list[Finding]:
    """Findings that do not contradict each other: the gravest first, and of equals those that name a cause; no praise
    beside damage, no symptom that a cause explains, and all remedies push the way that the first one does."""
    if any(f.severity == "bad" for f in found):
        found = [f for f in found if f.key not in _PRAISE]
    found = [f for f in found if not any(_explains(cause, f) for cause in found)]
    found.sort(key=lambda f: (_ORDER.index(f.severity), not f.cause))
    push = next((r.push for f in found for r in f.remedies if r.push), 0)
    return [replace(f, advice=agreeing(f.remedies, push)) for f in found]


def praise(found: Iterable[Finding]) -> Finding | None:
    """The finding that praises, if one does: a verdict leads with no other that tells of something learnt."""
    return next((f for f in found if f.severity == "good"), None)


def reserve(found: Iterable[Finding]) -> Finding | None:
    """Of findings, the gravest first and none of damage: what praise must not be said without, warnings first."""
    return next((f for f in found if f.severity == "warning" or f.key in _RESERVES), None)


def _verdict(found: list[Finding]) -> tuple[str, Severity]:
    """The gravest finding's title; praise, with what to say besides, where nothing is bad."""
    by_key = {f.key: f for f in found}
    if found and found[0].severity == "bad":
        cause = next((f for f in found if f.cause and f.severity == "warning"), None)
        likely = "" if found[0].cause or cause is None else f" Likely cause: {_lower(cause.title)}"
        return found[0].title + likely, "bad"
    but = reserve(found)
    if (good := praise(found)) is not None:
        return (good.title, "good") if but is None else (f"{good.title} But: {_lower(but.title)}", but.severity)
    if but is not None and but.severity == "warning":
        return but.title, "warning"
    for key in ("empty", "learnt"):
        if key in by_key:
            return by_key[key].title, "info"
    return "The run shows neither harm nor a clear gain.", "info"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


Check = Callable[[Case], Finding | None]

_OF_THE_RUN: tuple[Check, ...] = (course.failed, course.stopped, course.empty)
_OF_ALL: tuple[Check, ...] = (
    settings.too_strong,
    settings.too_weak,
    settings.out_of_range,
    settings.worst_kept,
    standstill.few_held_out,
    start.broken,
)
_OF_LABELS: tuple[Check, ...] = (labels.swapped, patterns.nothing_learnt, standstill.in_part)
_GIVEN: tuple[Check, ...] = (
    answers.answers_degenerate,
    curves.moved_away,
    answers.worse_score,
    curves.overfit,
    standstill.stuck,
    curves.within_noise,
    curves.drift,
    truncation.cut,
    truncation.not_held_out,
    truncation.another_task,
    answers.never_end,
    answers.longer,
    curves.spikes,
    curves.learnt,
    curves.both_fall,
    standstill.barely,
)
_CHECKS: dict[Family, tuple[Check, ...]] = {
    "imitation": (*_GIVEN, start.elsewhere),
    "preference": (
        *_GIVEN,
        *_OF_LABELS,
        start.no_language,
        start.elsewhere,
        start.foreign,
        start.too_alike,
        lengths.pairs_by_length,
        lengths.only_longer,
    ),
    "reward": (
        *_OF_LABELS,
        reward_models.chance,
        reward_models.mostly_length,
        curves.overfit,
        reward_models.saturated,
        truncation.cut,
        truncation.not_held_out,
        truncation.another_task,
        reward_models.miscalibrated,
        curves.spikes,
        reward_models.scores_learnt,
        reward_models.off_centre,
    ),
    "policy": (
        start.no_language,
        answers.answers_degenerate,
        policy_gradients.reward_exploited,
        policy_gradients.reward_falls,
        policy_gradients.kl_runaway,
        policy_gradients.policy_worse_score,
        policy_gradients.reward_flat,
        policy_gradients.not_followed,
        policy_gradients.length_hack,
        policy_gradients.entropy_collapse,
        policy_gradients.policy_drift,
        machinery.disagreement,
        machinery.too_far,
        machinery.dead_critic,
        machinery.fewer_ends,
        machinery.sampler_off,
        truncation.not_held_out,
        truncation.another_task,
        answers.never_end,
        policy_gradients.rollouts_longer,
        curves.spikes,
        policy_gradients.reward_learnt,
        policy_gradients.adaptive,
        rewards.opposed,
        rewards.noisy,
        rewards.constant,
        rewards.mostly_same,
        rewards.of_prompt,
        rewards.of_batch,
        rewards.outliers,
        rewards.price,
        peak.past,
        lengths.only_longer,
        course.unjudged,
    ),
}
"""What is asked of each family of methods, the gravest first."""
