"""How the run itself went: failed, stopped, not finished; and what of it was not measured."""

from __future__ import annotations

from prefiere.doctor import standstill
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.run import StopKind


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
