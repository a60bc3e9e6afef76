"""What a run's curves and answers mean, in plain language, with the remedy.

The checks live in curves.py (curves of given answers), truncation.py (what was cut of the data), reward_models.py,
policy_gradients.py and machinery.py (policy gradients), answers.py (sampled text), and rules/ (causes: data, labels,
settings, rewards, the start). This file holds the checks of how the run itself went, the list of checks of each family
of methods, and the verdict: one sentence over all findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefiere.doctor import answers, curves, machinery, policy_gradients, reward_models, standstill, truncation
from prefiere.doctor.case import Case, Family, Finding, Severity
from prefiere.doctor.remedies import Remedy, acceptable, agreeing
from prefiere.doctor.rules import data, labels, lengths, patterns, peak, rewards, settings, start
from prefiere.run import Run, StopKind

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
    def cause(self) -> Finding | None:
        """The gravest finding that names why the run went wrong, if one does."""
        return next((f for f in self.findings if f.cause and f.severity in ("bad", "warning")), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        findings = [
            {k: v for k, v in asdict(f).items() if k not in ("advice", "seen", "said_as")}
            | {"evidence": f.evidence, "remedies": [asdict(r) | {"text": str(r)} for r in f.remedies]}
            for f in self.findings
        ]
        return {"headline": self.headline, "severity": self.severity, "findings": findings}


def diagnose(run: Run) -> Diagnosis:
    """Read a run folder and say what it shows. Raises RunError where a file of the folder is damaged."""
    case = Case(run)
    checked = (*_OF_THE_RUN, *_CHECKS[case.family], *_OF_ALL, unfinished, unmeasured)
    found = [f for check in checked if (f := check(case)) is not None] + data.in_run(case)
    found = [replace(f, advice=acceptable(f.remedies, case.recipe)) for f in _consistent(found)]
    headline, severity = _verdict(found)
    return Diagnosis(headline, severity, tuple(found))


_ORDER: tuple[Severity, ...] = ("bad", "warning", "good", "info")
_PRAISE = ("learnt", "both_fall", "barely", "adaptive")
"""What is no comfort where something is bad."""
_EXPLAINED: dict[str, tuple[str, ...]] = {
    "no_pattern": (
        "within_noise",
        "stuck",
        "overfit",
        "not_carried_over",
        "moved_away",
        "mostly_length",
        "words_silent",
    ),
    "pattern_missed": ("within_noise", "stuck", "chance", "mostly_length", "words_tell"),
    "weak_pattern": ("within_noise", "stuck", "chance", "mostly_length", "words_tell"),
    "labels_swapped": ("mostly_length", "spikes", "words_reversed"),
    "words_reversed": ("mostly_length", "spikes", "weak_pattern", "no_pattern", "chance", "within_noise", "words_tell"),
    "no_language": ("answers_elsewhere", "foreign_answers", "start_broken", "never_end"),
    **dict.fromkeys(("answers_elsewhere", "shortcut_word"), ("foreign_answers",)),
    "template_in_text": ("foreign_answers", "start_broken", "shortcut_word"),
    "damaged_text": ("foreign_answers", "shortcut_word"),
    "one_text": ("shortcut_word", "foreign_answers"),
    "price_too_high": ("reward_flat", "setting_too_high"),
    "reward_constant": ("reward_flat", "dead_critic"),
    "rate_too_low": ("stuck", "within_noise", "chance", "reward_flat", "barely"),
    "setting_too_high": ("stuck", "within_noise", "reward_flat", "barely", "spikes"),
    "setting_too_low": ("stuck", "within_noise", "reward_flat", "barely"),
    "exploited": ("past_the_peak",),
    "reward_noisy": ("reward_flat", "not_followed"),
}
"""A cause, and the symptoms that would say less, or something else, beside it."""


def _consistent(found: list[Finding]) -> list[Finding]:
    """Findings that do not contradict each other: the gravest first, and of equals those that name a cause; no praise
    beside damage, no symptom that a cause explains, and all remedies push the way that the first one does."""
    if any(f.severity == "bad" for f in found):
        found = [f for f in found if f.key not in _PRAISE]
    explained = {key for f in found for key in _EXPLAINED.get(f.key, ())}
    found = [f for f in found if f.key not in explained]
    found.sort(key=lambda f: (_ORDER.index(f.severity), not f.cause))
    push = next((r.push for f in found for r in f.remedies if r.push), 0)
    return [replace(f, advice=agreeing(f.remedies, push)) for f in found]


def praise(found: Iterable[Finding]) -> Finding | None:
    """The finding that praises, if one does: a verdict leads with no other that tells of something learnt."""
    return next((f for f in found if f.severity == "good"), None)


def _verdict(found: list[Finding]) -> tuple[str, Severity]:
    """The gravest finding's title; praise, with what to watch, where nothing is bad."""
    by_key = {f.key: f for f in found}
    if found and found[0].severity == "bad":
        cause = next((f for f in found if f.cause and f.severity == "warning"), None)
        likely = "" if found[0].cause or cause is None else f" Likely cause: {_lower(cause.title)}"
        return found[0].title + likely, "bad"
    warnings = [f for f in found if f.severity == "warning"]
    if (good := praise(found)) is not None:
        return good.title + (
            f" But: {_lower(warnings[0].title)}" if warnings else ""
        ), "warning" if warnings else "good"
    if warnings:
        return warnings[0].title, "warning"
    for key in ("empty", "learnt"):
        if key in by_key:
            return by_key[key].title, "info"
    return "The run shows neither harm nor a clear gain.", "info"


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def failed(case: Case) -> Finding | None:
    """The run ended in an error."""
    if case.status.get("state") != "failed":
        return None
    return Finding(
        "failed",
        f"The run failed at step {case.steps}{_of_total(case)}.",
        "bad",
        "It stopped with an error; its last checkpoint is whole. Mend the cause and give the same command again: it "
        "continues from there.",
        (str(case.status.get("reason") or "no reason was recorded"),),
    )


def stopped(case: Case) -> Finding | None:
    """The run was stopped: by a guard, or by hand."""
    if case.status.get("state") != "stopped":
        return None
    reason = str(case.status.get("reason") or "no reason was recorded")
    if case.stop is not None and case.stop.guarded:
        title, meaning = _GUARDS[case.stop.kind]
        title = f"The guard stopped the run at step {case.steps}: {title}"
        return Finding("guard", title, "bad", meaning, (reason,), case.gentler())
    return Finding(
        "stopped",
        f"The run was stopped at step {case.steps}{_of_total(case)}.",
        "info",
        "The same command continues from the last checkpoint.",
        (reason,),
    )


_GUARDS: dict[StopKind, tuple[str, str]] = {
    "kl_budget": (
        "the policy had spent its KL budget.",
        "Its answers had moved further from the model before than max_kl allows. model/ holds "
        "the policy as it was then, which may be sound: see the findings and the answers.",
    ),
    "exploited": (
        "the judge's score fell while the reward rose.",
        "The policy found answers that the reward rates too highly and the judge does not. Going on would only "
        "have made more of them.",
    ),
    "degenerate": (
        "the answers were falling apart.",
        "Answers sampled along the way got worse than any change of style explains, so going on would only have "
        "ruined the model further, however good the curves look.",
    ),
}
"""What each guard saw, and what that means."""


def unfinished(case: Case) -> Finding | None:
    """The folder still says running."""
    if case.status.get("state") != "running":
        return None
    return Finding(
        "unfinished",
        f"The run has not finished: this is step {case.steps}{_of_total(case)}.",
        "info",
        "Either it is still at work, or it was cut off. In that case the same command continues from the last "
        "checkpoint.",
    )


def empty(case: Case) -> Finding | None:
    """No metrics at all."""
    if case.rows:
        return None
    return Finding("empty", "Nothing has been measured yet.", "info", "The run has no rows in metrics.jsonl.")


def unmeasured(case: Case) -> Finding | None:
    """No held-out data, or no sampled answers."""
    if not case.rows:
        return None
    missing = []
    none_held_out = (
        standstill.examples_held_out(case) == 0 if case.family == "policy" else not len(case.series("eval_loss"))
    )
    if none_held_out:
        missing.append("No held-out data: nothing says whether what it learnt holds beyond the training data.")
    if case.family != "reward" and not len(case.series("samples/eos_rate")):
        missing.append("No answers were sampled: curves alone cannot show whether the model still writes sound text.")
    if not missing:
        return None
    remedy = (Remedy("eval_size=0.1 and sample_steps=auto, the defaults, measure both"),)
    if case.family == "policy" and not none_held_out:
        remedy = (Remedy("sample_steps=auto, the default, samples answers to held-out prompts"),)
    elif case.family in ("policy", "reward"):
        remedy = (Remedy("eval_size=0.1, the default, holds out prompts", "eval_size", 0.1),)
    return Finding(
        "unmeasured",
        "Part of the picture is missing.",
        "info",
        " ".join(missing),
        (),
        remedy,
    )


def unjudged(case: Case) -> Finding | None:
    """A policy gradient without a judge: the only score is the one that was paid for."""
    if not len(case.series("reward")) or len(case.series("samples/score")):
        return None
    return Finding(
        "unjudged",
        "Nobody but the reward itself has rated the answers.",
        "info",
        "A policy finds what its reward overlooks, so a rising reward alone does not show that answers got better. A "
        "judge that was not trained on shows it: a rule, or a reward model of other data or another seed.",
        (),
        (
            Remedy("judge=module:function, or a held-out reward model"),
            Remedy("`prefiere compare` on the run, and read the answers"),
        ),
    )


def _of_total(case: Case) -> str:
    total = case.status.get("total_steps")
    return f" of {total}" if total else ""


Check = Callable[[Case], Finding | None]

_OF_THE_RUN: tuple[Check, ...] = (failed, stopped, empty)
_OF_ALL: tuple[Check, ...] = (
    settings.too_strong,
    settings.too_weak,
    settings.out_of_range,
    standstill.few_held_out,
    start.broken,
)
_OF_LABELS: tuple[Check, ...] = (labels.swapped, patterns.nothing_learnt)
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
        answers.never_end,
        policy_gradients.rollouts_longer,
        curves.spikes,
        policy_gradients.reward_learnt,
        policy_gradients.adaptive,
        rewards.opposed,
        rewards.noisy,
        rewards.constant,
        rewards.outliers,
        rewards.price,
        peak.past,
        lengths.only_longer,
        unjudged,
    ),
}
"""What is asked of each family of methods, the gravest first."""
